//! HTTP/2: many requests at once.

use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::decision::facts::Ingress;
use crate::transport::framing::{Gate, InFlight, Signals};
use crate::transport::stream::Stream;

use super::super::ingress::Session;
use super::super::{Limits, Worker, request};
use super::{Draining, drained};

/// For clients: many, small and untrusted.
const CLIENT_STREAM_WINDOW: u32 = 64 << 10;
const CLIENT_CONNECTION_WINDOW: u32 = 1 << 20;

/// For peers: few, far away and proven.
const PEER_STREAMS: u32 = 1000;
const PEER_STREAM_WINDOW: u32 = 4 << 20;
const PEER_CONNECTION_WINDOW: u32 = 256 << 20;

/// An idle connection may stay this many times longer than one of HTTP/1: it stands for several of them.
const PATIENCE: u32 = 5;

pub(super) async fn serve(worker: Rc<Worker>, stream: Stream, first: BytesMut, session: Rc<Session>, limits: &Limits) {
    let signals = Rc::clone(&session.signals);
    // HTTP/2 has its own framing: the gate only gives back the bytes that were read ahead.
    let io = TokioIo::new(Gate::new(stream, first, limits.head(), Rc::clone(&signals)));
    // A peer's connections are few, and kept open on purpose.
    let is_peer = matches!(session.arrival.ingress, Ingress::Peer(_));
    let idle_limit = (!is_peer).then_some(limits.keep_alive * PATIENCE);
    let farewell = if is_peer { worker.snapshot().farewell } else { Duration::ZERO };
    let most = if is_peer { u64::MAX } else { limits.requests_per_connection as u64 };
    let mut end = pin!(end(worker.shared.draining.clone(), signals, idle_limit, most, farewell));
    let builder = builder(&session, is_peer, limits);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (worker, session, in_flight) = (Rc::clone(&worker), Rc::clone(&session), InFlight::count(&session.signals));
        async move {
            let response = request::handle(worker, session, request).await;
            drop(in_flight);
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = pin!(builder.serve_connection(io, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = end.as_mut() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// When the connection is to take nothing new: at the drain, or when it has asked nothing for too long, or enough. Its GOAWAY says
/// which streams are still served. A peer is heard for the time of a farewell, in which its probes learn of the drain.
async fn end(draining: Draining, signals: Rc<Signals>, idle_limit: Option<Duration>, most: u64, farewell: Duration) {
    let quiet = async {
        let Some(limit) = idle_limit else { return std::future::pending().await };
        loop {
            if signals.in_flight() > 0 {
                signals.idle.notified().await;
            } else if tokio::time::timeout(limit, signals.request.notified()).await.is_err() {
                return;
            }
        }
    };
    let worn_out = async {
        while signals.requests() < most {
            signals.request.notified().await;
        }
    };
    tokio::select! {
        () = drained(draining) => tokio::time::sleep(farewell).await,
        () = quiet => {}
        () = worn_out => {}
    }
}

/// Runs each stream as a task of its own, which can be ended: a stream whose client takes nothing ends in no other way.
#[derive(Clone)]
struct StreamExecutor(Rc<Session>);

impl<F: Future + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, future: F) {
        let session = Rc::clone(&self.0);
        let task = tokio::task::spawn_local(async move {
            future.await;
            if let Some(id) = tokio::task::try_id() {
                session.streams.borrow_mut().remove(&id);
            }
        });
        let handle = task.abort_handle();
        self.0.streams.borrow_mut().insert(handle.id(), handle);
    }
}

fn builder(session: &Rc<Session>, is_peer: bool, limits: &Limits) -> http2::Builder<StreamExecutor> {
    let (streams, stream_window, window) = if is_peer {
        (PEER_STREAMS, PEER_STREAM_WINDOW, PEER_CONNECTION_WINDOW)
    } else {
        (limits.streams as u32, CLIENT_STREAM_WINDOW, CLIENT_CONNECTION_WINDOW)
    };
    let mut builder = http2::Builder::new(StreamExecutor(Rc::clone(session)));
    builder
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(streams)
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(window)
        .max_header_list_size(limits.header_bytes as u32)
        .max_send_buf_size(64 << 10)
        .max_pending_accept_reset_streams(limits.resets)
        .max_local_error_reset_streams(limits.resets * 10)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
}
