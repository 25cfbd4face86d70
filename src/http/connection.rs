//! State that a client's connection and the requests on it share, in any version of HTTP.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

/// The shared state of one connection.
#[derive(Default)]
pub struct ConnectionState {
    in_flight: Cell<usize>,
    finished: Cell<u64>,
    has_request: Cell<bool>,
    /// Notified when the last request in flight has ended.
    pub idle: Notify,
    /// Notified when a request begins.
    pub request: Notify,
}

impl ConnectionState {
    /// Requests in flight. While there are any, a silent client waits for a response and is not idle.
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Whether a request has been served or is in flight.
    pub fn has_request(&self) -> bool {
        self.has_request.get()
    }

    /// Number of requests served or in flight.
    pub fn requests(&self) -> u64 {
        self.finished.get() + self.in_flight.get() as u64
    }
}

/// Counts a request as in flight until it is dropped.
pub struct ExchangeInFlight(Rc<ConnectionState>);

impl ExchangeInFlight {
    pub fn count(connection_state: &Rc<ConnectionState>) -> Self {
        connection_state.in_flight.set(connection_state.in_flight.get() + 1);
        connection_state.has_request.set(true);
        connection_state.request.notify_waiters();
        Self(Rc::clone(connection_state))
    }
}

impl Drop for ExchangeInFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        self.0.finished.set(self.0.finished.get() + 1);
        if self.0.in_flight.get() == 0 {
            self.0.idle.notify_waiters();
        }
    }
}
