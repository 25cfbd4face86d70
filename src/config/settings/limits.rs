//! The `limits` section: the resources that one request, one connection and the process may use.

use std::time::Duration;

use crate::proxy::Limits;

use super::super::reader::Field;

pub(super) fn read_limits(field: &Field<'_>) -> Option<Limits> {
    let section = field.section()?;
    let standard = Limits::default();
    let time = |key, standard: Duration| section.optional(key).map_or(Some(standard), |field| field.positive_duration());
    let size = |key, standard: u64| section.optional(key).map_or(Some(standard), |field| field.bytes());
    let count = |key, standard: usize, most| {
        section.optional(key).map_or(Some(standard), |field| field.number(1, most).map(|number| number as usize))
    };
    // Read all limits before the first `?`, so that every mistake is reported.
    // hyper needs at least 8 KiB to parse a request head.
    let header_bytes = section.optional("header_bytes").map_or(Some(standard.header_bytes), |field| {
        let bytes = field.bytes()?;
        if (8 << 10..=1 << 20).contains(&bytes) { Some(bytes as usize) } else { field.report("write a size from 8KiB to 1MiB") }
    });
    let headers = count("headers", standard.headers, 1000);
    let target_bytes = size("target_bytes", standard.target_bytes as u64);
    let body = section.optional("body").map_or(Some(standard.body), |field| field.size_limit());
    let connections = count("connections", standard.connections, 1_000_000);
    let connections_per_address = count("connections_per_address", standard.connections_per_address, 1_000_000);
    let header_timeout = time("header_timeout", standard.header_timeout);
    let keep_alive = time("keep_alive", standard.keep_alive);
    let connect_timeout = time("connect_timeout", standard.connect_timeout);
    let response_timeout = time("response_timeout", standard.response_timeout);
    let idle_timeout = time("idle_timeout", standard.idle_timeout);
    let request_timeout = time("request_timeout", standard.request_timeout);
    let tunnel_idle = time("tunnel_idle", standard.tunnel_idle);
    let body_rate = size("body_rate", standard.body_rate);
    let body_rate_grace = time("body_rate_grace", standard.body_rate_grace);
    let connection_buffer = section.optional("connection_buffer").map_or(Some(standard.connection_buffer), |field| {
        let bytes = field.bytes()?;
        if (64 << 10..=1 << 30).contains(&bytes) { Some(bytes as usize) } else { field.report("write a size from 64KiB to 1GiB") }
    });
    let streams = count("streams", standard.streams, 100_000);
    let requests_per_connection = count("requests_per_connection", standard.requests_per_connection, 1_000_000_000);
    let requests = count("requests", standard.requests, 10_000_000);
    let handshakes = count("handshakes", standard.handshakes, 1_000_000);
    let resets = count("resets", standard.resets, 100_000);
    let control_frames = count("control_frames", standard.control_frames, 1_000_000);
    let drain = section.optional("drain").map_or(Some(standard.drain), |field| field.duration());
    let attempts = count("attempts", standard.attempts, 10);
    let peer_connections = count("peer_connections", standard.peer_connections, 64);
    section.finish();
    Some(Limits {
        header_bytes: header_bytes?,
        headers: headers?,
        target_bytes: target_bytes? as usize,
        body: body?,
        connections: connections?,
        connections_per_address: connections_per_address?,
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
        streams: streams?,
        requests_per_connection: requests_per_connection?,
        requests: requests?,
        handshakes: handshakes?,
        resets: resets?,
        control_frames: control_frames?,
        drain: drain?,
        attempts: attempts?,
        peer_connections: peer_connections?,
    })
}
