#!/usr/bin/env python3
"""The Debian package: it is installed, serves, survives an upgrade under load, and is removed and purged.

usage: package.py CARGO_DEB
needs: root, target/release/domicile, dpkg, util-linux

Everything happens in a mount and a network namespace, above a view of this machine that is thrown away. The place of systemd is
taken by a program that starts what the unit says, and answers the `systemctl` of the package's scripts.
"""
import http.client, os, re, shutil, signal, socket, subprocess, sys, tempfile, threading

from isolation import isolate
from load import Load, start_app
from regions import eventually
from steps import Steps

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
UNIT = "usr/lib/systemd/system/domicile.service"
DEADLINE = 10
PATH = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"

# Stands for systemd: `kill` and `stop` reach the running process, `is-active` says whether there is one. Links are made by the real one.
SYSTEMCTL = """#!/bin/sh
echo "$*" >> /run/systemctl.log
main=$(cat /run/domicile/main.pid 2>/dev/null)
case "$*" in
*is-active*) kill -0 "$main" 2>/dev/null ;;
*kill*USR2*) kill -USR2 "$main" ;;
*stop*) kill -TERM "$main" 2>/dev/null; while [ -e "/proc/$main/exe" ]; do sleep 0.1; done ;;
*preset* | *is-enabled*) SYSTEMD_OFFLINE=1 exec /usr/bin/systemctl "$@" ;;
esac
"""


class Machine:
    def __init__(self, folder):
        self.folder, self.root, self.process = folder, folder + "/root", None
        self.journaled = 0
        mount("tmpfs", folder, "tmpfs")
        for name in ("upper", "work", "root"):
            os.mkdir(f"{folder}/{name}")
        mount("overlay", self.root, "overlay", f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work")
        mount("tmpfs", self.root + "/run", "tmpfs")
        mount("tmpfs", self.root + "/tmp", "tmpfs")
        mount("tmpfs", self.root + "/dev", "tmpfs")
        for device in ("/dev/null", "/dev/random", "/dev/urandom"):
            self.write(device, "")
            subprocess.run(["mount", "--bind", device, self.root + device], check=True)
        subprocess.run(["mount", "--bind", "/proc", self.root + "/proc"], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", self.root + "/proc"], check=True)
        os.makedirs(self.root + "/run/systemd/system")
        self.write("usr/local/sbin/systemctl", SYSTEMCTL, 0o755)
        # Images of containers forbid the start of services here.
        self.write("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 0\n", 0o755)
        self.app = start_app(3000)

    def path(self, name):
        return f"{self.root}/{name}"

    def exists(self, name):
        return os.path.lexists(self.path(name))

    def write(self, name, text, mode=0o644):
        with open(self.path(name), "w") as file:
            file.write(text)
        os.chmod(self.path(name), mode)

    def run(self, *command):
        env = {"PATH": PATH, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(["chroot", self.root, *command], capture_output=True, text=True, env=env)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def systemctl_calls(self):
        return open(self.path("run/systemctl.log")).read() if self.exists("run/systemctl.log") else ""

    def unit(self, key):
        return re.findall(rf"^{key}=(.*)$", open(self.path(UNIT)).read(), re.MULTILINE)

    def as_the_unit_says(self, command, **more):
        user = self.unit("User")[0]
        capabilities = [f"--ambient-caps=+{name.lower().removeprefix('cap_')}" for name in self.unit("AmbientCapabilities")]
        capabilities += [f"--inh-caps=+{name.lower().removeprefix('cap_')}" for name in self.unit("AmbientCapabilities")]
        inside = f"umask {self.unit('UMask')[0]}; cd {self.unit('WorkingDirectory')[0]}; exec {command}"
        command = ["chroot", self.root, "setpriv", "--reuid", user, "--regid", self.unit("Group")[0], "--clear-groups", "--no-new-privs", *capabilities, "sh", "-c", inside]
        return subprocess.Popen(command, env={"PATH": PATH, **more}, stderr=open(self.folder + "/log", "a"), stdout=subprocess.DEVNULL)

    def start(self):
        """Makes the directories that the unit names, then runs its commands as its user."""
        owner = next(line.split(":") for line in open(self.path("etc/passwd")) if line.startswith("domicile:"))
        for key, below in [("StateDirectory", "var/lib"), ("LogsDirectory", "var/log"), ("RuntimeDirectory", "run")]:
            folder = self.path(f"{below}/{self.unit(key)[0]}")
            os.makedirs(folder, exist_ok=True)
            os.chown(folder, int(owner[2]), int(owner[3]))
        for command in self.unit("ExecStartPre"):
            process = self.as_the_unit_says(command)
            assert process.wait() == 0, self.log()
        # Type=notify: the process says when it serves, and a successor says that it is the main process now.
        self.notify = self.datagrams("run/notify")
        self.journal = self.datagrams("run/systemd/journal/socket")
        threading.Thread(target=self.read_journal, daemon=True).start()
        self.process = self.as_the_unit_says(self.unit("ExecStart")[0], NOTIFY_SOCKET="/run/notify")
        self.main(self.process.pid)
        try:
            self.wait_for("READY=1")
        except TimeoutError:
            raise AssertionError(self.log())

    def datagrams(self, name):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.bind(self.path(name))
        os.chmod(self.path(name), 0o666)
        receiver.settimeout(DEADLINE)
        return receiver

    def read_journal(self):
        """Counts the lines of the access log, as journald receives them."""
        while True:
            try:
                self.journaled += self.journal.recv(65536).count(b"MESSAGE")
            except TimeoutError:
                pass

    def main(self, pid):
        self.pid = pid
        self.write("run/domicile/main.pid", str(pid))

    def wait_for(self, state):
        """Reads the states that the process sends, until `state` starts a line; returns the line."""
        while True:
            for line in self.notify.recv(4096).decode().splitlines():
                if line.startswith(state):
                    return line

    def log(self):
        return open(self.folder + "/log").read()

    def end(self):
        """Kills what a failed step has left behind, and unmounts everything, so that nothing of this machine can be removed with it."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{pid}/root") == self.root:
                    os.kill(int(pid), signal.SIGKILL)
            except OSError:
                pass
        subprocess.run(["umount", "--recursive", "--lazy", self.folder], check=True)
        os.rmdir(self.folder)


def mount(source, target, kind, options=None):
    subprocess.run(["mount", "-t", kind, *(["-o", options] if options else []), source, target], check=True)


def ask(path="/"):
    client = http.client.HTTPConnection("127.0.0.1", 8080, timeout=10)
    client.request("GET", path, headers={"Connection": "close"})
    answer = client.getresponse()
    return answer.status, answer.read()


def installs(machine):
    machine.run("dpkg", "--install", machine.package("0.1.0-1"))
    assert machine.exists("etc/systemd/system/multi-user.target.wants/domicile.service"), "the unit is enabled"
    calls = machine.systemctl_calls()
    assert re.search(r"^.*\bstart\b.* domicile.service$", calls, re.MULTILINE), calls
    readme = open(machine.path("usr/share/doc/domicile/README.md")).read()
    missing = [link for link in re.findall(r"\]\(([^)#:]+)\)", readme) if not machine.exists("usr/share/doc/domicile/" + link)]
    assert not missing, missing
    assert machine.run("stat", "-c", "%U %a", "/etc/domicile/domicile.yaml").strip() == "root 644"


def serves_as_the_unit_says(machine):
    machine.start()
    assert ask() == (200, b"ok"), machine.log()
    assert user_name(machine, os.stat(f"/proc/{machine.pid}").st_uid) == "domicile"
    status = machine.run("domicile", "status", "--config", "/etc/domicile/domicile.yaml")
    assert "home" in status, status


def user_name(machine, uid):
    return next(line.split(":")[0] for line in open(machine.path("etc/passwd")) if line.split(":")[2] == str(uid))


def an_upgrade_under_load_loses_no_request(machine):
    edited = open(machine.path("etc/domicile/domicile.yaml")).read() + "# the operator's own line\n"
    machine.write("etc/domicile/domicile.yaml", edited)
    load, before = Load(8080), machine.pid
    machine.run("dpkg", "--install", machine.package("0.1.1-1"))
    machine.main(int(machine.wait_for("MAINPID=").partition("=")[2]))
    assert machine.process.wait(DEADLINE) == 0, "the old process ends when its requests are done"
    served = load.finish()
    assert machine.pid != before and os.readlink(f"/proc/{machine.pid}/exe").endswith("/usr/bin/domicile"), "the new binary serves"
    assert open(machine.path("etc/domicile/domicile.yaml")).read() == edited, "the operator's configuration is kept"
    assert "0.1.1-1" in machine.run("dpkg-query", "--show", "domicile")
    eventually("a line in the journal for each request", lambda: machine.journaled >= served, log=lambda: f"{machine.journaled} of {served}")
    print(f"        {served} requests, none lost")


def the_ledger_goes_on_and_verifies(machine):
    verified = machine.run("domicile", "audit", "verify", "/var/lib/domicile/ledger")
    assert "written by 2 processes; the chain is whole" in verified, verified


def removal_stops_it_and_purge_keeps_the_ledger(machine):
    machine.run("dpkg", "--remove", "domicile")
    try:
        ask()
        raise AssertionError("it still serves")
    except ConnectionRefusedError:
        pass
    assert machine.exists("etc/domicile/domicile.yaml") and not machine.exists("usr/bin/domicile")
    machine.run("dpkg", "--purge", "domicile")
    left = [name for name in ("etc/domicile", "etc/default/domicile", "etc/logrotate.d/domicile", "run/domicile", UNIT) if machine.exists(name)]
    assert not left, left
    assert os.listdir(machine.path("var/lib/domicile/ledger")), "the ledger is evidence"


def build(cargo_deb, version, folder):
    env = {**os.environ, "PATH": f"{os.path.dirname(os.path.abspath(cargo_deb))}:{os.environ['PATH']}"}
    subprocess.run([f"{ROOT}/packaging/deb", "--no-build", "--strip", "--fast", "--quiet", "--deb-version", version, "-o", folder], check=True, env=env, cwd=ROOT, stdout=subprocess.DEVNULL)


def try_packages(packages):
    steps = Steps("package", 5)
    try:
        machine = Machine(tempfile.mkdtemp(prefix="machine-"))
    except subprocess.CalledProcessError as error:
        print(f"SKIPPED: the package is not tried, because this machine forbids `{' '.join(error.cmd)}`")
        return
    shutil.copytree(packages, machine.path("tmp/packages"))
    machine.package = lambda version: f"/tmp/packages/domicile_{version}_{subprocess.check_output(['dpkg', '--print-architecture'], text=True).strip()}.deb"
    try:
        steps.attempt_all([installs, serves_as_the_unit_says, an_upgrade_under_load_loses_no_request, the_ledger_goes_on_and_verifies,
                           removal_stops_it_and_purge_keeps_the_ledger], machine)
    finally:
        machine.end()
    steps.end()


def main():
    if not isolate("--mount"):
        print("SKIPPED: the package is not tried, because this needs root and namespaces")
        return
    with tempfile.TemporaryDirectory(prefix="packages-") as folder:
        for version in ("0.1.0-1", "0.1.1-1"):
            build(sys.argv[1], version, folder + "/")
        try_packages(folder)


if __name__ == "__main__":
    main()
