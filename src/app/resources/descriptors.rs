//! File descriptors: raises the limit of the process, fits the limit on client connections to it, and counts the open ones.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::proxy::Limits;

/// The descriptors reserved for everything except clients: control plane, peers, listeners, files, idle upstream connections.
const RESERVED: u64 = 128;

/// The share of the other descriptors that client connections may use. Most clients are idle and need no connection to an app
/// server; a request for which no descriptor is left is answered 503.
const CLIENTS: (u64, u64) = (3, 5);

/// Lowers the limit on connections to the number that the file descriptors suffice for.
pub fn fit(limits: Limits) -> Limits {
    let most = connections_of(raised());
    if most >= limits.connections {
        return limits;
    }
    if most >= limits.connections / 10 * 9 {
        tracing::info!(configured = limits.connections, used = most, "connection limit lowered to fit the file descriptors");
        return Limits { connections: most, ..limits };
    }
    tracing::warn!(
        configured = limits.connections,
        used = most,
        "`limits.connections` is more than this process has file descriptors for; raise the limit (`ulimit -Hn`, or `LimitNOFILE` of systemd)"
    );
    Limits { connections: most, ..limits }
}

fn connections_of(descriptors: u64) -> usize {
    usize::try_from(descriptors.saturating_sub(RESERVED) / CLIENTS.1 * CLIENTS.0).unwrap_or(usize::MAX).max(1)
}

/// Raises the soft limit on descriptors to the hard limit; returns the limit in force.
fn raised() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let most = maximum.unwrap_or(u64::MAX);
    if current == maximum || setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
        return most;
    }
    current.unwrap_or(most)
}

/// Counts the open descriptors.
#[derive(Default)]
pub struct Descriptors {
    /// The last count by entries, and its time.
    counted: Option<(u64, Instant)>,
}

/// How often the entries are counted, which takes about a microsecond each.
const COUNT_EVERY: Duration = Duration::from_secs(1);

const OPEN: &str = "/proc/self/fd";

impl Descriptors {
    /// The share of the limit that is open; 0 where the system does not tell.
    pub fn used_share(&mut self, now: Instant) -> f64 {
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        // Since Linux 6.2, the size of the directory is the number of its entries.
        let size = std::fs::metadata(OPEN).map_or(0, |directory| directory.len());
        let open = if size > 0 { size } else { self.count(now) };
        open as f64 / most as f64
    }

    fn count(&mut self, now: Instant) -> u64 {
        match self.counted {
            Some((count, at)) if now.saturating_duration_since(at) < COUNT_EVERY => count,
            _ => {
                let count = std::fs::read_dir(OPEN).map_or(0, |entries| entries.count() as u64);
                self.counted = Some((count, now));
                count
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_everything_else() {
        assert_eq!([0, 128, 1024, 1 << 20].map(connections_of), [1, 1, 537, 629_067]);
        assert!(connections_of(20_000) >= 10_000);
        assert_eq!(fit(Limits { connections: 1, ..Limits::default() }).connections, 1);
    }
    #[test]
    fn open_descriptors_are_counted() {
        let (mut descriptors, now) = (Descriptors::default(), Instant::now());
        let before = descriptors.count(now);
        let files: Vec<_> = (0..200).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert_eq!(descriptors.count(now), before, "the entries are counted once a second");
        assert!(descriptors.count(now + COUNT_EVERY) >= before.max(3) + 100, "other tests open and close some at the same time");
        assert!(descriptors.used_share(now) > 0.0);
        drop(files);
    }
}
