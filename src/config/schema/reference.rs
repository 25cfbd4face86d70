//! The reference of the configuration as a page: every option, its values, and its description.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{ITEM, Kind, NAME, Node, SAMPLE, descriptions, options};

/// The page, in Markdown.
pub fn reference() -> String {
    let mut out = String::from(
        "# Configuration reference\n\n\
         Every option of a configuration. `NAME` is a name of your choice, and `[]` stands for the items of a list; where a list is expected, one item \
         may be written without brackets. [every-option.yaml](../config/every-option.yaml) shows all of them with their defaults. \
         `domicile schema` prints a JSON schema for editors: with yaml-language-server, begin the file with\n\n\
         \x20   # yaml-language-server: $schema=domicile.schema.json\n\n\
         This page is made by `domicile schema --reference`.\n",
    );
    let described = descriptions::of(SAMPLE);
    for (name, node) in &options().children {
        let _ = write!(out, "\n## {name}\n\n| option | value | description |\n|---|---|---|\n");
        rows(node, name, &described, &mut out);
    }
    out
}

fn rows(node: &Node, path: &str, described: &BTreeMap<String, String>, out: &mut String) {
    let is_item = path.ends_with(ITEM) || path.ends_with(NAME);
    let description = described.get(&path.replace(".[]", "")).filter(|_| !is_item);
    let description = description.map_or_else(String::new, |text| text.replace('|', "\\|"));
    let values = values(node);
    if !is_item || !values.is_empty() || !description.is_empty() {
        let _ = writeln!(out, "| `{path}` | {values} | {description} |");
    }
    for (part, child) in &node.children {
        rows(child, &format!("{path}.{part}"), described, out);
    }
}

/// The values that an option takes, in words; empty for sections.
fn values(node: &Node) -> String {
    let is_specific = node.kinds.iter().any(|kind| super::is_scalar(kind) && *kind != Kind::Text);
    let mut words: Vec<String> = Vec::new();
    for kind in &node.kinds {
        let word = match kind {
            Kind::Section | Kind::Either => continue,
            Kind::Names => "names".into(),
            Kind::List | Kind::OneOrMany => "list".into(),
            Kind::Text if is_specific => continue,
            Kind::Text => "text".into(),
            Kind::Words(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" "),
            Kind::Number(least, most) => format!("{least} to {most}"),
            Kind::Percent => "percentage".into(),
            Kind::Duration => "duration".into(),
            Kind::Size => "size".into(),
            Kind::Address => "address".into(),
            Kind::Url => "URL".into(),
        };
        words.push(word);
    }
    words.join(" or ")
}
