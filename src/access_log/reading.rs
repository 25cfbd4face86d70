//! Reads lines of the formats `text` and `json`, for the replay of a log.

use std::collections::BTreeMap;

/// The fields of a line by name; `None` for a line that is not about a request.
pub fn fields(line: &str) -> Option<BTreeMap<String, String>> {
    if line.starts_with('{') {
        let values: BTreeMap<String, serde_json::Value> = serde_json::from_str(line).ok()?;
        let text = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        let is_request = values.get("message").is_some_and(|message| message == "request");
        return is_request.then(|| values.into_iter().map(|(name, value)| (name, text(value))).collect());
    }
    let (_, mut rest) = line.split_once(" domicile::request: request ")?;
    let mut fields = BTreeMap::new();
    while let Some((name, after)) = rest.split_once('=') {
        let (value, next) = value_of(after)?;
        fields.insert(name.trim_start().to_owned(), value);
        rest = next;
    }
    Some(fields)
}

/// A value at the beginning of a text, and the text after it.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_once(' ').unwrap_or((text, ""));
        return Some((value.to_owned(), rest));
    };
    let mut is_escaped = false;
    let end = quoted.char_indices().find(|(_, sign)| {
        let ends = *sign == '"' && !is_escaped;
        is_escaped = *sign == '\\' && !is_escaped;
        ends
    });
    let (value, rest) = quoted.split_at(end?.0);
    Some((unescaped(value), rest.strip_prefix('"').unwrap_or(rest)))
}

/// The text that the format `text` writes with escapes.
fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut signs = text.chars();
    while let Some(sign) = signs.next() {
        match sign {
            '\\' => match signs.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                Some('t') => out.push('\t'),
                // `\u{7f}`
                Some('u') => {
                    let digits: String = signs.by_ref().skip(1).take_while(|sign| *sign != '}').collect();
                    out.extend(u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32));
                }
                Some(other) => out.push(other),
                None => {}
            },
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read() {
        let text = r#"2026-11-28T10:00:00Z  INFO domicile::request: request id="0a" client="81.2.69.0/24" path="/a b/\"x\"\\\u{7f}" status=200 seconds=0.1"#;
        let json = r#"{"timestamp":"2026-11-28T10:00:00Z","message":"request","id":"0a","client":"81.2.69.0/24","path":"/a b/\"x\"\\\u007f","status":200,"seconds":0.1}"#;
        for line in [text, json] {
            let fields = fields(line).unwrap_or_else(|| panic!("{line}"));
            let of = |name: &str| fields.get(name).map(String::as_str);
            assert_eq!((of("id"), of("path"), of("status")), (Some("0a"), Some("/a b/\"x\"\\\u{7f}"), Some("200")));
        }
        assert_eq!(fields("2026-11-28T10:00:00Z  INFO domicile::cli::run: started"), None);
        assert_eq!(fields(r#"{"message":"started"}"#), None);
    }
}
