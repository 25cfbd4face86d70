"""Runs every `sh` block of README.md and docs/tutorial.md in its order, and compares the output with the `# prints:` lines.

usage: documentation.py BINARY

As root, the commands run in a network namespace of their own, because the pages use fixed ports.
"""
import fcntl, os, pathlib, re, shutil, signal, socket, struct, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TIMEOUT = 30


def isolate():
    """Moves this process into a network namespace with a loopback interface."""
    if os.environ.get("DOCUMENTATION_ISOLATED") or os.geteuid() != 0 or not shutil.which("unshare"):
        return
    os.environ["DOCUMENTATION_ISOLATED"] = "1"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    if probe.returncode == 0:
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])


def loopback_up():
    if not os.environ.get("DOCUMENTATION_ISOLATED"):
        return
    SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 1, 0x40
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP | IFF_RUNNING))


def blocks(page):
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.M | re.S)


def run_block(block, folder, environment):
    """Runs the lines of a block; those that end in `&` run until its end."""
    background, checked = [], 0
    try:
        lines = block.splitlines()
        for index, line in enumerate(lines):
            if line.startswith("# prints:"):
                continue
            command = line.split("  #")[0].strip()
            if command.endswith("&"):
                output = open(os.path.join(folder, "background.log"), "ab")
                background.append(subprocess.Popen(
                    "exec " + command[:-1], shell=True, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True))
                continue
            following = lines[index + 1] if index + 1 < len(lines) else ""
            wanted = following.removeprefix("# prints:").strip() if following.startswith("# prints:") else None
            until = time.monotonic() + TIMEOUT
            while True:
                done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
                said = done.stdout + done.stderr
                if wanted is None and done.returncode == 0 or wanted is not None and wanted in said:
                    break
                if time.monotonic() > until:
                    log = open(os.path.join(folder, "background.log"), errors="replace").read()[-3000:]
                    sys.exit("`%s` printed\n%s\ninstead of `%s`\n%s" % (command, said, wanted, log))
                # A process that was started above may not listen yet.
                time.sleep(0.2)
            checked += wanted is not None
    finally:
        for process in background:
            os.killpg(process.pid, signal.SIGTERM)
        for process in background:
            process.wait(TIMEOUT)
    return checked


def main(binary):
    loopback_up()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("config", "examples", "geoip"):
            os.symlink(ROOT / name, os.path.join(folder, name))
        os.mkdir(os.path.join(folder, "bin"))
        os.symlink(os.path.abspath(binary), os.path.join(folder, "bin/domicile"))
        environment = {**os.environ, "PATH": "%s/bin:%s" % (folder, os.environ["PATH"])}
        for name in ("DOMICILE_REGION", "DOMICILE_CONFIG"):
            environment.pop(name, None)
        for page, least in [("README.md", 4), ("docs/tutorial.md", 9)]:
            found = blocks(ROOT / page)
            checked = sum(run_block(block, folder, environment) for block in found)
            assert checked >= least, "%s: only %d outputs were found" % (page, checked)
            print("%s: %d blocks, %d outputs as promised" % (page, len(found), checked))


isolate()
main(sys.argv[1])
