//! A TCP relay that delays every byte by the one-way latency of a real distance.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Maximum chunks in flight in one direction: 256 chunks of 64 KiB are 16 MiB, the size of the largest flow-control window.
const IN_FLIGHT: usize = 256;

/// Relays connections to `target` with a delay of `one_way` in each direction; returns the address to connect to.
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
    // A TCP handshake over the real distance takes one round trip.
    tokio::time::sleep(one_way * 2).await;
    let Ok(far) = TcpStream::connect(target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::join!(carry(near_read, far_write, one_way), carry(far_read, near_write, one_way));
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, one_way: Duration) {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let read = async move {
        let mut chunk = vec![0; 64 << 10];
        while let Ok(1..) = from.read(&mut chunk).await.inspect(|size| chunk.truncate(*size)) {
            let full = std::mem::replace(&mut chunk, vec![0; 64 << 10]);
            if sender.send((Instant::now() + one_way, full)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = chunks.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
