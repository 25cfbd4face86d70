//! Every metric, in one list.
//!
//! Promises: the naming convention of Prometheus, base units, bounded labels (routes, regions, classes and codes come from the
//! configuration or the code; no user, path or address). Each worker counts in its own cells, without a lock or a shared cache
//! line; the cells are added up at each scrape.

use std::cell::RefCell;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::local::{LocalHistogramVec, LocalIntCounterVec};
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// From 0.5 ms to 30 s, which covers local responses, round trips between continents and uploads.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The registry and its metrics. The public metrics are updated directly, the private ones through [`WorkerMetrics`].
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    refusals: IntCounterVec,
    reported: IntCounterVec,
    failures: IntCounterVec,
    border_bytes: IntCounterVec,
    geoip_lookups: IntCounterVec,
    directory_lookups: IntCounterVec,
    tokens: IntCounterVec,
    upstream_requests: IntCounterVec,
    pub connections: IntGaugeVec,
    pub connections_refused: IntCounterVec,
    pub region_health: IntGaugeVec,
    pub region_changes: IntCounterVec,
    pub service_up: IntGaugeVec,
    pub region_round_trip: GaugeVec,
    pub upstream_up: IntGaugeVec,
    pub upstream_ejected: IntGaugeVec,
    pub geoip_age: GaugeVec,
    pub directory_users: IntGauge,
    pub ledger_lines: IntCounter,
    pub ledger_failures: IntCounter,
    log_lines_dropped: IntCounter,
    pub reloads: IntCounterVec,
    pub rates_learned: IntCounter,
    pub ready: IntGauge,
    pub overload: OverloadMetrics,
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("domicile")
}

struct Builder(Registry);

impl Builder {
    fn add<C: Collector + Clone + 'static>(&self, collector: Result<C, prometheus::Error>) -> C {
        let collector = collector.expect("the metrics' names and labels are valid");
        self.0.register(Box::new(collector.clone())).expect("every metric is registered once");
        collector
    }

    fn describe_process(&self) {
        let version = self.gauges("build_info", "The version of Domicile; the value is always 1.", &["version"]);
        version.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        self.0.register(Box::new(ProcessCollector::for_self())).expect("the process is registered once");
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(opts(name, help), labels))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::with_opts(opts(name, help)))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::with_opts(opts(name, help)))
    }

    /// Gauges whose values are not integers.
    fn measures(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(opts(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(opts(name, help), labels))
    }
}

/// The metrics of the overload guard.
pub struct OverloadMetrics {
    pub pressure: IntGauge,
    usage: GaugeVec,
}

impl OverloadMetrics {
    fn new(build: &Builder) -> Self {
        let pressure =
            "The requests that are refused: 0 none, 1 of low priority, 2 also of normal priority, 3 all, and new connections.";
        let usage = "Usage of a resource: shares of memory and descriptors, seconds of event loop lag.";
        Self {
            pressure: build.gauge("overload_pressure", pressure),
            usage: build.measures("overload_usage", usage, &["resource"]),
        }
    }

    /// Sets the usage: shares of memory and descriptors, and seconds of lag.
    pub fn set_usage(&self, memory: f64, descriptors: f64, lag: f64) {
        for (resource, value) in [("memory", memory), ("descriptors", descriptors), ("event_loop", lag)] {
            self.usage.with_label_values(&[resource]).set(value);
        }
    }
}

/// The labels of what crosses a border.
const BORDER: &[&str] = &["class", "from", "to"];

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let build = Builder(registry.clone());
        let seconds = HistogramOpts::new("request_duration_seconds", "Time from the request head to the end of the response.");
        let seconds = seconds.namespace("domicile").buckets(SECONDS.into());
        build.describe_process();
        Self {
            requests: build.counters(
                "requests_total",
                "Requests by route, home, serving region and verdict.",
                &["route", "home", "served_by", "verdict"],
            ),
            durations: build.add(HistogramVec::new(seconds, &["route", "served_by"])),
            refusals: build.counters(
                "residency_refusals_total",
                "Requests and responses that residency rules refused.",
                &["class", "from", "to", "code"],
            ),
            reported: build.counters("residency_reported_total", "Requests that only report-only mode allowed.", BORDER),
            failures: build.counters("failures_total", "Requests that were refused or failed, by code.", &["code"]),
            border_bytes: build.counters("border_bytes_total", "Body bytes sent from one region to another.", BORDER),
            geoip_lookups: build.counters("geoip_lookups_total", "GeoIP lookups, by result.", &["result"]),
            directory_lookups: build.counters("directory_lookups_total", "Directory lookups, by result.", &["result"]),
            tokens: build.counters("tokens_total", "Tokens in client requests, by result of their verification.", &["result"]),
            upstream_requests: build.counters(
                "upstream_requests_total",
                "Attempts at upstreams, by result.",
                &["service", "upstream", "result"],
            ),
            connections: build.gauges("connections", "Open connections.", &["listener"]),
            connections_refused: build.counters(
                "connections_refused_total",
                "Connections closed without being served, by reason.",
                &["reason"],
            ),
            region_health: build.gauges("region_health", "1 for the current state of the region.", &["region", "state"]),
            region_changes: build.counters(
                "region_changes_total",
                "Changes of a region's state, by the new state.",
                &["region", "state"],
            ),
            service_up: build.gauges(
                "service_up",
                "1 if an upstream of the service is up in the region.",
                &["region", "service"],
            ),
            region_round_trip: build.measures(
                "region_round_trip_seconds",
                "Smoothed round-trip time to the region.",
                &["region"],
            ),
            upstream_up: build.gauges("upstream_up", "1 if the upstream is healthy.", &["service", "upstream"]),
            upstream_ejected: build.gauges(
                "upstream_ejected",
                "1 if the upstream is ejected after consecutive failures.",
                &["service", "upstream"],
            ),
            geoip_age: build.measures("geoip_database_age_seconds", "Time since the GeoIP database was built.", &[]),
            directory_users: build.gauge("directory_users", "Users in the directory."),
            ledger_lines: build.counter("ledger_lines_total", "Lines written to the ledger."),
            ledger_failures: build.counter("ledger_failures_total", "Ledger lines that were not written."),
            log_lines_dropped: build.counter(
                "access_log_dropped_lines_total",
                "Lines of the access log that were dropped because the output was too slow.",
            ),
            reloads: build.counters("reloads_total", "Reloads of the configuration and its files, by result.", &["result"]),
            rates_learned: build
                .counter("rate_limit_learned_total", "Requests that other processes counted towards global rate limits."),
            ready: build.gauge("ready", "1 while this process accepts requests."),
            overload: OverloadMetrics::new(&build),
            registry,
        }
    }

    /// Encodes all metrics in the Prometheus text format, version 0.0.4.
    pub fn encode(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// The cells of one worker.
    pub fn worker(&self) -> WorkerMetrics {
        WorkerMetrics {
            requests: self.requests.local().into(),
            durations: self.durations.local().into(),
            refusals: self.refusals.local().into(),
            reported: self.reported.local().into(),
            failures: self.failures.local().into(),
            border_bytes: self.border_bytes.local().into(),
            geoip_lookups: self.geoip_lookups.local().into(),
            directory_lookups: self.directory_lookups.local().into(),
            tokens: self.tokens.local().into(),
            upstream_requests: self.upstream_requests.local().into(),
            connections_refused: self.connections_refused.local().into(),
            log_lines_dropped: self.log_lines_dropped.clone(),
            rates_learned: self.rates_learned.clone(),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The metrics of one worker thread.
pub struct WorkerMetrics {
    requests: RefCell<LocalIntCounterVec>,
    durations: RefCell<LocalHistogramVec>,
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

impl WorkerMetrics {
    pub fn request(&self, route: &str, home: &str, served_by: &str, verdict: &str, took: Duration) {
        self.requests.borrow_mut().with_label_values(&[route, home, served_by, verdict]).inc();
        self.durations.borrow_mut().with_label_values(&[route, served_by]).observe(took.as_secs_f64());
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

    pub fn upstream_request(&self, service: &str, upstream: &str, result: &str) {
        self.upstream_requests.borrow_mut().with_label_values(&[service, upstream, result]).inc();
    }

    /// Adds this worker's counts to the totals.
    pub fn flush(&self) {
        for counters in [
            &self.requests,
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
        self.durations.borrow().flush();
    }
}
