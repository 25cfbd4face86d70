//! A day of the calendar in UTC, for dates in rules and the age of data.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Days since 1970-01-01, UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Day(i32);

impl Day {
    /// 9999-12-31, the last day that four digits of a year can name.
    const LAST: Self = Self(2_932_896);

    /// The day of `now`. A time before 1970 counts as 1970-01-01, and one after 9999 as the last day of 9999.
    pub fn of(now: SystemTime) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        i32::try_from(since.as_secs() / 86_400).map_or(Self::LAST, |days| Self(days).min(Self::LAST))
    }

    /// The day after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The first moment after this day.
    pub fn end(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(self.next().0).unwrap_or_default() * 86_400)
    }

    /// Reads `YYYY-MM-DD`; `None` for any other form and for a date that does not exist.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        let mut number = |digits: usize| {
            let part = parts.next()?;
            let plain = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit());
            if plain { part.parse::<i32>().ok() } else { None }
        };
        let (year, month, day) = (number(4)?, number(2)?, number(2)?);
        let parsed = Self::from_civil(year, month, day);
        (parsed.civil() == (year, month, day)).then_some(parsed)
    }

    /// Howard Hinnant's `days_from_civil`: a year begins in March, an era has 400 years.
    fn from_civil(year: i32, month: i32, day: i32) -> Self {
        let year = if month <= 2 { year - 1 } else { year };
        let era = year.div_euclid(400);
        let of_era = year.rem_euclid(400);
        let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
        Self(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
    }

    fn civil(self) -> (i32, i32, i32) {
        let days = self.0 + 719_468;
        let era = days.div_euclid(146_097);
        let of_era = days.rem_euclid(146_097);
        let years = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * years + years / 4 - years / 100);
        let shifted = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        (years + era * 400 + i32::from(month <= 2), month, day)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.civil();
        write!(out, "{year:04}-{month:02}-{day:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_reads_back_as_it_was_written() {
        for text in ["1970-01-01", "2000-02-29", "2027-12-31", "2100-03-01", "9999-12-31"] {
            assert_eq!(Day::parse(text).unwrap().to_string(), text);
        }
        assert!(Day::parse("2027-12-31").unwrap() < Day::parse("2028-01-01").unwrap());
    }

    #[test]
    fn a_date_that_does_not_exist_is_refused() {
        for text in ["2027-02-29", "2027-13-01", "2027-00-10", "27-01-01", "2027-1-1", "2027-01-01T00:00", "", "+027-01-01"] {
            assert_eq!(Day::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_clock_is_read_in_utc() {
        assert_eq!(Day::of(UNIX_EPOCH + Duration::from_secs(86_399)).to_string(), "1970-01-01");
        assert_eq!(Day::of(UNIX_EPOCH + Duration::from_secs(1_830_297_600)).to_string(), "2028-01-01");
    }
}
