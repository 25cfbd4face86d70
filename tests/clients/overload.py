"""One region in a cgroup of 256 MiB under thousands of slow clients of every kind that `tests/soak` knows: the process is not killed,
the control plane and the probes of its peer go on, and ordinary clients are served again once the slow ones have gone.

usage: overload.py BINARY
Needs root, to make the cgroup. Without, the limit is set by the configuration, and the kernel does not enforce it.
"""
import http.client, os, re, resource, socket, struct, sys, tempfile, threading, time

from regions import Regions, eventually
from steps import Steps

BINARY, LIMIT = os.path.abspath(sys.argv[1]), 256 << 20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ROUTES = """  - { name: vital, match: { path: /vital }, data: public, home: [{ region: eu-west }], priority: high }
  - { name: all, match: {}, data: public, home: [{ region: eu-west }], priority: low }"""
# The slow clients must outlast the test, as far as the limits do not cut them off.
LIMITS = """limits: { connections_per_address: 1000000, body_rate: 0B, header_timeout: 60s, idle_timeout: 60s, request_timeout: 60s, drain: 1s }"""


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


HEADERS = b"\x82\x86\x84\x41\x01a"
LARGE = b"\x82\x86\x04\x06/large\x41\x01a"
OPEN = PREFACE + frame(4, 0, 0, struct.pack(">HI", 4, 0x7FFFFFFF)) + frame(8, 0, 0, struct.pack(">I", 0x7FFF0000))
# The first bytes of each kind of client, and the bytes that it repeats: a constant, or a function of the stream's number.
KINDS = {
    "slow head": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X%d: " % line + b"y" * 7000 + b"\r\n" for line in range(4)), b"y"),
    "slow body": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n", b"x"),
    "slow reader": (b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "keep-alive": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "upload": (b"POST /stuck HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n", b"x" * 65536),
    "HTTP/2 readers": (OPEN + b"".join(frame(1, 5, stream, LARGE) for stream in range(1, 200, 2)), b""),
    "HTTP/2 uploads": (OPEN + b"".join(frame(1, 4, stream, b"\x83" + HEADERS[1:]) for stream in range(1, 200, 2)), frame(0, 0, 1, b"x" * 1000)),
    "continuation": (PREFACE + frame(4, 0, 0) + frame(1, 1, 1, HEADERS), frame(9, 0, 1, b"\x00\x01a\x64" + b"y" * 100)),
    "settings": (PREFACE, frame(4, 0, 0) * 100),
    "ping": (PREFACE + frame(4, 0, 0), frame(6, 0, 0, b"12345678") * 100),
    "rapid reset": (PREFACE + frame(4, 0, 0), lambda stream: frame(1, 5, stream, HEADERS) + frame(3, 0, stream, struct.pack(">I", 8))),
    # A WINDOW_UPDATE of zero is a stream error, so the server resets the stream.
    "made you reset": (PREFACE + frame(4, 0, 0), lambda stream: frame(1, 5, stream, HEADERS) + frame(8, 0, stream, struct.pack(">I", 0))),
    "goes away": (b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", None),
    "empty data": (PREFACE + frame(4, 0, 0) + frame(1, 4, 1, b"\x83\x86\x84\x41\x01a"), frame(0, 0, 1) * 100),
    "TLS handshake": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b""),
}
# The clients of each kind in one round: more of those that cost little.
COUNTS = {kind: 10 for kind in KINDS} | {"slow head": 300, "slow body": 100, "slow reader": 50, "keep-alive": 100, "upload": 20, "TLS handshake": 50,
                                        "HTTP/2 readers": 2, "HTTP/2 uploads": 2}
MOST_CLIENTS = 12_000


class App:
    """Sends large responses to `/large`, reads nothing of `/stuck`, and responds to everything else at once."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        try:
            head = connection.recv(65536)
            if b"/stuck" in head:
                time.sleep(600)
            body = b"x" * (5_000_000 if b"/large" in head else 3)
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError:
            pass
        finally:
            connection.close()


class Cgroup:
    """A cgroup of either version with a limit on memory; `None` as folder if it cannot be made."""

    def __init__(self):
        self.folder, name = None, "domicile-overload-%d" % os.getpid()
        for base, limit, events in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.oom_control"),
                                    ("/sys/fs/cgroup", "memory.max", "memory.events")):
            folder = "%s/%s" % (base, name)
            try:
                os.mkdir(folder)
            except OSError:
                continue
            if os.path.exists("%s/%s" % (folder, limit)):
                open("%s/%s" % (folder, limit), "w").write(str(LIMIT))
                self.folder, self.events = folder, "%s/%s" % (folder, events)
                return
            os.rmdir(folder)

    def run(self, binary):
        """A script that runs the binary in the cgroup."""
        script = tempfile.mkdtemp() + "/run"
        open(script, "w").write('#!/bin/sh\n[ "$DOMICILE_REGION" != eu-west ] || echo $$ > "%s/cgroup.procs"\nexec "%s" "$@"\n' % (self.folder, binary))
        os.chmod(script, 0o755)
        return script

    def kills(self):
        return int(re.search(r"^oom_kill (\d+)", open(self.events).read(), re.M).group(1))

    def remove(self):
        if self.folder:
            eventually("the cgroup is empty", lambda: not open(self.folder + "/cgroup.procs").read())
            os.rmdir(self.folder)


class Crowd:
    """Slow clients on sockets that do not block; one thread drips."""

    def __init__(self):
        self.open, self.stop, self.connected, self.refused = [], False, 0, 0
        threading.Thread(target=self.drip, daemon=True).start()

    def add(self, kind, port):
        first, more = KINDS[kind]
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(0.2)
        try:
            s.connect(("127.0.0.1", port))
            s.setblocking(False)
            s.send(first)
        except OSError:
            self.refused += 1
            return s.close()
        self.connected += 1
        if more is None:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return s.close()
        self.open.append([s, more, b"", 1])

    def drip(self):
        while not self.stop:
            for client in list(self.open):
                s, more, unsent, stream = client
                try:
                    # A frame must be continued where the socket has cut it.
                    if not unsent:
                        unsent, client[3] = (more(stream) if callable(more) else more), stream + 2
                    if unsent:
                        client[2] = unsent[s.send(unsent):]
                except BlockingIOError:
                    pass
                except OSError:
                    self.open.remove(client)
                    s.close()
            time.sleep(0.05)

    def leave(self):
        self.stop = True
        time.sleep(0.2)
        for s, *_ in self.open:
            s.close()


class World:
    def __init__(self, folder):
        self.cgroup, self.app = Cgroup(), App()
        limit = "" if self.cgroup.folder else "overload: { memory: { limit: %d } }\n" % LIMIT
        binary = self.cgroup.run(BINARY) if self.cgroup.folder else BINARY
        self.regions = Regions(binary, folder, {"eu-west": [self.app.url], "us-east": [self.app.url]}, ROUTES, limit + LIMITS)
        self.process, self.ports = self.regions.processes["eu-west"], self.regions.ports["eu-west"]
        self.crowd, self.peak = Crowd(), 0.0

    def status(self, path, port="http"):
        c = http.client.HTTPConnection("127.0.0.1", self.ports[port], timeout=5)
        try:
            c.request("GET", path)
            return c.getresponse().status
        except TimeoutError:
            return "waits"
        except (OSError, http.client.HTTPException):
            return None
        finally:
            c.close()

    def number(self, metric, region="eu-west"):
        found = re.search(r"^%s (\S+)" % re.escape(metric), self.regions.metrics(region), re.M)
        return float(found.group(1)) if found else None

    def pressure(self):
        self.peak = max(self.peak, self.number('domicile_overload_usage{resource="memory"}') or 0)
        return self.number("domicile_overload_pressure")


def ordinary_clients_are_served(world):
    assert [world.status("/"), world.status("/vital")] == [200, 200]


def priorities_decide_between_the_thresholds(world):
    """Adds clients whose memory does not grow after they were accepted, in smaller steps near the first threshold."""
    while not world.pressure() and world.crowd.connected < MOST_CLIENTS:
        for _ in range(200 if world.peak < 0.6 else 20):
            world.crowd.add("slow head", world.ports["http"])
    eventually("the guard sheds load", lambda: world.pressure() > 0)
    print("       %d clients, at a memory of %.0f %%" % (world.crowd.connected, world.peak * 100))
    # Each worker takes the pressure over within 100 ms.
    eventually("every worker refuses low priority", lambda: all(world.status("/") == 503 for _ in range(16)))
    for _ in range(10):
        before, low, vital, after = world.pressure(), world.status("/"), world.status("/vital"), world.pressure()
        assert (before, low, vital, after) in ((1, 503, 200, 1), (1, 503, 200, 2), (2, 503, 200, 2)), (before, low, vital, after)


def the_control_plane_and_the_probes_go_on_in_every_flood(world):
    until, most = time.monotonic() + 20, 0
    while time.monotonic() < until:
        for kind, count in COUNTS.items():
            for _ in range(max(1, count // 10)):
                world.crowd.add(kind, world.ports["http"])
        most = max(most, world.pressure())
        assert world.process.poll() is None, "the process has ended"
        assert world.status("/livez", "admin") == 200
        assert world.number('domicile_region_health{region="eu-west",state="up"}', "us-east") == 1, "the peer must see this region up"
    assert most == 3, "the second threshold was not reached"


def ordinary_clients_are_served_again(world):
    world.crowd.leave()
    eventually("the pressure falls", lambda: world.pressure() == 0)
    eventually("both are served", lambda: [world.status("/"), world.status("/vital")] == [200, 200])
    print("       peak of the memory: %.0f %% of %d MiB" % (world.peak * 100, LIMIT >> 20))


def the_kernel_has_killed_nothing(world):
    assert world.process.poll() is None
    assert not world.cgroup.folder or world.cgroup.kills() == 0
    if not world.cgroup.folder:
        print("       no cgroup can be made here: only the configured limit was tested")


def main():
    # The clients need thousands of descriptors.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    steps = (ordinary_clients_are_served, priorities_decide_between_the_thresholds, the_control_plane_and_the_probes_go_on_in_every_flood,
             ordinary_clients_are_served_again, the_kernel_has_killed_nothing)
    outcome = Steps("overload", len(steps))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        world = World(folder)
        try:
            outcome.attempt_all(steps, world)
        finally:
            world.crowd.leave()
            world.regions.stop()
            world.cgroup.remove()
    outcome.end()


main()
