//! A path has one canonical form, which has the same meaning to every parser.

use domicile::engine::path::{Slashes, canonical_path};

use super::Target;

pub const PATHS: Target = Target { name: "paths", words: WORDS, seeds, check, most: 256 };

const WORDS: &[&[u8]] = &[
    b"/", b"//", b"/./", b"/../", b"%2e", b"%2E%2e", b"%2f", b"%5c", b"\\", b"%00", b"%25", b"%252e", b";x", b"%c3%a4",
    b"%c0%af", b"%zz", b"%", b"?", b"#", b".", b"~", b"%7e", b"+", b"@", b":",
];

/// The path as a parser of the URL standard reads it, decoded.
fn decoded_by_url_parser(path: &str) -> Vec<u8> {
    let url = url::Url::parse(&format!("http://a{path}")).expect("a canonical path makes a URL");
    assert_eq!((url.query(), url.fragment(), url.host_str()), (None, None, Some("a")), "{path}");
    let mut out = Vec::new();
    let mut bytes = url.path().bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    out
}

fn seeds() -> Vec<Vec<u8>> {
    let seeds = ["/", "/users/alice/orders/1", "/a//b/./c/../d", "/%61/%C3%A4", "/a%20b/c%2Bd", "/a/..", "/~x/@y:z", "/a/%7e"];
    seeds.map(|seed| seed.as_bytes().to_vec()).into()
}

fn check(bytes: &[u8]) {
    let Ok(path) = std::str::from_utf8(bytes) else { return };
    let Some(canonical) = canonical_path(path, Slashes::Merge) else { return };
    assert_eq!(canonical_path(&canonical, Slashes::Merge).as_deref(), Some(&*canonical), "the canonical form is stable");
    assert!(canonical.starts_with('/') && !canonical.contains("//"), "{canonical}");
    assert!(canonical.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\;?#\"<>".contains(&byte)), "{canonical}");
    assert!(canonical.split('/').all(|segment| segment != "." && segment != ".."), "{canonical}");
    let meaning = decoded_by_url_parser(&canonical);
    assert!(std::str::from_utf8(&meaning).is_ok_and(|text| !text.chars().any(|c| c.is_ascii_control())), "{canonical}");
    // A path without repeated slashes has the same form under every setting; the form with kept slashes is stable.
    for slashes in [Slashes::Keep, Slashes::Refuse] {
        match canonical_path(path, slashes) {
            Some(other) if !path.contains("//") => assert_eq!(other, canonical),
            Some(kept) => assert_eq!(canonical_path(&kept, slashes).as_deref(), Some(&*kept)),
            None => assert!(path.contains("//"), "{path}"),
        }
    }
    // The original path means the same to an independent parser, unless it has repeated slashes, a query or a fragment.
    // That parser reads a letter and a colon as a drive that `..` does not leave, which is correct only for file URLs.
    let marks = [":", "|", "%3a", "%7c"];
    let has_drive = (path.contains('.') || path.to_ascii_lowercase().contains("%2e"))
        && marks.iter().any(|mark| path.to_ascii_lowercase().contains(mark));
    if !path.contains("//") && !path.contains(['?', '#']) && !has_drive {
        assert_eq!(decoded_by_url_parser(path), meaning, "{path} became {canonical}");
    }
}
