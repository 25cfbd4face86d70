//! Configurations: sound or refused, with a place for every mistake, and in good time.

use std::time::{Duration, Instant};

use domicile::config;
use domicile::model::day::Day;
use domicile::model::region::Registry;

use super::Target;

pub const CONFIGURATION: Target = Target { name: "configuration", words: WORDS, seeds, check, most: 8192 };

const WORDS: &[&[u8]] = &[
    b"\n",
    b"  ",
    b"- ",
    b": ",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"'",
    b"#",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!binary ",
    b"null",
    b"~",
    b"regions:",
    b"routes:",
    b"eu-west",
    b"{user}",
    b"**",
    b"999999999999",
    b"-1",
    b"10.0.0.0/8",
    b"\t",
    b"\xf0\x9f\x98\x80",
    b"? ",
    b"|\n",
    b">\n",
    b"---\n",
    b"%YAML 1.2\n",
];

fn seeds() -> Vec<Vec<u8>> {
    let seeds = [
        include_str!("../../../config/every-option.yaml"),
        include_str!("../../../config/three-regions.yaml"),
        include_str!("../../../config/minimal.yaml"),
    ];
    seeds.map(|seed| seed.as_bytes().to_vec()).into()
}

fn check(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("domicile.yaml");
    let today = Day::parse("2026-06-01").unwrap();
    std::fs::write(&file, bytes).unwrap();
    let started = Instant::now();
    if let Err(problems) = config::load(&file, Some("eu-west"), &mut Registry::default(), today) {
        assert!(!problems.is_empty());
        for problem in &problems {
            let text = problem.to_string();
            assert!(text.contains("domicile.yaml"), "{text}");
            assert!(text.len() < 5000, "{text}");
        }
    }
    assert!(started.elapsed() < Duration::from_secs(20), "a file of {} bytes", bytes.len());
}
