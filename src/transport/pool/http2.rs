//! HTTP/2 connections, to peers and to upstreams: several to a place, each request on the least busy.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::hash::Hash;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::header::HOST;
use http::{Method, Request, Response};
use http_body::Body as _;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::model::region::RegionId;

use super::super::body::Body;
use super::super::dial::{self, Approach, DialError, Server};
use super::super::framing::MOST_INTERIM;
use super::super::http2::{self, Listening, Received, Tunnel, Upload};
use super::super::tunnel::CONNECT;
use super::{Listener, Reply, SendError, form};

/// Bytes in flight on one stream: 4 MiB keeps 25 MB/s moving over 160 ms.
const STREAM_WINDOW: u32 = 4 << 20;
/// Room for many streams whose readers have stopped, before they hold up the others.
const CONNECTION_WINDOW: u32 = 256 << 20;

/// What the head of an answer may be, as over HTTP/1.
const MOST_HEAD: u32 = 64 << 10;

/// Bytes of one request's body that wait to be written.
const SEND_BUFFER: usize = 256 << 10;

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
    sender: Sender,
    server: Server,
    remote: Option<SocketAddr>,
}

/// Opens streams on one connection.
#[derive(Clone)]
struct Sender(SendRequest<Bytes>);

impl Sender {
    /// Whether the connection takes new streams.
    fn is_open(&self) -> bool {
        matches!(self.0.clone().poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())))
    }

    /// Whether the other end opens tunnels (RFC 8441). It says so in its first settings: those of a new connection are waited
    /// for, an old one knows.
    async fn offers_tunnels(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.0.is_extended_connect_protocol_enabled() {
            if Instant::now() >= deadline {
                return false;
            }
            // Nobody tells when they come.
            tokio::time::sleep(SETTINGS_LOOK).await;
        }
        true
    }

    /// Opens a stream with the head of a request; gives the request back if there is no stream for it.
    async fn begin(self, request: Request<Body>) -> Result<(ResponseFuture, SendStream<Bytes>, Body), SendError> {
        let mut sender = match self.0.ready().await {
            Ok(sender) => sender,
            Err(error) => return Err(SendError::broken(error, Some(request))),
        };
        let (mut head, body) = request.into_parts();
        http2::fit(&mut head.headers, &body);
        // What a tunnel carries comes after it has been opened.
        let is_whole = body.is_end_stream() && head.method != Method::CONNECT;
        let begun = sender.send_request(Request::from_parts(head, ()), is_whole);
        let (answer, stream) = begun.map_err(|error| SendError::broken(error, None))?;
        Ok((answer, stream, body))
    }

    /// Sends a request and waits for the head of the answer.
    async fn send(self, request: Request<Body>, stall: Duration) -> Result<Response<Body>, SendError> {
        let listener = Listener::of(&request);
        let (answer, stream, body) = self.begin(request).await?;
        let sending = |body| tokio::task::spawn_local(http2::send(body, stream, Reason::CANCEL, stall));
        let upload = (!body.is_end_stream()).then(|| Upload::new(sending(body)));
        let (head, incoming) = head_of(answer, listener).await?.into_parts();
        let body = Received::answering(incoming, &head.headers, upload);
        Ok(Response::from_parts(head, body.into()))
    }

    /// Asks for a tunnel.
    async fn open(self, request: Request<Body>) -> Result<Reply, SendError> {
        let (answer, outgoing, _) = self.begin(request).await?;
        let (head, incoming) = head_of(answer, None).await?.into_parts();
        if head.status.is_success() {
            return Ok(Reply::Opened(head, Box::pin(Tunnel::new(incoming, outgoing))));
        }
        let body = Received::new(incoming, &head.headers);
        Ok(Reply::Answered(Response::from_parts(head, body.into())))
    }
}

/// The head of the answer, after those of the interim answers.
async fn head_of(mut answer: ResponseFuture, listener: Option<Listener>) -> Result<Response<RecvStream>, SendError> {
    for _ in 0..=MOST_INTERIM {
        match poll_fn(|cx| answer.poll_informational(cx)).await {
            Some(Ok(interim)) => {
                let (head, ()) = interim.into_parts();
                listener.iter().for_each(|listener| listener.hear(head.status, head.headers.clone()));
            }
            Some(Err(error)) => return Err(SendError::broken(error, None)),
            None => return answer.await.map_err(|error| SendError::broken(error, None)),
        }
    }
    Err(SendError::broken("too many interim answers", None))
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
    ) -> Result<(Response<Body>, InFlight), SendError> {
        let guard = InFlight::on(self.least_busy(place, connections));
        if form::for_http2(&mut request, scheme_of(server)).is_none() {
            return Err(SendError::form(request));
        }
        // Once on the connection that is there, once on a fresh one should that be closing.
        for last in [false, true] {
            let sender = match guard.0.open(server, approach).await {
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
        let guard = InFlight::on(self.least_busy(place, connections));
        let sender = match guard.0.open(server, approach).await {
            Ok(sender) => sender,
            Err(error) => return Err(SendError::dial(error, request)),
        };
        let is_connect = protocol == CONNECT;
        if !is_connect && !sender.offers_tunnels(approach.limit).await {
            let authority = server.authority.to_string();
            return Err(SendError::dial(DialError::OtherProtocol { authority, wanted: "extended CONNECT" }, request));
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
    async fn open(&self, server: &Server, approach: &Approach) -> Result<Sender, DialError> {
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
        let dialed = dial(server, approach).await;
        let (sender, remote) = dialed.inspect_err(|_| self.failed.set(Some(Instant::now())))?;
        *open = Some(Open { sender: sender.clone(), server: server.clone(), remote });
        Ok(sender)
    }
}

async fn dial(server: &Server, approach: &Approach) -> Result<(Sender, Option<SocketAddr>), DialError> {
    let stream = dial::open(server, approach, false).await?;
    let remote = stream.remote();
    if server.tls.is_some() && !stream.chose_http2() {
        return Err(DialError::OtherProtocol { authority: server.authority.to_string(), wanted: "HTTP/2" });
    }
    let io = Listening::new(stream);
    let keepalive = io.keepalive(PING_EVERY, PING_TIMEOUT);
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MOST_HEAD)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(io)
        .await;
    let (sender, mut connection) = handshake
        .map_err(|error| DialError::Connect { authority: server.authority.to_string(), source: std::io::Error::other(error) })?;
    let pings = connection.ping_pong().expect("nobody else has asked for them");
    tokio::task::spawn_local(async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(%error, "an HTTP/2 connection ended");
            },
            // Its streams end with it.
            () = keepalive.lost(pings) => tracing::debug!("an HTTP/2 connection was given up: the other end is silent"),
        }
    });
    Ok((Sender(sender), remote))
}
