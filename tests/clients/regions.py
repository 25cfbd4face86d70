"""Regions for the tests with real clients, as an operator runs them: a process each, one configuration file, TLS between them."""
import http.client, os, random, signal, socket, subprocess, time

TIMEOUT = 90
PLACES = {"eu-west": ("eu", "[53, -6]"), "us-east": ("us", "[39, -77]"), "ap-northeast": ("jp", "[36, 140]")}


given = set()


def free_port():
    """A port on which nobody listens, different from those given before. It is not in the range from which the kernel takes the
    ports of outgoing connections, so that no such connection has it when the process under test binds it."""
    first_outgoing = int(open("/proc/sys/net/ipv4/ip_local_port_range").read().split()[0])
    while True:
        port = random.randrange(10000, first_outgoing if first_outgoing > 20000 else 32768)
        if port in given:
            continue
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        given.add(port)
        return port


def free_ports(count):
    return [free_port() for _ in range(count)]


def eventually(what, is_so, process=None, log=lambda: ""):
    """Waits until `is_so`, at most as long as `process` runs."""
    deadline = time.monotonic() + TIMEOUT
    while not is_so():
        assert process is None or process.poll() is None, "the process ended before: %s\n%s" % (what, log()[-3000:])
        assert time.monotonic() < deadline, "not in time: %s\n%s" % (what, log()[-3000:])
        time.sleep(0.02)


def services(upstreams, health):
    """The services of a region: the upstreams of one, or a dictionary of several: lists of upstreams, or options in YAML."""
    listed = lambda urls: "[" + ", ".join('"%s"' % url for url in urls) + "]"
    if isinstance(upstreams, dict):
        options = lambda urls: urls if isinstance(urls, str) else "upstreams: " + listed(urls)
        return "services: { " + ", ".join("%s: { %s }" % (name, options(urls)) for name, urls in upstreams.items()) + " }"
    return "upstreams: %s\n    %s" % (listed(upstreams), health)


class Regions:
    """Starts a region for each entry of `upstreams`; `routes`, `more` and `data` are YAML. All data is public by default."""

    def __init__(self, binary, folder, upstreams, routes, more="", health=(), data="public: { stays: anywhere }", latency="{ every: 200ms, timeout: 2s, settle: 1s }"):
        os.makedirs(folder, exist_ok=True)
        self.binary, self.folder, self.names, self.processes = binary, folder, list(upstreams), {}
        subprocess.run([binary, "certificates", "--out", folder + "/certs", *self.names], check=True, capture_output=True)
        self.authority = folder + "/certs/peers-ca.pem"
        uses, ports = ("http", "https", "peers", "admin"), iter(free_ports(4 * len(self.names)))
        self.ports = {region: {what: next(ports) for what in uses} for region in self.names}
        regions = ""
        for region in self.names:
            p, (jurisdiction, at) = self.ports[region], PLACES[region]
            regions += f"""
  {region}:
    jurisdiction: {jurisdiction}
    at: {at}
    listen:
      - {{ address: "127.0.0.1:{p['http']}" }}
      - {{ address: "127.0.0.1:{p['https']}", tls: {{ certificates: [{{ certificate: "{folder}/certs/site.pem", key: "{folder}/certs/site.key" }}] }} }}
      - {{ address: "127.0.0.1:{p['peers']}", peers: true }}
    admin: {{ address: "127.0.0.1:{p['admin']}", commands: true }}
    {services(upstreams[region], "health: { path: /, every: 500ms }" if region in health else "")}
    gateway: "https://127.0.0.1:{p['peers']}"
    url: "http://127.0.0.1:{p['http']}\""""
        self.config = folder + "/domicile.yaml"
        open(self.config, "w").write(f"""region: {self.names[0]}
workers: 2
peer_tls: {{ certificate: "{folder}/certs/{{region}}.pem", key: "{folder}/certs/{{region}}.key", authority: "{self.authority}" }}
jurisdictions: {{ eu: {{ countries: [EEA] }}, us: {{ countries: [US] }}, jp: {{ countries: [JP] }} }}
regions: {regions}
data: {{ {data} }}
latency: {latency}
routes:
{routes}
{more}
""")
        for region in self.names:
            environment = dict(os.environ, DOMICILE_REGION=region)
            command = [self.binary, "run", "--config", self.config]
            self.processes[region] = subprocess.Popen(command, env=environment, stderr=open(f"{folder}/{region}.log", "a"))
        for region in self.names:
            eventually(region + " sees every region up", lambda: sum(line.startswith("domicile_region_health{") and line.endswith('state="up"} 1') for line in self.metrics(region).splitlines()) == len(self.names), self.processes[region], lambda: self.log(region))

    def metrics(self, region):
        try:
            c = http.client.HTTPConnection("127.0.0.1", self.ports[region]["admin"], timeout=10)
            c.request("GET", "/metrics")
            return c.getresponse().read().decode()
        except OSError:
            return ""

    def log(self, region):
        return open(f"{self.folder}/{region}.log").read()

    def url(self, region, scheme="http", host="127.0.0.1"):
        return f"{scheme}://{host}:{self.ports[region]['https' if scheme in ('https', 'wss') else 'http']}"

    def signal(self, region, number=signal.SIGHUP):
        self.processes[region].send_signal(number)

    def stop(self):
        """Stops the processes and returns their exit codes."""
        for process in self.processes.values():
            process.terminate()
        return [process.wait(TIMEOUT) for process in self.processes.values()]
