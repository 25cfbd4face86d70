//! The retry budget: retries are limited to a fraction of the requests, so that they do not overload a failing region.

use std::cell::Cell;
use std::time::Instant;

/// Each request adds a fifth of a retry and each second adds ten retries, as in Finagle and linkerd. Amounts are in fifths
/// of a retry, so that they add up exactly.
const PER_REQUEST: f64 = 1.0;
const PER_SECOND: f64 = 50.0;
const RETRY_COST: f64 = 5.0;

/// The maximum balance: what ten seconds without requests add.
const MAX_BALANCE: f64 = 500.0;

/// The retries that one worker may still make.
pub struct RetryBudget {
    balance: Cell<f64>,
    last: Cell<Instant>,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { balance: Cell::new(MAX_BALANCE), last: Cell::new(Instant::now()) }
    }
}

impl RetryBudget {
    /// Adds the share of one request; to be called once for each request, not for its retries.
    pub fn deposit(&self) {
        self.add(PER_REQUEST);
    }

    /// Whether a retry is left.
    pub fn has_some(&self) -> bool {
        self.add_since(Instant::now());
        self.balance.get() >= RETRY_COST
    }

    /// Takes one retry from the budget; returns whether there was one.
    pub fn withdraw(&self) -> bool {
        self.withdraw_at(Instant::now())
    }

    fn withdraw_at(&self, now: Instant) -> bool {
        self.add_since(now);
        let is_allowed = self.balance.get() >= RETRY_COST;
        if is_allowed {
            self.balance.set(self.balance.get() - RETRY_COST);
        }
        is_allowed
    }

    fn add_since(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.last.replace(now));
        self.add(elapsed.as_secs_f64() * PER_SECOND);
    }

    fn add(&self, amount: f64) {
        self.balance.set((self.balance.get() + amount).min(MAX_BALANCE));
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
        assert_eq!((0..1000).filter(|_| budget.withdraw_at(at(0))).count(), 100, "the initial balance");
        (0..50).for_each(|_| budget.deposit());
        assert_eq!((0..1000).filter(|_| budget.withdraw_at(at(0))).count(), 10);
        assert_eq!((0..1000).filter(|_| budget.withdraw_at(at(2))).count(), 20);
    }
}
