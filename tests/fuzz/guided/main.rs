//! Fuzzes the target that the environment variable `TARGET` names. Without arguments for libFuzzer, the search ends only at a
//! finding.
#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

use std::sync::OnceLock;

use targets::Target;

fn target() -> &'static Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("TARGET").unwrap_or_default();
        let names = targets::ALL.map(|target| target.name).join(", ");
        let known = targets::ALL.into_iter().find(|target| target.name == name);
        known.unwrap_or_else(|| panic!("TARGET must be one of {names}"))
    })
}

/// If the environment variable `SEEDS` names a folder, writes the target's seeds to it and the words to `SEEDS.words`, and exits.
fn write_seeds() {
    let Ok(folder) = std::env::var("SEEDS") else { return };
    for (index, seed) in (target().seeds)().iter().enumerate() {
        std::fs::write(format!("{folder}/seed-{index}"), seed).expect("the folder exists");
    }
    let entry = |word: &[u8]| {
        let bytes = word.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
        format!("\"{bytes}\"\n")
    };
    let words: String = target().words.iter().map(|word| entry(word)).collect();
    std::fs::write(format!("{folder}.words"), words).expect("the folder exists");
    std::process::exit(0);
}

libfuzzer_sys::fuzz_target!(init: write_seeds(), |bytes: &[u8]| {
    let target = target();
    if bytes.len() <= target.most {
        (target.check)(bytes);
    }
});
