//! From a configuration to everything that serves it: certificates, databases, tables, one snapshot.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;

use crate::acme;
use crate::config::{self, Config, Settings};
use crate::decision::policy::Policy;
use crate::directory::Directory;
use crate::geoip::GeoIp;
use crate::model::day::Day;
use crate::model::region::{RegionId, Registry};
use crate::proxy::Snapshot;
use crate::proxy::connection::{ListenerConfig, Security};
use crate::proxy::ingress::ListenerOptions;
use crate::session::Seal;
use crate::tokens::{self, Tokens};
use crate::transport::dial::{HttpVersion, Secured, Server, authority_of};
use crate::transport::listener::Accepts;
use crate::transport::tls::{Challenges, ClientTls, PeerTls};
use crate::upstreams::Upstreams;

use super::{StartError, descriptors};

/// How each listener treats its connections, by configured address.
pub type ListenerConfigs = HashMap<SocketAddr, ListenerConfig>;

/// What a configuration became.
pub struct Built {
    pub snapshot: Arc<Snapshot>,
    pub listener_configs: Arc<ListenerConfigs>,
    pub settings: Settings,
    /// The files it was made of, as they were then.
    pub files: Files,
    peers: Option<Arc<PeerTls>>,
    pub challenges: Arc<Challenges>,
    /// Tables that could not be read again, and why: the old ones are still in use.
    pub kept: Vec<String>,
}

impl Built {
    /// The same state once more; everything large is shared.
    pub fn share(&self) -> Self {
        Self {
            snapshot: Arc::clone(&self.snapshot),
            listener_configs: Arc::clone(&self.listener_configs),
            settings: self.settings.clone(),
            files: self.files.clone(),
            peers: self.peers.clone(),
            challenges: Arc::clone(&self.challenges),
            kept: Vec::new(),
        }
    }
}

/// The state of the files that large tables were read from.
#[derive(Clone, Default)]
pub struct Files {
    pub geoip: Option<Stamp>,
    pub directory: Option<(Stamp, String)>,
    pub tokens: Option<(Stamp, tokens::Settings)>,
    pub peers: Vec<Stamp>,
    pub upstreams: Vec<Stamp>,
}

/// Enough of a file's metadata to tell that it is another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stamp {
    file: PathBuf,
    identity: Option<(u64, u64, i64, i64)>,
}

impl Stamp {
    pub fn of(file: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let identity = std::fs::metadata(file).ok().map(|meta| (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()));
        Self { file: file.into(), identity }
    }
}

/// Builds it all; what is unchanged since `before` is taken over. Nothing is put to work here.
pub fn build(config: Config, registry: &Registry, before: Option<&Built>) -> Result<Built, StartError> {
    let Config { policy, settings } = config;
    for note in config::notes(&policy, Day::of(SystemTime::now())) {
        tracing::warn!("{note}");
    }
    let peer_stamps = settings.peer_tls.as_ref().map_or(Vec::new(), |files| {
        let own = [&files.own.certificate, &files.own.key, &files.authority];
        own.into_iter().chain(&files.revoked).map(|file| Stamp::of(file)).collect()
    });
    let peers_before = before.filter(|before| before.files.peers == peer_stamps).and_then(|before| before.peers.clone());
    let peers = match peers_before {
        Some(same) => Some(same),
        None => settings.peer_tls.as_ref().map(PeerTls::load).transpose()?.map(Arc::new),
    };
    if let (Some(peers), Some(files)) = (&peers, &settings.peer_tls) {
        check_own_region(peers, &files.own.certificate, policy.region_name(policy.local))?;
    }
    let challenges = before.map_or_else(Arc::default, |before| Arc::clone(&before.challenges));
    for files in settings.acme() {
        acme::prepare(files)?;
    }
    let listener_configs = Arc::new(listener_configs(&settings, peers.as_deref(), &challenges)?);
    let gateways = gateways(&settings, &policy, peers.as_ref(), before);
    let mut kept = Vec::new();
    let (geoip, geoip_stamp) = geoip(&settings, before).or_else(|error| match before {
        Some(before) if before.snapshot.geoip.is_some() => {
            kept.push(format!("the GeoIP database of before is kept: {error}"));
            Ok((before.snapshot.geoip.clone(), before.files.geoip.clone()))
        }
        _ => Err(error),
    })?;
    let (directory, directory_stamp) = directory(&settings, registry, before).or_else(|error| match before {
        Some(before) if before.snapshot.directory.is_some() => {
            kept.push(format!("the user table of before is kept: {error}"));
            Ok((before.snapshot.directory.clone(), before.files.directory.clone()))
        }
        _ => Err(error),
    })?;
    let (tokens, token_stamp) = tokens(&settings, before).or_else(|error| match before {
        Some(before) if before.snapshot.tokens.is_some() => {
            kept.push(format!("the token keys of before are kept: {error}"));
            Ok((before.snapshot.tokens.clone(), before.files.tokens.clone()))
        }
        _ => Err(error),
    })?;
    let seal = settings.seal.as_ref().map(Seal::open_keys).transpose()?.map(Arc::new);
    let upstreams_before = before.map(|built| &built.snapshot.upstreams);
    let upstream_files = settings.upstreams.targets.iter().filter_map(|target| target.tls.as_ref()).flat_map(|tls| tls.files());
    let upstream_stamps: Vec<_> = upstream_files.map(|file| Stamp::of(file)).collect();
    let is_same = |upstreams: &&Arc<Upstreams>| {
        upstreams.settings == settings.upstreams && before.is_some_and(|before| before.files.upstreams == upstream_stamps)
    };
    let upstreams = match upstreams_before.filter(is_same) {
        Some(same) => Arc::clone(same),
        None => Arc::new(Upstreams::new(settings.upstreams.clone(), upstreams_before.map(|upstreams| &**upstreams))?),
    };
    let snapshot = Arc::new(Snapshot {
        policy,
        intake: settings.intake.clone(),
        limits: descriptors::fit(settings.limits),
        geoip,
        geoip_max_age: settings.geoip.as_ref().and_then(|settings| settings.max_age),
        directory,
        tokens,
        seal,
        upstreams,
        gateways,
        sites: sites_of(&listener_configs),
        peers: peers.clone(),
        urls: settings.urls.iter().cloned().collect(),
        log_requests: settings.log.requests,
        drain_notice: (settings.probes.every.mul_f64(1.2) + settings.probes.timeout).min(settings.limits.drain),
    });
    Ok(Built {
        snapshot,
        listener_configs,
        settings,
        files: Files {
            geoip: geoip_stamp,
            directory: directory_stamp,
            tokens: token_stamp,
            peers: peer_stamps,
            upstreams: upstream_stamps,
        },
        peers,
        challenges,
        kept,
    })
}

/// The same without sockets and certificates: enough to judge by.
pub fn offline(file: &Path, region: Option<&str>, today: Day) -> Result<Snapshot, StartError> {
    let mut registry = Registry::default();
    let Config { policy, settings } = config::load(file, region, &mut registry, today).map_err(StartError::Config)?;
    let (geoip, _) = geoip(&settings, None)?;
    let (directory, _) = directory(&settings, &registry, None)?;
    Ok(Snapshot {
        policy,
        geoip,
        geoip_max_age: settings.geoip.as_ref().and_then(|settings| settings.max_age),
        directory,
        tokens: None,
        seal: None,
        upstreams: Arc::new(Upstreams::none()),
        gateways: HashMap::new(),
        sites: Vec::new(),
        peers: None,
        urls: settings.urls.iter().cloned().collect(),
        intake: settings.intake,
        limits: settings.limits,
        log_requests: false,
        drain_notice: Duration::ZERO,
    })
}

/// Opens every file that a configuration names, and says which cannot be used.
pub fn check_files(file: &Path, region: Option<&str>, today: Day) -> Result<(), Vec<StartError>> {
    let mut registry = Registry::default();
    let config = config::load(file, region, &mut registry, today).map_err(|problems| vec![StartError::Config(problems)])?;
    let Config { policy, settings } = config;
    let mut wrong: Vec<StartError> = Vec::new();
    if let Some(files) = &settings.peer_tls {
        let local = policy.region_name(policy.local);
        let peers = PeerTls::load(files).map_err(StartError::from);
        wrong.extend(peers.and_then(|peers| check_own_region(&peers, &files.own.certificate, local)).err());
    }
    let challenges = Arc::default();
    for mut files in settings.listeners.iter().filter_map(|listener| listener.tls.clone()) {
        // What is yet to be fetched is no mistake, and nothing is written here.
        let fetched = files.acme.as_ref().map(|acme| acme.pair()).filter(|pair| !pair.certificate.exists());
        files.certificates.retain(|pair| fetched.as_ref() != Some(pair));
        wrong.extend(ClientTls::load(&files, &challenges).err().map(StartError::from));
    }
    wrong.extend(geoip(&settings, None).err());
    wrong.extend(directory(&settings, &registry, None).err());
    wrong.extend(tokens(&settings, None).err());
    wrong.extend(settings.seal.as_ref().and_then(|seal| Seal::open_keys(seal).err()).map(StartError::from));
    wrong.extend(Upstreams::new(settings.upstreams.clone(), None).err().map(StartError::from));
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
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
            (Accepts::Peers, _, None) => unreachable!("the configuration demands `peer_tls` for a listener of peers"),
            (Accepts::Clients, Some(files), _) => Security::Clients(ClientTls::load(files, challenges)?),
            (Accepts::Clients, None, _) => Security::Cleartext,
        };
        let hsts =
            listener.hsts.map(|age| HeaderValue::from_str(&format!("max-age={}", age.as_secs())).expect("digits are fine"));
        let answers = (listener.accepts == Accepts::Clients && listener.tls.is_none()).then(|| Arc::clone(challenges));
        let (proxy_protocol, redirect) = (listener.proxy_protocol.clone(), listener.redirect);
        let listener_config = ListenerConfig {
            security,
            options: Arc::new(ListenerOptions { proxy_protocol, redirect, hsts, challenges: answers }),
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

/// How to reach the other regions. With the same certificates their connections are kept.
fn gateways(
    settings: &Settings,
    policy: &Policy,
    peers: Option<&Arc<PeerTls>>,
    before: Option<&Built>,
) -> HashMap<RegionId, Server> {
    let Some(peers) = peers else { return HashMap::new() };
    let is_same = |before: &&Built| before.peers.as_ref().is_some_and(|before| Arc::ptr_eq(before, peers));
    let known = before.filter(is_same).map(|before| &before.snapshot.gateways);
    let gateway = |(region, url): &(RegionId, http::Uri)| {
        let tls = known.and_then(|known| known.get(region)).and_then(|gateway| gateway.tls.clone());
        let tls = tls.unwrap_or_else(|| {
            let config = peers.client_for(policy.region_name(*region));
            Secured { http1: Arc::clone(&config), config, name: None }
        });
        (*region, Server { authority: authority_of(url).into(), tls: Some(tls), http_version: HttpVersion::Http2, places: None })
    };
    settings.gateways.iter().map(gateway).collect()
}

type Opened<T, S> = (Option<Arc<T>>, Option<S>);

fn geoip(settings: &Settings, before: Option<&Built>) -> Result<Opened<GeoIp, Stamp>, StartError> {
    let Some(settings) = &settings.geoip else { return Ok((None, None)) };
    let stamp = Stamp::of(&settings.database);
    if let Some(before) = before.filter(|before| before.files.geoip.as_ref() == Some(&stamp)) {
        return Ok((before.snapshot.geoip.clone(), Some(stamp)));
    }
    let geoip = GeoIp::open(&settings.database)?;
    if settings.max_age.is_some_and(|most| geoip.age(SystemTime::now()) > most) {
        tracing::warn!(file = %settings.database.display(), "the GeoIP database is older than `max_age`: it steers, but proves no jurisdiction; fetch a newer one");
    }
    Ok((Some(Arc::new(geoip)), Some(stamp)))
}

/// With the same keys, what was verified stays remembered.
fn tokens(settings: &Settings, before: Option<&Built>) -> Result<Opened<Tokens, (Stamp, tokens::Settings)>, StartError> {
    let Some(settings) = &settings.tokens else { return Ok((None, None)) };
    let stamp = (Stamp::of(settings.file()), settings.clone());
    if let Some(before) = before.filter(|before| before.files.tokens.as_ref() == Some(&stamp)) {
        return Ok((before.snapshot.tokens.clone(), Some(stamp)));
    }
    Ok((Some(Arc::new(Tokens::open(settings)?)), Some(stamp)))
}

fn directory(
    settings: &Settings,
    registry: &Registry,
    before: Option<&Built>,
) -> Result<Opened<Directory, (Stamp, String)>, StartError> {
    let Some(settings) = &settings.directory else { return Ok((None, None)) };
    // A table's rows are numbers of names: another set of names is another table.
    let stamp = (Stamp::of(&settings.file), format!("{registry:?}"));
    if let Some(before) = before.filter(|before| before.files.directory.as_ref() == Some(&stamp)) {
        return Ok((before.snapshot.directory.clone(), Some(stamp)));
    }
    let directory = Directory::open(settings, registry)?;
    if directory.is_empty() {
        tracing::warn!(file = %settings.file.display(), "the user table is empty: nobody is recorded");
    }
    Ok((Some(Arc::new(directory)), Some(stamp)))
}
