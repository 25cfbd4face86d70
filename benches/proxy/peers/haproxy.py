"""HAProxy; its country database is a map of all networks."""
import os, shutil

from peers.site import fill


class Haproxy:
    name = "haproxy"
    install = "apt-get install haproxy"

    def __init__(self):
        self.binary = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")

    def is_missing(self):
        return not self.binary

    def commands(self, site):
        regions = ("eu", "us") if site.is_pair else ("eu",)
        return {region: [self.binary, "-db", "-f", self._config(site, region)] for region in regions}

    def _config(self, site, region):
        sends_to_peer = site.is_pair and region == "eu"
        version = "proto h2" if site.is_h2_upstream else ""
        values = {
            "workers": site.workers,
            "connections": site.connections,
            "data": site.world.folder,
            "bind": bind(site, region),
            "eu": site.apps["eu"],
            "eu_options": version,
            "us": site.ports["us"].peers if sends_to_peer else site.apps["us"],
            "us_options": peer_options(site) if sends_to_peer else version,
        }
        return site.write(f"haproxy-{region}.cfg", fill("haproxy.cfg", values))


def bind(site, region):
    ports, only = site.ports[region], "ssl-min-ver TLSv1.3 backlog 16384"
    if region == "us":
        return (f"bind 127.0.0.1:{ports.peers} ssl crt {site.certificate('us.bundle')} alpn h2,http/1.1 verify required "
                f"ca-file {site.certificate('peers-ca.pem')} {only}")
    return (f"bind 127.0.0.1:{ports.plain} backlog 16384\n"
            f"  bind 127.0.0.1:{ports.tls} ssl crt {site.certificate('site.bundle')} alpn h2,http/1.1 {only}")


def peer_options(site):
    return (f"ssl crt {site.certificate('eu.bundle')} ca-file {site.certificate('peers-ca.pem')} "
            "verify required verifyhost us ssl-min-ver TLSv1.3")
