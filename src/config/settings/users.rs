//! Who the client and the user are.

use ipnet::IpNet;

use crate::directory;
use crate::proxy::intake::{AddressSource, KeySource};

use super::super::reader::Field;
use super::path;

pub(super) type Users = (Vec<KeySource>, Option<directory::Settings>);

pub(super) fn read_users(field: &Field<'_>) -> Option<Users> {
    let section = field.section()?;
    let keys = section.optional("key").map_or(Vec::new(), |field| field.list());
    let keys: Vec<_> = keys.iter().filter_map(read_key).collect();
    let directory = section.optional("directory").map(|field| {
        let section = field.section()?;
        let file = section.required("file", "name the CSV or YAML file of users and their homes").and_then(|field| path(&field));
        section.finish();
        Some(directory::Settings { file: file? })
    });
    section.finish();
    Some((keys, directory.map_or(Some(None), |settings| settings.map(Some))?))
}

fn read_key(field: &Field<'_>) -> Option<KeySource> {
    let section = field.section()?;
    let header = section.optional("header").and_then(|field| header_name(&field));
    let cookie = section.optional("cookie").and_then(|field| {
        let name = field.text()?;
        let token =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&byte));
        if token { Some(name.to_owned()) } else { field.wrong(format!("`{name}` is no cookie name")) }
    });
    section.finish();
    match (header, cookie) {
        (Some(name), None) => Some(KeySource::Header(name)),
        (None, Some(name)) => Some(KeySource::Cookie(name)),
        _ => field.wrong("write one of `header: NAME` and `cookie: NAME`"),
    }
}

fn header_name(field: &Field<'_>) -> Option<http::HeaderName> {
    let text = field.text()?;
    text.to_ascii_lowercase().parse().ok().or_else(|| field.wrong(format!("`{text}` is no header name")))
}

pub(super) fn read_client_address(field: &Field<'_>) -> Option<(Vec<IpNet>, AddressSource)> {
    let section = field.section()?;
    let trust = section.optional("trust").map_or(Vec::new(), |field| field.list());
    let trust = trust.iter().map(network).collect::<Option<Vec<_>>>();
    let source = section.optional("from").map_or(Some(AddressSource::Forwarded), |field| match field.text()? {
        "forwarded" => Some(AddressSource::Forwarded),
        "x-forwarded-for" => Some(AddressSource::XForwardedFor),
        "proxy-protocol" => {
            field.wrong("the PROXY protocol is not spoken yet; write `forwarded`, `x-forwarded-for` or a header's name")
        }
        _ => header_name(&field).map(AddressSource::Header),
    });
    section.finish();
    Some((trust?, source?))
}

fn network(field: &Field<'_>) -> Option<IpNet> {
    let text = field.text()?;
    let host = text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or(host).or_else(|| field.wrong(format!("`{text}` is no network; write `10.0.0.0/8` or one address")))
}
