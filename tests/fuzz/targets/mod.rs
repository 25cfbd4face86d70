//! What is held against inputs that nobody thought of: a check that must hold for all of them.

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

/// A check, and what inputs to it are made of.
pub struct Target {
    pub name: &'static str,
    /// What sets the format's pieces apart: put in here and there.
    pub words: &'static [&'static [u8]],
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Panics if the promise is broken.
    pub check: fn(&[u8]),
    /// The most bytes of an input that is worth its time.
    pub most: usize,
}

pub const ALL: [Target; 6] = [REQUESTS, ANSWERS, HEADERS, PATHS, PROXY_PROTOCOL, CONFIGURATION];

thread_local! {
    static IS_FAULT_OF_READER: Cell<bool> = const { Cell::new(false) };
}

/// What a second reader makes of something; `None` where it fails by a fault of its own, which is neither told nor counts.
fn in_its_reading<T>(read: impl FnOnce() -> T) -> Option<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_FAULT_OF_READER.get() {
                tell(panic);
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
        std::task::Poll::Pending => panic!("it waits for something"),
    }
}
