//! Opens connections to other processes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustls::{AlertDescription, CertificateError, ClientConfig};
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::resolver::Addresses;
use super::stream::Stream;

/// A process to connect to, and how.
#[derive(Clone, Debug)]
pub struct Server {
    /// `HOST:PORT`, or `unix:` and the path of a socket.
    pub authority: Arc<str>,
    pub tls: Option<Secured>,
    pub http_version: HttpVersion,
    /// The addresses of its name, if a task keeps them up to date.
    pub addresses: Option<Addresses>,
    /// Counts the connections that were opened to it.
    pub opened: Arc<AtomicU64>,
}

/// The HTTP version of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HttpVersion {
    Http1,
    Http2,
    /// The server chooses in the TLS handshake (ALPN).
    Negotiated,
}

/// TLS to a server. The configurations contain the authorities to trust.
#[derive(Clone, Debug)]
pub struct Secured {
    pub config: Arc<ClientConfig>,
    /// The same, but offers only HTTP/1.1: for upgrades.
    pub http1: Arc<ClientConfig>,
    /// The name for SNI and for verification, if it is not the authority's host.
    pub name: Option<Arc<str>>,
}

impl Server {
    /// A server that speaks HTTP/1.1 without TLS, for Domicile's own requests.
    pub fn cleartext(authority: &str) -> Self {
        let http_version = HttpVersion::Http1;
        Self { authority: authority.into(), tls: None, http_version, addresses: None, opened: Arc::default() }
    }

    /// Whether `address` is still an address of this server.
    pub fn leads_to(&self, address: Option<SocketAddr>) -> bool {
        let known = self.addresses.as_ref().map(|addresses| addresses.load());
        known
            .filter(|addresses| !addresses.is_empty())
            .is_none_or(|addresses| address.is_some_and(|address| addresses.contains(&address)))
    }

    /// Whether a connection to `other` can serve for this server: same authority, TLS and HTTP version.
    pub fn is_same(&self, other: &Self) -> bool {
        let same_tls = match (&self.tls, &other.tls) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(&one.config, &other.config) && one.name == other.name,
            (None, Some(_)) | (Some(_), None) => false,
        };
        same_tls && self.authority == other.authority && self.http_version == other.http_version
    }
}

/// How a connection is opened.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// For the TCP connect and the TLS handshake together.
    pub timeout: Duration,
    /// How long a write may make no progress before the connection is closed.
    pub write_stall: Duration,
    /// Bytes sent before everything else, TLS included: a PROXY protocol header.
    pub greeting: Option<Bytes>,
    /// Whether the connection counts as opened for requests, and not for the proxy's own checks.
    pub is_counted: bool,
}

impl DialOptions {
    /// For Domicile's own requests, which are small.
    pub const fn within(timeout: Duration) -> Self {
        Self { timeout, write_stall: timeout, greeting: None, is_counted: false }
    }
}

/// Why a connection could not be opened. No byte of a request was sent.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot connect to `{authority}`: {source}{}", hint(source))]
    Connect { authority: String, source: io::Error },
    #[error("timed out connecting to `{authority}` after {timeout:?}")]
    TooSlow { authority: String, timeout: Duration },
    #[error("another request has just failed to connect to `{authority}`")]
    JustFailed { authority: String },
    /// A local fault: it says nothing about the server.
    #[error("too many open files: cannot connect to `{authority}`; raise the limit (`ulimit -n`)")]
    OutOfDescriptors { authority: String },
    #[error("`{authority}` does not support {wanted}")]
    OtherProtocol { authority: String, wanted: &'static str },
}

/// Connects to a server and tries each address of its name. With `for_http1`, ALPN offers only HTTP/1.1.
pub async fn open(server: &Server, options: &DialOptions, for_http1: bool) -> Result<Stream, DialError> {
    let work = async {
        let mut stream = connect(server).await?;
        if let Some(greeting) = &options.greeting {
            stream.write_all(greeting).await?;
        }
        let Some(tls) = &server.tls else { return Ok(stream) };
        let Stream::Plain(stream) = stream else { return Err(io::Error::other("there is no TLS over Unix sockets")) };
        let host = server.authority.rsplit_once(':').map_or(&*server.authority, |(host, _)| host).trim_matches(['[', ']']);
        let name = tls.name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let config = if for_http1 { &tls.http1 } else { &tls.config };
        TlsConnector::from(Arc::clone(config)).connect(name, stream).await.map(|stream| Stream::Dialed(Box::new(stream)))
    };
    let authority = || server.authority.to_string();
    match tokio::time::timeout(options.timeout, work).await {
        Ok(Ok(stream)) => {
            if options.is_counted {
                server.opened.fetch_add(1, Ordering::Relaxed);
            }
            Ok(stream)
        }
        Ok(Err(source)) if matches!(source.raw_os_error(), Some(ENFILE | EMFILE)) => {
            Err(DialError::OutOfDescriptors { authority: authority() })
        }
        Ok(Err(source)) => Err(DialError::Connect { authority: authority(), source }),
        Err(_) => Err(DialError::TooSlow { authority: authority(), timeout: options.timeout }),
    }
}

/// What an operator should look at, where the library's own message does not say so.
fn hint(error: &io::Error) -> &'static str {
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) else { return "" };
    match cause {
        rustls::Error::InvalidMessage(_) => "; this port does not speak TLS",
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "; its certificate is signed by another authority than the configured one"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "; its certificate is for another name or region",
        rustls::Error::AlertReceived(AlertDescription::UnknownCA) => {
            "; it does not trust the authority that signed our certificate"
        }
        _ => "",
    }
}

/// The beginning of the authority of a Unix socket.
pub const UNIX: &str = "unix:";

/// The system, or this process, has no file descriptor left.
const ENFILE: i32 = rustix::io::Errno::NFILE.raw_os_error();
const EMFILE: i32 = rustix::io::Errno::MFILE.raw_os_error();

async fn connect(server: &Server) -> io::Result<Stream> {
    if let Some(path) = server.authority.strip_prefix(UNIX) {
        return UnixStream::connect(path).await.map(Stream::Local);
    }
    let mut addresses = server.addresses.as_ref().map_or(Vec::new(), |addresses| addresses.load().to_vec());
    fastrand::shuffle(&mut addresses);
    let stream = match addresses.as_slice() {
        [] => TcpStream::connect(&*server.authority).await?,
        addresses => TcpStream::connect(addresses).await?,
    };
    // A failure costs latency, not correctness.
    let _ = stream.set_nodelay(true);
    Ok(Stream::Plain(stream))
}

/// `HOST:PORT` of a URL, with the default port of its scheme if it has none.
pub fn authority_of(url: &http::Uri) -> String {
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    format!("{}:{port}", url.host().unwrap_or_default())
}
