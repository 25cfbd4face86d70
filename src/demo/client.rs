//! A minimal HTTP/1.1 client.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A response with its whole body.
pub struct ClientResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl ClientResponse {
    /// The body as JSON; null if it is not valid JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Sends one request on a new connection.
pub async fn send(address: SocketAddr, method: Method, target: &str, fields: &[(&str, &str)]) -> Result<ClientResponse, String> {
    let failed = |error: String| format!("{method} http://{address}{target}: {error}");
    let stream = TcpStream::connect(address).await.map_err(|error| failed(error.to_string()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.to_string()))?;
    tokio::spawn(connection);
    let body = if method == Method::POST { Bytes::from_static(b"{\"sample\":true}") } else { Bytes::new() };
    let mut request = Request::builder().method(&method).uri(target).header("host", address.to_string());
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body)).map_err(|error| failed(error.to_string()))?;
    let (parts, body) = sender.send_request(request).await.map_err(|error| failed(error.to_string()))?.into_parts();
    let body = body.collect().await.map_err(|error| failed(error.to_string()))?.to_bytes();
    Ok(ClientResponse { status: parts.status, headers: parts.headers, body })
}
