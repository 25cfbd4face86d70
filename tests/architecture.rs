//! The house rules, kept by a test: who may import whom, what stays out of which room, how large things may grow.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which rooms each room may import from: only floors below.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("decision", &["model"]),
    ("transport", &["model"]),
    ("http", &["transport", "model"]),
    ("audit", &["model"]),
    ("directory", &["model"]),
    ("envelope", &["model"]),
    ("geoip", &["model"]),
    ("metrics", &["model"]),
    ("acme", &["http", "transport"]),
    ("session", &["model"]),
    ("tokens", &["model"]),
    ("probes", &["http", "transport", "model"]),
    ("upstreams", &["http", "transport", "model"]),
    (
        "proxy",
        &[
            "audit",
            "directory",
            "envelope",
            "geoip",
            "metrics",
            "probes",
            "session",
            "tokens",
            "upstreams",
            "http",
            "transport",
            "decision",
            "model",
        ],
    ),
    ("admin", &["http", "transport", "model"]),
    (
        "config",
        &[
            "proxy",
            "admin",
            "audit",
            "directory",
            "geoip",
            "probes",
            "session",
            "tokens",
            "upstreams",
            "http",
            "transport",
            "decision",
            "model",
        ],
    ),
    (
        "app",
        &[
            "acme",
            "config",
            "proxy",
            "admin",
            "audit",
            "directory",
            "geoip",
            "metrics",
            "probes",
            "session",
            "tokens",
            "upstreams",
            "http",
            "transport",
            "decision",
            "model",
        ],
    ),
    ("demo", &["app", "http", "transport"]),
    ("cli", &["demo", "app", "config", "http", "transport", "model"]),
    ("main", &["cli"]),
];

/// What must not stand in some rooms, and why. A room given as `!x` is every room but x (and those after it).
const FORBIDDEN: &[(&[&str], &[&str], &str)] = &[
    (
        &["model", "decision"],
        &["tokio", "hyper", "serde", "tracing", "jiff", "async ", ".await", "::now(", "std::fs", "std::io", "std::thread"],
        "judgement is pure: the world arrives as facts",
    ),
    (
        &["!transport", "demo"],
        &["TcpStream::connect", "TcpListener::bind", "Socket::new", "UdpSocket", "UnixListener"],
        "transport is the only room that opens connections and ports",
    ),
    (&["!config", "directory"], &["serde_yaml"], "YAML stays inside config, and in the directory's own file format"),
    (&["!nobody"], &["lazy_static", "OnceLock<", "static mut"], "no global state: two apps live in one process"),
];

const NO_HOMES: &[&str] = &["util", "utils", "common", "helpers", "misc", "manager", "types"];
const MOST_FILES_IN_A_ROOM: usize = 9;
const MOST_LINES_IN_A_FILE: usize = 500;

struct Source {
    path: PathBuf,
    room: String,
    /// Without its tests.
    code: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let inside = path.strip_prefix(root()).unwrap();
                let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
                let room = first.trim_end_matches(".rs").to_owned();
                let text = fs::read_to_string(&path).unwrap();
                let is_test = path.file_name().is_some_and(|name| name == "tests.rs" || name == "contract.rs");
                let code =
                    if is_test { String::new() } else { text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned() };
                found.push(Source { path, room, code });
            }
        }
    }
    assert!(found.len() > 60, "the sources were found");
    found
}

fn lines(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    let code = source.code.lines().enumerate().map(|(index, line)| (index + 1, line));
    code.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn a_room_imports_only_from_floors_below() {
    let table: BTreeMap<_, _> = MAY_IMPORT.iter().copied().collect();
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.room != "lib") {
        let allowed =
            table.get(source.room.as_str()).unwrap_or_else(|| panic!("{} is in no room of the table", source.path.display()));
        for (line, text) in lines(source) {
            for (at, _) in text.match_indices("crate::") {
                let rest = &text[at + "crate::".len()..];
                let target: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let is_import = !text[..at].ends_with('_') && target != source.room;
                if is_import && !allowed.contains(&target.as_str()) {
                    wrong.push(format!(
                        "{}:{line}: {} may not import from {target}: it is not below",
                        source.path.display(),
                        source.room
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_has_no_way_back_up() {
    let table: BTreeMap<_, _> = MAY_IMPORT.iter().copied().collect();
    for (room, allowed) in &table {
        let mut reach: BTreeSet<&str> = allowed.iter().copied().collect();
        let mut queue: Vec<&str> = allowed.to_vec();
        while let Some(next) = queue.pop() {
            queue.extend(table[next].iter().filter(|further| reach.insert(further)));
        }
        assert!(!reach.contains(room), "{room} reaches itself");
    }
    assert!(!table["proxy"].contains(&"admin") && !table["admin"].contains(&"proxy"), "the planes do not know each other");
}

#[test]
fn what_is_kept_out_of_a_room_stays_out() {
    let mut wrong = Vec::new();
    for source in &sources() {
        for (rooms, words, reason) in FORBIDDEN {
            let applies = match rooms[0].strip_prefix('!') {
                Some(free) => source.room != free && !rooms[1..].contains(&source.room.as_str()),
                None => rooms.contains(&source.room.as_str()),
            };
            for (line, text) in lines(source).filter(|_| applies) {
                for word in words.iter().filter(|word| text.contains(**word)) {
                    wrong.push(format!("{}:{line}: `{word}`: {reason}", source.path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_clearance_has_one_maker() {
    for source in sources().iter().filter(|source| !source.path.ends_with("decision/residency.rs")) {
        for (line, text) in lines(source) {
            assert!(!text.contains("Clearance {") && !text.contains("Clearance::of"), "{}:{line}: {text}", source.path.display());
        }
    }
}

#[test]
fn every_file_has_a_home_a_word_and_a_size() {
    let mut rooms: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for source in &sources() {
        let (path, text) = (source.path.display(), fs::read_to_string(&source.path).unwrap());
        let stem = source.path.file_stem().unwrap().to_str().unwrap();
        assert!(!NO_HOMES.contains(&stem), "{path}: what is called `{stem}` has no home yet");
        let is_test = stem == "tests" || stem == "contract";
        assert!(is_test || text.starts_with("//!"), "{path}: says nothing of what it promises");
        assert!(source.code.lines().count() <= MOST_LINES_IN_A_FILE, "{path}: wants to be a folder");
        for (line, text) in lines(source) {
            assert!(!text.contains(".unwrap()"), "{path}:{line}: say why it holds, with `expect`");
        }
        if !is_test {
            *rooms.entry(source.path.parent().unwrap().into()).or_default() += 1;
        }
    }
    for (room, files) in rooms.iter().filter(|(room, _)| **room != root()) {
        assert!(*files <= MOST_FILES_IN_A_ROOM, "{}: {files} files are too many for one room", room.display());
    }
}
