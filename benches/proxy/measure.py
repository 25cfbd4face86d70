"""CPU time and memory of process trees, from /proc, and statistics of samples."""
import array, os, re, statistics
from dataclasses import dataclass

TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid):
    """The process and all its descendants."""
    found = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as children:
                for child in children.read().split():
                    found += tree(int(child))
    except OSError:
        pass  # it has ended
    return found


def cpu_seconds(pids):
    """CPU time of these processes and their descendants."""
    return sum(process_cpu_seconds(member) for pid in pids for member in tree(pid))


def process_cpu_seconds(pid):
    try:
        # Nanoseconds on the CPU, for each thread. `stat` has only ticks of 10 ms.
        tasks = os.listdir(f"/proc/{pid}/task")
        return sum(int(read(f"/proc/{pid}/task/{task}/schedstat").split()[0]) for task in tasks) / 1e9
    except (OSError, IndexError):
        pass  # a kernel without schedstat, or a thread that has just ended
    try:
        fields = read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    except OSError:
        return 0.0


def memory_kib(pids):
    """Memory of these processes and their descendants; each shared page counts in proportion (PSS)."""
    return sum(process_memory_kib(member) for pid in pids for member in tree(pid))


def process_memory_kib(pid):
    try:
        return int(re.search(r"^Pss:\s+(\d+)", read(f"/proc/{pid}/smaps_rollup"), re.M).group(1))
    except (OSError, AttributeError):
        return 0


def read(path):
    with open(path) as file:
        return file.read()


@dataclass
class Samples:
    """Latencies of requests, and the times at which they began, in seconds of the monotonic clock."""

    begins: list
    latencies: list

    @staticmethod
    def read(path):
        values = array.array("Q")
        with open(path, "rb") as file:
            values.frombytes(file.read())
        return Samples([begin / 1e9 for begin in values[::2]], [latency / 1e9 for latency in values[1::2]])

    def overlapping(self, windows):
        """The latencies of the requests that were open during a window, and those of the others."""
        inside, outside = [], []
        for begin, latency in zip(self.begins, self.latencies):
            is_inside = any(begin <= end and begin + latency >= start for start, end in windows)
            (inside if is_inside else outside).append(latency)
        return inside, outside


def percentile(values, fraction):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]


@dataclass
class Spread:
    """The median of the rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values):
        return Spread(statistics.median(values), min(values), max(values))
