//! How much of a request was sent when there is no response to it.

/// The part of a request that was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    Nothing,
    /// The server received the request and responded that it did not process it.
    Unprocessed,
    /// The server closed a connection that had been used before, instead of responding.
    Stale,
    Partly,
}
