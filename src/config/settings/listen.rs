//! Listeners and the certificates they show.

use std::path::PathBuf;

use crate::transport::listener::{self, Accepts};
use crate::transport::tls::{CertificateFiles, PeerFiles};

use super::super::policy::PolicyDraft;
use super::super::reader::{Field, Section};
use super::path;

/// The listeners of this region: its own list, where it has one, else the list for all regions.
pub(super) fn read_listen(section: &Section<'_>, draft: &PolicyDraft<'_>) -> Vec<listener::Settings> {
    let common = section.optional("listen");
    let mut own = None;
    for region in &draft.regions {
        let listeners = region.listen.as_ref().map(read_listeners);
        if Some(region.id) == draft.local {
            own = listeners;
        }
    }
    let common = common.map(|field| read_listeners(&field));
    own.or(common).unwrap_or_else(|| {
        section.wrong::<()>("`listen` is missing: list at least one address, such as `- address: \"127.0.0.1:8080\"`");
        Vec::new()
    })
}

fn read_listeners(field: &Field<'_>) -> Vec<listener::Settings> {
    let mut listeners: Vec<listener::Settings> = Vec::new();
    for item in field.list() {
        let Some(settings) = read_listener(&item) else { continue };
        if listeners.iter().any(|other| other.address == settings.address && settings.address.port() != 0) {
            item.wrong::<()>(format!("`{}` is listened on twice", settings.address));
        }
        listeners.push(settings);
    }
    if listeners.iter().all(|listener| listener.accepts == Accepts::Peers) && !field.list().is_empty() {
        field.wrong::<()>("no listener takes clients; list one without `peers: true`");
    }
    listeners
}

fn read_listener(field: &Field<'_>) -> Option<listener::Settings> {
    let section = field.section()?;
    let address =
        section.required("address", "write an IP address and a port, such as `127.0.0.1:8080`").and_then(|field| field.address());
    let tls = section.optional("tls").map(|field| {
        let section = field.section()?;
        let certificates = section.required("certificates", "list pairs of `certificate` and `key`")?.list();
        section.finish();
        if certificates.is_empty() {
            return field.wrong("list at least one certificate");
        }
        certificates.iter().map(read_certificate).collect::<Option<Vec<_>>>()
    });
    let peers = section.optional("peers").map_or(Some(false), |field| field.flag())?;
    let cleartext = section.optional("cleartext").map_or(Some(false), |field| field.flag())?;
    section.finish();
    let address = address?;
    if peers && tls.is_some() {
        return field.wrong("a listener for peers takes its certificate from `peer_tls`; leave `tls` out");
    }
    if tls.is_none() && !peers && !cleartext && !address.ip().is_loopback() {
        return field.wrong(format!("cleartext stays on loopback: give `{address}` a `tls` section, or say `cleartext: true`"));
    }
    let accepts = if peers { Accepts::Peers } else { Accepts::Clients };
    Some(listener::Settings { address, accepts, certificates: tls.map_or(Some(None), |list| list.map(Some))? })
}

pub(super) fn read_certificate(field: &Field<'_>) -> Option<CertificateFiles> {
    let section = field.section()?;
    let certificate =
        section.required("certificate", "name the PEM file of the certificate chain").and_then(|field| path(&field));
    let key = section.required("key", "name the PEM file of the private key").and_then(|field| path(&field));
    section.finish();
    Some(CertificateFiles { certificate: certificate?, key: key? })
}

pub(super) fn read_peer_tls(field: &Field<'_>, local: &str) -> Option<PeerFiles> {
    let section = field.section()?;
    let named = |field: &Field<'_>| Some(PathBuf::from(field.text()?.replace("{region}", local)));
    let certificate = section
        .required("certificate", "name this region's certificate; `{region}` stands for its name")
        .and_then(|field| named(&field));
    let key =
        section.required("key", "name this region's private key; `{region}` stands for its name").and_then(|field| named(&field));
    let authority =
        section.required("authority", "name the PEM file of the authority that signs the peers").and_then(|field| named(&field));
    section.finish();
    Some(PeerFiles { own: CertificateFiles { certificate: certificate?, key: key? }, authority: authority? })
}
