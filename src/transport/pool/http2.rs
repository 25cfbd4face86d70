//! HTTP/2 connections, to peers and to upstreams: several to a place, each request on the least busy.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use h2::ext::Protocol;
use http::header::HOST;
use http::{Method, Request, Response};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::model::region::RegionId;

use super::super::body::Body;
use super::super::dial::{self, Approach, DialError, Server};
use super::super::http2::Listening;
use super::super::tunnel::CONNECT;
use super::super::window::Window;
use super::sender::{EXTENDED_CONNECT, Sender};
use super::{Reply, SendError, form};

/// As much as a thousand streams of a megabyte may have under way together: whose reader has stopped holds up no other.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// What unread frames of hardly any data may cost.
const SMALL_FRAMES_BUDGET: usize = 256 << 20;

/// What the head of an answer may be, as over HTTP/1.
const MOST_HEAD: u32 = 64 << 10;

/// Bytes of one request's body that wait to be written, at the most; no more than its window.
const SEND_BUFFER: u32 = 256 << 10;

/// Where connections lead to, and how their loss is noticed.
pub trait Place: Eq + Hash + Clone {
    /// How long what was written may stay unacknowledged.
    const ACKNOWLEDGED_WITHIN: Duration;
    /// How often the other end is asked for a sign of life. Servers of gRPC close the connection on whoever asks often.
    const PING_EVERY: Option<Duration>;
}

impl Place for RegionId {
    /// About the time a person waits, together with the ping.
    const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);
    const PING_EVERY: Option<Duration> = Some(Duration::from_secs(5));
}

impl Place for Arc<str> {
    const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(30);
    const PING_EVERY: Option<Duration> = None;
}

/// How long a process may leave a ping unanswered whose kernel acknowledges it.
const PING_PATIENCE: Duration = Duration::from_secs(60);

/// One worker's connections to all peers.
pub type PeerPool = Http2Pool<RegionId>;

/// One worker's HTTP/2 connections, several to a place; those of one window by themselves, for all streams of a connection have the same.
#[derive(Clone)]
pub struct Http2Pool<K> {
    places: Rc<RefCell<HashMap<(K, Window), Slots>>>,
}

impl<K> Default for Http2Pool<K> {
    fn default() -> Self {
        Self { places: Rc::default() }
    }
}

type Slots = Vec<Rc<Slot>>;

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
    sender: Sender,
    server: Server,
    remote: Option<SocketAddr>,
}

/// Counts a request as in flight until it is dropped.
pub struct InFlight(Rc<Slot>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

impl<K: Place> Http2Pool<K> {
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
    ) -> Result<(Response<Body>, InFlight), SendError> {
        let guard = InFlight::on(self.least_busy((place, approach.window), connections));
        if form::for_http2(&mut request, scheme_of(server)).is_none() {
            return Err(SendError::form(request));
        }
        // Once on the connection that is there, once on a fresh one should that be closing.
        for last in [false, true] {
            let sender = match guard.0.open::<K>(server, approach).await {
                Ok(sender) => sender,
                Err(error) => return Err(SendError::dial(error, request)),
            };
            match sender.send(request, approach.stall).await {
                Err(SendError { unsent: Some(unsent), .. }) if !last => {
                    guard.0.open.lock().await.take();
                    request = *unsent;
                }
                outcome => return outcome.map(|response| (response, guard)),
            }
        }
        unreachable!("the second try returns")
    }

    /// Asks for a tunnel of `protocol` by extended CONNECT (RFC 8441), or by CONNECT itself.
    pub async fn open(
        &self,
        place: K,
        server: &Server,
        connections: usize,
        mut request: Request<Body>,
        protocol: &str,
        approach: &Approach,
    ) -> Result<(Reply, InFlight), SendError> {
        let guard = InFlight::on(self.least_busy((place, approach.window), connections));
        let sender = match guard.0.open::<K>(server, approach).await {
            Ok(sender) => sender,
            Err(error) => return Err(SendError::dial(error, request)),
        };
        let is_connect = protocol == CONNECT;
        if !is_connect && !sender.offers_tunnels(approach.limit).await {
            let authority = server.authority.to_string();
            return Err(SendError::dial(DialError::OtherProtocol { authority, wanted: EXTENDED_CONNECT }, request));
        }
        let formed = if is_connect { form::for_connect(&mut request) } else { form::for_http2(&mut request, scheme_of(server)) };
        if formed.is_none() {
            return Err(SendError::form(request));
        }
        *request.method_mut() = Method::CONNECT;
        request.headers_mut().remove(HOST);
        if !is_connect {
            request.extensions_mut().insert(Protocol::from(protocol));
        }
        sender.open(request).await.map(|reply| (reply, guard))
    }

    /// Opens a connection if none is open: the first request should not wait for three round trips. A failure is left for
    /// a request to tell.
    pub async fn warm(&self, place: K, server: &Server, connections: usize, approach: &Approach) {
        let slot = self.least_busy((place, approach.window), connections);
        let _ = slot.open::<K>(server, approach).await;
    }

    /// Lets go of connections to places that are no more, or no more the same, once nothing is under way on them.
    pub fn retain(&self, is_current: impl Fn(&K, Window, &Server) -> bool) {
        self.places.borrow_mut().retain(|(place, window), slots| {
            for slot in slots.iter().filter(|slot| slot.in_flight.get() == 0) {
                if let Ok(mut open) = slot.open.try_lock() {
                    open.take_if(|open| !is_current(place, *window, &open.server));
                }
            }
            slots.iter().any(|slot| slot.in_flight.get() > 0 || slot.open.try_lock().is_ok_and(|open| open.is_some()))
        });
    }

    fn least_busy(&self, place: (K, Window), connections: usize) -> Rc<Slot> {
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
    async fn open<K: Place>(&self, server: &Server, approach: &Approach) -> Result<Sender, DialError> {
        let asked = Instant::now();
        let mut open = self.open.lock().await;
        if self.failed.get().is_some_and(|failed| failed >= asked) {
            return Err(DialError::JustFailed { authority: server.authority.to_string() });
        }
        if let Some(open) = &*open
            && open.sender.is_open()
            && open.server.is_same(server)
            && server.leads_to(open.remote)
        {
            return Ok(open.sender.clone());
        }
        // An earlier connection ends by itself when its last stream does.
        *open = None;
        let dialed = dial::<K>(server, approach).await;
        let (sender, remote) = dialed.inspect_err(|_| self.failed.set(Some(Instant::now())))?;
        *open = Some(Open { sender: sender.clone(), server: server.clone(), remote });
        Ok(sender)
    }
}

async fn dial<K: Place>(server: &Server, approach: &Approach) -> Result<(Sender, Option<SocketAddr>), DialError> {
    let stream = dial::open(server, approach, false).await?;
    let remote = stream.remote();
    if server.tls.is_some() && !stream.chose_http2() {
        return Err(DialError::OtherProtocol { authority: server.authority.to_string(), wanted: "HTTP/2" });
    }
    stream.expect_acknowledgement(K::ACKNOWLEDGED_WITHIN);
    let io = Listening::new(stream);
    let keepalive = K::PING_EVERY.map(|every| io.keepalive(every, PING_PATIENCE));
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(approach.window.bytes())
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MOST_HEAD)
        .max_send_buffer_size(approach.window.bytes().min(SEND_BUFFER) as usize)
        .data_frame_budget(SMALL_FRAMES_BUDGET)
        // What is given up in numbers is no fault of the other end.
        .max_local_error_reset_streams(None)
        .max_concurrent_reset_streams(1000)
        .reset_stream_duration(Duration::from_secs(30))
        .handshake(io)
        .await;
    let (sender, mut connection) = handshake
        .map_err(|error| DialError::Connect { authority: server.authority.to_string(), source: std::io::Error::other(error) })?;
    let pings = connection.ping_pong().expect("nobody else has asked for them");
    let lost = async move {
        match keepalive {
            Some(keepalive) => keepalive.lost(pings).await,
            None => std::future::pending().await,
        }
    };
    tokio::task::spawn_local(async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(%error, "an HTTP/2 connection ended");
            },
            // Its streams end with it.
            () = lost => tracing::debug!("an HTTP/2 connection was given up: the other end is silent"),
        }
    });
    Ok((Sender::new(sender), remote))
}
