"""One round of one proxy, for each kind of row. A workload takes a `Stage` and returns its figures by label."""
import http.client, socket, ssl, threading, time
from dataclasses import dataclass

import measure
from inputs.requests import ANSWER_BYTES, MIB, Requests
from inputs.world import HOST
from load import generators
from peers.site import Ports
from processes import Failed, Processes

CONNECTIONS = 64
RATE = 2000
STREAMS = 8
BODY_CONNECTIONS = 8
SETTLE_SECONDS = 2
KEPT = 50  # one of so many idle connections sends a second request at the end
RELOAD_PAUSE = 1


@dataclass
class Proxy:
    """A running proxy, or the pair of a row with two regions."""

    ports: Ports
    pids: list[int]
    routes: int

    def cpu_seconds(self):
        return measure.cpu_seconds(self.pids)


@dataclass
class Stage:
    """What a round of one proxy uses; `proxies` has one for each number of routes of the row."""

    proxies: list[Proxy]
    processes: Processes
    load: generators.Load | None
    load_cpus: set[int]
    requests: Requests
    seconds: float
    idle_connections: int

    @property
    def proxy(self):
        return self.proxies[0]


def checked_run(stage, proxy, requests, connections, **more):
    result, wrong = stage.load.run(proxy.cpu_seconds, proxy.ports.plain, requests, connections, stage.seconds, **more)
    if wrong or not result.requests:
        raise Failed(f"{wrong} of {result.requests} answers are wrong or missing: {stage.load.last_message()}")
    return result


def microseconds(result, units=None):
    return result.cpu_seconds * 1e6 / (units or result.requests)


def cleartext(requests, connections=CONNECTIONS):
    """A closed loop over HTTP/1.1; `requests` chooses the request list."""
    return lambda stage: {"": microseconds(checked_run(stage, stage.proxy, requests(stage.requests), connections))}


def bodies(direction, size):
    """Bodies of `size` bytes; per MiB if they are as large, so that a body that is transferred in part counts in part."""

    def workload(stage):
        connections = BODY_CONNECTIONS if size <= MIB else 2
        result = checked_run(stage, stage.proxy, stage.requests.bodies_path(direction, size), connections)
        return {"": microseconds(result, result.bytes / MIB if size >= MIB else None)}

    return workload


def open_loop(stage):
    samples = stage.requests.world.path("samples")
    result = checked_run(stage, stage.proxy, stage.requests.home_path(), CONNECTIONS, rate=RATE, samples=samples)
    p50 = measure.percentile(measure.Samples.read(samples).latencies, 0.5)
    return {"CPU": microseconds(result), "p50": p50 * 1e6}


def tls(stage):
    arguments = stage.proxy.ports.tls, stage.requests.wrk_path(), CONNECTIONS, stage.seconds
    return {"": microseconds(generators.wrk(stage.processes, stage.load_cpus, stage.proxy.cpu_seconds, *arguments))}


def http2(connections):
    def workload(stage):
        headers = stage.requests.one("eu").headers()
        arguments = stage.proxy.ports.tls, stage.requests.uris_path(), headers, connections, STREAMS, stage.seconds, ANSWER_BYTES
        return {"": microseconds(generators.h2load(stage.processes, stage.load_cpus, stage.proxy.cpu_seconds, *arguments))}

    return workload


def handshake(stage):
    arguments = stage.proxy.ports.tls, stage.seconds
    return {"": microseconds(generators.handshakes(stage.processes, stage.load_cpus, stage.proxy.cpu_seconds, *arguments))}


def routes(stage):
    """The difference of CPU time per request between the most and the fewest routes, in percent."""
    few, many = [
        microseconds(checked_run(stage, proxy, stage.requests.routes_path(proxy.routes), CONNECTIONS)) for proxy in stage.proxies
    ]
    return {"": (many / few - 1) * 100}


def idle(is_tls):
    """Memory per connection that has served a request and is idle."""

    def workload(stage):
        before = measure.memory_kib(stage.proxy.pids)
        port = stage.proxy.ports.tls if is_tls else stage.proxy.ports.plain
        request = stage.requests.one("eu")
        sockets, kept = [], []
        try:
            for number in range(stage.idle_connections):
                # Several client addresses, so that the ports of one suffice.
                client = socket.create_connection(("127.0.0.1", port), 10, (f"127.0.0.{2 + number % 8}", 0))
                # Otherwise the request waits until the server acknowledges the end of the TLS handshake.
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sockets.append(client)
                client = with_tls(client) if is_tls else client
                exchange(client, request)
                if number % KEPT == 0:
                    kept.append(client)
                elif is_tls:
                    # Only the socket stays, without the memory of its TLS client.
                    sockets[-1] = socket.socket(fileno=client.detach())
            time.sleep(SETTLE_SECONDS)
            used = measure.memory_kib(stage.proxy.pids) - before
            for client in kept:
                exchange(client, request)
            return {"": used / stage.idle_connections}
        finally:
            for client in sockets + kept:
                client.close()

    return workload


def with_tls(client):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(client)


def exchange(client, request):
    lines = [f"GET {request.path} HTTP/1.1", f"Host: {HOST}"]
    lines += [f"{name}: {value}" for name, value in request.headers().items()]
    try:
        client.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        response = b""
        while len(response.partition(b"\r\n\r\n")[2]) < ANSWER_BYTES:
            part = client.recv(4096)
            if not part:
                break
            response += part
    except OSError as error:
        raise Failed(f"an idle connection failed: {error}") from None
    if not response.startswith(b"HTTP/1.1 200"):
        raise Failed(f"an idle connection got {response[:100]!r}")


def reload(stage):
    """The p99 of requests that are open during a reload, divided by that of the others; and failed requests and reloads."""
    samples = stage.requests.world.path("samples")
    windows, failures, is_over = [], [], threading.Event()
    thread = threading.Thread(target=reload_repeatedly, args=(stage.proxy.ports.admin, windows, failures, is_over))
    thread.start()
    try:
        requests = stage.requests.routes_path(stage.proxy.routes)
        seconds = max(stage.seconds, 3)
        _, wrong = stage.load.run(stage.proxy.cpu_seconds, stage.proxy.ports.plain, requests, CONNECTIONS, seconds, RATE, samples)
    finally:
        is_over.set()
        thread.join()
    inside, outside = measure.Samples.read(samples).overlapping(windows)
    if not inside or not outside:
        raise Failed(f"no request was open during a reload ({len(windows)} reloads)")
    return {"p99": measure.percentile(inside, 0.99) / measure.percentile(outside, 0.99), "failures": wrong + len(failures)}


def reload_repeatedly(admin, windows, failures, is_over):
    """What `domicile reload` does, without reading the configuration itself, which would take CPU time from the proxy."""
    while not is_over.wait(RELOAD_PAUSE):
        begin = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=60)
        try:
            connection.request("POST", "/reload", headers={"domicile-command": "reload"})
            response = connection.getresponse()
            if response.status != 200:
                failures.append(response.read())
        except OSError as error:
            failures.append(error)
        finally:
            connection.close()
        windows.append((begin, time.monotonic()))
