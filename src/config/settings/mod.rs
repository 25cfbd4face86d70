//! Reads the sections that configure the other modules.

mod access_log;
mod limits;
mod listen;
mod services;
mod users;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::admin;
use crate::audit;
use crate::directory;
use crate::engine::path::Slashes;
use crate::geoip;
use crate::model::region::RegionId;
use crate::model::service::ServiceId;
use crate::probes;
use crate::proxy::actions::{Actions, Auth};
use crate::proxy::admission::overload;
use crate::proxy::headers::Exposure;
use crate::proxy::intake::{self, AddressSource, KeySource};
use crate::proxy::{Limits, Privacy};
use crate::services::Balance;
use crate::session;
use crate::tokens;
use crate::traces;
use crate::transport::listener::{self, Accepts};
use crate::transport::tls::{AcmeFiles, PeerFiles};

use super::draft::{PolicyDraft, RegionDraft, RouteDraft};
use super::reader::{Field, Section};
use crate::decision::policy::rule::Stays;

use access_log::read_access_log;
use limits::{read_limits, read_overload};
use listen::{read_listen, read_peer_tls};
use services::read_services;
use users::{Users, header_name, network, read_client_address, read_users};

/// The validated settings of every module.
#[derive(Clone, Debug)]
pub struct Settings {
    pub listeners: Vec<listener::Settings>,
    pub peer_tls: Option<PeerFiles>,
    pub admin: admin::Settings,
    pub intake: intake::Settings,
    /// The treatment of repeated slashes in a path.
    pub slashes: Slashes,
    pub privacy: Privacy,
    /// Origins whose CORS preflights Domicile responds to itself if the user cannot be determined.
    pub cors_origins: Vec<Box<str>>,
    /// The services of the local region.
    pub services: Vec<(ServiceId, crate::services::Settings)>,
    /// The actions of the routes, in their order.
    pub actions: Vec<Option<Arc<Actions>>>,
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
    pub overload: overload::Settings,
    pub log: Log,
    /// `None` writes none.
    pub access_log: Option<crate::access_log::Settings>,
    pub traces: Option<traces::Settings>,
    /// Number of threads that serve requests; `None` means one per core.
    pub workers: Option<usize>,
}

impl Settings {
    /// One line for each setting that determines how paths and users are read. The lines are part of the policy's hash, because
    /// these settings can change a decision.
    pub fn identification(&self) -> Vec<Box<str>> {
        let slashes = match self.slashes {
            Slashes::Merge => "merge",
            Slashes::Keep => "keep",
            Slashes::Refuse => "refuse",
        };
        let mut lines = vec![format!("paths.repeated_slashes {slashes}")];
        let key = |(index, key): (usize, &KeySource)| match key {
            KeySource::Header(name) => format!("users.key[{index}] header {name}"),
            KeySource::Cookie(name) => format!("users.key[{index}] cookie {name:?}"),
            KeySource::Token(claim) => format!("users.key[{index}] token {claim:?}"),
        };
        lines.extend(self.intake.keys.iter().enumerate().map(key));
        if let Some(tokens) = &self.tokens {
            let (issuer, audience, location) = (&tokens.issuer, &tokens.audience, &tokens.location);
            lines.push(format!("users.token {issuer:?} {audience:?} {location:?} {:?}", tokens.leeway));
        }
        lines.push(format!("users.directory {}", self.directory.is_some()));
        lines.push(format!("users.hint {}", self.seal.is_some()));
        if let Some(geoip) = &self.geoip {
            let age = geoip.max_age.map_or_else(|| "none".to_owned(), |age| humantime::format_duration(age).to_string());
            lines.push(format!("geoip.max_age {age}"));
        }
        lines.into_iter().map(Into::into).collect()
    }

    /// Whether a request with a credential that this process cannot read is refused, except for data that may be anywhere.
    pub fn refuses_unread_credentials(&self) -> bool {
        self.tokens.as_ref().is_none_or(|tokens| tokens.others == tokens::Others::Refuse)
    }

    /// The files that the local region's services name.
    pub fn service_files(&self) -> impl Iterator<Item = &PathBuf> {
        self.services.iter().flat_map(|(_, service)| service.files())
    }

    /// The password files that routes name.
    pub fn password_files(&self) -> impl Iterator<Item = &PathBuf> {
        self.actions.iter().flatten().filter_map(|actions| match actions.auth.as_ref()? {
            Auth::Basic(basic) => Some(&basic.file),
            Auth::Forward(_) => None,
        })
    }

    /// The certificates that come from ACME servers.
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

/// Reads `{ origins: [https://app.example.com] }`.
fn read_cors(field: &Field<'_>) -> Option<Vec<Box<str>>> {
    let section = field.section()?;
    let origins =
        section.required("origins", "list the origins whose preflights are answered, such as `[https://app.example.com]`");
    section.finish();
    let mut list = Vec::new();
    for item in origins?.one_or_many() {
        let text = item.text()?;
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        if !host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '*', '@'])) {
            return item.report(format!(
                "`{text}` is not a valid origin; write scheme and host without a path, such as `https://app.example.com`"
            ));
        }
        list.push(text.to_ascii_lowercase().into());
    }
    Some(list)
}

/// Reads `everyone`, or the networks of the clients that see how their requests were handled.
fn read_exposure(field: &Field<'_>) -> Option<Exposure> {
    let items = field.one_or_many();
    match &items[..] {
        [only] if only.text()? == "everyone" => Some(Exposure::Everyone),
        [only] if only.text()?.parse::<ipnet::IpNet>().is_err() && only.text()?.parse::<std::net::IpAddr>().is_err() => {
            only.report(format!("`{}` is not a valid value; write `everyone`, or networks such as `[10.0.0.0/8]`", only.text()?))
        }
        items => items.iter().map(network).collect::<Option<_>>().map(Exposure::Networks),
    }
}

/// Reads `{ tracing: [tracestate] }`: tracing headers that may cross a border.
fn read_borders(field: &Field<'_>) -> Option<Vec<http::HeaderName>> {
    let section = field.section()?;
    let names = section.required("tracing", "list the tracing headers that may cross a border, such as `[tracestate]`");
    section.finish();
    names?.one_or_many().iter().map(header_name).collect()
}

/// The format of the log.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Log {
    pub json: bool,
}

pub fn read(section: &Section<'_>, draft: &PolicyDraft<'_>) -> Option<Settings> {
    let local = draft.regions.iter().find(|region| Some(region.id) == draft.local);
    let local_name = local.map_or("", |region| region.name);
    let listeners = read_listen(section, draft);
    let peer_tls = section.optional("peer_tls").map(|field| read_peer_tls(&field, local_name));
    let admin = section.optional("admin");
    let admin = local.and_then(|region| region.admin.clone()).or(admin);
    let admin = admin.map_or(Some(admin::Settings::default()), |field| read_admin(&field, &listeners, local_name));
    let users = section.optional("users").map_or(Some(Users::default()), |field| read_users(&field));
    let client_address = section.optional("client_address");
    let client_address = client_address.map_or(Some((Vec::new(), AddressSource::Forwarded)), |field| read_client_address(&field));
    let cors = section.optional("cors").map_or(Some(Vec::new()), |field| read_cors(&field));
    let tracing = section.optional("borders").map_or(Some(Vec::new()), |field| read_borders(&field));
    let exposure = section.optional("expose").map_or(Some(Exposure::Nobody), |field| read_exposure(&field));
    let slashes = section.optional("paths").map_or(Some(Slashes::Merge), |field| read_paths(&field));
    let geoip = section.optional("geoip").map(|field| read_geoip(&field));
    let probes = section.optional("latency").map_or(Some(probes::Settings::default()), |field| read_probes(&field));
    let audit = section.optional("audit").map(|field| read_audit(&field, local_name));
    let limits = section.optional("limits").map_or(Some(Limits::default()), |field| read_limits(&field));
    let overload = section.optional("overload").map_or(Some(overload::Settings::default()), |field| read_overload(&field));
    let log = section.optional("log").map_or(Some(Log::default()), |field| read_log(&field));
    let access_log = read_access_log(section.optional("access_log").as_ref(), log.unwrap_or_default(), local_name);
    let traces = section.optional("traces").map(|field| read_traces(&field));
    let workers = section.optional("workers").map(|field| field.number(1, 1024));
    let services = read_services(section, draft);
    check_shared_counts(section, draft, probes);
    check_passwords(draft, users.as_ref().and_then(|users| users.tokens.as_ref()));
    check_cookies(section, users.as_ref(), services.as_deref().unwrap_or_default());
    check_peers(section, draft, &listeners, peer_tls.is_some());
    check_ledger(section, draft, audit.is_some());
    let limits = limits?;
    let actions = |route: &RouteDraft<'_>| Some(route.actions.as_ref()?.complete(&limits).map(Arc::new));
    let Users { keys, directory, tokens, seal, uniform_refusals } = users?;
    let (trust, source) = client_address?;
    Some(Settings {
        listeners,
        peer_tls: peer_tls.map_or(Some(None), |files| files.map(Some))?,
        admin: admin?,
        intake: intake::Settings { trust, source, keys },
        slashes: slashes?,
        privacy: Privacy { uniform_refusals, tracing_across_borders: tracing?, exposure: exposure? },
        cors_origins: cors?,
        services: services?,
        actions: draft.routes.iter().map(actions).collect::<Option<_>>()?,
        gateways: others(draft).filter_map(|region| Some((region.id, region.gateway.clone()?))).collect(),
        urls: draft.regions.iter().filter_map(|region| Some((region.id, region.url.clone()?))).collect(),
        directory,
        tokens,
        seal,
        geoip: geoip.map_or(Some(None), |settings| settings.map(Some))?,
        probes: probes?,
        audit: audit.map_or(Some(None), |settings| settings.map(Some))?,
        limits,
        overload: overload?,
        log: log?,
        access_log: access_log?,
        traces: traces.map_or(Some(None), |settings| settings.map(Some))?,
        workers: workers.map_or(Some(None), |number| number.map(|number| Some(number as usize)))?,
    })
}

fn others<'d, 'n>(draft: &'d PolicyDraft<'n>) -> impl Iterator<Item = &'d RegionDraft<'n>> {
    draft.regions.iter().filter(|region| Some(region.id) != draft.local)
}

pub(super) fn read_admin(field: &Field<'_>, listeners: &[listener::Settings], local: &str) -> Option<admin::Settings> {
    let section = field.section()?;
    let address = section.optional("address").map_or(Some(admin::Settings::default().address), |field| field.address());
    let socket = section.optional("socket").map_or(Some(None), |field| regional_path(&field, local).map(Some));
    let accepts_commands = section.optional("commands").map_or(Some(false), |field| field.flag());
    section.finish();
    if let Some(address) =
        address.filter(|address| listeners.iter().any(|other| other.address == *address && address.port() != 0))
    {
        return field.report(format!("`{address}` is already used by `listen`; give the control plane a different port"));
    }
    Some(admin::Settings { address: address?, socket: socket?, accepts_commands: accepts_commands? })
}

fn read_geoip(field: &Field<'_>) -> Option<geoip::Settings> {
    // `policy` reads the other keys of this section and reports unknown ones.
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
    let count = |key, standard: u32| {
        section.optional(key).map_or(Some(standard), |field| field.number(1, 1000).map(|number| number as u32))
    };
    let (fall, rise) = (count("fall", default.fall), count("rise", default.rise));
    let settle = section.optional("settle").map_or(Some(default.settle), |field| field.duration());
    section.finish();
    Some(probes::Settings { every: every?, timeout: timeout?, fall: fall?, rise: rise?, settle: settle? })
}

fn read_audit(field: &Field<'_>, local: &str) -> Option<audit::Settings> {
    let section = field.section()?;
    let directory =
        section.required("directory", "name the directory that holds the ledger; `{region}` stands for this region's name");
    let directory = directory.and_then(|field| regional_path(&field, local));
    section.finish();
    Some(audit::Settings { directory: directory?, region: local.to_owned() })
}

/// Reads `{ collector: http://127.0.0.1:4318, sample: 1% }`.
fn read_traces(field: &Field<'_>) -> Option<traces::Settings> {
    let section = field.section()?;
    let collector =
        section.required("collector", "write the URL of an OTLP collector in this region, such as `http://127.0.0.1:4318`");
    let collector = collector.and_then(|field| {
        let url = field.base_url(&["http"])?;
        if url.path().trim_end_matches('/').ends_with("/v1/traces") {
            return field.report("write the URL without `/v1/traces`, which is added");
        }
        Some(url)
    });
    let sample = section.optional("sample").map_or(Some(1), |field| field.percent());
    let service = section.optional("service").map_or(Some("domicile"), |field| field.text());
    section.finish();
    Some(traces::Settings { collector: collector?, sample: f32::from(sample?) / 100.0, service: service?.to_owned() })
}

fn read_log(field: &Field<'_>) -> Option<Log> {
    let section = field.section()?;
    let json = section.optional("format").map_or(Some(false), |field| field.word(&[("text", false), ("json", true)]));
    section.finish();
    Some(Log { json: json? })
}

/// Checks that every other region has a gateway or a URL for redirects, and that connections between peers have certificates.
fn check_peers(section: &Section<'_>, draft: &PolicyDraft<'_>, listeners: &[listener::Settings], has_peer_tls: bool) {
    let needs_tls = others(draft).any(|region| region.gateway.is_some())
        || listeners.iter().any(|listener| listener.accepts == Accepts::Peers);
    if needs_tls && !has_peer_tls {
        section.report::<()>(
            "`peer_tls` is missing: peers authenticate with certificates; give a `certificate`, `key` and `authority`",
        );
    }
    if let Some(own) = draft.regions.iter().find(|region| Some(region.id) == draft.local) {
        check_own_gateway(own, listeners);
    }
    // Without the local region, every region is another one.
    let unreachable = |region: &&RegionDraft<'_>| draft.local.is_some() && region.gateway.is_none() && region.url.is_none();
    for region in others(draft).filter(unreachable) {
        region
            .field
            .report::<()>("neither peers nor redirected clients can reach this region: give it a `gateway`, a `url` or both");
    }
}

/// Checks that a listener for peers is behind the region's own gateway. Its port may be another one, behind a load balancer.
fn check_own_gateway(own: &RegionDraft<'_>, listeners: &[listener::Settings]) {
    let Some(gateway) = own.gateway.as_ref().filter(|_| !listeners.is_empty()) else { return };
    let (for_peers, for_clients): (Vec<_>, Vec<_>) = listeners.iter().partition(|listener| listener.accepts == Accepts::Peers);
    let Some(first) = for_peers.first() else {
        own.field.report::<()>("peers connect to its `gateway`, but none of its listeners has `peers: true`; add one");
        return;
    };
    let port = gateway.port_u16().unwrap_or(443);
    let has_port = |listener: &&listener::Settings| listener.address.port() == port;
    if for_clients.iter().any(has_port) && !for_peers.iter().any(has_port) {
        own.field.report::<()>(format!(
            "its `gateway` names port {port}, where a listener accepts clients; peers connect to port {}",
            first.address.port()
        ));
    }
}

/// The longest interval of probes with which counters are reported in several of them.
const MAX_INTERVAL: Duration = Duration::from_secs(20);

/// Checks that the regions exchange the counts of global rate limits often enough.
fn check_shared_counts(section: &Section<'_>, draft: &PolicyDraft<'_>, probes: Option<probes::Settings>) {
    let has_shared = draft.routes.iter().any(|route| route.actions.as_ref().is_some_and(|actions| actions.shares_counts()));
    if has_shared && probes.is_some_and(|probes| probes.every > MAX_INTERVAL) {
        section.report::<()>(
            "a rate limit with `scope: global` needs `latency.every` of at most 20s, because probes carry its counts",
        );
    }
}

/// Checks that the requests of routes that ask for a password reach them.
fn check_passwords(draft: &PolicyDraft<'_>, tokens: Option<&tokens::Settings>) {
    if tokens.is_none_or(|tokens| tokens.others == tokens::Others::Ignore) {
        return;
    }
    for route in draft.routes.iter().filter(|route| route.actions.as_ref().is_some_and(|actions| actions.asks_for_password())) {
        let class = route.route.as_ref().map(|own| &draft.classes[own.class.index()]);
        if class.is_some_and(|class| class.rule.stays != Stays::Anywhere) {
            route.field.report::<()>(
                "nobody can use this route: with `users.token`, requests with a password are refused for data that may not be anywhere; \
                 write `others: ignore` under `users.token`, or remove `passwords`",
            );
        }
    }
}

/// Checks that the cookies of sticky sessions have names of their own.
fn check_cookies(section: &Section<'_>, users: Option<&Users>, services: &[(ServiceId, crate::services::Settings)]) {
    let mut taken = vec![session::COOKIE.to_owned()];
    if let Some(users) = users {
        taken.extend(users.cookies());
    }
    for (_, service) in services {
        let Balance::Sticky(sticky) = &service.balance else { continue };
        if taken.iter().any(|name| *name == *sticky.cookie) {
            section.report::<()>(format!(
                "the sticky sessions of the service `{}` use the cookie `{}`, which has another use already; choose another name",
                service.name, sticky.cookie
            ));
        }
        taken.push(sticky.cookie.to_string());
    }
}

/// Checks that there is a ledger if residency-bound data can cross a border, because each such movement needs a ledger line.
/// With a transfer, so does the processing of what a client brought across the border itself.
fn check_ledger(section: &Section<'_>, draft: &PolicyDraft<'_>, has_ledger: bool) {
    let crosses = draft.classes.iter().any(|class| {
        let rule = &class.rule;
        rule.stays != Stays::Anywhere && (draft.regions.len() > 1 || !rule.transfers.is_empty())
    });
    if crosses && !has_ledger {
        section.report::<()>(
            "`audit` is missing: movements of residency-bound data across borders are recorded; write \
             `audit: { directory: ledger/ }`",
        );
    }
}

/// A path in which `{region}` is replaced by the name of the local region.
fn regional_path(field: &Field<'_>, local: &str) -> Option<PathBuf> {
    let path = path(field)?.to_string_lossy().replace("{region}", local);
    if path.contains(['{', '}']) {
        return field.report("the only placeholder in this path is `{region}`, for the region's name; write that, or no braces");
    }
    Some(path.into())
}

fn path(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text()?;
    if text.is_empty() { field.report("this path is empty; write a path") } else { Some(text.into()) }
}
