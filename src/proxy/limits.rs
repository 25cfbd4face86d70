//! The limits on one request, one connection and one process.

use std::time::Duration;

use crate::http::framing::RequestGateLimits;
use crate::http::window::{Buffers, Window};

/// The limits on one request, one connection and one process.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limits {
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// Fields of a request's head.
    pub headers: usize,
    pub target_bytes: usize,
    /// Bytes of a request's body.
    pub body: u64,
    /// Connections of clients in all, and from one address.
    pub connections: usize,
    pub connections_per_address: usize,
    /// From the first byte of a head to its last; the TLS handshake the same.
    pub header_timeout: Duration,
    /// Between an answer and the next request on the same connection.
    pub keep_alive: Duration,
    pub connect_timeout: Duration,
    /// From the end of a request to the head of its answer.
    pub response_timeout: Duration,
    /// Between two pieces of a body, and for a client that takes nothing of an answer.
    pub idle_timeout: Duration,
    /// From a request's head to the head of its answer.
    pub request_timeout: Duration,
    /// Between two pieces of what may be quiet for long: tunnels, gRPC, event streams.
    pub tunnel_idle: Duration,
    /// Bytes a second that a body must move at the least, once it has been waited for longer than the grace.
    pub body_rate: u64,
    pub body_rate_grace: Duration,
    /// Bytes of bodies that the requests on one connection of a client may have under way, each way, beyond what each may have.
    pub connection_buffer: usize,
    /// Requests at once on one HTTP/2 connection of a client.
    pub streams: usize,
    /// Requests on one connection of a client, one after the other; then it is to open another.
    pub requests_per_connection: usize,
    /// Requests under way in all; more are answered 503.
    pub requests: usize,
    /// TLS handshakes of clients under way in all; more are closed.
    pub handshakes: usize,
    /// Streams that an HTTP/2 client may reset before they were looked at; more end the connection.
    pub resets: usize,
    /// Frames a second that neither ask for, nor carry, nor make room for something, on one HTTP/2 connection of a client.
    pub control_frames: usize,
    /// How long requests in flight may take to finish at shutdown.
    pub drain: Duration,
    /// How often a request may be tried, the first included.
    pub attempts: usize,
    /// HTTP/2 connections to each peer, for each worker.
    pub peer_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Where nginx (4 x 8 KiB), Envoy (60 KiB, 100 fields) and HAProxy (16 KiB, 101 fields) meet.
            header_bytes: 32 << 10,
            headers: 100,
            target_bytes: 8 << 10,
            body: 10 << 20,
            connections: 10_000,
            connections_per_address: 1_000,
            header_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(60),
            tunnel_idle: Duration::from_secs(300),
            // A person on a bad line still reaches this rate. nginx, HAProxy and Envoy have no minimum rate by default.
            body_rate: 256,
            body_rate_grace: Duration::from_secs(10),
            // A megabyte for each of four bodies: over 160 ms, 6.5 MB/s each.
            connection_buffer: 4 << 20,
            streams: 100,
            requests_per_connection: 10_000,
            requests: 10_000,
            handshakes: 1_000,
            resets: 50,
            // Clients of gRPC measure the line with some tens of PING a second; floods have a hundred thousand.
            control_frames: 1_000,
            drain: Duration::from_secs(30),
            attempts: 2,
            peer_connections: 2,
        }
    }
}

impl Limits {
    /// The windows that bodies may have.
    pub fn windows(&self) -> [Window; 2] {
        [Buffers::wide(self.connection_buffer), Window::NARROW]
    }

    pub const fn head(&self) -> RequestGateLimits {
        RequestGateLimits {
            bytes: self.header_bytes,
            fields: self.headers,
            target_bytes: self.target_bytes,
            timeout: self.header_timeout,
            keep_alive: self.keep_alive,
            write_stall: self.idle_timeout,
        }
    }
}
