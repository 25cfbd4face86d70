"""The request lists: each request names the region that must serve it, and the answer that it must get."""
import functools, random, struct
from dataclasses import dataclass

from inputs.world import HOST, USERS

COUNT = 20_000
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
ANSWER_BYTES = KIB
OK, REFUSED = 200, 451


@dataclass
class Request:
    """A request that `region` must serve, or that must be refused if `region` is None."""

    path: str
    address: str
    user: str
    region: str | None
    body_bytes: int = 0
    answer_bytes: int = ANSWER_BYTES

    def headers(self):
        headers = {"User-Agent": "bench/1.0", "Accept": "application/json"}
        headers |= {"X-Forwarded-For": self.address, "X-User-Id": self.user}
        if self.region:
            headers["Bench-Region"] = self.region
        if self.body_bytes:
            headers.update({"Bench-Body": str(self.body_bytes), "Content-Length": str(self.body_bytes)})
        return headers

    def record(self, closes):
        """The request in the format that load.c reads."""
        lines = [f"{'POST' if self.path == '/upload' else 'GET'} {self.path} HTTP/1.1", f"Host: {HOST}"]
        lines += [f"{name}: {value}" for name, value in self.headers().items()]
        if self.path == "/upload" and not self.body_bytes:
            lines.append("Content-Length: 0")
        if closes:
            lines.append("Connection: close")
        head = "".join(line + "\r\n" for line in lines + [""]).encode()
        # Empty bodies have no first byte, and the body of a refusal is the proxy's own.
        first = self.region[0].encode() if self.region and self.answer_bytes else b"\0"
        status, answer = (OK, self.answer_bytes) if self.region else (REFUSED, 0)
        return struct.pack("<HcxIQQ", status, first, len(head), self.body_bytes, answer) + head


class Requests:
    def __init__(self, world):
        self.world, self.random = world, random.Random(11)
        mixed = [self._mixed(number) for number in range(COUNT)]
        # What the proxy of `eu` must serve by itself, and half of what it must refuse.
        refused = [request for request in mixed if not request.region]
        at_home = [request for request in mixed if request.region == "eu"]
        self.home = at_home + refused[::2]
        self.random.shuffle(self.home)
        # A proxy refuses restricted data of the other region, or redirects the client, so these are left out.
        self.both = at_home + [one for one in mixed if one.region == "us" and not one.path.startswith("/restricted/")]
        self.random.shuffle(self.both)
        self.served = at_home

    def one(self, region):
        return next(request for request in self.both if request.region == region)

    @functools.cache
    def home_path(self):
        return self._write("home", self.home)

    @functools.cache
    def both_path(self):
        return self._write("both", self.both)

    @functools.cache
    def closing_path(self):
        """As `home`, with a connection for each request."""
        return self._write("closing", self.home, closes=True)

    @functools.cache
    def bodies_path(self, direction, size):
        template = self.served[:64]
        if direction == "down":
            made = [Request(f"/body/{size}", one.address, one.user, "eu", answer_bytes=size) for one in template]
        else:
            made = [Request("/upload", one.address, one.user, "eu", body_bytes=size) for one in template]
        return self._write(f"{direction}-{size}", made)

    @functools.cache
    def routes_path(self, routes):
        """Requests for users of `eu`, spread over all routes."""
        made = []
        while len(made) < COUNT:
            user = self.random.randrange(USERS)
            if self.world.region_of_user(user) == "eu":
                path = f"/svc{self.random.randrange(routes)}/{len(made) % 1000}/things/{len(made) % 7}"
                made.append(Request(path, self.random.choice(self.world.addresses)[0], f"u{user}", "eu"))
        return self._write(f"routes-{routes}", made)

    @functools.cache
    def wrk_path(self):
        """For wrk.lua: a request a line, only those that get the answer 200."""
        lines = ["\t".join((request.path, request.address, request.user, request.region)) for request in self.served]
        self.world.write("served.tsv", lines)
        return self.world.path("served.tsv")

    @functools.cache
    def uris_path(self):
        """For h2load, which sends the same headers with all of them."""
        self.world.write("uris", [f"/api/v1/items/{number}" for number in range(500)])
        return self.world.path("uris")

    def _mixed(self, number):
        address, country_region = self.world.addresses[number % len(self.world.addresses)]
        is_known = self.random.random() < 0.5
        user = self.random.randrange(USERS) if is_known else self.random.randrange(USERS, 10 * USERS)
        region = self.world.region_of_user(user) or country_region
        if self.random.random() >= 0.1:
            return Request(f"/api/v1/items/{number % 1000}?page={number % 7}", address, f"u{user}", region)
        # The rule: restricted data of a user of `us` is not served to a client in `eu`.
        is_refused = country_region == "eu" and region == "us"
        return Request(f"/restricted/item/{number % 1000}", address, f"u{user}", None if is_refused else region)

    def _write(self, name, requests, closes=False):
        path = self.world.path(f"{name}.requests")
        with open(path, "wb") as file:
            file.writelines(request.record(closes) for request in requests)
        return path
