//! A relay that takes its time: every byte arrives as late as over the real distance.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Pieces on their way in one direction: 256 of 64 KiB keep 16 MiB in flight, as much as a connection's window.
const IN_FLIGHT: usize = 256;

/// Relays connections to `target`, each direction `one_way` later; gives the address to connect to.
pub async fn start(target: SocketAddr, one_way: Duration) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(relay(stream, target, one_way));
        }
    });
    Ok(address)
}

async fn relay(near: TcpStream, target: SocketAddr, one_way: Duration) {
    // The handshake of a far connection takes a round trip as well.
    tokio::time::sleep(one_way * 2).await;
    let Ok(far) = TcpStream::connect(target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::join!(carry(near_read, far_write, one_way), carry(far_read, near_write, one_way));
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, one_way: Duration) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let read = async move {
        let mut piece = vec![0; 64 << 10];
        while let Ok(1..) = from.read(&mut piece).await.inspect(|size| piece.truncate(*size)) {
            let full = std::mem::replace(&mut piece, vec![0; 64 << 10]);
            if sender.send((Instant::now() + one_way, full)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = pieces.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
