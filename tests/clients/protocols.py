#!/usr/bin/env python3
"""Common protocols between real clients and servers, through two regions: WebSocket, event streams, gRPC, curl,
Node's fetch and a browser. Also scans the TLS configuration.

usage: protocols.py BINARY
needs: python3-aiohttp, python3-websockets, python3-grpcio, curl, nodejs, chromium, sslscan (Debian's packages)
"""
import asyncio, gzip, http.client, json, os, queue, shutil, signal, socket, ssl, subprocess, sys, tempfile, threading, time

import aiohttp.web, grpc, websockets

import grpc_server
from regions import TIMEOUT, Regions, eventually, free_port
from steps import Steps

BINARY = os.path.abspath(sys.argv[1])
# Fewer steps than these is a failure, so that none is lost unnoticed.
STEPS = 10
PAGE = """<!doctype html><title>page</title><script>
const results = {};
const report = (name, value) => { results[name] = value; if (Object.keys(results).length == 3) fetch("/report", {method: "POST", body: JSON.stringify(results)}); };
const socket = new WebSocket(`ws://${location.host}/socket`);
socket.onopen = () => socket.send("from the browser");
socket.onmessage = event => report("socket", event.data);
const events = new EventSource("/events");
const received = [];
events.onmessage = event => { received.push(event.data); if (received.length == 3) { events.close(); report("events", received.join()); } };
fetch("/json").then(answer => answer.json()).then(value => report("fetch", value.region));
</script>"""


class App:
    """An app server of a region: pages, event streams, WebSockets, large files."""

    def __init__(self, region):
        self.region, self.port, self.reports, self.served = region, free_port(), [], []
        self.release = threading.Event()
        self.page, self.allowed_origin = PAGE, None
        self.file = os.path.join(tempfile.mkdtemp(), "file")
        open(self.file, "wb").write(bytes(range(256)) * 4096)
        started = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self.run(started)), daemon=True).start()
        assert started.wait(TIMEOUT)

    async def run(self, started):
        app = aiohttp.web.Application(client_max_size=1 << 30)
        app.router.add_get("/socket", self.socket)
        app.router.add_get("/events", self.events)
        app.router.add_get("/file", lambda request: self.note(request, aiohttp.web.FileResponse(self.file)))
        app.router.add_get("/packed", self.packed)
        app.router.add_get("/page", lambda request: self.note(request, aiohttp.web.Response(text=self.page, content_type="text/html")))
        app.router.add_get("/json", lambda request: self.note(request, aiohttp.web.json_response({"region": self.region})))
        app.router.add_route("*", "/account/{number}", self.account)
        app.router.add_post("/report", self.report)
        app.router.add_post("/upload", self.upload)
        app.router.add_get("/healthz", lambda request: self.note(None, aiohttp.web.Response(text="ok")))
        runner = aiohttp.web.AppRunner(app)
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", self.port).start()
        started.set()
        await asyncio.Event().wait()

    async def note(self, request, answer):
        if request is not None:
            self.served.append(request.path)
        return answer

    async def socket(self, request):
        self.served.append(request.path)
        answer = aiohttp.web.WebSocketResponse(protocols=["chat"], compress=True)
        await answer.prepare(request)
        async for message in answer:
            if message.type == aiohttp.WSMsgType.TEXT:
                await answer.send_str(self.region + ": " + message.data)
            elif message.type == aiohttp.WSMsgType.BINARY:
                await answer.send_bytes(message.data)
        return answer

    async def events(self, request):
        self.served.append(request.path)
        answer = aiohttp.web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await answer.prepare(request)
        for word in ("one", "two", "three"):
            await answer.write(b"data: %s\n\n" % word.encode())
            await asyncio.sleep(0.05)
        while not self.release.is_set():
            await asyncio.sleep(0.01)
        return answer

    async def packed(self, request):
        body = gzip.compress(b"packed by the app", mtime=0)
        return await self.note(request, aiohttp.web.Response(body=body, headers={"Content-Encoding": "gzip", "Date": "Sun, 06 Nov 1994 08:49:37 GMT", "Age": "7"}))

    async def account(self, request):
        self.served.append(request.method + " " + request.path)
        allowed = {"Access-Control-Allow-Origin": self.allowed_origin} if self.allowed_origin else {}
        return aiohttp.web.json_response({"region": self.region}, headers=allowed)

    async def report(self, request):
        self.reports.append(await request.json())
        return aiohttp.web.Response(text="thanks")

    async def upload(self, request):
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
        return await self.note(request, aiohttp.web.json_response({"region": self.region, "bytes": size}))


# Clients connect to us-east, and eu-west owns every request.
ROUTES = "  - { name: all, match: {}, data: public, home: [{ region: eu-west }], body: unlimited }"


def curl(*arguments):
    return subprocess.run(["curl", "-sS", "--max-time", "60", *arguments], check=True, capture_output=True, timeout=TIMEOUT).stdout


def websockets_talk(world, app):
    context = ssl.create_default_context(cafile=world.authority)

    async def talk(url, **more):
        async with websockets.connect(url + "/socket", subprotocols=["chat"], max_size=1 << 24, **more) as connection:
            assert connection.subprotocol == "chat"
            for word in ("hello", "ä" * 10_000):
                await connection.send(word)
                assert await connection.recv() == "eu-west: " + word
            await connection.send(os.urandom(3_000_000))
            assert len(await connection.recv()) == 3_000_000
            await asyncio.wait_for(await connection.ping(), TIMEOUT)

    for region in ("eu-west", "us-east"):
        asyncio.run(talk(world.url(region, "ws")))
        asyncio.run(talk(world.url(region, "wss"), ssl=context))


def event_streams_are_not_buffered(world, app):
    for region in ("eu-west", "us-east"):
        app.release.clear()
        c = http.client.HTTPConnection("127.0.0.1", world.ports[region]["http"], timeout=TIMEOUT)
        c.request("GET", "/events")
        answer = c.getresponse()
        # The stream is still open, so these events were not buffered.
        assert [answer.readline() for _ in range(6)][::2] == [b"data: one\n", b"data: two\n", b"data: three\n"]
        app.release.set()
        assert answer.read() == b""


def curl_does_everything(world, app):
    url = world.url("us-east")
    whole = open(app.file, "rb").read()
    assert curl(url + "/file") == whole
    assert curl("-r", "100-199", url + "/file") == whole[100:200]
    head = curl("-I", url + "/file").decode().lower()
    assert "content-length: 1048576" in head and head.startswith("http/1.1 200"), head
    packed = curl("-i", url + "/packed")
    assert gzip.decompress(packed.split(b"\r\n\r\n", 1)[1]) == b"packed by the app" and b"age: 7" in packed and b"06 Nov 1994" in packed, packed
    size = 50_000_000
    body = world.folder + "/body"
    open(body, "wb").truncate(size)
    for more in (["--http1.1"], ["--http2"], ["--http1.1", "-H", "Transfer-Encoding: chunked"], ["--http1.1", "-H", "Expect: 100-continue"]):
        output = curl("--cacert", world.authority, *more, "-w", "\\n%{http_version}", "--data-binary", "@" + body, world.url("us-east", "https", "localhost") + "/upload")
        answer, version = output.decode().rsplit("\n", 1)
        assert json.loads(answer) == {"region": "eu-west", "bytes": size}, (more, answer)
        assert version == ("2" if "--http2" in more else "1.1"), (more, version)


def nodes_fetch_streams(world, app):
    script = """
        const [url] = process.argv.slice(1);
        const get = await fetch(url + "/json");
        if ((await get.json()).region !== "eu-west") throw "wrong region";
        const packed = await fetch(url + "/packed");
        if (await packed.text() !== "packed by the app") throw "not decompressed";
        let left = 200;
        const body = new ReadableStream({ pull(c) { left-- > 0 ? c.enqueue(new Uint8Array(10000)) : c.close(); } });
        const upload = await fetch(url + "/upload", { method: "POST", body, duplex: "half" });
        if ((await upload.json()).bytes !== 2000000) throw "incomplete upload";
        const many = await Promise.all(Array.from({ length: 100 }, () => fetch(url + "/json").then(answer => answer.status)));
        if (!many.every(status => status === 200)) throw many.join();
        const stop = new AbortController();
        const events = await fetch(url + "/events", { signal: stop.signal });
        const { value } = await events.body.getReader().read();
        if (!new TextDecoder().decode(value).startsWith("data: one")) throw "no event";
        stop.abort();
    """
    app.release.clear()
    subprocess.run(["node", "--input-type=module", "-e", script, world.url("us-east")], check=True, capture_output=True, timeout=TIMEOUT)
    app.release.set()


def a_browser_loads_a_page_with_a_socket_and_events(world, app):
    app.release.clear()
    try:
        run_browser(world.folder + "/browser", world.url("us-east") + "/page", lambda: app.reports)
    finally:
        app.release.set()
    assert app.reports[0] == {"socket": "eu-west: from the browser", "events": "one,two,three", "fetch": "eu-west"}, app.reports


CROSS_ORIGIN_PAGE = """<!doctype html><title>cross-origin page</title><script>
const results = {};
const write = (name, url) => fetch(url + "/account/1?secret=x", {method: "PUT", headers: {"x-user-id": "alice", "content-type": "application/json"}, body: "{}"})
  .then(answer => answer.json()).then(value => value.region, error => "refused by the browser").then(value => { results[name] = value; });
Promise.all([write("home", "HOME"), write("abroad", "ABROAD"), fetch("HOME/account/2", {credentials: "include"}).catch(() => 0)])
  .then(() => fetch("/report", {method: "POST", body: JSON.stringify(results)}));
</script>"""


def run_browser(folder, url, until):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--user-data-dir=" + folder, "--remote-debugging-port=0"]
    browser = subprocess.Popen([chromium, *flags, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        eventually("the page reports", until)
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()


def a_browser_writes_restricted_data_across_origins(folder):
    """A page of another origin writes to a restricted route. Its browser asks first (CORS), without naming the user."""
    page, home, abroad = App("page"), App("eu-west"), App("us-east")
    origin = "http://127.0.0.1:%d" % page.port
    open(folder + "/users.csv", "w").write("user,home\nalice,eu-west\n")
    more = f"""client_address: {{ trust: [127.0.0.0/8] }}
cors: {{ origins: ["{origin}"] }}
audit: {{ directory: "{folder}/ledger-{{region}}" }}
users: {{ key: [{{ header: x-user-id }}], directory: {{ file: "{folder}/users.csv" }} }}"""
    routes = '  - { name: account, match: { path: "/account/**" }, data: restricted, home: [directory, refuse] }'
    upstreams = {app.region: ["http://127.0.0.1:%d" % app.port] for app in (home, abroad)}
    home.allowed_origin = origin
    world = Regions(BINARY, folder + "/cors", upstreams, routes, more, data="restricted: { stays: home }")
    try:
        page.page = CROSS_ORIGIN_PAGE.replace("HOME", world.url("eu-west")).replace("ABROAD", world.url("us-east"))
        run_browser(folder + "/cors-browser", origin + "/page", lambda: page.reports)
    finally:
        world.stop()
    assert page.reports[0] == {"home": "eu-west", "abroad": "refused by the browser"}, page.reports
    # The app server at home got the write and not the question; the one abroad got nothing, not even the path.
    assert home.served == ["PUT /account/1"], home.served
    assert abroad.served == [], abroad.served


def nothing_is_left_open(world, app):
    for region in ("eu-west", "us-east"):
        eventually("all client connections are closed", lambda: all(
            line.endswith(" 0") or "peers" in line for line in world.metrics(region).splitlines()
            if line.startswith("domicile_connections{") and str(world.ports[region]["peers"]) not in line))


def tls_has_nothing_weak(world, app):
    report = subprocess.run(["sslscan", "--no-colour", "--no-check-certificate", "127.0.0.1:%d" % world.ports["eu-west"]["https"]], check=True, capture_output=True, text=True, timeout=TIMEOUT).stdout
    for weak in ("SSLv2", "SSLv3", "TLSv1.0", "TLSv1.1"):
        assert any(line.split() == [weak, "disabled"] for line in report.splitlines()), report
    ciphers = [line for line in report.splitlines() if line.startswith(("Preferred", "Accepted"))]
    assert ciphers and all("TLSv1.2" in line or "TLSv1.3" in line for line in ciphers), report
    assert all(any(good in line for good in ("GCM", "CHACHA20")) and "ECDHE" in line or "TLS_" in line for line in ciphers), ciphers
    assert " vulnerable" not in report.replace("not vulnerable", ""), report


def grpc_calls(folder):
    server, address = grpc_server.serve()
    silent = socket.create_server(("127.0.0.1", 0))
    upstreams = {"eu-west": [address], "us-east": ["h2c://127.0.0.1:%d" % silent.getsockname()[1]]}
    world = Regions(BINARY, folder + "/grpc", upstreams, ROUTES, "limits: { response_timeout: 2s, body_rate_grace: 1s }")
    try:
        roots = open(world.authority, "rb").read()
        for region in ("eu-west", "us-east"):
            with grpc.secure_channel("localhost:%d" % world.ports[region]["https"], grpc.ssl_channel_credentials(roots)) as channel:
                unary, chat = channel.unary_unary("/demo.Echo/Unary"), channel.stream_stream("/demo.Echo/Chat")
                assert unary(b"hello", timeout=TIMEOUT) == b"echo:hello"
                assert unary(b"x" * 3_000_000, timeout=TIMEOUT) == b"echo:" + b"x" * 3_000_000
                assert list(channel.unary_stream("/demo.Echo/Count")(b"1000", timeout=TIMEOUT)) == [b"%d" % n for n in range(1000)]
                # Each message waits for the reply to the previous one. The minimum rate of bodies does not apply to gRPC streams.
                words = queue.Queue()
                replies = chat(iter(words.get, None), timeout=TIMEOUT)
                for word in (b"one", b"two"):
                    words.put(word)
                    assert next(replies) == b"heard:" + word
                words.put(None)
                assert list(replies) == []
                try:
                    channel.unary_unary("/demo.Echo/Fail")(b"", timeout=TIMEOUT)
                    assert False, "the call must fail"
                except grpc.RpcError as error:
                    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not today"), error
                started = time.monotonic()
                try:
                    channel.unary_unary("/demo.Echo/Sleep")(b"", timeout=0.5)
                    assert False, "the call must exceed its deadline"
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
                assert time.monotonic() - started < 20
        server.stop(0).wait()
        for region in ("eu-west", "us-east"):
            with grpc.secure_channel("localhost:%d" % world.ports[region]["https"], grpc.ssl_channel_credentials(roots)) as channel:
                try:
                    channel.unary_unary("/demo.Echo/Unary")(b"hello", timeout=TIMEOUT)
                    assert False, "the call must fail without a server"
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.UNAVAILABLE and any(code in error.details() for code in ("upstream.unreachable", "failover.home_down")), error
    finally:
        world.stop()
        silent.close()


def main():
    outcome = Steps("protocols", STEPS)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        app, other = App("eu-west"), App("us-east")
        upstreams = {app.region: ["http://127.0.0.1:%d" % app.port] for app in (app, other)}
        world = Regions(BINARY, folder, upstreams, ROUTES)
        try:
            for step in (websockets_talk, event_streams_are_not_buffered, curl_does_everything, nodes_fetch_streams,
                         a_browser_loads_a_page_with_a_socket_and_events, tls_has_nothing_weak, nothing_is_left_open):
                outcome.attempt(step.__name__, lambda: step(world, app))
            outcome.attempt("the_other_region_saw_nothing", lambda: None if not other.served else 1 / 0)
        finally:
            world.stop()
        outcome.attempt("grpc_calls", lambda: grpc_calls(folder))
        outcome.attempt("a_browser_writes_restricted_data_across_origins", lambda: a_browser_writes_restricted_data_across_origins(folder))
    outcome.end()


main()
