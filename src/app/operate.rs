//! Carries out the commands of operators.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::admin::Operation;
use crate::audit::{self, Ledger};
use crate::model::vitals::PolicyHash;
use crate::proxy::Snapshot;
use crate::proxy::worker::Shared;
use crate::services::UpstreamChange;

/// Carries out a change of the log's filter. The error says why a filter is not valid.
pub type LogFilter = Arc<dyn Fn(FilterChange<'_>) -> Result<(), String> + Send + Sync>;

/// A change of the log's filter.
#[derive(Clone, Copy)]
pub enum FilterChange<'a> {
    /// None: only finds out whether the filter is valid.
    Check(&'a str),
    Set(&'a str),
    /// Back to the filter of the start.
    Reset,
}

/// The filter of the log, and how often an operator has changed it.
#[derive(Clone)]
pub struct LogLevel {
    filter: Option<LogFilter>,
    changes: Arc<AtomicU64>,
}

impl LogLevel {
    pub fn of(filter: Option<LogFilter>) -> Self {
        Self { filter, changes: Arc::default() }
    }

    fn change(&self, change: FilterChange<'_>) -> Result<(), String> {
        self.filter.as_ref().ok_or("this process has no log")?(change)
    }

    /// Sets the filter for a time.
    fn set(&self, text: &str, period: Duration) -> Result<(), String> {
        let Some(filter) = &self.filter else { return Err("this process has no log".into()) };
        filter(FilterChange::Set(text))?;
        let change = self.changes.fetch_add(1, Ordering::Relaxed) + 1;
        let (filter, changes) = (Arc::clone(filter), Arc::clone(&self.changes));
        tokio::task::spawn_local(async move {
            tokio::time::sleep(period).await;
            // A later command has its own time.
            if changes.load(Ordering::Relaxed) == change && filter(FilterChange::Reset).is_ok() {
                tracing::info!("log level reset");
            }
        });
        Ok(())
    }
}

/// Carries out a command, after it is in the ledger. Returns what it did.
pub async fn operate(operation: &Operation, shared: &Shared, snapshot: &Snapshot, log: &LogLevel) -> Result<String, String> {
    let (what, detail) = (operation.name(), operation.to_string());
    check(operation, shared, snapshot, log)?;
    if let Some(ledger) = &shared.ledger {
        ledger.record_action(what, &detail, &[]).await.map_err(|error| error.to_string())?;
    }
    let done = match operation {
        Operation::RotateSigningKey => {
            ledger_of(shared)?.rotate_signing_key().await.map_err(|error| error.to_string())?;
            "the old signing key has signed the new one, and is destroyed; publish `/.well-known/domicile-ledger-key` again"
                .to_owned()
        }
        operation => carry_out(operation, shared, snapshot, log)?,
    };
    tracing::info!(command = what, detail, "command carried out");
    Ok(done)
}

/// Writes a reload, the policies before and after it and their differences to the ledger and to the log. Nothing waits for it:
/// the reload is in effect.
pub fn record_reload(ledger: Option<Ledger>, (before, after): (PolicyHash, PolicyHash), changes: Vec<String>) {
    changes.iter().for_each(|change| tracing::info!(change, "policy changed"));
    let Some(ledger) = ledger else { return };
    let detail = if before == after { format!("policy {after}") } else { format!("policy {before} to {after}") };
    tokio::task::spawn_local(async move {
        if let Err(error) = ledger.record_action("reload", &detail, &changes).await {
            tracing::error!(%error, "the reload is not in the ledger");
        }
    });
}

/// Whether the command can be carried out, so that the ledger has no line about a typing mistake.
fn check(operation: &Operation, shared: &Shared, snapshot: &Snapshot, log: &LogLevel) -> Result<(), String> {
    match operation {
        Operation::RotatePseudonyms | Operation::RotateSigningKey => ledger_of(shared).map(|_| ()),
        Operation::ForgetPseudonyms { before } => ended_keys(shared, before).map(|_| ()),
        Operation::DrainUpstream { service, upstream, .. } | Operation::WeighUpstream { service, upstream, .. } => {
            service_of(snapshot, service)?.find(upstream).map(|_| ())
        }
        Operation::DrainRegion { region, .. } => region_of(snapshot, region).map(|_| ()),
        Operation::LogLevel { filter, .. } => log.change(FilterChange::Check(filter)),
    }
}

fn carry_out(operation: &Operation, shared: &Shared, snapshot: &Snapshot, log: &LogLevel) -> Result<String, String> {
    match operation {
        Operation::DrainUpstream { service, upstream, drains } => {
            let found = service_of(snapshot, service)?;
            found.operate(upstream, UpstreamChange::Drain(*drains))?;
            Ok(if *drains {
                let last = if found.any_up() {
                    ""
                } else {
                    "; no other upstream of this service is up, so this region does not serve it"
                };
                format!("{service}/{upstream} drains: it gets no new requests, except of sessions that stick to it{last}")
            } else {
                format!("{service}/{upstream} takes requests again")
            })
        }
        Operation::WeighUpstream { service, upstream, weight } => {
            service_of(snapshot, service)?.operate(upstream, UpstreamChange::Weight(weight.unwrap_or(0)))?;
            Ok(match weight {
                Some(weight) => format!("{service}/{upstream} has the weight {weight} until this process ends"),
                None => format!("{service}/{upstream} has its configured weight again"),
            })
        }
        Operation::DrainRegion { region, drains } => {
            let id = region_of(snapshot, region)?;
            shared.drained.set(id, *drains);
            Ok(match (*drains, id == snapshot.policy().local) {
                (true, true) => format!(
                    "{region} drains: the other regions send it no new requests, and its own clients are served elsewhere where the rules allow it"
                ),
                (true, false) => format!("{region} drains for this process: it gets no new requests from here"),
                (false, _) => format!("{region} takes requests again"),
            })
        }
        // Waits for the disk, which `operate` does.
        Operation::RotateSigningKey => Ok(String::new()),
        Operation::RotatePseudonyms => {
            let old = shared.pseudonyms.rotate().map_err(|error| error.to_string())?;
            Ok(format!(
                "users have other pseudonyms from now on; `{}` finds them in earlier lines, until `domicile audit forget` destroys it",
                old.display()
            ))
        }
        Operation::ForgetPseudonyms { before } => {
            let ended = ended_keys(shared, before)?;
            audit::destroy(&ended).map_err(|error| format!("cannot destroy a key: {error}; not all are destroyed"))?;
            let names: Vec<_> = ended.iter().map(|file| format!("  {}\n", file.display())).collect();
            Ok(format!(
                "destroyed, so that nobody can link the pseudonyms of their time to users:\n{}remove them from backups as well",
                names.concat()
            ))
        }
        Operation::LogLevel { filter, period } => {
            log.set(filter, *period)?;
            Ok(format!("the log level is `{filter}` for {}", humantime::format_duration(*period)))
        }
    }
}

fn ledger_of(shared: &Shared) -> Result<&Ledger, String> {
    shared.ledger.as_ref().ok_or_else(|| "this region has no ledger, so its pseudonyms have no key in a file".to_owned())
}

/// The keys of pseudonyms that were replaced before a moment.
fn ended_keys(shared: &Shared, before: &str) -> Result<Vec<PathBuf>, String> {
    let directory = ledger_of(shared)?.directory();
    let ended = audit::retired_before(directory, before).map_err(|error| format!("`{}`: {error}", directory.display()))?;
    if ended.is_empty() {
        return Err(format!(
            "no key ended before {before}; `domicile audit rotate pseudonyms` ends the one in use, and later lines have another"
        ));
    }
    Ok(ended)
}

fn service_of<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a Arc<crate::services::Service>, String> {
    let found = snapshot.services.all().find(|service| *service.settings.name == *name);
    found.ok_or_else(|| {
        let known: Vec<_> = snapshot.services.all().map(|service| &*service.settings.name).collect();
        format!("this region has no service `{name}`; it has {}", known.join(", "))
    })
}

fn region_of(snapshot: &Snapshot, name: &str) -> Result<crate::model::region::RegionId, String> {
    let policy = snapshot.policy();
    policy.find_region(name).ok_or_else(|| {
        let known: Vec<_> = policy.regions.iter().map(|region| policy.region_name(region)).collect();
        format!("unknown region `{name}`; the regions are {}", known.join(", "))
    })
}
