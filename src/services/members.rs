//! The app servers of a service at one moment: those of the configuration, and those that DNS has found.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};

use crate::transport::dial::Secured;
use crate::transport::resolver::{Endpoint, Query};
use crate::transport::tls::TlsError;

use super::upstream::{State, TlsConfigs, Upstream, UpstreamSettings};
use super::wheel::Wheel;

/// The app servers of a service at one moment.
#[derive(Default)]
pub struct Members {
    list: Vec<Arc<Upstream>>,
    pub(super) wheel: Wheel,
}

impl Members {
    fn of(list: Vec<Arc<Upstream>>) -> Self {
        Self { wheel: Wheel::of(&list), list }
    }
}

impl Deref for Members {
    type Target = [Arc<Upstream>];

    fn deref(&self) -> &Self::Target {
        &self.list
    }
}

/// The entries of a service, and the app servers that they have led to. One task writes the app servers.
pub(super) struct Roster {
    entries: Vec<UpstreamSettings>,
    /// The TLS configurations of the entries.
    secured: Vec<Option<Secured>>,
    /// The endpoints of each entry's last successful lookup.
    found: Mutex<Vec<Vec<Endpoint>>>,
    members: ArcSwap<Members>,
}

impl Roster {
    /// App servers that `before` contains keep their state, and entries with the same query keep what it has found.
    pub fn new(entries: Vec<UpstreamSettings>, before: Option<&Self>, tls: &mut TlsConfigs) -> Result<Self, TlsError> {
        let secured = entries.iter().map(|entry| tls.load(entry)).collect::<Result<_, _>>()?;
        let found = entries.iter().map(|entry| before.and_then(|before| before.found_by(entry)).unwrap_or_default()).collect();
        let roster = Self { entries, secured, found: Mutex::new(found), members: ArcSwap::default() };
        roster.rebuild(&before.map(|before| before.members.load_full()).unwrap_or_default());
        Ok(roster)
    }

    fn found_by(&self, entry: &UpstreamSettings) -> Option<Vec<Endpoint>> {
        entry.query.as_ref()?;
        let index = self.entries.iter().position(|known| known.query == entry.query)?;
        Some(self.found.lock().unwrap_or_else(PoisonError::into_inner)[index].clone())
    }

    /// The app servers now.
    pub fn members(&self) -> Guard<Arc<Members>> {
        self.members.load()
    }

    /// Adds the TLS configurations of a service that is kept.
    pub fn share(&self, tls: &mut TlsConfigs) {
        self.entries.iter().zip(&self.secured).for_each(|(entry, secured)| tls.share(entry, secured.as_ref()));
    }

    /// The entries whose queries have found nothing yet.
    pub fn unresolved(&self) -> Vec<(usize, Query)> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = self.entries.iter().enumerate().zip(&*found);
        entries.filter_map(|((index, entry), found)| Some((index, entry.query.clone().filter(|_| found.is_empty())?))).collect()
    }

    /// Takes what the query of an entry has found; returns whether the app servers have changed.
    pub fn set_found(&self, entry: usize, endpoints: Vec<Endpoint>) -> bool {
        let before = std::mem::replace(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner)[entry], endpoints.clone());
        if before == endpoints {
            return false;
        }
        self.rebuild(&self.members.load_full());
        true
    }

    /// Makes the list again, after an operator has changed a weight.
    pub fn reweigh(&self) {
        self.rebuild(&self.members.load_full());
    }

    /// Makes the list of app servers. Those that `before` contains keep their state; an address that two entries lead to is taken once.
    fn rebuild(&self, before: &Members) {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |authority: &str, base: &str| {
            before.iter().find(|upstream| upstream.authority() == authority && *upstream.base == *base)
        };
        let entries = || self.entries.iter().zip(&self.secured).zip(&*found);
        // New app servers get their share gradually if they join others that stay.
        let joins = entries().any(|((entry, secured), endpoints)| {
            let mut authorities = endpoints.iter().map(|endpoint| Upstream::authority_of(endpoint, secured.as_ref()));
            (entry.query.is_none() && known(&entry.authority, &entry.base).is_some())
                || authorities.any(|authority| known(&authority, &entry.base).is_some())
        });
        let state_of = |authority: &str, base: &str| {
            known(authority, base).map_or_else(|| new_state(joins), |upstream| Arc::clone(&upstream.state))
        };
        let mut list: Vec<Arc<Upstream>> = Vec::new();
        for ((entry, secured), endpoints) in entries() {
            if entry.query.is_none() {
                let state: Arc<State> = state_of(&entry.authority, &entry.base);
                list.push(Arc::new(Upstream::fixed(entry, secured.clone(), state)));
                continue;
            }
            for endpoint in endpoints {
                let authority = Upstream::authority_of(endpoint, secured.as_ref());
                let state = state_of(&authority, &entry.base);
                let upstream = Upstream::discovered(entry, secured.clone(), endpoint, state);
                let is_known = |known: &Arc<Upstream>| known.authority() == upstream.authority() && known.base == upstream.base;
                if !list.iter().any(is_known) {
                    list.push(Arc::new(upstream));
                }
            }
        }
        drop(found);
        self.members.store(Arc::new(Members::of(list)));
    }
}

fn new_state(joins: bool) -> Arc<State> {
    let state = State::default();
    if joins {
        state.history.note_return(Instant::now());
    }
    Arc::new(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::dial::HttpVersion;

    fn entry(authority: &str, query: Option<Query>) -> UpstreamSettings {
        UpstreamSettings {
            authority: authority.into(),
            query,
            http_version: HttpVersion::Http1,
            tls: None,
            weight: 2,
            base: "".into(),
            proxy_protocol: None,
        }
    }

    fn endpoint(address: &str, weight: u16) -> Endpoint {
        Endpoint { address: address.parse().unwrap(), host: "app.internal".into(), weight }
    }

    fn listed(roster: &Roster) -> Vec<(String, u32)> {
        roster.members().iter().map(|upstream| (upstream.authority().to_owned(), upstream.weight)).collect()
    }

    #[test]
    fn every_address_is_an_upstream_and_keeps_its_state() {
        let query = Query::Addresses { name: "app.internal".into(), port: 80 };
        let entries = vec![entry("10.0.0.9:80", None), entry("", Some(query.clone()))];
        let roster = Roster::new(entries, None, &mut TlsConfigs::default()).unwrap();
        assert_eq!(listed(&roster), [("10.0.0.9:80".into(), 2)]);
        assert!(roster.set_found(1, vec![endpoint("10.0.0.1:80", 1), endpoint("10.0.0.2:80", 3), endpoint("10.0.0.9:80", 1)]));
        assert_eq!(
            listed(&roster),
            [("10.0.0.9:80".into(), 2), ("10.0.0.1:80".into(), 2), ("10.0.0.2:80".into(), 6)],
            "the address of the fixed entry is taken once"
        );
        roster.members()[2].set_up(false);
        assert!(!roster.set_found(1, vec![endpoint("10.0.0.1:80", 1), endpoint("10.0.0.2:80", 3), endpoint("10.0.0.9:80", 1)]));
        assert!(roster.set_found(1, vec![endpoint("10.0.0.2:80", 3), endpoint("10.0.0.3:80", 1)]));
        let states: Vec<_> = roster.members().iter().map(|upstream| upstream.is_up()).collect();
        assert_eq!(states, [true, false, true], "a known upstream keeps its state, a new one counts as up");
        let after = Roster::new(vec![entry("", Some(query))], Some(&roster), &mut TlsConfigs::default()).unwrap();
        assert_eq!(listed(&after).len(), 2, "a reload keeps what was found");
        assert!(!after.members()[0].is_up());
    }
}
