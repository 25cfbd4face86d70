//! Sums up the movements of a period, as a controller's record of processing needs them (GDPR Article 30).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;

use super::Line;

/// The movements of a period.
#[derive(Default)]
pub struct Report {
    movements: BTreeMap<Movement, Sum>,
    /// The movements of requests that have no settlement yet.
    open: HashMap<String, Vec<Movement>>,
    /// Refusals and redirects, and movements of data that may be anywhere.
    pub events: BTreeMap<Event, u64>,
    /// Movements by day.
    pub days: BTreeMap<String, u64>,
    /// Commands of operators, and reloads.
    pub actions: u64,
    /// Starts and ends of processes.
    pub processes: u64,
}

/// The properties that movements of one row have in common.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Movement {
    pub from: String,
    pub to: String,
    pub what: String,
    pub classes: String,
    /// The jurisdiction of the users.
    pub jurisdiction: String,
    /// The bases of the transfers, and their records.
    pub bases: String,
    pub records: String,
}

/// A kind of event that is counted only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    pub what: String,
    pub code: String,
    pub class: String,
    pub from: String,
    pub to: String,
}

#[derive(Default)]
pub struct Sum {
    pub movements: u64,
    /// Movements without a settlement: how they ended is not known.
    pub unsettled: u64,
    /// Bytes of bodies in the direction of the movement, and in the other.
    pub bytes: u64,
    pub bytes_back: u64,
    users: HashSet<String>,
    pub first: String,
    pub last: String,
}

impl Sum {
    /// The number of different users.
    pub fn users(&self) -> usize {
        self.users.len()
    }
}

/// The heads of the columns.
pub(super) const COLUMNS: [&str; 14] = [
    "from",
    "to",
    "what",
    "data",
    "users of",
    "basis",
    "record",
    "movements",
    "unsettled",
    "bytes",
    "bytes back",
    "users",
    "first",
    "last",
];

impl Report {
    pub fn add(&mut self, line: &Line<'_>) {
        match &*line.kind {
            "movement" => self.add_movement(line),
            "settlement" => self.settle(line),
            "counts" => {
                for counted in &line.counts {
                    let event = Event {
                        what: counted.what.to_string(),
                        code: counted.code.to_string(),
                        class: counted.class.to_string(),
                        from: counted.from.to_string(),
                        to: counted.to.to_string(),
                    };
                    let count = self.events.entry(event).or_default();
                    *count = count.saturating_add(counted.count);
                }
            }
            "action" => self.actions = self.actions.saturating_add(1),
            "process" => self.processes = self.processes.saturating_add(1),
            _ => {}
        }
    }

    fn add_movement(&mut self, line: &Line<'_>) {
        let of_grounds = |text: &dyn Fn(&super::Ground<'_>) -> String| {
            let all: Vec<_> = line.transfers.iter().map(text).filter(|text| !text.is_empty()).collect();
            all.join(", ")
        };
        let movement = Movement {
            from: line.from.to_string(),
            to: line.to.to_string(),
            what: line.what.to_string(),
            classes: line.classes.join(", "),
            jurisdiction: line.jurisdiction.to_string(),
            bases: of_grounds(&|ground| ground.basis.to_string()),
            records: of_grounds(&|ground| ground.record.as_deref().unwrap_or_default().to_owned()),
        };
        self.open.entry(line.request.to_string()).or_default().push(movement.clone());
        let sum = self.movements.entry(movement).or_default();
        sum.movements = sum.movements.saturating_add(1);
        sum.unsettled = sum.unsettled.saturating_add(1);
        if let Some(user) = line.user.as_deref()
            && !sum.users.contains(user)
        {
            sum.users.insert(user.to_owned());
        }
        if sum.first.is_empty() {
            sum.first = line.time.to_string();
        }
        sum.last = line.time.to_string();
        let day = line.time.get(..10).unwrap_or_default();
        match self.days.get_mut(day) {
            Some(count) => *count = count.saturating_add(1),
            None => _ = self.days.insert(day.to_owned(), 1),
        }
    }

    /// Settles the movements of a request. The bytes of its bodies belong to the last movement of each direction, because a request
    /// whose body was sent is not sent to another region.
    fn settle(&mut self, line: &Line<'_>) {
        let Some(open) = self.open.remove(&*line.request) else { return };
        let mut has_bytes = Vec::new();
        for movement in open.into_iter().rev() {
            let is_answer = movement.what == "answer";
            let direction = if movement.what == "processing" {
                "processing"
            } else if is_answer {
                "answer"
            } else {
                "request"
            };
            let is_last = !has_bytes.contains(&direction);
            has_bytes.push(direction);
            let Some(sum) = self.movements.get_mut(&movement) else { continue };
            sum.unsettled = sum.unsettled.saturating_sub(1);
            if is_last {
                let (there, back) =
                    if is_answer { (line.response_bytes, line.request_bytes) } else { (line.request_bytes, line.response_bytes) };
                sum.bytes = sum.bytes.saturating_add(there);
                sum.bytes_back = sum.bytes_back.saturating_add(back);
            }
        }
    }

    /// The rows of movements, as text.
    pub(super) fn rows(&self) -> Vec<[String; 14]> {
        let row = |(movement, sum): (&Movement, &Sum)| {
            let Movement { from, to, what, classes, jurisdiction, bases, records } = movement.clone();
            let numbers = [sum.movements, sum.unsettled, sum.bytes, sum.bytes_back];
            let [movements, unsettled, bytes, back] = numbers.map(|number| number.to_string());
            let users = sum.users().to_string();
            let second = |time: &str| time.get(..19).unwrap_or(time).replace('T', " ");
            let (first, last) = (second(&sum.first), second(&sum.last));
            [from, to, what, classes, jurisdiction, bases, records, movements, unsettled, bytes, back, users, first, last]
        };
        self.movements.iter().map(row).collect()
    }

    /// The counted events, as text: `what`, `code`, `data`, `from`, `to`, `count`.
    pub(super) fn event_rows(&self) -> Vec<[String; 6]> {
        let row = |(event, count): (&Event, &u64)| {
            let Event { what, code, class, from, to } = event.clone();
            [what, code, class, from, to, count.to_string()]
        };
        self.events.iter().map(row).collect()
    }

    /// The movements as CSV (RFC 4180), for other programs.
    pub fn csv(&self) -> String {
        let mut out = COLUMNS.join(",") + "\r\n";
        for row in self.rows() {
            let quoted = row.map(|field| {
                // Spreadsheets take a field that begins so for a formula.
                let field = if field.starts_with(['=', '+', '-', '@']) { format!("'{field}") } else { field };
                if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
            });
            out += &(quoted.join(",") + "\r\n");
        }
        out
    }

    /// The table of movements for a terminal.
    pub fn movements_text(&self) -> String {
        table(&COLUMNS, &self.rows())
    }

    /// Tables for a terminal.
    pub fn text(&self, period: &str) -> String {
        let mut out = format!("Movements of data {period}\n\n");
        out += &self.movements_text();
        if !self.events.is_empty() {
            out += "\nCounted only: refusals, redirects, and movements of data that may be anywhere\n\n";
            out += &table(&["what", "code", "data", "from", "to", "count"], &self.event_rows());
        }
        let _ = writeln!(out, "\n{} commands of operators, {} starts and ends of processes", self.actions, self.processes);
        out
    }
}

/// A table with aligned columns.
fn table<const N: usize>(heads: &[&str; N], rows: &[[String; N]]) -> String {
    if rows.is_empty() {
        return "none\n".to_owned();
    }
    let mut widths = heads.map(|head| head.chars().count());
    for row in rows {
        for (width, field) in widths.iter_mut().zip(row) {
            *width = (*width).max(field.chars().count());
        }
    }
    let line = |fields: [&str; N]| {
        let padded = fields.iter().zip(widths).map(|(field, width)| format!("{field:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    // Only a line feed may move the cursor of a terminal.
    let shown = |text: String| text.replace(|sign: char| sign.is_control() && sign != '\n', "\u{fffd}");
    line(*heads) + &shown(rows.iter().map(|row| line(row.each_ref().map(String::as_str))).collect::<String>())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Three movements and two lines of counts.
    pub fn report() -> Report {
        let mut report = Report::default();
        for (time, user, record) in
            [("01T10:00:00", "p1", "\"SCC, 14\""), ("02T10:00:00", "p2", "\"SCC, 14\""), ("02T11:00:00", "p1", "null")]
        {
            let text = format!(
                r#"{{"kind":"movement","time":"2026-11-{time}.000000Z","what":"request","from":"us-east","to":"eu-west","route":"orders","request":"{time}","jurisdiction":"us","classes":["personal"],"transfers":[{{"basis":"contract","record":{record}}}],"user":"{user}"}}"#
            );
            report.add(&Line::parse(&text).expect("a line"));
        }
        let settled = r#"{"kind":"settlement","time":"2026-11-01T10:00:01.000000Z","request":"01T10:00:00","request_bytes":30,"response_bytes":4000}"#;
        report.add(&Line::parse(settled).expect("a line"));
        let counts = r#"{"kind":"counts","time":"2026-11-02T12:00:00.000000Z","counts":[{"what":"refusal","code":"route.none","class":"<b>","from":"","to":"","count":7}]}"#;
        report.add(&Line::parse(counts).expect("a line"));
        report.add(&Line::parse(counts).expect("a line"));
        report
    }

    #[test]
    fn movements_with_the_same_properties_are_one_row() {
        let report = report();
        let text = report.text("in November");
        assert!(text.contains("us-east  eu-west  request  personal  us        contract  SCC, 14  2          1          30     4000        2      2026-11-01 10:00:00  2026-11-02 10:00:00"), "{text}");
        assert!(
            text.contains("contract           1          1          0      0           1      2026-11-02 11:00:00"),
            "{text}"
        );
        let refused = text.lines().find(|line| line.starts_with("refusal")).expect("it is there");
        assert_eq!(refused.split_whitespace().collect::<Vec<_>>(), ["refusal", "route.none", "<b>", "14"]);
        assert_eq!(report.days.get("2026-11-02"), Some(&2));
        let forged = r#"{"kind":"movement","time":"2026-11-03","what":"request","from":"\u001b[2J","to":"b"}"#;
        let mut report = report;
        report.add(&Line::parse(forged).expect("a line"));
        assert!(!report.text("in November").contains('\u{1b}'), "nothing in a ledger may control a terminal");
    }

    #[test]
    fn the_bytes_of_a_request_belong_to_its_last_movement_of_each_direction() {
        let mut report = Report::default();
        let line = |what: &str, from: &str, to: &str| {
            format!(r#"{{"kind":"movement","time":"2026-11-01","what":"{what}","from":"{from}","to":"{to}","request":"r"}}"#)
        };
        for text in [line("request", "a", "b"), line("failover", "a", "c"), line("answer", "a", "d")] {
            report.add(&Line::parse(&text).expect("a line"));
        }
        let settled = r#"{"kind":"settlement","time":"2026-11-01","request":"r","request_bytes":3,"response_bytes":500}"#;
        report.add(&Line::parse(settled).expect("a line"));
        // A settlement whose movement is not of this period changes nothing.
        report.add(&Line::parse(settled).expect("a line"));
        let numbers: Vec<_> = report.rows().into_iter().map(|row| (row[2].clone(), row[8..11].to_vec())).collect();
        let of = |what: &str| numbers.iter().find(|(found, _)| found == what).map(|(_, numbers)| numbers.join(" "));
        assert_eq!(of("request").as_deref(), Some("0 0 0"));
        assert_eq!(of("failover").as_deref(), Some("0 3 500"));
        assert_eq!(of("answer").as_deref(), Some("0 500 3"), "the answer goes the other way");
    }

    #[test]
    fn csv_quotes_what_it_must_and_contains_no_formula() {
        let mut report = report();
        assert!(
            report.csv().contains("us-east,eu-west,request,personal,us,contract,\"SCC, 14\",2,1,30,4000,2,"),
            "{}",
            report.csv()
        );
        let formula = r#"{"kind":"movement","time":"2026-11-02T12:00:00.000000Z","what":"request","from":"=cmd()","to":"b"}"#;
        report.add(&Line::parse(formula).expect("a line"));
        assert!(report.csv().contains("\r\n'=cmd(),b,"), "{}", report.csv());
    }
}
