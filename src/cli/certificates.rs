//! `domicile certificates`: what several regions on one machine need to prove themselves to each other.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::demo::certificates::Authority;

use super::Outcome;

#[derive(Args)]
pub(super) struct Options {
    /// Where to write; existing files of the same names are replaced.
    #[arg(long, default_value = "certs")]
    out: PathBuf,
    /// The host names of the certificate for clients, `site.pem`.
    #[arg(long, default_values_t = ["localhost".to_owned(), "127.0.0.1".to_owned()])]
    host: Vec<String>,
    /// The regions that get a certificate each.
    #[arg(required = true)]
    regions: Vec<String>,
}

pub(super) fn run(options: &Options) -> Outcome {
    let is_plain = |name: &String| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if let Some(name) = options.regions.iter().find(|name| !is_plain(name)) {
        return Err(format!("`{name}` cannot name a region; use lower-case letters, digits and `-`"));
    }
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(&options.out)?;
        // Who trusts two of them tells them apart by name.
        let authority = Authority::new(&format!("Domicile trial authority {:08x}", fastrand::u32(..)))?;
        authority.write(&options.out.join("peers-ca.pem"))?;
        for region in &options.regions {
            authority.write_region(&options.out, region)?;
        }
        let hosts: Vec<&str> = options.host.iter().map(String::as_str).collect();
        authority.write_site(&options.out, "site", &hosts)
    };
    write().map_err(|error| format!("`{}`: {error}", options.out.display()))?;
    println!("wrote peers-ca.pem, site.pem and a pair for each of {} to {}", options.regions.join(", "), options.out.display());
    println!("the authority's key was not kept: run this again for all regions to add one");
    Ok(ExitCode::SUCCESS)
}
