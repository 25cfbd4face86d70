//! The limits on one request, one connection and one process.

use std::time::Duration;

use crate::http::http1::HeadLimits;
use crate::http::window::Windows;

/// The limits on one request, one connection and one process.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limits {
    /// Bytes of a request head.
    pub header_bytes: usize,
    /// Header lines of a request.
    pub headers: usize,
    pub target_bytes: usize,
    /// Bytes of a request body.
    pub body: u64,
    /// Client connections in total.
    pub connections: usize,
    /// Client connections from one IPv4 address or IPv6 /64.
    pub connections_per_address: usize,
    /// From the first byte of a request head to its last; also for the TLS handshake.
    pub header_timeout: Duration,
    /// Between a response and the next request on the same connection.
    pub keep_alive: Duration,
    pub connect_timeout: Duration,
    /// From the end of a request to the head of its response.
    pub response_timeout: Duration,
    /// Between two frames of a body, and for a client that reads nothing of a response.
    pub idle_timeout: Duration,
    /// From the head of a request without a body to the head of its response, over all attempts.
    pub request_timeout: Duration,
    /// Between two frames of a tunnel, a gRPC call or an event stream.
    pub tunnel_idle: Duration,
    /// Minimum bytes per second of a body in every interval, less the grace period; 0 disables it.
    pub body_rate: u64,
    pub body_rate_grace: Duration,
    /// Bytes of bodies in flight on one client connection, in each direction, beyond one narrow window per request.
    pub connection_buffer: usize,
    /// The same for all connections together.
    pub body_buffers: usize,
    /// Concurrent streams on one HTTP/2 client connection.
    pub streams: usize,
    /// Requests on one client connection; then it is closed.
    pub requests_per_connection: usize,
    /// Requests in flight in total, until their responses or tunnels end; more get 503.
    pub requests: usize,
    /// Responses that are compressed at the same time, with at most 2 MiB each; more are sent as they are.
    pub compressions: usize,
    /// TLS handshakes of clients in progress in total, and as many connections that have not proven a peer's region yet; more
    /// connections are closed.
    pub handshakes: usize,
    /// Rapid resets on one HTTP/2 client connection (CVE-2023-44487); more cause GOAWAY.
    pub resets: usize,
    /// Frames per second on one HTTP/2 client connection other than headers, non-empty DATA and WINDOW_UPDATE.
    pub control_frames: usize,
    /// How long requests in flight may take to finish at shutdown.
    pub drain: Duration,
    /// Attempts per request, including the first.
    pub attempts: usize,
    /// HTTP/2 connections to each peer, per worker and per window size.
    pub peer_connections: usize,
    /// Idle HTTP/1 connections to each upstream, per worker.
    pub idle_upstream_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Between the defaults of nginx (4 x 8 KiB), Envoy (60 KiB, 100 headers) and HAProxy (16 KiB, 101 headers).
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
            // Clients with bad connectivity still reach this rate. nginx, HAProxy and Envoy have no minimum rate by default.
            body_rate: 256,
            body_rate_grace: Duration::from_secs(10),
            // A window of 8 MiB for a body over a distance: 34 MB/s at a round-trip time of 164 ms, in which two thirds of a window
            // move.
            connection_buffer: 16 << 20,
            body_buffers: 256 << 20,
            streams: 100,
            requests_per_connection: 10_000,
            requests: 10_000,
            compressions: 250,
            handshakes: 1_000,
            resets: 50,
            // gRPC clients send tens of PING frames per second to measure bandwidth; floods send a hundred thousand.
            control_frames: 1_000,
            drain: Duration::from_secs(30),
            attempts: 2,
            peer_connections: 2,
            // As many as there may be concurrent requests to one upstream on one worker without a new connection for each.
            idle_upstream_connections: 512,
        }
    }
}

impl Limits {
    /// The flow-control windows that bodies may have.
    pub fn windows(&self) -> Windows {
        Windows::of(self.connection_buffer)
    }

    pub const fn head(&self) -> HeadLimits {
        HeadLimits {
            bytes: self.header_bytes,
            fields: self.headers,
            target_bytes: self.target_bytes,
            timeout: self.header_timeout,
            keep_alive: self.keep_alive,
        }
    }
}
