//! Active health checks with thresholds and jitter.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{Request, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::decision::permit::Permitted;
use crate::http::body::Body;
use crate::http::pool::{SendCause, SendOptions, UpstreamPool};
use crate::model::region::RegionId;
use crate::transport::dial::{self, DialError, UNIX};
use crate::transport::proxy_protocol;
use crate::transport::resolver::{self, Endpoint};

use super::{Check, Service, Services, Upstream};

/// Resolves the names of all upstreams and checks their health, until the future is dropped. Runs on the control thread.
pub async fn watch(services: Arc<Services>, region: RegionId) {
    let mut tasks = JoinSet::new();
    for service in services.all() {
        tasks.spawn_local(watch_service(Arc::clone(service), region));
    }
    while tasks.join_next().await.is_some() {}
}

/// Resolves the names of one service, and checks the health of the upstreams that it has at each moment.
async fn watch_service(service: Arc<Service>, region: RegionId) {
    let changed = Rc::new(Notify::new());
    let mut lookups = JoinSet::new();
    for (entry, settings) in service.settings.upstreams.iter().enumerate() {
        let Some(query) = settings.query.clone() else { continue };
        let (service, changed) = (Arc::clone(&service), Rc::clone(&changed));
        lookups.spawn_local(async move {
            let use_found = |found: Vec<Endpoint>| {
                let addresses: Vec<_> = found.iter().map(|endpoint| endpoint.address).collect();
                if service.roster.set_found(entry, found) {
                    tracing::info!(
                        service = &*service.settings.name,
                        name = query.label(),
                        ?addresses,
                        "upstream addresses changed"
                    );
                    changed.notify_one();
                }
            };
            resolver::watch(&service.settings.names, &query, use_found).await;
        });
    }
    let mut watched: Vec<(Arc<Upstream>, JoinSet<()>)> = Vec::new();
    loop {
        let all = service.all().to_vec();
        // An upstream that keeps its state keeps its task, and with it the count of its results.
        watched.retain(|(upstream, _)| all.iter().any(|current| is_watched_as(upstream, current)));
        for upstream in &all {
            if !watched.iter().any(|(known, _)| is_watched_as(known, upstream)) {
                watched.push((Arc::clone(upstream), watch_upstream(&service, upstream, region)));
            }
        }
        changed.notified().await;
    }
}

/// Whether the task that watches one upstream can serve for the other.
fn is_watched_as(one: &Upstream, other: &Upstream) -> bool {
    Arc::ptr_eq(&one.state, &other.state) && one.server.is_same(&other.server) && one.host == other.host
}

/// Checks the health of one upstream and resolves its name, until the returned set is dropped.
fn watch_upstream(service: &Arc<Service>, upstream: &Arc<Upstream>, region: RegionId) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    if let Some(check) = service.settings.check.clone() {
        tasks.spawn_local(watch_one(Arc::clone(service), Arc::clone(upstream), check, region));
    }
    if let Some(addresses) = upstream.server.addresses.clone().filter(|_| !upstream.is_discovered) {
        let (settings, authority) = (service.settings.names.clone(), Arc::clone(&upstream.server.authority));
        tasks.spawn_local(async move { resolver::watch_addresses(&settings, &authority, &addresses).await });
    }
    tasks
}

async fn watch_one(service: Arc<Service>, upstream: Arc<Upstream>, check: Check, region: RegionId) {
    let pool = UpstreamPool::of(region);
    let mut streak = Streak::default();
    loop {
        let started = Instant::now();
        let Some(result) = run_check(&pool, &upstream, &check, region).await else {
            tokio::time::sleep(check.every).await;
            continue;
        };
        if result.is_ok() && check.path.is_some() {
            let before = upstream.state.answer_micros.load(Ordering::Relaxed);
            let micros = (started.elapsed().as_micros() as u64).max(1);
            let smoothed = if before == 0 { micros } else { (before * 7 + micros * 3) / 10 };
            upstream.state.answer_micros.store(smoothed, Ordering::Relaxed);
        }
        let changed = streak.note(result.is_ok(), upstream.is_up(), &check);
        upstream.state.failure.store(result.as_ref().err().cloned().map(Arc::new));
        if let Some(up) = changed {
            upstream.set_up(up);
            let (service, upstream) = (&*service.settings.name, upstream.authority());
            match &result {
                Ok(()) => tracing::info!(service, upstream, "app server: up"),
                Err(reason) => {
                    tracing::warn!(service, upstream, reason, "app server: down; it gets no requests until it passes its checks");
                }
            }
        }
        // Jitter of 25 % either way, so that the proxies do not check in step.
        tokio::time::sleep(check.every.mul_f64(0.75 + fastrand::f64() * 0.5)).await;
    }
}

/// The result of a check, or why the upstream fails it; `None` if this process could not send it, for example without a free file
/// descriptor.
async fn run_check(pool: &UpstreamPool, upstream: &Upstream, check: &Check, region: RegionId) -> Option<Result<(), String>> {
    let mut options = SendOptions::within(check.timeout);
    options.dial.greeting = upstream.proxy_protocol.map(proxy_protocol::write_own);
    let work = async {
        match &check.path {
            Some(path) => get(pool, upstream, path, region, &options).await,
            None => connect(upstream, &options).await,
        }
    };
    match tokio::time::timeout(check.timeout, work).await {
        Ok(Err(SendCause::Dial(DialError::OutOfDescriptors { .. }))) => None,
        Ok(Ok(status)) if status.is_none_or(|status| status.is_success() || status.is_redirection()) => Some(Ok(())),
        Ok(Ok(status)) => Some(Err(format!("the health check got status {}", status.unwrap_or_default().as_u16()))),
        Ok(Err(cause)) => Some(Err(cause.to_string())),
        Err(_) => Some(Err(format!("the health check got no response within {}", humantime::format_duration(check.timeout)))),
    }
}

/// Opens a connection and closes it.
async fn connect(upstream: &Upstream, options: &SendOptions) -> Result<Option<StatusCode>, SendCause> {
    let mut stream = dial::open(&upstream.server, &options.dial, false).await?;
    // Some servers log a TLS connection that ends without a farewell.
    let _ = stream.shutdown().await;
    Ok(None)
}

async fn get(
    pool: &UpstreamPool,
    upstream: &Upstream,
    path: &str,
    region: RegionId,
    options: &SendOptions,
) -> Result<Option<StatusCode>, SendCause> {
    let server = &upstream.server;
    // A Unix socket has no name that is valid as a host.
    let host = if server.authority.starts_with(UNIX) { "localhost" } else { &*upstream.host };
    let request = Request::get(format!("{}{path}", upstream.base)).header("host", host).header("user-agent", "domicile-health");
    let request = request.body(Body::empty()).map_err(|_| SendCause::Form)?;
    let permitted = Permitted::without_user_data(region, Box::new(request));
    let (response, _) = pool.send(server, permitted, options).await.map_err(|error| error.cause)?;
    Ok(Some(response.status()))
}

/// The number of consecutive results that contradict the current state.
#[derive(Default)]
struct Streak(u32);

impl Streak {
    /// Counts a result; returns the new state if the result changes it.
    fn note(&mut self, passed: bool, up: bool, check: &Check) -> Option<bool> {
        if passed == up {
            self.0 = 0;
            return None;
        }
        self.0 += 1;
        let enough = if up { check.fall } else { check.rise };
        if self.0 < enough {
            return None;
        }
        self.0 = 0;
        Some(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_consecutive_results_change_the_state() {
        let check = Check { rise: 2, fall: 3, ..Check::default() };
        let mut streak = Streak::default();
        let mut up = true;
        let mut seen = Vec::new();
        for passed in [false, false, true, false, false, false, false, true, false, true, true] {
            up = streak.note(passed, up, &check).unwrap_or(up);
            seen.push(up);
        }
        assert_eq!(seen, [true, true, true, true, true, false, false, false, false, false, true]);
    }
}
