//! The period of a query or a report.

use clap::Args;
use jiff::Timestamp;

use crate::model::day::Day;

#[derive(Args)]
pub(super) struct Period {
    /// A month, such as `2026-11`.
    #[arg(long, conflicts_with_all = ["since", "until"], value_parser = month)]
    month: Option<[String; 2]>,
    /// The first day (`2026-11-28`, UTC) or moment (`2026-11-28T10:00:00Z`).
    #[arg(long, value_parser = since)]
    since: Option<String>,
    /// The last day, or the first moment that is too late.
    #[arg(long, value_parser = before)]
    until: Option<String>,
}

impl Period {
    /// The first moment, and the first that is too late, as the lines write times.
    pub(super) fn bounds(&self) -> (Option<String>, Option<String>) {
        match &self.month {
            Some([since, before]) => (Some(since.clone()), Some(before.clone())),
            None => (self.since.clone(), self.until.clone()),
        }
    }

    /// The period for people.
    pub(super) fn described(&self) -> String {
        let second = |time: &str| time.get(..19).unwrap_or(time).replace('T', " ");
        match self.bounds() {
            (None, None) => "since the beginning of the ledger".to_owned(),
            (Some(since), None) => format!("since {}", second(&since)),
            (None, Some(before)) => format!("before {}", second(&before)),
            (Some(since), Some(before)) => format!("from {} to {}", second(&since), second(&before)),
        }
    }
}

/// Midnight at the beginning of a day.
fn midnight(day: Day) -> String {
    format!("{day}T00:00:00.000000Z")
}

fn since(text: &str) -> Result<String, String> {
    Day::parse(text).map(midnight).map_or_else(|| moment(text), Ok)
}

pub(super) fn before(text: &str) -> Result<String, String> {
    Day::parse(text).map(|day| midnight(day.next())).map_or_else(|| moment(text), Ok)
}

fn moment(text: &str) -> Result<String, String> {
    let time: Timestamp =
        text.parse().map_err(|_| "write a day such as `2026-11-28`, or a moment such as `2026-11-28T10:00:00Z`")?;
    Ok(format!("{time:.6}"))
}

fn month(text: &str) -> Result<[String; 2], String> {
    let wrong = || "write a month such as `2026-11`".to_owned();
    let first = Day::parse(&format!("{text}-01")).ok_or_else(wrong)?;
    let (year, month) = text.split_once('-').ok_or_else(wrong)?;
    let (year, month): (u32, u32) = (year.parse().map_err(|_| wrong())?, month.parse().map_err(|_| wrong())?);
    let (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    let next = Day::parse(&format!("{year:04}-{month:02}-01")).ok_or_else(wrong)?;
    Ok([midnight(first), midnight(next)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_day_is_included_and_a_month_ends_with_the_next() {
        assert_eq!(since("2026-11-28").unwrap(), "2026-11-28T00:00:00.000000Z");
        assert_eq!(before("2026-12-31").unwrap(), "2027-01-01T00:00:00.000000Z");
        assert_eq!(before("2026-11-28T10:00:00+02:00").unwrap(), "2026-11-28T08:00:00.000000Z");
        assert_eq!(month("2026-12").unwrap(), ["2026-12-01T00:00:00.000000Z", "2027-01-01T00:00:00.000000Z"]);
        for wrong in ["2026-13", "2026", "November", "2026-11-01"] {
            assert!(month(wrong).is_err(), "{wrong}");
        }
        assert!(since("yesterday").is_err());
    }
}
