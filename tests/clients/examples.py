#!/usr/bin/env python3
"""The files of examples/ as they are used: real app servers, real clients, a process for each region. Only addresses and the paths of
certificates are replaced.

usage: examples.py BINARY
needs: python3-websockets, python3-grpcio, curl (Debian's packages)
"""
import asyncio, http.client, http.server, os, signal, socketserver, ssl, subprocess, sys, tempfile, threading, time

import grpc, websockets

import grpc_server
from isolation import isolate
from regions import TIMEOUT, eventually
from steps import Steps

BINARY = os.path.abspath(sys.argv[1])
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# `htpasswd -nbB -C 4 ada secret`
SECRET = "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW"
# The processes of an example share one machine here.
ADMIN = 'admin: { address: "${OWN}:9901" }\n'
GERMAN, BRAZILIAN = "91.64.0.1", "177.1.1.1"


class App:
    """An app server that answers with its name, and keeps the paths of its requests."""

    def __init__(self, name, address):
        app, self.seen = self, []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path not in ("/", "/healthz"):
                    app.seen.append(self.path)
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.end_headers()
                self.wfile.write(name.encode() + b" " * 2000)

            def address_string(self):
                return "a client"

            def log_message(self, *_):
                pass

        is_socket = isinstance(address, str)
        server = (socketserver.ThreadingUnixStreamServer if is_socket else http.server.ThreadingHTTPServer)(address, Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()


class Example:
    """The processes of an example, one for each region."""

    def __init__(self, folder, name, replacements, regions=("",), environment=None, more=""):
        self.folder, self.processes = folder, []
        text = open(f"{ROOT}/examples/{name}.yaml").read()
        for old, new in replacements:
            assert old in text, (name, old)
            text = text.replace(old, new)
        self.config = f"{folder}/{name}.yaml"
        open(self.config, "w").write(text + more)
        for region in regions:
            variables = {**os.environ, **(environment or {})}
            command = [BINARY, "run", "--config", self.config] + (["--region", region] if region else [])
            log = open(f"{folder}/{name}{region}.log", "a")
            self.processes.append(subprocess.Popen(command, cwd=folder, env=variables, stderr=log, stdout=log))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        assert [process.wait(TIMEOUT) for process in self.processes] == [0] * len(self.processes), self.log()

    def log(self):
        return "".join(open(f"{self.folder}/{name}").read() for name in sorted(os.listdir(self.folder)) if name.endswith(".log"))

    def asks(self, expected, url, *options):
        """Asks until the answer begins with what is expected: a process that was just started may not know the others yet."""
        said = {}

        def is_so():
            done = subprocess.run(["curl", "-sS", "-m", "10", "-w", "\n%{http_code} %{redirect_url}", *options, url], capture_output=True, text=True)
            body, _, status = done.stdout.rpartition("\n")
            said["last"] = f"{status.strip()} {body.strip()} {done.stderr.strip()}"
            return said["last"].startswith(expected)

        eventually(f"`{expected}` from {url} {options}", is_so, log=lambda: f"{said}\n{self.log()}")


def certificates(folder, *regions, hosts=()):
    hosts = [part for host in hosts for part in ("--host", host)]
    subprocess.run([BINARY, "certificates", "--out", folder + "/certs", *hosts, "--", *regions], check=True, capture_output=True)


def sites_and_services(folder):
    """Two hosts, an app with two servers, gRPC, a WebSocket, and a service on a Unix socket for some clients only."""
    certificates(folder, "home", hosts=("www.example.com", "example.com", "api.example.com"))
    os.mkdir(folder + "/config")
    open(folder + "/config/staff.htpasswd", "w").write(f"ada:{SECRET}\n")
    admin, web = App("admin", folder + "/admin.sock"), [App("web", ("127.0.0.1", 3000)), App("web", ("127.0.0.1", 3001))]
    rpc, _ = grpc_server.serve(50051)
    serve_chat(4000)
    for_hosts = [option for host in ("www.example.com", "example.com", "api.example.com") for option in ("--resolve", f"{host}:8443:127.0.0.1", "--resolve", f"{host}:8080:127.0.0.1")]
    curl = ["--cacert", folder + "/certs/peers-ca.pem", *for_hosts]
    with Example(folder, "sites-and-services", [("/run/admin.sock", folder + "/admin.sock")]) as example:
        example.asks("200 web", "https://www.example.com:8443/news", *curl)
        example.asks("200 web", "https://example.com:8443/news", *curl, "--compressed")
        example.asks("308 https://www.example.com:8443/news", "http://www.example.com:8080/news", *curl)
        assert [path for app in web for path in app.seen] == ["/news"] * 2, "each request once"
        # The example admits clients of 10.0.0.0/8 with a password; this one is another.
        example.asks("403 ", "https://www.example.com:8443/admin/", *curl, "-u", "ada:secret")
        assert admin.seen == []
        credentials = grpc.ssl_channel_credentials(open(folder + "/certs/peers-ca.pem", "rb").read())
        channel = grpc.secure_channel("127.0.0.1:8443", credentials, [("grpc.ssl_target_name_override", "api.example.com"), ("grpc.default_authority", "api.example.com")])
        assert channel.unary_unary("/demo.Echo/Unary")(b"hello", timeout=TIMEOUT) == b"echo:hello"
        assert list(channel.unary_stream("/demo.Echo/Count")(b"3", timeout=TIMEOUT)) == [b"0", b"1", b"2"]
        channel.close()
        rpc.stop(None)
        assert asyncio.run(chat(folder + "/certs/peers-ca.pem")) == "heard: hello"
    # With the client's network permitted, the password decides.
    more = [("/run/admin.sock", folder + "/admin.sock"), ("10.0.0.0/8", "127.0.0.0/8")]
    with Example(folder, "sites-and-services", more) as example:
        example.asks("401 ", "https://www.example.com:8443/admin/", *curl)
        example.asks("200 admin", "https://www.example.com:8443/admin/users", *curl, "-u", "ada:secret")
        assert admin.seen == ["/admin/users"]


def serve_chat(port):
    started = threading.Event()

    async def run():
        async def answer(socket, *_):
            async for message in socket:
                await socket.send("heard: " + message)

        async with websockets.serve(answer, "127.0.0.1", port):
            started.set()
            await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
    assert started.wait(TIMEOUT)


async def chat(authority):
    context = ssl.create_default_context(cafile=authority)
    async with websockets.connect("wss://www.example.com:8443/chat/1", host="127.0.0.1", ssl=context, server_hostname="www.example.com") as socket:
        await socket.send("hello")
        return await socket.recv()


def behind_dns(folder):
    """Three regions with one name; each listens on an address of its own here."""
    own, names = {"eu": "127.0.0.11", "us": "127.0.0.12", "jp": "127.0.0.13"}, ("app.example.com", "eu.app.example.com", "us.app.example.com", "jp.app.example.com")
    certificates(folder, *own, hosts=names)
    open(folder + "/users.csv", "w").write("user,home\nalice,eu\nkenji,jp\n")
    apps = {region: App(region, (address, 3000)) for region, address in own.items()}
    replacements = [("/etc/domicile/app.example.com.", folder + "/certs/site."), ("/etc/domicile/users.csv", folder + "/users.csv"), ("/etc/domicile", folder + "/certs"),
                    ("geoip/country.mmdb", ROOT + "/geoip/country.mmdb"), ("directory: ledger", 'directory: "ledger/{region}"'), ("output: journal", "output: stderr"),
                    ("0.0.0.0:443", "${OWN}:8443"), ("0.0.0.0:9443", "${OWN}:9443")]
    replacements += [(f"gateway.{region}.app.example.com", address) for region, address in own.items()]
    curl = ["--cacert", folder + "/certs/peers-ca.pem"]
    at = lambda region, name: ["--resolve", f"{name}:8443:{own[region]}"]
    processes = []
    for region, address in own.items():
        environment = {"REGION": region, "OWN": address, "APP": f"http://{address}:3000"}
        processes.append(Example(folder, "behind-dns", replacements, ("",), environment, ADMIN))
    with processes[0] as example, processes[1], processes[2]:
        ask = lambda region, expected, path, name="app.example.com": example.asks(expected, f"https://{name}:8443{path}", *curl, *at(region, name), "-H", "Cookie: uid=alice")
        ask("jp", "200 eu", "/profile/alice/photo")
        ask("jp", "307 https://eu.app.example.com/account/alice/1 ", "/account/alice/1")
        ask("eu", "200 eu", "/account/alice/1", "eu.app.example.com")
        ask("us", "200 us", "/news")
        assert apps["jp"].seen == [] and apps["us"].seen == ["/news"], "no other region's app server saw her"


def behind_a_cdn(folder):
    """Two regions behind a CDN, which names the client."""
    own = {"eu": "127.0.0.21", "us": "127.0.0.22"}
    certificates(folder, *own)
    apps = {region: App(region, (address, 3000)) for region, address in own.items()}
    replacements = [("geoip/country.mmdb", ROOT + "/geoip/country.mmdb"), ("0.0.0.0:", "${OWN}:"), ("10.0.0.0/8", "127.0.0.0/8")]
    replacements += [(f"gw.{region}.example.net", address) for region, address in own.items()]
    processes = []
    for region, address in own.items():
        environment = {"REGION": region, "OWN": address, "EU_APP": f"http://{own['eu']}:3000", "US_APP": f"http://{own['us']}:3000"}
        processes.append(Example(folder, "behind-a-cdn", replacements, ("",), environment, ADMIN))
    with processes[0] as example, processes[1]:
        ask = lambda expected, path, client: example.asks(expected, f"http://{own['us']}:8080{path}", "-H", "CF-Connecting-IP: " + client)
        ask("200 eu", "/cart", GERMAN)
        ask("451 ", "/cart", BRAZILIAN)
        ask("200 us", "/assets/a.css", BRAZILIAN)
        assert (apps["eu"].seen, apps["us"].seen) == (["/cart"], ["/assets/a.css"]), "who saw what"


def residency(folder):
    """Two regions, of which one may carry personal data of the other's users, but not restricted data."""
    certificates(folder, "eu", "us")
    for link in ("geoip", "examples"):
        os.symlink(f"{ROOT}/{link}", f"{folder}/{link}")
    apps = {"eu": App("eu", ("127.0.0.31", 3001)), "us": App("us", ("127.0.0.31", 3002))}
    upstreams = [("http://127.0.0.1:3001", "http://127.0.0.31:3001"), ("http://127.0.0.1:3002", "http://127.0.0.31:3002")]
    with Example(folder, "residency", upstreams, ("eu", "us")) as example:
        ask = lambda expected, path, *options: example.asks(expected, "http://127.0.0.1:8201" + path, *options)
        ask("200 eu", "/profile/1", "-H", "X-User-Id: alice")
        ask("307 http://127.0.0.1:8101/account/1", "/account/1", "-H", "X-User-Id: alice")
        ask("403 ", "/account/1", "-H", "X-User-Id: mallory")
        ask("200 us", "/account/1", "-H", "X-User-Id: bob")
        assert (apps["eu"].seen, apps["us"].seen) == (["/profile/1"], ["/account/1"]), "who saw what"


class Readers:
    """Eight clients that read from the US without pause. Each read is a user in Germany's, whose home is the EU."""

    def __init__(self):
        self.reads, self.cut_off, self.stop = [], 0, False
        self.threads = [threading.Thread(target=self.read, daemon=True) for _ in range(8)]
        for thread in self.threads:
            thread.start()

    def read(self):
        while not self.stop:
            began = time.monotonic()
            client = http.client.HTTPConnection("127.0.0.1", 8201, timeout=30)
            client.request("GET", "/name", headers={"X-Forwarded-For": GERMAN})
            answer = client.getresponse()
            try:
                self.reads.append((began, time.monotonic() - began, answer.status, answer.read().decode().strip()))
            except http.client.IncompleteRead:
                # The head of the response had arrived, so that nobody could ask another region.
                self.cut_off += 1
            client.close()

    def after(self, moment):
        return [(status, name) for began, _, status, name in self.reads if began > moment]

    def end(self, trouble):
        """All reads were answered, and none waited longer than a reader of a page would."""
        self.stop = True
        for thread in self.threads:
            thread.join()
        lost = [read for read in self.reads if read[2] != 200]
        slowest = max(took for _, took, _, _ in self.reads)
        print(f"        {trouble}: {len(self.reads)} reads, {len(lost)} lost, {self.cut_off} cut off within the response, the slowest took {slowest:.2f} s")
        assert not lost and self.cut_off <= len(self.threads), lost[:3]
        # Three seconds, and one for a machine that has other work.
        assert slowest < 4, slowest


def geo_routing(folder):
    """At the defaults, under load: each trouble of the home loses no read."""
    certificates(folder, "eu", "us")
    os.symlink(f"{ROOT}/geoip", f"{folder}/geoip")
    start_app = lambda region, port: subprocess.Popen([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", f"{folder}/{region}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for region in ("eu", "us"):
        os.mkdir(f"{folder}/{region}")
        open(f"{folder}/{region}/name", "w").write(region)
    apps = [start_app("eu", 3001), start_app("us", 3002)]
    try:
        with Example(folder, "geo-routing", [], ("eu", "us")) as example:
            at_home = lambda: example.asks("200 eu", "http://127.0.0.1:8201/name", "-H", "X-Forwarded-For: " + GERMAN)
            eu = example.processes[0]

            def suffers(trouble, begin):
                at_home()
                readers = Readers()
                eventually("reads at home", lambda: len(readers.reads) > 200)
                begin()
                moment = time.monotonic()
                eventually("reads elsewhere", lambda: len([read for read in readers.after(moment) if read == (200, "us")]) > 1000, log=example.log)
                readers.end(trouble)

            def restarts_app():
                apps[0].wait()
                apps[0] = start_app("eu", 3001)

            suffers("its app server is killed", apps[0].kill)
            restarts_app()
            suffers("its proxy freezes", lambda: eu.send_signal(signal.SIGSTOP))
            eu.send_signal(signal.SIGCONT)
            suffers("its proxy is killed", eu.kill)
            example.processes.remove(eu)
            eu.wait()
    finally:
        for app in apps:
            app.kill()
            app.wait()


def main():
    isolate()
    steps = Steps("examples", 5)
    for example in (geo_routing, sites_and_services, behind_dns, behind_a_cdn, residency):
        with tempfile.TemporaryDirectory() as folder:
            steps.attempt(example.__name__, lambda: example(folder))
    steps.end()


if __name__ == "__main__":
    main()
