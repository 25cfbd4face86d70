//! The client networks and the authorization of a route.

use http::header::HeaderValue;
use ipnet::IpNet;

use super::super::reader::{Field, Section};
use super::FindService;
use super::message::{read_base, read_name, slash_if_empty};
use crate::proxy::actions::{Auth, BasicAuth, ClientNetworks, ForwardAuth};

pub(super) fn read_clients(field: &Field<'_>) -> Option<ClientNetworks> {
    let section = field.section()?;
    let networks = |key| {
        section.optional(key).map_or(Some(Vec::new()), |field| match read_networks(&field)? {
            networks if networks.is_empty() => field.report("this list is empty; name at least one network, or remove it"),
            networks => Some(networks),
        })
    };
    let (allow, deny) = (networks("allow"), networks("deny"));
    section.finish();
    Some(ClientNetworks { allow: allow?, deny: deny? })
}

/// Reads networks; an address alone is the network of this address.
pub fn read_networks(field: &Field<'_>) -> Option<Vec<IpNet>> {
    let read = |item: &Field<'_>| {
        let text = item.text()?;
        let network = text.parse().ok().or_else(|| text.parse().ok().map(|address: std::net::IpAddr| IpNet::from(address)));
        let Some(network) = network else {
            return item.report(format!("`{text}` is not a valid network; write `10.1.0.0/16` or a single address"));
        };
        if network.trunc() != network {
            return item.report(format!("`{text}` has address bits after its prefix; did you mean `{}`?", network.trunc()));
        }
        Some(network)
    };
    let networks: Vec<_> = field.one_or_many().iter().map(read).collect();
    networks.into_iter().collect()
}

/// Reads `{ service: auth, path: /verify, copy: [x-auth-user] }`, or `{ passwords: FILE, realm: NAME, header: x-auth-user }`.
pub(super) fn read_auth<'n>(field: &Field<'n>, find_service: FindService<'_, 'n>) -> Option<Auth> {
    let section = field.section()?;
    if let Some(file) = section.optional("passwords") {
        return read_basic(&section, &file).map(Auth::Basic);
    }
    let Some(service) = section.optional("service") else {
        for key in ["path", "copy", "realm", "header"] {
            section.optional(key);
        }
        section.finish();
        return section.report("name the `service` that decides, such as `auth`, or a file of `passwords`");
    };
    let service = find_service(&service, true);
    let path = section.required("path", "name the path to request, such as `/verify`").and_then(|field| read_base(&field));
    let copy = section.optional("copy").map_or(Some(Vec::new()), |field| {
        let names: Vec<_> = field.one_or_many().iter().map(|item| read_name(item, item.text()?)).collect();
        names.into_iter().collect()
    });
    section.finish();
    Some(Auth::Forward(ForwardAuth { service: service?, path: slash_if_empty(path?), copy: copy? }))
}

fn read_basic(section: &Section<'_>, file: &Field<'_>) -> Option<BasicAuth> {
    let file = file.text().map(Into::into);
    let challenge = section.optional("realm").map_or(Some("restricted"), |field| {
        let realm = field.text()?;
        let is_plain = realm.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'));
        if is_plain { Some(realm) } else { field.report("a realm has only ASCII characters, without quotes and backslashes") }
    });
    let header = section.optional("header").map_or(Some(None), |field| read_name(&field, field.text()?).map(Some));
    section.finish();
    let challenge = HeaderValue::try_from(format!("Basic realm=\"{}\", charset=\"UTF-8\"", challenge?)).ok()?;
    Some(BasicAuth { file: file?, challenge, header: header? })
}
