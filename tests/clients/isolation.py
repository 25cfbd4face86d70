"""A network namespace for tests that use fixed ports."""
import fcntl, os, shutil, socket, struct, subprocess, sys

ISOLATED = "DOMICILE_TEST_IS_ISOLATED"


def isolate(*kinds):
    """Starts this program again in namespaces of its own, if it runs as root and the machine permits it. Returns whether it is in them."""
    if os.environ.get(ISOLATED):
        loopback_up()
        return True
    kinds = ["--net", *kinds]
    if os.geteuid() != 0 or not shutil.which("unshare") or subprocess.run(["unshare", *kinds, "true"], capture_output=True).returncode != 0:
        return False
    os.environ[ISOLATED] = "1"
    os.execvp("unshare", ["unshare", *kinds, sys.executable, *sys.argv])


def loopback_up():
    SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 1, 0x40
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP | IFF_RUNNING))
