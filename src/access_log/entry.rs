//! The fields of one request in the access log.

use std::fmt::{self, Display};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// One request, as the access log shows it. Fields without a value are left out.
#[derive(Clone, Copy, Default)]
pub struct Entry<'a> {
    /// When the response ended; `None` only before it is set.
    pub ended: Option<SystemTime>,
    pub id: &'a str,
    pub client: Option<IpAddr>,
    pub peer: Option<&'a str>,
    /// The pseudonym of the user.
    pub user: Option<&'a str>,
    pub method: Option<&'a str>,
    pub host: Option<&'a str>,
    pub path: Option<&'a dyn Display>,
    /// The version of HTTP, such as `HTTP/1.1`.
    pub protocol: Option<&'a str>,
    /// The version of TLS, such as `TLSv1.3`.
    pub tls: Option<&'a str>,
    pub route: Option<&'a str>,
    pub class: Option<&'a str>,
    pub home: Option<&'a str>,
    pub evidence: Option<&'a str>,
    pub served_by: Option<&'a str>,
    pub verdict: Option<&'a str>,
    pub code: Option<&'a str>,
    pub status: u16,
    pub service: Option<&'a str>,
    /// The last app server to which the request was sent.
    pub upstream: Option<&'a str>,
    /// From the start of the last attempt to the head of its response.
    pub upstream_time: Option<Duration>,
    pub attempts: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub broken: Option<&'a dyn Display>,
    pub referer: Option<&'a str>,
    pub user_agent: Option<&'a str>,
    pub trace: Option<&'a str>,
    pub elapsed: Duration,
}

/// A value of a field.
pub(super) enum Value<'a> {
    Text(&'a str),
    Display(&'a dyn Display),
    Client(IpAddr),
    Number(u64),
    Seconds(Duration),
}

macro_rules! fields {
    ($($field:ident $name:literal $value:expr;)*) => {
        /// A field of the access log.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Field {
            $($field,)*
        }

        impl Field {
            /// All fields, in the order of a line.
            pub const ALL: &[Self] = &[$(Self::$field,)*];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$field => $name,)*
                }
            }

            pub(super) fn value<'a>(self, entry: &Entry<'a>) -> Option<Value<'a>> {
                match self {
                    $(Self::$field => {
                        let read: fn(&Entry<'a>) -> Option<Value<'a>> = $value;
                        read(entry)
                    })*
                }
            }
        }
    };
}

fields! {
    Id "id" |entry| Some(Value::Text(entry.id));
    Client "client" |entry| entry.client.map(Value::Client);
    Peer "peer" |entry| entry.peer.map(Value::Text);
    User "user" |entry| entry.user.map(Value::Text);
    Method "method" |entry| entry.method.map(Value::Text);
    Host "host" |entry| entry.host.map(Value::Text);
    Path "path" |entry| entry.path.map(Value::Display);
    Protocol "protocol" |entry| entry.protocol.map(Value::Text);
    Tls "tls" |entry| entry.tls.map(Value::Text);
    Route "route" |entry| entry.route.map(Value::Text);
    Class "class" |entry| entry.class.map(Value::Text);
    Home "home" |entry| entry.home.map(Value::Text);
    Evidence "evidence" |entry| entry.evidence.map(Value::Text);
    ServedBy "served_by" |entry| entry.served_by.map(Value::Text);
    Verdict "verdict" |entry| entry.verdict.map(Value::Text);
    Code "code" |entry| entry.code.map(Value::Text);
    Status "status" |entry| Some(Value::Number(entry.status.into()));
    Service "service" |entry| entry.service.map(Value::Text);
    Upstream "upstream" |entry| entry.upstream.map(Value::Text);
    UpstreamSeconds "upstream_seconds" |entry| entry.upstream_time.map(Value::Seconds);
    Attempts "attempts" |entry| Some(Value::Number(entry.attempts)).filter(|_| entry.attempts > 1);
    RequestBytes "request_bytes" |entry| Some(Value::Number(entry.request_bytes));
    ResponseBytes "response_bytes" |entry| Some(Value::Number(entry.response_bytes));
    Broken "broken" |entry| entry.broken.map(Value::Display);
    Referer "referer" |entry| entry.referer.map(Value::Text);
    UserAgent "user_agent" |entry| entry.user_agent.map(Value::Text);
    Trace "trace" |entry| entry.trace.map(Value::Text);
    Seconds "seconds" |entry| Some(Value::Seconds(entry.elapsed));
}

/// The network of a client: an address without the part that identifies a household, /24 of IPv4 and /48 of IPv6.
pub(super) struct Network(pub IpAddr);

impl Network {
    /// The first address of the network, for formats that expect an address.
    pub const fn address(&self) -> IpAddr {
        match self.0 {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                IpAddr::V4(std::net::Ipv4Addr::new(a, b, c, 0))
            }
            IpAddr::V6(address) => {
                let [a, b, c, ..] = address.segments();
                IpAddr::V6(std::net::Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0))
            }
        }
    }
}

impl Display for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.0.is_ipv4() { 24 } else { 48 };
        write!(out, "{}/{bits}", self.address())
    }
}

/// The entry of the tests, with characters that need escapes.
#[cfg(test)]
pub(super) fn example() -> Entry<'static> {
    Entry {
        ended: Some(SystemTime::UNIX_EPOCH + Duration::from_micros(951_782_399_000_012)),
        id: "0a",
        client: Some(IpAddr::from([81, 2, 69, 142])),
        method: Some("GET"),
        path: Some(&"/caf\u{e9}/\"it's\"\\\n"),
        protocol: Some("HTTP/1.1"),
        status: 200,
        request_bytes: u64::MAX,
        user_agent: Some("a\"b\n"),
        elapsed: Duration::from_nanos(1_000_012_999),
        ..Entry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_address_names_no_household() {
        assert_eq!(Network("81.2.69.142".parse().unwrap()).to_string(), "81.2.69.0/24");
        assert_eq!(Network("2001:db8:1:2::3".parse().unwrap()).to_string(), "2001:db8:1::/48");
    }
}
