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

/// Bounds for the time between two lookups. The resolver's cache answers those within the time to live of a record.
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(300);

/// The name servers to use; none means the system's.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    pub servers: Vec<SocketAddr>,
}

/// A lookup of app servers.
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

/// Looks a name up once.
///
/// # Errors
/// The reason, if the lookup fails, finds nothing or takes longer than `timeout`.
pub async fn look_up_once(settings: &Settings, query: &Query, timeout: Duration) -> Result<Vec<Endpoint>, String> {
    let resolver = resolver(settings)?;
    match tokio::time::timeout(timeout, look_up(&resolver, query)).await {
        Ok(Ok((found, _))) => Ok(found),
        Ok(Err(error)) => Err(error),
        Err(_) => Err("the name servers did not respond in time".into()),
    }
}

/// Looks a name up repeatedly, for as long as the task lives, and calls `use_found` with the endpoints of each successful lookup. While
/// lookups fail or find nothing, the previous endpoints stay in use.
pub async fn watch(settings: &Settings, query: &Query, mut use_found: impl FnMut(Vec<Endpoint>)) {
    let resolver = match resolver(settings) {
        Ok(resolver) => resolver,
        Err(error) => return tracing::error!(error, "cannot create the DNS resolver"),
    };
    loop {
        let pause = match look_up(&resolver, query).await {
            Ok((found, valid_until)) => {
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

/// The endpoints of a query, sorted, and the end of their time to live. The error is the reason that there are none.
async fn look_up(resolver: &TokioResolver, query: &Query) -> Result<(Vec<Endpoint>, Instant), String> {
    let (mut found, valid_until) = match query {
        Query::Addresses { name, port } => look_up_host(resolver, name, *port, 1).await?,
        Query::Services(name) => look_up_services(resolver, name).await?,
    };
    found.sort_unstable();
    found.dedup_by_key(|endpoint| endpoint.address);
    if found.is_empty() { Err("the name has no addresses".into()) } else { Ok((found, valid_until)) }
}

/// The addresses of all targets that can be resolved. One that cannot does not keep the others from being used.
async fn look_up_services(resolver: &TokioResolver, name: &str) -> Result<(Vec<Endpoint>, Instant), String> {
    let answer = resolver.srv_lookup(name).await.map_err(|error| error.to_string())?;
    let records = answer.answers().iter().filter_map(|record| match &record.data {
        RData::SRV(record) => Some(record),
        _ => None,
    });
    let lowest = records.clone().map(|record| record.priority).min();
    let (mut found, mut valid_until, mut failure) = (Vec::new(), answer.valid_until(), None);
    let mut lookups = tokio::task::JoinSet::new();
    for record in records.filter(|record| Some(record.priority) == lowest) {
        let (resolver, record) = (resolver.clone(), record.clone());
        lookups.spawn(async move {
            let target = record.target.to_utf8();
            let found = look_up_host(&resolver, target.trim_end_matches('.'), record.port, record.weight.max(1)).await;
            found.map_err(|error| format!("{target}: {error}"))
        });
    }
    while let Some(looked_up) = lookups.join_next().await {
        match looked_up.unwrap_or_else(|error| Err(error.to_string())) {
            Ok((endpoints, until)) => {
                found.extend(endpoints);
                valid_until = valid_until.min(until);
            }
            Err(error) => {
                tracing::warn!(name, %error, "a target of the service cannot be resolved; using the others");
                failure = Some(error);
            }
        }
    }
    match failure {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok((found, valid_until)),
    }
}

/// The IPv4 addresses of a host, or its IPv6 addresses if it has no others. Both would count a server twice.
async fn look_up_host(resolver: &TokioResolver, host: &str, port: u16, weight: u16) -> Result<(Vec<Endpoint>, Instant), String> {
    let answer = resolver.lookup_ip(host).await.map_err(|error| error.to_string())?;
    let (ipv4, ipv6): (Vec<_>, Vec<_>) = answer.iter().partition(IpAddr::is_ipv4);
    let addresses = if ipv4.is_empty() { ipv6 } else { ipv4 };
    let endpoint = |address| Endpoint { address: SocketAddr::new(address, port), host: host.into(), weight };
    Ok((addresses.into_iter().map(endpoint).collect(), answer.valid_until()))
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
