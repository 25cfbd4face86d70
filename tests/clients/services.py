#!/usr/bin/env python3
"""Five services behind one host, each a real server: a site with sessions, an API, a gRPC service, a WebSocket service and a static
server. The clients are curl, a browser, a gRPC client and a WebSocket client, first with one region, then through another region.

usage: services.py BINARY
needs: python3-aiohttp, python3-websockets, python3-grpcio, curl, chromium (Debian's packages)
"""
import asyncio, base64, functools, http.server, json, os, shutil, signal, ssl, subprocess, sys, tempfile, threading

import aiohttp.web, grpc, websockets

import grpc_server
from regions import TIMEOUT, Regions, eventually, free_port
from steps import Steps

BINARY = os.path.abspath(sys.argv[1])
# Fewer steps than these is a failure, so that none is lost unnoticed.
STEPS = 18

ROUTES = """
  - { name: api, match: { path: "/api/**" }, service: api, data: public, home: [{ region: eu-west }],
      rewrite: { strip_prefix: /api }, compress: [zstd, br, gzip], request_headers: { set: { x-from: "{route} {region}" } } }
  - { name: grpc, match: { path: "/demo.Echo/**", methods: [POST] }, service: grpc, data: public, home: [{ region: eu-west }] }
  - { name: cart, match: { path: /cart }, service: carts, data: public, home: [{ region: eu-west }] }
  - { name: shared, match: { path: "/shared/**" }, service: api, data: public, home: [{ region: eu-west }], cors: { origins: "*" } }
  - { name: closed, match: { path: "/closed/**" }, service: api, data: public, home: [{ region: eu-west }], cors: { origins: [https://other.example] } }
  - { name: chat, match: { path: /chat }, service: chat, data: public, home: [{ region: eu-west }] }
  - { name: static, match: { path: "/static/**" }, service: static, data: public, home: [{ region: eu-west }],
      rewrite: { strip_prefix: /static }, response_headers: { set: { cache-control: "public, max-age=3600" } } }
  - { name: old, match: { path: "/old/**" }, data: public, home: [{ region: eu-west }], redirect: { to: "/new{uri}", status: 301 } }
  - { name: site, match: {}, service: site, data: public, home: [{ region: eu-west }] }"""

PAGE = """<!doctype html><html><head><title>shop</title><link rel="stylesheet" href="/static/style.css"></head><body><script>
const results = {};
const report = (name, value) => { results[name] = value; if (Object.keys(results).length == 7) fetch("/report", {method: "POST", body: JSON.stringify(results)}); };
fetch("/api/items?page=2").then(answer => answer.json()).then(items => {
  const timing = performance.getEntriesByType("resource").find(entry => entry.name.includes("/api/items"));
  report("items", items.length); report("compressed", timing.encodedBodySize > 0 && timing.encodedBodySize * 4 < timing.decodedBodySize);
});
// The same proxy under another origin.
const elsewhere = `http://localhost:${location.port}`;
fetch(elsewhere + "/shared/items", {method: "PUT", headers: {"x-test": "1"}}).then(answer => answer.json())
  .then(items => report("shared", items.length), error => report("shared", String(error)));
fetch(elsewhere + "/closed/items").then(() => report("closed", "open"), () => report("closed", "refused"));
(async () => {
  const carts = new Set();
  for (let count = 0; count < 12; count++) carts.add(await (await fetch("/cart")).text());
  report("carts", carts.size);
})();
const socket = new WebSocket(`ws://${location.host}/chat`);
socket.onopen = () => socket.send("hello");
socket.onmessage = event => report("chat", event.data);
addEventListener("load", () => report("colour", getComputedStyle(document.body).backgroundColor));
</script></body></html>"""


def start(run):
    """Runs an asyncio server in a thread until the end of the process."""
    started = threading.Event()
    threading.Thread(target=lambda: asyncio.run(run(started)), daemon=True).start()
    assert started.wait(TIMEOUT)


class Site:
    """A site in the manner of a content management system: pages, a login form, a session cookie, redirects after a form."""

    def __init__(self):
        self.port, self.reports, self.seen = free_port(), [], []
        start(self.run)

    async def run(self, started):
        app = aiohttp.web.Application()
        app.router.add_get("/", self.page)
        app.router.add_post("/login", self.login)
        app.router.add_get("/admin", self.admin)
        app.router.add_post("/report", self.report)
        runner = aiohttp.web.AppRunner(app)
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", self.port).start()
        started.set()
        await asyncio.Event().wait()

    async def page(self, request):
        self.seen.append(request.path)
        return aiohttp.web.Response(text=PAGE, content_type="text/html")

    async def login(self, request):
        form = await request.post()
        if form.get("user") != "editor":
            return aiohttp.web.Response(status=403, text="who?")
        answer = aiohttp.web.Response(status=302, headers={"Location": "/admin"})
        answer.set_cookie("session", "s3cret", httponly=True)
        return answer

    async def admin(self, request):
        return aiohttp.web.Response(text="admin of " + request.host if request.cookies.get("session") == "s3cret" else "log in first")

    async def report(self, request):
        self.reports.append(await request.json())
        return aiohttp.web.Response(text="thanks")


class Api:
    def __init__(self):
        self.port, self.seen = free_port(), []
        start(self.run)

    async def run(self, started):
        app = aiohttp.web.Application()
        app.router.add_route("*", "/{path:.*}", self.serve)
        runner = aiohttp.web.AppRunner(app)
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", self.port).start()
        started.set()
        await asyncio.Event().wait()

    async def serve(self, request):
        self.seen.append((request.method, request.path_qs, request.headers.get("x-from")))
        if request.method == "POST":
            return aiohttp.web.json_response(await request.json(), status=201)
        return aiohttp.web.json_response([{"name": "item number %d" % n, "price": n} for n in range(200)])


class Cart(http.server.BaseHTTPRequestHandler):
    """An app server that keeps its carts in memory. It tells its own name."""

    def do_GET(self):
        name = b"cart %d" % self.server.server_address[1]
        self.server.cookies.append(self.headers.get("cookie"))
        self.send_response(200)
        self.send_header("Content-Length", str(len(name)))
        self.end_headers()
        self.wfile.write(name)

    def log_message(self, *_):
        pass


def carts():
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cart) for _ in range(4)]
    for server in servers:
        server.cookies = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
    return servers


class Chat:
    def __init__(self):
        self.port = free_port()
        start(self.run)

    async def run(self, started):
        async def talk(connection):
            try:
                async for message in connection:
                    await connection.send("chat: " + message)
            except websockets.ConnectionClosedError:
                pass  # the browser was stopped

        async with websockets.serve(talk, "127.0.0.1", self.port):
            started.set()
            await asyncio.Event().wait()


def static(folder):
    """Python's own static server."""
    os.makedirs(folder)
    open(folder + "/style.css", "w").write("body { background-color: rgb(1, 2, 3); }")
    open(folder + "/large", "wb").write(bytes(range(256)) * 40_000)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def curl(*arguments):
    return subprocess.run(["curl", "-sS", "--max-time", "60", *arguments], check=True, capture_output=True, timeout=TIMEOUT).stdout.decode()


def a_session_of_the_site(world, region, apps):
    jar, url = world.folder + "/jar-" + region, world.url(region)
    assert curl(url + "/admin") == "log in first"
    page = curl("-L", "--post302", "-c", jar, "-b", jar, "-d", "user=stranger", url + "/login")
    assert page == "who?", page
    assert curl("-L", "-c", jar, "-b", jar, "-d", "user=editor", url + "/login") == "admin of " + url.removeprefix("http://")


def the_api_gets_its_own_paths(world, region, apps):
    api = apps["api"]
    before = len(api.seen)
    posted = curl("--json", '{"a": 1}', "-w", " %{http_code}", world.url(region) + "/api/items/7?x=%2F")
    assert posted == '{"a": 1} 201', posted
    assert api.seen[before:] == [("POST", "/items/7?x=%2F", "api eu-west")], api.seen[before:]
    head = curl("-o", "/dev/null", "-D", "-", "--compressed", world.url(region) + "/api/items")
    assert "content-encoding:" in head.lower() and "vary: accept-encoding" in head.lower(), head
    assert len(json.loads(curl("--compressed", world.url(region) + "/api/items"))) == 200


def grpc_calls_reach_their_service(world, region, apps):
    roots = open(world.authority, "rb").read()
    with grpc.secure_channel("localhost:%d" % world.ports[region]["https"], grpc.ssl_channel_credentials(roots)) as channel:
        assert channel.unary_unary("/demo.Echo/Unary")(b"hello", timeout=TIMEOUT) == b"echo:hello"
        assert len(list(channel.unary_stream("/demo.Echo/Count")(b"100", timeout=TIMEOUT))) == 100


def sockets_reach_their_service(world, region, apps):
    async def talk():
        context = ssl.create_default_context(cafile=world.authority)
        for url, more in ((world.url(region, "ws"), {}), (world.url(region, "wss", "localhost"), {"ssl": context})):
            async with websockets.connect(url + "/chat", **more) as connection:
                await connection.send("hello")
                assert await connection.recv() == "chat: hello"

    asyncio.run(talk())


def static_files_are_served_and_cached(world, region, apps):
    head = curl("-D", "-", world.url(region) + "/static/style.css")
    assert "cache-control: public, max-age=3600" in head.lower() and "rgb(1, 2, 3)" in head, head
    size = curl("-o", "/dev/null", "-w", "%{size_download}", world.url(region) + "/static/large")
    assert size == str(256 * 40_000), size


def old_links_are_redirected(world, region, apps):
    moved = curl("-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", world.url(region) + "/old/page?a=b")
    assert moved == "301 " + world.url(region) + "/new/old/page?a=b", moved


def browser(folder, *arguments):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--user-data-dir=" + folder]
    return [chromium, *flags, *arguments]


def a_browser_uses_all_services_on_one_page(world, region, apps):
    site = apps["site"]
    site.reports.clear()
    command = browser(world.folder + "/browser-" + region, "--remote-debugging-port=0", world.url(region) + "/")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        eventually("the page reports", lambda: site.reports)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    expected = {"items": 200, "compressed": True, "chat": "chat: hello", "colour": "rgb(1, 2, 3)", "shared": 200, "closed": "refused", "carts": 1}
    assert site.reports[0] == expected, site.reports
    cookies = [cookie for server in apps["carts"] for cookie in server.cookies]
    assert len(cookies) >= 12 and not any(cookie and "domicile" in cookie for cookie in cookies), cookies


def a_browser_shows_an_error_as_a_page(world, region, apps):
    # The large file's server is stopped, so that Domicile itself answers.
    apps["static"].shutdown()
    apps["static"].server_close()
    command = browser(world.folder + "/browser-error-" + region, "--dump-dom", world.url(region) + "/static/gone")
    page = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT).stdout
    assert "<h1>Bad Gateway</h1>" in page and "upstream.unreachable" in page, page
    assert "chat: hello" == asyncio.run(say(world.url(region, "ws") + "/chat")), "the other services go on"


async def say(url):
    async with websockets.connect(url) as connection:
        await connection.send("hello")
        return await connection.recv()


def main():
    outcome = Steps("services", STEPS)

    steps = (a_session_of_the_site, the_api_gets_its_own_paths, grpc_calls_reach_their_service, sockets_reach_their_service,
             static_files_are_served_and_cached, old_links_are_redirected, a_browser_uses_all_services_on_one_page)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for names in (("eu-west",), ("eu-west", "us-east", "ap-northeast")):
            server, address = grpc_server.serve()
            apps = {"site": Site(), "api": Api(), "chat": Chat(), "static": static("%s/files-%d" % (folder, len(names)))}
            open(folder + "/sticky.key", "w").write(base64.b64encode(os.urandom(32)).decode() + "\n")
            sticky = "upstreams: [%s], balance: { sticky: { keys: " + folder + "/sticky.key } }"
            here = {name: ["http://127.0.0.1:%d" % (app.port if hasattr(app, "port") else app.server_address[1])] for name, app in apps.items()}
            here["grpc"] = [address]
            apps["carts"] = carts()
            here["carts"] = sticky % ", ".join('"http://127.0.0.1:%d"' % server.server_address[1] for server in apps["carts"])
            # The other regions have the services too, and nobody answers there.
            elsewhere = {name: ["http://127.0.0.1:%d" % free_port()] for name in here}
            elsewhere["carts"] = sticky % ('"http://127.0.0.1:%d"' % free_port())
            upstreams = {name: here if name == "eu-west" else elsewhere for name in names}
            world = Regions(BINARY, "%s/%d" % (folder, len(names)), upstreams, ROUTES)
            region = names[-1] if len(names) == 1 else "us-east"
            try:
                for step in steps:
                    outcome.attempt("%s (%d regions)" % (step.__name__, len(names)), lambda: step(world, region, apps))
                outcome.attempt("a_browser_shows_an_error_as_a_page (%d regions)" % len(names), lambda: a_browser_shows_an_error_as_a_page(world, region, apps))
                outcome.attempt("the file is valid (%d regions)" % len(names),
                        lambda: subprocess.run([BINARY, "check", "--config", world.config], check=True, capture_output=True, text=True))
            finally:
                world.stop()
                server.stop(0).wait()
    outcome.end()


main()
