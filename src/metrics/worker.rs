//! The counts of one worker thread, which are added to the totals at each scrape.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use prometheus::local::{LocalHistogram, LocalIntCounter, LocalIntCounterVec};
use prometheus::{HistogramVec, IntCounter, IntCounterVec};

use super::Metrics;

/// The metrics of one worker thread.
pub struct WorkerMetrics {
    requests: RefCell<RequestCells>,
    upstream_responses: RefCell<HashMap<UpstreamKey, UpstreamCell>>,
    upstream_durations: HistogramVec,
    all_upstream_requests: IntCounterVec,
    refusals: RefCell<LocalIntCounterVec>,
    reported: RefCell<LocalIntCounterVec>,
    failures: RefCell<LocalIntCounterVec>,
    border_bytes: RefCell<LocalIntCounterVec>,
    geoip_lookups: RefCell<LocalIntCounterVec>,
    directory_lookups: RefCell<LocalIntCounterVec>,
    tokens: RefCell<LocalIntCounterVec>,
    upstream_requests: RefCell<LocalIntCounterVec>,
    connections_refused: RefCell<LocalIntCounterVec>,
    log_lines_dropped: IntCounter,
    pub rates_learned: IntCounter,
}

/// The labels of a request.
pub struct RequestLabels<'a> {
    pub route: &'a str,
    pub home: &'a str,
    pub served_by: &'a str,
    pub verdict: &'a str,
    /// The class of the status, such as `2xx`.
    pub status: &'a str,
}

/// The duration of a request, and the sizes of its bodies.
pub struct RequestMeasures {
    pub took: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
}

impl WorkerMetrics {
    pub(super) fn of(metrics: &Metrics) -> Self {
        Self {
            requests: RefCell::new(RequestCells::of(metrics)),
            upstream_responses: RefCell::default(),
            upstream_durations: metrics.upstream_durations.clone(),
            all_upstream_requests: metrics.upstream_requests.clone(),
            refusals: metrics.refusals.local().into(),
            reported: metrics.reported.local().into(),
            failures: metrics.failures.local().into(),
            border_bytes: metrics.border_bytes.local().into(),
            geoip_lookups: metrics.geoip_lookups.local().into(),
            directory_lookups: metrics.directory_lookups.local().into(),
            tokens: metrics.tokens.local().into(),
            upstream_requests: metrics.upstream_requests.local().into(),
            connections_refused: metrics.connections_refused.local().into(),
            log_lines_dropped: metrics.log_lines_dropped.clone(),
            rates_learned: metrics.rates_learned.clone(),
        }
    }

    /// Counts a request. `key` identifies its labels among those of `policy`, so that they are resolved only once.
    pub fn request<P: Send + Sync + 'static>(
        &self,
        (policy, key): (&Arc<P>, u64),
        labels: &RequestLabels<'_>,
        measures: &RequestMeasures,
    ) {
        self.requests.borrow_mut().cell(policy, key, labels).add(measures);
    }

    pub fn refusal(&self, class: &str, from: &str, to: &str, code: &str) {
        self.refusals.borrow_mut().with_label_values(&[class, from, to, code]).inc();
    }

    pub fn reported(&self, class: &str, from: &str, to: &str) {
        self.reported.borrow_mut().with_label_values(&[class, from, to]).inc();
    }

    pub fn connection_refused(&self, reason: &str) {
        self.connections_refused.borrow_mut().with_label_values(&[reason]).inc();
    }

    pub fn failure(&self, code: &str) {
        self.failures.borrow_mut().with_label_values(&[code]).inc();
    }

    pub fn border_bytes(&self, class: &str, from: &str, to: &str, bytes: u64) {
        self.border_bytes.borrow_mut().with_label_values(&[class, from, to]).inc_by(bytes);
    }

    pub fn geoip_lookup(&self, result: &str) {
        self.geoip_lookups.borrow_mut().with_label_values(&[result]).inc();
    }

    pub fn log_lines_dropped(&self, lines: u64) {
        if lines > 0 {
            self.log_lines_dropped.inc_by(lines);
        }
    }

    pub fn token(&self, result: &str) {
        self.tokens.borrow_mut().with_label_values(&[result]).inc();
    }

    pub fn directory_lookup(&self, result: &str) {
        self.directory_lookups.borrow_mut().with_label_values(&[result]).inc();
    }

    /// Counts an attempt at an upstream without a response.
    pub fn upstream_request(&self, service: &str, upstream: &str, result: &str) {
        self.upstream_requests.borrow_mut().with_label_values(&[service, upstream, result]).inc();
    }

    /// Counts a response of an upstream, and how long it took. `key` identifies the upstream, so that its labels are rarely resolved.
    pub fn upstream_response(&self, key: UpstreamKey, service: &str, upstream: &str, took: Duration) {
        let mut cells = self.upstream_responses.borrow_mut();
        // A name may lead to an address that another name led to before.
        let is_other = cells.get(&key).is_some_and(|cell| *cell.upstream != *upstream);
        if is_other && let Some(cell) = cells.remove(&key) {
            cell.flush();
        }
        let cell = cells.entry(key).or_insert_with(|| UpstreamCell {
            upstream: upstream.into(),
            answered: self.all_upstream_requests.with_label_values(&[service, upstream, "answered"]).local(),
            durations: self.upstream_durations.with_label_values(&[service, upstream]).local(),
        });
        cell.answered.inc();
        cell.durations.observe(took.as_secs_f64());
    }

    /// Adds this worker's counts to the totals.
    pub fn flush(&self) {
        for counters in [
            &self.refusals,
            &self.reported,
            &self.failures,
            &self.border_bytes,
            &self.geoip_lookups,
            &self.directory_lookups,
            &self.tokens,
            &self.upstream_requests,
            &self.connections_refused,
        ] {
            counters.borrow().flush();
        }
        self.requests.borrow_mut().flush();
        self.upstream_responses.borrow().values().for_each(UpstreamCell::flush);
    }
}

/// The number of a service, and the fingerprint of an upstream.
pub type UpstreamKey = (usize, u64);

/// The counts of an upstream's responses.
struct UpstreamCell {
    upstream: Box<str>,
    answered: LocalIntCounter,
    durations: LocalHistogram,
}

impl UpstreamCell {
    fn flush(&self) {
        self.answered.flush();
        self.durations.flush();
    }
}

/// The counts of requests. Their labels have been resolved for the policy that most requests are judged by.
struct RequestCells {
    requests: IntCounterVec,
    durations: HistogramVec,
    request_bytes: IntCounterVec,
    response_bytes: IntCounterVec,
    /// The policy of the keys. A weak reference keeps its address from being used again, and frees its tables.
    policy: Weak<dyn Any + Send + Sync>,
    cells: HashMap<u64, RequestCell>,
}

struct RequestCell {
    requests: LocalIntCounter,
    durations: LocalHistogram,
    request_bytes: LocalIntCounter,
    response_bytes: LocalIntCounter,
}

impl RequestCells {
    fn of(metrics: &Metrics) -> Self {
        let nothing: Weak<()> = Weak::new();
        Self {
            requests: metrics.requests.clone(),
            durations: metrics.durations.clone(),
            request_bytes: metrics.request_bytes.clone(),
            response_bytes: metrics.response_bytes.clone(),
            policy: nothing,
            cells: HashMap::new(),
        }
    }

    fn cell<P: Send + Sync + 'static>(&mut self, policy: &Arc<P>, key: u64, labels: &RequestLabels<'_>) -> &mut RequestCell {
        if !std::ptr::addr_eq(self.policy.as_ptr(), Arc::as_ptr(policy)) {
            self.flush();
            self.cells.clear();
            let policy: Weak<P> = Arc::downgrade(policy);
            self.policy = policy;
        }
        self.cells.entry(key).or_insert_with(|| {
            let RequestLabels { route, home, served_by, verdict, status } = labels;
            RequestCell {
                requests: self.requests.with_label_values(&[route, home, served_by, verdict, status]).local(),
                durations: self.durations.with_label_values(&[route, served_by]).local(),
                request_bytes: self.request_bytes.with_label_values(&[route]).local(),
                response_bytes: self.response_bytes.with_label_values(&[route]).local(),
            }
        })
    }

    fn flush(&mut self) {
        for cell in self.cells.values() {
            cell.requests.flush();
            cell.durations.flush();
            cell.request_bytes.flush();
            cell.response_bytes.flush();
        }
    }
}

impl RequestCell {
    fn add(&mut self, measures: &RequestMeasures) {
        self.requests.inc();
        self.durations.observe(measures.took.as_secs_f64());
        self.request_bytes.inc_by(measures.request_bytes);
        self.response_bytes.inc_by(measures.response_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_with_the_labels_of_its_own_policy() {
        let metrics = Metrics::new();
        let worker = metrics.worker();
        let (before, after) = (Arc::new(1), Arc::new(2));
        let count = |policy, route| {
            let labels = RequestLabels { route, home: "eu", served_by: "eu", verdict: "proceed", status: "2xx" };
            let measures = RequestMeasures { took: Duration::from_millis(2), request_bytes: 3, response_bytes: 5 };
            worker.request((policy, 7), &labels, &measures);
        };
        count(&before, "old");
        count(&before, "old");
        count(&after, "new");
        // A request that was judged before the reload ends after it.
        count(&before, "old");
        worker.flush();
        worker.flush();
        let text = metrics.encode();
        let line = |route| {
            format!(
                "domicile_requests_total{{home=\"eu\",route=\"{route}\",served_by=\"eu\",status=\"2xx\",verdict=\"proceed\"}}"
            )
        };
        assert!(text.contains(&format!("{} 3\n", line("old"))) && text.contains(&format!("{} 1\n", line("new"))), "{text}");
        assert!(text.contains("domicile_response_body_bytes_total{route=\"old\"} 15\n"), "{text}");
        assert!(text.contains("domicile_request_duration_seconds_count{route=\"old\",served_by=\"eu\"} 3\n"), "{text}");
    }
}
