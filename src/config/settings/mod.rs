//! The sections that tell each room how to work.

mod limits;
mod listen;
mod upstreams;
mod users;

use std::path::PathBuf;

use crate::admin;
use crate::audit;
use crate::directory;
use crate::geoip;
use crate::model::region::RegionId;
use crate::probes;
use crate::proxy::Limits;
use crate::proxy::intake::{self, AddressSource, Slashes};
use crate::session;
use crate::tokens;
use crate::transport::listener::{self, Accepts};
use crate::transport::tls::{AcmeFiles, PeerFiles};

use super::policy::PolicyDraft;
use super::reader::{Field, Section};

use limits::read_limits;
use listen::{read_listen, read_peer_tls};
use upstreams::read_upstreams;
use users::{Users, read_client_address, read_users};

/// What each room is told, validated.
#[derive(Clone)]
pub struct Settings {
    pub listeners: Vec<listener::Settings>,
    pub peer_tls: Option<PeerFiles>,
    pub admin: admin::Settings,
    pub intake: intake::Settings,
    pub upstreams: crate::upstreams::Settings,
    /// The other regions that have a gateway.
    pub gateways: Vec<(RegionId, http::Uri)>,
    pub urls: Vec<(RegionId, http::Uri)>,
    pub directory: Option<directory::Settings>,
    pub tokens: Option<tokens::Settings>,
    pub seal: Option<session::Settings>,
    pub geoip: Option<geoip::Settings>,
    pub probes: probes::Settings,
    pub audit: Option<audit::Settings>,
    pub limits: Limits,
    pub log: Log,
    /// How many threads serve requests; `None` for one a core.
    pub workers: Option<usize>,
}

impl Settings {
    /// What is fetched from ACME servers.
    pub fn acme(&self) -> impl Iterator<Item = &AcmeFiles> {
        self.listeners.iter().filter_map(|listener| listener.tls.as_ref()?.acme.as_ref())
    }
}

fn read_paths(field: &Field<'_>) -> Option<Slashes> {
    let section = field.section()?;
    let words = [("merge", Slashes::Merge), ("keep", Slashes::Keep), ("refuse", Slashes::Refuse)];
    let slashes = section.optional("repeated_slashes").map_or(Some(Slashes::Merge), |field| field.word(&words));
    section.finish();
    slashes
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
    let admin = admin.map_or(Some(admin::Settings::default()), |field| read_admin(&field, &listeners));
    let users = section.optional("users").map_or(Some(Users::default()), |field| read_users(&field));
    let client_address = section.optional("client_address");
    let client_address = client_address.map_or(Some((Vec::new(), AddressSource::Forwarded)), |field| read_client_address(&field));
    let slashes = section.optional("paths").map_or(Some(Slashes::Merge), |field| read_paths(&field));
    let geoip = section.optional("geoip").map(|field| read_geoip(&field));
    let probes = section.optional("latency").map_or(Some(probes::Settings::default()), |field| read_probes(&field));
    let audit = section.optional("audit").map(|field| read_audit(&field, local_name));
    let limits = section.optional("limits").map_or(Some(Limits::default()), |field| read_limits(&field));
    let log = section.optional("log").map_or(Some(Log { json: false, requests: true }), |field| read_log(&field));
    let workers = section.optional("workers").map(|field| field.number(1, 1024));
    let upstreams = read_upstreams(section, draft);
    check_peers(section, draft, &listeners, peer_tls.is_some());
    check_ledger(section, draft, audit.is_some());
    let Users { keys, directory, tokens, seal } = users?;
    let (trust, source) = client_address?;
    Some(Settings {
        listeners,
        peer_tls: peer_tls.map_or(Some(None), |files| files.map(Some))?,
        admin: admin?,
        intake: intake::Settings { trust, source, keys, slashes: slashes? },
        upstreams: upstreams?,
        gateways: others(draft).filter_map(|region| Some((region.id, region.gateway.clone()?))).collect(),
        urls: draft.regions.iter().filter_map(|region| Some((region.id, region.url.clone()?))).collect(),
        directory,
        tokens,
        seal,
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

fn read_admin(field: &Field<'_>, listeners: &[listener::Settings]) -> Option<admin::Settings> {
    let section = field.section()?;
    let address = section.optional("address").map_or(Some(admin::Settings::default().address), |field| field.address());
    section.finish();
    if let Some(address) =
        address.filter(|address| listeners.iter().any(|other| other.address == *address && address.port() != 0))
    {
        return field.wrong(format!("`{address}` is listened on already, by `listen`; give the control plane a port of its own"));
    }
    Some(admin::Settings { address: address? })
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
    let directory = directory.and_then(|field| regional_path(&field, local));
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

/// A path in which `{region}` stands for the name of the region that reads it.
fn regional_path(field: &Field<'_>, local: &str) -> Option<PathBuf> {
    let path = path(field)?.to_string_lossy().replace("{region}", local);
    if path.contains(['{', '}']) {
        return field.wrong("only `{region}` stands for something in this path, for the region's name; write that, or no braces");
    }
    Some(path.into())
}

fn path(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text()?;
    if text.is_empty() { field.wrong("this path is empty") } else { Some(text.into()) }
}
