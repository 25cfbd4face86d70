//! HTTP/2 connections to peers over mutual TLS: several a region, each request on the least busy.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::model::region::RegionId;

use super::super::body::Body;
use super::super::dial::{self, DialError};
use super::{LocalExecutor, SendCause, SendError};

/// Bytes in flight on one stream: 4 MiB keeps 25 MB/s moving over 160 ms.
const STREAM_WINDOW: u32 = 4 << 20;
/// Room for many streams whose readers have stopped, before they hold up the others.
const CONNECTION_WINDOW: u32 = 256 << 20;

/// A silent peer is given up after these two: about the time a person waits.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach the proxy of another region.
#[derive(Clone)]
pub struct Gateway {
    /// `HOST:PORT`.
    pub authority: Arc<str>,
    /// Accepts nobody but the proxy of that region.
    pub tls: Arc<ClientConfig>,
}

/// One worker's connections to all peers.
#[derive(Clone, Default)]
pub struct PeerPool {
    regions: Rc<RefCell<HashMap<RegionId, Vec<Rc<Slot>>>>>,
}

/// Room for one connection.
#[derive(Default)]
struct Slot {
    in_flight: Cell<usize>,
    /// Locked while dialing, so that requests that need the same connection wait for it together.
    open: Mutex<Option<Open>>,
    /// When dialing failed last: whoever was waiting then has waited enough.
    failed: Cell<Option<Instant>>,
}

struct Open {
    sender: SendRequest<Body>,
    gateway: Gateway,
}

/// Counts a request as in flight until it is dropped.
pub struct InFlight(Rc<Slot>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

impl PeerPool {
    /// Sends a request to the proxy of `region` and waits for the head of the answer.
    ///
    /// The guard counts the request as in flight; keep it until the answer's body has ended.
    pub async fn send(
        &self,
        region: RegionId,
        gateway: &Gateway,
        connections: usize,
        mut request: Request<Body>,
        connect_limit: Duration,
    ) -> Result<(Response<Incoming>, InFlight), SendError> {
        let slot = self.least_busy(region, connections);
        slot.in_flight.set(slot.in_flight.get() + 1);
        let guard = InFlight(Rc::clone(&slot));
        // Once on the connection that is there, once on a fresh one should that be closing.
        for last in [false, true] {
            let mut sender = match slot.sender(gateway, connect_limit).await {
                Ok(sender) => sender,
                Err(error) => return Err(SendError::dial(error, request)),
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, guard)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !last => {
                        slot.open.lock().await.take();
                        request = unsent;
                    }
                    unsent => {
                        return Err(SendError { cause: SendCause::Broken(error.into_error()), unsent: unsent.map(Box::new) });
                    }
                },
            }
        }
        unreachable!("the second try returns")
    }

    /// Opens a connection to `region` if none is open: the first request should not wait for three round trips. A failure
    /// is left for a request to tell.
    pub async fn warm(&self, region: RegionId, gateway: &Gateway, connections: usize, connect_limit: Duration) {
        let slot = self.least_busy(region, connections);
        let _ = slot.sender(gateway, connect_limit).await;
    }

    fn least_busy(&self, region: RegionId, connections: usize) -> Rc<Slot> {
        let mut regions = self.regions.borrow_mut();
        let slots = regions.entry(region).or_default();
        slots.resize_with(connections.max(1), Rc::default);
        Rc::clone(slots.iter().min_by_key(|slot| slot.in_flight.get()).expect("there is at least one slot"))
    }
}

impl Slot {
    /// A sender on a live connection to this very gateway, opened now if there is none.
    async fn sender(&self, gateway: &Gateway, limit: Duration) -> Result<SendRequest<Body>, DialError> {
        let asked = Instant::now();
        let mut open = self.open.lock().await;
        if self.failed.get().is_some_and(|failed| failed >= asked) {
            return Err(DialError::JustFailed { authority: gateway.authority.to_string() });
        }
        if let Some(open) = &*open
            && !open.sender.is_closed()
            && open.gateway.authority == gateway.authority
            && Arc::ptr_eq(&open.gateway.tls, &gateway.tls)
        {
            return Ok(open.sender.clone());
        }
        // An earlier connection ends by itself when its last stream does.
        *open = None;
        let sender = dial(gateway, limit).await.inspect_err(|_| self.failed.set(Some(Instant::now())))?;
        *open = Some(Open { sender: sender.clone(), gateway: gateway.clone() });
        Ok(sender)
    }
}

async fn dial(gateway: &Gateway, limit: Duration) -> Result<SendRequest<Body>, DialError> {
    let stream = dial::secured(&gateway.authority, Arc::clone(&gateway.tls), limit).await?;
    let handshake = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .max_header_list_size(64 << 10)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = handshake
        .map_err(|error| DialError::Connect { authority: gateway.authority.to_string(), source: std::io::Error::other(error) })?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a peer ended");
        }
    });
    Ok(sender)
}
