#!/usr/bin/env python3
"""Certificates from a real ACME server (Let's Encrypt's Pebble), by both challenges.

usage: acme.py BINARY
needs: pebble (Debian's package)
"""
import http.client, http.server, json, os, socket, ssl, subprocess, sys, tempfile, threading, urllib.request

from regions import TIMEOUT, eventually, free_port

BINARY = os.path.abspath(sys.argv[1])
NAME = "www.example.test"


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


class World:
    def __init__(self, folder, challenge):
        self.folder, self.processes = folder, []
        subprocess.run([BINARY, "certificates", "--out", folder + "/certs", "here"], check=True, capture_output=True)
        self.http, self.https, self.admin = free_port(), free_port(), free_port()
        acme, management, dns = free_port(), free_port(), free_port()
        json.dump({"pebble": {"listenAddress": "127.0.0.1:%d" % acme, "managementListenAddress": "127.0.0.1:%d" % management,
                   "certificate": folder + "/certs/site.pem", "privateKey": folder + "/certs/site.key", "httpPort": self.http, "tlsPort": self.https,
                   "ocspResponderURL": "", "externalAccountBindingRequired": False}}, open(folder + "/pebble.json", "w"))
        # Every name resolves to this machine.
        self.run(["pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01", "127.0.0.1:%d" % dns, "-http01", "", "-https01", "", "-tlsalpn01", "", "-management", "127.0.0.1:%d" % free_port()], "dns.log")
        self.run(["pebble", "-config", folder + "/pebble.json", "-dnsserver", "127.0.0.1:%d" % dns], "pebble.log", PEBBLE_VA_NOSLEEP="1")
        self.ca = ssl.create_default_context(cafile=folder + "/certs/peers-ca.pem")
        self.root = "https://localhost:%d/roots/0" % management
        app = http.server.ThreadingHTTPServer(("127.0.0.1", 0), App)
        threading.Thread(target=app.serve_forever, daemon=True).start()
        eventually("pebble listens", lambda: self.fetch(self.root))
        open(folder + "/domicile.yaml", "w").write(f"""region: here
workers: 1
listen:
  - {{ address: "127.0.0.1:{self.http}", redirect_to_https: {self.https} }}
  - address: "127.0.0.1:{self.https}"
    tls:
      acme: {{ server: "https://localhost:{acme}/dir", names: [{NAME}], contact: "mailto:ops@example.test", store: "{folder}/store", challenge: {challenge}, authority: "{folder}/certs/peers-ca.pem" }}
admin: {{ address: "127.0.0.1:{self.admin}" }}
jurisdictions: {{ eu: {{ countries: [EEA] }} }}
regions: {{ here: {{ jurisdiction: eu, at: [0, 0], upstreams: ["http://127.0.0.1:{app.server_address[1]}"] }} }}
data: {{ public: {{ stays: anywhere }} }}
routes: [{{ name: all, match: {{}}, data: public, home: [{{ region: here }}] }}]
""")
        self.start()

    def run(self, command, log, **more):
        self.processes.append(subprocess.Popen(command, stdout=open(f"{self.folder}/{log}", "a"), stderr=subprocess.STDOUT, env=dict(os.environ, **more)))
        return self.processes[-1]

    def start(self):
        self.domicile = self.run([BINARY, "run", "--config", self.folder + "/domicile.yaml"], "domicile.log")

    def fetch(self, url):
        try:
            return urllib.request.urlopen(url, context=self.ca, timeout=10).read().decode()
        except OSError:
            return ""

    def serves_trusted(self):
        """Whether a TLS client that trusts only the ACME server's root gets a response."""
        context = ssl.create_default_context(cadata=self.fetch(self.root))
        try:
            with socket.create_connection(("127.0.0.1", self.https), timeout=10) as plain, context.wrap_socket(plain, server_hostname=NAME) as secured:
                secured.sendall(b"GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % NAME.encode())
                return b"".join(iter(lambda: secured.recv(4096), b"")).startswith(b"HTTP/1.1 200")
        except (OSError, ssl.SSLError):
            return False

    def log(self):
        return open(self.folder + "/domicile.log").read()

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(TIMEOUT)


# Fewer steps than these is a failure, so that none is lost unnoticed.
STEPS = 2


def main():
    passed, failed = 0, 0
    for challenge in ("tls-alpn-01", "http-01"):
        with tempfile.TemporaryDirectory() as folder:
            world = World(folder, challenge)
            try:
                eventually("a trusted certificate is served", world.serves_trusted)
                assert os.stat(folder + "/store/certificate.key").st_mode & 0o077 == 0
                # A restart requests no certificate; a deleted certificate is fetched again with the same account.
                account = open(folder + "/store/account.json").read()
                for gone in (False, True):
                    world.domicile.terminate()
                    world.domicile.wait(TIMEOUT)
                    if gone:
                        os.remove(folder + "/store/certificate.pem")
                    world.start()
                    eventually("the certificate is served after a restart", world.serves_trusted)
                assert world.log().count("new certificate fetched") == 2, world.log()
                assert open(folder + "/store/account.json").read() == account
                # No response to the challenge is left: its path is redirected like any other.
                c = http.client.HTTPConnection("127.0.0.1", world.http, timeout=10)
                c.request("GET", "/.well-known/acme-challenge/x")
                assert c.getresponse().status == 308
                passed += 1
                print("ok    ", challenge, flush=True)
            except Exception as error:
                failed += 1
                print("FAILED", challenge, repr(error), world.log()[-3000:], open(folder + "/pebble.log").read()[-1500:], flush=True)
            finally:
                world.stop()
    print("acme: %d passed, %d failed" % (passed, failed))
    sys.exit(0 if (passed, failed) == (STEPS, 0) else 1)


main()
