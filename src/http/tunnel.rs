//! Tunnels: two byte streams joined after HTTP has ended on both, for WebSocket, other upgrades and CONNECT.

use std::cell::Cell;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::prelude::{BASE64_STANDARD, Engine};
use http::HeaderName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

/// A bidirectional byte stream of any type.
pub type Wire = Pin<Box<dyn Duplex>>;

/// Takes over a byte stream after HTTP has ended on it, for example to serve a tunnel.
pub type Handover = Box<dyn FnOnce(Wire) -> Pin<Box<dyn Future<Output = ()>>>>;

pub trait Duplex: AsyncRead + AsyncWrite {}

impl<T: AsyncRead + AsyncWrite> Duplex for T {}

/// Byte counts of a tunnel, readable while the tunnel is open.
#[derive(Default)]
pub struct Traffic {
    /// Bytes from the client.
    pub up: Cell<u64>,
    /// Bytes to the client.
    pub down: Cell<u64>,
}

/// Why a tunnel ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Both directions ended.
    Closed,
    /// A read or a write failed.
    Broken,
    /// No data passed in either direction for the idle timeout.
    Idle,
}

/// Stands for a plain CONNECT (RFC 9110 section 9.3.6) in place of the protocol name of an upgrade.
pub const CONNECT: &str = "connect";

/// The name of the WebSocket protocol in `Upgrade` (RFC 6455 section 11.2).
pub const WEBSOCKET: &str = "websocket";

/// The only version of the WebSocket protocol (RFC 6455 section 4.1).
pub const WEBSOCKET_VERSION: &str = "13";

/// The field with which a gateway marks a 2xx response to CONNECT that opens no tunnel, because the upgrade was declined.
pub const DECLINED: HeaderName = HeaderName::from_static("domicile-declined");

/// Read buffer sizes. The buffer starts small, because most tunnels carry little data and many of them stay open.
const INITIAL_BUFFER: usize = 1 << 10;
const MAX_BUFFER: usize = 16 << 10;

/// Copies bytes between `client` and `server` until both directions have ended. One may end before the other (half-close).
pub async fn join(client: Wire, server: Wire, idle: Duration, traffic: Rc<Traffic>) -> Ending {
    let last = Cell::new(Instant::now());
    let (client_read, client_write) = tokio::io::split(client);
    let (server_read, server_write) = tokio::io::split(server);
    let up = copy(client_read, server_write, &traffic.up, &last);
    let down = copy(server_read, client_write, &traffic.down, &last);
    let both = async { tokio::try_join!(up, down) };
    let idle_timeout = async {
        while last.get().elapsed() < idle {
            tokio::time::sleep_until(last.get() + idle).await;
        }
    };
    let (both, idle_timeout) = (pin!(both), pin!(idle_timeout));
    tokio::select! {
        ended = both => if ended.is_ok() { Ending::Closed } else { Ending::Broken },
        () = idle_timeout => Ending::Idle,
    }
}

async fn copy(mut from: ReadHalf<Wire>, mut to: WriteHalf<Wire>, count: &Cell<u64>, last: &Cell<Instant>) -> io::Result<()> {
    let mut buffer = vec![0; INITIAL_BUFFER];
    loop {
        let size = from.read(&mut buffer).await?;
        if size == 0 {
            return to.shutdown().await;
        }
        last.set(Instant::now());
        to.write_all(&buffer[..size]).await?;
        to.flush().await?;
        count.set(count.get() + size as u64);
        last.set(Instant::now());
        if size == buffer.len() && size < MAX_BUFFER {
            buffer.resize(4 * size, 0);
        }
    }
}

/// A random `Sec-WebSocket-Key` for an HTTP/1.1 handshake.
pub fn fresh_key() -> String {
    BASE64_STANDARD.encode(fastrand::u128(..).to_ne_bytes())
}

/// The `Sec-WebSocket-Accept` value for a key (RFC 6455 section 4.2.2). SHA-1 protects no secret here.
pub fn websocket_accept(key: &[u8]) -> String {
    let mut text = key.to_vec();
    text.extend_from_slice(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64_STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_of_the_rfcs_example() {
        assert_eq!(websocket_accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(fresh_key().len(), 24);
    }
}
