"""Reads the country of IPv4 networks from a MaxMind database (MMDB), in the layout `country.iso_code`."""
import ipaddress

MARKER = b"\xab\xcd\xefMaxMind.com"
IPV4_BITS = 32


class Database:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.content = file.read()
        at = self.content.rfind(MARKER)
        if at < 0:
            raise ValueError(f"`{path}` is not a MaxMind database")
        metadata, _ = self._value(at + len(MARKER), at + len(MARKER))
        self.nodes, self.record_bits = metadata["node_count"], metadata["record_size"]
        self.node_bytes = self.record_bits // 4
        self.data = self.nodes * self.node_bytes + 16
        self.countries = {}
        self.root = 0
        if metadata["ip_version"] == 6:
            for _ in range(96):
                self.root = self._child(self.root, 0)
        if not any(country for _, country in self.networks()):
            raise ValueError(f"`{path}` has no field `country.iso_code`")

    def country(self, address):
        """The ISO code of the country, or None."""
        bits, node = int(address), self.root
        for bit in range(IPV4_BITS - 1, -1, -1):
            if node >= self.nodes:
                break
            node = self._child(node, bits >> bit & 1)
        return self._country(node)

    def networks(self):
        """All IPv4 networks with their countries, in order."""
        stack = [(self.root, 0, 0)]
        while stack:
            node, prefix, length = stack.pop()
            if node < self.nodes and length < IPV4_BITS:
                stack.append((self._child(node, 1), prefix | 1 << (IPV4_BITS - 1 - length), length + 1))
                stack.append((self._child(node, 0), prefix, length + 1))
            elif country := self._country(node):
                yield f"{ipaddress.IPv4Address(prefix)}/{length}", country

    def _country(self, node):
        if node <= self.nodes:
            return None
        if node not in self.countries:
            record, _ = self._value(self.data + node - self.nodes - 16, self.data)
            country = record.get("country") if isinstance(record, dict) else None
            self.countries[node] = country.get("iso_code") if isinstance(country, dict) else None
        return self.countries[node]

    def _child(self, node, right):
        start = node * self.node_bytes
        if self.record_bits == 28:
            middle = self.content[start + 3]
            high = middle & 15 if right else middle >> 4
            return high << 24 | int.from_bytes(self.content[start + 4 * right : start + 4 * right + 3], "big")
        size = self.record_bits // 8
        return int.from_bytes(self.content[start + size * right : start + size * (right + 1)], "big")

    def _value(self, at, base):
        """The value at an offset, and the offset after it. Pointers count from `base`."""
        control = self.content[at]
        kind, size, at = control >> 5, control & 31, at + 1
        if kind == 1:
            return self._pointed(control, at, base)
        if kind == 0:
            kind, at = 7 + self.content[at], at + 1
        if size >= 29:
            extra = size - 28
            more = int.from_bytes(self.content[at : at + extra], "big")
            size, at = more + (29, 285, 65821)[extra - 1], at + extra
        if kind == 7:
            return self._map(size, at, base)
        if kind == 11:
            return self._list(size, at, base)
        if kind == 14:
            return bool(size), at
        value = self.content[at : at + size]
        if kind == 2:
            return value.decode(), at + size
        # Numbers; this reader needs no floating-point value and no byte string.
        return int.from_bytes(value, "big"), at + size

    def _pointed(self, control, at, base):
        size = (control >> 3 & 3) + 1
        high = control & 7 if size < 4 else 0
        target = high << (8 * size) | int.from_bytes(self.content[at : at + size], "big")
        value, _ = self._value(base + target + (0, 2048, 526336, 0)[size - 1], base)
        return value, at + size

    def _map(self, size, at, base):
        found = {}
        for _ in range(size):
            key, at = self._value(at, base)
            found[key], at = self._value(at, base)
        return found, at

    def _list(self, size, at, base):
        found = []
        for _ in range(size):
            value, at = self._value(at, base)
            found.append(value)
        return found, at
