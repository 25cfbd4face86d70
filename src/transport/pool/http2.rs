//! HTTP/2 connections, to peers and to upstreams: several to a place, each request on the least busy.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::ext::Protocol;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::model::region::RegionId;

use super::super::body::Body;
use super::super::dial::{self, Approach, DialError, Server};
use super::super::stream::Stream;
use super::{LocalExecutor, Reply, SendCause, SendError, form};

/// Bytes in flight on one stream: 4 MiB keeps 25 MB/s moving over 160 ms.
const STREAM_WINDOW: u32 = 4 << 20;
/// Room for many streams whose readers have stopped, before they hold up the others.
const CONNECTION_WINDOW: u32 = 256 << 20;

/// A silent peer is given up after these two: about the time a person waits.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// One worker's connections to all peers.
pub type PeerPool = Http2Pool<RegionId>;

/// One worker's HTTP/2 connections, several to a place.
#[derive(Clone)]
pub struct Http2Pool<K> {
    places: Rc<RefCell<HashMap<K, Vec<Rc<Slot>>>>>,
}

impl<K> Default for Http2Pool<K> {
    fn default() -> Self {
        Self { places: Rc::default() }
    }
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
    server: Server,
    tunnels: Tunnels,
    remote: Option<SocketAddr>,
}

type Connection = http2::Connection<TokioIo<Stream>, Body, LocalExecutor>;

/// Tells whether the other end opens tunnels (RFC 8441); it says so in its first settings.
#[derive(Clone)]
struct Tunnels(Rc<RefCell<Connection>>);

impl Tunnels {
    /// Waits for the settings of a connection that is new; an old one knows.
    async fn are_offered(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.0.borrow().is_extended_connect_protocol_enabled() {
            if Instant::now() >= deadline {
                return false;
            }
            // hyper tells nobody when they come.
            tokio::time::sleep(SETTINGS_LOOK).await;
        }
        true
    }
}

/// How often the settings of a new connection are looked for.
const SETTINGS_LOOK: Duration = Duration::from_millis(2);

/// Counts a request as in flight until it is dropped.
pub struct InFlight(Rc<Slot>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

impl<K: Eq + Hash> Http2Pool<K> {
    /// Sends a request and waits for the head of the answer.
    ///
    /// The guard counts the request as in flight; keep it until the answer's body has ended.
    pub async fn send(
        &self,
        place: K,
        server: &Server,
        connections: usize,
        mut request: Request<Body>,
        approach: &Approach,
    ) -> Result<(Response<Incoming>, InFlight), SendError> {
        let guard = InFlight::on(self.least_busy(place, connections));
        if form::for_http2(&mut request, scheme_of(server)).is_none() {
            return Err(SendError::form(request));
        }
        // Once on the connection that is there, once on a fresh one should that be closing.
        for last in [false, true] {
            let mut sender = match guard.0.open(server, approach).await {
                Ok((sender, _)) => sender,
                Err(error) => return Err(SendError::dial(error, request)),
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, guard)),
                Err(error) => match SendError::of(error) {
                    SendError { unsent: Some(unsent), .. } if !last => {
                        guard.0.open.lock().await.take();
                        request = *unsent;
                    }
                    error => return Err(error),
                },
            }
        }
        unreachable!("the second try returns")
    }

    /// Asks for a tunnel of `protocol` by extended CONNECT (RFC 8441).
    pub async fn open(
        &self,
        place: K,
        server: &Server,
        connections: usize,
        mut request: Request<Body>,
        protocol: &str,
        approach: &Approach,
    ) -> Result<(Reply, InFlight), SendError> {
        let guard = InFlight::on(self.least_busy(place, connections));
        let (mut sender, tunnels) = match guard.0.open(server, approach).await {
            Ok(open) => open,
            Err(error) => return Err(SendError::dial(error, request)),
        };
        if !tunnels.are_offered(approach.limit).await {
            let authority = server.authority.to_string();
            return Err(SendError::dial(DialError::OtherProtocol { authority, wanted: "extended CONNECT" }, request));
        }
        if form::for_http2(&mut request, scheme_of(server)).is_none() {
            return Err(SendError::form(request));
        }
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(Protocol::from(protocol));
        let mut response = sender.try_send_request(request).await.map_err(SendError::of)?;
        if !response.status().is_success() {
            return Ok((Reply::Answered(response), guard));
        }
        let upgraded = match hyper::upgrade::on(&mut response).await {
            Ok(upgraded) => upgraded,
            Err(error) => return Err(SendError { cause: SendCause::Broken(error), unsent: None }),
        };
        Ok((Reply::Opened(response.into_parts().0, Box::pin(TokioIo::new(upgraded))), guard))
    }

    /// Opens a connection if none is open: the first request should not wait for three round trips. A failure is left for
    /// a request to tell.
    pub async fn warm(&self, place: K, server: &Server, connections: usize, approach: &Approach) {
        let slot = self.least_busy(place, connections);
        let _ = slot.open(server, approach).await;
    }

    fn least_busy(&self, place: K, connections: usize) -> Rc<Slot> {
        let mut places = self.places.borrow_mut();
        let slots = places.entry(place).or_default();
        slots.resize_with(connections.max(1), Rc::default);
        Rc::clone(slots.iter().min_by_key(|slot| slot.in_flight.get()).expect("there is at least one slot"))
    }
}

impl InFlight {
    fn on(slot: Rc<Slot>) -> Self {
        slot.in_flight.set(slot.in_flight.get() + 1);
        Self(slot)
    }
}

fn scheme_of(server: &Server) -> &'static str {
    if server.tls.is_some() { "https" } else { "http" }
}

impl Slot {
    /// A sender on a live connection to this very server, opened now if there is none.
    async fn open(&self, server: &Server, approach: &Approach) -> Result<(SendRequest<Body>, Tunnels), DialError> {
        let asked = Instant::now();
        let mut open = self.open.lock().await;
        if self.failed.get().is_some_and(|failed| failed >= asked) {
            return Err(DialError::JustFailed { authority: server.authority.to_string() });
        }
        if let Some(open) = &*open
            && !open.sender.is_closed()
            && open.server.is_same(server)
            && server.leads_to(open.remote)
        {
            return Ok((open.sender.clone(), open.tunnels.clone()));
        }
        // An earlier connection ends by itself when its last stream does.
        *open = None;
        let dialed = dial(server, approach).await;
        let (sender, tunnels, remote) = dialed.inspect_err(|_| self.failed.set(Some(Instant::now())))?;
        *open = Some(Open { sender: sender.clone(), server: server.clone(), tunnels: tunnels.clone(), remote });
        Ok((sender, tunnels))
    }
}

async fn dial(server: &Server, approach: &Approach) -> Result<(SendRequest<Body>, Tunnels, Option<SocketAddr>), DialError> {
    let stream = dial::open(server, approach, false).await?;
    let remote = stream.remote();
    if server.tls.is_some() && !stream.chose_http2() {
        return Err(DialError::OtherProtocol { authority: server.authority.to_string(), wanted: "HTTP/2" });
    }
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
        .map_err(|error| DialError::Connect { authority: server.authority.to_string(), source: std::io::Error::other(error) })?;
    let tunnels = Tunnels(Rc::new(RefCell::new(connection)));
    let driven = tunnels.clone();
    tokio::task::spawn_local(async move {
        if let Err(error) = std::future::poll_fn(|cx| Pin::new(&mut *driven.0.borrow_mut()).poll(cx)).await {
            tracing::debug!(%error, "an HTTP/2 connection ended");
        }
    });
    Ok((sender, tunnels, remote))
}
