//! Draws app servers at random, by their weights.

use std::sync::Arc;

use super::Upstream;

/// Draws upstreams at random, in proportion to their weights.
#[derive(Default)]
pub(super) struct Wheel {
    /// The sums of the weights up to each upstream; empty if all weights are equal.
    sums: Vec<u32>,
}

/// How often an upstream is drawn before all of them are looked at.
const RANDOM_TRIES: usize = 4;

impl Wheel {
    pub(super) fn of(upstreams: &[Arc<Upstream>]) -> Self {
        let is_even = upstreams.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let sum = |sum: &mut u32, upstream: &Arc<Upstream>| {
            *sum += upstream.weight;
            Some(*sum)
        };
        Self { sums: if is_even { Vec::new() } else { upstreams.iter().scan(0, sum).collect() } }
    }

    /// One of the suitable upstreams. Usually all are suitable, so that the first one drawn is.
    pub(super) fn draw<'s>(
        &self,
        all: &'s [Arc<Upstream>],
        is_suitable: impl Fn(&&Arc<Upstream>) -> bool,
    ) -> Option<&'s Arc<Upstream>> {
        let drawn = (0..RANDOM_TRIES.min(all.len())).map(|_| &all[self.spin(all.len())]);
        drawn.into_iter().find(&is_suitable).or_else(|| {
            let weights = all.iter().filter(&is_suitable).map(|upstream| upstream.weight).sum::<u32>();
            let mut left = fastrand::u32(..weights.max(1));
            all.iter().filter(&is_suitable).find(|upstream| {
                let is_drawn = left < upstream.weight;
                left = left.saturating_sub(upstream.weight);
                is_drawn
            })
        })
    }

    fn spin(&self, count: usize) -> usize {
        match self.sums.last() {
            None => fastrand::usize(..count),
            Some(total) => {
                let at = fastrand::u32(..*total);
                self.sums.partition_point(|sum| *sum <= at)
            }
        }
    }
}
