//! Bytes that nobody thought of: sound and hostile inputs, bent at random, against properties that must hold for all, and
//! against a second reader.
//!
//! Every run of the tests tries some thousands, the same each time. `FUZZ_SECONDS=600 cargo test --release --test fuzz` goes on
//! for that long with each target, from a seed that it prints; a finding names the input, which then belongs into
//! `tests/fuzz/found.txt`, a line each, in the escapes of Rust: those are tried first, for ever.

mod configuration;
mod framing;
mod headers;
mod paths;
mod proxy_protocol;

use std::time::{Duration, Instant};

/// How many inputs a short run tries.
const SHORT: usize = 4_000;

/// Bends inputs until the time or the number is up.
pub fn fuzz(target: &str, seeds: &[Vec<u8>], dictionary: &[&[u8]], check: impl Fn(&[u8])) {
    for found in include_str!("found.txt").lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        check(&unescaped(found));
    }
    seeds.iter().for_each(|seed| check(seed));
    let limit = std::env::var("FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let seed = if limit.is_some() { fastrand::u64(..) } else { 7 };
    let (mut random, started, mut tried) = (fastrand::Rng::with_seed(seed), Instant::now(), 0_u64);
    while limit.map_or(tried < SHORT as u64, |limit| started.elapsed() < limit) {
        let input = bent(&mut random, seeds, dictionary);
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&input)));
        if checked.is_err() {
            panic!("{target}: found with seed {seed}: {}", input.escape_ascii());
        }
        tried += 1;
    }
    println!("{target}: {tried} inputs in {:?} from seed {seed}", started.elapsed());
}

fn unescaped(line: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = line.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match (byte, byte == b'\\') {
            (byte, false) => byte,
            (_, true) => match bytes.next() {
                Some(b'r') => b'\r',
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(b'x') => {
                    let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                Some(other) => other,
                None => b'\\',
            },
        });
    }
    out
}

/// One to six changes: a byte, a stretch less, a stretch twice, a word put in, another input's end.
fn bent(random: &mut fastrand::Rng, seeds: &[Vec<u8>], dictionary: &[&[u8]]) -> Vec<u8> {
    let mut input = seeds[random.usize(..seeds.len())].clone();
    for _ in 0..random.usize(1..=6) {
        let at = random.usize(..=input.len());
        let end = (at + random.usize(..12)).min(input.len());
        match random.u8(..6) {
            0 if at < input.len() => input[at] = random.u8(..),
            1 if at < input.len() => input[at] ^= 1 << random.u8(..8),
            2 => drop(input.drain(at..end)),
            3 => {
                let stretch = input[at..end].to_vec();
                input.splice(at..at, stretch);
            }
            4 => drop(input.splice(at..at, dictionary[random.usize(..dictionary.len())].iter().copied())),
            _ => {
                let other = &seeds[random.usize(..seeds.len())];
                input.truncate(at);
                input.extend_from_slice(&other[random.usize(..=other.len())..]);
            }
        }
    }
    input
}

/// Polls a future that never has to wait.
pub fn now<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match work.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => panic!("it waits for something"),
    }
}
