//! Opens connections to other processes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::stream::Stream;

/// A connection could not be had; nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot connect to `{authority}`: {source}")]
    Connect { authority: String, source: io::Error },
    #[error("`{authority}` did not accept within {limit:?}")]
    TooSlow { authority: String, limit: Duration },
    #[error("`{authority}` could not be reached a moment ago")]
    JustFailed { authority: String },
}

/// Connects to `HOST:PORT`, trying each address that the name has.
pub async fn plain(authority: &str, limit: Duration) -> Result<Stream, DialError> {
    within(authority, limit, connect(authority)).await.map(Stream::Plain)
}

/// Connects and proves both ends; `config` knows whom to accept.
pub async fn secured(authority: &str, config: Arc<ClientConfig>, limit: Duration) -> Result<Stream, DialError> {
    let handshake = async {
        let stream = connect(authority).await?;
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        TlsConnector::from(config).connect(name, stream).await
    };
    within(authority, limit, handshake).await.map(|stream| Stream::Dialed(Box::new(stream)))
}

async fn connect(authority: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(authority).await?;
    // Failing costs latency, not correctness.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn within<T>(authority: &str, limit: Duration, work: impl Future<Output = io::Result<T>>) -> Result<T, DialError> {
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(DialError::Connect { authority: authority.into(), source }),
        Err(_) => Err(DialError::TooSlow { authority: authority.into(), limit }),
    }
}

/// `HOST:PORT` of a URL, with the port that its scheme implies.
pub fn authority_of(url: &http::Uri) -> String {
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    format!("{}:{port}", url.host().unwrap_or_default())
}
