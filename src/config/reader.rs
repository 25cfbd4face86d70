//! Reads typed values from the tree. An invalid value is reported with its position, and reading continues.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Duration;

use super::options::Kind;
use super::problem::{Position, Problem, Problems, suggestion};
use super::source::document::{Key, Node, Value};

/// A value and its path.
#[derive(Clone)]
pub struct Field<'n> {
    pub node: &'n Node,
    pub path: String,
    /// The path without names and indexes, if the options are recorded.
    pattern: String,
    problems: &'n Problems,
}

/// A section whose keys are read by name; a key that is never read is reported as unknown.
pub struct Section<'n> {
    entries: &'n [(Key, Node)],
    at: Position,
    path: String,
    pattern: String,
    problems: &'n Problems,
    known: RefCell<Vec<&'static str>>,
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}

impl<'n> Field<'n> {
    pub fn root(node: &'n Node, problems: &'n Problems) -> Self {
        Self { node, path: String::new(), pattern: String::new(), problems }
    }

    /// Reports a mistake at this value.
    pub fn report<T>(&self, message: impl Into<String>) -> Option<T> {
        self.problems.report(self.node.at, &self.path, message);
        None
    }

    /// A mistake at this value that is found later.
    pub fn problem(&self) -> Problem {
        self.problems.problem(self.node.at, &self.path)
    }

    fn expected<T>(&self, what: &str) -> Option<T> {
        self.report(format!("expected {what}, found {}", self.node.kind()))
    }

    pub fn section(&self) -> Option<Section<'n>> {
        self.note(Kind::Section);
        let Value::Map(entries) = &self.node.value else { return self.expected("a section of keys") };
        let (at, path, pattern, problems) = (self.node.at, self.path.clone(), self.pattern.clone(), self.problems);
        Some(Section { entries, at, path, pattern, problems, known: RefCell::default() })
    }

    /// Records what the reader expects here.
    fn note(&self, kind: Kind) {
        if let Some(options) = self.problems.options() {
            options.note(&self.pattern, kind);
        }
    }

    /// The pattern of what is below this value.
    fn below(&self, part: &str) -> String {
        if self.problems.options().is_some() { join(&self.pattern, part) } else { String::new() }
    }

    /// The entries of a section whose keys are names chosen by the operator.
    pub fn entries(&self) -> Vec<(&'n Key, Field<'n>)> {
        self.note(Kind::Names);
        let Value::Map(entries) = &self.node.value else {
            self.expected::<()>("a section of names");
            return Vec::new();
        };
        let field = |key: &Key, node| Field {
            node,
            path: join(&self.path, &key.text),
            pattern: self.below("NAME"),
            problems: self.problems,
        };
        entries.iter().map(|(key, node)| (key, field(key, node))).collect()
    }

    pub fn is_section(&self) -> bool {
        self.note(Kind::Either);
        matches!(self.node.value, Value::Map(_))
    }

    pub fn list(&self) -> Vec<Field<'n>> {
        self.note(Kind::List);
        let Value::List(items) = &self.node.value else {
            self.expected::<()>("a list");
            return Vec::new();
        };
        self.items(items)
    }

    /// The items of a list; a single value counts as a list with one item.
    pub fn one_or_many(&self) -> Vec<Field<'n>> {
        self.note(Kind::OneOrMany);
        match &self.node.value {
            Value::List(items) => self.items(items),
            Value::Null | Value::Text(_) | Value::Map(_) => vec![Field { pattern: self.below("[]"), ..self.clone() }],
        }
    }

    fn items(&self, items: &'n [Node]) -> Vec<Field<'n>> {
        let item = |(index, node)| Field {
            node,
            path: format!("{}[{index}]", self.path),
            pattern: self.below("[]"),
            problems: self.problems,
        };
        items.iter().enumerate().map(item).collect()
    }

    pub fn text(&self) -> Option<&'n str> {
        self.note(Kind::Text);
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => self.expected("a single value"),
        }
    }

    /// One of a fixed set of words.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let known = words.iter().map(|(word, _)| *word);
        self.word_or(words, |text| format!("`{text}` is not a valid value{}", suggestion(text, known)))
    }

    /// One of a fixed set of words, where other forms are possible as well; `mistake` is the message about another word.
    pub fn word_or<T: Copy>(&self, words: &[(&str, T)], mistake: impl FnOnce(&str) -> String) -> Option<T> {
        self.note(Kind::Words(words.iter().map(|(word, _)| (*word).to_owned()).collect()));
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).or_else(|| self.report(mistake(text)))
    }

    pub fn flag(&self) -> Option<bool> {
        self.word(&[("true", true), ("false", false)])
    }

    /// A whole number from `least` to `most`, both included.
    pub fn number(&self, least: u64, most: u64) -> Option<u64> {
        self.note(Kind::Number(least, most));
        let text = self.text()?;
        let in_range = text.parse().ok().filter(|number| (least..=most).contains(number));
        in_range.or_else(|| self.report(format!("`{text}` is not a valid value; write a whole number from {least} to {most}")))
    }

    /// A share such as `10 %` or `10%`.
    pub fn percent(&self) -> Option<u8> {
        self.note(Kind::Percent);
        let text = self.text()?;
        let number = text.strip_suffix('%').map_or(text, str::trim_end);
        let percent = number.parse::<u8>().ok().filter(|percent| *percent <= 100);
        percent.or_else(|| self.report(format!("`{text}` is not a valid percentage; write `0 %` to `100 %`")))
    }

    pub fn decimal(&self, least: f32, most: f32) -> Option<f32> {
        let text = self.text()?;
        let in_range = text.parse().ok().filter(|number| (least..=most).contains(number));
        in_range.or_else(|| self.report(format!("`{text}` is not a valid value; write a number from {least} to {most}")))
    }

    /// A duration such as `500ms`, `5s`, `2m`, `1h` or `90d`.
    pub fn duration(&self) -> Option<Duration> {
        self.note(Kind::Duration);
        let text = self.text()?;
        parse_duration(text).or_else(|| {
            self.report(format!(
                "`{text}` is not a valid duration; write a number with a unit, such as `500ms`, `5s`, `2m`, `1h` or `90d`"
            ))
        })
    }

    /// A duration longer than zero, for intervals and timeouts.
    pub fn positive_duration(&self) -> Option<Duration> {
        let duration = self.duration()?;
        if duration.is_zero() { self.report("this duration must be longer than zero") } else { Some(duration) }
    }

    /// A size in bytes such as `8192`, `32KiB` or `10MiB`.
    pub fn bytes(&self) -> Option<u64> {
        self.note(Kind::Size);
        let text = self.text()?;
        parse_bytes(text)
            .or_else(|| self.report(format!("`{text}` is not a valid size; write bytes, such as `8192`, `32KiB` or `10MB`")))
    }

    /// A size, or `unlimited`.
    pub fn size_limit(&self) -> Option<u64> {
        self.note(Kind::Size);
        if self.text()? == "unlimited" { Some(u64::MAX) } else { self.bytes() }
    }

    pub fn address(&self) -> Option<SocketAddr> {
        self.note(Kind::Address);
        let text = self.text()?;
        text.parse().ok().or_else(|| {
            self.report(format!(
                "`{text}` is not a valid address; write an IP address and a port, such as `127.0.0.1:8080` or `[::]:8443`"
            ))
        })
    }

    /// An absolute URL with one of these schemes and without a query.
    pub fn base_url(&self, schemes: &[&str]) -> Option<http::Uri> {
        self.note(Kind::Url);
        let text = self.text()?;
        let example = format!("write `{}://host:port`", schemes[0]);
        let Ok(uri) = text.parse::<http::Uri>() else {
            return self.report(format!("`{text}` is not a valid URL; {example}"));
        };
        let fits = uri.scheme_str().is_some_and(|scheme| schemes.contains(&scheme)) && uri.query().is_none();
        let plain_authority =
            uri.authority().is_some_and(|authority| !authority.as_str().contains('@') && !authority.host().is_empty());
        // The `http` crate accepts ports such as 99999, so a port in the URL must also parse. Colons inside the brackets of an
        // IPv6 address do not start a port.
        let host_and_port = uri
            .authority()
            .map_or("", |authority| authority.as_str())
            .rsplit_once(']')
            .map_or(uri.authority().map_or("", |authority| authority.as_str()), |(_, rest)| rest);
        let good_port = !host_and_port.contains(':') || uri.port_u16().is_some();
        if fits && plain_authority && good_port {
            Some(uri)
        } else {
            self.report(format!("`{text}` is not a valid base URL; {example}, without user, query or fragment"))
        }
    }
}

impl<'n> Section<'n> {
    /// The value of a key, if it is present and not null.
    pub fn optional(&self, key: &'static str) -> Option<Field<'n>> {
        self.known.borrow_mut().push(key);
        let mut pattern = String::new();
        if let Some(options) = self.problems.options() {
            pattern = join(&self.pattern, key);
            options.add(&pattern);
        }
        let (_, node) = self.entries.iter().find(|(found, _)| found.text == key)?;
        if matches!(node.value, Value::Null) {
            return None;
        }
        Some(Field { node, path: join(&self.path, key), pattern, problems: self.problems })
    }

    /// The value of a key that does not belong here, for a message that names the right place.
    pub fn misplaced(&self, key: &'static str) -> Option<Field<'n>> {
        let (_, node) = self.entries.iter().find(|(found, _)| found.text == key)?;
        Some(Field { node, path: join(&self.path, key), pattern: String::new(), problems: self.problems })
    }

    /// The value of a mandatory key; `what` is the correction to report if it is missing.
    pub fn required(&self, key: &'static str, what: &str) -> Option<Field<'n>> {
        self.optional(key).or_else(|| self.report(format!("`{key}` is missing: {what}")))
    }

    /// Reports a mistake at this section.
    pub fn report<T>(&self, message: impl Into<String>) -> Option<T> {
        self.problems.report(self.at, &self.path, message);
        None
    }

    /// Reports the keys that were never read.
    pub fn finish(&self) {
        let known = self.known.borrow();
        for (key, _) in self.entries {
            if !known.contains(&key.text.as_str()) {
                let message = format!("unknown key `{}`{}", key.text, suggestion(&key.text, known.iter().copied()));
                self.problems.report(key.at, &self.path, message);
            }
        }
    }
}

/// The longest duration that is accepted, a century: a longer one could overflow when it is added to an `Instant`.
const MAX_DURATION: Duration = Duration::from_secs(100 * 366 * 86_400);

pub fn parse_duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok().filter(|duration| *duration <= MAX_DURATION)
}

pub fn parse_bytes(text: &str) -> Option<u64> {
    // The parser clips what does not fit, and a clipped size would mean "unlimited".
    text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()).filter(|bytes| *bytes < u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_need_their_units() {
        assert_eq!(parse_duration("90d"), Some(Duration::from_secs(7_776_000)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("1h 30m"), Some(Duration::from_secs(5400)));
        for bad in ["5", "s", "-1s", "5 parsecs", "101years", "99999999999d", "99999999999999999999s", ""] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        assert_eq!(parse_bytes("32KiB"), Some(32768));
        assert_eq!(parse_bytes("8192"), Some(8192));
        assert_eq!(parse_bytes("10MB"), Some(10_000_000));
        for bad in ["KiB", "10 lots", "-1", "-1KiB", "99999999999GiB", "99999999999999999999", "NaN", "inf", ""] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
    }
}
