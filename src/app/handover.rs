//! Copies of the listening sockets, for a process that takes over.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The sockets of every port, by configured address. Written by the control thread, read by whoever hands over.
#[derive(Clone, Default)]
pub struct SocketHandover(Arc<Mutex<HashMap<SocketAddr, Vec<TcpListener>>>>);

impl SocketHandover {
    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<TcpListener>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a copy of each; one that cannot be copied cannot be handed over.
    pub fn put(&self, address: SocketAddr, sockets: &[TcpListener]) {
        let copies: io::Result<Vec<_>> = sockets.iter().map(TcpListener::try_clone).collect();
        match copies {
            Ok(copies) => drop(self.lock().insert(address, copies)),
            Err(error) => tracing::warn!(%error, %address, "this port cannot be handed over to a successor"),
        }
    }

    /// A port is closed: a copy would keep it open.
    pub fn remove(&self, address: SocketAddr) {
        self.lock().remove(&address);
    }

    pub fn clear(&self) {
        self.lock().clear();
    }

    pub fn copies(&self) -> io::Result<Vec<TcpListener>> {
        self.lock().values().flatten().map(TcpListener::try_clone).collect()
    }
}
