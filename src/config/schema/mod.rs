//! The JSON schema and the reference of the configuration, made from what the reader asks for while it reads the sample files. So
//! an option is declared once: where it is read. Its description is the comment in `config/every-option.yaml`.

mod defaults;
mod descriptions;
mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::model::day::Day;
use crate::model::region::Registry;

use super::options::Kind;
use super::problem::Problems;

use defaults::Absent;
pub use reference::reference;

/// The file with every option, and the files with the other forms of values.
const SAMPLE: &str = include_str!("../../../config/every-option.yaml");
const FORMS: [&str; 5] = [
    include_str!("forms.yaml"),
    include_str!("short-forms.yaml"),
    include_str!("../../../config/minimal.yaml"),
    include_str!("../../../config/three-regions.yaml"),
    include_str!("../../../examples/behind-dns.yaml"),
];

/// The part of a path that stands for the items of a list, and the one that stands for a name of the operator's choice.
const ITEM: &str = "[]";
const NAME: &str = "NAME";

/// Options that occur in two places, and are read and described alike: the second, then the first.
const SAME: &[(&str, &str)] = &[
    ("assert.[].always", "assert.[].never"),
    ("regions.NAME.admin", "admin"),
    ("regions.NAME.balance", "regions.NAME.services.NAME.balance"),
    ("regions.NAME.listen", "listen"),
    ("regions.NAME.services.NAME.ejection", "upstreams.ejection"),
    ("regions.NAME.services.NAME.health", "regions.NAME.health"),
    ("regions.NAME.services.NAME.queue", "upstreams.queue"),
    ("regions.NAME.services.NAME.queue_timeout", "upstreams.queue_timeout"),
    ("regions.NAME.services.NAME.requests", "upstreams.requests"),
    ("regions.NAME.services.NAME.slow_start", "upstreams.slow_start"),
    ("regions.NAME.services.NAME.tls", "regions.NAME.upstreams.[].tls"),
    ("regions.NAME.services.NAME.upstreams", "regions.NAME.upstreams"),
    ("routes.[].failover", "failover"),
    ("routes.[].response_headers", "routes.[].request_headers"),
];

/// An option, with what is below it.
#[derive(Clone, Default)]
struct Node {
    kinds: BTreeSet<Kind>,
    children: BTreeMap<String, Node>,
    /// Where the same option is described.
    same_as: Option<&'static str>,
}

impl Node {
    /// The node at a path below this one, which is created if it is absent.
    fn at(&mut self, path: &str) -> &mut Node {
        path.split('.').fold(self, |node, part| node.children.entry(part.to_owned()).or_default())
    }

    /// Collects the words that options take, by paths without the items of lists.
    fn words(&self, path: &str, all: &mut BTreeMap<String, Vec<String>>) {
        for kind in &self.kinds {
            if let Kind::Words(words) = kind {
                all.entry(path.to_owned()).or_default().extend(words.iter().cloned());
            }
        }
        for (part, child) in &self.children {
            child.words(&below(path, part), all);
        }
    }

    fn merge(&mut self, other: Node) {
        self.kinds.extend(other.kinds);
        for (part, child) in other.children {
            self.children.entry(part).or_default().merge(child);
        }
    }
}

/// Every option that the reader asks for.
fn options() -> Node {
    let mut root = Node::default();
    for text in FORMS.into_iter().chain([SAMPLE]) {
        let problems = Problems::recording(Path::new("sample"));
        let today = Day::parse("2026-01-01").expect("a date");
        super::read(text, None, &mut Registry::default(), today, &problems, true);
        for (path, kinds) in problems.into_options().into_iter().filter(|(path, _)| !path.is_empty()) {
            root.at(&path).kinds.extend(kinds);
        }
    }
    for (second, first) in SAME {
        let found = std::mem::take(root.at(second));
        root.at(first).merge(found);
        let whole = root.at(first).clone();
        *root.at(second) = Node { same_as: Some(first), ..whole };
    }
    root.kinds.insert(Kind::Section);
    root
}

/// The path of a part below another one, without the items of lists.
fn below(path: &str, part: &str) -> String {
    match (path, part) {
        (path, ITEM) => path.to_owned(),
        ("", part) => part.to_owned(),
        (path, part) => format!("{path}.{part}"),
    }
}

/// The descriptions and defaults of the options, from the sample files.
struct Sample {
    /// By path without the items of lists.
    descriptions: BTreeMap<String, String>,
    absent: BTreeMap<String, Absent>,
}

impl Sample {
    fn read(options: &Node) -> Self {
        let mut descriptions = BTreeMap::new();
        for text in [FORMS[0], FORMS[1], SAMPLE] {
            descriptions.extend(descriptions::of(text));
        }
        let mut words = BTreeMap::new();
        options.words("", &mut words);
        Self { descriptions, absent: defaults::of(SAMPLE, &words) }
    }

    fn description(&self, path: &str) -> Option<&str> {
        self.descriptions.get(&path.replace(".[]", "")).map(|text| &**text)
    }

    fn absent(&self, path: &str) -> Option<&Absent> {
        self.absent.get(&path.replace(".[]", ""))
    }
}

/// The JSON schema (draft 2020-12), for editors.
pub fn schema() -> String {
    let options = options();
    let mut schema = of_node(&options, "", &Sample::read(&options));
    schema.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    schema.insert("title".into(), "Domicile".into());
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.insert("include".into(), json!({ "type": ["array", "string"], "items": { "type": "string" } }));
    }
    format!("{:#}\n", Value::Object(schema))
}

fn of_node(node: &Node, path: &str, sample: &Sample) -> Map<String, Value> {
    let path = node.same_as.unwrap_or(path);
    let mut forms = forms(node, path, sample);
    let mut schema = match forms.len() {
        0 => Map::new(),
        1 => forms.remove(0),
        _ => Map::from_iter([("anyOf".to_owned(), forms.into_iter().map(Value::Object).collect())]),
    };
    if path.ends_with(ITEM) {
        return schema;
    }
    if let Some(description) = sample.description(path) {
        schema.insert("description".into(), description.into());
    }
    if let Some(Absent::Default(text)) = sample.absent(path) {
        let number = text.parse::<u64>().map(Value::from).ok();
        let flag = text.parse::<bool>().map(Value::from).ok();
        schema.insert("default".into(), number.or(flag).unwrap_or_else(|| text.as_str().into()));
    }
    schema
}

/// The forms that a value may have.
fn forms(node: &Node, path: &str, sample: &Sample) -> Vec<Map<String, Value>> {
    let below = |part: &str| if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") };
    // The sections of the top level may be spread over several files.
    let is_required = |option: &str| !path.is_empty() && sample.absent(option) == Some(&Absent::Mistake);
    let child = |part: &str| node.children.get(part).map_or_else(Map::new, |child| of_node(child, &below(part), sample));
    let is_specific = node.kinds.iter().any(|kind| !matches!(kind, Kind::Text) && is_scalar(kind));
    let mut forms = Vec::new();
    for kind in &node.kinds {
        let form = match kind {
            Kind::Section => {
                let named = node.children.iter().filter(|(key, _)| *key != ITEM && *key != NAME);
                let properties: Map<_, _> = named.map(|(key, _)| (key.clone(), Value::Object(child(key)))).collect();
                let required: Vec<_> = properties.keys().filter(|key| is_required(&below(key))).cloned().collect();
                let mut section = json!({ "type": "object", "properties": properties, "additionalProperties": false });
                if !required.is_empty() {
                    section["required"] = required.into();
                }
                section
            }
            Kind::Names => json!({ "type": "object", "additionalProperties": child(NAME) }),
            Kind::List => json!({ "type": "array", "items": child(ITEM) }),
            Kind::OneOrMany => json!({ "anyOf": [child(ITEM), { "type": "array", "items": child(ITEM) }] }),
            // The sample files have the short forms, whose kinds are recorded as well.
            Kind::Either => continue,
            Kind::Text if is_specific => continue,
            Kind::Text => json!({ "type": ["string", "number", "boolean"] }),
            Kind::Words(words) => of_words(words),
            Kind::Number(least, most) => {
                json!({ "anyOf": [{ "type": "integer", "minimum": least, "maximum": most }, { "type": "string", "pattern": "\\$\\{" }] })
            }
            Kind::Percent => of_pattern("^[0-9]+ *%?$", &["0 %", "100 %"], Some((0, 100))),
            Kind::Duration => of_pattern("^[0-9][0-9a-z ]*[a-z]$", &["500ms", "5s", "2m", "1h", "90d"], None),
            Kind::Size => of_pattern("^([0-9.]+ *[A-Za-z]*|unlimited)$", &["8192", "32KiB", "10MB"], Some((0, u64::MAX))),
            Kind::Address => of_pattern(":[0-9]+$", &["127.0.0.1:8080", "[::]:8443"], None),
            Kind::Url => of_pattern("^[a-z0-9+]+:/", &[], None),
        };
        if let Value::Object(form) = form {
            forms.push(form);
        }
    }
    // A value whose form the reader finds by itself, such as a section or a name.
    if !node.children.is_empty() && node.kinds.is_empty() {
        return Vec::new();
    }
    forms
}

/// Text of a pattern, which an environment variable may complete, or a whole number in a range.
fn of_pattern(pattern: &str, examples: &[&str], numbers: Option<(u64, u64)>) -> Value {
    let text = json!({ "type": "string", "pattern": format!("{pattern}|\\$\\{{"), "examples": examples });
    match numbers {
        Some((least, most)) => json!({ "anyOf": [text, { "type": "integer", "minimum": least, "maximum": most }] }),
        None => text,
    }
}

fn is_scalar(kind: &Kind) -> bool {
    !matches!(kind, Kind::Section | Kind::Names | Kind::List | Kind::OneOrMany | Kind::Either)
}

fn of_words(words: &[String]) -> Value {
    if words.iter().all(|word| word == "true" || word == "false") {
        return json!({ "anyOf": [{ "type": "boolean" }, { "type": "string", "pattern": "\\$\\{" }] });
    }
    // YAML 1.1 of some editors reads `off` as a boolean.
    let booleans = words.iter().any(|word| word == "off" || word == "on");
    let words = json!({ "enum": words });
    let reference = json!({ "type": "string", "pattern": "\\$\\{" });
    if booleans { json!({ "anyOf": [words, reference, { "type": "boolean" }] }) } else { json!({ "anyOf": [words, reference] }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a comment of the sample shows the option, as an alternative to another one.
    fn is_in_a_comment(key: &str) -> bool {
        let comments = SAMPLE.lines().filter_map(|line| line.split_once('#')).map(|(_, comment)| comment);
        comments.into_iter().any(|comment| comment.contains(&format!("{key}: ")) || comment.contains(&format!("{key} (")))
    }

    #[test]
    fn the_sample_file_contains_every_option_that_the_reader_asks_for() {
        fn absent(node: &Node, path: &str, present: &BTreeSet<String>, out: &mut Vec<String>) {
            for (key, child) in &node.children {
                let path = match (key.as_str(), path) {
                    (ITEM, path) => path.to_owned(),
                    (key, "") => key.to_owned(),
                    (key, path) => format!("{path}.{key}"),
                };
                let is_present = present.contains(&path) || is_in_a_comment(key);
                if child.same_as.is_some() {
                    continue;
                }
                if key != ITEM && key != NAME && !is_present {
                    out.push(path.clone());
                }
                absent(child, &path, present, out);
            }
        }
        let described = descriptions::keys(SAMPLE);
        let mut missing = Vec::new();
        absent(&options(), "", &described, &mut missing);
        assert!(missing.is_empty(), "config/every-option.yaml lacks {missing:#?}");
    }

    #[test]
    fn the_schema_names_options_words_and_descriptions() {
        let schema: Value = serde_json::from_str(&schema()).unwrap();
        let route = &schema["properties"]["routes"]["items"]["properties"];
        assert!(route["priority"].to_string().contains("\"high\""), "{route}");
        assert_eq!(schema["properties"]["regions"]["type"], "object");
        let drain = &schema["properties"]["limits"]["properties"]["drain"];
        assert!(drain["description"].as_str().unwrap().contains("at shutdown"), "{drain}");
        assert_eq!(schema["additionalProperties"], false);
    }
}
