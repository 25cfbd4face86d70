//! File descriptors: as many as the system allows, and no more connections of clients than these carry.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::proxy::Limits;

/// The descriptors reserved for everything except clients: control plane, peers, listeners, files, idle upstream connections.
const KEPT: u64 = 128;

/// A client's connection, and the one to whoever serves it.
const EACH: u64 = 2;

/// The limits that this process can keep.
pub(super) fn fit(limits: Limits) -> Limits {
    let most = connections_of(raised());
    if most >= limits.connections {
        return limits;
    }
    if most >= limits.connections / 10 * 9 {
        tracing::info!(configured = limits.connections, used = most, "file descriptors carry a few connections fewer");
        return Limits { connections: most, ..limits };
    }
    tracing::warn!(
        configured = limits.connections,
        used = most,
        "`limits.connections` is more than this process has file descriptors for: raise its limit (`ulimit -Hn`, or `LimitNOFILE` of systemd)"
    );
    Limits { connections: most, ..limits }
}

fn connections_of(descriptors: u64) -> usize {
    usize::try_from(descriptors.saturating_sub(KEPT) / EACH).unwrap_or(usize::MAX).max(1)
}

/// How many descriptors this process may have, once it has asked for all that it may ask for.
fn raised() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let most = maximum.unwrap_or(u64::MAX);
    if current == maximum || setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
        return most;
    }
    current.unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_everything_else() {
        assert_eq!([0, 128, 1024, 1 << 20].map(connections_of), [1, 1, 448, 524_224]);
        assert_eq!(fit(Limits { connections: 1, ..Limits::default() }).connections, 1);
    }
}
