//! Configurations are accepted or refused within a time limit, every mistake has a location, and an independent parser finds the
//! same meaning.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use domicile::config::{self, Config, Problem};
use domicile::model::day::Day;
use domicile::model::region::Registry;
use libyaml_safer::{Event, EventData, Parser, ScalarStyle};

use super::{Target, catch_panic};

pub const CONFIGURATION: Target = Target { name: "configuration", words: WORDS, seeds, check, most: 8192 };

const WORDS: &[&[u8]] = &[
    b"\n",
    b"  ",
    b"- ",
    b": ",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"'",
    b"#",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!binary ",
    b"null",
    b"~",
    b"regions:",
    b"routes:",
    b"eu-west",
    b"{user}",
    b"**",
    b"999999999999",
    b"-1",
    b"10.0.0.0/8",
    b"\t",
    b"\xf0\x9f\x98\x80",
    b"? ",
    b"|\n",
    b">\n",
    b"---\n",
    b"%YAML 1.2\n",
];

fn seeds() -> Vec<Vec<u8>> {
    let seeds = [
        include_str!("../../../config/every-option.yaml"),
        include_str!("../../../config/three-regions.yaml"),
        include_str!("../../../config/minimal.yaml"),
    ];
    seeds.map(|seed| seed.as_bytes().to_vec()).into()
}

fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let started = Instant::now();
    let read = load(text);
    if let Err(problems) = &read {
        assert!(!problems.is_empty());
        for problem in problems {
            assert!(problem.to_string().contains("domicile.yaml"), "{problem}");
            assert!(problem.to_string().len() < 5000, "{problem}");
        }
    }
    assert!(started.elapsed() < Duration::from_secs(20), "loading {} bytes took too long", bytes.len());
    let is_invalid_yaml =
        read.as_ref().is_err_and(|problems| problems.iter().any(|problem| problem.message.starts_with("this is not valid YAML")));
    // The parsers may disagree on whether a text is YAML. If both accept it, it must have the same meaning.
    if let Some(tree) = Tree::read(text).filter(|_| !is_invalid_yaml) {
        let written = tree.to_string();
        assert_eq!(meaning(read), meaning(load(&written)), "an independent parser reads this as {written}");
    }
}

fn load(text: &str) -> Result<Config, Vec<Problem>> {
    let today = Day::parse("2026-06-01").unwrap();
    config::parse(text, Path::new("domicile.yaml"), Some("eu-west"), &mut Registry::default(), today)
}

/// The result of loading: the hash of the policy, or the mistakes without line and column numbers.
fn meaning(read: Result<Config, Vec<Problem>>) -> BTreeSet<String> {
    let strip_digits = |message: &str| message.split(|c: char| c.is_ascii_digit()).collect::<String>();
    match read {
        Ok(config) => [config.policy.hash.to_string()].into(),
        Err(problems) => problems.iter().map(|problem| format!("{}: {}", problem.path, strip_digits(&problem.message))).collect(),
    }
}

/// A document as an independent parser reads it.
enum Tree {
    Null,
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(Tree, Tree)>),
}

impl Tree {
    /// `None` for documents that the independent parser refuses, for documents that Domicile always refuses (tags, a second
    /// document, deep nesting), and for anchors and question marks, because YAML 1.1 ends anchor names at other characters and
    /// treats `?` as a key.
    fn read(text: &str) -> Option<Self> {
        if text.contains('?') {
            return None;
        }
        let mut input = text.as_bytes();
        let mut parser = Parser::new();
        parser.set_input_string(&mut input);
        let mut events = Vec::new();
        let is_read = catch_panic(|| {
            loop {
                match parser.parse() {
                    Ok(Event { data: EventData::StreamEnd, .. }) => return true,
                    Ok(event) => events.push(event.data),
                    Err(_) => return false,
                }
            }
        })?;
        let documents = events.iter().filter(|event| matches!(event, EventData::DocumentStart { .. })).count();
        let is_plain = !events.iter().any(|event| match event {
            EventData::Alias { .. } => true,
            EventData::Scalar { tag, anchor, .. }
            | EventData::SequenceStart { tag, anchor, .. }
            | EventData::MappingStart { tag, anchor, .. } => tag.is_some() || anchor.is_some(),
            _ => false,
        });
        if !is_read || documents != 1 || !is_plain || depth_of(&events) > MAX_DEPTH {
            return None;
        }
        Self::take(&mut events.into_iter().skip(2))
    }

    fn take(events: &mut impl Iterator<Item = EventData>) -> Option<Self> {
        match events.next()? {
            EventData::Scalar { value, style: ScalarStyle::Plain, .. } if ["", "~", "null"].contains(&&*value) => {
                Some(Self::Null)
            }
            EventData::Scalar { value, .. } => Some(Self::Text(value)),
            EventData::SequenceStart { .. } => {
                let mut items = Vec::new();
                while let Some(item) = Self::take(events) {
                    items.push(item);
                }
                Some(Self::List(items))
            }
            EventData::MappingStart { .. } => {
                let mut entries = Vec::new();
                while let Some(key) = Self::take(events) {
                    entries.push((key, Self::take(events)?));
                }
                Some(Self::Map(entries))
            }
            _ => None,
        }
    }
}

/// Domicile refuses documents that are nested deeper.
const MAX_DEPTH: usize = 28;

/// The most collections around a value.
fn depth_of(events: &[EventData]) -> usize {
    let (mut depth, mut most) = (0_usize, 0);
    for event in events {
        match event {
            EventData::SequenceStart { .. } | EventData::MappingStart { .. } => depth += 1,
            EventData::SequenceEnd | EventData::MappingEnd => depth -= 1,
            _ => {}
        }
        most = most.max(depth);
    }
    most
}

/// Writes the document in flow style, with every text in double quotes.
impl fmt::Display for Tree {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => out.write_str("null"),
            Self::Text(text) => {
                let escaped = text.chars().map(|c| match c {
                    '"' | '\\' => format!("\\{c}"),
                    ' '..='~' => c.to_string(),
                    _ => format!("\\U{:08x}", u32::from(c)),
                });
                write!(out, "\"{}\"", escaped.collect::<String>())
            }
            Self::List(items) => {
                out.write_str("[")?;
                items.iter().try_for_each(|item| write!(out, "{item}, "))?;
                out.write_str("]")
            }
            Self::Map(entries) => {
                out.write_str("{")?;
                entries.iter().try_for_each(|(key, value)| write!(out, "? {key} : {value}, "))?;
                out.write_str("}")
            }
        }
    }
}
