//! The fuzz targets. Each has a check that must hold for every input.

use std::cell::Cell;
use std::sync::Once;

mod configuration;
mod framing;
mod headers;
mod paths;
mod proxy_protocol;

pub use configuration::CONFIGURATION;
pub use framing::{ANSWERS, REQUESTS};
pub use headers::HEADERS;
pub use paths::PATHS;
pub use proxy_protocol::PROXY_PROTOCOL;

/// A check, and the material for its inputs.
pub struct Target {
    pub name: &'static str,
    /// Tokens of the format, which mutations insert.
    pub words: &'static [&'static [u8]],
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Panics if the input violates what the target promises.
    pub check: fn(&[u8]),
    /// The maximum length of an input in a guided search, in bytes.
    pub most: usize,
}

pub const ALL: [Target; 6] = [REQUESTS, ANSWERS, HEADERS, PATHS, PROXY_PROTOCOL, CONFIGURATION];

thread_local! {
    static IS_IN_INDEPENDENT_PARSER: Cell<bool> = const { Cell::new(false) };
}

/// Runs an independent parser. Returns `None` if it panics, because bugs of that parser are not findings, and does not print the
/// panic.
fn catch_panic<T>(read: impl FnOnce() -> T) -> Option<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_IN_INDEPENDENT_PARSER.get() {
                print(panic);
            }
        }));
    });
    IS_IN_INDEPENDENT_PARSER.set(true);
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    IS_IN_INDEPENDENT_PARSER.set(false);
    read.ok()
}

/// Polls a future that is ready at the first poll.
fn poll_once<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match work.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => panic!("the future is pending"),
    }
}
