//! The file as written: a tree of values with their positions.
//!
//! YAML 1.2 scalars stay text here, so that `NO` is Norway and `2027-12-31` is a date; `reader` converts them to types.

use serde_yaml::granit_parser::{Event, Parser, ScalarStyle, Span};

use super::super::problem::{Position, Problems};

/// Maximum number of values in a file, with aliases expanded. A file with 10,000 routes has about 150,000.
const MAX_VALUES: usize = 2_000_000;

/// Maximum nesting depth.
const MAX_DEPTH: usize = 32;

#[derive(Clone, Debug)]
pub struct Node {
    pub at: Position,
    /// Whether it was written without quotes.
    pub is_plain: bool,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub enum Value {
    Null,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub struct Key {
    pub text: String,
    pub at: Position,
    /// Whether it was written without references.
    pub is_literal: bool,
}

impl Node {
    /// The kind of this value, for messages.
    pub const fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Text(_) => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a section of keys",
        }
    }

    /// The entries of a section; none of another value.
    pub fn entries(&self) -> &[(Key, Node)] {
        if let Value::Map(entries) = &self.value { entries } else { &[] }
    }

    /// The text of a single value.
    pub fn as_text(&self) -> Option<&str> {
        if let Value::Text(text) = &self.value { Some(text) } else { None }
    }

    /// The value of a key, if this node is a section and has that key.
    pub fn get(&self, wanted: &str) -> Option<&Node> {
        self.entries().iter().find(|(key, _)| key.text == wanted).map(|(_, node)| node)
    }
}

/// Parses a file with one YAML document. `file` is its number in positions. Reports invalid YAML and duplicate keys.
pub fn parse(text: &str, file: usize, problems: &Problems) -> Option<Node> {
    let mut builder = Builder { file, problems, open: Vec::new(), anchors: Vec::new(), values: 0, root: None };
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => builder.take(event, span)?,
            Err(error) => {
                let marker = error.marker();
                let at = Position { file, line: marker.line(), column: marker.col() + 1 };
                problems.report(at, "", format!("this is not valid YAML: {}", error.info()));
                return None;
            }
        }
    }
    if builder.root.is_none() {
        problems.report_file(file, "the file is empty; start from `config/minimal.yaml`");
    }
    builder.root
}

struct Builder<'p> {
    file: usize,
    problems: &'p Problems,
    open: Vec<Open>,
    anchors: Vec<(usize, Node)>,
    values: usize,
    root: Option<Node>,
}

/// A list or section whose end event has not been read yet.
struct Open {
    node: Node,
    anchor: usize,
    /// The last key read, if its value has not been read yet.
    key: Option<Key>,
}

impl Builder<'_> {
    /// Processes one event. `None` means that parsing stops; the reason is already reported.
    fn take(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        let at = Position { file: self.file, line: span.start.line(), column: span.start.col() + 1 };
        if let Some(tag) = event.tag() {
            return self.stop(at, &format!("`{}` is a YAML tag, which is not supported; write the value alone", tag.original()));
        }
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let is_plain = style == ScalarStyle::Plain;
                let is_null = is_plain && matches!(&*text, "" | "~" | "null");
                let value = if is_null { Value::Null } else { Value::Text(text.into_owned()) };
                self.close(Node { at, is_plain, value }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.open(at, Value::List(Vec::new()), anchor),
            Event::MappingStart(_, anchor, _) => self.open(at, Value::Map(Vec::new()), anchor),
            Event::SequenceEnd | Event::MappingEnd => {
                let ended = self.open.pop().expect("an end follows its start");
                self.close(ended.node, ended.anchor)
            }
            Event::Alias(id) => match self.anchors.iter().rev().find(|(anchor, _)| *anchor == id) {
                Some((_, node)) => {
                    let node = Node { at, ..node.clone() };
                    self.values += count(&node);
                    self.close(node, 0)
                }
                None => self.stop(at, "this alias is inside the value that it refers to; write the value out"),
            },
            Event::DocumentStart(..) if self.root.is_some() => self.stop(at, "the file contains a second document; keep one"),
            _ => Some(()),
        }
    }

    fn stop(&self, at: Position, message: &str) -> Option<()> {
        self.problems.report(at, "", message);
        None
    }

    fn open(&mut self, at: Position, value: Value, anchor: usize) -> Option<()> {
        if self.open.len() == MAX_DEPTH {
            return self.stop(at, &format!("more than {MAX_DEPTH} levels of nesting; use fewer"));
        }
        self.open.push(Open { node: Node { at, is_plain: false, value }, anchor, key: None });
        Some(())
    }

    fn close(&mut self, node: Node, anchor: usize) -> Option<()> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return self.stop(node.at, "the file contains too many values (aliases are expanded)");
        }
        if anchor != 0 {
            self.anchors.push((anchor, node.clone()));
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Some(());
        };
        match (&mut parent.node.value, parent.key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(entries), Some(key)) => entries.push((key, node)),
            (Value::Map(_), None) => return self.take_key(node),
            (Value::Null | Value::Text(_), _) => unreachable!("only lists and sections are open"),
        }
        Some(())
    }

    fn take_key(&mut self, node: Node) -> Option<()> {
        let at = node.at;
        let text = match node.value {
            Value::Text(text) => text,
            Value::Null => "null".into(),
            Value::List(_) | Value::Map(_) => return self.stop(at, "a key must be a single value"),
        };
        let parent = self.open.last_mut().expect("a key is inside a section");
        if let Value::Map(entries) = &parent.node.value
            && let Some((first, _)) = entries.iter().find(|(key, _)| key.text == text)
        {
            let message = format!("`{text}` is set twice, first in line {}; keep one", first.at.line);
            self.problems.report(at, "", message);
        }
        parent.key = Some(Key { text, at, is_literal: true });
        Some(())
    }
}

fn count(node: &Node) -> usize {
    match &node.value {
        Value::Null | Value::Text(_) => 1,
        Value::List(items) => items.iter().map(count).sum(),
        Value::Map(entries) => entries.iter().map(|(_, node)| count(node) + 1).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn problems_of(text: &str) -> Vec<String> {
        let problems = Problems::of(Path::new("f"));
        parse(text, 0, &problems);
        problems.into_list().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_duplicate_key_is_reported_at_its_position() {
        assert_eq!(problems_of("a: 1\nb: {c: 1, c: 2}\n"), ["f:2:11: `c` is set twice, first in line 2; keep one"]);
    }

    #[test]
    fn an_alias_bomb_is_stopped() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let before = level - 1;
            text += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{before}"); 10].join(", "));
        }
        assert!(problems_of(&text).iter().any(|problem| problem.contains("too many values")));
    }

    #[test]
    fn yaml_tags_are_refused() {
        for (text, tag) in
            [("a: !include other.yaml\n", "!include"), ("a: !!binary aGk=\n", "!!binary"), ("a: !set {b}\n", "!set")]
        {
            let report = problems_of(text).concat();
            assert!(report.starts_with("f:1:") && report.contains(&format!("`{tag}` is a YAML tag")), "{report}");
        }
    }

    #[test]
    fn text_stays_text() {
        let problems = Problems::of(Path::new("f"));
        let root = parse("a: NO\nb: 1.10\nc:\nd: 'null'\n", 0, &problems).unwrap();
        assert!(matches!(&root.get("a").unwrap().value, Value::Text(text) if text == "NO"));
        assert!(matches!(&root.get("b").unwrap().value, Value::Text(text) if text == "1.10"));
        assert!(matches!(root.get("c").unwrap().value, Value::Null));
        assert!(matches!(&root.get("d").unwrap().value, Value::Text(text) if text == "null"));
    }
}
