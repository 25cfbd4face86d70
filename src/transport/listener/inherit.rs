//! Ports that somebody else has claimed for us: systemd (socket activation), or the process that we succeed. They are the same
//! sockets, so whoever waits in their queues is served, and no connection is ever refused.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};

use super::Claimed;

/// The descriptors that a process leaves to its successor, separated by commas.
const LEGACY: &str = "DOMICILE_SOCKETS";

/// The ports that were left to us, by address. To be asked once, before anything else is opened.
pub fn inherited() -> io::Result<Vec<Claimed>> {
    let left = std::env::var(LEGACY).unwrap_or_default();
    let mut descriptors: Vec<RawFd> = left.split(',').filter_map(|number| number.parse().ok()).collect();
    descriptors.extend(sd_notify::listen_fds()?);
    let mut claims: Vec<Claimed> = Vec::new();
    for descriptor in descriptors {
        let socket = adopt(descriptor)?;
        let address = socket.local_addr()?;
        match claims.iter_mut().find(|claim| claim.address == address) {
            Some(claim) => claim.sockets.push(socket),
            None => claims.push(Claimed { address, sockets: vec![socket] }),
        }
    }
    Ok(claims)
}

/// Takes over a descriptor by its number.
#[allow(unsafe_code)]
fn adopt(descriptor: RawFd) -> io::Result<TcpListener> {
    if descriptor < 3 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a standard stream is no socket"));
    }
    // SAFETY: whoever started this process names the descriptors that are ours alone, and they are asked for once.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // It goes to nobody whom we start, unless we say so.
    fcntl_setfd(&owned, FdFlags::CLOEXEC)?;
    let socket = TcpListener::from(owned);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Leaves sockets to a command that is about to be started; they are to be kept open until it has been.
pub fn leave(command: &mut Command, sockets: &[TcpListener]) -> io::Result<()> {
    for socket in sockets {
        fcntl_setfd(socket, FdFlags::empty())?;
    }
    let numbers: Vec<_> = sockets.iter().map(|socket| socket.as_raw_fd().to_string()).collect();
    command.env(LEGACY, numbers.join(",")).env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
    Ok(())
}
