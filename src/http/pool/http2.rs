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
use super::super::http2::MonitoredIo;
use super::super::tunnel::CONNECT;
use super::super::window::{CONNECTION_WINDOW, Share, Window};
use super::sender::{EXTENDED_CONNECT, Sender};
use super::{Reply, SendError, SendOptions, form};
use crate::transport::dial::{self, DialError, Server};

/// What frames of hardly any data may cost that have come and were not taken in yet; no more come in a turn.
const SMALL_FRAMES_BUDGET: usize = 256 << 20;

/// How long a connection is kept whose window is none of those of today: connections of clients last, and keep theirs.
const RETIRED_AFTER: Duration = Duration::from_secs(60);

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
struct Slot {
    in_flight: Cell<usize>,
    /// When something was in flight last.
    used: Cell<Instant>,
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

/// Counts a request as in flight, and keeps its window, until the last of its copies is dropped.
#[derive(Clone)]
pub struct InFlight(Rc<Busy>);

struct Busy {
    slot: Rc<Slot>,
    share: Share,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.slot.in_flight.set(self.slot.in_flight.get() - 1);
        self.slot.used.set(Instant::now());
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
        options: &SendOptions,
    ) -> Result<(Response<Body>, InFlight), SendError> {
        let guard = self.begin(place, connections, options.buffers.share());
        if form::for_http2(&mut request, scheme_of(server)).is_none() {
            return Err(SendError::form(request));
        }
        // Once on the connection that is there, once on a fresh one should that be closing.
        for last in [false, true] {
            let sender = match guard.open::<K>(server, options).await {
                Ok(sender) => sender,
                Err(error) => return Err(SendError::dial(error, request)),
            };
            match sender.send(request, options.dial.write_stall, guard.clone()).await {
                Err(SendError { unsent: Some(unsent), .. }) if !last => {
                    guard.0.slot.open.lock().await.take();
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
        options: &SendOptions,
    ) -> Result<(Reply, InFlight), SendError> {
        let guard = self.begin(place, connections, options.buffers.share());
        let sender = match guard.open::<K>(server, options).await {
            Ok(sender) => sender,
            Err(error) => return Err(SendError::dial(error, request)),
        };
        let is_connect = protocol == CONNECT;
        if !is_connect && !sender.offers_tunnels(options.dial.timeout).await {
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
    pub async fn warm(&self, place: K, server: &Server, connections: usize, window: Window, options: &SendOptions) {
        let slot = self.least_busy((place, window), connections);
        let _ = slot.open::<K>(server, window, options).await;
    }

    /// Lets go of connections that have ended, that lead to places that are no more, or no more the same, or whose window nobody has
    /// asked for in a while and `windows` does not have; of none on which something is under way.
    pub fn retain(&self, windows: &[Window], is_current: impl Fn(&K, &Server) -> bool) {
        self.places.borrow_mut().retain(|(place, window), slots| {
            slots.retain(|slot| {
                if slot.in_flight.get() > 0 {
                    return true;
                }
                // Whoever has it locked is about to open it.
                let Ok(open) = slot.open.try_lock() else { return true };
                let is_wanted = windows.contains(window) || slot.used.get().elapsed() < RETIRED_AFTER;
                is_wanted && open.as_ref().is_some_and(|open| open.sender.is_open() && is_current(place, &open.server))
            });
            !slots.is_empty()
        });
    }

    fn begin(&self, place: K, connections: usize, share: Share) -> InFlight {
        let slot = self.least_busy((place, share.window()), connections);
        slot.in_flight.set(slot.in_flight.get() + 1);
        InFlight(Rc::new(Busy { slot, share }))
    }

    /// The least busy of so many connections; of more, should there be no room on these for one more body that is not read.
    fn least_busy(&self, place: (K, Window), connections: usize) -> Rc<Slot> {
        let (most, mut places) = (place.1.most_bodies(), self.places.borrow_mut());
        let slots = places.entry(place).or_default();
        while slots.len() < connections.max(1) || slots.iter().all(|slot| slot.in_flight.get() >= most) {
            slots.push(Rc::new(Slot::new()));
        }
        Rc::clone(slots.iter().min_by_key(|slot| slot.in_flight.get()).expect("there is at least one slot"))
    }
}

impl InFlight {
    async fn open<K: Place>(&self, server: &Server, options: &SendOptions) -> Result<Sender, DialError> {
        self.0.slot.open::<K>(server, self.0.share.window(), options).await
    }
}

fn scheme_of(server: &Server) -> &'static str {
    if server.tls.is_some() { "https" } else { "http" }
}

impl Slot {
    fn new() -> Self {
        Self { in_flight: Cell::new(0), used: Cell::new(Instant::now()), open: Mutex::default(), failed: Cell::new(None) }
    }

    /// A sender on a live connection to this very server, opened now if there is none.
    async fn open<K: Place>(&self, server: &Server, window: Window, options: &SendOptions) -> Result<Sender, DialError> {
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
        let dialed = dial::<K>(server, window, options).await;
        let (sender, remote) = dialed.inspect_err(|_| self.failed.set(Some(Instant::now())))?;
        *open = Some(Open { sender: sender.clone(), server: server.clone(), remote });
        Ok(sender)
    }
}

async fn dial<K: Place>(
    server: &Server,
    window: Window,
    options: &SendOptions,
) -> Result<(Sender, Option<SocketAddr>), DialError> {
    let stream = dial::open(server, &options.dial, false).await?;
    let remote = stream.remote();
    if server.tls.is_some() && !stream.chose_http2() {
        return Err(DialError::OtherProtocol { authority: server.authority.to_string(), wanted: "HTTP/2" });
    }
    stream.expect_acknowledgement(K::ACKNOWLEDGED_WITHIN);
    let io = MonitoredIo::new(stream);
    let keepalive = K::PING_EVERY.map(|every| io.keepalive(every, PING_PATIENCE));
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(window.bytes())
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MOST_HEAD)
        .max_send_buffer_size(window.bytes().min(SEND_BUFFER) as usize)
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
