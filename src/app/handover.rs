//! Copies of the listening sockets, for a successor.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The sockets of every port, by configured address. The control thread writes them, and the handover reads them.
#[derive(Clone, Default)]
pub struct SocketHandover(Arc<Mutex<HashMap<SocketAddr, Vec<TcpListener>>>>);

impl SocketHandover {
    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<TcpListener>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps copies of a port's sockets. If a copy fails, the port cannot be handed over.
    pub fn put(&self, address: SocketAddr, sockets: &[TcpListener]) {
        let copies: io::Result<Vec<_>> = sockets.iter().map(TcpListener::try_clone).collect();
        match copies {
            Ok(copies) => drop(self.lock().insert(address, copies)),
            Err(error) => tracing::warn!(%error, %address, "cannot copy the sockets; a successor cannot take over this port"),
        }
    }

    /// Drops the copies for a closed port, because they would keep it open.
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
