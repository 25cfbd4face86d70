//! The sections that tell each room how to work.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::admin;
use crate::audit;
use crate::directory;
use crate::geoip;
use crate::model::region::RegionId;
use crate::probes;
use crate::proxy::Limits;
use crate::proxy::intake::{self, AddressSource, KeySource};
use crate::transport::dial::authority_of;
use crate::transport::listener::{self, Accepts};
use crate::transport::tls::{CertificateFiles, PeerFiles};
use crate::upstreams;

use super::policy::PolicyDraft;
use super::reader::{Field, Section};

/// What each room is told, validated.
#[derive(Clone)]
pub struct Settings {
    pub listeners: Vec<listener::Settings>,
    pub peer_tls: Option<PeerFiles>,
    pub admin: admin::Settings,
    pub intake: intake::Settings,
    pub upstreams: upstreams::Settings,
    /// The other regions that have a gateway.
    pub gateways: Vec<(RegionId, http::Uri)>,
    pub urls: Vec<(RegionId, http::Uri)>,
    pub directory: Option<directory::Settings>,
    pub geoip: Option<geoip::Settings>,
    pub probes: probes::Settings,
    pub audit: Option<audit::Settings>,
    pub limits: Limits,
    pub log: Log,
    /// How many threads serve requests; `None` for one a core.
    pub workers: Option<usize>,
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Log {
    pub json: bool,
    /// A line for every request.
    pub requests: bool,
}

pub fn read(section: &Section<'_>, draft: &PolicyDraft<'_>) -> Option<Settings> {
    let local = draft.regions.iter().find(|region| Some(region.id) == draft.local);
    let local_name = local.map_or("", |region| region.name);
    let listeners = read_listen(section, draft);
    let peer_tls = section.optional("peer_tls").map(|field| read_peer_tls(&field, local_name));
    let admin = section.optional("admin");
    let admin = local.and_then(|region| region.admin.clone()).or(admin);
    let admin = admin.map_or(Some(admin::Settings::default()), |field| read_admin(&field));
    let users = section.optional("users").map_or(Some((Vec::new(), None)), |field| read_users(&field));
    let client_address = section.optional("client_address");
    let client_address = client_address.map_or(Some((Vec::new(), AddressSource::Forwarded)), |field| read_client_address(&field));
    let geoip = section.optional("geoip").map(|field| read_geoip(&field));
    let probes = section.optional("latency").map_or(Some(probes::Settings::default()), |field| read_probes(&field));
    let audit = section.optional("audit").map(|field| read_audit(&field, local_name));
    let limits = section.optional("limits").map_or(Some(Limits::default()), |field| read_limits(&field));
    let log = section.optional("log").map_or(Some(Log { json: false, requests: true }), |field| read_log(&field));
    let workers = section.optional("workers").map(|field| field.number(1, 1024));
    let upstreams = read_upstreams(draft);
    check_peers(section, draft, &listeners, peer_tls.is_some());
    check_ledger(section, draft, audit.is_some());
    let (keys, directory) = users?;
    let (trust, source) = client_address?;
    Some(Settings {
        listeners,
        peer_tls: peer_tls.map_or(Some(None), |files| files.map(Some))?,
        admin: admin?,
        intake: intake::Settings { trust, source, keys },
        upstreams: upstreams?,
        gateways: others(draft).filter_map(|region| Some((region.id, region.gateway.clone()?))).collect(),
        urls: draft.regions.iter().filter_map(|region| Some((region.id, region.url.clone()?))).collect(),
        directory,
        geoip: geoip.map_or(Some(None), |settings| settings.map(Some))?,
        probes: probes?,
        audit: audit.map_or(Some(None), |settings| settings.map(Some))?,
        limits: limits?,
        log: log?,
        workers: workers.map_or(Some(None), |number| number.map(|number| Some(number as usize)))?,
    })
}

fn others<'d, 'n>(draft: &'d PolicyDraft<'n>) -> impl Iterator<Item = &'d super::policy::RegionDraft<'n>> {
    draft.regions.iter().filter(|region| Some(region.id) != draft.local)
}

/// The listeners of this region: its own list, where it has one, else the list for all regions.
fn read_listen(section: &Section<'_>, draft: &PolicyDraft<'_>) -> Vec<listener::Settings> {
    let common = section.optional("listen");
    let mut own = None;
    for region in &draft.regions {
        let listeners = region.listen.as_ref().map(read_listeners);
        if Some(region.id) == draft.local {
            own = listeners;
        }
    }
    let common = common.map(|field| read_listeners(&field));
    own.or(common).unwrap_or_else(|| {
        section.wrong::<()>("`listen` is missing: list at least one address, such as `- address: \"127.0.0.1:8080\"`");
        Vec::new()
    })
}

fn read_listeners(field: &Field<'_>) -> Vec<listener::Settings> {
    let mut listeners: Vec<listener::Settings> = Vec::new();
    for item in field.list() {
        let Some(settings) = read_listener(&item) else { continue };
        if listeners.iter().any(|other| other.address == settings.address && settings.address.port() != 0) {
            item.wrong::<()>(format!("`{}` is listened on twice", settings.address));
        }
        listeners.push(settings);
    }
    if listeners.iter().all(|listener| listener.accepts == Accepts::Peers) && !field.list().is_empty() {
        field.wrong::<()>("no listener takes clients; list one without `peers: true`");
    }
    listeners
}

fn read_listener(field: &Field<'_>) -> Option<listener::Settings> {
    let section = field.section()?;
    let address =
        section.required("address", "write an IP address and a port, such as `127.0.0.1:8080`").and_then(|field| field.address());
    let tls = section.optional("tls").map(|field| {
        let section = field.section()?;
        let certificates = section.required("certificates", "list pairs of `certificate` and `key`")?.list();
        section.finish();
        if certificates.is_empty() {
            return field.wrong("list at least one certificate");
        }
        certificates.iter().map(read_certificate).collect::<Option<Vec<_>>>()
    });
    let peers = section.optional("peers").map_or(Some(false), |field| field.flag())?;
    let cleartext = section.optional("cleartext").map_or(Some(false), |field| field.flag())?;
    section.finish();
    let address = address?;
    if peers && tls.is_some() {
        return field.wrong("a listener for peers takes its certificate from `peer_tls`; leave `tls` out");
    }
    if tls.is_none() && !peers && !cleartext && !address.ip().is_loopback() {
        return field.wrong(format!("cleartext stays on loopback: give `{address}` a `tls` section, or say `cleartext: true`"));
    }
    let accepts = if peers { Accepts::Peers } else { Accepts::Clients };
    Some(listener::Settings { address, accepts, certificates: tls.map_or(Some(None), |list| list.map(Some))? })
}

fn read_certificate(field: &Field<'_>) -> Option<CertificateFiles> {
    let section = field.section()?;
    let certificate =
        section.required("certificate", "name the PEM file of the certificate chain").and_then(|field| path(&field));
    let key = section.required("key", "name the PEM file of the private key").and_then(|field| path(&field));
    section.finish();
    Some(CertificateFiles { certificate: certificate?, key: key? })
}

fn read_peer_tls(field: &Field<'_>, local: &str) -> Option<PeerFiles> {
    let section = field.section()?;
    let named = |field: &Field<'_>| Some(PathBuf::from(field.text()?.replace("{region}", local)));
    let certificate = section
        .required("certificate", "name this region's certificate; `{region}` stands for its name")
        .and_then(|field| named(&field));
    let key =
        section.required("key", "name this region's private key; `{region}` stands for its name").and_then(|field| named(&field));
    let authority =
        section.required("authority", "name the PEM file of the authority that signs the peers").and_then(|field| named(&field));
    section.finish();
    Some(PeerFiles { own: CertificateFiles { certificate: certificate?, key: key? }, authority: authority? })
}

fn read_admin(field: &Field<'_>) -> Option<admin::Settings> {
    let section = field.section()?;
    let address = section.optional("address").map_or(Some(admin::Settings::default().address), |field| field.address());
    section.finish();
    Some(admin::Settings { address: address? })
}

type Users = (Vec<KeySource>, Option<directory::Settings>);

fn read_users(field: &Field<'_>) -> Option<Users> {
    let section = field.section()?;
    let keys = section.optional("key").map_or(Vec::new(), |field| field.list());
    let keys: Vec<_> = keys.iter().filter_map(read_key).collect();
    let directory = section.optional("directory").map(|field| {
        let section = field.section()?;
        let file = section.required("file", "name the CSV or YAML file of users and their homes").and_then(|field| path(&field));
        section.finish();
        Some(directory::Settings { file: file? })
    });
    section.finish();
    Some((keys, directory.map_or(Some(None), |settings| settings.map(Some))?))
}

fn read_key(field: &Field<'_>) -> Option<KeySource> {
    let section = field.section()?;
    let header = section.optional("header").and_then(|field| header_name(&field));
    let cookie = section.optional("cookie").and_then(|field| {
        let name = field.text()?;
        let token =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&byte));
        if token { Some(name.to_owned()) } else { field.wrong(format!("`{name}` is no cookie name")) }
    });
    section.finish();
    match (header, cookie) {
        (Some(name), None) => Some(KeySource::Header(name)),
        (None, Some(name)) => Some(KeySource::Cookie(name)),
        _ => field.wrong("write one of `header: NAME` and `cookie: NAME`"),
    }
}

fn header_name(field: &Field<'_>) -> Option<http::HeaderName> {
    let text = field.text()?;
    text.to_ascii_lowercase().parse().ok().or_else(|| field.wrong(format!("`{text}` is no header name")))
}

fn read_client_address(field: &Field<'_>) -> Option<(Vec<IpNet>, AddressSource)> {
    let section = field.section()?;
    let trust = section.optional("trust").map_or(Vec::new(), |field| field.list());
    let trust = trust.iter().map(network).collect::<Option<Vec<_>>>();
    let source = section.optional("from").map_or(Some(AddressSource::Forwarded), |field| match field.text()? {
        "forwarded" => Some(AddressSource::Forwarded),
        "x-forwarded-for" => Some(AddressSource::XForwardedFor),
        "proxy-protocol" => {
            field.wrong("the PROXY protocol is not spoken yet; write `forwarded`, `x-forwarded-for` or a header's name")
        }
        _ => header_name(&field).map(AddressSource::Header),
    });
    section.finish();
    Some((trust?, source?))
}

fn network(field: &Field<'_>) -> Option<IpNet> {
    let text = field.text()?;
    let host = text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or(host).or_else(|| field.wrong(format!("`{text}` is no network; write `10.0.0.0/8` or one address")))
}

fn read_geoip(field: &Field<'_>) -> Option<geoip::Settings> {
    // `policy` reads the rest of this section and reports keys it does not know.
    let section = field.section()?;
    let database =
        section.required("database", "name a country or city database in the MMDB format").and_then(|field| path(&field));
    let max_age = section.optional("max_age").map(|field| field.positive_duration());
    Some(geoip::Settings { database: database?, max_age: max_age.map_or(Some(None), |age| age.map(Some))? })
}

fn read_probes(field: &Field<'_>) -> Option<probes::Settings> {
    let section = field.section()?;
    let default = probes::Settings::default();
    let every = section.optional("every").map_or(Some(default.every), |field| field.positive_duration());
    let timeout = section.optional("timeout").map_or(Some(default.timeout), |field| field.positive_duration());
    section.finish();
    Some(probes::Settings { every: every?, timeout: timeout? })
}

fn read_audit(field: &Field<'_>, local: &str) -> Option<audit::Settings> {
    let section = field.section()?;
    let directory =
        section.required("directory", "name the directory that holds the ledger; `{region}` stands for this region's name");
    let directory = directory.and_then(|field| path(&field)).map(|path| path.to_string_lossy().replace("{region}", local).into());
    section.finish();
    Some(audit::Settings { directory: directory? })
}

fn read_log(field: &Field<'_>) -> Option<Log> {
    let section = field.section()?;
    let json = section.optional("format").map_or(Some(false), |field| field.word(&[("text", false), ("json", true)]));
    let requests = section.optional("requests").map_or(Some(true), |field| field.flag());
    section.finish();
    Some(Log { json: json?, requests: requests? })
}

fn read_limits(field: &Field<'_>) -> Option<Limits> {
    let section = field.section()?;
    let standard = Limits::default();
    let time = |key, standard: Duration| section.optional(key).map_or(Some(standard), |field| field.positive_duration());
    let size = |key, standard: u64| section.optional(key).map_or(Some(standard), |field| field.bytes());
    let count = |key, standard: usize, most| {
        section.optional(key).map_or(Some(standard), |field| field.number(1, most).map(|number| number as usize))
    };
    // All are read before any is missed, so that every mistake is told.
    // hyper needs 8 KiB to parse in, and nobody needs a megabyte.
    let header_bytes = section.optional("header_bytes").map_or(Some(standard.header_bytes), |field| {
        let bytes = field.bytes()?;
        if (8 << 10..=1 << 20).contains(&bytes) { Some(bytes as usize) } else { field.wrong("write a size from 8KiB to 1MiB") }
    });
    let headers = count("headers", standard.headers, 1000);
    let target_bytes = size("target_bytes", standard.target_bytes as u64);
    let body = size("body", standard.body);
    let connections = count("connections", standard.connections, 1_000_000);
    let connections_per_address = count("connections_per_address", standard.connections_per_address, 1_000_000);
    let header_timeout = time("header_timeout", standard.header_timeout);
    let keep_alive = time("keep_alive", standard.keep_alive);
    let connect_timeout = time("connect_timeout", standard.connect_timeout);
    let response_timeout = time("response_timeout", standard.response_timeout);
    let idle_timeout = time("idle_timeout", standard.idle_timeout);
    let request_timeout = time("request_timeout", standard.request_timeout);
    let drain = section.optional("drain").map_or(Some(standard.drain), |field| field.duration());
    let attempts = count("attempts", standard.attempts, 10);
    let peer_connections = count("peer_connections", standard.peer_connections, 64);
    section.finish();
    Some(Limits {
        header_bytes: header_bytes?,
        headers: headers?,
        target_bytes: target_bytes? as usize,
        body: body?,
        connections: connections?,
        connections_per_address: connections_per_address?,
        header_timeout: header_timeout?,
        keep_alive: keep_alive?,
        connect_timeout: connect_timeout?,
        response_timeout: response_timeout?,
        idle_timeout: idle_timeout?,
        request_timeout: request_timeout?,
        drain: drain?,
        attempts: attempts?,
        peer_connections: peer_connections?,
    })
}

fn read_upstreams(draft: &PolicyDraft<'_>) -> Option<upstreams::Settings> {
    let checks: Vec<_> = draft.regions.iter().map(|region| (region.id, region.health.as_ref().map(read_health))).collect();
    let local = draft.regions.iter().find(|region| Some(region.id) == draft.local)?;
    let (_, check) = checks.into_iter().find(|(id, _)| *id == local.id)?;
    Some(upstreams::Settings {
        authorities: local.upstreams.iter().map(authority_of).collect(),
        check: check.map_or(Some(None), |check| check.map(Some))?,
    })
}

fn read_health(field: &Field<'_>) -> Option<upstreams::Check> {
    let standard = upstreams::Check::at("/");
    if !field.is_section() {
        return health_path(field).map(upstreams::Check::at);
    }
    let section = field.section()?;
    let path = section.required("path", "name the path to ask for, such as `/healthz`").and_then(|field| health_path(&field));
    let every = section.optional("every").map_or(Some(standard.every), |field| field.positive_duration());
    let timeout = section.optional("timeout").map_or(Some(standard.timeout), |field| field.positive_duration());
    let rise = section.optional("rise").map_or(Some(u64::from(standard.rise)), |field| field.number(1, 100));
    let fall = section.optional("fall").map_or(Some(u64::from(standard.fall)), |field| field.number(1, 100));
    section.finish();
    Some(upstreams::Check { path: path?.into(), every: every?, timeout: timeout?, rise: rise? as u32, fall: fall? as u32 })
}

fn health_path<'n>(field: &Field<'n>) -> Option<&'n str> {
    let text = field.text()?;
    let fits = text.starts_with('/') && text.parse::<http::uri::PathAndQuery>().is_ok();
    if fits { Some(text) } else { field.wrong(format!("`{text}` is no path; it starts with `/`")) }
}

/// Several regions need a way to each other, or a way to send the client there.
fn check_peers(section: &Section<'_>, draft: &PolicyDraft<'_>, listeners: &[listener::Settings], has_peer_tls: bool) {
    let needs_tls = others(draft).any(|region| region.gateway.is_some())
        || listeners.iter().any(|listener| listener.accepts == Accepts::Peers);
    if needs_tls && !has_peer_tls {
        section.wrong::<()>("`peer_tls` is missing: peers prove their regions to each other with certificates");
    }
    for region in others(draft).filter(|region| region.gateway.is_none() && region.url.is_none()) {
        region
            .field
            .wrong::<()>("this region can neither be reached nor be named to a client: give it a `gateway`, a `url` or both");
    }
}

/// Data that may not be anywhere leaves a line in the ledger when it crosses a border.
fn check_ledger(section: &Section<'_>, draft: &PolicyDraft<'_>, has_ledger: bool) {
    use crate::decision::residency::Stays;
    let crosses = draft.regions.len() > 1 && draft.classes.iter().any(|class| class.rule.stays != Stays::Anywhere);
    if crosses && !has_ledger {
        section.wrong::<()>(
            "`audit` is missing: movements of residency-bound data are recorded; write `audit: { directory: ledger/ }`",
        );
    }
}

fn path(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text()?;
    if text.is_empty() { field.wrong("this path is empty") } else { Some(text.into()) }
}
