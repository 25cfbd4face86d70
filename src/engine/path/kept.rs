//! Paths with characters that most routes refuse, because app servers read them in two ways: as a part of their segment, or as a
//! separator. A route may keep them, if no reading leads elsewhere.

use std::collections::BTreeSet;

use percent_encoding::percent_decode_str;

use crate::decision::policy::Policy;
use crate::decision::policy::route::{Head, KeptCharacters};

use super::{Slashes, is_ambiguous, push_octet, resolve};

/// Whether the route of a path keeps the characters that the path contains, and every other reading of the path leads to the same
/// route and the same user.
///
/// Another route of the same class is not enough: it may have another home, and another `auth`.
pub fn may_keep(head: &Head<'_>, used: KeptCharacters, policy: &Policy) -> bool {
    if used == KeptCharacters::NONE {
        return true;
    }
    let matched = policy.routes.find(head);
    let Some(route) = matched.id.map(|id| policy.routes.route(id)) else { return false };
    let leads_there = |path: &String| {
        let head = Head { path, ..*head };
        let other = policy.routes.find(&head);
        other.id == matched.id && other.user == matched.user && !is_ambiguous(&head, policy)
    };
    route.keeps.covers(used) && readings(head.path, used).is_some_and(|readings| readings.iter().all(leads_there))
}

type Step = fn(&str) -> Option<String>;

/// The other readings of a path. `None` if one of them has dot segments, backslashes, control characters, invalid UTF-8 or a third
/// layer of escapes: no registry and no store needs them, and servers differ in what they do with them.
fn readings(path: &str, used: KeptCharacters) -> Option<BTreeSet<String>> {
    // Each step that a server may take, in the order in which servers take them; parameters are removed early or late.
    let has_parameters = used.semicolon || used.encoded_percent;
    let steps: [(bool, Step); 5] = [
        (used.semicolon, |path| Some(without_parameters(path))),
        (used.encoded_percent, decode_again),
        (has_parameters, |path| Some(without_parameters(&path.replace("%3B", ";")))),
        (used.encoded_slash || used.encoded_percent, |path| Some(path.replace("%2F", "/"))),
        (has_parameters, |path| Some(without_parameters(path))),
    ];
    let mut readings = BTreeSet::from([path.to_owned()]);
    for (_, step) in steps.iter().filter(|(is_possible, _)| *is_possible) {
        let read: Option<Vec<_>> = readings.iter().map(|reading| step(reading)).collect();
        readings.extend(read?);
    }
    let has_dots = |reading: &String| reading.split('/').any(|segment| matches!(segment, "." | ".."));
    if readings.iter().any(has_dots) {
        return None;
    }
    let in_both_forms = |reading: String| [resolve(&reading, Slashes::Merge), resolve(&reading, Slashes::Keep)];
    readings.into_iter().flat_map(in_both_forms).collect()
}

/// The path without what follows a semicolon in each segment.
fn without_parameters(path: &str) -> String {
    let segments: Vec<_> = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    segments.join("/")
}

/// The path as a server reads it that decodes escaped percent signs, and the escapes that result, once more. Such a server leaves
/// malformed escapes as they are. Escaped slashes stay escaped.
fn decode_again(path: &str) -> Option<String> {
    let once = path.replace("%25", "%");
    let mut pieces = once.split('%');
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let escape = piece.split_at_checked(2).filter(|(digits, _)| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match escape.and_then(|(digits, rest)| Some((u8::from_str_radix(digits, 16).ok()?, rest))) {
            Some((b'\\' | 0..=0x1f | 0x7f | b'%', _)) => return None,
            Some((b'/', rest)) => out = out + "%2F" + rest,
            Some((octet, rest)) => {
                push_octet(&mut out, octet);
                out.push_str(rest);
            }
            None => out = out + "%25" + piece,
        }
    }
    percent_decode_str(&out).decode_utf8().ok()?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::super::canonical_path_keeping;
    use super::*;

    fn readings_of(path: &str) -> Option<BTreeSet<String>> {
        let (canonical, used) = canonical_path_keeping(path, Slashes::Merge, KeptCharacters::ALL).unwrap();
        assert_ne!(used, KeptCharacters::NONE, "{path}");
        readings(&canonical, used)
    }

    #[test]
    fn every_reading_of_kept_characters_is_found() {
        for (path, expected) in [
            ("/a%2Fb", &["/a%2Fb", "/a/b"][..]),
            ("/a%2F%2Fb", &["/a%2F%2Fb", "/a/b", "/a//b"]),
            ("/a;v=1/b", &["/a;v=1/b", "/a/b"]),
            ("/a;x%2Fb", &["/a;x%2Fb", "/a", "/a;x/b", "/a/b"]),
            ("/a%252Fb", &["/a%252Fb", "/a%2Fb", "/a/b"]),
            ("/a%253Bx/b", &["/a%253Bx/b", "/a%3Bx/b", "/a/b"]),
            ("/100%25/b", &["/100%25/b"]),
            ("/a%25zz/b%252Fc", &["/a%25zz/b%252Fc", "/a%25zz/b%2Fc", "/a%25zz/b/c"]),
            ("/%25C3%25A4%25", &["/%25C3%25A4%25", "/%C3%A4%25"]),
        ] {
            let expected = expected.iter().map(|path| (*path).to_owned()).collect();
            assert_eq!(readings_of(path), Some(expected), "{path}");
        }
    }

    #[test]
    fn a_path_with_a_dangerous_reading_has_none() {
        for path in [
            "/x%2F..%2Faccount",
            "/x%2F.%2Faccount",
            "/x/..;a/account",
            "/x/..;a%2Faccount",
            "/account%2F1;%2F..%2F..%2Fpub",
            "/x/%252e%252e/account",
            "/x/%25/%252e%252e/account",
            "/x/%25zz/%252e%252e/account",
            "/x/%25FF/a",
            "/x/..%25C0%25AFaccount",
            "/x/..%255Caccount",
            "/x%2500/a",
            "/x%25252Fa",
            "/x/..%253Ba/account",
        ] {
            assert_eq!(readings_of(path), None, "{path}");
        }
    }
}
