//! HTTP/1.1 connections to upstreams, kept warm by the worker that opened them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::super::body::Body;
use super::super::dial::{self, DialError};
use super::{SendCause, SendError};

/// The most idle connections kept to one upstream by one worker.
const MAX_IDLE: usize = 64;

/// Shorter than the keep-alive of common servers (Node 5 s, nginx 75 s), so that we close first and lose no request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// One worker's idle connections, last used first.
#[derive(Clone, Default)]
pub struct UpstreamPool {
    idle: Rc<RefCell<HashMap<String, Vec<Idle>>>>,
}

struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

impl UpstreamPool {
    /// Sends a request to `authority` and waits for the head of the answer.
    ///
    /// A connection that turns out to be closed hands the request back unsent, and the next is tried: nothing is ever
    /// sent twice.
    pub async fn send(
        &self,
        authority: &str,
        mut request: Request<Body>,
        connect_limit: Duration,
    ) -> Result<Response<Incoming>, SendError> {
        while let Some(mut sender) = self.take(authority) {
            match sender.try_send_request(request).await {
                Ok(response) => {
                    self.put_when_ready(authority, sender);
                    return Ok(response);
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(SendError { cause: SendCause::Broken(error.into_error()), unsent: None }),
                },
            }
        }
        let mut sender = match dial(authority, connect_limit).await {
            Ok(sender) => sender,
            Err(error) => return Err(SendError::dial(error, request)),
        };
        match sender.try_send_request(request).await {
            Ok(response) => {
                self.put_when_ready(authority, sender);
                Ok(response)
            }
            Err(mut error) => {
                let unsent = error.take_message().map(Box::new);
                Err(SendError { cause: SendCause::Broken(error.into_error()), unsent })
            }
        }
    }

    fn take(&self, authority: &str) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(authority)?;
        connections.retain(|connection| connection.since.elapsed() < IDLE_TIMEOUT);
        while let Some(connection) = connections.pop() {
            if connection.sender.is_ready() {
                return Some(connection.sender);
            }
        }
        None
    }

    /// Keeps the connection once its answer has been read to the end.
    fn put_when_ready(&self, authority: &str, mut sender: SendRequest<Body>) {
        let (idle, authority) = (Rc::clone(&self.idle), authority.to_owned());
        tokio::task::spawn_local(async move {
            if sender.ready().await.is_err() {
                return;
            }
            let mut idle = idle.borrow_mut();
            let connections = idle.entry(authority).or_default();
            if connections.len() < MAX_IDLE {
                connections.push(Idle { sender, since: Instant::now() });
            }
        });
    }

    /// Closes what has been idle for too long; called now and then by the worker.
    pub fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|connection| connection.since.elapsed() < IDLE_TIMEOUT && connection.sender.is_ready());
            !connections.is_empty()
        });
    }
}

async fn dial(authority: &str, limit: Duration) -> Result<SendRequest<Body>, DialError> {
    let stream = dial::plain(authority, limit).await?;
    let handshake = http1::Builder::new().max_headers(256).handshake(TokioIo::new(stream)).await;
    let (sender, connection) =
        handshake.map_err(|error| DialError::Connect { authority: authority.into(), source: std::io::Error::other(error) })?;
    tokio::task::spawn_local(connection.with_upgrades());
    Ok(sender)
}
