//! The other paths that servers may read a canonical path as.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::decision::policy::Policy;
use crate::decision::policy::class::ClassSet;
use crate::decision::policy::route::{Head, RouteId};

use super::push_octet;

/// Whether a server may read a canonical path as another path, and the data of one of the two paths may not be anywhere, or
/// the other path has another route, which may have an `auth` of its own.
pub fn is_ambiguous(head: &Head<'_>, policy: &Policy) -> bool {
    let mut folded = folded_paths(head.path).peekable();
    if folded.peek().is_none() {
        return false;
    }
    let matched = policy.routes.find(head).id;
    let is_guarded = |id: RouteId| !policy.may_be_anywhere(ClassSet::only(policy.routes.route(id).class));
    matched.is_some_and(is_guarded) || folded.any(|path| policy.routes.find(&Head { path: &path, ..*head }).id != matched)
}

/// The other paths that servers may read a canonical path as. Every combination of foldings counts, because a server may apply
/// only some of them.
fn folded_paths(path: &str) -> impl Iterator<Item = String> {
    let is_foldable = path.contains('%') || path.split('/').any(|segment| segment.ends_with('.'));
    let combinations = if is_foldable { 1..8_u8 } else { 1..1 };
    combinations
        .filter_map(move |bits| Folding { width: bits & 1 != 0, parameters: bits & 2 != 0, ends: bits & 4 != 0 }.apply(path))
}

/// The escaped blanks of a canonical path: a space, a no-break space and an ideographic space.
const BLANKS: [&str; 3] = ["%20", "%C2%A0", "%E3%80%80"];

/// The changes that a server may make to a path before it looks for a resource.
#[derive(Clone, Copy)]
struct Folding {
    /// Full-width characters (U+FF01 to U+FF5E) become ASCII.
    width: bool,
    /// An escaped semicolon begins path parameters, which are removed.
    parameters: bool,
    /// Dots and blanks at the end of a segment are removed.
    ends: bool,
}

impl Folding {
    /// The folded path; `None` if nothing in the path is folded.
    fn apply(self, path: &str) -> Option<String> {
        let mut segments: Vec<String> = Vec::new();
        let mut is_folded = false;
        for segment in path.split('/').skip(1) {
            let narrow = if self.width { narrowed(segment) } else { Cow::Borrowed(segment) };
            for piece in narrow.split('/') {
                let piece = self.shortened(piece);
                if piece == segment {
                    segments.push(piece.to_owned());
                    continue;
                }
                is_folded = true;
                match piece {
                    "" | "." => {}
                    // Some servers stop at the root instead of refusing the path.
                    ".." => drop(segments.pop()),
                    piece => segments.push(piece.to_owned()),
                }
            }
        }
        is_folded.then(|| format!("/{}", segments.join("/")))
    }

    fn shortened(self, segment: &str) -> &str {
        let segment = match segment.split_once("%3B") {
            Some((before, _)) if self.parameters => before,
            Some(_) | None => segment,
        };
        if !self.ends {
            return segment;
        }
        let without_blanks = trim_end(segment, &BLANKS);
        match without_blanks {
            "." | ".." => without_blanks,
            _ => trim_end(segment, &[".", BLANKS[0], BLANKS[1], BLANKS[2]]),
        }
    }
}

/// A segment with ASCII characters in place of full-width ones. A full-width slash or backslash becomes a slash.
fn narrowed(segment: &str) -> Cow<'_, str> {
    let is_wide = |c: char| matches!(c, '\u{ff01}'..='\u{ff5e}');
    let text = percent_decode_str(segment).decode_utf8_lossy();
    if !text.contains(is_wide) {
        return Cow::Borrowed(segment);
    }
    let mut out = String::with_capacity(segment.len());
    for c in text.chars() {
        let c = if is_wide(c) { char::from_u32(u32::from(c).saturating_sub(0xfee0)).unwrap_or(c) } else { c };
        match c {
            '/' | '\\' => out.push('/'),
            c => c.encode_utf8(&mut [0; 4]).bytes().for_each(|octet| push_octet(&mut out, octet)),
        }
    }
    Cow::Owned(out)
}

fn trim_end<'s>(text: &'s str, ends: &[&str]) -> &'s str {
    let mut text = text;
    while let Some(shorter) = ends.iter().find_map(|end| text.strip_suffix(*end)) {
        text = shorter;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Slashes, canonical_path};
    use super::*;

    fn folded(path: &str) -> Vec<String> {
        let canonical = canonical_path(path, Slashes::Merge).unwrap();
        let mut all: Vec<_> = folded_paths(&canonical).collect();
        all.sort();
        all.dedup();
        all
    }

    #[test]
    fn a_path_with_one_reading_is_not_folded() {
        for path in ["/", "/account/1", "/account/1/", "/a.b/.c/..d", "/zo%C3%AB", "/a%20b", "/a/b%7C", "/.well-known/x"] {
            assert_eq!(folded(path), Vec::<String>::new(), "{path}");
        }
        assert_eq!(folded_paths("/a//b%C3%AB/").count(), 0, "empty segments are not a folding");
        assert_eq!(folded_paths("*").count(), 0);
    }

    #[test]
    fn every_combination_of_foldings_is_a_reading() {
        for (path, readings) in [
            ("/account%3Bx=1/1", &["/account/1"][..]),
            ("/account./1", &["/account/1"]),
            ("/account%20/1", &["/account/1"]),
            ("/account%20.%C2%A0/1", &["/account/1"]),
            ("/%EF%BD%81ccount/1", &["/account/1"]),
            ("/a%EF%BC%8Faccount", &["/a/account"]),
            ("/x/%EF%BC%8E%EF%BC%8E/account", &["/account"]),
            ("/x/..%3B/account", &["/account"]),
            ("/..%3B/account", &["/account"]),
            ("/x/..%20/account", &["/account"]),
            ("/account%EF%BC%9Bx", &["/account", "/account%3Bx"]),
            ("/account%3B/%EF%BC%8E%EF%BC%8E/x", &["/account/%EF%BC%8E%EF%BC%8E/x", "/x"]),
        ] {
            let found = folded(path);
            for reading in readings {
                assert!(found.iter().any(|path| path == reading), "{path}: {reading} is not in {found:?}");
            }
        }
    }
}
