//! Response fields that show how the proxy handled a request: its id for everybody, the rest for the clients to whom the operator
//! exposes it.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use http::HeaderMap;
use http::header::HeaderValue;
use ipnet::IpNet;

use crate::http::names::{PROXY_STATUS, SERVER_TIMING};
use crate::peer::fields;

/// The clients that see how their requests were handled.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Exposure {
    #[default]
    Nobody,
    Networks(Vec<IpNet>),
    Everyone,
}

impl Exposure {
    /// Whether a client sees it.
    pub fn covers(&self, client: IpAddr) -> bool {
        match self {
            Self::Nobody => false,
            Self::Networks(networks) => networks.iter().any(|network| network.contains(&client)),
            Self::Everyone => true,
        }
    }
}

/// How a request was handled.
pub struct Handling<'a> {
    /// The region that served it; `None` if no region did.
    pub region: Option<&'a str>,
    /// The evidence of its home and the home, or the code of its refusal.
    pub reason: &'a str,
    /// The app server or the region to which it was sent.
    pub next_hop: Option<&'a str>,
    /// The status of the response of the next hop.
    pub received: Option<u16>,
    /// From the head of the request to the head of the response.
    pub total: Duration,
    /// The part of it in which the next hop had the request.
    pub upstream: Option<Duration>,
}

/// Sets `Domicile-Request-Id`, by which the request is found in the logs of all regions.
pub fn identify(headers: &mut HeaderMap, id: &str) {
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(fields::REQUEST_ID, value);
    }
}

/// Sets `Domicile-Region` and `Domicile-Reason`, and adds to `Server-Timing` and to `Proxy-Status` (RFC 9209).
pub fn expose(headers: &mut HeaderMap, handling: &Handling<'_>) {
    let text = |text: &str| HeaderValue::from_str(text).ok();
    if let Some(region) = handling.region.and_then(text) {
        headers.insert(fields::REGION, region);
    }
    if let Some(reason) = text(handling.reason) {
        headers.insert(fields::REASON, reason);
    }
    let mut timing = format!("domicile;dur={}", millis(handling.total));
    if let Some(upstream) = handling.upstream {
        write!(timing, ", upstream;dur={}", millis(upstream)).expect("writing to a string succeeds");
    }
    if let Some(timing) = text(&timing) {
        headers.append(SERVER_TIMING, timing);
    }
    if let Some((next_hop, status)) = handling.next_hop.zip(handling.received)
        && let Some(value) = text(&format!("domicile; next-hop=\"{next_hop}\"; received-status={status}"))
    {
        headers.append(PROXY_STATUS, value);
    }
}

/// Milliseconds, to the microsecond.
fn millis(duration: Duration) -> String {
    format!("{}.{:03}", duration.as_millis(), duration.subsec_micros() % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposed_fields_are_valid_and_add_to_those_of_the_app_server() {
        let mut headers = HeaderMap::new();
        headers.insert(SERVER_TIMING, HeaderValue::from_static("db;dur=5"));
        let handling = Handling {
            region: Some("eu-west"),
            reason: "recorded; home=eu-west",
            next_hop: Some("10.0.0.1:3000"),
            received: Some(200),
            total: Duration::from_micros(12_034),
            upstream: Some(Duration::from_micros(11_005)),
        };
        expose(&mut headers, &handling);
        identify(&mut headers, "0a");
        let all = |name| headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("server-timing"), ["db;dur=5", "domicile;dur=12.034, upstream;dur=11.005"]);
        assert_eq!(all("proxy-status"), ["domicile; next-hop=\"10.0.0.1:3000\"; received-status=200"]);
        assert_eq!((all("domicile-region"), all("domicile-reason")), (vec!["eu-west"], vec!["recorded; home=eu-west"]));
        assert_eq!(all("domicile-request-id"), ["0a"]);
    }

    #[test]
    fn only_the_listed_networks_see_it() {
        let networks = Exposure::Networks(vec!["10.0.0.0/8".parse().unwrap()]);
        let covers = |exposure: &Exposure, client: &str| exposure.covers(client.parse().unwrap());
        assert!(covers(&networks, "10.1.2.3") && !covers(&networks, "11.1.2.3"));
        assert!(!covers(&Exposure::Nobody, "10.1.2.3") && covers(&Exposure::Everyone, "10.1.2.3"));
    }
}
