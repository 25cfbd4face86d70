//! Conditions of a route besides host, path and method: networks of the client, header fields and query parameters.

use std::net::IpAddr;

use super::super::geography::Prefix;

/// The conditions of a route; a request must meet all of them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Conditions {
    /// Networks that contain the client; empty for every client.
    pub clients: Vec<Prefix>,
    pub headers: Vec<FieldCondition>,
    pub query: Vec<FieldCondition>,
}

/// A header field or a query parameter that a request must have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FieldCondition {
    /// A header name is in lower case.
    pub name: Box<str>,
    /// One of them must be the value; empty for any value.
    pub values: Vec<Box<str>>,
}

/// The names of the fields that the conditions of all routes read.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct FieldNames {
    pub headers: Vec<Box<str>>,
    pub query: Vec<Box<str>>,
}

/// The values of the fields that the policy read when the request arrived. Other fields count as absent, also under a later policy
/// that reads them: routes between which clients choose by fields have the same clearance, so that an open exchange is judged
/// by the right rules (`config` refuses other routes).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Fields {
    pub headers: Vec<Values>,
    pub query: Vec<Values>,
}

/// A field and its values; none if the request does not have it.
pub type Values = (Box<str>, Vec<Box<[u8]>>);

/// The fields of a request without header fields and query parameters.
pub static NO_FIELDS: Fields = Fields { headers: Vec::new(), query: Vec::new() };

impl Conditions {
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty() && !self.depend_on_fields()
    }

    /// Whether a client can meet or avoid the conditions by what it sends.
    pub fn depend_on_fields(&self) -> bool {
        !self.headers.is_empty() || !self.query.is_empty()
    }

    /// Whether a request meets the conditions.
    pub fn hold(&self, client: IpAddr, fields: &Fields) -> bool {
        let meets = |condition: &FieldCondition, values: &[Values]| {
            values.iter().find(|(name, _)| *name == condition.name).is_some_and(|(_, values)| condition.holds(values))
        };
        (self.clients.is_empty() || self.clients.iter().any(|network| network.contains(client)))
            && self.headers.iter().all(|condition| meets(condition, &fields.headers))
            && self.query.iter().all(|condition| meets(condition, &fields.query))
    }

    /// Whether every request that meets `other` meets these conditions too.
    pub fn cover(&self, other: &Self) -> bool {
        let covers =
            |own: &[FieldCondition], other: &[FieldCondition]| own.iter().all(|own| other.iter().any(|other| own.covers(other)));
        let is_within = |network: &Prefix| self.clients.iter().any(|own| own.covers(network));
        let clients = self.clients.is_empty() || (!other.clients.is_empty() && other.clients.iter().all(is_within));
        clients && covers(&self.headers, &other.headers) && covers(&self.query, &other.query)
    }

    /// Whether a client may be in the networks of both.
    pub fn share_clients(&self, other: &Self) -> bool {
        let overlaps = |one: &Prefix, other: &Prefix| one.covers(other) || other.covers(one);
        let any_shared = || self.clients.iter().any(|one| other.clients.iter().any(|other| overlaps(one, other)));
        self.clients.is_empty() || other.clients.is_empty() || any_shared()
    }
}

impl FieldCondition {
    fn holds(&self, values: &[Box<[u8]>]) -> bool {
        let is_wanted = |value: &[u8]| self.values.is_empty() || self.values.iter().any(|wanted| wanted.as_bytes() == value);
        values.iter().any(|value| is_wanted(value))
    }

    fn covers(&self, other: &Self) -> bool {
        let are_among = || other.values.iter().all(|value| self.values.contains(value));
        self.name == other.name && (self.values.is_empty() || (!other.values.is_empty() && are_among()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(name: &str, values: &[&str]) -> FieldCondition {
        FieldCondition { name: name.into(), values: values.iter().map(|value| (*value).into()).collect() }
    }

    fn values(name: &str, values: &[&str]) -> Values {
        (name.into(), values.iter().map(|value| value.as_bytes().into()).collect())
    }

    fn network(address: &str, length: u8) -> Prefix {
        Prefix::new(address.parse().unwrap(), length)
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));

    #[test]
    fn all_conditions_must_hold() {
        let headers = vec![condition("x-beta", &["1", "2"]), condition("x-any", &[])];
        let conditions = Conditions { clients: vec![network("10.0.0.0", 8)], headers, query: vec![condition("v", &["2"])] };
        let fields = |beta: &[&str], any: &[&str], v: &[&str]| Fields {
            headers: vec![values("x-beta", beta), values("x-any", any)],
            query: vec![values("v", v)],
        };
        let holds = |fields: &Fields| conditions.hold(CLIENT, fields);
        assert!(holds(&fields(&["2"], &[""], &["1", "2"])));
        for missing in [fields(&["3"], &["x"], &["2"]), fields(&["1"], &[], &["2"]), fields(&["1"], &["x"], &["02"])] {
            assert!(!holds(&missing), "{missing:?}");
        }
        assert!(!conditions.hold([192, 0, 2, 1].into(), &fields(&["1"], &["x"], &["2"])));
        assert!(!holds(&NO_FIELDS) && Conditions::default().hold(CLIENT, &NO_FIELDS));
    }

    #[test]
    fn conditions_cover_stricter_ones_only() {
        let of = |clients: &[(&str, u8)], beta: Option<&[&str]>| Conditions {
            clients: clients.iter().map(|(address, length)| network(address, *length)).collect(),
            headers: beta.iter().map(|values| condition("x-beta", values)).collect(),
            query: Vec::new(),
        };
        let (any, one, two) = (of(&[], Some(&[])), of(&[], Some(&["1"])), of(&[], Some(&["1", "2"])));
        assert!(any.cover(&one) && two.cover(&one) && !one.cover(&two) && !one.cover(&any) && !any.cover(&of(&[], None)));
        assert!(of(&[], None).cover(&any));
        let (wide, narrow, other) = (of(&[("10.0.0.0", 8)], None), of(&[("10.1.0.0", 16)], None), of(&[("192.0.2.0", 24)], None));
        assert!(wide.cover(&narrow) && !narrow.cover(&wide) && !wide.cover(&of(&[], None)) && of(&[], None).cover(&wide));
        assert!(wide.share_clients(&narrow) && !wide.share_clients(&other) && wide.share_clients(&of(&[], None)));
    }
}
