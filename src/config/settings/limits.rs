//! The `limits` and `overload` sections: the resources that one request, one connection and the process may use.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::proxy::Limits;
use crate::proxy::admission::overload::{Settings, Thresholds};

use super::super::reader::{Field, Section};

pub(super) fn read_limits(field: &Field<'_>) -> Option<Limits> {
    let section = field.section()?;
    let standard = Limits::default();
    let limits = Values(&section);
    let time = |key, standard| limits.time(key, standard);
    let size = |key, standard| limits.size(key, standard);
    // Read all limits before the first `?`, so that every mistake is reported.
    // Many clients send heads of several KiB, so a smaller limit is probably a mistake.
    let header_bytes =
        limits.size_within("header_bytes", standard.header_bytes, 8 << 10..=1 << 20, "write a size from 8KiB to 1MiB");
    let headers = limits.count("headers", standard.headers, 1000);
    let target_bytes = size("target_bytes", standard.target_bytes as u64);
    let body = section.optional("body").map_or(Some(standard.body), |field| field.size_limit());
    let header_timeout = time("header_timeout", standard.header_timeout);
    let keep_alive = time("keep_alive", standard.keep_alive);
    let connect_timeout = time("connect_timeout", standard.connect_timeout);
    let response_timeout = time("response_timeout", standard.response_timeout);
    let idle_timeout = time("idle_timeout", standard.idle_timeout);
    let request_timeout = time("request_timeout", standard.request_timeout);
    let tunnel_idle = time("tunnel_idle", standard.tunnel_idle);
    let body_rate = size("body_rate", standard.body_rate);
    let body_rate_grace = time("body_rate_grace", standard.body_rate_grace);
    let buffer = 64 << 10..=1 << 30;
    let connection_buffer =
        limits.size_within("connection_buffer", standard.connection_buffer, buffer, "write a size from 64KiB to 1GiB");
    let body_buffers = size("body_buffers", standard.body_buffers as u64);
    let drain = section.optional("drain").map_or(Some(standard.drain), |field| field.duration());
    let counts = limits.counts(&standard);
    section.finish();
    Some(Limits {
        header_bytes: header_bytes?,
        headers: headers?,
        target_bytes: target_bytes? as usize,
        body: body?,
        header_timeout: header_timeout?,
        keep_alive: keep_alive?,
        connect_timeout: connect_timeout?,
        response_timeout: response_timeout?,
        idle_timeout: idle_timeout?,
        request_timeout: request_timeout?,
        tunnel_idle: tunnel_idle?,
        body_rate: body_rate?,
        body_rate_grace: body_rate_grace?,
        connection_buffer: connection_buffer?,
        body_buffers: body_buffers? as usize,
        drain: drain?,
        ..counts?
    })
}

/// Less than a process needs with a GeoIP database and a few clients. An idle one has about 20 MiB.
const MIN_MEMORY: u64 = 64 << 20;

/// Reads `{ memory: { limit: 512MiB, shed: 75%, stop: 85% }, descriptors: { … }, event_loop: { shed: 250ms, stop: 2s } }`.
pub(super) fn read_overload(field: &Field<'_>) -> Option<Settings> {
    let section = field.section()?;
    let standard = Settings::default();
    let memory = section.optional("memory").map_or(Some((None, standard.memory)), |field| {
        let section = field.section()?;
        let limit = section.optional("limit").map(|field| match field.bytes()? {
            bytes if bytes < MIN_MEMORY => {
                field.report("the process needs more memory; write at least `64MiB`, or remove `limit`")
            }
            bytes => Some(bytes),
        });
        let thresholds = read_thresholds(&field, section, standard.memory, &share);
        Some((limit.map_or(Some(None), |limit| limit.map(Some))?, thresholds?))
    });
    let thresholds = |key, standard, read: &dyn Fn(&Field<'_>) -> Option<f64>| {
        section.optional(key).map_or(Some(standard), |field| read_thresholds(&field, field.section()?, standard, read))
    };
    let descriptors = thresholds("descriptors", standard.descriptors, &share);
    let lag = thresholds("event_loop", standard.lag, &|field| Some(field.positive_duration()?.as_secs_f64()));
    section.finish();
    let (memory_limit, memory) = memory?;
    Some(Settings { memory_limit, memory, descriptors: descriptors?, lag: lag? })
}

fn share(field: &Field<'_>) -> Option<f64> {
    Some(f64::from(field.percent()?) / 100.0)
}

fn read_thresholds(
    field: &Field<'_>,
    section: Section<'_>,
    standard: Thresholds,
    read: &dyn Fn(&Field<'_>) -> Option<f64>,
) -> Option<Thresholds> {
    let value = |key, standard| section.optional(key).map_or(Some(standard), |field| read(&field));
    let (shed, stop) = (value("shed", standard.shed), value("stop", standard.stop));
    section.finish();
    let thresholds = Thresholds { shed: shed?, stop: stop? };
    if thresholds.shed < thresholds.stop {
        return Some(thresholds);
    }
    field.report("`shed` must be less than `stop`, because requests are refused by priority between the two")
}

/// Reads limits, with their defaults.
struct Values<'s, 'f>(&'s Section<'f>);

impl Values<'_, '_> {
    /// The limits that are numbers; the others have their defaults.
    fn counts(&self, standard: &Limits) -> Option<Limits> {
        let connections = self.count("connections", standard.connections, 1_000_000);
        let connections_per_address = self.count("connections_per_address", standard.connections_per_address, 1_000_000);
        let streams = self.count("streams", standard.streams, 100_000);
        let requests_per_connection = self.count("requests_per_connection", standard.requests_per_connection, 1_000_000_000);
        let requests = self.count("requests", standard.requests, 10_000_000);
        let handshakes = self.count("handshakes", standard.handshakes, 1_000_000);
        let compressions = self.count("compressions", standard.compressions, 1_000_000);
        let resets = self.count("resets", standard.resets, 100_000);
        let control_frames = self.count("control_frames", standard.control_frames, 1_000_000);
        let attempts = self.count("attempts", standard.attempts, 10);
        let peer_connections = self.count("peer_connections", standard.peer_connections, 64);
        let idle_upstream_connections = self.count("idle_upstream_connections", standard.idle_upstream_connections, 100_000);
        Some(Limits {
            connections: connections?,
            connections_per_address: connections_per_address?,
            streams: streams?,
            requests_per_connection: requests_per_connection?,
            requests: requests?,
            handshakes: handshakes?,
            compressions: compressions?,
            resets: resets?,
            control_frames: control_frames?,
            attempts: attempts?,
            peer_connections: peer_connections?,
            idle_upstream_connections: idle_upstream_connections?,
            ..*standard
        })
    }

    fn time(&self, key: &'static str, standard: Duration) -> Option<Duration> {
        self.0.optional(key).map_or(Some(standard), |field| field.positive_duration())
    }

    fn size(&self, key: &'static str, standard: u64) -> Option<u64> {
        self.0.optional(key).map_or(Some(standard), |field| field.bytes())
    }

    /// `advice` is the message about a size that is not within `range`.
    fn size_within(&self, key: &'static str, standard: usize, range: RangeInclusive<u64>, advice: &str) -> Option<usize> {
        self.0.optional(key).map_or(Some(standard), |field| {
            let bytes = field.bytes()?;
            if range.contains(&bytes) { Some(bytes as usize) } else { field.report(advice) }
        })
    }

    fn count(&self, key: &'static str, standard: usize, most: u64) -> Option<usize> {
        self.0.optional(key).map_or(Some(standard), |field| field.number(1, most).map(|number| number as usize))
    }
}
