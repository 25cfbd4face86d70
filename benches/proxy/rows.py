"""The rows of the table, and the goals of Domicile."""
from dataclasses import dataclass

from inputs.requests import GIB, KIB, MIB, Requests
from workloads import bodies, cleartext, handshake, http2, idle, open_loop, reload, routes, tls


@dataclass
class Goal:
    """The highest figure of Domicile: as a ratio to nginx in the same round, or as it is."""

    limit: float
    is_ratio: bool

    def __str__(self):
        return f"{'×' if self.is_ratio else ''}{self.limit:g}"


def of_nginx(limit):
    return Goal(limit, True)


def absolute(limit):
    return Goal(limit, False)


GOALS = {
    "w1": of_nginx(0.85),
    "w1-two": of_nginx(0.85),
    "w2": of_nginx(0.75),
    "w3": of_nginx(1.0),
    "w4-down": of_nginx(0.40),
    "w4-up": of_nginx(0.40),
    "w5": absolute(4),
    "w5-tls": absolute(12),
    "w6 p50": absolute(80),
    "w6 CPU": of_nginx(1.0),
    "connect": of_nginx(1.0),
    "handshake": of_nginx(0.50),
    "two-regions": of_nginx(1.2),
    "h2-upstream": of_nginx(0.9),
    "routes": absolute(3),
    "reload p99": absolute(2.0),
    "reload failures": absolute(0),
}

PER_REQUEST = "CPU µs/request"
PER_MIB = "CPU µs/MiB"


@dataclass
class Row:
    name: str
    text: str
    workload: object
    units: dict[str, str]
    """The unit of each figure, by label; the label is empty if there is one figure."""
    is_default: bool = True
    workers: int = 1
    app: str = "process"
    """Where the app servers run: `load` (in the load generator), `process`, or `h2c` (nginx with cleartext HTTP/2)."""
    tool: str | None = None
    is_pair: bool = False
    is_fresh: bool = False
    """Whether each round needs new processes."""
    is_pinned: bool = True
    routes: tuple[int, ...] = (0,)
    only_domicile: bool = False

    def key(self, label):
        return f"{self.name} {label}".strip()


def plain(name, text, workload, unit=PER_REQUEST, **more):
    return Row(name, text, workload, {"": unit}, **more)


def sweep(*rows):
    """Rows that run only if they are named."""
    for row in rows:
        row.is_default = False
    return rows


def body_row(name, text, direction, size):
    return plain(name, text, bodies(direction, size), PER_MIB if size >= MIB else PER_REQUEST)


def pair_row(name, connections):
    return plain(name, f"through two regions, connections: {connections}", cleartext(Requests.both_path, connections),
                 app="load", is_pair=True)


def http2_row(name, connections):
    return plain(name, f"HTTP/2 over TLS, {connections} × 8 streams", http2(connections), tool="h2load")


ROWS = [
    plain("w1", "HTTP/1.1, 64 connections", cleartext(Requests.home_path), app="load"),
    plain("w1-two", "HTTP/1.1, 64 connections, two workers", cleartext(Requests.home_path), workers=2),
    plain("w2", "HTTP/1.1 over TLS 1.3, 64 connections", tls, tool="wrk"),
    http2_row("w3", 16),
    *sweep(http2_row("w3-1", 1), http2_row("w3-256", 256)),
    body_row("w4-down", "responses of 1 MiB", "down", MIB),
    body_row("w4-up", "uploads of 1 MiB", "up", MIB),
    *sweep(
        body_row("w4-down-0", "responses without a body", "down", 0),
        body_row("w4-down-64k", "responses of 64 KiB", "down", 64 * KIB),
        body_row("w4-down-1g", "responses of 1 GiB", "down", GIB),
        body_row("w4-up-0", "uploads without a body", "up", 0),
        body_row("w4-up-64k", "uploads of 64 KiB", "up", 64 * KIB),
        body_row("w4-up-1g", "uploads of 1 GiB", "up", GIB),
    ),
    plain("w5", "memory of an idle connection", idle(False), "KiB", is_fresh=True),
    plain("w5-tls", "memory of an idle TLS connection", idle(True), "KiB", is_fresh=True),
    Row("w6", "2,000 requests a second", open_loop, {"CPU": PER_REQUEST, "p50": "µs"}, app="load"),
    plain("connect", "a connection for each request", cleartext(Requests.closing_path)),
    plain("handshake", "full TLS 1.3 handshakes", handshake, "CPU µs/handshake", tool="openssl"),
    pair_row("two-regions", 64),
    *sweep(pair_row("two-regions-1", 1), pair_row("two-regions-16", 16), pair_row("two-regions-256", 256)),
    plain("h2-upstream", "app servers with HTTP/2", cleartext(Requests.home_path), app="h2c"),
    plain("routes", "10,000 routes instead of 10", routes, "% CPU", app="load", routes=(10, 10_000), only_domicile=True),
    Row("reload", "reloads of 10,000 routes", reload, {"p99": "× usual p99", "failures": "requests"}, routes=(10_000,),
        is_pinned=False, only_domicile=True),
]
