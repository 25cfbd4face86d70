//! References in a configuration: `${NAME}` and `${NAME:-default}` stand for environment variables, `${file:PATH}` for the content
//! of a file. `$${` stands for `${`.
//!
//! References are hidden from the YAML parser, so that they work everywhere, also in flow lists, and so that a value can never change
//! the structure of the file. Each character is replaced by one character, so that the positions of mistakes stay the same.

use std::path::{Path, PathBuf};

/// The first of the private characters that stand for the ASCII characters of a reference.
const HIDDEN: u32 = 0xE100;

/// Marks a hidden `$${`, which is not a reference.
const LITERAL: char = '\u{E0FF}';

/// The values of references.
pub struct Values<'a> {
    /// The value of an environment variable; `None` if it is not set.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
}

/// A text without references, and the files that they read.
pub struct Expanded {
    pub text: String,
    /// The contents of files, which messages must not show, and the references that stand for them.
    pub secrets: Vec<(String, String)>,
    /// The files that were read.
    pub files: Vec<PathBuf>,
}

/// Hides the references of a file from the YAML parser.
pub fn hide(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let is_literal = rest[..start].ends_with('$');
        let (before, reference) = rest.split_at(start - usize::from(is_literal));
        out.push_str(before);
        let name = &reference[2 + usize::from(is_literal)..];
        let Some(length) = name.find('}').filter(|length| !name[..*length].contains('\n')) else {
            let marker = 2 + usize::from(is_literal);
            out.push_str(&reference[..marker]);
            rest = &reference[marker..];
            continue;
        };
        let end = reference.len() - name.len() + length + 1;
        let (reference, after) = reference.split_at(end);
        let reference = if is_literal {
            out.push(LITERAL);
            &reference[1..]
        } else {
            reference
        };
        out.extend(reference.chars().map(|c| if c.is_ascii() { hidden(c) } else { c }));
        rest = after;
    }
    out.push_str(rest);
    out
}

fn hidden(c: char) -> char {
    char::from_u32(HIDDEN + u32::from(c)).expect("the private characters are valid")
}

/// The character that a private character stands for.
fn shown(c: char) -> Option<char> {
    u32::from(c).checked_sub(HIDDEN).filter(|code| *code < 0x80).and_then(char::from_u32)
}

/// Replaces the hidden references in a value. The error says what is wrong with one of them.
pub fn expand(value: &str, values: &Values<'_>) -> Result<Expanded, String> {
    let mut expanded = Expanded { text: String::new(), secrets: Vec::new(), files: Vec::new() };
    let mut rest = value;
    while let Some(start) = rest.find(|c: char| c == LITERAL || shown(c).is_some()) {
        let (before, found) = rest.split_at(start);
        expanded.text.push_str(before);
        let is_literal = found.starts_with(LITERAL);
        let found = found.trim_start_matches(LITERAL);
        let end = found.find(hidden('}')).map_or(found.len(), |at| at + hidden('}').len_utf8());
        let (reference, after) = found.split_at(end);
        let reference: String = reference.chars().map(|c| shown(c).unwrap_or(c)).collect();
        match reference.strip_prefix("${").and_then(|inner| inner.strip_suffix('}')) {
            Some(inner) if !is_literal => look_up(inner, values, &mut expanded)?,
            _ => expanded.text.push_str(&reference),
        }
        rest = after;
    }
    expanded.text.push_str(rest);
    Ok(expanded)
}

fn look_up(inner: &str, values: &Values<'_>, expanded: &mut Expanded) -> Result<(), String> {
    if let Some(path) = inner.strip_prefix("file:") {
        let content = std::fs::read_to_string(path).map_err(|error| format!("`${{{inner}}}` cannot be read: {error}"))?;
        let content = content.trim_end_matches(['\r', '\n']).to_owned();
        expanded.text.push_str(&content);
        expanded.secrets.push((content, format!("${{{inner}}}")));
        expanded.files.push(Path::new(path).into());
        return Ok(());
    }
    let (name, default) = inner.split_once(":-").map_or((inner, None), |(name, default)| (name, Some(default)));
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.starts_with(|c: char| c.is_ascii_digit());
    if name.is_empty() || !is_name {
        return Err(format!(
            "`${{{inner}}}` is not a reference; write `${{NAME}}`, `${{NAME:-default}}` or `${{file:PATH}}`, or `$${{` for a literal `${{`"
        ));
    }
    // As in a shell, a default also replaces an empty variable.
    let value = (values.variable)(name).filter(|value| default.is_none() || !value.is_empty());
    match value.as_deref().or(default) {
        Some(value) => expanded.text.push_str(value),
        None => return Err(format!("the environment variable `{name}` is not set; set it, or write `${{{name}:-default}}`")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        let variable = |name: &str| match name {
            "HOST" => Some("10.0.0.1".to_owned()),
            "EMPTY" => Some(String::new()),
            "TRICK" => Some("]\nadmin: x".to_owned()),
            _ => None,
        };
        let hidden = hide(text);
        assert_eq!(hidden.chars().count(), text.chars().count(), "positions stay the same");
        expand(&hidden, &Values { variable: &variable }).map(|expanded| expanded.text)
    }

    #[test]
    fn references_are_replaced() {
        for (text, value) in [
            ("http://${HOST}:3000", "http://10.0.0.1:3000"),
            ("${PORT:-80}", "80"),
            ("${EMPTY:-80}", "80"),
            ("a${EMPTY}b", "ab"),
            ("${NONE:-a, [b]: {c}", "a, [b]: {c"),
            ("${HOST} and ${HOST}", "10.0.0.1 and 10.0.0.1"),
            ("$${HOST}", "${HOST}"),
            ("{client.address} costs $5", "{client.address} costs $5"),
            ("${HOST", "${HOST"),
            ("${TRICK}", "]\nadmin: x"),
            ("caf\u{e9} ${HOST}", "caf\u{e9} 10.0.0.1"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(value), "{text}");
        }
    }

    #[test]
    fn a_reference_without_a_value_is_a_mistake() {
        assert!(expanded("${PORT}").unwrap_err().contains("`PORT` is not set; set it, or write `${PORT:-default}`"));
        assert!(expanded("${client.address}").unwrap_err().contains("is not a reference"));
        assert!(expanded("${1A}").unwrap_err().contains("is not a reference"));
        assert!(expanded("${file:/nowhere/key}").unwrap_err().contains("`${file:/nowhere/key}` cannot be read"));
    }

    #[test]
    fn a_file_is_read_without_its_last_line_feed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "s3cret\n").unwrap();
        let reference = format!("${{file:{}}}", file.display());
        let expanded = expand(&hide(&format!("Bearer {reference}")), &Values { variable: &|_| None }).unwrap();
        assert_eq!(expanded.text, "Bearer s3cret");
        assert_eq!(expanded.secrets, [("s3cret".to_owned(), reference)]);
        assert_eq!(expanded.files, [file]);
    }
}
