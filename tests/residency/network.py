"""A wide-area network on one machine: a namespace for each place, and a switch between them that delays, cuts and records packets.

The switch is a process in the middle: each namespace has one TUN device, whose packets it reads, records and passes on. Kernels without netem need
nothing else. A packet that a cut drops is recorded as well, because its sender has sent it."""
import fcntl, heapq, os, select, signal, socket, struct, subprocess, time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
NETWORK = (10, 78, 0)
RECORD = struct.Struct("!BBI")  # source, destination, length


def available():
    """Why there can be no network, or None."""
    if os.geteuid() != 0:
        return "not root"
    if subprocess.run(["unshare", "--net", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode != 0:
        return "namespaces are forbidden"
    name = f"dom{os.getpid()}-try"
    try:
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        subprocess.run(["ip", "netns", "exec", name, "true"], check=True, capture_output=True)
        device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22s", b"dmtry", IFF_TUN | IFF_NO_PI, b""))
        os.close(device)
    except (OSError, subprocess.CalledProcessError) as problem:
        return f"this machine has no network namespaces with TUN devices ({problem})"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return None


class Network:
    """Places with an address each. `folder` gets the recording and the control socket."""

    def __init__(self, places, folder):
        self.octets = {place: 11 + index for index, place in enumerate(places)}
        self.recording = f"{folder}/packets"
        self.prefix = f"dom{os.getpid()}-"
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for place in places:
            self._ip("netns", "add", self.prefix + place)
            self._ip("-n", self.prefix + place, "link", "set", "lo", "up")
        self.switch = os.fork()
        if self.switch == 0:
            self.control.close()
            try:
                Switch(self, theirs).run()
            finally:
                os._exit(1)
        theirs.close()
        assert self.control.recv(100) == b"ready"

    @staticmethod
    def _ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def address(self, place):
        return ".".join(map(str, (*NETWORK, self.octets[place])))

    def command(self, place, words):
        """A command that runs in a place."""
        return ["ip", "netns", "exec", self.prefix + place, *words]

    def tell(self, *words):
        self.control.send(" ".join(map(str, words)).encode())
        assert self.control.recv(100) == b"done"

    def delay(self, one, other, seconds):
        self.tell("delay", self.octets[one], self.octets[other], seconds)

    def cut(self, source, destination):
        """Drops the packets of one direction."""
        self.tell("cut", self.octets[source], self.octets[destination])

    def heal(self):
        self.tell("heal")

    def close(self):
        os.kill(self.switch, signal.SIGTERM)
        os.waitpid(self.switch, 0)
        for place in self.octets:
            subprocess.run(["ip", "netns", "del", self.prefix + place], capture_output=True)

    def packets(self):
        """Every packet: source and destination as places, and its bytes."""
        places = {octet: place for place, octet in self.octets.items()}
        with open(self.recording, "rb") as file:
            data = file.read()
        at = 0
        while at + RECORD.size <= len(data):
            source, destination, length = RECORD.unpack_from(data, at)
            at += RECORD.size
            if at + length > len(data):
                return
            yield places[source], places[destination], data[at : at + length]
            at += length


class Switch:
    def __init__(self, network, control):
        self.control, self.delays, self.cuts = control, {}, set()
        self.queue, self.number, self.last = [], 0, {}
        self.file = open(network.recording, "wb", buffering=1 << 20)
        self.devices = {}
        for place, octet in network.octets.items():
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            name = f"dm{octet}"
            fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22s", name.encode(), IFF_TUN | IFF_NO_PI, b""))
            space = network.prefix + place
            network._ip("link", "set", name, "netns", space)
            network._ip("-n", space, "link", "set", name, "mtu", "9000", "txqueuelen", "5000", "up")
            network._ip("-n", space, "addr", "add", network.address(place) + "/24", "dev", name)
            self.devices[octet] = device
        signal.signal(signal.SIGTERM, self.stop)
        control.send(b"ready")

    def stop(self, *_):
        self.file.flush()
        os._exit(0)

    def run(self):
        by_device = {device: octet for octet, device in self.devices.items()}
        poll = select.epoll()
        for device in [*by_device, self.control.fileno()]:
            poll.register(device, select.EPOLLIN)
        while True:
            now = time.monotonic()
            while self.queue and self.queue[0][0] <= now:
                _, _, device, packet = heapq.heappop(self.queue)
                self.write(device, packet)
            wait = max(0.0005, self.queue[0][0] - time.monotonic()) if self.queue else -1
            for device, _ in poll.poll(wait):
                if device == self.control.fileno():
                    self.obey()
                    continue
                for _ in range(64):
                    try:
                        packet = os.read(device, 65536)
                    except OSError:
                        break
                    self.forward(by_device[device], packet)

    def obey(self):
        words = self.control.recv(4096).decode().split()
        if words[0] == "delay":
            one, other, seconds = int(words[1]), int(words[2]), float(words[3])
            self.delays[one, other] = self.delays[other, one] = seconds
        elif words[0] == "cut":
            self.cuts.add((int(words[1]), int(words[2])))
        else:
            self.cuts.clear()
        self.control.send(b"done")

    def forward(self, source, packet):
        if len(packet) < 20 or packet[0] >> 4 != 4 or tuple(packet[16:19]) != NETWORK or packet[19] not in self.devices:
            return
        destination = packet[19]
        self.file.write(RECORD.pack(source, destination, len(packet)) + packet)
        if (source, destination) in self.cuts:
            return
        device, delay = self.devices[destination], self.delays.get((source, destination))
        if not delay:
            self.write(device, packet)
            return
        due = max(time.monotonic() + delay, self.last.get((source, destination), 0))
        self.last[source, destination] = due
        self.number += 1
        heapq.heappush(self.queue, (due, self.number, device, packet))

    @staticmethod
    def write(device, packet):
        try:
            os.write(device, packet)
        except OSError:
            pass
