//! The HTTP server of the control plane: metrics, status, liveness, readiness, explanations, and commands of operators.
//!
//! Promises: responds while the data plane is busy, because it runs in the control thread; changes nothing itself, but sends
//! each request as a [`Command`] to `app`. Never: listens on an address other than loopback unless configured.

mod operation;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::transport::listener::Acceptor;
use crate::transport::listener::unix::UnixAcceptor;

pub use operation::Operation;

/// Where the control plane listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    pub address: SocketAddr,
    /// A Unix socket, which accepts all commands.
    pub socket: Option<PathBuf>,
    /// Whether `address` accepts all commands, and not only those that read.
    pub accepts_commands: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { address: (Ipv4Addr::LOCALHOST, 9901).into(), socket: None, accepts_commands: false }
    }
}

/// A request to the app.
pub enum Command {
    /// Returns all metrics in the Prometheus text format.
    Metrics(oneshot::Sender<String>),
    /// Reports whether the process accepts requests, or whether it does and a service has an upstream that is up; the error is the reason
    /// why not.
    Ready { service: Option<String>, reply: oneshot::Sender<Result<(), String>> },
    /// Explains the request that a URL query describes, as text or JSON; the error says what is wrong with the query.
    Explain { query: String, reply: oneshot::Sender<Result<String, String>> },
    /// Reports the state of the process as JSON.
    Status(oneshot::Sender<String>),
    /// Returns the public key of the ledger in PEM; `None` without a ledger.
    LedgerKey(oneshot::Sender<Option<String>>),
    /// Carries out an operator's command. The reply is the result in words, or the reason for the refusal.
    Operate { operation: Operation, reply: oneshot::Sender<Result<String, String>> },
    /// Stops the control plane, because a successor now serves it.
    Retire,
    /// Reads all files again; the error says what was wrong.
    Reload {
        /// The user table may lose as many users as it does.
        accepts_loss: bool,
        /// The settings that need a restart to take effect, or what was refused.
        reply: oneshot::Sender<Result<Vec<&'static str>, String>>,
    },
}

/// Maximum number of simultaneous connections to the control plane.
const MAX_CONNECTIONS: usize = 64;

/// Maximum time for the app to reply to a command.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time for a reload: a table of millions of rows takes seconds.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// The field that a request for a command must have.
pub const COMMAND: &str = "domicile-command";

/// Serves the control plane at its address until its task ends.
pub async fn serve(acceptor: Acceptor, accepts_commands: bool, commands: mpsc::Sender<Command>) {
    let slots = slots();
    loop {
        let stream = acceptor.accept().await.stream;
        spawn(stream, &slots, accepts_commands, &commands);
    }
}

/// Serves the control plane at its Unix socket until its task ends. Only the user of the process can connect, so that it accepts all
/// commands.
pub async fn serve_socket(acceptor: UnixAcceptor, commands: mpsc::Sender<Command>) {
    let slots = slots();
    loop {
        let stream = acceptor.accept().await;
        spawn(stream, &slots, true, &commands);
    }
}

fn slots() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_CONNECTIONS))
}

fn spawn<S>(stream: S, slots: &Arc<Semaphore>, accepts_commands: bool, commands: &mpsc::Sender<Command>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let Ok(slot) = Arc::clone(slots).try_acquire_owned() else { return };
    let commands = commands.clone();
    tokio::task::spawn_local(async move {
        serve_connection(stream, accepts_commands, commands).await;
        drop(slot);
    });
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    accepts_commands: bool,
    commands: mpsc::Sender<Command>,
) {
    let service = service_fn(move |request| {
        let commands = commands.clone();
        async move { Ok::<_, Infallible>(respond(request, accepts_commands, &commands).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(10))
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "control plane connection ended early");
    }
}

async fn respond(request: Request<Incoming>, accepts_commands: bool, commands: &mpsc::Sender<Command>) -> Response<Full<Bytes>> {
    if request.method() == Method::POST {
        // A page in a browser could reach this address under a name of its own (DNS rebinding), and send every other field.
        if request.headers().contains_key(header::ORIGIN) {
            return text(StatusCode::FORBIDDEN, "commands are not accepted from browsers; use the command line\n");
        }
        return match request.uri().path() {
            "/reload" => reload(&request, commands).await,
            path => operate(&request, path, accepts_commands, commands).await,
        };
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD, or POST for commands\n");
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "live\n"),
        "/readyz" => match ask(commands, |reply| Command::Ready { service: service_of(request.uri().query()), reply }).await {
            Some(Ok(())) => text(StatusCode::OK, "ready\n"),
            Some(Err(reason)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
            None => overdue(),
        },
        "/metrics" => match ask(commands, Command::Metrics).await {
            Some(metrics) => with_type(text(StatusCode::OK, metrics), "text/plain; version=0.0.4; charset=utf-8"),
            None => overdue(),
        },
        "/status" => match ask(commands, Command::Status).await {
            Some(status) => with_type(text(StatusCode::OK, status), "application/json"),
            None => overdue(),
        },
        "/.well-known/domicile-ledger-key" => match ask(commands, Command::LedgerKey).await {
            Some(Some(pem)) => with_type(text(StatusCode::OK, pem), "application/x-pem-file"),
            Some(None) => text(StatusCode::NOT_FOUND, "this process has no ledger; see `audit` in the configuration\n"),
            None => overdue(),
        },
        "/explain" => explain(request.uri().query().unwrap_or_default(), commands).await,
        _ => text(
            StatusCode::NOT_FOUND,
            "not found; use /metrics, /status, /livez, /readyz, /explain?method=GET&url=URL&ip=ADDRESS&user=KEY, or POST /reload\n",
        ),
    }
}

/// The service of `/readyz?service=NAME`.
fn service_of(query: Option<&str>) -> Option<String> {
    query?.split('&').find_map(|pair| pair.strip_prefix("service=")).map(str::to_owned)
}

/// Reads all files again. A page in a browser on this machine can send a POST, but not this field.
async fn reload(request: &Request<Incoming>, commands: &mpsc::Sender<Command>) -> Response<Full<Bytes>> {
    if !request.headers().contains_key(COMMAND) {
        return unconfirmed();
    }
    let accepts_loss = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "accept_loss=true"));
    match ask_within(RELOAD_TIMEOUT, commands, |reply| Command::Reload { accepts_loss, reply }).await {
        Some(Ok(unapplied)) if unapplied.is_empty() => text(StatusCode::OK, "reloaded\n"),
        Some(Ok(unapplied)) => {
            let names: Vec<_> = unapplied.iter().map(|name| format!("`{name}`")).collect();
            let names = names.join(", ");
            text(StatusCode::OK, format!("reloaded; restart the process to apply the changes of {names}\n"))
        }
        Some(Err(problem)) => text(StatusCode::CONFLICT, format!("{problem}\n")),
        None => overdue(),
    }
}

fn unconfirmed() -> Response<Full<Bytes>> {
    text(StatusCode::FORBIDDEN, format!("send the header field `{COMMAND}: confirm`, or use the command line\n"))
}

/// Carries out an operator's command.
async fn operate(
    request: &Request<Incoming>,
    path: &str,
    accepts_commands: bool,
    commands: &mpsc::Sender<Command>,
) -> Response<Full<Bytes>> {
    if !accepts_commands {
        let message = "this address accepts no commands; use the socket (`admin.socket`), or set `admin.commands: true`\n";
        return text(StatusCode::FORBIDDEN, message);
    }
    if !request.headers().contains_key(COMMAND) {
        return unconfirmed();
    }
    let operation = match Operation::parse(path, request.uri().query().unwrap_or_default()) {
        Ok(operation) => operation,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    match ask(commands, |reply| Command::Operate { operation, reply }).await {
        Some(Ok(done)) => text(StatusCode::OK, format!("{done}\n")),
        Some(Err(problem)) => text(StatusCode::CONFLICT, format!("{problem}\n")),
        None => overdue(),
    }
}

async fn explain(query: &str, commands: &mpsc::Sender<Command>) -> Response<Full<Bytes>> {
    let is_json = query.split('&').any(|pair| pair == "format=json");
    let query = query.to_owned();
    match ask(commands, |reply| Command::Explain { query, reply }).await {
        Some(Ok(explanation)) if is_json => with_type(text(StatusCode::OK, explanation), "application/json"),
        Some(Ok(explanation)) => text(StatusCode::OK, explanation),
        Some(Err(problem)) => text(StatusCode::BAD_REQUEST, format!("{problem}\n")),
        None => overdue(),
    }
}

async fn ask<T>(commands: &mpsc::Sender<Command>, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
    ask_within(REPLY_TIMEOUT, commands, command).await
}

async fn ask_within<T>(
    timeout: Duration,
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Option<T> {
    let (sender, reply) = oneshot::channel();
    let asked = async {
        commands.send(command(sender)).await.ok()?;
        reply.await.ok()
    };
    tokio::time::timeout(timeout, asked).await.ok().flatten()
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
