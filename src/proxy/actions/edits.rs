//! Changes of header fields.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::http::names::{
    FORWARDED, HOP_BY_HOP, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, is_framing_look_alike, is_same_name,
};
use crate::peer::fields;

use super::template::{Template, Values};

/// The changes of the header fields of one message: removals first, then replacements, then additions.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Edits {
    pub remove: Vec<HeaderName>,
    pub set: Vec<(HeaderName, Template)>,
    pub add: Vec<(HeaderName, Template)>,
}

impl Edits {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Changes the header fields. A value that is not valid in a header field, such as one with a line break, is left out.
    pub fn apply(&self, headers: &mut HeaderMap, values: &Values<'_>) {
        for name in &self.remove {
            remove_in_any_spelling(headers, name);
        }
        let render = |template: &Template| HeaderValue::try_from(template.render(values)).ok();
        for (name, template) in &self.set {
            remove_in_any_spelling(headers, name);
            if let Some(value) = render(template) {
                headers.insert(name, value);
            }
        }
        for (name, template) in &self.add {
            if let Some(value) = render(template) {
                headers.append(name, value);
            }
        }
    }
}

/// Removes a field in every spelling, because servers behind a gateway interface such as CGI read `x_plan` as `x-plan`.
pub fn remove_in_any_spelling(headers: &mut HeaderMap, name: &HeaderName) {
    let spellings: Vec<_> = headers.keys().filter(|other| is_same_name(other, name.as_str())).cloned().collect();
    for spelling in spellings {
        headers.remove(spelling);
    }
}

/// Whether a route may change this field: not if it frames the message, belongs to one connection, or is Domicile's own.
pub fn is_editable(name: &HeaderName) -> bool {
    let own = [FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, header::VIA, header::HOST];
    let framing = [header::CONTENT_LENGTH, header::EXPECT, header::MAX_FORWARDS];
    !HOP_BY_HOP.contains(name)
        && !own.contains(name)
        && !framing.contains(name)
        && !is_framing_look_alike(name)
        && !name.as_str().starts_with(fields::PREFIX)
}

#[cfg(test)]
mod tests {
    use super::super::tests::values;
    use super::*;

    #[test]
    fn fields_are_removed_then_set_then_added() {
        let template = |text| Template::parse(text).unwrap();
        let name = HeaderName::from_static;
        let edits = Edits {
            remove: vec![name("x-old"), name("x-list")],
            set: vec![(name("x-country"), template("{client.country}")), (name("x-empty"), template("{query}"))],
            add: vec![(name("x-list"), template("1")), (name("x-list"), template("{region}"))],
        };
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("x-old", "a"), ("x-list", "b"), ("x-country", "forged"), ("x_country", "forged"), ("x.old", "d"), ("x-other", "c")]
        {
            headers.append(name, HeaderValue::from_static(value));
        }
        edits.apply(&mut headers, &values("/", None));
        let mut fields: Vec<_> = headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        fields.sort();
        assert_eq!(fields, ["x-country=DE", "x-empty=", "x-list=1", "x-list=us-east", "x-other=c"]);
    }

    #[test]
    fn an_invalid_value_removes_the_field() {
        let edits = Edits { set: vec![("x-a".parse().unwrap(), Template::parse("{host}").unwrap())], ..Edits::default() };
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_static("forged"));
        edits.apply(&mut headers, &Values { host: "a\r\nb: c", ..values("/", None) });
        assert!(headers.is_empty());
    }

    #[test]
    fn framing_and_our_own_fields_cannot_be_changed() {
        for name in [
            "content-length",
            "content_length",
            "transfer-encoding",
            "connection",
            "te",
            "host",
            "via",
            "x-forwarded-for",
            "domicile-request",
        ] {
            assert!(!is_editable(&name.parse().unwrap()), "{name}");
        }
        for name in ["x-forwarded-prefix", "cache-control", "set-cookie", "authorization", "x-request-id"] {
            assert!(is_editable(&name.parse().unwrap()), "{name}");
        }
    }
}
