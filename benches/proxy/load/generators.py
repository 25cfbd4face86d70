"""Runs the load generators, checks what they report, and measures the CPU time of the proxy meanwhile."""
import os, re, subprocess
from dataclasses import dataclass

from processes import Failed

FOLDER = os.path.dirname(os.path.abspath(__file__))
WARM_UP_SECONDS = 1
HANDSHAKE_CLIENTS = 4


@dataclass
class Result:
    requests: int
    cpu_seconds: float
    bytes: int = 0


def compile_programs(folder):
    """The app server, and the load generator with the app server as a library."""
    compiler = ["cc", "-O2", "-Wall", "-o"]
    subprocess.run([*compiler, f"{folder}/app", "app.c"], cwd=FOLDER, check=True)
    subprocess.run([*compiler, f"{folder}/load", "-DAPP_AS_LIBRARY", "load.c", "client.c", "app.c"], cwd=FOLDER, check=True)


class Load:
    """The program load.c, which runs the app servers as well if it is given their ports."""

    def __init__(self, processes, binary, cpus, apps=()):
        self.processes, self.command, self.cpus = processes, [binary, *apps], cpus
        self._start()

    def _start(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = self.processes.start("load", self.command, self.cpus, **pipes)

    def run(self, cpu, port, requests, connections, seconds, rate=0, samples="-"):
        """The result, and the number of wrong or missing answers. `cpu` returns the CPU time so far."""
        if self.process.poll() is not None:
            self._start()
        self._write(f"{port} {connections} {min(WARM_UP_SECONDS, seconds)} {seconds} {rate} {requests} {samples}\n")
        self._expect(r"measuring")
        before = cpu()
        done = self._expect(r"done requests=(\d+) wrong=(\d+) bytes=(\d+)")
        used = cpu() - before
        self._expect(r"ready")
        count, wrong, transferred = map(int, done.groups())
        return Result(count, used, transferred), wrong

    def last_message(self):
        return (self.processes.log("load").strip().splitlines() or ["no message"])[-1]

    def _write(self, line):
        try:
            self.process.stdin.write(line)
        except BrokenPipeError:
            raise Failed(f"the load generator has ended: {self.last_message()}") from None

    def _expect(self, pattern):
        line = self.process.stdout.readline()
        found = re.match(pattern, line)
        if not found:
            raise Failed(f"the load generator stopped: {self.last_message()}")
        return found


def wrk(processes, cpus, cpu, port, requests, connections, seconds):
    """HTTP/1.1 over TLS. The handshakes at the start count; for 64 connections, they are less than a hundredth of four seconds."""
    script = ["-s", f"{FOLDER}/wrk.lua", f"https://127.0.0.1:{port}", "--", requests]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", *script]
    before = cpu()
    output = processes.start("wrk", command, cpus, stdout=subprocess.PIPE, text=True).communicate()[0]
    used = cpu() - before
    done = re.search(r"done requests=(\d+) wrong=(\d+)", output)
    if not done or done[2] != "0" or done[1] == "0":
        raise Failed(f"wrk: {done[0] if done else output.strip()[-200:]}")
    return Result(int(done[1]), used)


def h2load(processes, cpus, cpu, port, uris, headers, connections, streams, seconds, answer_bytes):
    """HTTP/2 over TLS."""
    duration = [f"--warm-up-time={WARM_UP_SECONDS}", f"--duration={max(1, round(seconds))}"]
    command = ["h2load", "-t1", f"-c{connections}", f"-m{streams}", *duration, "-i", uris, "-B", f"https://127.0.0.1:{port}"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    process = processes.start("h2load", command, cpus, stdout=subprocess.PIPE, text=True)
    output, times = "", []
    for line in process.stdout:
        output += line
        if line.startswith("Main benchmark duration is "):
            times.append(cpu())
    process.wait()
    if len(times) != 2 or "Application protocol: h2" not in output:
        raise Failed(f"h2load: {output.strip()[-200:]}")
    return Result(h2load_requests(output, answer_bytes), times[1] - times[0])


def h2load_requests(output, answer_bytes):
    ended = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
    requests, *failed = map(int, ended.groups())
    # These bytes include the warm-up. h2load itself fails answers that do not match their Content-Length.
    data = int(re.search(r"\((\d+)\) data", output)[1])
    if any(failed) or not requests or data < requests * answer_bytes:
        raise Failed(f"h2load: {ended[0]}, {data} bytes")
    return requests


def handshakes(processes, cpus, cpu, port, seconds):
    """Full TLS 1.3 handshakes, without a request."""
    command = ["openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-new", "-tls1_3", "-time", str(max(1, round(seconds)))]
    before = cpu()
    clients = [processes.start("openssl", command, cpus, stdout=subprocess.PIPE, text=True) for _ in range(HANDSHAKE_CLIENTS)]
    outputs = [client.communicate()[0] for client in clients]
    used = cpu() - before
    counts = [re.search(r"^(\d+) connections in \d+ real seconds", output, re.M) for output in outputs]
    if not all(counts) or not all(int(count[1]) for count in counts):
        raise Failed(f"openssl s_time: {outputs[0].strip()[-200:]}")
    return Result(sum(int(count[1]) for count in counts), used)
