//! Fuzz tests: arbitrary input against checks that must hold for every input, among them comparisons with independent parsers.
//!
//! Each test run checks the corpus (`corpus/`, one input per line with Rust's escapes), all past findings (`found.txt`, against
//! every target), and thousands of random mutations from a fixed seed. `tests/fuzz/guide TARGET SECONDS` continues the
//! search, guided by coverage (libFuzzer), and adds to the corpus.

mod targets;

use targets::Target;

/// The number of random mutations per target.
const MUTATIONS: usize = 4_000;

/// Inputs that earlier searches found to break a check.
const FOUND: usize = 8;

/// Checks a target. The corpus has at least `recorded` inputs, so that none is lost unnoticed.
fn holds(target: &Target, corpus: &str, recorded: usize) {
    let corpus: Vec<_> = corpus.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(unescaped).collect();
    assert!(corpus.len() >= recorded, "{}: the corpus has {} inputs, {recorded} are recorded", target.name, corpus.len());
    let found = include_str!("found.txt").lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let found: Vec<_> = found.map(unescaped).collect();
    assert!(found.len() >= FOUND, "{} of {FOUND} findings are left", found.len());
    let seeds: Vec<_> = (target.seeds)().into_iter().chain(corpus).collect();
    let mut random = fastrand::Rng::with_seed(7);
    let mutated = std::iter::repeat_with(|| mutated(&mut random, &seeds, target.words)).take(MUTATIONS);
    for input in found.into_iter().chain(seeds.iter().cloned()).chain(mutated) {
        if std::panic::catch_unwind(|| (target.check)(&input)).is_err() {
            panic!("{}: the check fails for {}", target.name, input.escape_ascii());
        }
    }
}

#[test]
fn requests_that_pass_are_read_alike_by_everyone() {
    holds(&targets::REQUESTS, include_str!("corpus/requests.txt"), 648);
}

#[test]
fn answers_that_pass_are_read_alike_in_any_pieces() {
    holds(&targets::ANSWERS, include_str!("corpus/answers.txt"), 651);
}

#[test]
fn nothing_forged_is_left_in_any_spelling() {
    holds(&targets::HEADERS, include_str!("corpus/headers.txt"), 2029);
}

#[test]
fn a_path_has_one_form_and_one_meaning() {
    holds(&targets::PATHS, include_str!("corpus/paths.txt"), 391);
}

#[test]
fn a_header_of_the_proxy_protocol_is_read_exactly_or_refused() {
    holds(&targets::PROXY_PROTOCOL, include_str!("corpus/proxy_protocol.txt"), 193);
}

#[test]
fn a_configuration_is_sound_or_its_mistakes_have_places() {
    holds(&targets::CONFIGURATION, include_str!("corpus/configuration.txt"), 2076);
}

#[test]
fn every_target_is_named_once() {
    let mut names = targets::ALL.map(|target| target.name);
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]) && targets::ALL.iter().all(|target| target.most > 0));
}

fn unescaped(line: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = line.bytes();
    while let Some(byte) = bytes.next() {
        let escaped = if byte == b'\\' { bytes.next() } else { None };
        out.push(match escaped {
            None => byte,
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'x') => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            Some(other) => other,
        });
    }
    out
}

/// Applies one to six mutations. Each sets a byte, flips a bit, removes a range, repeats a range, inserts a word, or replaces the
/// tail by the tail of another input.
fn mutated(random: &mut fastrand::Rng, seeds: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
    let mut input = seeds[random.usize(..seeds.len())].clone();
    for _ in 0..random.usize(1..=6) {
        let at = random.usize(..=input.len());
        let end = (at + random.usize(..12)).min(input.len());
        match random.u8(..6) {
            0 if at < input.len() => input[at] = random.u8(..),
            1 if at < input.len() => input[at] ^= 1 << random.u8(..8),
            2 => drop(input.drain(at..end)),
            3 => {
                let range = input[at..end].to_vec();
                input.splice(at..at, range);
            }
            4 => drop(input.splice(at..at, words[random.usize(..words.len())].iter().copied())),
            _ => {
                let other = &seeds[random.usize(..seeds.len())];
                input.truncate(at);
                input.extend_from_slice(&other[random.usize(..=other.len())..]);
            }
        }
    }
    input
}
