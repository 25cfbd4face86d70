//! Limits repeated warnings: of one kind about one subject, at most one a second is logged.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The interval between two warnings of one kind about one subject.
const INTERVAL: Duration = Duration::from_secs(1);

/// The most subjects that are remembered. Beyond, the oldest are forgotten, and their next warning is logged.
const MAX_SUBJECTS: usize = 1024;

/// The warnings of one worker.
#[derive(Default)]
pub struct Warnings(RefCell<HashMap<(&'static str, Box<str>), Recent>>);

struct Recent {
    logged: Instant,
    suppressed: u64,
}

impl Warnings {
    /// Whether a warning may be logged now. Returns the number of those that were suppressed since the last one.
    pub fn admit(&self, kind: &'static str, subject: &str, now: Instant) -> Option<u64> {
        let mut recent = self.0.borrow_mut();
        if recent.len() >= MAX_SUBJECTS {
            recent.retain(|_, recent| now - recent.logged < INTERVAL);
        }
        let Some(known) = recent.get_mut(&(kind, Box::from(subject))) else {
            if recent.len() < MAX_SUBJECTS {
                recent.insert((kind, subject.into()), Recent { logged: now, suppressed: 0 });
            }
            return Some(0);
        };
        if now - known.logged < INTERVAL {
            known.suppressed += 1;
            return None;
        }
        known.logged = now;
        Some(std::mem::take(&mut known.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_logged_once_a_second_and_the_others_are_counted() {
        let (warnings, start) = (Warnings::default(), Instant::now());
        let admit = |subject, millis| warnings.admit("upstream", subject, start + Duration::from_millis(millis));
        assert_eq!((admit("a", 0), admit("b", 1)), (Some(0), Some(0)));
        assert_eq!((admit("a", 500), admit("a", 999)), (None, None));
        assert_eq!((admit("a", 1000), admit("a", 2500)), (Some(2), Some(0)));
    }
}
