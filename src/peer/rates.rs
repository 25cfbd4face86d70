//! The requests that global rate limits have admitted, as the responses to probes carry them.

use std::fmt::Write;

use crate::http::lists;

/// A grow-only counter of the requests that one process has admitted for one key. Reports are merged by maximum, so they may
/// arrive late, twice and in any order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RateCount {
    /// Identifies the counter.
    pub counter: u64,
    /// A hash of the limit and of its key, which is the same in all processes.
    pub key: u64,
    pub requests: u64,
    /// Nanoseconds in which the limit gives one token.
    pub interval: u64,
    pub burst: u32,
}

/// The most counters in one report.
pub const MAX_COUNTS: usize = 512;

/// The counters as the value of a header field: their five numbers in hexadecimal, `:` between the numbers, `,` between the counters.
pub fn write(counts: &[RateCount]) -> String {
    let mut text = String::new();
    for RateCount { counter, key, requests, interval, burst } in counts.iter().take(MAX_COUNTS) {
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}{counter:x}:{key:x}:{requests:x}:{interval:x}:{burst:x}");
    }
    text
}

/// Reads what [`write`] writes; leaves out counters that are malformed.
pub fn read(text: &str) -> Vec<RateCount> {
    lists::tokens(text.as_bytes()).filter_map(|item| read_one(std::str::from_utf8(item).ok()?)).take(MAX_COUNTS).collect()
}

fn read_one(text: &str) -> Option<RateCount> {
    let mut numbers = text.split(':').map(|digits| u64::from_str_radix(digits, 16).ok());
    let mut next = || numbers.next().flatten();
    let count = RateCount {
        counter: next()?,
        key: next()?,
        requests: next()?,
        interval: next().filter(|interval| *interval > 0)?,
        burst: next()?.try_into().ok()?,
    };
    numbers.next().is_none().then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_read_back_as_they_were_written() {
        let count = |counter| RateCount { counter, key: u64::MAX, requests: 7, interval: 20_000_000, burst: 200 };
        let counts: Vec<_> = (0..3).map(count).collect();
        assert_eq!(read(&write(&counts)), counts);
        assert_eq!(read("1:2:3:4:5, 1:2:3, x:2:3:4:5, 1:2:3:0:5, 1:2:3:4:5:6, 1:2:3:4:fffffffff").len(), 1);
        let many: Vec<_> = (0..1000).map(count).collect();
        assert_eq!(read(&write(&many)).len(), MAX_COUNTS);
    }
}
