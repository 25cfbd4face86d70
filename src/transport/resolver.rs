//! DNS names of upstreams, looked up again when their time to live ends.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use hickory_resolver::{Resolver, TokioResolver};

/// The current addresses of a name; empty until the first lookup.
pub type Addresses = Arc<ArcSwap<Vec<SocketAddr>>>;

/// Bounds for the time to live: at most one lookup a second, and no answer is used for longer than five minutes.
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(300);

/// The name servers to use; none means the system's.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    pub servers: Vec<SocketAddr>,
}

/// What is looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Query {
    /// The addresses of a name, at one port.
    Addresses { name: Box<str>, port: u16 },
    /// The servers of a service: the SRV records with the lowest priority (RFC 2782), and the addresses of their names.
    Services(Box<str>),
}

impl Query {
    /// The query, as logs and metrics name it.
    pub fn label(&self) -> String {
        match self {
            Self::Addresses { name, port } => format!("{name}:{port}"),
            Self::Services(name) => name.to_string(),
        }
    }
}

/// One server that a lookup has found.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// The name that the address belongs to.
    pub host: Box<str>,
    /// The weight of its SRV record, at least 1.
    pub weight: u16,
}

/// Looks a name up repeatedly, for as long as the task lives, and calls `use_found` with what each successful lookup finds. While
/// lookups fail or find nothing, the previous endpoints stay in use.
pub async fn watch(settings: &Settings, query: &Query, mut use_found: impl FnMut(Vec<Endpoint>)) {
    let resolver = match resolver(settings) {
        Ok(resolver) => resolver,
        Err(error) => return tracing::error!(error, "cannot create the DNS resolver"),
    };
    loop {
        let pause = match look_up(&resolver, query).await {
            Ok((mut found, valid_until)) => {
                found.sort_unstable();
                found.dedup_by_key(|endpoint| endpoint.address);
                use_found(found);
                valid_until.saturating_duration_since(Instant::now()).clamp(MIN_TTL, MAX_TTL)
            }
            Err(error) => {
                tracing::warn!(name = query.label(), %error, "upstream DNS lookup failed; keeping the previous addresses");
                MIN_TTL * 5
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Keeps the addresses of a name up to date, for as long as the task lives.
pub async fn watch_addresses(settings: &Settings, authority: &str, addresses: &Addresses) {
    let Some((name, port)) = named(authority) else { return };
    let query = Query::Addresses { name: name.into(), port };
    watch(settings, &query, |found| {
        let current: Vec<_> = found.iter().map(|endpoint| endpoint.address).collect();
        if **addresses.load() != current {
            tracing::info!(authority, addresses = ?current, "upstream addresses changed");
            addresses.store(Arc::new(current));
        }
    })
    .await;
}

async fn look_up(resolver: &TokioResolver, query: &Query) -> Result<(Vec<Endpoint>, Instant), NetError> {
    match query {
        Query::Addresses { name, port } => {
            let (addresses, valid_until) = look_up_host(resolver, name).await?;
            let endpoint = |address| Endpoint { address: SocketAddr::new(address, *port), host: name.clone(), weight: 1 };
            Ok((addresses.into_iter().map(endpoint).collect(), valid_until))
        }
        Query::Services(name) => {
            let found = resolver.srv_lookup(&**name).await?;
            let records = found.answers().iter().filter_map(|record| match &record.data {
                RData::SRV(record) => Some(record),
                _ => None,
            });
            let lowest = records.clone().map(|record| record.priority).min();
            let (mut endpoints, mut valid_until) = (Vec::new(), found.valid_until());
            for record in records.filter(|record| Some(record.priority) == lowest) {
                let target = record.target.to_utf8();
                let (addresses, until) = look_up_host(resolver, &target).await?;
                valid_until = valid_until.min(until);
                let host: Box<str> = target.trim_end_matches('.').into();
                endpoints.extend(addresses.into_iter().map(|address| Endpoint {
                    address: SocketAddr::new(address, record.port),
                    host: host.clone(),
                    weight: record.weight.max(1),
                }));
            }
            Ok((endpoints, valid_until))
        }
    }
}

async fn look_up_host(resolver: &TokioResolver, host: &str) -> Result<(Vec<IpAddr>, Instant), NetError> {
    let found = resolver.lookup_ip(host).await?;
    Ok((found.iter().collect(), found.valid_until()))
}

/// The name and the port of an authority; `None` if the host is an IP address.
pub fn named(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = authority.rsplit_once(':')?;
    let is_address = host.starts_with('[') || host.parse::<IpAddr>().is_ok();
    (!is_address).then_some((host, port.parse().ok()?))
}

fn resolver(settings: &Settings) -> Result<TokioResolver, String> {
    let failed = |error: NetError| error.to_string();
    if settings.servers.is_empty() {
        return Resolver::builder_tokio().map_err(failed)?.build().map_err(failed);
    }
    let server = |address: &SocketAddr| {
        let on = |mut connection: ConnectionConfig| {
            connection.port = address.port();
            connection
        };
        NameServerConfig::new(address.ip(), true, vec![on(ConnectionConfig::udp()), on(ConnectionConfig::tcp())])
    };
    let config = ResolverConfig::from_parts(None, vec![], settings.servers.iter().map(server).collect());
    Resolver::builder_with_config(config, TokioRuntimeProvider::default()).build().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_looked_up() {
        assert_eq!(named("app.internal:80"), Some(("app.internal", 80)));
        for address in ["127.0.0.1:80", "[::1]:80", "app.internal"] {
            assert_eq!(named(address), None);
        }
    }
}
