"""What one connection may hold in memory, in real processes: clients that ask for much and read none of it, and app servers that take
none of what is sent to them. Somebody else is served all the while.

usage: memory.py BINARY
"""
import http.client, os, shutil, socket, struct, sys, tempfile, threading, time

from regions import PATIENCE, Regions, eventually

BINARY = os.path.abspath(sys.argv[1])
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
CONNECTIONS, STREAMS, MIB = 10, 100, 1 << 20
PIECE, PIECES = b"x" * 16000, 250
LARGE = PIECES * len(PIECE)
# As wide as may be.
WIDE = struct.pack(">HI", 4, 0x7FFFFFFF)

ROUTES = """  - { name: far, match: { path: "/far/**" }, data: public, home: [{ region: us-east }] }
  - { name: all, match: {}, data: public, home: [{ region: eu-west }] }"""
# Nobody is cut off for being slow, for what is held is to be seen; until the end, when nobody is waited for.
MORE = "limits: { body_rate: 0B, idle_timeout: 300s, request_timeout: 300s, response_timeout: 300s, body: unlimited, drain: 1s }"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def frames_of(connection):
    """The frames that come, to the end of the connection."""
    come = connection.makefile("rb")
    while len(head := come.read(9)) == 9:
        payload = come.read(int.from_bytes(head[:3], "big"))
        yield head[3], head[4], int.from_bytes(head[5:], "big"), payload


def settings_of(payload):
    return dict(struct.unpack_from(">HI", payload, at) for at in range(0, len(payload), 6))


def send_large(connection):
    for _ in range(PIECES):
        connection.sendall(PIECE)


class Windows:
    """How much may be sent on the streams of a connection."""

    def __init__(self):
        self.connection, self.initial, self.streams = 65535, 65535, {}

    def hear(self, kind, flags, stream, payload):
        if kind == SETTINGS and not flags & ACK:
            self.initial = settings_of(payload).get(4, self.initial)
        elif kind == WINDOW_UPDATE and stream == 0:
            self.connection += int.from_bytes(payload, "big")
        elif kind == WINDOW_UPDATE:
            self.streams[stream] = self.streams.get(stream, 0) + int.from_bytes(payload, "big")

    def take(self, stream):
        """What of a frame's worth may be sent now."""
        size = max(0, min(len(PIECE), self.connection, self.initial + self.streams.get(stream, 0)))
        self.connection -= size
        self.streams[stream] = self.streams.get(stream, 0) - size
        return size


class App:
    """Answers what is asked for with more than anyone reads, and reads none of what it is sent. `seen` counts requests."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port, self.seen = self.listener.getsockname()[1], 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.try_to_serve, args=(connection,), daemon=True).start()

    def try_to_serve(self, connection):
        try:
            self.serve(connection)
        except OSError:
            pass


class Http1App(App):
    def serve(self, connection):
        while True:
            # No byte of a body is read with the head.
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (byte := connection.recv(1)):
                    return
                head += byte
            self.seen += 1
            if head.startswith(b"POST"):
                time.sleep(10 * PATIENCE)
            elif b"/pieces" in head:
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for _ in range(LARGE // 1000):
                    connection.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
                connection.sendall(b"0\r\n\r\n")
            else:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
                send_large(connection)


class Http2App(App):
    def serve(self, connection):
        connection.recv(len(PREFACE), socket.MSG_WAITALL)
        connection.sendall(frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 10000)))
        windows, left = Windows(), {}
        for kind, flags, stream, payload in frames_of(connection):
            windows.hear(kind, flags, stream, payload)
            if kind in (SETTINGS, PING) and not flags & ACK:
                connection.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind == HEADERS:
                self.seen += 1
                left[stream] = LARGE
                connection.sendall(frame(HEADERS, END_HEADERS, stream, b"\x88"))
            for stream in [stream for stream in left if left[stream]]:
                while size := min(windows.take(stream), left[stream]):
                    left[stream] -= size
                    connection.sendall(frame(DATA, 0 if left[stream] else END_STREAM, stream, PIECE[:size]))


def head(method, path):
    return {b"GET": b"\x82", b"POST": b"\x83"}[method] + b"\x86\x04" + bytes([len(path)]) + path + b"\x01\x09localhost"


def connect(port):
    connection = socket.socket()
    # The kernel is to keep little: what is not read is to stay with the process.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection.connect(("127.0.0.1", port))
    return connection


def ask_http2(port, method, path):
    """A connection with as many requests as it may have, of whose answers nothing is read."""
    connection = connect(port)
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0, WIDE) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x7FFF0000)))
    streams = range(1, 2 * STREAMS, 2)
    for stream in streams:
        connection.sendall(frame(HEADERS, END_HEADERS | (END_STREAM if method == b"GET" else 0), stream, head(method, path)))
    if method == b"POST":
        threading.Thread(target=upload_http2, args=(connection, streams), daemon=True).start()
    return connection


def upload_http2(connection, streams):
    """Sends whatever it may on each stream."""
    windows = Windows()
    try:
        for kind, flags, stream, payload in frames_of(connection):
            windows.hear(kind, flags, stream, payload)
            if kind in (SETTINGS, PING) and not flags & ACK:
                connection.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            for stream in streams:
                while size := windows.take(stream):
                    connection.sendall(frame(DATA, 0, stream, PIECE[:size]))
    except OSError:
        pass


def ask_http1(port, method, path):
    connection = connect(port)
    length = LARGE if method == b"POST" else 0
    connection.sendall(b"%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (method, path, length))
    if length:
        threading.Thread(target=upload_http1, args=(connection,), daemon=True).start()
    return connection


def upload_http1(connection):
    try:
        send_large(connection)
    except OSError:
        pass


def memory_of(process):
    return int(open(f"/proc/{process.pid}/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def settled(measure):
    """What does not grow any more."""
    last, since, deadline = measure(), time.monotonic(), time.monotonic() + PATIENCE
    while time.monotonic() - since < 2:
        assert time.monotonic() < deadline, "memory grows without end"
        time.sleep(0.1)
        if (now := measure()) > last + MIB // 4:
            last, since = now, time.monotonic()
    return measure()


def somebody_else(regions, path):
    """Reads a whole answer."""
    client = http.client.HTTPConnection("127.0.0.1", regions.ports["eu-west"]["http"], timeout=PATIENCE)
    client.request("GET", path)
    assert len(client.getresponse().read()) == LARGE, "somebody else was not served"


def hold(name, ask, method, path, app, connections, requests):
    """How much a connection costs, in the region that was asked and in the one that owns the request."""
    # `connection_buffer`, and 160 KiB for each request: what the README promises.
    most = 4 * MIB + requests * (160 << 10)
    folder = tempfile.mkdtemp(prefix="domicile-memory-")
    app, far = app(), Http1App()
    scheme = "h2c" if isinstance(app, Http2App) else "http"
    upstreams = {"eu-west": [f"{scheme}://127.0.0.1:{app.port}"], "us-east": [f"http://127.0.0.1:{far.port}"]}
    regions = Regions(BINARY, folder, upstreams, ROUTES, MORE)
    try:
        processes = list(regions.processes.values())
        before = [settled(lambda: memory_of(process)) for process in processes]
        port = regions.ports["eu-west"]["http"]
        held = [ask(port, method, path) for _ in range(connections)]
        eventually(f"{name}: all are asked for", lambda: app.seen + far.seen >= connections * requests)
        costs = [(settled(lambda: memory_of(process)) - was) / connections for process, was in zip(processes, before)]
        if method == b"GET":
            somebody_else(regions, path.decode().replace("pieces", "a"))
        print(f"{name}: {costs[0] / MIB:.2f} MiB a connection, and {costs[1] / MIB:.2f} MiB in the other region", flush=True)
        assert max(costs) < most, f"{name}: a connection may cost {most / MIB:.2f} MiB"
        for connection in held:
            connection.shutdown(socket.SHUT_RDWR)
    finally:
        assert regions.stop() == [0, 0], regions.log("eu-west")[-2000:]
        shutil.rmtree(folder)


if __name__ == "__main__":
    many = (CONNECTIONS, STREAMS)
    hold("answers over HTTP/1.1, to HTTP/2", ask_http2, b"GET", b"/near/a", Http1App, *many)
    hold("answers in small pieces, to HTTP/2", ask_http2, b"GET", b"/near/pieces", Http1App, *many)
    hold("answers over HTTP/2, to HTTP/2", ask_http2, b"GET", b"/near/a", Http2App, *many)
    hold("answers of another region, to HTTP/2", ask_http2, b"GET", b"/far/a", Http1App, *many)
    hold("uploads by HTTP/2", ask_http2, b"POST", b"/near/a", Http1App, *many)
    hold("uploads by HTTP/2 to another region", ask_http2, b"POST", b"/far/a", Http1App, *many)
    hold("answers of another region, to HTTP/1.1", ask_http1, b"GET", b"/far/a", Http1App, 50, 1)
    hold("uploads by HTTP/1.1 to another region", ask_http1, b"POST", b"/far/a", Http1App, 50, 1)
