//! DNS names of upstreams, looked up again when their time to live ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
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

/// Looks a name up repeatedly, for as long as the task lives. The previous addresses stay in use while lookups fail.
pub async fn watch(settings: &Settings, authority: &str, addresses: &Addresses) {
    let Some((host, port)) = named(authority) else { return };
    let resolver = match resolver(settings) {
        Ok(resolver) => resolver,
        Err(error) => return tracing::error!(error, "cannot create the DNS resolver; using the system resolver"),
    };
    loop {
        let pause = match resolver.lookup_ip(host).await {
            Ok(found) => {
                let mut current: Vec<_> = found.iter().map(|address| SocketAddr::new(address, port)).collect();
                current.sort_unstable();
                if **addresses.load() != current {
                    tracing::info!(authority, addresses = ?current, "upstream addresses changed");
                    addresses.store(Arc::new(current));
                }
                found.valid_until().saturating_duration_since(Instant::now()).clamp(MIN_TTL, MAX_TTL)
            }
            Err(error) => {
                tracing::warn!(authority, %error, "upstream DNS lookup failed; keeping the previous addresses");
                MIN_TTL * 5
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// The name and the port of an authority; `None` if the host is an IP address.
pub fn named(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = authority.rsplit_once(':')?;
    let is_address = host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok();
    (!is_address).then_some((host, port.parse().ok()?))
}

fn resolver(settings: &Settings) -> Result<TokioResolver, String> {
    let failed = |error: hickory_resolver::net::NetError| error.to_string();
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
