//! The memory of the process and of its cgroups.

use std::fs;
use std::path::{Path, PathBuf};

/// The limits on memory, and the files in which the system reports its usage.
pub struct Memory {
    cgroups: Vec<Cgroup>,
    /// Bytes of the machine's memory.
    machine: Option<u64>,
}

impl Memory {
    /// Finds the cgroups that limit this process.
    pub fn find() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        Self {
            cgroups: Cgroup::find(Path::new("/sys/fs/cgroup"), &read("/proc/self/cgroup")),
            machine: machine(&read("/proc/meminfo")),
        }
    }

    /// The bytes that the process may use, if the configuration sets `configured`.
    pub fn limit(&self, configured: Option<u64>) -> Option<u64> {
        let limits = self.cgroups.iter().filter_map(|cgroup| cgroup.limit());
        limits.chain(configured).chain(self.machine).min()
    }

    /// The greatest share of a limit that is used: of the heap, and of each cgroup.
    pub fn used_share(&self, configured: Option<u64>) -> f64 {
        let most = configured.into_iter().chain(self.machine).min();
        let heap = most.zip(heap()).map_or(0.0, |(most, used)| used as f64 / most as f64);
        self.cgroups.iter().filter_map(Cgroup::used_share).fold(heap, f64::max)
    }
}

/// Bytes of the machine's memory, from `/proc/meminfo`.
fn machine(meminfo: &str) -> Option<u64> {
    let kib: u64 = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Bytes of memory that the process has written to and that belong to no file.
fn heap() -> Option<u64> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let mut counts = pages.split_whitespace().skip(1).map_while(|count| count.parse::<u64>().ok());
    let (resident, shared) = (counts.next()?, counts.next()?);
    resident.saturating_sub(shared).checked_mul(rustix::param::page_size() as u64)
}

/// A cgroup with a memory controller, whose limit applies to this process.
#[derive(Debug)]
struct Cgroup {
    directory: PathBuf,
    files: &'static Files,
}

/// The files of one version of cgroups.
#[derive(Debug)]
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// The keys of the page cache and of shared memory in `memory.stat`; the cache contains the shared memory.
    cache: &'static str,
    shared: &'static str,
}

const VERSION_1: Files =
    Files { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", cache: "total_cache", shared: "total_shmem" };
const VERSION_2: Files = Files { limit: "memory.max", usage: "memory.current", cache: "file", shared: "shmem" };

/// Version 1 of cgroups writes a number near 2^63 for "no limit".
const MOST: u64 = 1 << 60;

impl Cgroup {
    /// The cgroups of a process and their ancestors below `root`; `listing` has the format of `/proc/self/cgroup`. In a container,
    /// the path in the listing may not exist, because `root` is the container's own cgroup.
    fn find(root: &Path, listing: &str) -> Vec<Self> {
        let mut found = Vec::new();
        for line in listing.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let (base, files) = match controllers {
                "" => (root.to_owned(), &VERSION_2),
                _ if controllers.split(',').any(|controller| controller == "memory") => (root.join("memory"), &VERSION_1),
                _ => continue,
            };
            for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
                let directory = base.join(ancestor);
                if directory.join(files.limit).exists() && directory.join(files.usage).exists() {
                    found.push(Self { directory, files });
                }
            }
        }
        found
    }

    fn number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.directory.join(file)).ok()?.trim().parse().ok()
    }

    /// Bytes; `None` without a limit.
    fn limit(&self) -> Option<u64> {
        self.number(self.files.limit).filter(|limit| (1..MOST).contains(limit))
    }

    /// The used share of the limit. The page cache is left out, because the kernel frees it when memory is scarce.
    fn used_share(&self) -> Option<f64> {
        let limit = self.limit()?;
        let usage = self.number(self.files.usage)?;
        let stat = fs::read_to_string(self.directory.join("memory.stat")).unwrap_or_default();
        let value = |key: &str| {
            let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let cache = value(self.files.cache).saturating_sub(value(self.files.shared));
        Some(usage.saturating_sub(cache) as f64 / limit as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(directory).unwrap();
        files.iter().for_each(|(name, text)| fs::write(directory.join(name), text).unwrap());
    }

    #[test]
    fn the_page_cache_is_not_counted_and_the_tightest_ancestor_decides() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &[("memory.max", "max\n"), ("memory.current", "900\n")]);
        write(
            &root.path().join("a"),
            &[("memory.max", "1000\n"), ("memory.current", "900\n"), ("memory.stat", "anon 5\nfile 300\nshmem 100\n")],
        );
        write(&root.path().join("a/b"), &[("memory.max", "2000\n"), ("memory.current", "400\n"), ("memory.stat", "file 0\n")]);
        let memory = Memory { cgroups: Cgroup::find(root.path(), "0::/a/b\n"), machine: Some(1 << 50) };
        assert_eq!(memory.limit(None), Some(1000));
        assert_eq!(memory.limit(Some(500)), Some(500));
        assert!((memory.used_share(None) - 0.7).abs() < 1e-6, "{}", memory.used_share(None));
    }

    #[test]
    fn version_1_is_read_and_its_absent_limit_is_none() {
        let root = tempfile::tempdir().unwrap();
        let stat = "cache 1\ntotal_cache 250\ntotal_shmem 50\n";
        let own = [("memory.limit_in_bytes", "1000\n"), ("memory.usage_in_bytes", "800\n"), ("memory.stat", stat)];
        write(&root.path().join("memory/docker"), &own);
        write(
            &root.path().join("memory"),
            &[("memory.limit_in_bytes", "9223372036854771712\n"), ("memory.usage_in_bytes", "99\n")],
        );
        let listing = "5:cpu:/docker\n4:memory,hugetlb:/docker\n0::/\n";
        let memory = Memory { cgroups: Cgroup::find(root.path(), listing), machine: None };
        assert_eq!(memory.limit(None), Some(1000));
        assert!((memory.used_share(None) - 0.6).abs() < 1e-6);
    }

    #[test]
    fn a_container_that_sees_only_its_own_cgroup_finds_it() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &[("memory.max", "4096\n"), ("memory.current", "2048\n"), ("memory.stat", "")]);
        let memory = Memory { cgroups: Cgroup::find(root.path(), "0::/kubepods/pod1/container\n"), machine: None };
        assert_eq!(memory.limit(None), Some(4096));
    }

    #[test]
    fn the_heap_of_this_process_counts_against_the_configured_limit() {
        let memory = Memory { cgroups: Vec::new(), machine: machine("MemTotal:  1024 kB\n") };
        assert_eq!(memory.limit(None), Some(1 << 20));
        let share = memory.used_share(Some(1 << 20));
        assert!(share > 0.0 && share.is_finite(), "{share}");
    }
}
