"""nginx with its geoip2 module, the reference of the ratios."""
import os, re, shutil, subprocess

from peers.site import fill

MODULE = "ngx_http_geoip2_module.so"
HEADERS = "Host $host; {0}_set_header X-Geo-Country $geo_country; {0}_set_header X-Geo-Region $region;"


class Nginx:
    name = "nginx"
    missing = "the program or its geoip2 module is missing"
    install = "apt-get install nginx libnginx-mod-http-geoip2"

    def __init__(self):
        self.binary = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
        self.modules = self.binary and load_module(self.binary)

    def is_missing(self):
        return self.modules is None

    def commands(self, site):
        """The command of each region's proxy, `eu` first."""
        regions = ("eu", "us") if site.is_pair else ("eu",)
        return {region: [self.binary, "-p", site.folder, "-e", "stderr", "-c", self._config(site, region)] for region in regions}

    def _config(self, site, region):
        sends_to_peer = site.is_pair and region == "eu"
        kind = "grpc" if site.is_h2_upstream else "proxy"
        values = {
            "modules": self.modules,
            "workers": site.workers,
            "connections": site.connections,
            "folder": site.folder,
            "region": region,
            "database": site.world.database,
            "data": site.world.folder,
            "eu": site.apps["eu"],
            "us": site.ports["us"].peers if sends_to_peer else site.apps["us"],
            "far_scheme": "us https;" if sends_to_peer else "",
            "listen": listen(site, region),
            "upstream": f"{kind}_set_header " + HEADERS.format(kind) + (connection(site) if kind == "proxy" else ""),
            "pass": "grpc_pass grpc://$region;" if kind == "grpc" else "proxy_pass $scheme_of_region://$region;",
            "unbuffered": "" if kind == "grpc" else "proxy_request_buffering off;",
        }
        return site.write(f"nginx-{region}.conf", fill("nginx.conf", values))


def load_module(binary):
    """Returns the directive that loads the geoip2 module: empty if nginx contains the module, None if it is not installed."""
    about = subprocess.run([binary, "-V"], capture_output=True, text=True).stderr
    if re.search(r"--add-module=\S*geoip2", about):
        return ""
    stated = re.findall(r"--modules-path=(\S+)", about)
    for folder in stated + ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"]:
        if os.path.exists(f"{folder}/{MODULE}"):
            return f"load_module {folder}/{MODULE};"
    return None


def listen(site, region):
    ports = site.ports[region]
    if region == "us":
        return (f"listen 127.0.0.1:{ports.peers} ssl backlog=16384; ssl_verify_client on; "
                f"ssl_client_certificate {site.certificate('peers-ca.pem')}; {own_certificate(site, 'us')}")
    return (f"listen 127.0.0.1:{ports.plain} backlog=16384; listen 127.0.0.1:{ports.tls} ssl http2 backlog=16384; "
            f"{own_certificate(site, 'site')}")


def own_certificate(site, name):
    return f"ssl_certificate {site.certificate(name + '.pem')}; ssl_certificate_key {site.certificate(name + '.key')};"


def connection(site):
    """How nginx connects to upstreams, and to the proxy of `us`."""
    return (' proxy_http_version 1.1; proxy_set_header Connection ""; '
            f"proxy_ssl_certificate {site.certificate('eu.pem')}; proxy_ssl_certificate_key {site.certificate('eu.key')}; "
            f"proxy_ssl_trusted_certificate {site.certificate('peers-ca.pem')}; "
            "proxy_ssl_verify on; proxy_ssl_name us; proxy_ssl_protocols TLSv1.3;")
