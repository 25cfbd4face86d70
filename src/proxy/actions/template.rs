//! Text with placeholders such as `{client.country}`, which a request's values replace.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

/// A text with placeholders.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template(Vec<Part>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Text(Box<str>),
    Value(Placeholder),
}

macro_rules! placeholders {
    ($($variant:ident = $name:literal,)*) => {
        /// A value of a request.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        enum Placeholder { $($variant,)* }

        impl Placeholder {
            /// The names in a configuration.
            const NAMES: &'static [(&'static str, Self)] = &[$(($name, Self::$variant),)*];
        }
    };
}

placeholders! {
    ClientAddress = "client.address",
    ClientCountry = "client.country",
    Host = "host",
    Method = "method",
    Path = "path",
    Query = "query",
    Uri = "uri",
    Scheme = "scheme",
    Home = "home",
    Region = "region",
    Route = "route",
    RequestId = "request.id",
    UserPseudonym = "user.pseudonym",
}

/// The values of one request; an absent value is the empty text.
pub struct Values<'a> {
    pub client: IpAddr,
    /// The ISO code.
    pub country: Option<&'a str>,
    /// With the port, if the request names one.
    pub host: &'a str,
    pub method: &'a str,
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub is_https: bool,
    pub home: Option<&'a str>,
    pub region: &'a str,
    pub route: &'a str,
    pub request_id: &'a str,
    /// Computed only if a template contains it.
    pub pseudonym: &'a dyn Fn() -> Option<String>,
}

/// A mistake in a template, and how to correct it.
#[derive(PartialEq, Eq, Debug)]
pub struct TemplateError(String);

impl fmt::Display for TemplateError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl Template {
    /// Reads a text with placeholders; `{{` and `}}` stand for braces.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            if let Some(after) = from.strip_prefix("{{").or_else(|| from.strip_prefix("}}")) {
                plain.push_str(&from[..1]);
                rest = after;
                continue;
            }
            let name = from.strip_prefix('{').and_then(|from| from.split_once('}'));
            let (name, after) = name.ok_or_else(|| TemplateError(unbalanced(text)))?;
            let known = Placeholder::NAMES.iter().find(|(known, _)| *known == name);
            let (_, value) = known.ok_or_else(|| TemplateError(unknown(name)))?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain).into()));
            }
            parts.push(Part::Value(*value));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        Ok(Self(parts))
    }

    /// The text with the values of a request.
    pub fn render(&self, values: &Values<'_>) -> String {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Value(value) => value.write(values, &mut out),
            }
        }
        out
    }
}

fn unbalanced(text: &str) -> String {
    format!("`{text}` has an unbalanced brace; write `{{name}}` for a value, or `{{{{` and `}}}}` for braces")
}

fn unknown(name: &str) -> String {
    let names: Vec<_> = Placeholder::NAMES.iter().map(|(name, _)| format!("`{{{name}}}`")).collect();
    format!("`{{{name}}}` is not a known value; write one of {}", names.join(", "))
}

impl Placeholder {
    fn write(self, values: &Values<'_>, out: &mut String) {
        match self {
            Self::ClientAddress => write!(out, "{}", values.client).expect("writing to a string succeeds"),
            Self::ClientCountry => out.push_str(values.country.unwrap_or_default()),
            Self::Host => out.push_str(values.host),
            Self::Method => out.push_str(values.method),
            Self::Path => out.push_str(values.path),
            Self::Query => out.push_str(values.query.unwrap_or_default()),
            Self::Uri => {
                out.push_str(values.path);
                if let Some(query) = values.query {
                    out.push('?');
                    out.push_str(query);
                }
            }
            Self::Scheme => out.push_str(if values.is_https { "https" } else { "http" }),
            Self::Home => out.push_str(values.home.unwrap_or_default()),
            Self::Region => out.push_str(values.region),
            Self::Route => out.push_str(values.route),
            Self::RequestId => out.push_str(values.request_id),
            Self::UserPseudonym => out.push_str(&(values.pseudonym)().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::values;
    use super::*;

    #[test]
    fn every_placeholder_has_its_value() {
        let text: String = Placeholder::NAMES.iter().map(|(name, _)| format!("{name}={{{name}}} ")).collect();
        let rendered = Template::parse(&text).unwrap().render(&values("/a", Some("b=c")));
        assert_eq!(
            rendered,
            "client.address=192.0.2.1 client.country=DE host=a.test:81 method=GET path=/a query=b=c uri=/a?b=c scheme=https \
             home=eu-west region=us-east route=api request.id=id user.pseudonym=p "
        );
        let absent = Values { country: None, home: None, pseudonym: &|| None, ..values("/", None) };
        let text = Template::parse("<{client.country}{home}{query}{user.pseudonym}>{uri}").unwrap().render(&absent);
        assert_eq!(text, "<>/");
    }

    #[test]
    fn braces_are_escaped_by_doubling_and_mistakes_are_named() {
        assert_eq!(Template::parse("{{\"a\": \"{path}\"}}").unwrap().render(&values("/x", None)), "{\"a\": \"/x\"}");
        assert_eq!(Template::parse("").unwrap().render(&values("/x", None)), "");
        for (bad, says) in [("{path", "an unbalanced brace"), ("path}", "unbalanced"), ("{pth}", "`{pth}` is not a known value")]
        {
            assert!(Template::parse(bad).unwrap_err().to_string().contains(says), "{bad}");
        }
    }
}
