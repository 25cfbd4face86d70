//! The reference of the configuration as a page: every option, its values, and its description.

use std::fmt::Write as _;

use super::{Absent, ITEM, Kind, NAME, Node, Sample, options};

/// The page, in Markdown.
pub fn reference() -> String {
    let mut out = String::from(
        "# Configuration reference\n\n\
         Every option of a configuration. `NAME` is a name of your choice, and `[]` stands for the items of a list; where a list is expected, one item \
         may be written without brackets. [every-option.yaml](../config/every-option.yaml) shows all of them. \
         `domicile schema > domicile.schema.json` writes a JSON schema for editors: with yaml-language-server, begin the file with\n\n\
         \x20   # yaml-language-server: $schema=domicile.schema.json\n\n\
         This page is made by `domicile schema --reference`.\n",
    );
    let options = options();
    let sample = Sample::read(&options);
    for (name, node) in &options.children {
        let _ = write!(out, "\n## {name}\n\n| option | value | default | description |\n|---|---|---|---|\n");
        for Row { option, values, default, description } in rows(node, name, &sample) {
            let _ = writeln!(out, "| `{option}` | {values} | {default} | {} |", description.replace('|', "\\|"));
        }
    }
    out
}

/// An option on the page.
struct Row {
    option: String,
    values: String,
    default: String,
    description: String,
}

/// The rows of an option and of what is below it.
fn rows(node: &Node, path: &str, sample: &Sample) -> Vec<Row> {
    let option = path.to_owned();
    if let Some(first) = node.same_as {
        return vec![Row { option, values: String::new(), default: String::new(), description: format!("as `{first}`") }];
    }
    let mut all = Vec::new();
    if !path.ends_with(ITEM) && !path.ends_with(NAME) {
        let text = sample.description(path).unwrap_or_default();
        let (description, stated) = text.rsplit_once("default: ").unwrap_or((text, ""));
        let default = match sample.absent(path) {
            _ if !stated.is_empty() => stated.to_owned(),
            Some(Absent::Default(value)) => format!("`{value}`"),
            Some(Absent::Mistake) => "required".to_owned(),
            None => String::new(),
        };
        let description = description.trim_end().trim_end_matches(';').to_owned();
        all.push(Row { option, values: values(node), default, description });
    }
    all.extend(node.children.iter().flat_map(|(part, child)| rows(child, &format!("{path}.{part}"), sample)));
    all
}

/// The values that an option takes, in words.
fn values(node: &Node) -> String {
    let is_specific = node.kinds.iter().any(|kind| super::is_scalar(kind) && *kind != Kind::Text);
    let below = |part: &str| node.children.get(part).map(values).filter(|text| !text.is_empty());
    let mut words: Vec<String> = Vec::new();
    for kind in &node.kinds {
        let word = match kind {
            Kind::Either => continue,
            Kind::Section => "section".into(),
            Kind::Names => below(NAME).map_or_else(|| "names".into(), |each| format!("names, each with: {each}")),
            Kind::List | Kind::OneOrMany => below(ITEM).map_or_else(|| "list".into(), |each| format!("list of: {each}")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_a_description_and_one_declaration_of_its_default() {
        let options = options();
        let sample = Sample::read(&options);
        let rows: Vec<Row> = options.children.iter().flat_map(|(name, node)| rows(node, name, &sample)).collect();
        let default_of = |option: &str| rows.iter().find(|row| row.option == option).map(|row| &*row.default);
        assert_eq!(
            ["limits.streams", "routes.[].priority", "routes.[].data", "routes.[].body", "region"].map(default_of),
            [Some("`100`"), Some("`normal`"), Some("required"), Some("`limits.body`"), Some("required")]
        );
        for Row { option, values, default, description } in &rows {
            assert!(!description.is_empty(), "config/every-option.yaml: write a comment after `{option}`");
            if let Some(Absent::Default(derived)) = sample.absent(option) {
                assert_ne!(
                    default, derived,
                    "config/every-option.yaml: the comment after `{option}` repeats the default that it shows"
                );
            }
            let needs_default = !["section", "text", "URL", "list", "names", "`off`"].iter().any(|kind| values.contains(kind));
            assert!(
                !needs_default || !default.is_empty() || description.starts_with("as "),
                "config/every-option.yaml: show the default of `{option}`, or write `; default: …` in its comment"
            );
        }
    }
}
