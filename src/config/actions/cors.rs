//! The CORS settings of a route.

use std::time::Duration;

use http::header::{HeaderName, HeaderValue};

use super::super::reader::Field;
use crate::proxy::actions::Cors;

/// Reads `{ origins: [https://app.example.com], credentials: true }`; `origins: "*"` is every origin.
pub(super) fn read_cors(field: &Field<'_>) -> Option<Cors> {
    let section = field.section()?;
    let origins = section.required("origins", "list the origins, such as `[https://app.example.com]`, or write `\"*\"`");
    let origins = origins.and_then(|field| read_origins(&field));
    let names = |key| section.optional(key).map_or(Some(None), |field| read_names(&field).map(Some));
    let (methods, headers, expose) = (names("methods"), names("headers"), names("expose"));
    let credentials = section.optional("credentials").map(|field| (field.flag(), field));
    let max_age = section.optional("max_age").map_or(Some(Duration::from_secs(600)), |field| field.duration());
    section.finish();
    let origins = origins?;
    if let (None, Some((Some(true), field))) = (&origins, &credentials) {
        return field.report("browsers refuse credentials where every origin is allowed; list the origins");
    }
    let (methods, headers, expose) = (methods?, headers?, expose?);
    if let (true, Some((Some(true), field))) = ([&methods, &headers, &expose].iter().any(|names| is_wild(names)), &credentials) {
        return field.report("with credentials, browsers take `*` for a name; list the names, or leave the key out to allow all");
    }
    let credentials = credentials.map_or(Some(false), |(flag, _)| flag);
    Some(Cors { origins, methods, headers, expose, credentials: credentials?, max_age: max_age? })
}

fn is_wild(names: &Option<HeaderValue>) -> bool {
    names.as_ref().is_some_and(|names| names.as_bytes().contains(&b'*'))
}

/// The origins; the inner `None` is every origin.
fn read_origins(field: &Field<'_>) -> Option<Option<Vec<HeaderValue>>> {
    let (items, mut origins) = (field.one_or_many(), Vec::new());
    for item in &items {
        let text = item.text()?;
        if text == "*" && items.len() > 1 {
            return item.report("`*` is every origin; remove it, or the others");
        }
        if text == "*" {
            return Some(None);
        }
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_origin = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '*', '@']));
        let Some(origin) = HeaderValue::from_str(text).ok().filter(|_| is_origin) else {
            return item.report(format!(
                "`{text}` is not a valid origin; write scheme and host without a path, such as `https://app.example.com`"
            ));
        };
        origins.push(origin);
    }
    if origins.is_empty() { field.report("this list is empty; name at least one origin") } else { Some(Some(origins)) }
}

/// A list of methods or header names, as one field value.
fn read_names(field: &Field<'_>) -> Option<HeaderValue> {
    let name = |item: &Field<'_>| {
        let text = item.text()?;
        let is_token = HeaderName::from_bytes(text.as_bytes()).is_ok();
        if is_token { Some(text.to_owned()) } else { item.report(format!("`{text}` is not a valid name")) }
    };
    let names: Option<Vec<_>> = field.one_or_many().iter().map(name).collect();
    HeaderValue::try_from(names?.join(", ")).ok()
}
