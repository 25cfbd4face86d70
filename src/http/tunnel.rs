//! Two byte streams joined into one, after HTTP has ended on both: WebSocket and other upgrades.

use std::cell::Cell;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::prelude::{BASE64_STANDARD, Engine};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

/// A byte stream of any kind.
pub type Wire = Pin<Box<dyn Duplex>>;

pub trait Duplex: AsyncRead + AsyncWrite {}

impl<T: AsyncRead + AsyncWrite> Duplex for T {}

/// What has passed through a tunnel, seen from outside while it is open.
#[derive(Default)]
pub struct Traffic {
    /// Bytes from the client, and to it.
    pub up: Cell<u64>,
    pub down: Cell<u64>,
}

/// Why a tunnel ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Both ends have said all they had to say.
    Closed,
    /// An end broke off.
    Broken,
    /// Nothing passed in either direction for too long.
    Idle,
}

/// What CONNECT itself opens, where others open what a protocol's name says (RFC 9110 section 9.3.6).
pub const CONNECT: &str = "connect";

/// What is read at once: most tunnels say little, and many of them stay open.
const FIRST_PIECE: usize = 1 << 10;
const MOST_OF_A_PIECE: usize = 16 << 10;

/// Passes bytes between `client` and `server` until both have ended; one may end its direction before the other.
pub async fn join(client: Wire, server: Wire, idle: Duration, traffic: Rc<Traffic>) -> Ending {
    let last = Cell::new(Instant::now());
    let (client_read, client_write) = tokio::io::split(client);
    let (server_read, server_write) = tokio::io::split(server);
    let up = pass(client_read, server_write, &traffic.up, &last);
    let down = pass(server_read, client_write, &traffic.down, &last);
    let both = async { tokio::try_join!(up, down) };
    let quiet = async {
        while last.get().elapsed() < idle {
            tokio::time::sleep_until(last.get() + idle).await;
        }
    };
    let (both, quiet) = (pin!(both), pin!(quiet));
    tokio::select! {
        ended = both => if ended.is_ok() { Ending::Closed } else { Ending::Broken },
        () = quiet => Ending::Idle,
    }
}

async fn pass(mut from: ReadHalf<Wire>, mut to: WriteHalf<Wire>, count: &Cell<u64>, last: &Cell<Instant>) -> io::Result<()> {
    let mut piece = vec![0; FIRST_PIECE];
    loop {
        let size = from.read(&mut piece).await?;
        if size == 0 {
            return to.shutdown().await;
        }
        last.set(Instant::now());
        to.write_all(&piece[..size]).await?;
        to.flush().await?;
        count.set(count.get() + size as u64);
        last.set(Instant::now());
        if size == piece.len() && size < MOST_OF_A_PIECE {
            piece.resize(4 * size, 0);
        }
    }
}

/// A nonce for a WebSocket handshake over HTTP/1.1.
pub fn fresh_key() -> String {
    BASE64_STANDARD.encode(fastrand::u128(..).to_ne_bytes())
}

/// What shows that a nonce was read (RFC 6455 section 4.2.2). SHA-1 is no secret's guard here.
pub fn accept_of(key: &[u8]) -> String {
    let mut text = key.to_vec();
    text.extend_from_slice(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64_STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_of_the_rfcs_example() {
        assert_eq!(accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(fresh_key().len(), 24);
    }
}
