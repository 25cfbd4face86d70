"""An app server of one region. It writes the canaries that it receives to a file, and puts canaries into its answers.

app.py PORT FILE"""
import base64, hashlib, re, socketserver, sys

CANARY = re.compile(rb"canary-[0-9a-f]{12}-")


class App(socketserver.StreamRequestHandler):
    wbufsize = -1

    def handle(self):
        while self.exchange():
            pass

    def exchange(self):
        """One request. Returns whether the connection stays open."""
        head = []
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            head.append(line)
        if not head:
            return False
        fields = {name.lower(): value.strip() for name, value in (line.split(b":", 1) for line in head[1:])}
        method, target, _ = head[0].split(b" ", 2)
        body = self.body(fields)
        self.remember(b"".join(head) + body)
        found = CANARY.search(head[0])
        token = found[0] if found else b"none-"
        if fields.get(b"upgrade", b"").lower() == b"websocket":
            return self.tunnel(token, fields[b"sec-websocket-key"])
        label = re.search(rb"label=([a-z]+)", target)
        self.answer(method, token, b"Domicile-Data-Class: %s\r\n" % label[1] if label else b"")
        return True

    def body(self, fields):
        if fields.get(b"transfer-encoding") == b"chunked":
            parts = []
            while length := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(length))
                self.rfile.readline()
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                parts.append(line)
            return b"".join(parts)
        return self.rfile.read(int(fields.get(b"content-length", 0)))

    def remember(self, text):
        with self.server.lock:
            self.server.seen.write(b"".join(b"%s\n" % one for one in re.findall(rb"canary-[0-9a-f]{12}-[a-z]+", text)))
            self.server.seen.flush()

    def answer(self, method, token, label):
        head = b"HTTP/1.1 200 OK\r\nTrailer: x-end\r\nX-Answer: %sanswerhead\r\n%sTransfer-Encoding: chunked\r\n\r\n" % (token, label)
        if method == b"HEAD":
            self.wfile.write(head)
        else:
            body = token + b"answerbody" + b"." * 500
            self.wfile.write(head + b"%x\r\n%s\r\n0\r\nX-End: %sanswertrailer\r\n\r\n" % (len(body), body, token))
        self.wfile.flush()

    def tunnel(self, token, key):
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: %s\r\nX-Answer: %sanswerhead\r\n\r\n" % (accept, token)
        )
        self.wfile.flush()
        received = self.request.recv(4096)
        self.remember(received)
        self.request.sendall(token + b"answertunnel")
        return False


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads, request_queue_size = True, True, 128

    def handle_error(self, *_):
        """The test breaks connections on purpose."""


if __name__ == "__main__":
    import threading

    with Server(("127.0.0.1", int(sys.argv[1])), App) as server:
        server.seen, server.lock = open(sys.argv[2], "ab"), threading.Lock()
        server.serve_forever()
