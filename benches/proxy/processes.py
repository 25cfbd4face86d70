"""The processes of a run: started on chosen CPUs, with free ports, and ended in every case."""
import http.client, os, random, resource, signal, socket, subprocess, time
from inputs.world import HOST

START_SECONDS = 30
# Domicile drains for seconds, until its peers know that it ends; nothing here depends on that.
STOP_SECONDS = 1


class Failed(Exception):
    """A proxy or a tool did not do its part; the text says which, and how."""


class Processes:
    """A context whose processes end with it. Each is the leader of a group, so that its children end as well."""

    def __init__(self, folder):
        self.folder, self.running = folder, []

    def __enter__(self):
        return self

    def start(self, name, command, cpus, **more):
        with open(f"{self.folder}/{name}.log", "ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, cpus),
                **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **more},
            )
        self.running.append(process)
        return process

    def log(self, name):
        with open(f"{self.folder}/{name}.log", errors="replace") as log:
            return log.read()

    def __exit__(self, *_):
        # A second Ctrl-C must not interrupt the clean-up.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in self.running:
            send(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in self.running:
            try:
                process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
            # Also reaches a child that outlived its parent.
            send(process, signal.SIGKILL, even_if_ended=True)
            process.wait()
        self.running.clear()
        signal.signal(signal.SIGINT, before)


def send(process, number, even_if_ended=False):
    if process.poll() is None or even_if_ended:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass  # the whole group has ended


def wait_until_serving(process, name, processes, is_serving):
    deadline = time.monotonic() + START_SECONDS
    while not is_serving():
        last = (processes.log(name).strip().splitlines() or ["nothing in its log"])[-1]
        if process.poll() is not None:
            raise Failed(f"{name} ended at its start: {last}")
        if time.monotonic() > deadline:
            raise Failed(f"{name} does not serve after {START_SECONDS} s: {last}")
        time.sleep(0.05)


def answers(port, path, headers):
    """Whether a request gets the response 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"Host": HOST, **headers})
        response = connection.getresponse()
        response.read()
        return response.status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Ports:
    """Free ports below the range from which the kernel takes the ports of clients, so that no client takes one before its
    server listens."""

    def __init__(self):
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            end = int(file.read().split()[0])
        self.candidates = list(range(10_000, max(end, 20_000)))
        random.shuffle(self.candidates)

    def free(self):
        while self.candidates:
            port = self.candidates.pop()
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                    return port
                except OSError:
                    continue
        raise Failed("no port is free")


class Cpus:
    """The CPUs for the proxy and for the load. The proxy's workers get their own CPUs if there are enough for that."""

    def __init__(self):
        self.all = sorted(os.sched_getaffinity(0))

    def split(self, workers):
        if len(self.all) > workers:
            return set(self.all[:workers]), {self.all[workers]}
        return self.shared()

    def shared(self):
        return set(self.all), set(self.all)


def raise_descriptor_limit():
    """Sets the limit to the maximum, for this process and its children, and returns it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
