//! The changes of a route to messages (targets, header fields, codings), and the upgrades that it allows.

use http::Uri;
use http::header::{HeaderName, HeaderValue};

use super::super::problem::suggestion;
use super::super::reader::Field;
use super::super::source::document::Key;
use crate::decision::policy::route::{PathPattern, Pattern, Segment};
use crate::http::compression::Coding;
use crate::http::tunnel::{CONNECT, WEBSOCKET};
use crate::proxy::actions::{Edits, PathRewrite, Rewrite, Template, Upgrades, is_editable};

pub(super) fn read_rewrite(field: &Field<'_>, pattern: Option<&Pattern>) -> Option<Rewrite> {
    let section = field.section()?;
    let strip = section.optional("strip_prefix").map(|field| read_prefix(&field, pattern));
    let prefix = section.optional("prefix").map(|field| read_prefix(&field, pattern));
    let with = section.optional("with").map(|field| read_base(&field));
    let whole = section.optional("path").map(|field| read_base(&field).map(|path| PathRewrite::Whole(slash_if_empty(path))));
    let host = section.optional("host").map_or(Some(None), |field| read_host(&field).map(Some));
    section.finish();
    let path = match (strip, prefix, with, whole) {
        (Some(from), None, None, None) => from.map(|from| Some(PathRewrite::Prefix { from, to: "".into() })),
        (None, Some(from), Some(to), None) => from.zip(to).map(|(from, to)| Some(PathRewrite::Prefix { from, to })),
        (None, None, None, Some(whole)) => whole.map(Some),
        (None, None, None, None) => Some(None),
        _ => field.report("write one of `strip_prefix: /api`, `prefix: /old` together with `with: /new`, and `path: /whole`"),
    };
    Some(Rewrite { path: path?, host: host? })
}

pub(super) fn slash_if_empty(path: Box<str>) -> Box<str> {
    if path.is_empty() { "/".into() } else { path }
}

/// A path in canonical form, without a slash at its end; `/` is the empty text.
pub(super) fn read_base(field: &Field<'_>) -> Option<Box<str>> {
    use crate::engine::path::{Slashes, canonical_path};
    let text = field.text()?;
    let canonical = canonical_path(text, Slashes::Refuse).filter(|canonical| canonical == text);
    if canonical.is_none() || text.parse::<http::uri::PathAndQuery>().is_err() || text.contains('?') {
        return field
            .report(format!("`{text}` is not a valid path; write one such as `/v2`, without a query and in canonical form"));
    }
    Some(text.trim_end_matches('/').into())
}

/// The beginning of a path, which every path of the route must have.
fn read_prefix(field: &Field<'_>, pattern: Option<&Pattern>) -> Option<Box<str>> {
    let prefix = read_base(field)?;
    let segments: Vec<_> = prefix.split('/').skip(1).collect();
    let is_literal = |(segment, expected): (&Segment, &&str)| matches!(segment, Segment::Literal(text) if &**text == *expected);
    let begins =
        |path: &PathPattern| path.segments.len() >= segments.len() && path.segments.iter().zip(&segments).all(is_literal);
    if pattern.is_some_and(|pattern| !pattern.paths.iter().all(begins)) {
        return field.report(format!("not every path of this route begins with `{prefix}`, so it would not always be replaced"));
    }
    Some(prefix)
}

fn read_host(field: &Field<'_>) -> Option<HeaderValue> {
    let text = field.text()?;
    let is_host =
        text.parse::<Uri>().is_ok_and(|uri| uri.authority().is_some_and(|own| own.as_str() == text && !text.contains('@')));
    let value = HeaderValue::from_str(text).ok().filter(|_| is_host);
    value.or_else(|| {
        field.report(format!("`{text}` is not a valid host; write one such as `app.internal` or `app.internal:8080`"))
    })
}

/// Reads `{ remove: [NAME], set: { NAME: VALUE }, add: { NAME: VALUE } }`.
pub(super) fn read_edits(field: &Field<'_>) -> Option<Edits> {
    let section = field.section()?;
    let remove = section.optional("remove").map_or(Some(Vec::new()), |field| {
        let names: Vec<_> = field.one_or_many().iter().map(|item| read_name(item, item.text()?)).collect();
        names.into_iter().collect()
    });
    let fields = |key| section.optional(key).map_or(Some(Vec::new()), |field| read_fields(&field));
    let (set, add) = (fields("set"), fields("add"));
    section.finish();
    Some(Edits { remove: remove?, set: set?, add: add? })
}

/// The header fields of a section; a field may have several values.
fn read_fields(field: &Field<'_>) -> Option<Vec<(HeaderName, Template)>> {
    let read = |(key, field): (&Key, Field<'_>)| {
        let name = read_name(&field, &key.text);
        let values: Vec<_> = field.one_or_many().iter().map(read_template).collect();
        let name = name?;
        values.into_iter().map(|value| Some((name.clone(), value?))).collect::<Option<Vec<_>>>()
    };
    let fields: Vec<_> = field.entries().into_iter().map(read).collect();
    fields.into_iter().collect::<Option<Vec<_>>>().map(|fields| fields.concat())
}

pub(super) fn read_name(field: &Field<'_>, text: &str) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        return field.report(format!("`{text}` is not a valid header name"));
    };
    if !is_editable(&name) {
        return field.report(format!(
            "`{text}` cannot be changed by a route, because Domicile sets it itself; `rewrite.host` changes the host"
        ));
    }
    Some(name)
}

pub(super) fn read_template(field: &Field<'_>) -> Option<Template> {
    Template::parse(field.text()?).map_or_else(|error| field.report(error.to_string()), Some)
}

pub(super) fn read_codings(field: &Field<'_>) -> Option<Vec<Coding>> {
    let words = Coding::ALL.map(|coding| (coding.as_str(), coding));
    let mut codings = Vec::new();
    for item in field.one_or_many() {
        let coding = item.word(&words)?;
        if codings.contains(&coding) {
            return item.report("this coding is already in the list");
        }
        codings.push(coding);
    }
    Some(codings)
}

/// Reads names from the HTTP Upgrade Token registry. HTTP versions and `h2c` are refused, because they are not tunnels.
pub(super) fn read_upgrades(field: &Field<'_>) -> Option<Upgrades> {
    let mut upgrades = Vec::new();
    for item in field.one_or_many() {
        let name = item.text()?.to_ascii_lowercase();
        let is_token =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&byte));
        if !is_token || name == "h2c" || name.starts_with("http/") {
            return item.report(format!("`{name}` is not a valid upgrade protocol; write `websocket`, or `[]` for none"));
        }
        let known = [WEBSOCKET, CONNECT];
        let meant = suggestion(&name, known);
        // Other names may be custom protocols, but a name similar to a known one is a misspelling.
        if !known.contains(&name.as_str()) && meant.contains("did you mean") {
            return item.report(format!("unknown protocol `{name}`{meant}"));
        }
        upgrades.push(name.into());
    }
    Some(Upgrades(upgrades))
}
