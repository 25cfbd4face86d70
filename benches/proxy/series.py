"""Runs a row: starts the proxies, and measures them in turn, round by round."""
import os, shutil
from dataclasses import dataclass, field

from inputs.requests import Requests
from load.generators import Load
from peers.site import Ports, Site, fill
from processes import Cpus, Failed, Processes, answers, wait_until_serving
from processes import Ports as FreePorts
from workloads import Proxy, Stage

MAX_IDLE_CONNECTIONS = 9_000
OTHER_CONNECTIONS = 500


@dataclass
class Figures:
    """The values of a row by label and proxy, one for each round, and what failed."""

    values: dict = field(default_factory=dict)
    failures: dict = field(default_factory=dict)

    def add(self, proxy, values):
        for label, value in values.items():
            self.values.setdefault(label, {}).setdefault(proxy, []).append(value)

    def fail(self, proxy, reason):
        """Also drops the values of earlier rounds, because a proxy with a wrong answer gets no figure."""
        self.failures[proxy] = str(reason)
        for values in self.values.values():
            values.pop(proxy, None)


@dataclass
class Bench:
    """What all rows share."""

    folder: str
    peers: list
    requests: Requests
    nginx: str
    rounds: int
    seconds: float
    descriptors: int
    keeps: bool
    """Whether the files of each row stay."""
    cpus: Cpus = field(default_factory=Cpus)
    ports: FreePorts = field(default_factory=FreePorts)

    @property
    def connections(self):
        """The limit of connections of each proxy, some of which need two descriptors for one."""
        return self.descriptors // 2

    @property
    def idle_connections(self):
        return min(MAX_IDLE_CONNECTIONS, self.connections - OTHER_CONNECTIONS)

    def measure(self, row):
        figures = Figures()
        peers = [peer for peer in self.peers if peer.name.startswith("domicile") or not row.only_domicile]
        if row.is_fresh:
            for number in range(self.rounds):
                Series(self, row, figures, peers, f"{row.name}-{number}").run(1)
        else:
            Series(self, row, figures, peers, row.name).run(self.rounds)
        return figures


class Series:
    """Proxies that run at the same time, each of which waits while another one is measured."""

    def __init__(self, bench, row, figures, peers, name):
        self.bench, self.row, self.figures, self.peers = bench, row, figures, peers
        self.folder = f"{bench.folder}/{name}"
        os.mkdir(self.folder)
        # Workers of a proxy that is started by root may run as another user.
        os.chmod(self.folder, 0o755)
        self.proxy_cpus, self.load_cpus = bench.cpus.split(row.workers) if row.is_pinned else bench.cpus.shared()
        self.apps = {region: bench.ports.free() for region in ("eu", "us")}

    def run(self, rounds):
        with Processes(self.folder) as self.processes:
            load = self._start_load()
            stages = {}
            for peer in self.peers:
                try:
                    proxies = [self._start_proxy(peer, routes) for routes in self.row.routes]
                except Failed as reason:
                    self.figures.fail(peer.name, reason)
                    continue
                stages[peer.name] = self._stage(proxies, load)
            for number in range(rounds):
                # In alternating order, so that a steady change of the machine's speed favours no proxy.
                for name in list(stages)[:: -1 if number % 2 else 1]:
                    self._measure(name, stages[name])
        if not self.bench.keeps:
            shutil.rmtree(self.folder)

    def _measure(self, name, stage):
        if name in self.figures.failures:
            return
        try:
            self.figures.add(name, self.row.workload(stage))
        except (Failed, OSError) as reason:
            self.figures.fail(name, reason)

    def _stage(self, proxies, load):
        bench = self.bench
        return Stage(proxies, self.processes, load, self.load_cpus, bench.requests, bench.seconds, bench.idle_connections)

    def _start_load(self):
        """Starts the app servers, and the load generator, which is idle until a workload uses it."""
        binary, ports = f"{self.bench.folder}/load", [str(port) for port in self.apps.values()]
        if self.row.app == "load":
            return Load(self.processes, binary, self.load_cpus, ports)
        if self.row.app == "h2c":
            config = self._h2c_config()
            self.processes.start("app", [self.bench.nginx, "-p", self.folder, "-e", "stderr", "-c", config], self.load_cpus)
        else:
            self.processes.start("app", [f"{self.bench.folder}/app", *ports], self.load_cpus)
        return Load(self.processes, binary, self.load_cpus)

    def _h2c_config(self):
        answers = {f"{region}_answer": region[0] * 1024 for region in self.apps}
        template = os.path.join(os.path.dirname(os.path.abspath(__file__)), "load/h2c.conf")
        path = f"{self.folder}/h2c.conf"
        with open(path, "w") as file:
            file.write(fill(template, {"folder": self.folder, **self.apps, **answers}))
        return path

    def _start_proxy(self, peer, routes):
        name = f"{peer.name}-{routes}" if routes else peer.name
        site = self._site(name, routes)
        # The region that others depend on starts first.
        started = {}
        for region, command in reversed(peer.commands(site).items()):
            started[region] = self.processes.start(f"{name}-{region}", command, self.proxy_cpus)
        regions = ("eu", "us") if self.row.is_pair else ("eu",)
        for region in regions:
            request = self.bench.requests.one(region)
            is_serving = lambda request=request: answers(site.ports["eu"].plain, request.path, request.headers())
            wait_until_serving(started[region], f"{name}-{region}", self.processes, is_serving)
        return Proxy(site.ports["eu"], [started[region].pid for region in regions], routes)

    def _site(self, name, routes):
        folder = f"{self.folder}/{name}"
        os.mkdir(folder)
        os.chmod(folder, 0o755)
        free = self.bench.ports.free
        return Site(
            folder=folder,
            world=self.bench.requests.world,
            workers=self.row.workers,
            connections=self.bench.connections,
            ports={region: Ports(free(), free(), free(), free()) for region in ("eu", "us")},
            apps=self.apps,
            is_pair=self.row.is_pair,
            is_h2_upstream=self.row.app == "h2c",
            routes=routes,
        )
