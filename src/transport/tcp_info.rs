//! Reads the state of a TCP connection from the kernel (`TCP_INFO`, tcp(7)).

use std::cell::Cell;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;

use super::stream::Stream;

/// Asks the kernel about a connection while the connection is open. The stream itself may belong to another owner.
#[derive(Clone)]
pub struct TcpInfo(Rc<Cell<Option<RawFd>>>);

/// Ends the questions of a [`TcpInfo`] when it is dropped. Drop it after the stream.
pub struct Open(TcpInfo);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.set(None);
    }
}

impl TcpInfo {
    pub fn of(stream: &Stream) -> (Self, Open) {
        let info = Self(Rc::new(Cell::new(Some(stream.descriptor().as_raw_fd()))));
        (info.clone(), Open(info))
    }

    /// Bytes that the other end has acknowledged; `None` if the connection is closed or the kernel does not say.
    pub fn acknowledged(&self) -> Option<u64> {
        read(self.0.get()?)
    }
}

/// Where `struct tcp_info` of Linux has `tcpi_bytes_acked`, since Linux 4.1. Fields are only ever added at its end.
const BYTES_ACKED: usize = 120;

#[allow(unsafe_code)]
fn read(socket: RawFd) -> Option<u64> {
    let mut info = [0_u8; BYTES_ACKED + size_of::<u64>()];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `info`. A descriptor that is not a TCP socket is an
    // error.
    let outcome =
        unsafe { libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut length) };
    let is_whole = outcome == 0 && length as usize == info.len();
    is_whole.then(|| u64::from_ne_bytes(*info.last_chunk().expect("eight bytes follow the offset")))
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::Poll;

    use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_bytes_that_arrived_are_acknowledged() {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let mut near = Stream::Plain(listener.accept().await.unwrap().0);
            let (info, open) = TcpInfo::of(&near);
            let before = info.acknowledged().expect("Linux reports it");
            near.write_all(b"hello").await.unwrap();
            far.read_exact(&mut [0; 5]).await.unwrap();
            while info.acknowledged().unwrap() < before + 5 {
                tokio::task::yield_now().await;
            }
            assert_eq!(info.acknowledged(), Some(before + 5));
            // More than the buffers of both ends hold is never acknowledged in whole by a client that does not read.
            let mut written = 5;
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            while let Poll::Ready(Ok(size)) = Pin::new(&mut near).poll_write(&mut context, &[0; 65_536]) {
                written += size as u64;
            }
            assert!(info.acknowledged().unwrap() < before + written, "the kernel holds some of it");
            drop((near, open));
            assert_eq!(info.acknowledged(), None);
        });
    }
}
