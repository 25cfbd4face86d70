//! Listening sockets inherited from systemd (socket activation) or from the previous process (handover). They are the same
//! sockets, so queued connections are served and no connection is refused.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};

use super::BoundPort;

/// The environment variable with the file descriptors that a process hands over to its successor, separated by commas.
const SOCKETS_VARIABLE: &str = "DOMICILE_SOCKETS";

/// Takes the inherited ports, grouped by address. Call it once, before the process opens anything else.
pub fn inherited() -> io::Result<Vec<BoundPort>> {
    let handed_over = std::env::var(SOCKETS_VARIABLE).unwrap_or_default();
    let mut descriptors: Vec<RawFd> = handed_over.split(',').filter_map(|number| number.parse().ok()).collect();
    descriptors.extend(sd_notify::listen_fds()?);
    let mut ports: Vec<BoundPort> = Vec::new();
    for descriptor in descriptors {
        let socket = adopt(descriptor)?;
        let address = socket.local_addr()?;
        match ports.iter_mut().find(|port| port.address == address) {
            Some(port) => port.sockets.push(socket),
            None => ports.push(BoundPort { address, sockets: vec![socket] }),
        }
    }
    Ok(ports)
}

/// Takes over a descriptor by its number.
#[allow(unsafe_code)]
fn adopt(descriptor: RawFd) -> io::Result<TcpListener> {
    if descriptor < 3 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a standard stream is not a listening socket"));
    }
    // SAFETY: the parent process names descriptors that only this process owns, and each is taken once.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // Child processes must not inherit the socket, unless `leave` passes it to them.
    fcntl_setfd(&owned, FdFlags::CLOEXEC)?;
    let socket = TcpListener::from(owned);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Hands sockets over to a command. Keep them open until the command has started.
pub fn leave(command: &mut Command, sockets: &[TcpListener]) -> io::Result<()> {
    for socket in sockets {
        fcntl_setfd(socket, FdFlags::empty())?;
    }
    let numbers: Vec<_> = sockets.iter().map(|socket| socket.as_raw_fd().to_string()).collect();
    command.env(SOCKETS_VARIABLE, numbers.join(",")).env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
    Ok(())
}
