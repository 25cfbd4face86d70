//! The retry budget: retries are a part of what is asked for, so that a region that fails is not buried under them.

use std::cell::Cell;
use std::time::Instant;

/// A fifth of a retry for each request, and ten a second besides (the figures of Finagle and linkerd). Counted in fifths,
/// which add up exactly.
const PER_REQUEST: f64 = 1.0;
const PER_SECOND: f64 = 50.0;
const RETRY: f64 = 5.0;

/// What may be saved up: ten seconds of the least.
const MOST: f64 = 500.0;

/// One worker's retries that may still be made.
pub struct RetryBudget {
    saved: Cell<f64>,
    last: Cell<Instant>,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { saved: Cell::new(MOST), last: Cell::new(Instant::now()) }
    }
}

impl RetryBudget {
    /// A request is tried for the first time.
    pub fn deposit(&self) {
        self.add(PER_REQUEST);
    }

    /// Whether it may be tried again.
    pub fn withdraw(&self) -> bool {
        self.withdraw_at(Instant::now())
    }

    fn withdraw_at(&self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.last.replace(now));
        self.add(elapsed.as_secs_f64() * PER_SECOND);
        let may = self.saved.get() >= RETRY;
        if may {
            self.saved.set(self.saved.get() - RETRY);
        }
        may
    }

    fn add(&self, amount: f64) {
        self.saved.set((self.saved.get() + amount).min(MOST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn retries_are_a_fifth_of_the_requests_and_ten_a_second() {
        let budget = RetryBudget::default();
        let start = budget.last.get();
        let at = |second: u64| start + Duration::from_secs(second);
        assert_eq!((0..1000).filter(|_| budget.withdraw_at(at(0))).count(), 100, "what was saved");
        (0..50).for_each(|_| budget.deposit());
        assert_eq!((0..1000).filter(|_| budget.withdraw_at(at(0))).count(), 10);
        assert_eq!((0..1000).filter(|_| budget.withdraw_at(at(2))).count(), 20);
    }
}
