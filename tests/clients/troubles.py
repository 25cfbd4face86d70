#!/usr/bin/env python3
"""What an operator sees when something goes wrong: each trouble appears in the metrics, in the log and in `domicile status`, in words
that say what to do. Real processes, the real command line, an app server that hangs, certificates from openssl.

usage: troubles.py BINARY [SECONDS]
SECONDS: how long a region flaps (default 20)
needs: openssl
"""
import calendar, http.client, http.server, os, re, signal, subprocess, sys, tempfile, threading, time

from regions import Regions, eventually
from steps import Steps

BINARY, FLAPPING = os.path.abspath(sys.argv[1]), float((sys.argv[2:] or ["20"])[0])
ROUTES = """
  - { name: slow, match: { path: /slow }, data: public, service: slow, home: [{ region: us-east }] }
  - { name: all, match: {}, data: shared, home: [{ region: eu-west }], failover: { reads: nearest } }
"""


class App(http.server.BaseHTTPRequestHandler):
    """Responds with the name of its region; `/slow` hangs while the test says so."""

    protocol_version, wbufsize = "HTTP/1.1", -1
    quick = threading.Event()

    def do_GET(self):
        if self.path == "/slow":
            self.quick.wait(30)
        body = self.server.region.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class World(Regions):
    def __init__(self, folder):
        apps = {}
        for region in ("eu-west", "us-east"):
            app = apps[region] = http.server.ThreadingHTTPServer(("127.0.0.1", 0), App)
            app.daemon_threads, app.region = True, region
            threading.Thread(target=app.serve_forever, daemon=True).start()
        url = lambda region: ["http://127.0.0.1:%d" % apps[region].server_address[1]]
        self.table = folder + "/users.csv"
        open(self.table, "w").write("user,home\nalice,eu-west\n")
        more = f"""
users: {{ key: [{{ cookie: uid }}], directory: {{ file: "{self.table}", stale_after: 2d }} }}
audit: {{ directory: "{folder}/ledger-{{region}}" }}
limits: {{ response_timeout: 300ms }}
upstreams: {{ ejection: {{ after: 2, for: 1h, most_percent: 100 }} }}
"""
        services = {region: {"app": url(region), "slow": url(region)} for region in apps}
        # The probes have their defaults.
        super().__init__(BINARY, folder, services, ROUTES, more, data="public: { stays: anywhere }, shared: { stays: [eu, us] }", latency="{}")

    def start(self, region):
        environment = dict(os.environ, DOMICILE_REGION=region)
        command = [BINARY, "run", "--config", self.config]
        self.processes[region] = subprocess.Popen(command, env=environment, stderr=open(f"{self.folder}/{region}.log", "a"))

    def domicile(self, region, *arguments):
        environment = dict(os.environ, DOMICILE_REGION=region, DOMICILE_CONFIG=self.config)
        return subprocess.run([BINARY, *arguments], env=environment, capture_output=True, text=True, timeout=30)

    def status(self, region):
        return self.domicile(region, "status").stdout

    def events(self, region):
        """The log without the lines of requests."""
        return "".join(line for line in self.log(region).splitlines(True) if "domicile::request" not in line)

    def get(self, region, target="/", port="http"):
        c = http.client.HTTPConnection("127.0.0.1", self.ports[region][port], timeout=20)
        c.request("GET", target)
        r = c.getresponse()
        return r.status, r.read().decode()

    def sees(self, region, metric, log, status):
        """Waits until all three show the trouble."""
        eventually("in the metrics: " + metric, lambda: metric in self.metrics(region), log=lambda: self.metrics(region))
        eventually("in the log: " + log, lambda: log in self.events(region), log=lambda: self.events(region))
        eventually("in the status: " + status, lambda: status in re.sub(" +", " ", self.status(region)), log=lambda: self.status(region))


def an_upstream_is_slow(world):
    upstream = re.search(r"slow/(\S+)", world.status("us-east"))[1]
    while world.get("us-east", "/slow")[0] != 504:
        pass
    world.get("us-east", "/slow")
    world.sees(
        "us-east",
        'domicile_upstream_ejected{service="slow",upstream="%s"} 1' % upstream,
        "upstream ejected after consecutive failures: it gets no requests for a while; check it service=\"slow\"",
        "slow/%s ejected" % upstream,
    )
    eventually("the timeout is logged", lambda: "no response from an upstream service=\"slow\"" in world.events("us-east"), log=lambda: world.events("us-east"))
    App.quick.set()


def a_region_is_killed(world):
    assert world.get("us-east") == (200, "eu-west")
    world.processes["eu-west"].kill()
    world.processes["eu-west"].wait()
    killed, served = time.monotonic(), ""
    # No read is lost, and after three seconds each is served by another region.
    while served != "us-east" or time.monotonic() - killed < 3:
        status, served = world.get("us-east")
        assert status == 200, (status, served, world.log("us-east")[-2500:])
    world.sees(
        "us-east",
        'domicile_region_health{region="eu-west",state="down"} 1',
        'region is down: its gateway does not respond to probes; check its proxy and the network region="eu-west" why="cannot connect',
        "eu-west down (its gateway does not respond to probes: cannot connect",
    )
    world.start("eu-west")
    world.sees("us-east", 'domicile_region_health{region="eu-west",state="up"} 1', 'region is recovering: it serves the requests that no other region may serve region="eu-west"', "eu-west up")


def a_flapping_region_moves_nothing_back_and_forth(world):
    served, end, pauses = [world.get("us-east")], time.monotonic() + FLAPPING, 0
    assert served == [(200, "eu-west")], served
    while time.monotonic() < end:
        world.signal("eu-west", signal.SIGSTOP)
        # As long as it takes to notice, however slow the machine is.
        while 'domicile_region_health{region="eu-west",state="down"} 1' not in world.metrics("us-east"):
            served.append(world.get("us-east"))
        until = time.monotonic() + 1
        while time.monotonic() < until:
            served.append(world.get("us-east"))
        world.signal("eu-west", signal.SIGCONT)
        until, pauses = time.monotonic() + 2, pauses + 1
        while time.monotonic() < until:
            served.append(world.get("us-east"))
    assert {status for status, _ in served} == {200}
    moves = sum(before != after for before, after in zip(served, served[1:]))
    print("       %d pauses, %d reads, moved %d times" % (pauses, len(served), moves))
    assert moves == 1, moves
    eventually("the region is up again", lambda: 'domicile_region_health{region="eu-west",state="up"} 1' in world.metrics("us-east"))


def a_certificate_ends_soon(world):
    certificate, key = world.folder + "/certs/site.pem", world.folder + "/certs/site.key"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "5", "-subj", "/CN=localhost"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    assert world.domicile("us-east", "reload").returncode == 0
    words = "`%s`: this certificate expires in 4 days" % certificate
    end = subprocess.run(["openssl", "x509", "-in", certificate, "-noout", "-enddate"], check=True, capture_output=True, text=True)
    ends = time.strptime(end.stdout.strip(), "notAfter=%b %d %H:%M:%S %Y GMT")
    world.sees("us-east", 'domicile_certificate_expiry_timestamp_seconds{file="%s"} %d' % (certificate, calendar.timegm(ends)), words, "ATTENTION: " + words)
    assert words in world.domicile("us-east", "check", "--files").stderr + world.domicile("us-east", "check", "--files").stdout


def the_user_table_is_stale(world):
    changed = int(time.time()) - 3 * 86400
    os.utime(world.table, (changed, changed))
    words = "`%s`: the user table has not changed for 3 days, longer than `stale_after`; check its export" % world.table
    world.sees("us-east", "domicile_directory_stale_timestamp_seconds %d" % (changed + 2 * 86400), words, "ATTENTION: " + words)
    open(world.table, "a").write("bob,us-east\n")
    eventually("it is not stale", lambda: "the user table has not changed" not in world.status("us-east"))


def a_reload_is_broken(world):
    good = open(world.config).read()
    open(world.config, "w").write(good.replace("data: shared", "data: sharde"))
    assert "did you mean `shared`?" in world.domicile("us-east", "reload").stderr
    world.sees("us-east", "domicile_reload_last_successful 0", "did you mean `shared`?", "REFUSED: ")
    assert "did you mean `shared`?" in world.status("us-east")
    open(world.config, "w").write(good)
    assert world.domicile("us-east", "reload").returncode == 0
    assert "REFUSED" not in world.status("us-east")
    assert "domicile_reload_last_successful 1" in world.metrics("us-east")


def the_log_level_changes_for_a_while(world):
    debug = lambda: [line for line in world.events("us-east").splitlines() if " DEBUG " in line]
    world.get("us-east")
    assert not debug(), debug()[:3]
    said = world.domicile("us-east", "log", "level", "debug", "--for", "1s")
    assert "the log level is `debug` for 1s" in said.stdout, said
    eventually("lines of that level appear", lambda: world.get("us-east") and debug())
    eventually("the level is reset", lambda: "log level reset" in world.events("us-east"))
    before = len(debug())
    world.get("us-east")
    world.get("us-east")
    assert len(debug()) == before, debug()[before:]


def main():
    steps = (an_upstream_is_slow, a_region_is_killed, a_flapping_region_moves_nothing_back_and_forth, a_certificate_ends_soon,
             the_user_table_is_stale, a_reload_is_broken, the_log_level_changes_for_a_while)
    outcome = Steps("troubles", len(steps))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        world = World(folder)
        try:
            outcome.attempt_all(steps, world)
        finally:
            world.stop()
    outcome.end()


main()
