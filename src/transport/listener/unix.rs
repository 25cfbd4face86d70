//! A Unix socket for commands of operators on this machine.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

/// Only the user of the process may connect.
const MODE: u32 = 0o600;

/// Accepts connections on a Unix socket.
pub struct UnixAcceptor(UnixListener);

impl UnixAcceptor {
    /// Opens the socket on the current runtime. It replaces the socket of a process that has ended, or that hands over to this one.
    pub fn bind(path: &Path) -> io::Result<Self> {
        // Renamed into place when it is ready, so that no client finds a socket with other permissions, or none.
        // Until then it is in a folder that no other user can enter.
        let folder = path.with_extension(format!("{}.new", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let new = folder.join("s");
        let bound = UnixListener::bind(&new).and_then(|listener| {
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(MODE))?;
            std::fs::rename(&new, path)?;
            Ok(Self(listener))
        });
        let _ = std::fs::remove_dir_all(&folder);
        bound
    }

    /// Accepts the next connection.
    pub async fn accept(&self) -> UnixStream {
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection on the control socket; retrying");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}
