//! The hash chain of the ledger: each line begins with its place, which names the SHA-256 hash of the line before it.

use std::fmt::Write as _;

use aws_lc_rs::digest;

/// The SHA-256 hash of a line without its line feed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The predecessor of the first line of a ledger.
    pub const BEGINNING: Self = Self([0; 32]);

    pub fn of(line: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, line);
        Self(*digest.as_ref().first_chunk().expect("SHA-256 has 32 bytes"))
    }

    /// Reads 64 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        hex::decode_to_slice(text, &mut hash).ok()?;
        Some(Self(hash)).filter(|hash| hash.to_string() == text)
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&hex::encode(self.0))
    }
}

/// The end of a ledger as one process writes it.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// The start of the process, which tells its lines from those of others.
    pub epoch: String,
    /// The number of lines that this process has written.
    pub number: u64,
    /// The hash of the last line of the file, which another process may have written.
    pub head: Hash,
}

impl Chain {
    /// Gives each line of a text its place. Returns the lines, and the end of the ledger after them.
    ///
    /// Each line is a JSON object whose first key sorts after `chain`, so that the result is canonical (RFC 8785) if the line is.
    pub fn extend(&self, text: &str) -> (String, Self) {
        let mut next = self.clone();
        let mut out = String::with_capacity(text.len().saturating_mul(2));
        for line in text.lines() {
            let rest = line.strip_prefix('{').expect("a line is a JSON object");
            let start = out.len();
            next.number = next.number.saturating_add(1);
            let (epoch, number, previous) = (&next.epoch, next.number, next.head);
            let _ = write!(out, "{{\"chain\":{{\"epoch\":\"{epoch}\",\"number\":{number},\"previous\":\"{previous}\"}},{rest}");
            next.head = Hash::of(out.as_bytes().get(start..).unwrap_or_default());
            out.push('\n');
        }
        (out, next)
    }
}

/// The place of a line.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Place<'a> {
    pub epoch: &'a str,
    pub number: u64,
    pub previous: Hash,
}

/// The time as lines write it, in UTC.
pub(super) fn now() -> String {
    let now = jiff::Timestamp::now();
    format!("{now:.6}")
}

/// The place of a line; `None` if it does not begin with one.
pub(super) fn place_of(line: &str) -> Option<Place<'_>> {
    let rest = line.strip_prefix("{\"chain\":{\"epoch\":\"")?;
    let (epoch, rest) = rest.split_once("\",\"number\":")?;
    let (number, rest) = rest.split_once(",\"previous\":\"")?;
    let (previous, _) = rest.split_once("\"},")?;
    Some(Place { epoch, number: number.parse().ok()?, previous: Hash::parse(previous)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_names_the_hash_of_the_line_before() {
        let start = Chain { epoch: "2026-11-28T05:00:00.000000Z".into(), number: 0, head: Hash::BEGINNING };
        let (text, end) = start.extend("{\"kind\":\"a\"}\n{\"kind\":\"b\"}\n");
        let lines: Vec<_> = text.lines().collect();
        // Byte for byte, so that other programs can be tested against it. The hashes are those of sha256sum.
        let zeros = "0".repeat(64);
        assert_eq!(
            lines[0],
            format!(
                "{{\"chain\":{{\"epoch\":\"2026-11-28T05:00:00.000000Z\",\"number\":1,\"previous\":\"{zeros}\"}},\"kind\":\"a\"}}"
            )
        );
        let first = Place { epoch: "2026-11-28T05:00:00.000000Z", number: 1, previous: Hash::BEGINNING };
        assert_eq!(place_of(lines[0]), Some(first));
        let second = place_of(lines[1]).unwrap();
        assert_eq!((second.number, second.previous), (2, Hash::of(lines[0].as_bytes())));
        assert_eq!((end.number, end.head), (2, Hash::of(lines[1].as_bytes())));
        assert_eq!(
            Hash::of(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "FIPS 180-2"
        );
    }

    #[test]
    fn a_line_without_a_whole_place_has_none() {
        let (text, _) = Chain { epoch: "e".into(), number: 0, head: Hash::BEGINNING }.extend("{\"kind\":\"a\"}");
        let line = text.trim_end();
        assert!(place_of(line).is_some());
        for wrong in [
            "{\"kind\":\"a\"}",
            "",
            &line.replace("\"number\":1", "\"number\":x"),
            &line.replace("00000000", "0000000"),
            &line.replace("00000000", "AAAAAAAA"),
        ] {
            assert_eq!(place_of(wrong), None, "{wrong}");
        }
    }
}
