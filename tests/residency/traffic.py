"""Clients that send requests of every kind through every region, with canaries in every part.

traffic.py COUNT FILE SEED NAME=ADDRESS...  (in the namespace of the clients). FILE gets a line for each request: the canary, the class of the request and of
its answer, the user, and the status."""
import random, re, socket, sys, threading, time

CLIENTS = 12
TIMEOUT = 20
USERS = ["alice", "ada", "bob", "chika"]
KINDS = ["read"] * 6 + ["head", "write", "write", "chunked", "chunked", "preflight", "websocket", "large", "public", "labelled", "labelled"]


class Client(threading.Thread):
    def __init__(self, number, count, seed, entries, out, lock):
        super().__init__(daemon=True)
        self.random, self.count, self.number = random.Random(f"{seed} {number}"), count, number
        self.entries, self.out, self.lock, self.connections = entries, out, lock, {}

    def run(self):
        for index in range(self.count):
            self.exchange(f"canary-{self.number:04x}{index:08x}-")

    def exchange(self, token):
        kind, user, entry = self.random.choice(KINDS), self.random.choice(USERS), self.random.choice(list(self.entries.values()))
        data, answer = self.random.choice([("restricted", "restricted"), ("personal", "personal")]), None
        path = f"/account/{token}path" if data[0] == "restricted" else f"/users/{user}/orders/{token}path"
        if kind == "public":
            data, path = ("public", "public"), f"/feed/{token}path"
        elif kind == "labelled":
            label = self.random.choice(["restricted", "personal"])
            data, path, answer = ("public", label), f"/mixed/{token}path", label
        query = f"?q={token}query" + (f"&label={answer}" if answer else "")
        status = self.send(kind, entry, user, path + query, token)
        with self.lock:
            self.out.write(f"{token} {data[0]} {data[1]} {user} {kind} {status}\n")
            self.out.flush()

    def send(self, kind, entry, user, target, token, hops=0):
        method = {"head": "HEAD", "write": "POST", "chunked": "PUT", "large": "POST", "preflight": "OPTIONS"}.get(kind, "GET")
        fields = [f"Host: any.example", f"X-User-Id: {user}", f"X-Note: {token}head", f"Cookie: c={token}cookie", "TE: trailers"]
        body = b""
        if kind == "preflight":
            fields += ["Origin: https://page.example", "Access-Control-Request-Method: PUT"]
        elif kind == "websocket":
            fields += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
        elif kind == "chunked":
            part = f"{token}body".encode()
            fields += ["Transfer-Encoding: chunked", "Trailer: x-end"]
            body = b"%x\r\n%s\r\n0\r\nX-End: %strailer\r\n\r\n" % (len(part), part, token.encode())
        elif kind in ("write", "large"):
            body = f"{token}body".encode() + b"-" * (200_000 if kind == "large" else 10)
            fields.append(f"Content-Length: {len(body)}")
        request = f"{method} {target} HTTP/1.1\r\n" + "\r\n".join(fields) + "\r\n\r\n"
        try:
            head, connection = self.ask(entry, request.encode() + body, method, kind == "websocket", token)
        except OSError:
            self.connections.pop(entry, None)
            return "broken"
        status = head.split(" ")[1]
        location = re.search(r"(?im)^location: http://([0-9.]+):8000/", head)
        if status == "307" and location and hops < 2:
            return self.send(kind, location[1], user, target, token, hops + 1)
        return status

    def ask(self, entry, message, method, is_tunnel, token):
        connection = self.connections.pop(entry, None) or socket.create_connection((entry, 8000), TIMEOUT)
        connection.settimeout(TIMEOUT)
        connection.sendall(message)
        data = self.until(connection, b"", lambda data: b"\r\n\r\n" in data)
        head, rest = data.split(b"\r\n\r\n", 1)
        text = head.decode("latin-1")
        if is_tunnel and " 101 " in text:
            connection.sendall(f"{token}tunnel".encode())
            self.until(connection, rest, lambda data: b"answertunnel" in data)
            connection.close()
            return text, None
        length = re.search(r"(?im)^content-length: (\d+)", text)
        if method != "HEAD" and " 304 " not in text:
            if length:
                self.until(connection, rest, lambda data: len(data) >= int(length[1]))
            elif "transfer-encoding: chunked" in text.lower():
                self.until(connection, rest, lambda data: re.search(rb"(^|\r\n)0\r\n(.*\r\n)?\r\n$", data, re.S))
        if "connection: close" in text.lower():
            connection.close()
        else:
            self.connections[entry] = connection
        return text, connection

    @staticmethod
    def until(connection, data, is_whole):
        while not is_whole(data):
            part = connection.recv(65536)
            if not part:
                raise OSError("closed")
            data += part
        return data


if __name__ == "__main__":
    count, file, seed, *entries = sys.argv[1:]
    entries = dict(entry.split("=") for entry in entries)
    with open(file, "w") as out:
        lock = threading.Lock()
        clients = [Client(number, int(count) // CLIENTS, seed, entries, out, lock) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
