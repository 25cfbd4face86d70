//! HTML pages for people who read a file from disk: one file that needs no script, link or image.

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:80em;padding:0 1em;color:#1b1f24}\
table{border-collapse:collapse;margin:1em 0;font-size:14px}th,td{text-align:left;padding:.3em .8em;border-bottom:1px solid #d5dae0}\
th{background:#f3f5f7}svg{background:#f8f9fa;border:1px solid #d5dae0}rect{fill:#2f6f9f}text{font:12px system-ui,sans-serif;fill:#57606a}\
p.note{color:#57606a}pre{background:#f8f9fa;border:1px solid #d5dae0;padding:.8em;white-space:pre-wrap}";

/// A page with this title and body. The body is HTML.
pub fn page(title: &str, body: &str) -> String {
    let title = escaped(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head><body>\n\
         <h1>{title}</h1>\n{body}</body></html>\n"
    )
}

/// A table. The texts are not HTML.
pub fn table<'r>(heads: &[&str], rows: impl Iterator<Item = &'r [String]>) -> String {
    let cells = |kind: &str, fields: &mut dyn Iterator<Item = String>| {
        let cells: String = fields.map(|field| format!("<{kind}>{field}</{kind}>")).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let mut out = "<table>\n".to_owned() + &cells("th", &mut heads.iter().map(|head| escaped(head)));
    for row in rows {
        out += &cells("td", &mut row.iter().map(|field| escaped(field)));
    }
    out + "</table>\n"
}

/// A text as HTML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
