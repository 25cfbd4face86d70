"""A rate limit that three regions share, under constant load in each of them: all regions together admit no more than
docs/services-and-actions.md promises, and no less than the limit allows.

usage: rates.py BINARY
"""
import http.client, http.server, os, sys, tempfile, threading, time

from regions import Regions
from steps import Steps

BINARY = os.path.abspath(sys.argv[1])
RATE, BURST, EVERY, TIMEOUT, SECONDS = 40, 40, 0.2, 2.0, 12
NAMES = ("eu-west", "us-east", "ap-northeast")
ROUTES = f"""  - {{ name: shared, match: {{ path: /shared }}, data: public, home: [latency], rate_limit: {{ rate: {RATE}/s, burst: {BURST}, by: route, scope: global }} }}
  - {{ name: alone, match: {{ path: /alone }}, data: public, home: [latency], rate_limit: {{ rate: {RATE}/s, burst: {BURST}, by: route }} }}"""


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def press(world, path):
    """Sends requests to all regions at once for a while; returns how many each admitted, and for how long."""
    admitted, started = dict.fromkeys(NAMES, 0), time.monotonic()

    def work(region):
        connection = http.client.HTTPConnection("127.0.0.1", world.ports[region]["http"], timeout=30)
        while time.monotonic() < started + SECONDS:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.status in (200, 429), response.status
            admitted[region] += response.status == 200

    threads = [threading.Thread(target=work, args=(region,)) for region in NAMES]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return admitted, time.monotonic() - started


def the_excess_of_a_global_limit_is_within_its_bound(world):
    admitted, took = press(world, "/shared")
    total, alone = sum(admitted.values()), BURST + RATE * took
    # Before the regions know of each other, each of the two others admits a burst, and between two probes a burst and the rate.
    bound = alone + (len(NAMES) - 1) * (2 * BURST + RATE * (1.1 * EVERY + TIMEOUT))
    print("       %s: %d in %.1f s; %.0f without an excess, %.0f is the bound" % (admitted, total, took, alone, bound))
    assert alone / 2 <= total <= bound, (total, alone, bound)


def a_limit_of_the_region_is_not_shared(world):
    admitted, took = press(world, "/alone")
    print("       %s in %.1f s" % (admitted, took))
    assert all(count >= RATE * SECONDS / 2 for count in admitted.values()), admitted
    assert sum(admitted.values()) > 2 * (BURST + RATE * took)


def main():
    steps = (the_excess_of_a_global_limit_is_within_its_bound, a_limit_of_the_region_is_not_shared)
    outcome = Steps("rates", len(steps))
    app = http.server.ThreadingHTTPServer(("127.0.0.1", 0), App)
    threading.Thread(target=app.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        world = Regions(BINARY, folder, {name: ["http://127.0.0.1:%d" % app.server_address[1]] for name in NAMES}, ROUTES)
        try:
            outcome.attempt_all(steps, world)
        finally:
            world.stop()
    outcome.end()


main()
