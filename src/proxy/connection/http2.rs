//! HTTP/2: serves many requests at once on one connection.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use h2::Reason;
use h2::server::SendResponse;
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::decision::facts::Ingress;
use crate::http::connection::{ConnectionState, ExchangeInFlight};
use crate::http::http2::{Exchange, FrameGuard, MonitoredIo, PeerSettings, Piece, Reset};
use crate::http::io::BufferedStream;
use crate::http::window::{CONNECTION_WINDOW, Window};
use crate::model::outcome::{Code, Rule};
use crate::transport::stream::Stream;

use super::super::ingress::{ConnectionContext, ResponseChannel};
use super::super::worker::Worker;
use super::super::{Limits, request};
use super::{drain_started, handshake, linger};

/// The flow-control window of a client's connection.
const CLIENT_WINDOW: usize = 1 << 20;

/// Limits for peers are high, because peers are authenticated. The connection window is the maximum, so that all streams can use
/// their windows together.
const PEER_STREAMS: u32 = 1000;
const PEER_WINDOW: usize = CONNECTION_WINDOW as usize;

/// Memory budget of `h2` for small DATA frames that have arrived but have not been read, 256 bytes each: about 16,000 frames from
/// a client.
const SMALL_FRAMES_BUDGET: usize = 4 << 20;
const PEER_SMALL_FRAMES_BUDGET: usize = 256 << 20;

/// Requests from peers have larger headers than the peer received: the peer adds its envelope and headers about the client, and
/// percent-encoding turns one byte into three.
const PEER_HEAD_GROWTH: u32 = 4;

/// Bounds of the bytes of one response that wait to be written. The lower bound is one frame, for connections with many streams.
const SEND_BUFFERS: std::ops::RangeInclusive<usize> = 16 << 10..=64 << 10;

/// An idle connection stays open this many times longer than over HTTP/1, because it replaces several connections.
const KEEP_ALIVE_FACTOR: u32 = 5;

/// A connection without PING responses is closed after the sum of the two.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(40);

/// The bytes that are read and discarded after an error, because unread bytes reset the connection and GOAWAY would be lost.
const MAX_AFTER_ERROR: u64 = 64 << 10;

pub(super) async fn serve(worker: Rc<Worker>, stream: Stream, received: BytesMut, context: Rc<ConnectionContext>) {
    let limits = worker.snapshot().limits;
    let io = BufferedStream::new(stream, received, limits.idle_timeout);
    let bounds = Bounds::of(&context, &limits);
    let served = ServedStreams::default();
    let io = FrameGuard::new(io, limits.header_timeout, bounds.control_frames, log_resets(&worker, &context, &served));
    let peer_settings = io.peer_settings();
    let io = MonitoredIo::new(io);
    let batch = io.batch();
    match batch.flushing(run_connection(&worker, &context, io, &peer_settings, (&bounds, &limits, &served))).await {
        Ok(Ok(Some(max))) => {
            if let Some(mut io) = batch.into_stream() {
                // Requests may arrive after GOAWAY. Discard them, because unread bytes reset the connection and GOAWAY would be lost.
                linger(io.get_mut(), max).await;
            }
        }
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection ended with an error"),
        Err(error) => tracing::debug!(%error, "connection ended with an error"),
    }
}

/// Serves a connection to its end. Returns how many bytes to discard after it; `None` to close at once.
async fn run_connection<S: AsyncRead + AsyncWrite + Unpin>(
    worker: &Rc<Worker>,
    context: &Rc<ConnectionContext>,
    io: MonitoredIo<S>,
    peer_settings: &PeerSettings,
    (bounds, limits, streams): (&Bounds, &Limits, &ServedStreams),
) -> Result<Option<u64>, h2::Error> {
    let keepalive = io.keepalive(PING_EVERY, PING_TIMEOUT);
    let mut connection = builder(bounds.is_peer, limits).handshake(io).await?;
    let pings = connection.ping_pong().expect("`ping_pong` is called once per connection");
    let lost = async {
        tokio::select! {
            () = keepalive.lost(pings) => tracing::debug!("no PING response in time; closing"),
            () = disproven(worker, context, bounds.is_peer) => tracing::warn!("peer certificate no longer proves its region; closing"),
        }
    };
    let accepting = accept(worker, context, &mut connection, peer_settings, (bounds, limits, streams));
    tokio::select! {
        // Process received frames first, whichever other branch is ready.
        biased;
        after = accepting => Ok(after),
        () = lost => Ok(None),
    }
}

/// The streams whose requests are being served, by their ids.
#[derive(Clone, Default)]
struct ServedStreams(Rc<RefCell<Vec<u32>>>);

/// Removes its stream when it is dropped.
struct ServedStream(ServedStreams, u32);

impl ServedStreams {
    /// Awaits `work`; its stream counts as served from the first poll on.
    async fn during<T>(&self, stream: u32, work: impl Future<Output = T>) -> T {
        self.0.borrow_mut().push(stream);
        let _served = ServedStream(self.clone(), stream);
        work.await
    }
}

impl Drop for ServedStream {
    fn drop(&mut self) {
        self.0.0.borrow_mut().retain(|stream| *stream != self.1);
    }
}

/// Logs and counts the malformed streams that `h2` resets before their requests are served. A request that is being served logs
/// itself.
fn log_resets(worker: &Rc<Worker>, context: &Rc<ConnectionContext>, served: &ServedStreams) -> impl Fn(Reset) + use<> {
    let (worker, context, served) = (Rc::clone(worker), Rc::clone(context), served.clone());
    move |reset| {
        if !served.0.borrow().contains(&reset.stream) {
            let code = if reset.is_answered { Code::HeadTooLarge } else { Code::Malformed(Rule::Stream) };
            request::log_unread(&worker, &context, code);
        }
    }
}

/// The limits of one client connection. A peer's connection has none of them, because such connections are few and stay open.
struct Bounds {
    is_peer: bool,
    control_frames: u64,
    idle: Option<Duration>,
    requests: u64,
    resets: u64,
}

impl Bounds {
    fn of(context: &ConnectionContext, limits: &Limits) -> Self {
        let is_peer = matches!(context.arrival.ingress, Ingress::Peer(_));
        let unless_peer = |limit: usize| if is_peer { u64::MAX } else { limit as u64 };
        Self {
            is_peer,
            control_frames: unless_peer(limits.control_frames),
            idle: (!is_peer).then_some(limits.keep_alive * KEEP_ALIVE_FACTOR),
            requests: unless_peer(limits.requests_per_connection),
            resets: unless_peer(limits.resets),
        }
    }
}

/// Waits until a peer's certificate no longer proves its region; for a client, without end.
async fn disproven(worker: &Worker, context: &ConnectionContext, is_peer: bool) {
    if is_peer { handshake::disproven(worker, &context.peer_chain).await } else { std::future::pending().await }
}

type ServerConnection<S> = h2::server::Connection<S, Piece>;

/// Serves streams until the connection ends. Returns how many bytes to discard after it; `None` to close at once.
async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    worker: &Rc<Worker>,
    context: &Rc<ConnectionContext>,
    connection: &mut ServerConnection<S>,
    peer_settings: &PeerSettings,
    (bounds, limits, streams): (&Bounds, &Limits, &ServedStreams),
) -> Option<u64> {
    let rapid_resets = Rc::new(RapidResetLimit::new(bounds.resets));
    let mut end = pin!(end(worker, Rc::clone(&context.connection_state), bounds));
    let (mut ending, mut is_refusing, mut is_confirmed) = (false, false, !bounds.is_peer);
    let shutdown_begun = Notify::new();
    let mut stuck = pin!(async {
        shutdown_begun.notified().await;
        // With no request in flight, the connection stays open only because the client does not read the last frames.
        idle_for(&context.connection_state, limits.idle_timeout).await;
    });
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                // The client may retry on another connection (RFC 9113 section 8.7).
                Some(Ok((_, mut response))) if is_refusing => response.send_reset(Reason::REFUSED_STREAM),
                Some(Ok((request, response))) => {
                    if bounds.is_peer {
                        // Responses for the peer get the window that it gives each stream. Its SETTINGS arrive before its first
                        // request.
                        context.buffers.widen(window_of(peer_settings));
                    }
                    serve_stream(worker, context, (&rapid_resets, *limits), request, (response, streams));
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "connection ended with an error");
                    if error.reason() == Some(Reason::PROTOCOL_ERROR) && !error.is_remote() {
                        request::log_unread(worker, context, Code::Malformed(Rule::Stream));
                    }
                    return (!error.is_io()).then_some(MAX_AFTER_ERROR);
                }
                None => return Some(if is_refusing { MAX_AFTER_ERROR } else { u64::MAX }),
            },
            // `h2` changes its SETTINGS only after the peer has acknowledged the first. The change also applies to open uploads.
            () = peer_settings.confirmed(), if !is_confirmed => {
                is_confirmed = true;
                widen_uploads(connection, window_of(peer_settings));
            }
            () = end.as_mut(), if !ending => {
                ending = true;
                connection.graceful_shutdown();
                shutdown_begun.notify_one();
            }
            () = stuck.as_mut() => return None,
            () = rapid_resets.exceeded.notified(), if !is_refusing => {
                tracing::debug!("rapid reset limit exceeded; sending GOAWAY");
                (is_refusing, ending) = (true, true);
                connection.graceful_shutdown();
                shutdown_begun.notify_one();
            }
        }
    }
}

fn widen_uploads<S: AsyncRead + AsyncWrite + Unpin>(connection: &mut ServerConnection<S>, window: Window) {
    if !window.is_narrow()
        && let Err(error) = connection.set_initial_window_size(window.bytes())
    {
        tracing::warn!(%error, "cannot widen the flow-control window of a peer's uploads");
    }
}

/// The window that a peer gives each stream.
fn window_of(peer_settings: &PeerSettings) -> Window {
    Window::of(peer_settings.window() as usize)
}

/// Counts requests that the client resets within [`RAPID_RESET_WITHIN`] (rapid reset, CVE-2023-44487), because each of them costs
/// an upstream work. The limit is exceeded by more than `max` such requests that are also more than half of all requests.
/// Requests in flight are still served.
struct RapidResetLimit {
    max: u64,
    count: Cell<u64>,
    exceeded: Notify,
}

/// Later resets are not counted, because the client has waited for a response.
const RAPID_RESET_WITHIN: Duration = Duration::from_secs(1);

impl RapidResetLimit {
    fn new(max: u64) -> Self {
        Self { max, count: Cell::new(0), exceeded: Notify::new() }
    }

    fn count(&self, requests: u64) {
        let count = self.count.get() + 1;
        self.count.set(count);
        if count > self.max && count > requests / 2 {
            self.exceeded.notify_one();
        }
    }
}

/// Serves one stream in a task that can be aborted, because nothing else ends a stream whose client does not read.
fn serve_stream(
    worker: &Rc<Worker>,
    context: &Rc<ConnectionContext>,
    (rapid_resets, limits): (&Rc<RapidResetLimit>, Limits),
    request: Request<h2::RecvStream>,
    (send_response, streams): (SendResponse<Piece>, &ServedStreams),
) {
    let in_flight = ExchangeInFlight::count(&context.connection_state);
    let (worker, context, rapid_resets) = (Rc::clone(worker), Rc::clone(context), Rc::clone(rapid_resets));
    let (streams, stream) = (streams.clone(), send_response.stream_id().into());
    let (request, exchange) = Exchange::open(request, send_response);
    let request = Box::new(request);
    let exchange = Rc::new(exchange);
    let served = Rc::clone(&exchange);
    let task = tokio::task::spawn_local(async move {
        let (channel, begun) = (ResponseChannel::Stream(Rc::clone(&served)), Instant::now());
        let response = tokio::select! {
            biased;
            () = served.given_up() => {
                if begun.elapsed() < RAPID_RESET_WITHIN {
                    rapid_resets.count(context.connection_state.requests());
                }
                return;
            }
            // `handle` is dropped, with the resources of the request, before the response is sent, which may take long.
            response = streams.during(stream, Box::pin(request::handle(worker, Rc::clone(&context), channel, request))) => response,
        };
        let stall = request::response_idle_timeout(response.headers(), &limits);
        served.answer(response, stall).await;
        drop(in_flight);
    });
    exchange.served_by(task.abort_handle());
}

/// Waits until the connection must accept no further requests: the process drains or lacks resources, the connection has been idle
/// for too long, or it has reached its number of requests. GOAWAY then names the last stream that is served. On a drain, a peer's connection stays
/// open for the drain notice, so that the peer's probes detect the drain.
async fn end(worker: &Worker, connection_state: Rc<ConnectionState>, bounds: &Bounds) {
    let idle = async {
        match bounds.idle {
            Some(limit) => idle_for(&connection_state, limit).await,
            None => std::future::pending().await,
        }
    };
    let pressed = async {
        while !(worker.saves() && connection_state.has_request()) {
            tokio::select! {
                () = worker.pressure_changed.notified() => {}
                () = connection_state.request.notified(), if !connection_state.has_request() => {}
            }
        }
    };
    let request_limit = async {
        while connection_state.requests() < bounds.requests {
            connection_state.request.notified().await;
        }
    };
    tokio::select! {
        () = drain_started(worker, &connection_state) => if bounds.is_peer {
            tokio::time::sleep(worker.drain_notice()).await;
        },
        () = pressed, if !bounds.is_peer => {}
        () = idle => {}
        () = request_limit => {}
    }
}

/// Waits until no request has been in flight for `limit`.
async fn idle_for(connection_state: &ConnectionState, limit: Duration) {
    loop {
        if connection_state.in_flight() > 0 {
            connection_state.idle.notified().await;
        } else if tokio::time::timeout(limit, connection_state.request.notified()).await.is_err() {
            return;
        }
    }
}

fn builder(is_peer: bool, limits: &Limits) -> h2::server::Builder {
    // HTTP/2 counts 32 bytes more for each field (RFC 9113 section 6.5.2).
    let header_bytes = (limits.header_bytes + 32 * limits.headers) as u32;
    let (streams, window, buffer, header_bytes) = if is_peer {
        (PEER_STREAMS, PEER_WINDOW, PEER_WINDOW, header_bytes * PEER_HEAD_GROWTH)
    } else {
        let max = limits.connection_buffer;
        (limits.streams as u32, max.min(CLIENT_WINDOW), max, header_bytes)
    };
    let send_buffer = (buffer / 4 / streams as usize).clamp(*SEND_BUFFERS.start(), *SEND_BUFFERS.end());
    let mut builder = h2::server::Builder::new();
    builder
        .enable_connect_protocol()
        .max_concurrent_streams(streams)
        .initial_window_size(Window::NARROW.bytes())
        .initial_connection_window_size(window as u32)
        .max_header_list_size(header_bytes)
        .max_send_buffer_size(send_buffer)
        .data_frame_budget(if is_peer { PEER_SMALL_FRAMES_BUDGET } else { SMALL_FRAMES_BUDGET })
        .max_pending_accept_reset_streams(if is_peer { PEER_STREAMS as usize } else { limits.resets })
        .max_local_error_reset_streams((!is_peer).then_some(limits.resets * 10));
    builder
}
