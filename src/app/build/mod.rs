//! Builds everything that a configuration describes: certificates, databases, tables, one snapshot.

mod offline;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderValue;
use tokio::time::Instant;

use crate::access_log;
use crate::acme;
use crate::config::{self, Config, Settings};
use crate::decision::policy::Policy;
use crate::directory::Directory;
use crate::engine;
use crate::geoip::GeoIp;
use crate::http::pool::Gateway;
use crate::model::day::Day;
use crate::model::region::{RegionId, Registry};
use crate::passwords::Passwords;
use crate::proxy::Snapshot;
use crate::proxy::connection::{ListenerConfig, Security};
use crate::proxy::ingress::ListenerOptions;
use crate::services::{Service, ServiceError, Services};
use crate::session::Seal;
use crate::tokens::{self, Tokens};
use crate::transport::dial::{HttpVersion, Secured, Server, authority_of};
use crate::transport::listener::Accepts;
use crate::transport::tls::{Challenges, ClientTls, PeerTls};

use super::files::{self, Stamp};
use super::status::{self, Expiring};
use super::{StartError, resources};

pub use offline::{Offline, check_cases, check_files, ending_transfers, explain, offline};

/// The configuration of each listener, by configured address.
pub type ListenerConfigs = HashMap<SocketAddr, ListenerConfig>;

/// Everything that was built from a configuration.
pub struct Built {
    pub snapshot: Arc<Snapshot>,
    pub listener_configs: Arc<ListenerConfigs>,
    pub settings: Settings,
    /// The stamps of the files that it was built from.
    pub files: Files,
    peers: Option<Arc<PeerTls>>,
    pub challenges: Arc<Challenges>,
    /// The files that stop being valid.
    pub expiring: Vec<Expiring>,
    /// The tables that could not be read again, with the reason. Their previous contents are still in use.
    pub kept: Vec<String>,
    /// The differences from the policy before, in words.
    pub changes: Vec<String>,
}

impl Built {
    /// A copy that shares everything large.
    pub fn share(&self) -> Self {
        Self {
            snapshot: Arc::clone(&self.snapshot),
            listener_configs: Arc::clone(&self.listener_configs),
            settings: self.settings.clone(),
            files: self.files.clone(),
            peers: self.peers.clone(),
            challenges: Arc::clone(&self.challenges),
            expiring: self.expiring.clone(),
            kept: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// Logs the files that are not valid, or will soon not be. Returns when to do it again.
    pub fn report_expiry(&self) -> Instant {
        let now = SystemTime::now();
        for note in self.expiring.iter().filter_map(|expiring| expiring.note(now)) {
            tracing::warn!("{note}");
        }
        Instant::now() + status::until_next_note(&self.expiring, now)
    }
}

/// The stamps of the files that were read, by the part that is built from them.
#[derive(Clone, Default)]
pub struct Files {
    pub geoip: Option<Stamp>,
    pub directory: Option<(Stamp, String)>,
    pub tokens: Option<(Stamp, tokens::Settings)>,
    pub peers: Vec<Stamp>,
    pub upstreams: Vec<Stamp>,
    /// Every file of the configuration, stamped before it was read.
    pub all: Vec<Stamp>,
}

/// The input of a build.
pub struct Sources<'a> {
    /// The stamps of the files of the configuration, taken before they were read.
    pub read: Vec<Stamp>,
    pub config: Config,
    pub registry: &'a Registry,
    /// The previous build; its unchanged parts are reused.
    pub before: Option<&'a Built>,
    /// Whether an operator has confirmed a loss of users beyond `max_loss`.
    pub accepts_loss: bool,
}

/// Loads a configuration whose files have stopped changing. Returns it with the stamps of its files, taken before they were read.
pub fn load(file: &Path, region: Option<&str>, registry: &mut Registry) -> Result<(Config, Vec<Stamp>), StartError> {
    let mut stamps = vec![files::settle_one(file)?];
    loop {
        let (today, mut numbers) = (Day::of(SystemTime::now()), registry.clone());
        let config = config::load(file, region, &mut numbers, today).map_err(StartError::Config)?;
        // Only a loaded configuration names its other files, which must be read again after they were stamped.
        let named = || config.files.iter().chain(&config.folders);
        if named().all(|file| stamps.iter().any(|stamp| stamp.file == *file)) {
            *registry = numbers;
            return Ok((config, stamps));
        }
        stamps = files::settle(&config.files)?;
        stamps.extend(files::stamps(&config.folders));
    }
}

/// The settings of the log and of the access log; `None` if the configuration has mistakes, which the start reports.
pub fn log_settings(file: &Path, region: Option<&str>) -> Option<(config::Log, Option<access_log::Settings>)> {
    let (config, _) = load(file, region, &mut Registry::default()).ok()?;
    Some((config.settings.log, config.settings.access_log))
}

/// Logs what a valid configuration should be asked about.
fn log_notes(policy: &Policy, settings: &Settings) {
    let unused = config::unused_services(policy, &settings.actions);
    for note in config::notes(policy, Day::of(SystemTime::now())).into_iter().chain(unused) {
        tracing::warn!("{note}");
    }
}

/// Builds everything without putting it into use.
pub fn build(sources: Sources<'_>) -> Result<Built, StartError> {
    let Sources { read, config: Config { policy, settings, cases, .. }, registry, before, accepts_loss } = sources;
    log_notes(&policy, &settings);
    // Before the files are stamped, because it writes placeholders for certificates that are not fetched yet.
    for files in settings.acme() {
        acme::prepare(files)?;
    }
    let mut all = files::settle(&files::of_settings(&settings))?;
    all.extend(read);
    let (peers, peer_stamps) = peers(&settings, &policy, before)?;
    let challenges = before.map_or_else(Arc::default, |before| Arc::clone(&before.challenges));
    let listener_configs = Arc::new(listener_configs(&settings, peers.as_deref(), &challenges)?);
    let gateways = gateways(&settings, &policy, peers.as_ref(), before);
    let mut kept = Vec::new();
    let table_stamps = files::stamps(&files::tables_of(&settings));
    let tables = before.map(|before| (&before.snapshot, &before.files));
    let geoip_before = tables.map(|(snapshot, files)| (snapshot.judging.geoip.clone(), files.geoip.clone()));
    let (geoip, geoip_stamp) =
        or_before(geoip(&settings, before), geoip_before, "the previous GeoIP database is kept", &mut kept)?;
    let directory_before = tables.map(|(snapshot, files)| (snapshot.judging.directory.clone(), files.directory.clone()));
    let directory = directory(&settings, registry, before, accepts_loss);
    let (directory, directory_stamp) = or_before(directory, directory_before, "the previous user table is kept", &mut kept)?;
    let tokens_before = tables.map(|(snapshot, files)| (snapshot.tokens.clone(), files.tokens.clone()));
    let (tokens, token_stamp) =
        or_before(tokens(&settings, before), tokens_before, "the previous token keys are kept", &mut kept)?;
    let seal = settings.seal.as_ref().map(Seal::open_keys).transpose()?.map(Arc::new);
    let (services, upstream_stamps) = services(&settings, before)?;
    let passwords = passwords(&settings, before)?;
    files::check_unchanged(&all)?;
    all.extend(table_stamps);
    let judging = engine::snapshot::JudgingSnapshot {
        policy,
        slashes: settings.slashes,
        geoip,
        geoip_max_age: settings.geoip.as_ref().and_then(|settings| settings.max_age),
        directory,
    };
    offline::judge_cases(&cases, &judging)?;
    let snapshot = Arc::new(Snapshot {
        judging: Arc::new(judging),
        intake: settings.intake.clone(),
        limits: resources::fit(settings.limits, &settings.overload),
        overload: settings.overload,
        privacy: settings.privacy.clone(),
        cors_origins: settings.cors_origins.clone(),
        actions: settings.actions.clone(),
        passwords,
        tokens,
        seal,
        services,
        gateways,
        sites: sites_of(&listener_configs),
        peers: peers.clone(),
        urls: settings.urls.iter().cloned().collect(),
        drain_notice: (settings.probes.every.mul_f64(1.2) + settings.probes.timeout).min(settings.limits.drain),
    });
    let files = Files {
        geoip: geoip_stamp,
        directory: directory_stamp,
        tokens: token_stamp,
        peers: peer_stamps,
        upstreams: upstream_stamps,
        all,
    };
    let table_changed = files.directory.as_ref().and_then(|(stamp, _)| stamp.modified());
    let expiring = status::expiring(snapshot.policy(), &settings, snapshot.judging.geoip.as_deref(), table_changed);
    Ok(Built { snapshot, listener_configs, settings, files, peers, challenges, expiring, kept, changes: Vec::new() })
}

/// Waits until a file stops changing and reads it; fails if the file changes while it is read.
fn settled<T>(file: &Path, read: impl FnOnce() -> Result<T, StartError>) -> Result<(T, Stamp), StartError> {
    let stamp = files::settle_one(file)?;
    let table = read()?;
    files::check_unchanged(std::slice::from_ref(&stamp))?;
    Ok((table, stamp))
}

/// Falls back to the previous table if the new one cannot be read, so that the rest of a reload can proceed.
fn or_before<T, S>(
    opened: Result<Opened<T, S>, StartError>,
    before: Option<Opened<T, S>>,
    kept_note: &str,
    kept: &mut Vec<String>,
) -> Result<Opened<T, S>, StartError> {
    match (opened, before) {
        (Err(error), Some((Some(table), stamp))) => {
            kept.push(format!("{kept_note}: {error}"));
            Ok((Some(table), stamp))
        }
        (opened, _) => opened,
    }
}

type Peers = (Option<Arc<PeerTls>>, Vec<Stamp>);

fn peers(settings: &Settings, policy: &Policy, before: Option<&Built>) -> Result<Peers, StartError> {
    let Some(files) = &settings.peer_tls else { return Ok((None, Vec::new())) };
    let own = [&files.own.certificate, &files.own.key, &files.authority];
    let stamps: Vec<_> = own.into_iter().chain(&files.revoked).map(|file| Stamp::of(file)).collect();
    let same = before.filter(|before| before.files.peers == stamps).and_then(|before| before.peers.clone());
    let peers = match same {
        Some(same) => same,
        None => Arc::new(PeerTls::load(files)?),
    };
    check_own_region(&peers, &files.own.certificate, policy.region_name(policy.local))?;
    Ok((Some(peers), stamps))
}

fn services(settings: &Settings, before: Option<&Built>) -> Result<(Arc<Services>, Vec<Stamp>), StartError> {
    let stamps: Vec<_> = settings.service_files().map(|file| Stamp::of(file)).collect();
    let has_same_files = before.is_some_and(|before| before.files.upstreams == stamps);
    let is_same = |before: &&Built| has_same_files && before.settings.services == settings.services;
    let services = match before.filter(is_same) {
        Some(same) => Arc::clone(&same.snapshot.services),
        None => {
            let known = before.map(|before| &*before.snapshot.services);
            let is_same = |known: &Service, settings: &_| has_same_files && known.settings == *settings;
            let services = Services::new(&settings.services, known, is_same)?;
            look_up_names(&services, before.is_some())?;
            Arc::new(services)
        }
    };
    Ok((services, stamps))
}

/// Waits for the names of new app servers. A start goes on without them; a reload would replace app servers that serve by none.
fn look_up_names(services: &Services, is_reload: bool) -> Result<(), StartError> {
    // On a thread of its own, because this one may be running a runtime.
    let look_up = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok::<_, std::io::Error>(runtime.block_on(services.look_up_new()))
    };
    let unresolved = std::thread::scope(|scope| scope.spawn(look_up).join().expect("a lookup does not panic"))?;
    for name in unresolved {
        if is_reload {
            return Err(ServiceError::from(name).into());
        }
        tracing::warn!("{name}");
    }
    Ok(())
}

fn passwords(settings: &Settings, before: Option<&Built>) -> Result<HashMap<PathBuf, Arc<Passwords>>, StartError> {
    let read = |file: &PathBuf| {
        let known = before.and_then(|before| before.snapshot.passwords.get(file));
        Ok((file.clone(), Passwords::read(file, known)?))
    };
    settings.password_files().map(read).collect()
}

fn check_own_region(peers: &PeerTls, file: &Path, local: &str) -> Result<(), StartError> {
    match peers.own_region() {
        Some(region) if region == local => Ok(()),
        found => Err(StartError::OwnRegion {
            file: file.into(),
            found: found.map_or("no region".into(), |region| format!("the region `{region}`")),
            region: local.into(),
        }),
    }
}

fn listener_configs(
    settings: &Settings,
    peers: Option<&PeerTls>,
    challenges: &Arc<Challenges>,
) -> Result<ListenerConfigs, StartError> {
    let mut listener_configs = ListenerConfigs::new();
    for listener in &settings.listeners {
        let security = match (listener.accepts, &listener.tls, peers) {
            (Accepts::Peers, _, Some(peers)) => Security::Peers(Arc::clone(&peers.server)),
            (Accepts::Peers, _, None) => unreachable!("the configuration requires `peer_tls` for a peer listener"),
            (Accepts::Clients, Some(files), _) => Security::Clients(ClientTls::load(files, challenges)?),
            (Accepts::Clients, None, _) => Security::Cleartext,
        };
        let hsts =
            listener.hsts.map(|age| HeaderValue::from_str(&format!("max-age={}", age.as_secs())).expect("digits are valid"));
        let acme_challenges = (listener.accepts == Accepts::Clients && listener.tls.is_none()).then(|| Arc::clone(challenges));
        let (proxy_protocol, redirect) = (listener.proxy_protocol.clone(), listener.redirect);
        let listener_config = ListenerConfig {
            security,
            options: Arc::new(ListenerOptions {
                proxy_protocol,
                redirect,
                hsts,
                challenges: acme_challenges,
                allows_half_close: listener.allows_half_close,
            }),
        };
        listener_configs.insert(listener.address, listener_config);
    }
    Ok(listener_configs)
}

fn sites_of(listener_configs: &ListenerConfigs) -> Vec<Arc<ClientTls>> {
    let site = |listener_config: &ListenerConfig| match &listener_config.security {
        Security::Clients(tls) => Some(Arc::clone(tls)),
        Security::Cleartext | Security::Peers(_) => None,
    };
    listener_configs.values().filter_map(site).collect()
}

/// The gateways of the other regions. With unchanged certificates they keep their TLS configuration, and so their
/// connections.
fn gateways(
    settings: &Settings,
    policy: &Policy,
    peers: Option<&Arc<PeerTls>>,
    before: Option<&Built>,
) -> HashMap<RegionId, Gateway> {
    let Some(peers) = peers else { return HashMap::new() };
    let is_same = |before: &&Built| before.peers.as_ref().is_some_and(|before| Arc::ptr_eq(before, peers));
    let known = before.filter(is_same).map(|before| &before.snapshot.gateways);
    let gateway = |(region, url): &(RegionId, http::Uri)| {
        let tls = known.and_then(|known| known.get(region)).and_then(|gateway| gateway.server.tls.clone());
        let tls = tls.unwrap_or_else(|| {
            let config = peers.client_for(policy.region_name(*region));
            Secured { http1: Arc::clone(&config), config, name: None }
        });
        let server = Server {
            authority: authority_of(url).into(),
            tls: Some(tls),
            http_version: HttpVersion::Http2,
            addresses: None,
            opened: Arc::default(),
        };
        (*region, Gateway { region: *region, server })
    };
    settings.gateways.iter().map(gateway).collect()
}

type Opened<T, S> = (Option<Arc<T>>, Option<S>);

fn geoip(settings: &Settings, before: Option<&Built>) -> Result<Opened<GeoIp, Stamp>, StartError> {
    let Some(settings) = &settings.geoip else { return Ok((None, None)) };
    let stamp = Stamp::of(&settings.database);
    if let Some(before) = before.filter(|before| before.files.geoip.as_ref() == Some(&stamp)) {
        return Ok((before.snapshot.judging.geoip.clone(), Some(stamp)));
    }
    let (geoip, stamp) = settled(&settings.database, || Ok(GeoIp::open(&settings.database)?))?;
    Ok((Some(Arc::new(geoip)), Some(stamp)))
}

/// With unchanged keys, the cache of verified tokens stays in use.
fn tokens(settings: &Settings, before: Option<&Built>) -> Result<Opened<Tokens, (Stamp, tokens::Settings)>, StartError> {
    let Some(settings) = &settings.tokens else { return Ok((None, None)) };
    let stamp = (Stamp::of(settings.file()), settings.clone());
    if let Some(before) = before.filter(|before| before.files.tokens.as_ref() == Some(&stamp)) {
        return Ok((before.snapshot.tokens.clone(), Some(stamp)));
    }
    let (tokens, read) = settled(settings.file(), || Ok(Tokens::open(settings)?))?;
    Ok((Some(Arc::new(tokens)), Some((read, settings.clone()))))
}

fn directory(
    settings: &Settings,
    registry: &Registry,
    before: Option<&Built>,
    accepts_loss: bool,
) -> Result<Opened<Directory, (Stamp, String)>, StartError> {
    let Some(settings) = &settings.directory else { return Ok((None, None)) };
    // Rows contain the numbers of names, so the table is read again when the set of names changes.
    let stamp = (Stamp::of(&settings.file), format!("{registry:?}"));
    if let Some(before) = before.filter(|before| before.files.directory.as_ref() == Some(&stamp)) {
        return Ok((before.snapshot.judging.directory.clone(), Some(stamp)));
    }
    let (directory, read) = settled(&settings.file, || Ok(Directory::open(settings, registry)?))?;
    if let Some(before) = before.and_then(|before| before.snapshot.judging.directory.as_ref()) {
        if !accepts_loss {
            settings.check_loss(before, &directory)?;
        }
        let (users_before, users) = (before.len(), directory.len());
        tracing::info!(file = %settings.file.display(), users_before, users, "user table loaded");
    }
    Ok((Some(Arc::new(directory)), Some((read, stamp.1))))
}
