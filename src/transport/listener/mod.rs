//! Listening ports of this process, and the connections that they accept.

pub mod inherit;
pub mod unix;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::tls::ClientTlsFiles;

/// The maximum number of connections that wait to be accepted; the kernel lowers it to `somaxconn`.
const BACKLOG: i32 = 4096;

/// An address to listen on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    pub address: SocketAddr,
    pub accepts: Accepts,
    /// `None` for cleartext, and for listeners for peers, whose certificate is in `peer_tls`.
    pub tls: Option<ClientTlsFiles>,
    /// Networks that may connect. Every connection must then begin with a PROXY protocol header. `None` turns the protocol off.
    pub proxy_protocol: Option<Vec<IpNet>>,
    /// The HTTPS port to which every request is redirected.
    pub redirect: Option<u16>,
    /// How long browsers must use only HTTPS (`max-age` of HSTS, RFC 6797).
    pub hsts: Option<Duration>,
    /// Serves the request of a client that has closed its sending side (TCP half-close).
    pub allows_half_close: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accepts {
    Clients,
    Peers,
}

/// Why a port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on `{address}`: {reason}")]
pub struct BindError {
    pub address: SocketAddr,
    reason: String,
}

impl BindError {
    fn of(address: SocketAddr, error: &io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::AddrInUse => "another process listens there; stop it, or choose another port".into(),
            io::ErrorKind::PermissionDenied => "ports below 1024 need the capability CAP_NET_BIND_SERVICE".into(),
            io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address".into(),
            _ => error.to_string(),
        };
        Self { address, reason }
    }
}

/// An open port: one socket for each worker. The kernel distributes the connections among them.
pub struct BoundPort {
    /// Contains the port that the kernel chose if the configured port is 0.
    pub address: SocketAddr,
    pub sockets: Vec<std::net::TcpListener>,
}

/// Opens `workers` sockets on a port that no other process listens on.
///
/// The first socket is bound without `SO_REUSEPORT`, so that a second process on the same port fails instead of silently
/// taking half of the connections. The sockets of the other workers are bound after it, with `SO_REUSEPORT`.
pub fn bind(address: SocketAddr, workers: usize) -> Result<BoundPort, BindError> {
    let open = || -> io::Result<BoundPort> {
        let first = socket(address)?;
        first.bind(&address.into())?;
        let bound = first.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
        first.set_reuse_port(true)?;
        first.listen(BACKLOG)?;
        let mut sockets: Vec<std::net::TcpListener> = vec![first.into()];
        for _ in 1..workers {
            let next = socket(bound)?;
            next.set_reuse_port(true)?;
            next.bind(&bound.into())?;
            next.listen(BACKLOG)?;
            sockets.push(next.into());
        }
        Ok(BoundPort { address: bound, sockets })
    };
    open().map_err(|error| BindError::of(address, &error))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait until old connections leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// One worker's share of a port.
pub struct Acceptor {
    listener: TcpListener,
    /// The local address of every connection; `None` if the port is open at several addresses.
    local: Option<SocketAddr>,
}

/// A connection that a client has opened.
pub struct Accepted {
    pub stream: TcpStream,
    pub remote: SocketAddr,
    pub local: SocketAddr,
}

impl Acceptor {
    /// Takes over a socket of [`BoundPort`] on the current runtime.
    pub fn adopt(socket: std::net::TcpListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // Accepted sockets inherit it. A failure costs latency, not correctness.
        let _ = socket2::SockRef::from(&socket).set_tcp_nodelay(true);
        let local = socket.local_addr().ok().filter(|address| !address.ip().is_unspecified());
        Ok(Self { listener: TcpListener::from_std(socket)?, local })
    }

    /// Accepts the next connection. Without file descriptors or memory, it pauses and retries, so that it neither fails nor
    /// busy-loops.
    pub async fn accept(&self) -> Accepted {
        let mut pause = Duration::from_millis(5);
        loop {
            match self.listener.accept().await {
                Ok((stream, remote)) => {
                    // It fails if the client has closed the connection already.
                    if let Some(local) = self.local.or_else(|| stream.local_addr().ok()) {
                        return Accepted { stream, remote, local };
                    }
                }
                Err(error) if is_connection_error(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "cannot accept connections; retrying");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
    }

    /// Closes the port and returns the queued connections, so that they are still served.
    pub fn close(self) -> Vec<Accepted> {
        let mut queued = Vec::new();
        // Ask the kernel, because the runtime may not have been notified of them yet.
        let Ok(listener) = self.listener.into_std() else { return queued };
        while let Ok((stream, remote)) = listener.accept() {
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
                && let Ok(local) = stream.local_addr()
            {
                queued.push(Accepted { stream, remote, local });
            }
        }
        queued
    }
}

fn is_connection_error(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn a_port_belongs_to_one_claim_and_all_its_sockets_accept() {
        let bound = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        assert_eq!(bound.sockets.len(), 3);
        let refused = bind(bound.address, 1).err().expect("a second bind of the same port fails");
        assert!(refused.to_string().contains("another process listens there"), "{refused}");

        // The kernel distributes by hash: with enough connections every socket gets one.
        let clients: Vec<_> = (0..200).map(|_| TcpStream::connect(bound.address).unwrap()).collect();
        for socket in &bound.sockets {
            socket.set_nonblocking(false).unwrap();
            socket.accept().unwrap();
        }
        drop(clients);
    }

    #[tokio::test]
    async fn an_accepted_connection_knows_its_addresses_and_does_not_delay_data() {
        for (address, target) in [("127.0.0.1:0", "127.0.0.1"), ("0.0.0.0:0", "127.0.0.2")] {
            let mut bound = bind(address.parse().unwrap(), 1).unwrap();
            let acceptor = Acceptor::adopt(bound.sockets.remove(0)).unwrap();
            let client = TcpStream::connect((target, bound.address.port())).unwrap();
            let accepted = acceptor.accept().await;
            assert_eq!(accepted.local, client.peer_addr().unwrap());
            assert_eq!(accepted.remote, client.local_addr().unwrap());
            assert!(accepted.stream.nodelay().unwrap());
        }
    }
}
