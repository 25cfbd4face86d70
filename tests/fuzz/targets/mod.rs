//! Fuzz targets: each has a check that must hold for every input.

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
    /// The maximum length of inputs in a guided search, in bytes.
    pub most: usize,
}

pub const ALL: [Target; 6] = [REQUESTS, ANSWERS, HEADERS, PATHS, PROXY_PROTOCOL, CONFIGURATION];

thread_local! {
    static IS_FAULT_OF_READER: Cell<bool> = const { Cell::new(false) };
}

/// Runs an independent parser. `None` if it panics, because its own bugs are not findings; such a panic is not printed.
fn in_its_reading<T>(read: impl FnOnce() -> T) -> Option<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_FAULT_OF_READER.get() {
                print(panic);
            }
        }));
    });
    IS_FAULT_OF_READER.set(true);
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    IS_FAULT_OF_READER.set(false);
    read.ok()
}

/// Polls a future that never has to wait.
fn now<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match work.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => panic!("the future is pending"),
    }
}
