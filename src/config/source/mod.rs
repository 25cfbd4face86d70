//! The text of a configuration: its files, its references, and the tree that they form together.

pub mod document;
mod reference;

use std::path::{Path, PathBuf};

use document::{Key, Node, Value};
use reference::Values;

pub use reference::hide;

use super::problem::{Position, Problems};

/// The key that names further files.
const INCLUDE: &str = "include";

/// The lists to which included files add items.
const COLLECTIONS: &[&str] = &["routes", "listen", "assert"];

/// The most files that one configuration may include.
const MAX_FILES: usize = 1000;

/// The configuration as written, and what it was read from.
pub struct Source {
    pub root: Node,
    /// Every file that was read.
    pub files: Vec<PathBuf>,
    /// The folders in which new files would be included.
    pub folders: Vec<PathBuf>,
}

/// Reads a configuration with all files that it includes. `variable` looks up environment variables.
pub fn read(text: &str, problems: &Problems, variable: &dyn Fn(&str) -> Option<String>) -> Option<Source> {
    let mut reader = Reader {
        problems,
        values: Values { variable },
        files: vec![problems.main().into()],
        folders: Vec::new(),
        is_incomplete: false,
    };
    let mut root = reader.parse(text, 0)?;
    if let Value::Map(entries) = &mut root.value
        && let Some(at) = entries.iter().position(|(key, _)| key.text == INCLUDE)
    {
        let (key, list) = entries.remove(at);
        for file in reader.included(&key, &list)? {
            let included = reader.include(&file, &list)?;
            merge(&mut root, included, "", problems);
        }
    }
    // A value without its reference would be reported a second time.
    (!reader.is_incomplete).then_some(Source { root, files: reader.files, folders: reader.folders })
}

struct Reader<'a> {
    problems: &'a Problems,
    values: Values<'a>,
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    /// A reference has no value.
    is_incomplete: bool,
}

impl Reader<'_> {
    /// Parses the text of a file and expands its references.
    fn parse(&mut self, text: &str, file: usize) -> Option<Node> {
        let mut root = document::parse(&reference::hide(text), file, self.problems)?;
        self.expand(&mut root);
        Some(root)
    }

    fn expand(&mut self, node: &mut Node) {
        match &mut node.value {
            Value::Null => {}
            Value::Text(text) => {
                let is_plain = node.is_plain;
                let expanded = self.expand_text(text, node.at);
                if let Some(expanded) = expanded {
                    // A plain value that is empty is nothing, as it is without references.
                    node.value = if is_plain && expanded.is_empty() { Value::Null } else { Value::Text(expanded) };
                }
            }
            Value::List(items) => items.iter_mut().for_each(|item| self.expand(item)),
            Value::Map(entries) => {
                for (key, value) in &mut *entries {
                    if let Some(text) = self.expand_text(&key.text, key.at) {
                        (key.text, key.is_literal) = (text, false);
                    }
                    self.expand(value);
                }
                self.check_twice(entries);
            }
        }
    }

    /// Reports keys that are the same only after their references were replaced.
    fn check_twice(&self, entries: &[(Key, Node)]) {
        for (index, (key, _)) in entries.iter().enumerate().filter(|(_, (key, _))| !key.is_literal) {
            if let Some((_, (other, _))) =
                entries.iter().enumerate().find(|(other, (known, _))| *other != index && known.text == key.text)
            {
                self.problems.report(
                    key.at,
                    "",
                    format!("`{}` is set twice, also in line {}; keep one", key.text, other.at.line),
                );
            }
        }
    }

    /// The text with its references replaced, if it has any.
    fn expand_text(&mut self, text: &str, at: Position) -> Option<String> {
        if text.is_ascii() {
            return None;
        }
        match reference::expand(text, &self.values) {
            Ok(expanded) => {
                expanded.secrets.into_iter().for_each(|(secret, reference)| self.problems.hide(secret, reference));
                self.files.extend(expanded.files);
                Some(expanded.text)
            }
            Err(message) => {
                self.problems.report(at, "", message);
                self.is_incomplete = true;
                None
            }
        }
    }

    /// The files that the patterns of `include` name, in the order of the patterns, and of their names.
    fn included(&mut self, key: &Key, list: &Node) -> Option<Vec<PathBuf>> {
        let patterns: Vec<&Node> = match &list.value {
            Value::List(items) => items.iter().collect(),
            Value::Text(_) => vec![list],
            Value::Null | Value::Map(_) => {
                self.problems.report(key.at, INCLUDE, "list files or patterns, such as `[conf.d/*.yaml]`");
                return None;
            }
        };
        let folder = self.problems.main().parent().map(Path::to_path_buf).unwrap_or_default();
        let mut files = Vec::new();
        for pattern in patterns {
            let Value::Text(text) = &pattern.value else {
                self.problems.report(pattern.at, INCLUDE, format!("expected a file or a pattern, found {}", pattern.kind()));
                return None;
            };
            // Relative to the file that includes them, so that the files can be moved together.
            let path = folder.join(text);
            if !text.contains(['*', '?', '[']) {
                files.push(path);
                continue;
            }
            match matching(&path) {
                Ok(found) => files.extend(found),
                Err(reason) => {
                    self.problems.report(pattern.at, INCLUDE, format!("`{text}`: {reason}"));
                    return None;
                }
            }
            self.folders.extend(path.parent().map(Path::to_path_buf));
        }
        if files.len() > MAX_FILES {
            self.problems.report(list.at, INCLUDE, format!("more than {MAX_FILES} files; use fewer"));
            return None;
        }
        let mut known = std::collections::HashSet::new();
        files.retain(|file| known.insert(file.clone()));
        Some(files)
    }

    /// Reads a file that `list` names.
    fn include(&mut self, file: &Path, list: &Node) -> Option<Node> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                self.problems.report(list.at, INCLUDE, format!("cannot read `{}`: {error}", file.display()));
                return None;
            }
        };
        self.files.push(file.into());
        let number = self.problems.add_file(file);
        // A file without any option is a placeholder.
        let is_comment = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#') || line.trim_end() == "---";
        if text.lines().all(is_comment) {
            return Some(Node { at: Position::default(), is_plain: true, value: Value::Null });
        }
        let root = self.parse(&text, number)?;
        if let Some((key, _)) = root.entries().iter().find(|(key, _)| key.text == INCLUDE) {
            self.problems.report(key.at, "", "an included file cannot include others; list them in the main file");
        }
        Some(root)
    }
}

/// The files of one folder whose names match a pattern, in the order of their names. The error says why they cannot be listed: a rule
/// must not disappear because a folder cannot be read.
fn matching(pattern: &Path) -> Result<Vec<PathBuf>, String> {
    let wrong = || {
        "this is not a valid pattern; write one such as `conf.d/*.yaml`, with wildcards only in the name of the file".to_owned()
    };
    let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|name| name.to_str())) else {
        return Err(wrong());
    };
    if folder.to_string_lossy().contains(['*', '?']) {
        return Err(wrong());
    }
    let name = glob::Pattern::new(name).map_err(|_| wrong())?;
    let folder = if folder == Path::new("") { Path::new(".") } else { folder };
    let unreadable = |error: std::io::Error| format!("the folder `{}` cannot be read: {error}", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_hidden
            && path.file_name().and_then(|name| name.to_str()).is_some_and(|found| name.matches(found))
            && !path.is_dir()
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Adds an included file to the tree: lists get more items, sections more keys. A value that both have is a mistake.
fn merge(into: &mut Node, from: Node, path: &str, problems: &Problems) {
    match (&mut into.value, from.value) {
        (_, Value::Null) => {}
        (value @ Value::Null, added) => *value = added,
        // Other lists are values as a whole: two of them, such as jurisdictions in `stays`, would widen a rule.
        (Value::List(items), Value::List(added)) if COLLECTIONS.contains(&path) => items.extend(added),
        (Value::Map(entries), Value::Map(added)) => {
            for (key, node) in added {
                let path = if path.is_empty() { key.text.clone() } else { format!("{path}.{}", key.text) };
                match entries.iter_mut().find(|(known, _)| known.text == key.text) {
                    Some((_, known)) => merge(known, node, &path, problems),
                    None => entries.push((key, node)),
                }
            }
        }
        _ => {
            let first = problems.place(into.at);
            problems.report(from.at, path, format!("this value is also set in {first}; keep one"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `main.yaml` of a folder with these files; the result is the text of the tree, or the mistakes.
    fn read_all(files: &[(&str, &str)]) -> Result<(String, Source), Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let problems = Problems::of(&folder.path().join("main.yaml"));
        let source = read(files[0].1, &problems, &|name| (name == "NAME").then(|| "value".to_owned()));
        match source {
            Some(source) if problems.is_empty() => Ok((format!("{}", Shown(&source.root)), source)),
            _ => {
                let place = folder.path().display().to_string();
                Err(problems.into_list().iter().map(|problem| problem.to_string().replace(&format!("{place}/"), "")).collect())
            }
        }
    }

    struct Shown<'a>(&'a Node);

    impl std::fmt::Display for Shown<'_> {
        fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            match &self.0.value {
                Value::Null => out.write_str("~"),
                Value::Text(text) => out.write_str(text),
                Value::List(items) => {
                    let items: Vec<_> = items.iter().map(|item| Shown(item).to_string()).collect();
                    write!(out, "[{}]", items.join(", "))
                }
                Value::Map(entries) => {
                    let entries: Vec<_> = entries.iter().map(|(key, node)| format!("{}: {}", key.text, Shown(node))).collect();
                    write!(out, "{{{}}}", entries.join(", "))
                }
            }
        }
    }

    #[test]
    fn included_files_add_to_lists_and_sections_in_the_order_of_their_names() {
        let (tree, source) = read_all(&[
            ("main.yaml", "include: [conf.d/*.yaml, last.yaml]\nroutes: [a]\ndata: { public: x }\n"),
            ("conf.d/20.yaml", "routes: [c]\n"),
            ("conf.d/10.yaml", "routes: [b]\ndata: { personal: y }\nlog:\n"),
            ("conf.d/ignored.txt", "routes: [z]\n"),
            ("last.yaml", "routes: [d]\n"),
        ])
        .unwrap();
        assert_eq!(tree, "{routes: [a, b, c, d], data: {public: x, personal: y}, log: ~}");
        assert_eq!(source.files.len(), 4);
        assert!(source.folders[0].ends_with("conf.d"));
    }

    #[test]
    fn mistakes_in_included_files_name_the_right_file() {
        let conflict = read_all(&[("main.yaml", "include: b.yaml\na: { x: 1 }\n"), ("b.yaml", "\na:\n  x: 2\n")]).err().unwrap();
        assert_eq!(conflict, ["b.yaml:3:6: a.x: this value is also set in main.yaml:2:9; keep one"]);
        let broken = read_all(&[("main.yaml", "include: b.yaml\n"), ("b.yaml", "a: [\n")]).err().unwrap();
        assert!(broken[0].starts_with("b.yaml:"), "{broken:?}");
        let nested = read_all(&[("main.yaml", "include: b.yaml\n"), ("b.yaml", "include: c.yaml\n")]).err().unwrap();
        assert_eq!(nested, ["b.yaml:1:1: an included file cannot include others; list them in the main file"]);
        let absent = read_all(&[("main.yaml", "include: [b.yaml]\n")]).err().unwrap();
        assert!(absent[0].starts_with("main.yaml:1:10: include: cannot read `b.yaml`: "), "{absent:?}");
    }

    #[test]
    fn an_included_file_cannot_widen_a_rule_or_hide_one() {
        let widened = read_all(&[
            ("main.yaml", "include: b.yaml\ndata: { own: { stays: [eu] } }\n"),
            ("b.yaml", "data: { own: { stays: [us] } }\n"),
        ]);
        assert_eq!(widened.err().unwrap(), ["b.yaml:1:23: data.own.stays: this value is also set in main.yaml:2:23; keep one"]);
        let twice = read_all(&[("main.yaml", "value: 1\n${NAME}: 2\n")]).err().unwrap();
        assert_eq!(twice, ["main.yaml:2:1: `value` is set twice, also in line 1; keep one"]);
        let absent = read_all(&[("main.yaml", "include: [\"rules/*.yaml\"]\n")]).err().unwrap();
        assert!(absent[0].contains("the folder `rules` cannot be read"), "{absent:?}");
        let nested = read_all(&[("main.yaml", "include: [\"*/a.yaml\"]\n")]).err().unwrap();
        assert!(nested[0].contains("wildcards only in the name of the file"), "{nested:?}");
        let (tree, _) = read_all(&[("main.yaml", "include: b.yaml\na: 1\n"), ("b.yaml", "# nothing yet\n")]).unwrap();
        assert_eq!(tree, "{a: 1}");
    }

    #[test]
    fn references_work_in_flow_lists_keys_and_quotes() {
        let text = "a: [${NAME}, \"x-${NAME}\", ${NONE:-1, 2}]\n${NAME}: { b: ${NONE:-} }\n# ${NONE}\n";
        let (tree, _) = read_all(&[("main.yaml", text)]).unwrap();
        assert_eq!(tree, "{a: [value, x-value, 1, 2], value: {b: ~}}");
        let missing = read_all(&[("main.yaml", "a:\n  - b\n  - c: ${NONE}\n")]).err().unwrap();
        assert_eq!(missing, ["main.yaml:3:8: the environment variable `NONE` is not set; set it, or write `${NONE:-default}`"]);
    }
}
