//! The services of the local region. The app servers of other regions are checked too, so that a file is valid either in all
//! regions or in none.

use crate::engine::path::{Slashes, canonical_path};
use crate::services::{Balance, Check, CircuitLimits, Ejection, HashKey, Settings, StickySettings, UpstreamSettings};
use crate::transport::dial::{HttpVersion, UNIX, authority_of};
use crate::transport::proxy_protocol::Version;
use crate::transport::resolver::Query;
use crate::transport::tls::UpstreamFiles;

use super::super::draft::{PolicyDraft, RegionDraft, ServiceDraft};
use super::super::reader::{Field, Section};
use super::listen::read_certificate;
use super::path;
use super::users::{cookie_name, header_name};
use crate::model::service::ServiceId;

pub(super) fn read_services(section: &Section<'_>, draft: &PolicyDraft<'_>) -> Option<Vec<(ServiceId, Settings)>> {
    let protection = section.optional("upstreams").map_or(Some(Default::default()), |field| {
        let section = field.section()?;
        let protection = read_protection(&section, Default::default());
        section.finish();
        protection
    });
    let names = section.optional("dns").map_or(Some(Default::default()), |field| {
        let section = field.section()?;
        let servers = section.required("servers", "list the name servers, such as `[10.0.0.2:53]`")?.one_or_many();
        section.finish();
        let servers = servers.iter().map(|server| server.address()).collect::<Option<Vec<_>>>();
        Some(crate::transport::resolver::Settings { servers: servers? })
    });
    let read = |service: &ServiceDraft<'_>| {
        let tls = service.section.as_ref().and_then(|section| section.optional("tls"));
        let tls = tls.map_or(Some(None), |field| read_tls(&field).map(|tls| Some((tls, field))));
        let upstreams = service.upstreams.as_ref().and_then(|field| read_list(field, tls.clone().flatten()));
        let check = service.health.as_ref().map_or(Some(Some(Check::default())), read_health);
        let balance = service.balance.as_ref().map_or(Some(Balance::default()), |field| read_balance(field, service.name));
        let own = service.section.as_ref();
        let own = own.map_or(protection, |section| read_protection(section, protection.unwrap_or_default()));
        service.section.iter().for_each(Section::finish);
        tls?;
        let (ejection, circuit) = own?;
        let (name, names) = (service.name.into(), names.clone()?);
        let own = Settings { name, upstreams: upstreams?, check: check?, ejection, circuit, balance: balance?, names };
        Some((service.id, own))
    };
    let of_region = |region: &RegionDraft<'_>| region.services.iter().map(read).collect::<Vec<_>>();
    let all: Vec<_> = draft.regions.iter().map(|region| (region.id, of_region(region))).collect();
    let (_, own) = all.into_iter().find(|(id, _)| Some(*id) == draft.local)?;
    own.into_iter().collect()
}

/// Reads `least_busy`, or `{ hash: user }`, `{ hash: { header: NAME } }` or `{ hash: { cookie: NAME } }`, or `{ sticky: { keys: FILE } }`.
fn read_balance(field: &Field<'_>, service: &str) -> Option<Balance> {
    if !field.is_section() {
        let mistake = |text: &str| {
            format!(
                "`{text}` is not a valid balance; write `least_busy`, `{{ hash: user }}`, or `{{ sticky: {{ keys: FILE }} }}`"
            )
        };
        return field.word_or(&[("least_busy", ())], mistake).map(|()| Balance::LeastBusy);
    }
    let section = field.section()?;
    if let Some(sticky) = section.optional("sticky") {
        section.finish();
        return read_sticky(&sticky, service).map(Balance::Sticky);
    }
    let key = section.required("hash", "name the key: `user`, `{ header: NAME }` or `{ cookie: NAME }`");
    section.finish();
    let key = key?;
    if !key.is_section() {
        let mistake =
            |text: &str| format!("`{text}` is not a valid key; write `user`, `{{ header: NAME }}` or `{{ cookie: NAME }}`");
        return key.word_or(&[("user", ())], mistake).map(|()| Balance::Hash(HashKey::User));
    }
    let section = key.section()?;
    let header = section.optional("header").map(|field| header_name(&field).map(HashKey::Header));
    let cookie = section.optional("cookie").map(|field| cookie_name(&field).map(|name| HashKey::Cookie(name.into())));
    section.finish();
    match (header, cookie) {
        (Some(key), None) | (None, Some(key)) => key.map(Balance::Hash),
        _ => key.report("name either a `header` or a `cookie`"),
    }
}

/// Reads `{ keys: FILE, cookie: NAME, lifetime: 8h }`.
fn read_sticky(field: &Field<'_>, service: &str) -> Option<StickySettings> {
    let section = field.section()?;
    let keys = section.required(
        "keys",
        "name the file of the keys that seal the cookie, such as `config/sticky.key`, written by `openssl rand -base64 32`; all \
         processes of a region need the same keys",
    );
    let keys = keys.and_then(|field| path(&field));
    let cookie = section.optional("cookie").map_or(Some(format!("domicile-{service}")), |field| cookie_name(&field));
    let lifetime = section.optional("lifetime").map_or(Some(None), |field| field.positive_duration().map(Some));
    section.finish();
    Some(StickySettings { cookie: cookie?.into(), keys: keys?, lifetime: lifetime? })
}

/// Outlier ejection and circuit breaking, which keep a failing or overloaded upstream from affecting the others.
fn read_protection(section: &Section<'_>, (ejection, circuit): (Ejection, CircuitLimits)) -> Option<(Ejection, CircuitLimits)> {
    let eject = section.optional("ejection").map_or(Some(ejection), |field| {
        let section = field.section()?;
        let after = section.optional("after").map_or(Some(u64::from(ejection.after)), |field| field.number(0, 1000));
        let period = section.optional("for").map_or(Some(ejection.period), |field| field.positive_duration());
        let most = section.optional("most_percent").map_or(Some(ejection.most as u64), |field| field.number(0, 100));
        section.finish();
        Some(Ejection { after: after? as u32, period: period?, most: most? as usize, ..ejection })
    });
    let slow_start = section.optional("slow_start").map_or(Some(ejection.slow_start), |field| field.duration());
    let number = |key, standard: usize, least| {
        section.optional(key).map_or(Some(standard), |field| field.number(least, 1_000_000).map(|number| number as usize))
    };
    let (requests, queue) = (number("requests", circuit.requests, 1), number("queue", circuit.queue, 0));
    let queue_timeout = section.optional("queue_timeout").map_or(Some(circuit.queue_timeout), |field| field.duration());
    let circuit = CircuitLimits { requests: requests?, queue: queue?, queue_timeout: queue_timeout? };
    Some((Ejection { slow_start: slow_start?, ..eject? }, circuit))
}

/// Reads the upstreams of a service. `tls` is for those that have no `tls` of their own.
fn read_list(field: &Field<'_>, tls: Option<(UpstreamFiles, Field<'_>)>) -> Option<Vec<UpstreamSettings>> {
    let items = field.one_or_many();
    if items.is_empty() {
        return field.report("no upstream is listed; a service needs at least one");
    }
    let upstreams: Vec<_> = items.iter().map(read_upstream).collect();
    let mut upstreams = upstreams.into_iter().collect::<Option<Vec<_>>>()?;
    if let Some((tls, field)) = tls {
        let own = upstreams.iter_mut().filter_map(|upstream| upstream.tls.as_mut());
        let mut is_used = false;
        own.for_each(|own| {
            is_used = true;
            if *own == UpstreamFiles::default() {
                *own = tls.clone();
            }
        });
        if !is_used {
            return field.report("no upstream of this service uses `https`; change a URL, or remove `tls`");
        }
    }
    Some(upstreams)
}

/// An upstream: a URL, or a section with a `url` and options.
fn read_upstream(field: &Field<'_>) -> Option<UpstreamSettings> {
    if !field.is_section() {
        return read_url(field);
    }
    let section = field.section()?;
    let target = read_target(field, &section);
    let tls = section.optional("tls").map(|field| Some((read_tls(&field)?, field)));
    let weight = section.optional("weight").map_or(Some(1), |field| field.number(1, 1000));
    let proxy_protocol = section
        .optional("proxy_protocol")
        .map_or(Some(None), |field| field.word(&[("v1", Version::One), ("v2", Version::Two)]).map(Some));
    section.finish();
    let mut target = target?;
    target.weight = weight? as u32;
    target.proxy_protocol = proxy_protocol?;
    if target.proxy_protocol.is_some() {
        match target.http_version {
            // The PROXY header names one client for the whole connection, so requests of different clients cannot share it.
            HttpVersion::Http2 => {
                return field
                    .report("`proxy_protocol` needs `http` or `https`, because an HTTP/2 connection serves many clients");
            }
            HttpVersion::Http1 | HttpVersion::Negotiated => target.http_version = HttpVersion::Http1,
        }
    }
    if let Some(tls) = tls {
        let (tls, field) = tls?;
        if target.tls.is_none() {
            return field.report("`tls` needs `https`; change the URL or the `scheme`, or remove `tls`");
        }
        target.tls = Some(tls);
    }
    Some(target)
}

/// Reads the `url` of an app server, or the `dns` or `srv` name of several.
fn read_target(field: &Field<'_>, section: &Section<'_>) -> Option<UpstreamSettings> {
    let (url, dns, srv) = (section.optional("url"), section.optional("dns"), section.optional("srv"));
    let named = match (url, dns, srv) {
        (Some(url), None, None) => return read_url(&url),
        (None, Some(dns), None) => {
            let name = dns_name(&dns);
            let port = section.required("port", "name the port of the app servers").and_then(|field| field.number(1, 65_535));
            name.zip(port).map(|(name, port)| Query::Addresses { name: name.into(), port: port as u16 })
        }
        (None, None, Some(srv)) => dns_name(&srv).map(|name| Query::Services(name.into())),
        (None, None, None) => {
            return section.report(
                "name the app server: a `url` such as `https://app.internal:8443`, or a name whose addresses are all app servers, \
                 such as `dns: app.internal` with a `port`, or `srv: _http._tcp.app.internal`",
            );
        }
        _ => return field.report("write one of `url`, `dns` and `srv`"),
    };
    let schemes = [("http", "http"), ("https", "https"), ("h2c", "h2c")];
    let scheme = section.optional("scheme").map_or(Some("http"), |field| field.word(&schemes));
    let base = section.optional("path").map_or(Some(""), |field| base_path(&field));
    let (query, (http_version, tls)) = (named?, protocol(scheme?));
    let authority = query.label();
    Some(UpstreamSettings {
        authority,
        query: Some(query),
        http_version,
        tls,
        weight: 1,
        base: base?.into(),
        proxy_protocol: None,
    })
}

/// A DNS name. An IP address has nothing to look up.
fn dns_name<'n>(field: &Field<'n>) -> Option<&'n str> {
    let text = field.text()?;
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_name = name.len() <= 253 && name.split('.').all(is_label) && text.parse::<std::net::IpAddr>().is_err();
    if is_name {
        Some(text)
    } else {
        field.report(format!("`{text}` is not a valid DNS name; write a name such as `app.internal`"))
    }
}

fn base_path<'n>(field: &Field<'n>) -> Option<&'n str> {
    let text = field.text()?;
    if canonical_path(text, Slashes::Refuse).as_deref() == Some(text) {
        return Some(text.trim_end_matches('/'));
    }
    field.report(format!("the path `{text}` is not in canonical form; write for example `/app`"))
}

fn read_url(field: &Field<'_>) -> Option<UpstreamSettings> {
    if let Some(upstream) = read_socket(field) {
        return upstream;
    }
    let uri = field.base_url(&["http", "https", "h2c"])?;
    let base = uri.path().trim_end_matches('/');
    if canonical_path(uri.path(), Slashes::Refuse).as_deref() != Some(uri.path()) {
        return field.report(format!(
            "the path `{}` is not in canonical form; write for example `http://10.1.0.10:3000/app`",
            uri.path()
        ));
    }
    let (http_version, tls) = protocol(uri.scheme_str().unwrap_or_default());
    Some(UpstreamSettings {
        authority: authority_of(&uri),
        query: None,
        http_version,
        tls,
        weight: 1,
        base: base.into(),
        proxy_protocol: None,
    })
}

/// `http` means HTTP/1.1, `h2c` cleartext HTTP/2, and `https` the version that the server selects by ALPN.
fn protocol(scheme: &str) -> (HttpVersion, Option<UpstreamFiles>) {
    match scheme {
        "https" => (HttpVersion::Negotiated, Some(UpstreamFiles::default())),
        "h2c" => (HttpVersion::Http2, None),
        _ => (HttpVersion::Http1, None),
    }
}

/// Reads `unix:/run/app.sock`, or `h2c+unix:/run/app.sock` for HTTP/2; `None` for another URL.
fn read_socket(field: &Field<'_>) -> Option<Option<UpstreamSettings>> {
    let text = field.text()?;
    let (http_version, path) = match (text.strip_prefix(UNIX), text.strip_prefix("h2c+unix:")) {
        (Some(path), _) => (HttpVersion::Http1, path),
        (None, Some(path)) => (HttpVersion::Http2, path),
        (None, None) => return None,
    };
    // The kernel's limit for the path of a socket, with its final zero (unix(7)).
    if !path.starts_with('/') || path.len() > 107 {
        return Some(field.report(format!("`{path}` is not the path of a socket; write an absolute path of at most 107 bytes")));
    }
    let authority = format!("{UNIX}{path}");
    Some(Some(UpstreamSettings {
        authority,
        query: None,
        http_version,
        tls: None,
        weight: 1,
        base: "".into(),
        proxy_protocol: None,
    }))
}

fn read_tls(field: &Field<'_>) -> Option<UpstreamFiles> {
    let section = field.section()?;
    let authority = section.optional("authority").map_or(Some(None), |field| path(&field).map(Some));
    let name = section.optional("name").map_or(Some(None), |field| {
        let name = field.text()?;
        match rustls_pki_types::ServerName::try_from(name) {
            Ok(_) => Some(Some(name.to_owned())),
            Err(_) => field.report(format!("`{name}` is not a valid host name; write a name such as `app.internal`")),
        }
    });
    let own = section.optional("certificate").map_or(Some(None), |field| read_certificate(&field).map(Some));
    section.finish();
    Some(UpstreamFiles { authority: authority?, name: name?, own: own? })
}

/// Reads `connect`, `off`, a path, or `{ path: /healthz, every: 2s, timeout: 2s, rise: 2, fall: 3 }`; `off` is `None`.
fn read_health(field: &Field<'_>) -> Option<Option<Check>> {
    let standard = Check::default();
    if !field.is_section() {
        return match field.text()? {
            "connect" => Some(Some(standard)),
            "off" => Some(None),
            _ => health_path(field).map(|path| Some(Check { path: Some(path.into()), ..standard })),
        };
    }
    let section = field.section()?;
    let path = section.optional("path").map_or(Some(None), |field| health_path(&field).map(Some));
    let every = section.optional("every").map_or(Some(standard.every), |field| field.positive_duration());
    let timeout = section.optional("timeout").map_or(Some(standard.timeout), |field| field.positive_duration());
    let rise = section.optional("rise").map_or(Some(u64::from(standard.rise)), |field| field.number(1, 100));
    let fall = section.optional("fall").map_or(Some(u64::from(standard.fall)), |field| field.number(1, 100));
    section.finish();
    let path = path?.map(Into::into);
    Some(Some(Check { path, every: every?, timeout: timeout?, rise: rise? as u32, fall: fall? as u32 }))
}

fn health_path<'n>(field: &Field<'n>) -> Option<&'n str> {
    let text = field.text()?;
    let fits = text.starts_with('/') && text.parse::<http::uri::PathAndQuery>().is_ok();
    if fits {
        Some(text)
    } else {
        field.report(format!("`{text}` is not a valid check; write a path such as `/healthz`, `connect` or `off`"))
    }
}
