"""The memory that one connection uses in real processes: clients request large responses and read nothing, and app servers do not
read uploads. Each experiment also checks that another client is served.

usage: memory.py BINARY [NUMBER ...]
Runs all experiments, or only those with the given numbers.
"""
import base64, hashlib, http.client, itertools, os, re, shutil, socket, struct, sys, tempfile, threading, time

from regions import TIMEOUT, Regions, eventually

BINARY, ONLY, NUMBERS = os.path.abspath(sys.argv[1]), set(map(int, sys.argv[2:])), itertools.count(1)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
KIB, MIB = 1 << 10, 1 << 20
# The number of bytes per write, and the length of a response, which exceeds every window in this file.
BATCH, LARGE = 16000, 5000000
# SETTINGS_INITIAL_WINDOW_SIZE at its maximum.
WIDE = struct.pack(">HI", 4, 0x7FFFFFFF)

ROUTES = """  - { name: far, match: { path: "/far/**" }, data: public, home: [{ region: us-east }] }
  - { name: all, match: {}, data: public, home: [{ region: eu-west }] }"""
# Timeouts are long and no minimum rate applies, so that slow connections stay open while memory is measured. The drain is short.
LIMITS = "body_rate: 0B, idle_timeout: 300s, request_timeout: 300s, response_timeout: 300s, tunnel_idle: 300s, body: unlimited, drain: 1s"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def frames_of(connection):
    """Yields the received frames, until the connection ends."""
    reader = connection.makefile("rb")
    while len(head := reader.read(9)) == 9:
        payload = reader.read(int.from_bytes(head[:3], "big"))
        yield head[3], head[4], int.from_bytes(head[5:], "big"), payload


def settings_of(payload):
    return dict(struct.unpack_from(">HI", payload, at) for at in range(0, len(payload), 6))


def data_frames(stream, size, chunk_size):
    """DATA frames of `size` bytes in total, with at most `chunk_size` bytes each."""
    whole, rest = divmod(size, chunk_size)
    return frame(DATA, 0, stream, b"x" * chunk_size) * whole + (frame(DATA, 0, stream, b"x" * rest) if rest else b"")


class Windows:
    """The send windows of a connection and its streams."""

    def __init__(self):
        self.connection, self.initial, self.streams = 65535, 65535, {}

    def update(self, kind, flags, stream, payload):
        if kind == SETTINGS and not flags & ACK:
            self.initial = settings_of(payload).get(4, self.initial)
        elif kind == WINDOW_UPDATE and stream == 0:
            self.connection += int.from_bytes(payload, "big")
        elif kind == WINDOW_UPDATE:
            self.streams[stream] = self.streams.get(stream, 0) + int.from_bytes(payload, "big")

    def take(self, stream):
        """Takes as much of a batch from the windows as they allow, and returns the size."""
        size = max(0, min(BATCH, self.connection, self.initial + self.streams.get(stream, 0)))
        self.connection -= size
        self.streams[stream] = self.streams.get(stream, 0) - size
        return size


class App:
    """Responds with large bodies in chunks of `chunk_size` bytes, and reads no request bodies.

    Counts the requests and the response bytes that it sends. `faults` has the errors of connections that failed.
    """

    def __init__(self, chunk_size):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port, self.chunk_size, self.seen, self.sent, self.faults = self.listener.getsockname()[1], chunk_size, 0, 0, []
        self.counting = threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.try_to_serve, args=(connection,), daemon=True).start()

    def try_to_serve(self, connection):
        try:
            self.serve(connection)
        except OSError as fault:
            self.faults.append(fault)

    def count(self, seen=0, sent=0):
        with self.counting:
            self.seen, self.sent = self.seen + seen, self.sent + sent


class Http1App(App):
    def serve(self, connection):
        while True:
            # Read single bytes, so that no byte of a body is read with the head.
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (byte := connection.recv(1)):
                    return
                head += byte
            self.count(seen=1)
            if b"/silent" in head:
                return time.sleep(10 * TIMEOUT)
            if b"/tunnel" in head:
                key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head).group(1)
                accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
                connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n")
                connection.sendall(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
                self.send(connection, lambda size: b"x" * size)
                return time.sleep(10 * TIMEOUT)
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            self.send(connection, self.chunks)
            connection.sendall(b"0\r\n\r\n")

    def chunks(self, size):
        chunk = b"%x\r\n" % self.chunk_size + b"x" * self.chunk_size + b"\r\n"
        return chunk * (size // self.chunk_size)

    def send(self, connection, batch_of):
        size = BATCH // self.chunk_size * self.chunk_size
        for _ in range(LARGE // size):
            connection.sendall(batch_of(size))
            self.count(sent=size)


class Http2App(App):
    def serve(self, connection):
        connection.recv(len(PREFACE), socket.MSG_WAITALL)
        connection.sendall(frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 10000)))
        windows, left = Windows(), {}
        for kind, flags, stream, payload in frames_of(connection):
            windows.update(kind, flags, stream, payload)
            if kind in (SETTINGS, PING) and not flags & ACK:
                connection.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind == HEADERS:
                self.count(seen=1)
                left[stream] = LARGE
                connection.sendall(frame(HEADERS, END_HEADERS, stream, b"\x88"))
            for stream in list(left):
                while size := min(windows.take(stream), left[stream]):
                    connection.sendall(data_frames(stream, size, self.chunk_size))
                    self.count(sent=size)
                    left[stream] -= size
                if not left[stream]:
                    connection.sendall(frame(DATA, END_STREAM, stream))
                    del left[stream]


def field(name, value):
    """A header field as an HPACK literal without indexing (RFC 7541 section 6.2.2)."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def head(method, path):
    block = b"\x86\x04" + bytes([len(path)]) + path + b"\x01\x09localhost"
    if method == b"CONNECT":
        return block + field(b":method", method) + field(b":protocol", b"websocket") + field(b"sec-websocket-version", b"13")
    return {b"GET": b"\x82", b"POST": b"\x83"}[method] + block


def connect(port):
    connection = socket.socket()
    # Small kernel buffers, so that unread data stays in the process that is measured.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection.connect(("127.0.0.1", port))
    return connection


def ask_http2(port, method, path, requests):
    """Opens a connection with this number of requests, and reads no response."""
    connection = connect(port)
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0, WIDE) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x7FFF0000)))
    streams = range(1, 2 * requests, 2)
    for stream in streams:
        connection.sendall(frame(HEADERS, END_HEADERS | (END_STREAM if method == b"GET" else 0), stream, head(method, path)))
    if method == b"POST":
        threading.Thread(target=upload_http2, args=(connection, streams), daemon=True).start()
    return connection


def upload_http2(connection, streams):
    """Sends as much on each stream as the windows allow."""
    windows = Windows()
    try:
        for kind, flags, stream, payload in frames_of(connection):
            windows.update(kind, flags, stream, payload)
            if kind in (SETTINGS, PING) and not flags & ACK:
                connection.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            for stream in streams:
                while size := windows.take(stream):
                    connection.sendall(data_frames(stream, size, 1000))
    except OSError:
        # The experiment closes the connection at the end.
        pass


def ask_http1(port, method, path, requests):
    connection = connect(port)
    assert requests == 1
    length = LARGE if method == b"POST" else 0
    connection.sendall(b"%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (method, path, length))
    if length:
        threading.Thread(target=upload_http1, args=(connection,), daemon=True).start()
    return connection


def upload_http1(connection):
    try:
        connection.sendall(b"x" * LARGE)
    except OSError:
        # The experiment closes the connection at the end.
        pass


def memory_of(process):
    return int(open(f"/proc/{process.pid}/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def settled(processes):
    """The memory of each process, once none of them has grown for three seconds."""
    measure = lambda: [memory_of(process) for process in processes]
    last, since, deadline = measure(), time.monotonic(), time.monotonic() + TIMEOUT
    while time.monotonic() - since < 3:
        assert time.monotonic() < deadline, "memory does not stop growing"
        time.sleep(0.1)
        now = measure()
        if any(size > was + MIB // 4 for size, was in zip(now, last)):
            last, since = now, time.monotonic()
    return measure()


def serves_another_client(regions, path):
    """Asserts that another client gets a complete response."""
    client = http.client.HTTPConnection("127.0.0.1", regions.ports["eu-west"]["http"], timeout=TIMEOUT)
    client.request("GET", path)
    read = len(client.getresponse().read())
    assert LARGE - BATCH < read <= LARGE, f"another client was not served: {read} bytes"


def hold(name, ask, method, path, app, connections, requests, least, chunk_size=BATCH, buffer=4 * MIB, most=None):
    """Measures the memory of a connection, in the region that the client is connected to and in the other one.

    The app must send at least `least` bytes of each response on average, because a connection without data would use no memory.
    """
    number = next(NUMBERS)
    if ONLY and number not in ONLY:
        return
    # docs/http.md promises at most `connection_buffer` and 192 KiB for each request.
    most = most or buffer + requests * 192 * KIB
    folder = tempfile.mkdtemp(prefix="domicile-memory-")
    app, far = app(chunk_size), Http1App(chunk_size)
    scheme = "h2c" if isinstance(app, Http2App) else "http"
    upstreams = {"eu-west": [f"{scheme}://127.0.0.1:{app.port}"], "us-east": [f"http://127.0.0.1:{far.port}"]}
    limits = f"limits: {{ {LIMITS}, connection_buffer: {buffer // MIB}MiB }}"
    regions = Regions(BINARY, folder, upstreams, ROUTES, limits)
    try:
        processes = list(regions.processes.values())
        before = settled(processes)
        port = regions.ports["eu-west"]["http"]
        held = [ask(port, method, path, requests) for _ in range(connections)]
        eventually(f"{name}: all requests have arrived", lambda: app.seen + far.seen >= connections * requests)
        eventually(f"{name}: enough response data is sent", lambda: app.sent + far.sent >= connections * requests * least)
        costs = [(now - was) / connections for now, was in zip(settled(processes), before)]
        sent = (app.sent + far.sent) / connections
        assert not app.faults + far.faults, app.faults + far.faults
        print(f"{number} {name}: {costs[0] / MIB:.2f} MiB per connection, and {costs[1] / MIB:.2f} MiB in the other region,"
              f" of {sent / MIB:.1f} MiB sent", flush=True)
        assert max(costs) > requests * 8 * KIB, f"{name}: almost nothing was buffered"
        assert max(costs) < most, f"{name}: a connection may use at most {most / MIB:.2f} MiB"
        serves_another_client(regions, path.decode().replace("silent", "a").replace("tunnel", "a"))
        for connection in held:
            connection.shutdown(socket.SHUT_RDWR)
    finally:
        assert regions.stop() == [0, 0], regions.log("eu-west")[-2000:]
        shutil.rmtree(folder)


if __name__ == "__main__":
    many, narrow, get, post = (10, 100), 64 * KIB, b"GET", b"POST"
    hold("HTTP/1.1 responses to HTTP/2 clients", ask_http2, get, b"/near/a", Http1App, *many, least=16 * KIB)
    hold("the same in tiny chunks", ask_http2, get, b"/near/a", Http1App, *many, least=4 * KIB, chunk_size=20)
    hold("HTTP/2 responses to HTTP/2 clients", ask_http2, get, b"/near/a", Http2App, *many, least=narrow)
    hold("the same in small frames", ask_http2, get, b"/near/a", Http2App, *many, least=narrow, chunk_size=1000)
    hold("the same in medium frames", ask_http2, get, b"/near/a", Http2App, *many, least=narrow, chunk_size=4096)
    hold("the same in tiny frames", ask_http2, get, b"/near/a", Http2App, *many, least=narrow, chunk_size=20)
    hold("the same with a large buffer", ask_http2, get, b"/near/a", Http2App, *many, least=narrow, buffer=16 * MIB)
    hold("responses of another region to HTTP/2 clients", ask_http2, get, b"/far/a", Http1App, *many, least=narrow)
    hold("the same in tiny chunks", ask_http2, get, b"/far/a", Http1App, *many, least=narrow, chunk_size=20)
    hold("HTTP/2 uploads", ask_http2, post, b"/near/silent", Http1App, *many, least=0)
    hold("HTTP/2 uploads to another region", ask_http2, post, b"/far/silent", Http1App, *many, least=0)
    hold("responses before the end of uploads", ask_http2, post, b"/near/a", Http2App, *many, least=narrow)
    hold("HTTP/2 tunnels", ask_http2, b"CONNECT", b"/near/tunnel", Http1App, *many, least=16 * KIB)
    hold("HTTP/2 tunnels to another region", ask_http2, b"CONNECT", b"/far/tunnel", Http1App, *many, least=16 * KIB, chunk_size=20)
    one = {"connections": 50, "requests": 1, "most": 2 * MIB}
    hold("responses of another region to HTTP/1.1 clients", ask_http1, get, b"/far/a", Http1App, least=MIB, **one)
    hold("HTTP/1.1 uploads to another region", ask_http1, post, b"/far/silent", Http1App, least=0, **one)
    # Fewer measurements than these is a failure, so that none is lost unnoticed.
    count, expected = next(NUMBERS) - 1, 16
    if count != expected or not ONLY <= set(range(1, expected + 1)):
        sys.exit("%d of %d measurements exist, and %s were requested" % (count, expected, sorted(ONLY) or "all"))
