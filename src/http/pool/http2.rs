//! HTTP/2 connections to peers and upstreams: several per destination; each request uses the least busy one.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use h2::ext::Protocol;
use http::header::HOST;
use http::{Method, Response};
use rustls_pki_types::CertificateDer;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use crate::model::region::RegionId;
use crate::transport::dial::{self, DialError, Server};

use super::super::body::Body;
use super::super::http2::MonitoredIo;
use super::super::sent::Sent;
use super::super::tunnel::CONNECT;
use super::super::window::{CONNECTION_WINDOW, Share, Window, Windows};
use super::sender::{EXTENDED_CONNECT, StreamSender};
use super::{BoxedRequest, Reply, SendError, SendOptions, form};

/// Memory budget of `h2` for small DATA frames that have arrived but have not been read. [`MonitoredIo`] reads less than this
/// before it yields to the readers.
const SMALL_FRAMES_BUDGET: usize = 256 << 20;

/// How long an unused connection with a window that is no longer configured stays open, because open client connections still use
/// the old window.
const RETIRED_AFTER: Duration = Duration::from_secs(60);

/// The maximum size of a response head, the same as over HTTP/1.
const MAX_RESPONSE_HEAD: u32 = 64 << 10;

/// The maximum number of bytes of one request body that wait to be written; a smaller window lowers it.
const SEND_BUFFER: u32 = 256 << 10;

/// A destination of connections, with the timeouts that detect a lost connection.
pub trait Destination: Eq + Hash + Clone {
    /// How long written data may stay unacknowledged by TCP.
    const ACKNOWLEDGED_WITHIN: Duration;
    /// The silence after which a PING is sent. gRPC servers close connections on which PING frames are frequent.
    const PING_EVERY: Option<Duration>;
}

impl Destination for RegionId {
    /// Together with the PING interval, about as long as a person waits for a page.
    const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);
    const PING_EVERY: Option<Duration> = Some(Duration::from_secs(5));
}

impl Destination for Arc<str> {
    const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(30);
    const PING_EVERY: Option<Duration> = None;
}

/// How long a peer may leave a PING unanswered while its kernel acknowledges the bytes.
const PING_TIMEOUT: Duration = Duration::from_secs(60);

/// One worker's HTTP/2 connections, several per destination. Each window has its own connections, because all streams of a
/// connection have the same window.
#[derive(Clone)]
pub struct Http2Pool<K> {
    destinations: Rc<RefCell<HashMap<(K, Window), Slots>>>,
    /// Every connection that is open, those included that take no new streams.
    live: Live,
}

impl<K> Default for Http2Pool<K> {
    fn default() -> Self {
        Self { destinations: Rc::default(), live: Rc::default() }
    }
}

type Live = Rc<RefCell<Vec<Weak<Connection>>>>;

/// An open connection: its task holds it until it ends.
struct Connection {
    /// The certificates that the server presented; empty without TLS.
    chain: Vec<CertificateDer<'static>>,
    close: Notify,
}

type Slots = Vec<Rc<Slot>>;

/// Holds one connection.
struct Slot {
    in_flight: Cell<usize>,
    /// When a request was last in flight.
    used: Cell<Instant>,
    /// Locked while dialing, so that requests that need the same connection share one dial.
    open: Mutex<Option<Open>>,
    /// When dialing last failed. Requests that were waiting at that time fail too, instead of dialing one after the other.
    failed: Cell<Option<Instant>>,
}

struct Open {
    sender: StreamSender,
    server: Server,
    remote: Option<SocketAddr>,
}

/// Counts a request as in flight, and holds its window, until the last clone is dropped.
#[derive(Clone)]
pub struct StreamInFlight(Rc<StreamUse>);

struct StreamUse {
    slot: Rc<Slot>,
    share: Share,
}

impl Drop for StreamUse {
    fn drop(&mut self) {
        self.slot.in_flight.set(self.slot.in_flight.get() - 1);
        self.slot.used.set(Instant::now());
    }
}

impl<K: Destination> Http2Pool<K> {
    /// Sends a request and waits for the response head.
    ///
    /// The guard counts the request as in flight; keep it until the response body has ended.
    pub async fn send(
        &self,
        place: K,
        server: &Server,
        connections: usize,
        mut request: BoxedRequest,
        options: &SendOptions,
    ) -> Result<(Response<Body>, StreamInFlight), SendError> {
        let guard = self.begin(place, connections, options.buffers.share(options.round_trip));
        if form::for_http2(&mut request, scheme_of(server)).is_none() {
            return Err(SendError::form(request));
        }
        // Try the open connection, then a new one if the open one is closing.
        for last in [false, true] {
            let sender = match guard.open::<K>(server, options, &self.live).await {
                Ok(sender) => sender,
                Err(error) => return Err(SendError::dial(error, request)),
            };
            match sender.send(request, options, guard.clone()).await {
                Err(SendError { sent: Sent::Nothing, request: Some(unsent), .. }) if !last => {
                    guard.0.slot.open.lock().await.take();
                    request = unsent;
                }
                outcome => return outcome.map(|response| (response, guard)),
            }
        }
        unreachable!("the second attempt returns")
    }

    /// Requests a tunnel for `protocol`, by extended CONNECT (RFC 8441) or by plain CONNECT.
    pub async fn open(
        &self,
        place: K,
        server: &Server,
        connections: usize,
        mut request: BoxedRequest,
        protocol: &str,
        options: &SendOptions,
    ) -> Result<(Reply, StreamInFlight), SendError> {
        let guard = self.begin(place, connections, options.buffers.share(options.round_trip));
        let sender = match guard.open::<K>(server, options, &self.live).await {
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

    /// Opens the connections that are not open, so that no request waits for three round trips. Ignores a failure, because the
    /// next request dials again and reports it.
    pub async fn warm(&self, place: K, server: &Server, connections: usize, window: Window, options: &SendOptions) {
        let slots: Slots = filled(&mut self.destinations.borrow_mut(), (place, window), connections).clone();
        for slot in slots {
            if slot.open::<K>(server, window, options, &self.live).await.is_err() {
                return;
            }
        }
    }

    /// Closes at once every connection whose server presented certificates that `is_trusted` rejects, together with the
    /// streams on it.
    pub fn close_untrusted(&self, is_trusted: impl Fn(&[CertificateDer<'_>]) -> bool) {
        self.live.borrow_mut().retain(|connection| match connection.upgrade() {
            Some(connection) if !is_trusted(&connection.chain) => {
                connection.close.notify_one();
                false
            }
            found => found.is_some(),
        });
    }

    /// Drops connections without requests in flight that have ended, whose destination is gone or has changed, or whose window
    /// is not in `windows` and has been unused for a minute.
    pub fn retain(&self, windows: Windows, is_current: impl Fn(&K, &Server) -> bool) {
        self.destinations.borrow_mut().retain(|(place, window), slots| {
            slots.retain(|slot| {
                // A slot that someone else holds is being dialed, or is about to be.
                if slot.in_flight.get() > 0 || Rc::strong_count(slot) > 1 {
                    return true;
                }
                // A locked slot is being dialed.
                let Ok(open) = slot.open.try_lock() else { return true };
                let is_wanted = windows.contains(*window) || slot.used.get().elapsed() < RETIRED_AFTER;
                is_wanted && open.as_ref().is_some_and(|open| open.sender.is_open() && is_current(place, &open.server))
            });
            !slots.is_empty()
        });
    }

    fn begin(&self, place: K, connections: usize, share: Share) -> StreamInFlight {
        let slot = self.least_busy((place, share.window()), connections);
        slot.in_flight.set(slot.in_flight.get() + 1);
        StreamInFlight(Rc::new(StreamUse { slot, share }))
    }

    /// The least busy connection. Opens more than `connections` if no connection window has room for another unread body.
    fn least_busy(&self, place: (K, Window), connections: usize) -> Rc<Slot> {
        let (most, mut destinations) = (place.1.most_bodies(), self.destinations.borrow_mut());
        let slots = filled(&mut destinations, place, connections);
        if slots.iter().all(|slot| slot.in_flight.get() >= most) {
            slots.push(Rc::new(Slot::new()));
        }
        Rc::clone(slots.iter().min_by_key(|slot| slot.in_flight.get()).expect("there is at least one slot"))
    }
}

impl StreamInFlight {
    async fn open<K: Destination>(&self, server: &Server, options: &SendOptions, live: &Live) -> Result<StreamSender, DialError> {
        self.0.slot.open::<K>(server, self.0.share.window(), options, live).await
    }
}

/// The slots of a destination, at least `connections`.
fn filled<K: Destination>(destinations: &mut HashMap<(K, Window), Slots>, place: (K, Window), connections: usize) -> &mut Slots {
    let slots = destinations.entry(place).or_default();
    while slots.len() < connections.max(1) {
        slots.push(Rc::new(Slot::new()));
    }
    slots
}

fn scheme_of(server: &Server) -> &'static str {
    if server.tls.is_some() { "https" } else { "http" }
}

impl Slot {
    fn new() -> Self {
        Self { in_flight: Cell::new(0), used: Cell::new(Instant::now()), open: Mutex::default(), failed: Cell::new(None) }
    }

    /// Returns a sender on a live connection to exactly this server; dials if there is none.
    async fn open<K: Destination>(
        &self,
        server: &Server,
        window: Window,
        options: &SendOptions,
        live: &Live,
    ) -> Result<StreamSender, DialError> {
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
        // The previous connection closes when its last stream ends.
        *open = None;
        let dialed = dial::<K>(server, window, options, live).await;
        let (sender, remote) = dialed.inspect_err(|_| self.failed.set(Some(Instant::now())))?;
        *open = Some(Open { sender: sender.clone(), server: server.clone(), remote });
        Ok(sender)
    }
}

async fn dial<K: Destination>(
    server: &Server,
    window: Window,
    options: &SendOptions,
    live: &Live,
) -> Result<(StreamSender, Option<SocketAddr>), DialError> {
    let stream = dial::open(server, &options.dial, false).await?;
    let remote = stream.remote();
    let chain = stream.peer_certificates();
    if server.tls.is_some() && !stream.chose_http2() {
        return Err(DialError::OtherProtocol { authority: server.authority.to_string(), wanted: "HTTP/2" });
    }
    stream.expect_acknowledgement(K::ACKNOWLEDGED_WITHIN);
    let io = MonitoredIo::new(stream);
    let batch = io.batch();
    let keepalive = K::PING_EVERY.map(|every| io.keepalive(every, PING_TIMEOUT));
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(window.bytes())
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_RESPONSE_HEAD)
        .max_send_buffer_size(window.bytes().min(SEND_BUFFER) as usize)
        .data_frame_budget(SMALL_FRAMES_BUDGET)
        // Requests that clients cancel in large numbers are not an error of the server, so they must not close the connection.
        .max_local_error_reset_streams(None)
        .max_concurrent_reset_streams(1000)
        .reset_stream_duration(Duration::from_secs(30))
        .handshake(io)
        .await;
    let (sender, mut connection) = handshake
        .map_err(|error| DialError::Connect { authority: server.authority.to_string(), source: std::io::Error::other(error) })?;
    let pings = connection.ping_pong().expect("`ping_pong` is called once per connection");
    let lost = async move {
        match keepalive {
            Some(keepalive) => keepalive.lost(pings).await,
            None => std::future::pending().await,
        }
    };
    let open = Rc::new(Connection { chain, close: Notify::new() });
    live.borrow_mut().push(Rc::downgrade(&open));
    tokio::task::spawn_local(async move {
        let work = async {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "HTTP/2 connection ended with an error");
                },
                // Dropping the connection ends its streams.
                () = open.close.notified() => tracing::warn!("closing a connection whose server certificate is not trusted after a reload"),
                () = lost => tracing::debug!("no PING response in time; closing"),
            }
        };
        if let Err(error) = batch.flushing(work).await {
            tracing::debug!(%error, "HTTP/2 connection ended with an error");
        }
    });
    Ok((StreamSender::new(sender), remote))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_keeps_a_connection_that_is_about_to_be_dialed() {
        let pool = Http2Pool::<Arc<str>>::default();
        let place: (Arc<str>, Window) = ("a:1".into(), Window::NARROW);
        let held = Rc::clone(&filled(&mut pool.destinations.borrow_mut(), place.clone(), 2)[0]);
        pool.retain(Windows::of(0), |_, _| true);
        let destinations = pool.destinations.borrow();
        let [kept] = &destinations[&place][..] else { panic!("only the connection that is held is kept") };
        assert!(Rc::ptr_eq(kept, &held));
    }
}
