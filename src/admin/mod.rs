//! The control plane's door: metrics, liveness, readiness, explanations.
//!
//! Promises: answers while the data plane is busy, for it has a thread of its own; changes nothing itself. What it wants
//! to know or have done goes down as a [`Command`], and `app` carries it out. Never: open to the world unless told so.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::transport::listener::Acceptor;

/// Where the control plane listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    pub address: SocketAddr,
}

impl Default for Settings {
    fn default() -> Self {
        Self { address: (Ipv4Addr::LOCALHOST, 9901).into() }
    }
}

/// What is asked of the app.
pub enum Command {
    Metrics(oneshot::Sender<String>),
    /// Whether requests are taken; the text says why not.
    Ready(oneshot::Sender<Result<(), String>>),
    /// A request to explain, as the pairs of its query; the answer is text or JSON, or says what is wrong.
    Explain {
        query: Vec<(String, String)>,
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// Reads all files again; the answer says what was wrong.
    /// Answer nobody any more: a successor does.
    Retire,
    Reload(oneshot::Sender<Result<(), String>>),
}

/// The most connections of the control plane at a time.
const MAX_CONNECTIONS: usize = 64;

/// How long the app may take to answer a command.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until the process ends.
pub async fn serve(acceptor: Acceptor, commands: mpsc::Sender<Command>) {
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let (stream, _) = acceptor.accept().await;
        let Ok(place) = std::sync::Arc::clone(&places).try_acquire_owned() else { continue };
        let commands = commands.clone();
        tokio::task::spawn_local(async move {
            serve_connection(stream, commands).await;
            drop(place);
        });
    }
}

async fn serve_connection(stream: TcpStream, commands: mpsc::Sender<Command>) {
    let service = service_fn(move |request| {
        let commands = commands.clone();
        async move { Ok::<_, Infallible>(answer(request, &commands).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(10))
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the control plane ended early");
    }
}

async fn answer(request: Request<Incoming>, commands: &mpsc::Sender<Command>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "ask with GET\n");
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "live\n"),
        "/readyz" => match ask(commands, Command::Ready).await {
            Some(Ok(())) => text(StatusCode::OK, "ready\n"),
            Some(Err(reason)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
            None => overdue(),
        },
        "/metrics" => match ask(commands, Command::Metrics).await {
            Some(metrics) => with_type(text(StatusCode::OK, metrics), "text/plain; version=0.0.4; charset=utf-8"),
            None => overdue(),
        },
        "/explain" => explain(request.uri().query().unwrap_or_default(), commands).await,
        _ => {
            text(StatusCode::NOT_FOUND, "ask for /metrics, /livez, /readyz or /explain?method=GET&url=URL&ip=ADDRESS&user=KEY\n")
        }
    }
}

async fn explain(query: &str, commands: &mpsc::Sender<Command>) -> Response<Full<Bytes>> {
    let Some(query) = pairs(query) else { return text(StatusCode::BAD_REQUEST, "the query is malformed\n") };
    let is_json = query.iter().any(|(name, value)| name == "format" && value == "json");
    match ask(commands, |reply| Command::Explain { query, reply }).await {
        Some(Ok(answer)) if is_json => with_type(text(StatusCode::OK, answer), "application/json"),
        Some(Ok(answer)) => text(StatusCode::OK, answer),
        Some(Err(problem)) => text(StatusCode::BAD_REQUEST, format!("{problem}\n")),
        None => overdue(),
    }
}

async fn ask<T>(commands: &mpsc::Sender<Command>, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    };
    tokio::time::timeout(ANSWER_TIMEOUT, asked).await.ok().flatten()
}

fn overdue() -> Response<Full<Bytes>> {
    text(StatusCode::SERVICE_UNAVAILABLE, "the process is shutting down or overloaded\n")
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    with_type(response, "text/plain; charset=utf-8")
}

fn with_type(mut response: Response<Full<Bytes>>, kind: &'static str) -> Response<Full<Bytes>> {
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

/// The pairs of a query, decoded as a form's.
fn pairs(query: &str) -> Option<Vec<(String, String)>> {
    let decode = |text: &str| {
        let mut out = Vec::with_capacity(text.len());
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            out.push(match byte {
                b'+' => b' ',
                b'%' => u8::from_str_radix(std::str::from_utf8(&[bytes.next()?, bytes.next()?]).ok()?, 16).ok()?,
                byte => byte,
            });
        }
        String::from_utf8(out).ok()
    };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        })
        .collect()
}
