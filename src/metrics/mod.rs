//! Every metric, in one list.
//!
//! Promises: the naming convention of Prometheus, base units, bounded labels (routes, regions, classes and codes come from the
//! configuration or the code; no user, path or address). Each worker counts in its own cells, without a lock or a shared cache
//! line; the cells are added up at each scrape.

mod worker;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use worker::{RequestLabels, RequestMeasures, WorkerMetrics};

/// From 0.5 ms to 30 s, which covers local responses, round trips between continents and uploads.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// A metric, for the documentation.
pub struct Description {
    /// Without the prefix `domicile_`.
    pub name: &'static str,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// The type of each kind of metric.
macro_rules! kind {
    (counters) => {
        IntCounterVec
    };
    (counter) => {
        IntCounter
    };
    (gauges) => {
        IntGaugeVec
    };
    (gauge) => {
        IntGauge
    };
    (measures) => {
        GaugeVec
    };
    (seconds) => {
        HistogramVec
    };
}

macro_rules! metrics {
    ($($visibility:vis $field:ident: $kind:ident($name:literal, [$($label:literal),*]) $help:literal;)*) => {
        /// The registry and its metrics. The public metrics are updated directly, the private ones through [`WorkerMetrics`].
        pub struct Metrics {
            registry: Registry,
            $($visibility $field: kind!($kind),)*
        }

        impl Metrics {
            pub fn new() -> Self {
                let registry = Registry::new();
                let build = Builder(registry.clone());
                build.describe_process();
                Self { $($field: build.$kind($name, $help, &[$($label),*]),)* registry }
            }

            /// Every metric of Domicile itself.
            pub const LIST: &[Description] = &[$(Description { name: $name, labels: &[$($label),*], help: $help },)*];
        }
    };
}

metrics! {
    requests: counters("requests_total", ["route", "home", "served_by", "verdict", "status"])
        "Requests by route, home, serving region, verdict and class of the response's status.";
    durations: seconds("request_duration_seconds", ["route", "served_by"])
        "Time from the request head to the end of the response.";
    request_bytes: counters("request_body_bytes_total", ["route"])
        "Bytes of request bodies.";
    response_bytes: counters("response_body_bytes_total", ["route"])
        "Bytes of response bodies.";
    upstream_durations: seconds("upstream_response_seconds", ["service", "upstream"])
        "Time from the start of an attempt at an upstream to the head of its response.";
    refusals: counters("residency_refusals_total", ["class", "from", "to", "code"])
        "Requests and responses that residency rules refused.";
    reported: counters("residency_reported_total", ["class", "from", "to"])
        "Requests that only report-only mode allowed.";
    failures: counters("failures_total", ["code"])
        "Requests that were refused or failed, by code.";
    border_bytes: counters("border_bytes_total", ["class", "from", "to"])
        "Body bytes sent from one region to another.";
    geoip_lookups: counters("geoip_lookups_total", ["result"])
        "GeoIP lookups, by result.";
    directory_lookups: counters("directory_lookups_total", ["result"])
        "Directory lookups, by result.";
    tokens: counters("tokens_total", ["result"])
        "Tokens in client requests, by result of their verification.";
    upstream_requests: counters("upstream_requests_total", ["service", "upstream", "result"])
        "Attempts at upstreams, by result.";
    pub connections: gauges("connections", ["listener"])
        "Open connections.";
    pub connections_refused: counters("connections_refused_total", ["reason"])
        "Connections closed without being served, by reason.";
    pub region_health: gauges("region_health", ["region", "state"])
        "1 for the current state of the region.";
    pub region_changes: counters("region_changes_total", ["region", "state"])
        "Changes of a region's state, by the new state.";
    pub service_up: gauges("service_up", ["region", "service"])
        "1 if an upstream of the service is up in the region.";
    pub region_round_trip: measures("region_round_trip_seconds", ["region"])
        "Smoothed round-trip time to the region.";
    pub upstream_connections_opened: counters("upstream_connections_opened_total", ["service", "upstream"])
        "Connections that were opened to upstreams; all other requests reuse one.";
    pub upstream_up: gauges("upstream_up", ["service", "upstream"])
        "1 unless the upstream fails its health check.";
    pub upstream_draining: gauges("upstream_draining", ["service", "upstream"])
        "1 if an operator drains the upstream.";
    pub upstream_ejected: gauges("upstream_ejected", ["service", "upstream"])
        "1 if the upstream is ejected after consecutive failures.";
    pub geoip_age: measures("geoip_database_age_seconds", [])
        "Time since the GeoIP database was built.";
    pub geoip_expires: measures("geoip_database_expiry_timestamp_seconds", [])
        "When the GeoIP database reaches `geoip.max_age` and proves no jurisdiction any more.";
    pub directory_users: gauge("directory_users", [])
        "Users in the directory.";
    pub directory_changed: measures("directory_changed_timestamp_seconds", [])
        "When the file of the user table that is in use was last changed.";
    pub directory_stale: measures("directory_stale_timestamp_seconds", [])
        "When the user table will not have changed for `users.directory.stale_after`.";
    pub certificate_expires: measures("certificate_expiry_timestamp_seconds", ["file"])
        "When the certificate in this file expires.";
    pub transfer_expires: measures("transfer_expiry_timestamp_seconds", ["transfer"])
        "When this transfer of the policy ends.";
    pub policy: gauges("policy_info", ["region", "policy"])
        "The hash of the policy that a region serves, as its last probe reported it; the value is always 1.";
    pub policy_since: measures("policy_since_timestamp_seconds", ["region"])
        "Since when this process knows that the region serves its policy.";
    pub ledger_lines: counter("ledger_lines_total", [])
        "Lines written to the ledger.";
    pub ledger_failures: counter("ledger_failures_total", [])
        "Ledger lines that were not written.";
    log_lines_dropped: counter("access_log_dropped_lines_total", [])
        "Lines of the access log that were dropped because the output was too slow.";
    pub reloads: counters("reloads_total", ["result"])
        "Reloads of the configuration and its files, by result.";
    pub reload_ok: gauge("reload_last_successful", [])
        "1 if the last reload, or the start, was applied as a whole.";
    pub reloaded_at: measures("reload_success_timestamp_seconds", [])
        "When the configuration and its files were last loaded without an error.";
    pub rates_learned: counter("rate_limit_learned_total", [])
        "Requests that other processes counted towards global rate limits.";
    pub ready: gauge("ready", [])
        "1 while this process accepts requests.";
    pub overload_pressure: gauge("overload_pressure", [])
        "The requests that are refused: 0 none, 1 of low priority, 2 also of normal priority, 3 all, and new connections.";
    overload_usage: measures("overload_usage", ["resource"])
        "Usage of a resource: shares of memory and descriptors, seconds of event loop lag.";
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

    fn counter(&self, name: &str, help: &str, _: &[&str]) -> IntCounter {
        self.add(IntCounter::with_opts(opts(name, help)))
    }

    fn gauge(&self, name: &str, help: &str, _: &[&str]) -> IntGauge {
        self.add(IntGauge::with_opts(opts(name, help)))
    }

    /// Gauges whose values are not integers.
    fn measures(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(opts(name, help), labels))
    }

    /// A histogram of durations.
    fn seconds(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).namespace("domicile").buckets(SECONDS.into());
        self.add(HistogramVec::new(options, labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(opts(name, help), labels))
    }
}

impl Metrics {
    /// Sets the usage of resources: shares of memory and descriptors, and seconds of lag.
    pub fn set_usage(&self, memory: f64, descriptors: f64, lag: f64) {
        for (resource, value) in [("memory", memory), ("descriptors", descriptors), ("event_loop", lag)] {
            self.overload_usage.with_label_values(&[resource]).set(value);
        }
    }

    /// Encodes all metrics in the Prometheus text format, version 0.0.4.
    pub fn encode(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// The cells of one worker.
    pub fn worker(&self) -> WorkerMetrics {
        WorkerMetrics::of(self)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
