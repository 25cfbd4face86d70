//! The formats of a line.

use std::fmt::{self, Display};
use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use super::entry::{Entry, Field, Network, Value};

/// The format of the access log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Format {
    /// The format of all other lines of the log.
    Text,
    Json,
    /// The combined format of Apache and nginx. The client is the first address of its network.
    Combined,
    Template(Vec<Piece>),
}

/// A piece of a template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    Literal(Box<str>),
    Time,
    /// Its spaces are escaped unless it is in quotes, so that no client can add fields to a line.
    Field {
        field: Field,
        is_quoted: bool,
    },
}

/// The name of the time in a template.
const TIME: &str = "time";

impl Format {
    /// Parses a template such as `{client} "{method} {path}" {status}`. The error is the name of an unknown field, or a
    /// brace without its counterpart.
    pub fn template(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find(['{', '}']) {
            let (literal, opened) = rest.split_at(start);
            if !literal.is_empty() {
                pieces.push(Piece::Literal(literal.into()));
            }
            let closed = opened.strip_prefix('{').and_then(|inside| inside.split_once('}'));
            let (name, after) = closed.ok_or_else(|| opened.chars().take(1).collect::<String>())?;
            let is_quoted = matches!(pieces.last(), Some(Piece::Literal(text)) if text.ends_with('"'));
            let field = Field::ALL.iter().find(|field| field.name() == name);
            let field = field.map(|field| Piece::Field { field: *field, is_quoted });
            let piece = if name == TIME { Some(Piece::Time) } else { field };
            pieces.push(piece.ok_or_else(|| name.to_owned())?);
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Literal(rest.into()));
        }
        Ok(Self::Template(pieces))
    }

    /// The names that a template may contain.
    pub fn names() -> impl Iterator<Item = &'static str> {
        std::iter::once(TIME).chain(Field::ALL.iter().map(|field| field.name()))
    }
}

/// Formats lines; it remembers the text of the current second.
pub(super) struct Formatter {
    format: Format,
    second: (u64, String),
}

impl Formatter {
    pub const fn of(format: Format) -> Self {
        Self { format, second: (u64::MAX, String::new()) }
    }

    /// Appends one line. Needs no allocation, except for texts with unusual characters.
    pub fn write(&mut self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        let now = entry.ended.unwrap_or(UNIX_EPOCH).duration_since(UNIX_EPOCH).unwrap_or_default();
        match &self.format {
            Format::Text => {
                time(&mut self.second, now, out);
                out.extend_from_slice(b"  INFO domicile::request: request");
                write_fields(entry, &mut Line { out, is_json: false });
            }
            Format::Json => {
                out.extend_from_slice(b"{\"timestamp\":\"");
                time(&mut self.second, now, out);
                out.extend_from_slice(b"\",\"level\":\"INFO\",\"message\":\"request\"");
                write_fields(entry, &mut Line { out, is_json: true });
                out.extend_from_slice(b",\"target\":\"domicile::request\"}");
            }
            Format::Combined => combined(&mut self.second, now, entry, out),
            Format::Template(pieces) => {
                for piece in pieces {
                    match piece {
                        Piece::Literal(text) => out.extend_from_slice(text.as_bytes()),
                        Piece::Time => time(&mut self.second, now, out),
                        Piece::Field { field, is_quoted } => {
                            let start = out.len();
                            bare(field.value(entry), out);
                            if !is_quoted {
                                escape_spaces(out, start);
                            }
                        }
                    }
                }
            }
        }
        out.push(b'\n');
    }
}

fn write_fields(entry: &Entry<'_>, line: &mut Line<'_>) {
    for field in Field::ALL {
        if let Some(value) = field.value(entry) {
            line.field(field.name(), &value);
        }
    }
}

/// The time to the microsecond, in UTC (RFC 3339).
fn time(second: &mut (u64, String), now: Duration, out: &mut Vec<u8>) {
    if second.0 != now.as_secs() {
        let time = i64::try_from(now.as_secs()).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
        *second = (now.as_secs(), time.map(|time| time.to_string()).unwrap_or_default());
    }
    out.extend_from_slice(second.1.trim_end_matches('Z').as_bytes());
    out.push(b'.');
    digits(out, u64::from(now.subsec_micros()), 6);
    out.push(b'Z');
}

/// `CLIENT - USER [TIME] "METHOD PATH PROTOCOL" STATUS BYTES "REFERER" "USER AGENT"`.
fn combined(second: &mut (u64, String), now: Duration, entry: &Entry<'_>, out: &mut Vec<u8>) {
    if second.0 != now.as_secs() {
        let time = i64::try_from(now.as_secs()).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
        *second = (now.as_secs(), time.map(|time| time.strftime("%d/%b/%Y:%H:%M:%S +0000").to_string()).unwrap_or_default());
    }
    match entry.client {
        Some(client) => {
            fmt::write(&mut Raw(out), format_args!("{}", Network(client).address())).expect("a buffer takes every byte")
        }
        None => out.push(b'-'),
    }
    out.extend_from_slice(b" - ");
    bare(entry.user.map(Value::Text), out);
    out.extend_from_slice(b" [");
    out.extend_from_slice(second.1.as_bytes());
    out.extend_from_slice(b"] \"");
    bare(entry.method.map(Value::Text), out);
    out.push(b' ');
    bare(entry.path.map(Value::Display), out);
    out.push(b' ');
    bare(entry.protocol.map(Value::Text), out);
    out.extend_from_slice(b"\" ");
    digits(out, entry.status.into(), 1);
    out.push(b' ');
    digits(out, entry.response_bytes, 1);
    for text in [entry.referer, entry.user_agent] {
        out.extend_from_slice(b" \"");
        bare(text.map(Value::Text), out);
        out.push(b'"');
    }
}

/// A value without quotes; `-` without a value. Quotes and control characters are escaped, so that no client can forge fields or lines.
fn bare(value: Option<Value<'_>>, out: &mut Vec<u8>) {
    let mut line = Line { out, is_json: false };
    match value {
        None => line.out.push(b'-'),
        Some(Value::Text(text)) => line.escaped(text),
        Some(value) => line.value(&value, false),
    }
}

/// Escapes the spaces of a line from `start` on.
fn escape_spaces(out: &mut Vec<u8>, start: usize) {
    if out[start..].contains(&b' ') {
        let text = out.split_off(start);
        for byte in text {
            if byte == b' ' { out.extend_from_slice(b"\\x20") } else { out.push(byte) }
        }
    }
}

/// The bytes that need no escape: printable ASCII without quotes and backslashes.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = b' ';
    while byte <= b'~' {
        plain[byte as usize] = byte != b'"' && byte != b'\\';
        byte += 1;
    }
    plain
};

/// One line that is being written.
struct Line<'a> {
    out: &'a mut Vec<u8>,
    is_json: bool,
}

impl Line<'_> {
    fn field(&mut self, name: &str, value: &Value<'_>) {
        if self.is_json {
            self.out.extend_from_slice(b",\"");
            self.out.extend_from_slice(name.as_bytes());
            self.out.extend_from_slice(b"\":");
        } else {
            self.out.push(b' ');
            self.out.extend_from_slice(name.as_bytes());
            self.out.push(b'=');
        }
        self.value(value, true);
    }

    fn value(&mut self, value: &Value<'_>, is_quoted: bool) {
        let quote = |line: &mut Self| line.out.extend_from_slice(if is_quoted { b"\"" } else { b"" });
        match value {
            Value::Number(number) => digits(self.out, *number, 1),
            Value::Seconds(duration) => {
                digits(self.out, duration.as_secs(), 1);
                self.out.push(b'.');
                digits(self.out, u64::from(duration.subsec_micros()), 6);
            }
            Value::Text(text) => {
                quote(self);
                self.escaped(text);
                quote(self);
            }
            Value::Display(value) => {
                quote(self);
                self.display(value);
                quote(self);
            }
            Value::Client(client) => {
                quote(self);
                self.network(*client);
                quote(self);
            }
        }
    }

    /// The network of a client. Most are of IPv4, whose digits are written without the machinery of `fmt`.
    fn network(&mut self, client: IpAddr) {
        let IpAddr::V4(address) = client else { return self.display(&Network(client)) };
        for byte in &address.octets()[..3] {
            digits(self.out, u64::from(*byte), 1);
            self.out.push(b'.');
        }
        self.out.extend_from_slice(b"0/24");
    }

    fn display(&mut self, value: &dyn Display) {
        fmt::write(&mut Escaped(self), format_args!("{value}")).expect("a buffer takes every byte");
    }

    /// Escapes quotes, backslashes, control characters and everything outside ASCII. Most texts need no escape.
    fn escaped(&mut self, text: &str) {
        if text.bytes().all(|byte| PLAIN[usize::from(byte)]) {
            return self.out.extend_from_slice(text.as_bytes());
        }
        if self.is_json {
            let quoted = serde_json::to_string(text).expect("a text is valid JSON");
            self.out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
        } else {
            let quoted = format!("{text:?}");
            self.out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
        }
    }
}

/// Writes to the line, with escapes.
struct Escaped<'l, 'a>(&'l mut Line<'a>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.escaped(text);
        Ok(())
    }
}

/// Writes text that needs no escapes.
struct Raw<'a>(&'a mut Vec<u8>);

impl fmt::Write for Raw<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Appends a number with at least `width` digits.
fn digits(out: &mut Vec<u8>, mut number: u64, width: usize) {
    let mut text = [b'0'; 20];
    let mut start = text.len();
    while number > 0 || text.len() - start < width {
        start -= 1;
        text[start] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&text[start..]);
}

#[cfg(test)]
mod tests {
    use super::super::entry::example;
    use super::*;

    fn written(format: Format) -> String {
        let mut out = Vec::new();
        Formatter::of(format).write(&example(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_of_text_has_the_format_of_all_other_lines() {
        let expected = "2000-02-28T23:59:59.000012Z  INFO domicile::request: request id=\"0a\" client=\"81.2.69.0/24\" method=\"GET\" \
                        path=\"/caf\u{e9}/\\\"it's\\\"\\\\\\n\" protocol=\"HTTP/1.1\" status=200 request_bytes=18446744073709551615 \
                        response_bytes=0 user_agent=\"a\\\"b\\n\" seconds=1.000012\n";
        assert_eq!(written(Format::Text), expected);
    }

    #[test]
    fn a_line_of_json_is_one_object() {
        let line: serde_json::Value = serde_json::from_str(&written(Format::Json)).unwrap();
        let expected = serde_json::json!({
            "timestamp": "2000-02-28T23:59:59.000012Z", "level": "INFO", "message": "request", "id": "0a",
            "client": "81.2.69.0/24", "method": "GET", "path": "/caf\u{e9}/\"it's\"\\\n", "protocol": "HTTP/1.1", "status": 200,
            "request_bytes": u64::MAX, "response_bytes": 0, "user_agent": "a\"b\n", "seconds": 1.000_012, "target": "domicile::request",
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_replay_reads_the_same_from_text_and_json() {
        use super::super::reading::fields;
        let (text, json) = (fields(&written(Format::Text)).unwrap(), fields(written(Format::Json).trim_end()).unwrap());
        for name in ["id", "client", "method", "path", "status", "user_agent"] {
            assert!(text.contains_key(name) && text.get(name) == json.get(name), "{name}: {text:?} {json:?}");
        }
        assert_eq!(fields(&written(Format::Combined)), None);
    }

    #[test]
    fn the_combined_format_is_the_one_of_other_servers() {
        let expected = "81.2.69.0 - - [28/Feb/2000:23:59:59 +0000] \"GET /caf\u{e9}/\\\"it's\\\"\\\\\\n HTTP/1.1\" 200 0 \"-\" \"a\\\"b\\n\"\n";
        assert_eq!(written(Format::Combined), expected);
    }

    #[test]
    fn a_template_is_filled_in() {
        let template = Format::template("{time} {client} <{user}> {status} {seconds} {user_agent}").unwrap();
        assert_eq!(written(template), "2000-02-28T23:59:59.000012Z 81.2.69.0/24 <-> 200 1.000012 a\\\"b\\n\n");
        // A client cannot add a field by a space, except where the operator has written quotes.
        let mut forged = example();
        forged.user_agent = Some("x 200");
        let line = |template: &str| {
            let mut out = Vec::new();
            Formatter::of(Format::template(template).unwrap()).write(&forged, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(line("{user_agent} {status}"), "x\\x20200 200\n");
        assert_eq!(line("\"{user_agent}\" {status}"), "\"x 200\" 200\n");
        assert_eq!(Format::template("{client} {usr}"), Err("usr".into()));
        assert_eq!(Format::template("{client"), Err("{".into()));
        assert_eq!(Format::template("client}"), Err("}".into()));
    }
}
