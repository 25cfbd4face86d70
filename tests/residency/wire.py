"""Reads recorded packets: TCP streams, TLS 1.3 with the keys that a debug build logs, and HTTP/2."""
import hmac, struct
from collections import defaultdict

import hpack
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

HASHES = {0x1301: "sha256", 0x1302: "sha384", 0x1303: "sha256"}
KEY_LENGTHS = {0x1301: 16, 0x1302: 32, 0x1303: 32}


class Stream:
    """One direction of a TCP connection."""

    def __init__(self):
        self.first, self.parts = None, {}

    def add(self, number, payload, is_first):
        if is_first:
            self.first = (number + 1) & 0xFFFFFFFF
            return
        if payload:
            # A retransmission may be longer than the first transmission.
            known = self.parts.get(number)
            if known is None or len(known) < len(payload):
                self.parts[number] = payload

    def data(self):
        """The bytes without a gap from the beginning."""
        if self.first is None:
            return b""
        relative = sorted(((number - self.first) & 0xFFFFFFFF, payload) for number, payload in self.parts.items())
        out = bytearray()
        for at, payload in relative:
            if at > len(out):
                break
            out += payload[len(out) - at :]
        return bytes(out)


def connections(packets):
    """The TCP connections: (client, server, port of the server), and the bytes of both directions."""
    streams, opened = defaultdict(Stream), {}
    for source, destination, packet in packets:
        header = (packet[0] & 15) * 4
        if packet[9] != 6 or len(packet) < header + 20:
            continue
        segment = packet[header:]
        from_port, to_port, number = struct.unpack_from("!HHI", segment)
        flags, payload = segment[13], segment[(segment[12] >> 4) * 4 :]
        key = (source, from_port, destination, to_port)
        if flags & 0x12 == 0x02:
            # A client may use a port again.
            if key in streams and streams[key].first not in (None, (number + 1) & 0xFFFFFFFF):
                yield from close(streams, opened, key)
            opened[key] = (source, destination, to_port)
        streams[key].add(number, payload, bool(flags & 0x02))
    for key in list(opened):
        yield from close(streams, opened, key)


def close(streams, opened, key):
    source, from_port, destination, to_port = key
    there, back = streams.pop(key, Stream()), streams.pop((destination, to_port, source, from_port), Stream())
    place = opened.pop(key, None)
    if place:
        yield place, there.data(), back.data()


def expand(secret, label, length, kind):
    """HKDF-Expand-Label (RFC 8446 section 7.1) for one block and an empty context."""
    name = b"tls13 " + label
    info = struct.pack("!HB", length, len(name)) + name + b"\0"
    return hmac.digest(secret, info + b"\x01", kind)[:length]


class Keys:
    """The keys of one direction. A KeyUpdate makes the next ones from the same secret."""

    def __init__(self, secret, suite):
        self.secret, self.suite = secret, suite
        self.renew()

    def renew(self):
        kind = HASHES[self.suite]
        key = expand(self.secret, b"key", KEY_LENGTHS[self.suite], kind)
        self.iv, self.number = expand(self.secret, b"iv", 12, kind), 0
        self.cipher = ChaCha20Poly1305(key) if self.suite == 0x1303 else AESGCM(key)

    def update(self):
        self.secret = expand(self.secret, b"traffic upd", len(self.secret), HASHES[self.suite])
        self.renew()

    def open(self, header, sealed):
        nonce = bytes(a ^ b for a, b in zip(self.iv, self.number.to_bytes(12, "big")))
        self.number += 1
        text = self.cipher.decrypt(nonce, sealed, header).rstrip(b"\0")
        return text[-1], text[:-1]


def records(data):
    at = 0
    while at + 5 <= len(data):
        length = struct.unpack_from("!H", data, at + 3)[0]
        if at + 5 + length > len(data):
            return
        yield data[at : at + 5], data[at + 5 : at + 5 + length]
        at += 5 + length


def read_keys(files):
    """The secrets of `SSLKEYLOGFILE` by client random."""
    secrets = defaultdict(dict)
    for file in files:
        for line in open(file):
            label, random, secret = line.split()
            secrets[bytes.fromhex(random)][label] = bytes.fromhex(secret)
    return secrets


def hello(data, kind):
    for header, body in records(data):
        if header[0] == 22 and body[0] == kind:
            return body
    return None


def decrypted(there, back, secrets):
    """The application data of both directions of a TLS 1.3 connection; None if it has no keys."""
    client, server = hello(there, 1), hello(back, 2)
    if client is None or server is None or client[6:38] not in secrets:
        return None
    logged = secrets[client[6:38]]
    suite = struct.unpack_from("!H", server, 39 + server[38])[0]
    out = []
    for data, name in ((there, "CLIENT"), (back, "SERVER")):
        if f"{name}_TRAFFIC_SECRET_0" not in logged:
            return None
        keys = Keys(logged[f"{name}_HANDSHAKE_TRAFFIC_SECRET"], suite)
        text, handshake, in_handshake = bytearray(), bytearray(), True
        for header, body in records(data):
            if header[0] != 23:
                continue
            kind, plain = keys.open(header, body)
            if kind == 23:
                text += plain
            elif kind == 22:
                handshake += plain
                while len(handshake) >= 4 and len(handshake) >= 4 + int.from_bytes(handshake[1:4], "big"):
                    message, length = handshake[0], 4 + int.from_bytes(handshake[1:4], "big")
                    del handshake[:length]
                    if message == 20 and in_handshake:
                        keys, in_handshake = Keys(logged[f"{name}_TRAFFIC_SECRET_0"], suite), False
                    elif message == 24:
                        keys.update()
        out.append(bytes(text))
    return out


class Message:
    """One direction of an HTTP/2 stream."""

    def __init__(self):
        self.heads, self.body = [], bytearray()

    def field(self, name):
        return next((value for head in self.heads for found, value in head if found == name), None)

    def text(self):
        """Everything that the message says."""
        heads = b"\n".join(b"%s: %s" % pair for head in self.heads for pair in head)
        return heads + b"\n" + bytes(self.body)


def http2(data, is_client):
    """The messages of one direction by stream."""
    if is_client:
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        if not data.startswith(preface):
            return {}
        data = data[len(preface) :]
    decoder, messages, block, at = hpack.Decoder(max_header_list_size=1 << 20), defaultdict(Message), bytearray(), 0
    decoder.max_allowed_table_size = 1 << 16
    while at + 9 <= len(data):
        length, kind, flags = int.from_bytes(data[at : at + 3], "big"), data[at + 3], data[at + 4]
        stream, payload = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF, data[at + 9 : at + 9 + length]
        at += 9 + length
        if at > len(data):
            break
        if kind in (0, 1) and flags & 0x08:
            payload = payload[1 : len(payload) - payload[0]]
        if kind == 1 and flags & 0x20:
            payload = payload[5:]
        if kind == 0:
            messages[stream].body += payload
        if kind in (1, 9):
            block += payload
            if flags & 0x04:
                head = [(bytes(name), bytes(value)) for name, value in decoder.decode(bytes(block), raw=True)]
                messages[stream].heads.append(head)
                block.clear()
    return messages
