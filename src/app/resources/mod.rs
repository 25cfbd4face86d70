//! The resources of the process: fits the limits to them, and measures their usage for the overload guard.

mod descriptors;
mod memory;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::metrics::Metrics;
use crate::proxy::Limits;
use crate::proxy::admission::overload::{self, Guard, Pressure, Usage};
use crate::proxy::worker::Shared;

use descriptors::Descriptors;
use memory::Memory;

/// The share of the memory limit that the buffers of bodies may use.
const BUFFERS: u64 = 4;

/// Lowers the limits to what the file descriptors and the memory of the process suffice for.
pub fn fit(limits: Limits, overload: &overload::Settings) -> Limits {
    let limits = descriptors::fit(limits);
    let most = Memory::find().limit(overload.memory_limit).map_or(usize::MAX, |limit| (limit / BUFFERS) as usize);
    if most >= limits.body_buffers {
        return limits;
    }
    tracing::info!(
        configured = limits.body_buffers,
        used = most,
        "`limits.body_buffers` lowered to a quarter of the memory limit"
    );
    Limits { body_buffers: most, ..limits }
}

/// The interval of measurements. In this time, the process cannot allocate more than the memory between the thresholds.
const INTERVAL: Duration = Duration::from_millis(50);

/// Measures the usage, and publishes the pressure for the workers, until the future is dropped.
pub async fn guard(shared: Arc<Shared>, metrics: Arc<Metrics>) {
    let (memory, mut descriptors, mut guard) = (Memory::find(), Descriptors::default(), Guard::default());
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let settings = shared.snapshot.load().overload;
        let usage = Usage {
            memory: memory.used_share(settings.memory_limit),
            descriptors: descriptors.used_share(Instant::now()),
            lag: shared.overload.lag(),
        };
        metrics.set_usage(usage.memory, usage.descriptors, usage.lag);
        let Some(state) = guard.observe(&usage, &settings, Instant::now()) else { continue };
        shared.overload.set(&state);
        metrics.overload_pressure.set(state.pressure as i64);
        let (resource, effect) = (state.resource, state.pressure.effect());
        let (memory, descriptors, lag_ms) = (percent(usage.memory), percent(usage.descriptors), (usage.lag * 1e3) as u64);
        if state.pressure > Pressure::None {
            tracing::warn!(resource, effect, memory, descriptors, lag_ms, "overload");
        } else {
            tracing::info!(effect, memory, descriptors, lag_ms, "overload has ended");
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}
