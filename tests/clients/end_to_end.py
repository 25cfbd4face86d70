#!/usr/bin/env python3
"""Real clients against the real binary: three processes from config/three-regions.yaml, app servers, curl, promtool, and
Python's reader of the GeoIP database.

usage: end_to_end.py BINARY PROMTOOL
needs: curl with HTTP/2, python3-maxminddb
"""
import csv, http.client, http.server, ipaddress, json, os, random, re, signal, subprocess, sys, tempfile, threading, time

import maxminddb

from regions import TIMEOUT, eventually, free_port

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REGIONS = {"eu-west": 81, "us-east": 82, "ap-northeast": 83}
BINARY, PROMTOOL = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])


class App(http.server.BaseHTTPRequestHandler):
    """An app server that responds with its region and the number of bytes in the request body."""

    protocol_version = "HTTP/1.1"
    # Write head and body at once, because a second small write waits for the acknowledgement of the first.
    wbufsize = -1

    def answer(self):
        if self.headers.get("transfer-encoding"):
            size = 0
            while chunk := int(self.rfile.readline().split(b";")[0], 16):
                size += len(self.rfile.read(chunk))
                self.rfile.readline()
            self.rfile.readline()
        else:
            size = len(self.rfile.read(int(self.headers.get("content-length") or 0)))
        body = json.dumps({"region": self.server.region, "path": self.path, "bytes": size, "client": self.headers["x-forwarded-for"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, *_):
        pass


class World:
    def __init__(self, folder, rules=lambda text: text):
        self.folder, self.ports, self.processes = folder, {}, {}
        os.makedirs(folder + "/config")
        open(folder + "/config/users.csv", "w").write(open(ROOT + "/config/users.csv").read())
        os.symlink(ROOT + "/geoip", folder + "/geoip")
        run([BINARY, "certificates", "--out", "certs", *REGIONS], cwd=folder)
        text = open(ROOT + "/config/three-regions.yaml").read()
        for port in sorted(set(re.findall(r"127\.0\.0\.1:(8\d\d\d)", text))):
            self.ports[port] = free_port()
            text = text.replace("127.0.0.1:" + port, "127.0.0.1:%d" % self.ports[port])
        self.config = folder + "/config/three-regions.yaml"
        open(self.config, "w").write(rules(text))
        for region, base in REGIONS.items():
            for last in ("05", "06"):
                server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port(region, last)), App)
                server.daemon_threads, server.region = True, region
                threading.Thread(target=server.serve_forever, daemon=True).start()
        for region in REGIONS:
            self.start(region)
        for region in REGIONS:
            for other in REGIONS:
                wanted = 'domicile_region_health{region="%s",state="up"} 1' % other
                eventually("%s sees %s" % (region, other), lambda: wanted in self.metrics(region), self.processes[region], lambda: self.log(region))

    def start(self, region):
        log = open("%s/%s.log" % (self.folder, region), "a")
        environment = dict(os.environ, DOMICILE_REGION=region)
        self.processes[region] = subprocess.Popen([BINARY, "run", "--config", self.config], cwd=self.folder, env=environment, stderr=log)
        eventually(region + " is ready", lambda: self.admin(region, "/readyz")[0] == 200, self.processes[region], lambda: self.log(region))

    def port(self, region, last):
        return self.ports["%d%s" % (REGIONS[region], last)]

    def admin(self, region, target):
        try:
            c = http.client.HTTPConnection("127.0.0.1", self.port(region, "04"), timeout=10)
            c.request("GET", target)
            r = c.getresponse()
            return r.status, r.read().decode()
        except OSError:
            return 0, ""

    def metrics(self, region):
        return self.admin(region, "/metrics")[1]

    def log(self, region):
        return open("%s/%s.log" % (self.folder, region)).read()

    def stop(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            process.wait(TIMEOUT)


def run(command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT, **more).stdout


def curl(*arguments):
    return run(["curl", "-sS", "--max-time", "30", *arguments])


def curl_speaks_every_protocol(world):
    us, eu = world.port("us-east", "01"), world.port("eu-west", "01")
    tls, ca = world.port("us-east", "02"), world.folder + "/certs/peers-ca.pem"
    orders = "/users/alice/orders/1"
    version = ["-o", "/dev/null", "-w", "%{http_version} %{http_code}"]
    assert curl(*version, "http://127.0.0.1:%d%s" % (us, orders)) == "1.1 200"
    assert curl(*version, "--http2-prior-knowledge", "http://127.0.0.1:%d%s" % (us, orders)) == "2 200"
    assert curl(*version, "--http2", "--cacert", ca, "https://localhost:%d%s" % (tls, orders)) == "2 200"
    assert curl(*version, "--http1.1", "--cacert", ca, "https://localhost:%d%s" % (tls, orders)) == "1.1 200"
    assert curl(*version, "-I", "http://127.0.0.1:%d%s" % (us, orders)) == "1.1 200"
    for protocol in (["--http1.1"], ["--http2"]):
        answer = json.loads(curl(*protocol, "--cacert", ca, "https://localhost:%d%s" % (tls, orders)))
        assert answer["region"] == "eu-west", answer


def curl_uploads(world):
    size = 3_000_000
    body = world.folder + "/body"
    open(body, "wb").write(random.Random(1).randbytes(size))
    tls, ca = world.port("us-east", "02"), world.folder + "/certs/peers-ca.pem"
    url = "https://localhost:%d/users/alice/orders/1" % tls
    for more in (["--http2"], ["--http1.1"], ["--http1.1", "-H", "Transfer-Encoding: chunked"], ["--http1.1", "-H", "Expect: 100-continue"]):
        answer = json.loads(curl("--cacert", ca, *more, "--data-binary", "@" + body, url))
        assert (answer["region"], answer["bytes"]) == ("eu-west", size), (more, answer)


def curl_is_refused_and_redirected(world):
    us = "http://127.0.0.1:%d" % world.port("us-east", "01")
    refused = json.loads(curl("-H", "X-Forwarded-For: 177.1.1.1", us + "/profile/me"))
    assert (refused["status"], refused["code"]) == (451, "residency.nowhere_cleared"), refused
    followed = json.loads(curl("-L", "-H", "X-User-Id: alice", us + "/account/1"))
    assert followed["region"] == "eu-west", followed
    location = curl("-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "-H", "X-User-Id: alice", us + "/account/1")
    assert location == "307 http://127.0.0.1:%d/account/1" % world.port("eu-west", "01"), location


def prometheus_takes_the_metrics(world):
    for region in REGIONS:
        subprocess.run([PROMTOOL, "check", "metrics"], input=world.metrics(region), text=True, check=True, timeout=TIMEOUT)


def the_log_contains_no_full_address_and_no_user(world):
    curl("-H", "X-Forwarded-For: 91.64.17.99", "http://127.0.0.1:%d/profile/secret-path" % world.port("us-east", "01"))
    curl("-H", "X-User-Id: alice", "http://127.0.0.1:%d/account/secret-path" % world.port("us-east", "01"))
    eventually("the log is written", lambda: "91.64.17.0/24" in world.log("us-east"))
    log = world.log("us-east")
    assert "91.64.17.99" not in log and "alice" not in log
    accounts = [line for line in log.splitlines() if "account" in line]
    assert accounts and not any("secret-path" in line for line in accounts), "where the path may not be logged, the route is logged instead"


def a_second_process_on_the_same_port_fails(world):
    second = subprocess.run([BINARY, "run", "--config", world.config], cwd=world.folder, env=dict(os.environ, DOMICILE_REGION="eu-west"), capture_output=True, text=True, timeout=TIMEOUT)
    assert second.returncode == 1 and "another process listens there" in second.stderr, second


def hangup_reloads_and_terminate_drains(world):
    region, process = "ap-northeast", world.processes["ap-northeast"]
    process.send_signal(signal.SIGHUP)
    eventually("the reload is counted", lambda: 'domicile_reloads_total{result="applied"} 1' in world.metrics(region))
    good = open(world.config).read()
    open(world.config, "w").write(good.replace("data: restricted", "data: resticted"))
    process.send_signal(signal.SIGHUP)
    eventually("the mistake is logged", lambda: "did you mean `restricted`?" in world.log(region))
    open(world.config, "w").write(good)
    assert json.loads(curl("http://127.0.0.1:%d/users/chika/orders/1" % world.port(region, "01")))["region"] == region
    process.terminate()
    assert process.wait(TIMEOUT) == 0
    assert "drained" in world.log(region)
    world.start(region)


def addresses(count):
    """Addresses drawn from networks that registries have delegated to a country."""
    rows = [row[0] for row in csv.reader(open(ROOT + "/tests/vectors/geoip/rir-country-sample.csv"))]
    assert len(rows) == 5000, len(rows)
    draw, found = random.Random(7), set()
    while len(found) < count:
        network = ipaddress.ip_network(draw.choice(rows), strict=False)
        found.add(str(network[draw.randrange(min(network.num_addresses, 1 << 62))]))
    return sorted(found)


def country_of(reader, address):
    record = reader.get(address) or {}
    return (record.get("country") or record.get("registered_country") or {}).get("iso_code")


def ten_thousand_addresses_agree_with_pythons_reader():
    """Each country belongs to one of three regions, so the region that responds shows which country the proxy found."""
    reader = maxminddb.open_database(ROOT + "/geoip/country.mmdb")
    known = [row["alpha2"] for row in csv.DictReader(open(ROOT + "/geoip/countries.csv"))]
    names = list(REGIONS)
    owner = {code: names[index % 3] for index, code in enumerate(known)}
    table = ", ".join('"%s": %s' % pair for pair in owner.items())

    def rules(text):
        return re.sub(r"  countries: \{ BR.*\n  continents.*\n  otherwise.*\n  unknown.*\n", "  countries: { %s }\n" % table, text)

    with tempfile.TemporaryDirectory() as folder:
        world = World(folder, rules)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", world.port("us-east", "01"), timeout=TIMEOUT)
            wrong, placed, sample = [], 0, addresses(10_000)
            for address in sample:
                connection.request("GET", "/catalogue/1", headers={"X-Forwarded-For": address})
                region = json.loads(connection.getresponse().read())["region"]
                country = country_of(reader, address)
                placed += country in owner
                # The chain ends in eu-west for addresses without a country.
                if region != owner.get(country, "eu-west"):
                    wrong.append((address, country, region))
            assert not wrong, wrong[:10]
            assert placed > len(sample) * 0.9, placed
            for address in sample[::20]:
                status, text = world.admin("us-east", "/explain?format=json&url=http://a/catalogue/1&ip=" + address)
                assert json.loads(text)["country"] == (country_of(reader, address) if country_of(reader, address) in owner else None), text
            print("  %d addresses, %d of them placed, no disagreement" % (len(sample), placed))
        finally:
            world.stop()


# Fewer steps than these is a failure, so that none is lost unnoticed.
STEPS = 8


def main():
    passed, failed = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        world = World(folder)
        steps = [curl_speaks_every_protocol, curl_uploads, curl_is_refused_and_redirected, prometheus_takes_the_metrics,
                 the_log_contains_no_full_address_and_no_user, a_second_process_on_the_same_port_fails, hangup_reloads_and_terminate_drains]
        steps = [(step, lambda step=step: step(world)) for step in steps]
        steps.append((ten_thousand_addresses_agree_with_pythons_reader, ten_thousand_addresses_agree_with_pythons_reader))
        try:
            for step, call in steps:
                try:
                    call()
                    passed += 1
                    print("ok    ", step.__name__, flush=True)
                except Exception as error:
                    failed += 1
                    print("FAILED", step.__name__, repr(error), getattr(error, "stderr", "") or "", flush=True)
        finally:
            world.stop()
    print("clients: %d passed, %d failed" % (passed, failed))
    sys.exit(0 if (passed, failed) == (STEPS, 0) else 1)


main()
