//! Listeners and their certificates.

use std::net::SocketAddr;

use crate::transport::listener::{self, Accepts};
use crate::transport::tls::{AcmeFiles, CertificateFiles, ChallengeKind, ClientAuthority, ClientTlsFiles, PeerFiles};

use super::super::draft::PolicyDraft;
use super::super::reader::{Field, Section};
use super::users::network;
use super::{path, regional_path};

/// The listeners of this region: its own `listen` list if it has one, else the common list.
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
        // Without the name of the region, which is a mistake of its own, its list is not known.
        if draft.local.is_none() && draft.regions.iter().any(|region| region.listen.is_some()) {
            return Vec::new();
        }
        section.report::<()>("`listen` is missing: list at least one address, such as `- address: \"127.0.0.1:8080\"`");
        Vec::new()
    })
}

fn read_listeners(field: &Field<'_>) -> Vec<listener::Settings> {
    let mut listeners: Vec<listener::Settings> = Vec::new();
    let items = field.one_or_many();
    for item in &items {
        let Some(settings) = read_listener(item) else { continue };
        if listeners.iter().any(|other| other.address == settings.address && settings.address.port() != 0) {
            item.report::<()>(format!("`{}` is listed twice; remove one of the two listeners", settings.address));
        }
        listeners.push(settings);
    }
    // A listener with a mistake may be the one for clients.
    let all_are_read = listeners.len() == items.len();
    if all_are_read && !listeners.is_empty() && listeners.iter().all(|listener| listener.accepts == Accepts::Peers) {
        field.report::<()>("no listener accepts clients; add one without `peers: true`");
    }
    listeners
}

fn read_listener(field: &Field<'_>) -> Option<listener::Settings> {
    if !field.is_section() {
        return read_short_form(field);
    }
    let section = field.section()?;
    let address =
        section.required("address", "write an IP address and a port, such as `127.0.0.1:8080`").and_then(|field| field.address());
    let tls = section.optional("tls").map_or(Some(None), |field| read_tls(&field).map(Some));
    let peers = section.optional("peers").map_or(Some(false), |field| field.flag());
    let cleartext = section.optional("cleartext").map_or(Some(false), |field| field.flag());
    let proxy_protocol = section.optional("proxy_protocol").map_or(Some(None), |field| {
        if !field.is_section() {
            return field
                .report("both versions are accepted; name the senders instead: `proxy_protocol: { from: [10.0.0.0/8] }`");
        }
        let section = field.section()?;
        let from = section.required("from", "list the networks that send the header, such as `[10.0.0.0/8]`")?.one_or_many();
        section.finish();
        from.iter().map(network).collect::<Option<Vec<_>>>().map(Some)
    });
    let redirect = section.optional("redirect_to_https").map_or(Some(None), |field| field.number(1, 65535).map(Some));
    let hsts = section.optional("hsts").map_or(Some(None), |field| field.duration().map(Some));
    let half_close = section.optional("half_close").map_or(Some(false), |field| field.word(&[("allow", true), ("abort", false)]));
    section.finish();
    let (address, tls, peers) = (address?, tls?, peers?);
    let (proxy_protocol, redirect, hsts) = (proxy_protocol?, redirect?.map(|port| port as u16), hsts?);
    let (cleartext, allows_half_close) = (cleartext?, half_close?);
    if peers
        && (cleartext || tls.is_some() || proxy_protocol.is_some() || redirect.is_some() || hsts.is_some() || allows_half_close)
    {
        return field.report("a listener for peers uses the certificate in `peer_tls`; keep only `address` and `peers` here");
    }
    if redirect.is_some() && tls.is_some() {
        return field.report("`redirect_to_https` is for cleartext listeners; remove `tls`");
    }
    if hsts.is_some() && tls.is_none() {
        return field.report("browsers ignore `hsts` without TLS; give this listener a `tls` section");
    }
    if tls.is_none() && !peers && redirect.is_none() && !cleartext && !address.ip().is_loopback() {
        return report_cleartext(field, address);
    }
    let accepts = if peers { Accepts::Peers } else { Accepts::Clients };
    Some(listener::Settings { address, accepts, tls, proxy_protocol, redirect, hsts, allows_half_close })
}

/// A listener for clients without TLS, which is written as its address alone.
fn read_short_form(field: &Field<'_>) -> Option<listener::Settings> {
    let address = field.address()?;
    if !address.ip().is_loopback() {
        return report_cleartext(field, address);
    }
    Some(listener::Settings {
        address,
        accepts: Accepts::Clients,
        tls: None,
        proxy_protocol: None,
        redirect: None,
        hsts: None,
        allows_half_close: false,
    })
}

fn report_cleartext<T>(field: &Field<'_>, address: SocketAddr) -> Option<T> {
    field.report(format!(
        "cleartext is limited to loopback: write `{{ address: \"{address}\", tls: {{ … }} }}`, or the same with `cleartext: true`"
    ))
}

fn read_tls(field: &Field<'_>) -> Option<ClientTlsFiles> {
    let section = field.section()?;
    let acme = section.optional("acme").map_or(Some(None), |field| read_acme(&field).map(Some));
    let has_acme = !matches!(acme, Some(None));
    let certificates = match section.optional("certificates") {
        None if has_acme => Some(Vec::new()),
        None => section.report("`certificates` is missing: list pairs of `certificate` and `key`, or write an `acme` section"),
        Some(field) if field.list().is_empty() => field.report("list at least one certificate"),
        Some(field) => field.list().iter().map(read_certificate).collect::<Option<Vec<_>>>(),
    };
    let clients = section.optional("clients").map_or(Some(None), |field| {
        let section = field.section()?;
        let authority = section.required("authority", "name the PEM file of the authority that signs client certificates");
        let authority = authority.and_then(|field| path(&field));
        let required = section.optional("required").map_or(Some(false), |field| field.flag());
        section.finish();
        Some(Some(ClientAuthority { authority: authority?, required: required? }))
    });
    section.finish();
    let (mut certificates, acme) = (certificates?, acme?);
    certificates.extend(acme.as_ref().map(AcmeFiles::pair));
    Some(ClientTlsFiles { certificates, clients: clients?, acme })
}

fn read_acme(field: &Field<'_>) -> Option<AcmeFiles> {
    let section = field.section()?;
    let server = section.optional("server").map_or(Some(None), |field| field.base_url(&["https"]).map(Some));
    let contact = section.optional("contact").map_or(Some(Vec::new()), |field| {
        let address = |field: &Field<'_>| match field.text()? {
            text if text.starts_with("mailto:") => Some(text.to_owned()),
            text => field.report(format!("`{text}` is not a valid contact; write `mailto:NAME@HOST`")),
        };
        field.one_or_many().iter().map(address).collect::<Option<Vec<_>>>()
    });
    let names = section.required("names", "list the host names of the certificate").and_then(|field| {
        let name = |field: &Field<'_>| match field.text()? {
            text if text.contains('*') => {
                field.report("a wildcard name needs the ACME DNS challenge, which is not supported; list each name")
            }
            text => match rustls_pki_types::DnsName::try_from(text) {
                Ok(_) => Some(text.to_ascii_lowercase()),
                Err(_) => field.report(format!("`{text}` is not a valid host name; write a name such as `www.example.com`")),
            },
        };
        field.one_or_many().iter().map(name).collect::<Option<Vec<_>>>()
    });
    let store = section.required("store", "name the directory in which the ACME account and the certificate are stored");
    let store = store.and_then(|field| path(&field));
    let by = [("tls-alpn-01", ChallengeKind::Tls), ("http-01", ChallengeKind::Http)];
    let by = section.optional("challenge").map_or(Some(ChallengeKind::Tls), |field| field.word(&by));
    let authority = section.optional("authority").map_or(Some(None), |field| path(&field).map(Some));
    section.finish();
    let server = server?.map_or("https://acme-v02.api.letsencrypt.org/directory".into(), |url| url.to_string());
    Some(AcmeFiles { server, contact: contact?, names: names?, store: store?, by: by?, authority: authority? })
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
    let named = |field: &Field<'_>| regional_path(field, local);
    let certificate = section
        .required("certificate", "name this region's certificate file; `{region}` stands for the region's name")
        .and_then(|field| named(&field));
    let key = section
        .required("key", "name this region's private key file; `{region}` stands for the region's name")
        .and_then(|field| named(&field));
    let authority = section
        .required("authority", "name the PEM file of the authority that signs peer certificates")
        .and_then(|field| named(&field));
    let revoked = section.optional("revoked").map_or(Some(Vec::new()), |field| field.one_or_many().iter().map(named).collect());
    section.finish();
    Some(PeerFiles { own: CertificateFiles { certificate: certificate?, key: key? }, authority: authority?, revoked: revoked? })
}
