//! The house rules, kept by a test: who may import whom, what stays out of which room, how large things may grow.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms by floor, the highest first: a room imports only from floors below its own.
const FLOORS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["demo"],
    &["app"],
    &["config"],
    &["proxy", "admin"],
    &["engine"],
    &["acme", "probes", "upstreams"],
    &["peer"],
    &["audit", "directory", "geoip", "metrics", "session", "tokens"],
    &["http"],
    &["transport", "decision"],
    &["model"],
];

/// Rooms on floors below that a room must not import from all the same, and why.
const APART: &[(&str, &[&str], &str)] = &[
    ("admin", &["engine", "decision", "audit", "directory", "peer"], "the control plane asks the app by a command"),
    ("demo", &["config", "proxy", "engine", "decision", "directory", "audit"], "the demo plays the world around the product"),
    ("tokens", &["http", "transport", "decision"], "a token is verified without a connection or a policy"),
    ("session", &["http", "transport", "decision"], "a seal needs no connection and no policy"),
    ("audit", &["http", "transport", "decision"], "the ledger writes what it is given"),
    ("directory", &["http", "transport", "decision"], "a file needs no connection, and a record no policy"),
    ("geoip", &["http", "transport", "decision"], "a database needs no connection and no policy"),
    ("metrics", &["http", "transport", "decision"], "labels are text"),
    ("transport", &[], ""),
];

/// Texts that must not occur in some rooms, and why. A room given as `!x` is every room but x (and those after it).
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
    (
        &["!nobody"],
        &["lazy_static", "static mut", "thread_local!", "LazyLock", "OnceLock"],
        "no global state: two apps live in one process",
    ),
    (
        &["!peer", "http"],
        &["\"domicile-request\"", "\"domicile-code\"", "\"domicile-data-class\"", "\"domicile-policy\"", "\"domicile-probe\""],
        "the names of our own fields are constants in `peer::fields`",
    ),
];

/// Functions with a fixed set of callers, besides the file that defines them.
const CALLERS: &[(&str, &[&str], &str)] = &[
    ("bind(request", &["engine/permit.rs"], "a permit is made together with its ledger line"),
    (".beside(", &["proxy/request/attempts/peer.rs"], "a question beside a permitted request has no ledger line of its own"),
    (
        "Permitted::without_user_data(",
        &["probes/prober.rs", "upstreams/health.rs", "cli/reload.rs"],
        "only requests of our own need no stop",
    ),
];

const NO_HOMES: &[&str] = &["util", "utils", "common", "helpers", "misc", "manager", "types"];
const MOST_FILES_IN_A_ROOM: usize = 9;
const MOST_LINES_IN_A_FILE: usize = 500;
const MOST_LINES_IN_A_FUNCTION: usize = 70;

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

fn floor_of(room: &str) -> usize {
    FLOORS.iter().position(|rooms| rooms.contains(&room)).unwrap_or_else(|| panic!("{room} is on no floor"))
}

/// The rooms that a line names, as `crate::room`.
fn rooms_named(line: &str) -> impl Iterator<Item = String> {
    let named = line.match_indices("crate::").filter(|(at, _)| !line[..*at].ends_with('_'));
    named.map(|(at, _)| line[at + "crate::".len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
}

#[test]
fn a_room_imports_only_from_floors_below() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.room != "lib") {
        let own = floor_of(&source.room);
        let apart = APART.iter().find(|(room, ..)| *room == source.room);
        for (line, text) in lines(source) {
            for target in rooms_named(text).filter(|target| *target != source.room) {
                let place = format!("{}:{line}: {}", source.path.display(), source.room);
                if floor_of(&target) <= own {
                    wrong.push(format!("{place} may not import from {target}: it is not on a floor below"));
                }
                if let Some((_, _, reason)) = apart.filter(|(_, rooms, _)| rooms.contains(&target.as_str())) {
                    wrong.push(format!("{place} may not import from {target}: {reason}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The parts of a folder: its files and its subfolders, `mod.rs` aside, which is the folder's front door.
fn part_of<'p>(path: &'p Path, folder: &Path) -> Option<&'p str> {
    let first = path.strip_prefix(folder).ok()?.components().next()?.as_os_str().to_str()?;
    let part = first.trim_end_matches(".rs");
    (part != "mod" && part != "main" && part != "lib" && part != "tests" && part != "contract").then_some(part)
}

/// The parts of `folder` that a source in it names, as `super::part`, `super::super::part` or `crate::…::part`.
fn parts_named(source: &Source, folder: &Path, parts: &BTreeSet<String>) -> BTreeSet<String> {
    let inside = source.path.strip_prefix(folder).unwrap();
    let is_front_door = source.path.file_name().is_some_and(|name| name == "mod.rs");
    // A file two folders down names a part of this one by `super::super::part`; `mod.rs` stands for its folder.
    let depth = inside.components().count() - usize::from(is_front_door);
    let up = "super::".repeat(depth);
    let room: Vec<_> = folder.strip_prefix(root()).unwrap().components().map(|part| part.as_os_str().to_str().unwrap()).collect();
    let absolute = room.iter().fold("crate::".to_owned(), |path, part| path + part + "::");
    let mut named = BTreeSet::new();
    for (_, text) in lines(source) {
        for (at, prefix) in text.match_indices(&*up).chain(text.match_indices(&*absolute)) {
            let before = &text[..at];
            if before.ends_with("super::") || before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let rest = &text[at + prefix.len()..];
            // One name, or a list of names in braces.
            let list = rest.strip_prefix('{').map_or(rest, |list| list.split('}').next().unwrap());
            let names = if rest.starts_with('{') { list.split(',').collect::<Vec<_>>() } else { vec![rest] };
            for name in names {
                let name: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if parts.contains(&name) {
                    named.insert(name);
                }
            }
        }
    }
    named
}

#[test]
fn the_parts_of_a_room_form_no_circle() {
    let sources = sources();
    let folders: BTreeSet<PathBuf> = sources.iter().filter_map(|source| source.path.parent().map(Path::to_owned)).collect();
    let mut wrong = Vec::new();
    let mut arrows = 0;
    for folder in folders.iter().filter(|folder| **folder != root()) {
        let inside = || sources.iter().filter(|source| source.path.starts_with(folder));
        let parts: BTreeSet<String> = inside().filter_map(|source| part_of(&source.path, folder)).map(str::to_owned).collect();
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for source in inside() {
            let Some(part) = part_of(&source.path, folder) else { continue };
            let named = parts_named(source, folder, &parts).into_iter().filter(|other| other != part);
            graph.entry(part.to_owned()).or_default().extend(named);
        }
        arrows += graph.values().map(BTreeSet::len).sum::<usize>();
        for part in &parts {
            let mut reach = BTreeSet::new();
            let mut queue: Vec<&String> = graph.get(part).into_iter().flatten().collect();
            while let Some(next) = queue.pop() {
                if reach.insert(next) {
                    queue.extend(graph.get(next).into_iter().flatten());
                }
            }
            if reach.contains(part) {
                wrong.push(format!("{}: {part} reaches itself through {:?}", folder.display(), graph[part]));
            }
        }
    }
    assert!(arrows > 100, "the arrows were found: {arrows}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_needs_a_reason_has_few_callers() {
    for (call, callers, reason) in CALLERS {
        let mut found = BTreeSet::new();
        for source in &sources() {
            for (line, text) in lines(source).filter(|(_, text)| text.contains(call)) {
                let caller = callers.iter().find(|caller| source.path.ends_with(caller));
                let caller = caller.unwrap_or_else(|| panic!("{}:{line}: `{call}`: {reason}: {text}", source.path.display()));
                found.insert(*caller);
            }
        }
        assert_eq!(found.len(), callers.len(), "{call}: the table names callers that are none");
    }
}

#[test]
fn a_function_fits_on_a_page() {
    let mut wrong = Vec::new();
    for source in &sources() {
        let mut open: Option<(usize, usize, String)> = None;
        for (index, text) in source.code.lines().enumerate() {
            let indent = text.len() - text.trim_start().len();
            let declares = text.trim_start().split_once("fn ").is_some_and(|(before, _)| {
                before.split_whitespace().all(|word| {
                    word.starts_with("pub") || ["async", "const", "unsafe", "in"].contains(&word) || word.ends_with(')')
                })
            });
            if declares && open.is_none() {
                open = Some((index, indent, text.trim().to_owned()));
            }
            let Some((begin, depth, name)) = &open else { continue };
            let is_end = text.trim_end() == format!("{}}}", " ".repeat(*depth))
                || (index == *begin && text.trim_end().ends_with(['}', ';']));
            if is_end {
                if index - begin + 1 > MOST_LINES_IN_A_FUNCTION {
                    wrong.push(format!("{}:{}: {} lines: {name}", source.path.display(), begin + 1, index - begin + 1));
                }
                open = None;
            }
        }
    }
    assert!(wrong.is_empty(), "cut these:\n{}", wrong.join("\n"));
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
