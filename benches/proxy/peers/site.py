"""What a proxy must serve, as an input for its configuration."""
import os, re
from dataclasses import dataclass

from inputs.world import World

FOLDER = os.path.dirname(os.path.abspath(__file__))


@dataclass
class Ports:
    plain: int
    tls: int
    peers: int
    admin: int


@dataclass
class Site:
    """The proxy of region `eu`. With `is_pair`, a second proxy serves region `us`, and the first one sends requests for `us` there
    over TLS 1.3 with certificates on both sides. Without, the first one sends them to the app server of `us`."""

    folder: str
    world: World
    workers: int
    connections: int
    ports: dict[str, Ports]
    apps: dict[str, int]
    is_pair: bool = False
    is_h2_upstream: bool = False
    routes: int = 0

    def certificate(self, name):
        return self.world.path("certs/" + name)

    def write(self, name, content):
        path = f"{self.folder}/{name}"
        with open(path, "w") as file:
            file.write(content)
        return path


def fill(template, values):
    """The content of a template, with a value for each `<<name>>`. A relative path starts in this folder."""
    with open(os.path.join(FOLDER, template)) as file:
        return re.sub(r"<<(\w+)>>", lambda found: str(values[found[1]]), file.read())
