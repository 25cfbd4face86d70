//! Comma-separated lists in header fields, and the parameters of their members (RFC 9110 sections 5.6.1, 5.6.4 and 5.6.6).
//!
//! Promises: a separator inside a quoted string separates nothing, empty members are left out, and a value whose quotes do not
//! match is an error, because two readers could split it differently.

use std::borrow::Cow;

/// A quoted string has no end, or is only a part of a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// Returns the members of a list whose grammar has no quoted strings, such as `Connection` or `X-Forwarded-For`.
pub fn tokens(value: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// Returns the members of a list whose members may contain quoted strings, such as `Forwarded` or `Cache-Control`.
pub fn members(value: &[u8]) -> Result<Vec<&[u8]>, Malformed> {
    split(value, b',')
}

/// Returns the parameters of a member: the parts between semicolons.
pub fn parameters(member: &[u8]) -> Result<Vec<&[u8]>, Malformed> {
    split(member, b';')
}

/// Returns the text of a quoted string, with its escapes resolved, or a token as it is. `None` for any other use of quotes.
pub fn unquote(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(rest) = value.strip_prefix(b"\"") else {
        return (!value.contains(&b'"')).then_some(Cow::Borrowed(value));
    };
    let inside = rest.strip_suffix(b"\"")?;
    let mut text = Vec::with_capacity(inside.len());
    let mut bytes = inside.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return None,
            b'\\' => text.push(*bytes.next()?),
            byte => text.push(*byte),
        }
    }
    Some(Cow::Owned(text))
}

/// The position of the next byte relative to quoted strings.
#[derive(Clone, Copy)]
enum Quoting {
    /// At the start of a value, where a quoted string may begin.
    Start,
    /// In a token.
    Token,
    Quoted,
    /// In a quoted string, after a backslash.
    Escaped,
    /// After a quoted string, where the value ends.
    Closed,
}

impl Quoting {
    /// The position after `byte`. A quoted string is a whole value: if it could begin in the middle of a token, a client that
    /// leaves a quote open could turn the quoted strings of the next proxy inside out.
    const fn after(self, byte: u8) -> Result<Self, Malformed> {
        match (self, byte) {
            (Self::Quoted, b'\\') => Ok(Self::Escaped),
            (Self::Quoted, b'"') => Ok(Self::Closed),
            (Self::Quoted | Self::Escaped, _) | (Self::Start, b'"') => Ok(Self::Quoted),
            (same, b' ' | b'\t') => Ok(same),
            (_, b',' | b';') | (Self::Start | Self::Token, b'=') => Ok(Self::Start),
            (Self::Token, b'"') | (Self::Closed, _) => Err(Malformed),
            (Self::Start | Self::Token, _) => Ok(Self::Token),
        }
    }
}

fn split(value: &[u8], separator: u8) -> Result<Vec<&[u8]>, Malformed> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut quoting = Quoting::Start;
    for (at, byte) in value.iter().enumerate() {
        quoting = quoting.after(*byte)?;
        if *byte == separator && matches!(quoting, Quoting::Start) {
            pieces.push(value.get(start..at).unwrap_or_default());
            start = at + 1;
        }
    }
    pieces.push(value.get(start..).unwrap_or_default());
    match quoting {
        Quoting::Quoted | Quoting::Escaped => Err(Malformed),
        Quoting::Start | Quoting::Token | Quoting::Closed => {
            Ok(pieces.into_iter().map(<[u8]>::trim_ascii).filter(|piece| !piece.is_empty()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pieces: Result<Vec<&[u8]>, Malformed>) -> Option<Vec<&str>> {
        pieces.ok().map(|pieces| pieces.into_iter().map(|piece| std::str::from_utf8(piece).unwrap()).collect())
    }

    #[test]
    fn separators_inside_quoted_strings_separate_nothing() {
        for (value, expected) in [
            ("a", &["a"][..]),
            ("", &[]),
            (" , ,\t,", &[]),
            (",a,, b ,", &["a", "b"]),
            ("for=\"1.2.3.4, for=9.9.9.9\"", &["for=\"1.2.3.4, for=9.9.9.9\""]),
            ("for=\"a;proto=https\", for=b", &["for=\"a;proto=https\"", "for=b"]),
            (r#"a="x\", y", b"#, &[r#"a="x\", y""#, "b"]),
            (r#"a="x\\", b"#, &[r#"a="x\\""#, "b"]),
            (r#""a, b" , "c""#, &[r#""a, b""#, r#""c""#]),
            ("no-cache = \"a, b\" ,max-age=1", &["no-cache = \"a, b\"", "max-age=1"]),
            ("a=\"\",b", &["a=\"\"", "b"]),
        ] {
            assert_eq!(texts(members(value.as_bytes())).as_deref(), Some(expected), "{value}");
        }
        let pairs = parameters(b"for=\"a;proto=https\" ;; Proto=http;host=\"b;\"");
        assert_eq!(texts(pairs).as_deref(), Some(&["for=\"a;proto=https\"", "Proto=http", "host=\"b;\""][..]));
    }

    #[test]
    fn quotes_that_do_not_match_are_malformed() {
        for value in [
            "\"",
            "a=\"",
            "a=\"b, c",
            "a=\"b\\\"",
            "a=\"b\\",
            "a\"b\"",
            "a=\"b\"c",
            "a=\"b\" c",
            "a=\"b\"\"c\"",
            "a=b \"c\"",
            // A client leaves a quote open, and the next proxy appends an element with quotes.
            "for=\"x, for=\"[2001:db8::1]\"",
            "for=\"x, for=1.2.3.4;host=\",for=6.6.6.6;a=\\\"b\"",
        ] {
            assert_eq!(members(value.as_bytes()), Err(Malformed), "{value}");
            assert_eq!(parameters(value.as_bytes()), Err(Malformed), "{value}");
        }
    }

    #[test]
    fn a_quoted_string_is_read_without_quotes_and_escapes() {
        for (value, expected) in [
            ("a", Some("a")),
            ("", Some("")),
            ("\"\"", Some("")),
            ("\"[::1]:4711\"", Some("[::1]:4711")),
            (r#""a\"b\\c\d""#, Some(r#"a"b\cd"#)),
            ("\"", None),
            ("\"a", None),
            ("a\"", None),
            ("\"a\"b\"", None),
            (r#""a\""#, None),
        ] {
            assert_eq!(unquote(value.as_bytes()).as_deref(), expected.map(str::as_bytes), "{value}");
        }
    }

    #[test]
    fn both_ends_agree() {
        let mut random = fastrand::Rng::with_seed(11);
        let alphabet = b"ab=\",;\\ ";
        for _ in 0..20_000 {
            let value: Vec<u8> = (0..random.usize(0..16)).map(|_| alphabet[random.usize(0..alphabet.len())]).collect();
            let plain: Vec<_> = tokens(&value).collect();
            let mut reversed: Vec<_> = tokens(&value).rev().collect();
            reversed.reverse();
            assert_eq!(plain, reversed);
            let Ok(all) = members(&value) else { continue };
            let Some(last) = all.last() else { continue };
            assert_eq!(members(last), Ok(vec![*last]), "a member is a list of one");
            assert_eq!(members(&all.join(&b',')), Ok(all.clone()), "joined members are the same list");
            let appended = [&value[..], b", for=\"x, y\""].concat();
            assert_eq!(members(&appended).unwrap().last(), Some(&&b"for=\"x, y\""[..]), "an appended member is read as written");
            if !value.contains(&b'"') {
                assert_eq!(all, plain);
            }
        }
    }
}
