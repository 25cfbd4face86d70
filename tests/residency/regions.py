"""The regions of the test: their rules, their files and their processes."""
import glob, os, signal, subprocess, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))

# Region: its jurisdiction, and where it is.
REGIONS = {
    "eu-west": ("eu", "53.35, -6.26"),
    "eu-central": ("eu", "50.11, 8.68"),
    "us-east": ("us", "38.95, -77.45"),
    "ap-northeast": ("jp", "35.68, 139.77"),
}
USERS = {"alice": "eu-west", "ada": "eu-central", "bob": "us-east", "chika": "ap-northeast"}
CLIENTS = "clients"

# The rules of CONFIG, written again so that the check shares no code with the program: jurisdictions that may also carry a class, and the transfers.
CARRIERS = {"public": {"eu", "us", "jp"}, "personal": {"eu", "us"}, "restricted": set()}
TRANSFERS = {("personal", "us"): {"eu"}}


def jurisdiction(region):
    return REGIONS[region][0]


def may_process(region, kind, user):
    place = jurisdiction(region)
    return kind == "public" or place == user or place in TRANSFERS.get((kind, user), set())


def may_carry(region, kind, user):
    return may_process(region, kind, user) or jurisdiction(region) in CARRIERS[kind]


CONFIG = """
region: {region}
listen: [{{ address: "{address}:8000", cleartext: true }}, {{ address: "{address}:8443", peers: true }}]
admin: {{ address: "127.0.0.1:8001" }}
peer_tls: {{ certificate: certs/{region}.pem, key: certs/{region}.key, authority: certs/peers-ca.pem }}
client_address: {{ trust: [10.78.0.0/24], from: x-forwarded-for }}
jurisdictions: {{ eu: {{ countries: [EEA] }}, us: {{ countries: [US] }}, jp: {{ countries: [JP] }} }}
regions:
{regions}
data:
  public: {{ stays: anywhere }}
  personal: {{ stays: home, needs: inferred, carried_by: {carriers}, transfers: [{{ from: us, to: eu, basis: contract, record: "DPA 7", until: 2099-12-31 }}] }}
  restricted: {{ stays: home, needs: asserted }}  # a peer can only vouch for a key from a header
users: {{ key: [{{ header: x-user-id }}], directory: {{ file: users.csv }} }}
geoip: {{ database: country.mmdb, otherwise: nearest, unknown: next }}
latency: {{ every: 500ms, timeout: 400ms }}
access_log: {{ output: {{ file: access.log }} }}
failover: {{ reads: never, writes: never }}
routes:
{routes}
  - {{ name: account, match: {{ path: "/account/**" }}, data: restricted, home: [directory, refuse] }}
  - {{ name: orders, match: {{ path: "/users/{{user}}/orders/**" }}, data: personal, home: [directory, refuse], failover: {{ reads: nearest }} }}
  - {{ name: mixed, match: {{ path: "/mixed/**" }}, data: public, home: [directory, refuse] }}
  - {{ name: feed, match: {{ path: "/feed/**" }}, data: public, home: [latency] }}
audit: {{ directory: ledger }}
"""


class Region:
    def __init__(self, name, world):
        self.name, self.world = name, world
        self.address = world.network.address(name)
        self.folder = f"{world.folder}/{name}"
        os.makedirs(self.folder + "/ledger", exist_ok=True)
        os.symlink(os.path.abspath("geoip/country.mmdb"), self.folder + "/country.mmdb")
        os.symlink(world.folder + "/certs", self.folder + "/certs")
        self.starts, self.proxy = 0, None
        self.set_clock(0)
        self.write_users(USERS)
        self.write_config()
        self.app = self.spawn([sys.executable, HERE + "/app.py", "9000", self.folder + "/app.seen"], "app.log")

    def spawn(self, words, log, **environment):
        with open(f"{self.folder}/{log}", "ab") as out:
            command = self.world.network.command(self.name, words)
            return subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=out, env={**os.environ, **environment})

    def write(self, name, text):
        with open(f"{self.folder}/{name}.new", "w") as out:
            out.write(text)
        os.rename(f"{self.folder}/{name}.new", f"{self.folder}/{name}")

    def write_users(self, users):
        self.write("users.csv", "user,home\n" + "".join(f"{user},{home}\n" for user, home in users.items()))

    def write_config(self, carriers="[eu, us]", routes=""):
        own = [
            f'  {name}: {{ jurisdiction: {place}, at: [{at}], upstreams: "http://127.0.0.1:9000",'
            f' gateway: "https://{self.world.network.address(name)}:8443", url: "http://{self.world.network.address(name)}:8000" }}'
            for name, (place, at) in REGIONS.items()
        ]
        self.write("d.yaml", CONFIG.format(region=self.name, address=self.address, regions="\n".join(own), carriers=self.world.carriers or carriers, routes=routes))

    def start(self):
        self.starts += 1
        keys = f"{self.world.folder}/keys-{self.name}-{self.starts}"
        clock = {}
        if self.world.fake_clock:
            # Only the clock of the wall is set: the kernel sets no other.
            clock = dict(LD_PRELOAD=self.world.fake_clock, FAKETIME_TIMESTAMP_FILE=f"{self.folder}/clock", FAKETIME_CACHE_DURATION="1", FAKETIME_DONT_FAKE_MONOTONIC="1")
        self.proxy = self.spawn([self.world.program, "run", "--config", "d.yaml"], "proxy.log", SSLKEYLOGFILE=keys, RUST_BACKTRACE="0", **clock)

    def set_clock(self, days):
        """Moves the clock of the proxy."""
        self.write("clock", f"{days:+d}d\n")

    def wait_for_clock(self, days):
        """Waits until the proxy logs with a clock that is `days` ahead."""
        wanted = time.strftime("%Y-%m-%d", time.gmtime(time.time() + days * 86_400))
        for _ in range(100):
            self.reload()
            with open(self.folder + "/proxy.log") as log:
                if log.readlines()[-1].startswith(wanted):
                    return
            time.sleep(0.1)
        raise AssertionError(f"the clock of {self.name} was not set to {wanted}")

    def ask(self, path):
        """A request to the admin address, from within."""
        words = ["curl", "-sS", "-m", "10", f"http://127.0.0.1:8001{path}"]
        return subprocess.run(self.world.network.command(self.name, words), capture_output=True, text=True).stdout

    def wait_until_ready(self):
        for _ in range(300):
            status = self.ask("/status")
            if status.count('"state":"up"') >= len(REGIONS) or all(f'"{name}"' in status for name in REGIONS) and '"down"' not in status and '"unmeasured"' not in status:
                return
            time.sleep(0.1)
        raise AssertionError(f"{self.name} is not ready: {self.ask('/status')}")

    def reload(self):
        words = ["curl", "-sS", "-m", "60", "-X", "POST", "-H", "domicile-command: confirm", "-w", "%{http_code}", "http://127.0.0.1:8001/reload"]
        answer = subprocess.run(self.world.network.command(self.name, words), capture_output=True, text=True).stdout
        assert answer.endswith("200"), f"{self.name} did not reload: {answer}"

    def signal(self, number):
        # `ip netns exec` replaces itself by the program.
        os.kill(self.proxy.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.proxy.wait()

    def stop(self):
        if self.proxy and self.proxy.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.proxy.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        self.app.kill()
        self.app.wait()


class World:
    def __init__(self, program, folder, network, carriers=None):
        self.program, self.folder, self.network, self.carriers = os.path.abspath(program), folder, network, carriers
        self.fake_clock = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), None)
        subprocess.run([self.program, "certificates", "--out", folder + "/certs", *REGIONS], check=True, capture_output=True)
        self.regions = {name: Region(name, self) for name in REGIONS}
        for region in self.regions.values():
            region.start()
        for region in self.regions.values():
            region.wait_until_ready()

    def renew_certificates(self):
        subprocess.run([self.program, "certificates", "--out", self.folder + "/certs", *REGIONS], check=True, capture_output=True)

    def stop(self):
        for region in self.regions.values():
            region.stop()
