"""An app server and clients that send requests to a proxy without pause."""
import http.client, http.server, threading, time


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self):
        if self.path == "/held":
            self.server.held += 1
            threading.Event().wait()
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads, held = True, 0

    def handle_error(self, *_):
        """The tests break connections on purpose."""


def start_app(port=0):
    app = Server(("127.0.0.1", port), App)
    threading.Thread(target=app.serve_forever, daemon=True).start()
    return app


class Load:
    """Clients that send requests without pause: reads and writes on new connections, and reads on a keep-alive connection. Like any
    client, they retry on a new connection if the keep-alive connection is closed before the first byte of the response."""

    def __init__(self, port):
        self.port, self.served, self.lost, self.stop = port, 0, [], False
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self.fresh, self.reused, self.fresh, self.reused)]
        for thread in self.threads:
            thread.start()

    def fresh(self):
        while not self.stop:
            try:
                c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                write = self.served % 2
                c.request("POST" if write else "GET", "/fresh", b"x" * 20_000 if write else None, {"Connection": "close"})
                assert c.getresponse().read() == b"ok"
                self.served += 1
            except Exception as error:
                self.lost.append(repr(error))

    def reused(self):
        c = None
        while not self.stop:
            is_reused = c is not None
            try:
                c = c or http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                c.request("GET", "/reused")
                answer = c.getresponse()
                assert answer.read() == b"ok"
                self.served += 1
                c = None if answer.will_close else c
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
                c = None
                if not is_reused:
                    self.lost.append(repr(error))
            except Exception as error:
                c = None
                self.lost.append(repr(error))

    def finish(self):
        """Ends the load after a thousand requests at least, however quick the rest of the test was. Returns their number."""
        for _ in range(1200):
            if self.served > 1000 or self.lost:
                break
            time.sleep(0.05)
        self.stop = True
        for thread in self.threads:
            thread.join()
        assert not self.lost, (len(self.lost), self.lost[:5])
        assert self.served > 1000, self.served
        return self.served
