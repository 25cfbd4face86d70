//! A report as one HTML page that needs nothing else: no script, no link, no image.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::page::{self, escaped, table};

use super::report::{COLUMNS, Report};

/// The height of the highest bar of the chart, and the width of each, in pixels.
const HEIGHT: u64 = 150;
const BAR: u64 = 22;

/// The page of a period. `verified` is what was verified about the ledger.
pub fn render(report: &Report, period: &str, verified: &str) -> String {
    let mut out = format!("<p class=\"note\">From the ledger of Domicile. Users are pseudonyms. {}</p>\n", escaped(verified));
    out += &chart(&report.days);
    out += &table(&COLUMNS, report.rows().iter().map(|row| &row[..]));
    if !report.events.is_empty() {
        out += "<h2>Counted only</h2>\n<p>Refusals, redirects, and movements of data that may be anywhere.</p>\n";
        out += &table(&["what", "code", "data", "from", "to", "count"], report.event_rows().iter().map(|row| &row[..]));
    }
    let (actions, processes) = (report.actions, report.processes);
    let _ = writeln!(out, "<p>{actions} commands of operators, {processes} starts and ends of processes.</p>");
    page::page(&format!("Movements of data {period}"), &out)
}

/// A bar for each day with movements.
fn chart(days: &BTreeMap<String, u64>) -> String {
    let Some(most) = days.values().max().copied().filter(|most| *most > 0) else { return "<p>No movements.</p>\n".to_owned() };
    let width = u64::try_from(days.len()).unwrap_or(1).saturating_mul(BAR).saturating_add(20).max(320);
    let mut out = format!(
        "<svg role=\"img\" width=\"{width}\" height=\"{}\"><title>Movements by day, at most {most}</title>\n<text x=\"10\" y=\"16\">{most}</text>\n",
        HEIGHT.saturating_add(50)
    );
    let mut x = 10_u64;
    for (day, count) in days {
        let height = count.saturating_mul(HEIGHT).checked_div(most).unwrap_or_default().max(1);
        let y = HEIGHT.saturating_add(22).saturating_sub(height);
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{height}\"><title>{}: {count}</title></rect>",
            BAR.saturating_sub(4),
            escaped(day)
        );
        x = x.saturating_add(BAR);
    }
    let labels = [days.keys().next(), days.keys().next_back().filter(|_| days.len() > 1)];
    let places = [("10".to_owned(), "start"), (width.saturating_sub(10).to_string(), "end")];
    for (day, (at, anchor)) in labels.into_iter().flatten().zip(places) {
        let y = HEIGHT.saturating_add(40);
        let _ = writeln!(out, "<text x=\"{at}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>", escaped(day));
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn the_page_is_complete_in_itself_and_escapes_names() {
        let page = render(&report(), "in November", "the chain is whole");
        assert!(page.contains("&lt;b&gt;") && !page.contains("<b>"), "{page}");
        assert!(!page.contains("src=") && !page.contains("href=") && !page.contains("<script"), "{page}");
        assert_eq!(page.matches("<rect").count(), 2, "a bar for each day");
        assert!(page.contains("the chain is whole"));
        let mut report = report();
        let forged = r#"{"kind":"movement","time":"<script>x\u0026","what":"request","from":"a","to":"b"}"#;
        report.add(&super::super::Line::parse(forged).unwrap());
        assert!(!render(&report, "", "").contains("<script"), "a ledger that somebody else wrote may hold anything");
    }
}
