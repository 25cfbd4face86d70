//! HTTP/2: many requests at once.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use h2::Reason;
use h2::server::SendResponse;
use http::Request;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::decision::facts::Ingress;
use crate::http::framing::{ConnectionState, Gate, InFlight};
use crate::http::http2::{Exchange, FrameGuard, MonitoredIo, PeerSettings, Piece};
use crate::http::window::{CONNECTION_WINDOW, Window};
use crate::transport::stream::Stream;

use super::super::ingress::{Back, Session};
use super::super::{Limits, Worker, request};
use super::{handshake, leaving, linger};

/// What clients may send before it has been read, on one connection.
const CLIENT_WINDOW: usize = 1 << 20;

/// Peers have proven who they are, and each of their streams has been given its window: together they may use it.
const PEER_STREAMS: u32 = 1000;
const PEER_WINDOW: usize = CONNECTION_WINDOW as usize;

/// What frames of hardly any data may cost that have come and were not taken in yet, 256 bytes each: some 16,000 of them from a client.
const SMALL_FRAMES_BUDGET: usize = 4 << 20;
const PEER_SMALL_FRAMES_BUDGET: usize = 256 << 20;

/// A head that a peer took has grown before it comes here: by its envelope, by what it says of the client, and by escapes of
/// three bytes for one.
const PEER_HEAD_GROWTH: u32 = 4;

/// Bytes of one answer that wait to be written: no more than move a frame at a time, where many share a connection's buffer.
const SEND_BUFFERS: std::ops::RangeInclusive<usize> = 16 << 10..=64 << 10;

/// An idle connection may stay this many times longer than one of HTTP/1: it stands for several of them.
const PATIENCE: u32 = 5;

/// A silent client or peer is given up after these two.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(40);

/// How much of what comes after an error is taken in, so that our word on it arrives: what was on its way.
const MOST_AFTER_ERROR: u64 = 64 << 10;

pub(super) async fn serve(worker: Rc<Worker>, stream: Stream, first: (Instant, BytesMut), session: Rc<Session>, limits: &Limits) {
    let connection_state = Rc::clone(&session.connection_state);
    // HTTP/2 has its own framing: the gate only gives back the bytes that were read ahead.
    let io = Gate::new(stream, first, limits.head(), Rc::clone(&connection_state));
    // A peer's connections are few, and kept open on purpose.
    let is_peer = matches!(session.arrival.ingress, Ingress::Peer(_));
    let controls = if is_peer { u64::MAX } else { limits.control_frames as u64 };
    let io = FrameGuard::new(io, limits.header_timeout, controls);
    let told = io.told();
    let io = MonitoredIo::new(io);
    let (keepalive, remains) = (io.keepalive(PING_EVERY, PING_TIMEOUT), io.remains());
    let idle_limit = (!is_peer).then_some(limits.keep_alive * PATIENCE);
    let most = if is_peer { u64::MAX } else { limits.requests_per_connection as u64 };
    let mut end = pin!(end(&worker, connection_state, idle_limit, most, is_peer));
    let mut connection = match builder(is_peer, limits).handshake(io).await {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%error, "a connection ended early"),
    };
    let mut lost = pin!(keepalive.lost(connection.ping_pong().expect("nobody else has asked for them")));
    let rapid_resets = Rc::new(RapidResetLimit::new(if is_peer { u64::MAX } else { limits.resets as u64 }));
    let mut disproven = pin!(async {
        if is_peer { handshake::disproven(&worker, &session.peer_chain).await } else { std::future::pending().await }
    });
    let (mut ending, mut is_sent_away, mut is_confirmed) = (false, false, !is_peer);
    let has_begun_to_end = Notify::new();
    let mut stuck = pin!(async {
        has_begun_to_end.notified().await;
        // Nothing is being served any more; what is still to be written, nobody takes.
        quiet(&session.connection_state, limits.idle_timeout).await;
    });
    let most = loop {
        tokio::select! {
            // First what has come, so that it has been taken in whatever happens next.
            biased;
            accepted = connection.accept() => match accepted {
                // It may ask again on another connection.
                Some(Ok((_, mut way_back))) if is_sent_away => way_back.send_reset(Reason::REFUSED_STREAM),
                Some(Ok((request, way_back))) => {
                    if is_peer {
                        // What a peer gives each of its streams it may take as well. Its settings have come before its first request.
                        session.buffers.widen(window_of(&told));
                    }
                    begin(&worker, &session, (&rapid_resets, *limits), request, way_back);
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a connection ended early");
                    if error.is_io() {
                        return;
                    }
                    break MOST_AFTER_ERROR;
                }
                None => break if is_sent_away { MOST_AFTER_ERROR } else { u64::MAX },
            },
            // Ours can only be changed once it has confirmed the first; its uploads that have begun by then get the window as well.
            () = told.confirmed(), if !is_confirmed => {
                is_confirmed = true;
                let window = window_of(&told);
                if !window.is_narrow() && let Err(error) = connection.set_initial_window_size(window.bytes()) {
                    tracing::warn!(%error, "a peer's uploads keep a narrow window");
                }
            }
            () = end.as_mut(), if !ending => {
                ending = true;
                connection.graceful_shutdown();
                has_begun_to_end.notify_one();
            }
            () = stuck.as_mut() => return,
            () = rapid_resets.are_too_many.notified(), if !is_sent_away => {
                tracing::debug!("a client took back most of what it asked for, and is sent away");
                (is_sent_away, ending) = (true, true);
                connection.graceful_shutdown();
                has_begun_to_end.notify_one();
            }
            () = disproven.as_mut() => return tracing::warn!("a peer's connection was closed: it does not prove its region any more"),
            () = lost.as_mut() => return tracing::debug!("a connection was given up: the other end is silent"),
        }
    };
    drop(connection);
    if let Some(mut io) = remains.take() {
        // What was asked for last may have come behind our last word: a reset would take the word with it.
        linger(io.get_mut().stream(), most).await;
    }
}

/// The window that a peer gives each of its streams.
fn window_of(told: &PeerSettings) -> Window {
    Window::of(told.window() as usize)
}

/// Requests that were taken back as soon as they were made. Each has cost an upstream something; a client that takes back most of
/// them is at nothing else (CVE-2023-44487). What it still waits for is answered.
struct RapidResetLimit {
    most: u64,
    count: Cell<u64>,
    are_too_many: Notify,
}

/// Whoever has waited longer has waited for an answer.
const AS_SOON_AS: Duration = Duration::from_secs(1);

impl RapidResetLimit {
    fn new(most: u64) -> Self {
        Self { most, count: Cell::new(0), are_too_many: Notify::new() }
    }

    fn count(&self, requests: u64) {
        let count = self.count.get() + 1;
        self.count.set(count);
        if count > self.most && count > requests / 2 {
            self.are_too_many.notify_one();
        }
    }
}

/// Serves one stream, in a task that can be ended: a stream whose client takes nothing ends in no other way.
fn begin(
    worker: &Rc<Worker>,
    session: &Rc<Session>,
    (rapid_resets, limits): (&Rc<RapidResetLimit>, Limits),
    request: Request<h2::RecvStream>,
    way_back: SendResponse<Piece>,
) {
    let in_flight = InFlight::count(&session.connection_state);
    let (worker, session, rapid_resets) = (Rc::clone(worker), Rc::clone(session), Rc::clone(rapid_resets));
    let (request, exchange) = Exchange::open(request, way_back);
    let exchange = Rc::new(exchange);
    let served = Rc::clone(&exchange);
    let task = tokio::task::spawn_local(async move {
        let (back, begun) = (Back::Stream(Rc::clone(&served)), Instant::now());
        let response = tokio::select! {
            biased;
            () = served.given_up() => {
                if begun.elapsed() < AS_SOON_AS {
                    rapid_resets.count(session.connection_state.requests());
                }
                return;
            }
            // What it took to get the answer is given back before the answer is sent, which may take long.
            response = Box::pin(request::handle(worker, Rc::clone(&session), back, request)) => response,
        };
        let patience = request::patience_with_taker(response.headers(), &limits);
        served.answer(response, patience).await;
        drop(in_flight);
    });
    exchange.served_by(task.abort_handle());
}

/// When the connection is to take nothing new: at the drain, or when it has asked nothing for too long, or enough. Its GOAWAY says
/// which streams are still served. A peer is heard for the time of a drain_notice, in which its probes learn of the drain.
async fn end(worker: &Worker, connection_state: Rc<ConnectionState>, idle_limit: Option<Duration>, most: u64, is_peer: bool) {
    let idle = async {
        match idle_limit {
            Some(limit) => quiet(&connection_state, limit).await,
            None => std::future::pending().await,
        }
    };
    let worn_out = async {
        while connection_state.requests() < most {
            connection_state.request.notified().await;
        }
    };
    tokio::select! {
        () = leaving(worker, &connection_state) => if is_peer {
            tokio::time::sleep(worker.drain_notice()).await;
        },
        () = idle => {}
        () = worn_out => {}
    }
}

/// Waits until nothing has been served for so long.
async fn quiet(connection_state: &ConnectionState, limit: Duration) {
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
        let most = limits.connection_buffer;
        (limits.streams as u32, most.min(CLIENT_WINDOW), most, header_bytes)
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
