"""Domicile with metrics, ledger, access log and health checks."""
import os

from peers.site import fill

ROUTE = (
    '  - {{ name: r{0}, match: {{ path: "/svc{0}/{{id}}/things/**" }}, '
    "data: personal, home: [directory, geoip, refuse] }}\n"
)


class Domicile:
    install = "cargo build --release"

    def __init__(self, name, binary, logs=True):
        self.name, self.binary, self.logs = name, os.path.abspath(binary), logs
        self.missing = f"`{self.binary}` is not a program"

    def is_missing(self):
        return not os.access(self.binary, os.X_OK)

    def commands(self, site):
        """Both regions always run, because a region probes its peer; only in a pair does `us` serve requests."""
        config = site.write("domicile.yaml", fill("domicile.yaml", self._values(site)))
        return {region: [self.binary, "run", "--config", config, "--region", region] for region in ("eu", "us")}

    def _values(self, site):
        values = {
            "workers": site.workers,
            "connections": site.connections,
            "folder": site.folder,
            "data": site.world.folder,
            "database": site.world.database,
            "eu_countries": ", ".join(f'"{country}"' for country in site.world.eu_countries),
            "geoip_countries": ", ".join(f'"{country}": eu' for country in site.world.eu_countries),
            "routes": "".join(ROUTE.format(number) for number in range(site.routes)),
            "scheme": "h2c" if site.is_h2_upstream else "http",
            "log": "{ output: stderr }" if self.logs else "off",
        }
        for region in ("eu", "us"):
            ports = site.ports[region]
            values |= {f"{region}_{name}": port for name, port in vars(ports).items()}
            values[f"{region}_app"] = site.apps[region]
        return values
