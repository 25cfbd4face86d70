#!/usr/bin/env python3
"""The life of a process: reloads and new binaries under load lose no request; systemd gets notifications and may pass its sockets.

usage: lifecycle.py BINARY
needs: python3-grpcio, curl, logrotate (Debian's packages)
"""
import gzip, http.client, json, os, queue, random, re, resource, shutil, signal, socket, ssl, subprocess, sys, tempfile, threading, time

import grpc

import grpc_server
from load import Load, start_app
from regions import TIMEOUT, Regions, eventually, free_port

BINARY = os.path.abspath(sys.argv[1])
RELOADS, SWAPS, KILLS = 100, 20, 20


class World:
    def __init__(self, folder):
        # A copy of the binary, because the tests replace the file while it runs, as an upgrade does.
        self.folder, self.binary, self.started, self.pids = folder, folder + "/domicile", [], []
        shutil.copy(BINARY, self.binary)
        app = self.app = start_app()
        self.port, self.admin = free_port(), free_port()
        self.config = folder + "/domicile.yaml"
        open(self.config, "w").write(f"""region: here
workers: 2
listen: [{{ address: "127.0.0.1:{self.port}" }}]
admin: {{ address: "127.0.0.1:{self.admin}" }}
jurisdictions: {{ eu: {{ countries: [EEA] }} }}
regions: {{ here: {{ jurisdiction: eu, at: [0, 0], upstreams: ["http://127.0.0.1:{app.server_address[1]}"], health: {{ path: /, every: 200ms }} }} }}
data: {{ public: {{ stays: anywhere }} }}
routes: [{{ name: all, match: {{}}, data: public, home: [{{ region: here }}] }}]
audit: {{ directory: "{folder}/ledger" }}
access_log: off
""")

    def start(self, config=None, **more):
        command = [self.binary, "run", "--config", config or self.config]
        self.started.append(subprocess.Popen(command, stderr=open(self.folder + "/log", "a"), **more))
        return self.started[-1]

    def end(self):
        """Kills the processes that a failed step has left behind."""
        for pid in self.pids + [process.pid for process in self.started] + [int(pid) for pid in re.findall(r"a successor serves pid=(\d+)", self.log())]:
            try:
                if os.readlink("/proc/%d/exe" % pid).startswith(self.binary):
                    os.kill(pid, signal.SIGKILL)
            except OSError:
                pass

    def log(self):
        return open(self.folder + "/log").read() if os.path.exists(self.folder + "/log") else ""

    def answer(self, port, target):
        try:
            c = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            c.request("GET", target)
            r = c.getresponse()
            return r.status, r.read().decode()
        except OSError:
            return 0, ""


class MixedLoad:
    """TLS, HTTP/2 and gRPC clients that connect to us-east; eu-west and ap-northeast own their requests. Every failed request counts as
    lost, because HTTP/2 clients themselves repeat requests that GOAWAY marks as not processed (RFC 9113 section 6.8)."""

    def __init__(self, regions):
        self.regions, self.served, self.lost, self.stop = regions, {}, [], False
        self.trust = ssl.create_default_context(cafile=regions.authority)
        credentials = grpc.ssl_channel_credentials(open(regions.authority, "rb").read())
        self.channel = grpc.secure_channel("localhost:%d" % regions.ports["us-east"]["https"], credentials)
        self.threads = [threading.Thread(target=self.forever, args=(work,)) for work in (self.fresh, self.http2, self.call, self.call, self.chat)]
        for thread in self.threads:
            thread.start()

    def forever(self, work):
        while not self.stop:
            try:
                self.served[work.__name__] = self.served.get(work.__name__, 0) + work()
            except Exception as error:
                self.lost.append((work.__name__, repr(error)))

    def fresh(self):
        c = http.client.HTTPSConnection("localhost", self.regions.ports["us-east"]["https"], timeout=30, context=self.trust)
        c.request("POST", "/fresh", b"x" * 20_000, {"Connection": "close"})
        answer = c.getresponse()
        body = answer.read()
        assert body == b"ok", (answer.status, body)
        return 1

    def http2(self):
        """Sends 300 requests, on one connection as long as it is open."""
        done = subprocess.run(["curl", "-sS", "--http2", "--cacert", self.regions.authority, "--max-time", "30", "--parallel", "--parallel-max", "8", "--no-progress-meter",
                               "-w", "%{stderr}%{http_version} %{http_code}\\n", self.regions.url("us-east", "https", "localhost") + "/page?[1-300]"],
                              capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "ok" * 300), (done.returncode, done.stderr[-500:])
        answers = re.findall(r"^(\S+) (\d{3})$", done.stderr, re.MULTILINE)
        assert answers == [("2", "200")] * 300, done.stderr[-500:]
        return 300

    def call(self):
        assert self.channel.unary_unary("/demo.Echo/Unary")(b"x" * 1000, timeout=30) == b"echo:" + b"x" * 1000
        return 1

    def chat(self):
        words = queue.Queue()
        replies = self.channel.stream_stream("/demo.Echo/Chat")(iter(words.get, None), timeout=30)
        for number in range(50):
            words.put(b"%d" % number)
            assert next(replies) == b"heard:%d" % number
        words.put(None)
        assert list(replies) == []
        return 1

    def finish(self):
        self.stop = True
        for thread in self.threads:
            thread.join()
        self.channel.close()
        assert not self.lost, (len(self.lost), self.lost[:5])
        assert len(self.served) == 4 and min(self.served.values()) > 10, self.served
        return self.served


def regions_lose_nothing(world):
    """Three regions: in each round, all of them reload, and one of them is replaced by a new binary."""
    server, address = grpc_server.serve()
    web = "http://127.0.0.1:%d" % world.app.server_address[1]
    routes = """
  - { name: calls, match: { path: "/demo.Echo/**" }, data: public, home: [{ region: ap-northeast }] }
  - { name: all, match: {}, data: public, home: [{ region: eu-west }] }"""
    regions = Regions(world.binary, world.folder + "/regions", {"eu-west": [web], "us-east": [web], "ap-northeast": [address]}, routes, "access_log: off")
    # The certificates of two authorities alternate on the port for clients, and the clients trust both.
    subprocess.run([BINARY, "certificates", "--out", world.folder + "/others", *regions.names], check=True, capture_output=True)
    pairs = [[open(f"{folder}/site.{kind}").read() for kind in ("pem", "key")] for folder in (world.folder + "/regions/certs", world.folder + "/others")]
    authorities = open(regions.authority).read() + open(world.folder + "/others/peers-ca.pem").read()
    regions.authority = world.folder + "/authorities.pem"
    open(regions.authority, "w").write(authorities)
    pids = {region: process.pid for region, process in regions.processes.items()}
    serving = lambda region: re.findall(r"a successor serves pid=(\d+)", regions.log(region))
    load = MixedLoad(regions)
    try:
        for count in range(SWAPS):
            region, swaps = regions.names[count % 3], count // 3 + 1
            shutil.copy(BINARY, world.binary + ".new")
            os.rename(world.binary + ".new", world.binary)
            for kind, text in zip(("pem", "key"), pairs[(count + 1) % 2]):
                open(f"{world.folder}/regions/certs/site.{kind}", "w").write(text)
            for name in regions.names:
                os.kill(pids[name], signal.SIGHUP)
            os.kill(pids[region], signal.SIGUSR2)
            eventually("successor %d of %s" % (swaps, region), lambda: len(serving(region)) == swaps)
            pids[region] = int(serving(region)[-1])
            eventually("predecessor %d of %s has drained" % (swaps, region), lambda: regions.log(region).count("drained") >= swaps)
        for region in regions.names:
            eventually("the last certificate is served", lambda: ssl.get_server_certificate(("127.0.0.1", regions.ports[region]["https"])).split() == pairs[SWAPS % 2][0].split("-----END")[0].split() + ["-----END", "CERTIFICATE-----"])
        print("  three regions: %d new binaries and %d reloads with alternating certificates, none lost of %s" % (SWAPS, SWAPS * 3, load.finish()))
        for region in regions.names:
            os.kill(pids[region], signal.SIGTERM)
            eventually(region + " has drained", lambda: regions.log(region).count("drained") > len(serving(region)))
    finally:
        load.stop = True
        world.pids += [int(pid) for region in regions.names for pid in [regions.processes[region].pid, *serving(region)]]
        server.stop(0)


def reloads_lose_nothing(world):
    process = world.start()
    eventually("the process is ready", lambda: world.answer(world.admin, "/readyz")[0] == 200, world.started[-1], world.log)
    load = Load(world.port)
    for count in range(1, RELOADS + 1):
        process.send_signal(signal.SIGHUP)
        eventually("reload %d" % count, lambda: 'result="applied"} %d\n' % count in world.answer(world.admin, "/metrics")[1])
    print("  %d reloads, %d requests, none lost" % (RELOADS, load.finish()))
    process.terminate()
    assert process.wait(TIMEOUT) == 0


def new_binaries_lose_nothing(world):
    process = world.start()
    eventually("the process is ready", lambda: world.answer(world.admin, "/readyz")[0] == 200, world.started[-1], world.log)
    load, pid = Load(world.port), process.pid
    for count in range(1, SWAPS + 1):
        shutil.copy(BINARY, world.binary + ".new")
        os.rename(world.binary + ".new", world.binary)
        os.kill(pid, signal.SIGUSR2)
        eventually("successor %d" % count, lambda: len(re.findall(r"a successor serves pid=\d+", world.log())) == count)
        pid = int(re.findall(r"a successor serves pid=(\d+)", world.log())[-1])
        eventually("predecessor %d has drained" % count, lambda: world.log().count("drained") >= count)
    print("  %d new binaries, %d requests, none lost" % (SWAPS, load.finish()))
    verified = verify(world)
    assert "written by %d processes; the chain is whole" % (SWAPS + 1) in verified, verified
    # A successor that cannot start changes nothing, and a second process cannot write the ledger.
    good = open(world.config).read()
    open(world.config, "w").write(good.replace("data: public", "data: pubic"))
    os.kill(pid, signal.SIGUSR2)
    eventually("the mistake is logged", lambda: "handover failed; this process continues to serve" in world.log())
    assert world.answer(world.port, "/") == (200, "ok")
    open(world.config, "w").write(good)
    # Use a separate file, because the running process would reload the original file and open these ports first.
    second = world.folder + "/second.yaml"
    open(second, "w").write(good.replace(str(world.port), str(free_port())).replace(str(world.admin), str(free_port())))
    second_process = world.start(second)
    assert second_process.wait(TIMEOUT) == 1 and "another process writes this ledger" in world.log()
    os.kill(pid, signal.SIGTERM)
    eventually("the port is closed", lambda: world.answer(world.port, "/")[0] == 0)


def verify(world):
    """What `domicile audit verify` says about the ledger of the process."""
    command = [BINARY, "audit", "verify", world.folder + "/ledger/ledger.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def a_killed_process_leaves_a_whole_ledger(world):
    """kill -9 while lines are written: what was acknowledged is in the ledger, which verifies, and the next process goes on in it."""
    reload = [BINARY, "reload", "--config", world.config]
    acknowledged = 0
    for count in range(1, KILLS + 1):
        process = world.start()
        eventually("the process is ready", lambda: world.answer(world.admin, "/readyz")[0] == 200, process, world.log)
        clients = [subprocess.Popen(reload, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(3)]
        time.sleep(random.random() / 10)
        process.kill()
        process.wait(TIMEOUT)
        acknowledged += sum(client.wait(TIMEOUT) == 0 for client in clients) > 0
    process = world.start()
    eventually("the process is ready", lambda: world.answer(world.admin, "/readyz")[0] == 200, process, world.log)
    process.terminate()
    assert process.wait(TIMEOUT) == 0
    verified = verify(world)
    assert "written by %d processes; the chain is whole" % (KILLS + 1) in verified, verified
    assert "1 checkpoints" in verified, verified
    print("  %d processes killed, %d of them after a reload; %s" % (KILLS, acknowledged, verified.splitlines()[0]))


def systemd_is_notified_and_its_sockets_are_used(world):
    notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notifications.bind(world.folder + "/notify")
    notifications.settimeout(TIMEOUT)
    listening = socket.create_server(("127.0.0.1", world.port))
    listening.set_inheritable(True)
    environment = dict(os.environ, NOTIFY_SOCKET=world.folder + "/notify", LISTEN_FDS="1")
    # LISTEN_PID is the id of the process that takes the sockets: systemd sets it before `exec`, and so does this shell.
    command = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$0" run --config "$1"', world.binary, world.config]
    process = subprocess.Popen(command, env=environment, stderr=open(world.folder + "/log", "a"), preexec_fn=lambda: os.dup2(listening.fileno(), 3), close_fds=False)
    world.started.append(process)
    assert "READY=1" in notifications.recv(4096).decode()
    listening.close()
    assert world.answer(world.port, "/") == (200, "ok")
    process.send_signal(signal.SIGHUP)
    assert "RELOADING=1" in notifications.recv(4096).decode() and "READY=1" in notifications.recv(4096).decode()
    process.terminate()
    assert "STOPPING=1" in notifications.recv(4096).decode()
    assert process.wait(TIMEOUT) == 0


def descriptors_run_out_and_nothing_dies(world):
    process = world.start()
    eventually("the process is ready", lambda: world.answer(world.admin, "/readyz")[0] == 200, world.started[-1], world.log)
    assert world.answer(world.port, "/") == (200, "ok")
    # Allow 8 file descriptors more than are open now, far fewer than the configured limit on connections needs.
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (len(os.listdir("/proc/%d/fd" % process.pid)) + 8,) * 2)
    clients = [socket.create_connection(("127.0.0.1", world.port), timeout=TIMEOUT) for _ in range(40)]
    for client in clients:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    eventually("accepting pauses", lambda: "cannot accept connections" in world.log())
    # Accepted clients get 200 or 503. All other clients wait in the accept queue and are served when descriptors are free.
    for client in clients:
        answer = b""
        while data := client.recv(4096):
            answer += data
        assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503")), answer
        client.close()
    eventually("requests are served again", lambda: world.answer(world.port, "/") == (200, "ok"))
    metrics = world.answer(world.admin, "/metrics")[1]
    assert "domicile_upstream_ejected" in metrics and not re.search(r"domicile_upstream_ejected\{.*\} 1", metrics), metrics
    assert re.search(r"domicile_upstream_up\{.*\} 1", metrics), "a lack of descriptors must not fail a health check"
    process.terminate()
    assert process.wait(TIMEOUT) == 0
    # A limit on connections that needs more descriptors than the process may open is reported at start.
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
    process = world.start(preexec_fn=limit)
    eventually("the process is ready", lambda: world.answer(world.admin, "/readyz")[0] == 200, world.started[-1], world.log)
    assert "more than this process has file descriptors for" in world.log()
    process.terminate()
    assert process.wait(TIMEOUT) == 0


def a_second_signal_ends_the_process_at_once(world):
    process = world.start()
    eventually("the process is ready", lambda: world.answer(world.admin, "/readyz")[0] == 200, world.started[-1], world.log)
    held = socket.create_connection(("127.0.0.1", world.port), timeout=TIMEOUT)
    held.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
    eventually("the request is in flight", lambda: world.app.held == 1)
    # As a supervisor does that signals both the process and its group.
    process.terminate()
    process.terminate()
    eventually("the process drains", lambda: world.answer(world.admin, "/readyz")[0] == 503)
    assert process.poll() is None, "a request is still in flight"
    eventually("another signal ends it", lambda: process.terminate() or process.poll() is not None)
    assert process.wait(TIMEOUT) == 1 and "second stop signal; stopping with requests in flight" in world.log()
    held.close()


def a_successor_that_hangs_holds_nobody_up(world):
    process = world.start()
    eventually("the process is ready", lambda: world.answer(world.admin, "/readyz")[0] == 200, world.started[-1], world.log)
    open(world.binary + ".new", "w").write("#!/bin/sh\necho $$ > '%s/hanging'\nexec sleep 1000\n" % world.folder)
    os.chmod(world.binary + ".new", 0o755)
    os.rename(world.binary + ".new", world.binary)
    process.send_signal(signal.SIGUSR2)
    eventually("the successor hangs", lambda: os.path.exists(world.folder + "/hanging") and open(world.folder + "/hanging").read().endswith("\n"))
    process.terminate()
    assert process.wait(TIMEOUT) == 0
    hanging = int(open(world.folder + "/hanging").read())
    assert not os.path.exists("/proc/%d" % hanging), "the hanging successor must end with its predecessor"


def logrotate_loses_no_line(world):
    """Debian's logrotate with the package's own configuration; only the names of the file and of the process differ."""
    logs = world.folder + "/logs"
    os.mkdir(logs, 0o755)
    text = open(world.config).read().replace("access_log: off", 'access_log: { format: json, output: { file: "%s/access.log" } }' % logs)
    open(world.config, "w").write(text)
    process = world.start()
    eventually("the process is ready", lambda: world.answer(world.admin, "/readyz")[0] == 200, world.started[-1], world.log)
    packaged = open(os.path.join(os.path.dirname(__file__), "../../packaging/logrotate")).read()
    rules = re.sub(r"systemctl kill .*", "kill -USR1 %d" % process.pid, packaged.replace("/var/log/domicile/", logs + "/"))
    assert "kill -USR1" in rules and logs in rules, rules
    open(world.folder + "/logrotate", "w").write(rules)
    os.chmod(world.folder + "/logrotate", 0o644)
    load = Load(world.port)
    for rotation in range(5):
        before = load.served
        eventually("requests are served", lambda: load.served > before + 100)
        subprocess.run([shutil.which("logrotate") or "/usr/sbin/logrotate", "--force", "--state", world.folder + "/state", world.folder + "/logrotate"], check=True)
        eventually("the process writes to a new file", lambda: os.path.exists(logs + "/access.log") and os.path.getsize(logs + "/access.log") > 0)
    served = load.finish()
    process.terminate()
    assert process.wait(TIMEOUT) == 0
    lines = []
    for name in sorted(os.listdir(logs)):
        content = open(os.path.join(logs, name), "rb").read()
        lines += (gzip.decompress(content) if name.endswith(".gz") else content).decode().splitlines()
    assert len(os.listdir(logs)) == 6, os.listdir(logs)
    routed = [line for line in map(json.loads, lines) if line["route"] == "all"]
    assert len(routed) >= served, (len(routed), served)
    print("       %d requests, %d lines in six files" % (served, len(routed)))


# Fewer steps than these is a failure, so that none is lost unnoticed.
STEPS = 9


def main():
    passed, failed = 0, 0
    steps = (reloads_lose_nothing, new_binaries_lose_nothing, a_killed_process_leaves_a_whole_ledger, regions_lose_nothing, systemd_is_notified_and_its_sockets_are_used,
             descriptors_run_out_and_nothing_dies, a_second_signal_ends_the_process_at_once, a_successor_that_hangs_holds_nobody_up, logrotate_loses_no_line)
    for step in steps:
        with tempfile.TemporaryDirectory() as folder:
            world = World(folder)
            try:
                step(world)
                passed += 1
                print("ok    ", step.__name__, flush=True)
            except Exception as error:
                failed += 1
                print("FAILED", step.__name__, repr(error), world.log()[-2000:], flush=True)
            finally:
                world.end()
    print("lifecycle: %d passed, %d failed" % (passed, failed))
    sys.exit(0 if (passed, failed) == (STEPS, 0) else 1)


main()
