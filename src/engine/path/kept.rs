//! Paths with characters that most routes refuse, because app servers read them in two ways: as a part of their segment, or as a
//! separator. A route may keep them, if no reading leads elsewhere.

use crate::decision::policy::Policy;
use crate::decision::policy::route::{Head, KeptCharacters, RouteMatch};

use super::{Slashes, canonical_path_keeping, decode, resolve};

/// Whether the route of a path keeps the characters that the path contains, and every other reading of the path leads to the same
/// data: to the same route and user, or to a route of the same class where neither route names a user.
pub fn may_keep(head: &Head<'_>, used: KeptCharacters, policy: &Policy) -> bool {
    if used == KeptCharacters::NONE {
        return true;
    }
    let matched = policy.routes.find(head);
    let Some(route) = matched.id.map(|id| policy.routes.route(id)) else { return false };
    let is_same = |other: RouteMatch<'_>| {
        let is_of_same_class = other.id.map(|id| policy.routes.route(id)).is_some_and(|other| {
            other.class == route.class && other.pattern.user_segment().is_none() && route.pattern.user_segment().is_none()
        });
        (other.id == matched.id && other.user == matched.user) || is_of_same_class
    };
    let leads_there =
        |reading: &Option<String>| reading.as_ref().is_some_and(|path| is_same(policy.routes.find(&Head { path, ..*head })));
    route.keeps.covers(used) && readings(head.path, used).iter().all(leads_there)
}

/// The other readings of a path; `None` is one that leads above the root.
fn readings(path: &str, used: KeptCharacters) -> Vec<Option<String>> {
    let choices = |is_used: bool| if is_used { &[false, true][..] } else { &[false] };
    let mut readings = Vec::new();
    for percent in choices(used.encoded_percent) {
        for slash in choices(used.encoded_slash || *percent) {
            for semicolon in choices(used.semicolon || *percent) {
                let changes = (*percent, *slash, *semicolon);
                if changes != (false, false, false)
                    && let Some(text) = read_as(path, changes)
                {
                    let resolved = resolve(&text, Slashes::Merge);
                    // The canonical form of what is left, such as an escape that was escaped twice.
                    readings.push(resolved.and_then(|path| {
                        canonical_path_keeping(&path, Slashes::Merge, KeptCharacters::ALL).map(|(path, _)| path.into_owned())
                    }));
                }
            }
        }
    }
    readings
}

/// The path as a server reads it that decodes escaped percent signs once more, takes escaped slashes for separators, or removes
/// parameters after semicolons. `None` if it is malformed for such a server.
fn read_as(path: &str, (percent, slash, semicolon): (bool, bool, bool)) -> Option<String> {
    let mut text = path.to_owned();
    if percent {
        text = decode(&text.replace("%25", "%"), KeptCharacters::ALL)?.0;
    }
    if slash {
        text = text.replace("%2F", "/");
    }
    if semicolon {
        let text_with_semicolons = if percent { text.replace("%3B", ";") } else { text };
        text = text_with_semicolons
            .split('/')
            .map(|segment| segment.split(';').next().unwrap_or_default())
            .collect::<Vec<_>>()
            .join("/");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reading_of_kept_characters_is_found() {
        for (path, expected) in [
            ("/a%2Fb", &["/a/b"][..]),
            ("/x%2F..%2Faccount", &["/account"]),
            ("/x/..%2F..%2Faccount", &[""]),
            ("/a;v=1/b", &["/a/b"]),
            ("/x/..;a/account", &["/account"]),
            ("/a%252Fb", &["/a/b", "/a%2Fb"]),
            ("/x/%252e%252e/account", &["/account"]),
            ("/a%253Bx/b", &["/a/b"]),
            ("/a%25zz", &[]),
        ] {
            let (canonical, used) = canonical_path_keeping(path, Slashes::Merge, KeptCharacters::ALL).unwrap();
            assert_ne!(used, KeptCharacters::NONE, "{path}");
            let found: Vec<_> = readings(&canonical, used).into_iter().map(Option::unwrap_or_default).collect();
            for reading in expected {
                assert!(found.iter().any(|path| path == reading), "{path}: {reading} is not in {found:?}");
            }
            assert_eq!(found.is_empty(), expected.is_empty(), "{path}: {found:?}");
        }
    }
}
