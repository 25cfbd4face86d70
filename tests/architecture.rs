//! Checks of the source code: the modules that a module may import, texts that a module must not contain, and limits on the
//! size of files and functions. A module is here a top-level module of the crate, in a file or a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules by layer, the highest first. A module imports only from layers below its own.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["demo"],
    &["app"],
    &["config"],
    &["proxy", "admin"],
    &["engine"],
    &["acme", "probes", "services"],
    &["peer", "prove", "review"],
    &["access_log", "audit", "directory", "geoip", "metrics", "passwords", "session", "tokens", "traces"],
    &["http"],
    &["transport", "decision", "page"],
    &["model"],
];

/// Modules on lower layers that a module must not import, and the reason.
const FORBIDDEN_IMPORTS: &[(&str, &[&str], &str)] = &[
    ("admin", &["engine", "decision", "audit", "directory", "peer"], "the control plane sends commands to the app"),
    ("demo", &["config", "proxy", "engine", "decision", "directory", "audit"], "the demo only simulates the proxy's environment"),
    ("tokens", &["http", "transport", "decision"], "a token is verified without a connection or a policy"),
    ("passwords", &["http", "transport", "decision"], "a password is checked without a connection or a policy"),
    ("session", &["http", "transport", "decision"], "a seal needs no connection and no policy"),
    ("access_log", &["http", "transport", "decision"], "the access log only formats the fields that it receives"),
    ("audit", &["http", "transport", "decision"], "the ledger only writes the lines that it receives"),
    ("directory", &["http", "transport", "decision"], "a user table needs no connection and no policy"),
    ("geoip", &["http", "transport", "decision"], "a database needs no connection and no policy"),
    ("metrics", &["http", "transport", "decision"], "labels are plain text"),
    ("traces", &["http", "transport", "decision"], "spans are plain text; the app sends them"),
    ("transport", &[], ""),
];

/// Texts that must not occur in some modules, and the reason. `!x` means every module except x and the modules listed after it.
const FORBIDDEN_TEXTS: &[(&[&str], &[&str], &str)] = &[
    (
        &["model", "decision"],
        &["tokio", "hyper", "serde", "tracing", "jiff", "async ", ".await", "::now(", "std::fs", "std::io", "std::thread"],
        "judgement is pure: all input from outside arrives as facts",
    ),
    (
        &["!transport", "demo"],
        &["TcpStream::connect", "TcpListener::bind", "Socket::new", "UdpSocket", "UnixListener"],
        "only `transport` opens connections and ports",
    ),
    (&["!config", "directory"], &["serde_yaml"], "only `config` reads YAML, and `directory` for its own file format"),
    (
        &["!nobody"],
        &["lazy_static", "static mut", "thread_local!", "LazyLock", "OnceLock"],
        "no global state, because two apps may run in one process",
    ),
    (
        &["proxy"],
        &["= &worker.snapshot()", "= &self.worker.snapshot()"],
        "a reference keeps a whole snapshot, with its tables, alive as long as the connection or the request; copy what is needed",
    ),
    (
        &["!http", "demo", "config"],
        &["\"forwarded\"", "\"x-forwarded-", "\"x-request-id", "\"traceparent", "\"grpc-", "\"proxy-status", "\"keep-alive"],
        "the names of header fields are constants in `http::names`",
    ),
    (
        &["!peer", "http"],
        &[
            "\"domicile-request\"",
            "\"domicile-code\"",
            "\"domicile-data-class\"",
            "\"domicile-policy\"",
            "\"domicile-probe\"",
            "\"domicile-declined\"",
        ],
        "the names of our own fields are constants in `peer::fields`",
    ),
];

/// Functions with a fixed set of callers, besides the file that defines them.
const CALLERS: &[(&str, &[&str], &str)] = &[
    (".bind_request(", &["engine/permit.rs"], "a permit is made together with its ledger line"),
    (".give_back()", &["proxy/request/attempts/mod.rs"], "a request without a permit must get a new one before it is sent"),
    (".request_mut()", &["proxy/request/attempts/mod.rs"], "a permitted request only gets the header fields of its stop"),
    (".redeem(", &["http/pool/upstream.rs", "http/pool/peers.rs"], "only the pools send requests"),
    (
        ".with_question(",
        &["proxy/request/attempts/actions.rs", "proxy/request/attempts/mirror.rs", "proxy/request/attempts/peer.rs"],
        "a question beside a permitted request, or a copy of it, has no ledger line of its own",
    ),
    (
        "Permitted::without_user_data(",
        &["probes/prober.rs", "services/health.rs", "cli/control/client.rs", "app/collector.rs"],
        "only requests without user data need no stop",
    ),
];

const FORBIDDEN_FILE_NAMES: &[&str] = &["util", "utils", "common", "helpers", "misc", "manager", "types"];
const MAX_FILES_IN_A_FOLDER: usize = 9;
const MAX_LINES_IN_A_FILE: usize = 500;
const MAX_LINES_IN_A_FUNCTION: usize = 70;

struct Source {
    path: PathBuf,
    module: String,
    /// The text of the file without its tests.
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
                let module = first.trim_end_matches(".rs").to_owned();
                let text = fs::read_to_string(&path).unwrap();
                let is_test = path.file_name().is_some_and(|name| name == "tests.rs" || name == "contract.rs");
                let code =
                    if is_test { String::new() } else { text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned() };
                found.push(Source { path, module, code });
            }
        }
    }
    assert!(found.len() > 60, "not all source files were found");
    found
}

fn lines(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    let code = source.code.lines().enumerate().map(|(index, line)| (index + 1, line));
    code.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn layer_of(module: &str) -> usize {
    LAYERS.iter().position(|modules| modules.contains(&module)).unwrap_or_else(|| panic!("`{module}` is on no layer"))
}

/// The modules that a line names as `crate::module`.
fn modules_named(line: &str) -> impl Iterator<Item = String> {
    let named = line.match_indices("crate::").filter(|(at, _)| !line[..*at].ends_with('_'));
    named.map(|(at, _)| line[at + "crate::".len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
}

#[test]
fn a_module_imports_only_from_layers_below() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.module != "lib") {
        let own = layer_of(&source.module);
        let forbidden = FORBIDDEN_IMPORTS.iter().find(|(module, ..)| *module == source.module);
        for (line, text) in lines(source) {
            for target in modules_named(text).filter(|target| *target != source.module) {
                let location = format!("{}:{line}: {}", source.path.display(), source.module);
                if layer_of(&target) <= own {
                    wrong.push(format!("{location} may not import from {target}: it is not on a lower layer"));
                }
                if let Some((_, _, reason)) = forbidden.filter(|(_, modules, _)| modules.contains(&target.as_str())) {
                    wrong.push(format!("{location} may not import from {target}: {reason}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The file or subfolder of `folder` that contains `path`; `None` for `mod.rs`, which is the folder's own module, and for tests.
fn part_of<'p>(path: &'p Path, folder: &Path) -> Option<&'p str> {
    let first = path.strip_prefix(folder).ok()?.components().next()?.as_os_str().to_str()?;
    let part = first.trim_end_matches(".rs");
    (part != "mod" && part != "main" && part != "lib" && part != "tests" && part != "contract").then_some(part)
}

/// The parts of `folder` that a source in it names, as `super::part`, `super::super::part` or `crate::…::part`.
fn parts_named(source: &Source, folder: &Path, parts: &BTreeSet<String>) -> BTreeSet<String> {
    let inside = source.path.strip_prefix(folder).unwrap();
    let is_mod_file = source.path.file_name().is_some_and(|name| name == "mod.rs");
    // A file in a subfolder names a part of `folder` as `super::super::part`. `mod.rs` counts as its folder.
    let depth = inside.components().count() - usize::from(is_mod_file);
    let up = "super::".repeat(depth);
    let path: Vec<_> = folder.strip_prefix(root()).unwrap().components().map(|part| part.as_os_str().to_str().unwrap()).collect();
    let absolute = path.iter().fold("crate::".to_owned(), |path, part| path + part + "::");
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
fn the_imports_within_a_module_form_no_cycle() {
    let sources = sources();
    let folders: BTreeSet<PathBuf> = sources.iter().filter_map(|source| source.path.parent().map(Path::to_owned)).collect();
    let mut wrong = Vec::new();
    let mut imports = 0;
    for folder in folders.iter().filter(|folder| **folder != root()) {
        let inside = || sources.iter().filter(|source| source.path.starts_with(folder));
        let parts: BTreeSet<String> = inside().filter_map(|source| part_of(&source.path, folder)).map(str::to_owned).collect();
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for source in inside() {
            let Some(part) = part_of(&source.path, folder) else { continue };
            let named = parts_named(source, folder, &parts).into_iter().filter(|other| other != part);
            graph.entry(part.to_owned()).or_default().extend(named);
        }
        imports += graph.values().map(BTreeSet::len).sum::<usize>();
        for part in &parts {
            let mut reach = BTreeSet::new();
            let mut queue: Vec<&String> = graph.get(part).into_iter().flatten().collect();
            while let Some(next) = queue.pop() {
                if reach.insert(next) {
                    queue.extend(graph.get(next).into_iter().flatten());
                }
            }
            if reach.contains(part) {
                wrong.push(format!("{}: {part} imports itself through {:?}", folder.display(), graph[part]));
            }
        }
    }
    assert!(imports > 100, "not all imports were found: {imports}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn restricted_functions_have_a_fixed_set_of_callers() {
    for (call, callers, reason) in CALLERS {
        let mut found = BTreeSet::new();
        for source in &sources() {
            for (line, text) in lines(source).filter(|(_, text)| text.contains(call)) {
                let caller = callers.iter().find(|caller| source.path.ends_with(caller));
                let caller = caller.unwrap_or_else(|| panic!("{}:{line}: `{call}`: {reason}: {text}", source.path.display()));
                found.insert(*caller);
            }
        }
        assert_eq!(found.len(), callers.len(), "{call}: the table lists a file that does not call it");
    }
}

#[test]
fn a_function_fits_on_a_page() {
    let mut wrong = Vec::new();
    for source in &sources() {
        let mut open: Option<(usize, usize, String)> = None;
        // The limit also holds for tests.
        let whole = fs::read_to_string(&source.path).unwrap();
        for (index, text) in whole.lines().enumerate() {
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
                if index - begin + 1 > MAX_LINES_IN_A_FUNCTION {
                    wrong.push(format!("{}:{}: {} lines: {name}", source.path.display(), begin + 1, index - begin + 1));
                }
                open = None;
            }
        }
    }
    assert!(wrong.is_empty(), "these functions are too long, split them:\n{}", wrong.join("\n"));
}

#[test]
fn forbidden_texts_do_not_occur() {
    let mut wrong = Vec::new();
    for source in &sources() {
        for (modules, texts, reason) in FORBIDDEN_TEXTS {
            let applies = match modules[0].strip_prefix('!') {
                Some(exempt) => source.module != exempt && !modules[1..].contains(&source.module.as_str()),
                None => modules.contains(&source.module.as_str()),
            };
            for (line, text) in lines(source).filter(|_| applies) {
                for found in texts.iter().filter(|forbidden| text.contains(**forbidden)) {
                    wrong.push(format!("{}:{line}: `{found}`: {reason}", source.path.display()));
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
fn every_file_has_a_specific_name_a_module_comment_and_a_limited_size() {
    let mut folders: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for source in &sources() {
        let (path, text) = (source.path.display(), fs::read_to_string(&source.path).unwrap());
        let stem = source.path.file_stem().unwrap().to_str().unwrap();
        assert!(!FORBIDDEN_FILE_NAMES.contains(&stem), "{path}: `{stem}` is too general, name the file after its content");
        let is_test = stem == "tests" || stem == "contract";
        assert!(is_test || text.starts_with("//!"), "{path}: the module comment (`//!`) is missing");
        assert!(source.code.lines().count() <= MAX_LINES_IN_A_FILE, "{path}: the file is too long, split it into a folder");
        for (line, text) in lines(source) {
            assert!(!text.contains(".unwrap()"), "{path}:{line}: use `expect` with the reason instead of `unwrap`");
        }
        if !is_test {
            *folders.entry(source.path.parent().unwrap().into()).or_default() += 1;
        }
    }
    for (folder, files) in folders.iter().filter(|(folder, _)| **folder != root()) {
        assert!(*files <= MAX_FILES_IN_A_FOLDER, "{}: {files} files are too many for one folder", folder.display());
    }
}

/// `docs/life-of-a-request.md` names the files that handle a request, each once.
#[test]
fn the_life_of_a_request_names_every_file_of_its_path_once() {
    const FOLDERS: &[&str] = &["proxy/request", "proxy/intake", "proxy/headers", "engine", "peer"];
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/life-of-a-request.md")).unwrap();
    let steps = page.split("## Connection").nth(1).unwrap();
    let named: Vec<&str> = steps.split('`').skip(1).step_by(2).filter(|text| text.ends_with(".rs")).collect();
    for file in &named {
        assert!(root().join(file).exists(), "`{file}` does not exist");
        assert_eq!(named.iter().filter(|other| other == &file).count(), 1, "`{file}` is named twice");
    }
    for source in &sources() {
        let path = source.path.strip_prefix(root()).unwrap().to_str().unwrap();
        let is_on_path = FOLDERS.iter().any(|folder| path.starts_with(folder)) && !path.ends_with("tests.rs");
        // `engine/mod.rs` only lists the files of the module, and `explain` serves no request.
        if is_on_path && !["engine/mod.rs", "engine/explain.rs"].contains(&path) {
            assert!(named.contains(&path), "`{path}` is missing in docs/life-of-a-request.md");
        }
    }
    assert!(named.len() > 40, "only {} files are named", named.len());
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

#[test]
fn unchecked_arithmetic_is_denied_where_data_is_judged() {
    const LINTS: &[&str] =
        &["arithmetic_side_effects", "cast_possible_truncation", "cast_sign_loss", "indexing_slicing", "wildcard_enum_match_arm"];
    for module in ["decision", "engine", "peer", "audit"] {
        let text = read(&format!("src/{module}/mod.rs"));
        let denied = text.split("#![cfg_attr(").nth(1).unwrap_or_else(|| panic!("{module} denies no lints"));
        let denied = denied.split(")]").next().unwrap();
        for lint in LINTS {
            assert!(denied.contains("deny(") && denied.contains(lint), "{module} does not deny `clippy::{lint}`");
        }
    }
}

#[test]
fn the_independent_checker_shares_no_code_with_the_program() {
    assert!(!read("tests/decisions/checker.rs").contains("domicile::"));
}

#[test]
fn every_entry_of_the_fault_catalogue_is_a_test() {
    let files: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios")).unwrap().collect();
    let scenarios: String = files.into_iter().map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    let catalogue = read("tests/scenarios/faults.rs");
    let catalogue = catalogue.split("fn shown_by(").nth(1).unwrap().split("\n}\n").next().unwrap();
    let names = catalogue.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| word.matches('_').count() >= 3);
    let mut count = 0;
    for name in names {
        count += 1;
        let is_test = ["", "pub "].iter().any(|visibility| scenarios.contains(&format!("#[test]\n{visibility}fn {name}(")));
        assert!(is_test, "`{name}` is in the fault catalogue, and is not a test");
    }
    assert!(count >= 24, "only {count} entries were found");
}

/// The lowest versions of dependencies without known vulnerabilities (RustSec), if the lock file contains them.
const FLOORS: &[(&str, &str, &str)] = &[
    ("h2", "0.4.18", "RUSTSEC-2026-0258, rapid resets"),
    ("hyper", "1.11.0", "request smuggling"),
    ("rustls", "0.23.18", "RUSTSEC-2024-0336 and -0399"),
    ("rustls-webpki", "0.103.13", "RUSTSEC-2026-0049, -0098, -0099 and -0104"),
    ("aws-lc-sys", "0.39.0", "RUSTSEC-2026-0044 to -0048"),
    ("tokio", "1.44.2", "unsoundness of broadcast channels"),
    ("bytes", "1.11.1", "RUSTSEC-2026-0007"),
    ("idna", "1.0.0", "RUSTSEC-2024-0421"),
    ("time", "0.3.47", "RUSTSEC-2026-0009"),
    ("maxminddb", "0.27.0", "RUSTSEC-2025-0132"),
    ("arc-swap", "1.9.5", "a use after free and a type confusion"),
    // In the lock file, and not compiled.
    ("ring", "0.17.12", "RUSTSEC-2025-0009"),
];

/// Crates that must not be dependencies, and the reason.
const BANNED: &[(&str, &str)] = &[
    ("openssl", "one crypto stack: aws-lc-rs"),
    ("openssl-sys", "one crypto stack: aws-lc-rs"),
    ("native-tls", "one TLS stack: rustls"),
    ("rustls-pemfile", "RUSTSEC-2025-0134: not maintained; rustls-pki-types reads PEM"),
];

#[test]
fn no_dependency_is_older_than_its_last_security_fix() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    let numbers = |version: &str| version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect::<Vec<u64>>();
    let (mut name, mut found) = ("", BTreeSet::new());
    for line in lock.lines() {
        if let Some(text) = line.strip_prefix("name = \"") {
            name = text.trim_end_matches('"');
            let reason = BANNED.iter().find(|(banned, _)| *banned == name);
            assert!(reason.is_none(), "{name} is a dependency: {}", reason.unwrap().1);
        }
        let Some(version) = line.strip_prefix("version = \"").map(|text| text.trim_end_matches('"')) else { continue };
        for (crate_name, floor, reason) in FLOORS.iter().filter(|(crate_name, ..)| *crate_name == name) {
            found.insert(crate_name);
            assert!(numbers(version) >= numbers(floor), "{name} {version} is older than {floor}: {reason}");
        }
    }
    assert!(found.len() >= 8, "the lock file was not read: {found:?}");
}

/// The licences that `deny.toml` allows.
fn allowed_licences() -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml")).unwrap();
    let line = text.lines().find(|line| line.starts_with("allow = [")).unwrap();
    line.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_dependency_has_an_allowed_licence_and_comes_from_the_registry() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let arguments = ["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform=x86_64-unknown-linux-gnu"];
    let output = std::process::Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let used: BTreeSet<&str> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().filter_map(|node| node["id"].as_str()).collect();
    let allowed = allowed_licences();
    let mut count = 0;
    for package in metadata["packages"].as_array().unwrap() {
        if !used.contains(package["id"].as_str().unwrap()) || package["name"] == "domicile" {
            continue;
        }
        count += 1;
        let (name, licence) = (&package["name"], package["license"].as_str().unwrap_or_default().replace('/', " OR "));
        // Its licence is a file: MIT.
        if name == "libyaml-safer" && package["license_file"].is_string() {
            continue;
        }
        // An alternative is allowed if all its parts are.
        let is_allowed = licence
            .replace(['(', ')'], "")
            .split(" OR ")
            .any(|alternative| alternative.split(" AND ").all(|part| allowed.iter().any(|allowed| allowed == part.trim())));
        assert!(is_allowed, "{name} has the licence `{licence}`, which deny.toml does not allow");
        let source = package["source"].as_str().unwrap_or_default();
        assert!(source.starts_with("registry+"), "{name} comes from `{source}`");
    }
    assert!(count > 150, "only {count} packages were found");
}
