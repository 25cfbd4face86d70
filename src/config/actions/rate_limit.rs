//! Rate limits of a route.

use std::time::Duration;

use http::header::HeaderName;

use super::super::reader::Field;
use crate::proxy::admission::rate_limit::{RateKey, RateLimit, Scope};

/// Reads `{ rate: 100/s, burst: 200, by: client }`, or a list of such limits.
pub(super) fn read_rate_limits(field: &Field<'_>) -> Option<Vec<RateLimit>> {
    let limits: Vec<_> = field.one_or_many().iter().map(read_rate_limit).collect();
    limits.into_iter().collect()
}

fn read_rate_limit(field: &Field<'_>) -> Option<RateLimit> {
    if !field.is_section() {
        let (requests, period) = read_rate(field)?;
        return Some(RateLimit {
            by: RateKey::Client,
            requests,
            period,
            burst: burst_of(requests, period),
            scope: Scope::Region,
        });
    }
    let section = field.section()?;
    let rate = section.required("rate", "write a number of requests and a unit, such as `100/s`, `600/m` or `5000/h`");
    let rate = rate.and_then(|field| read_rate(&field));
    let burst = section.optional("burst").map(|field| field.number(1, 1_000_000));
    let by = section.optional("by").map_or(Some(RateKey::Client), |field| read_rate_key(&field));
    let scope = section.optional("scope");
    let scopes = [("region", Scope::Region), ("global", Scope::Global)];
    let scope = scope.map_or(Some(Scope::Region), |field| field.word(&scopes));
    section.finish();
    let (requests, period) = rate?;
    let burst = burst.map_or(Some(burst_of(requests, period)), |burst| burst.map(|burst| burst as u32))?;
    Some(RateLimit { by: by?, requests, period, burst, scope: scope? })
}

/// The burst of a limit that names none: the requests of ten seconds.
fn burst_of(requests: u32, period: Duration) -> u32 {
    (f64::from(requests) * 10.0 / period.as_secs_f64()).ceil().max(1.0) as u32
}

fn read_rate(field: &Field<'_>) -> Option<(u32, Duration)> {
    let text = field.text()?;
    let parsed = text.split_once('/').and_then(|(requests, unit)| {
        let seconds = match unit.trim() {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return None,
        };
        let requests = requests.trim().parse().ok().filter(|requests| (1..=1_000_000).contains(requests))?;
        Some((requests, Duration::from_secs(seconds)))
    });
    let advice =
        format!("`{text}` is not a valid rate; write 1 to 1000000 requests and a unit, such as `100/s`, `600/m` or `5000/h`");
    parsed.or_else(|| field.report(advice))
}

fn read_rate_key(field: &Field<'_>) -> Option<RateKey> {
    if !field.is_section() {
        let mistake =
            |text: &str| format!("`{text}` is not a valid key; write `client`, `user`, `route` or `{{ header: NAME }}`");
        return match field.word_or(&[("client", 0), ("user", 1), ("route", 2)], mistake)? {
            0 => Some(RateKey::Client),
            1 => Some(RateKey::User),
            _ => Some(RateKey::Route),
        };
    }
    let section = field.section()?;
    let name = section.required("header", "name a header field, or write `client`, `user` or `route`");
    section.finish();
    let name = name?;
    let text = name.text()?;
    let parsed = HeaderName::from_bytes(text.as_bytes()).ok();
    parsed.map(RateKey::Header).or_else(|| name.report(format!("`{text}` is not a valid header name")))
}
