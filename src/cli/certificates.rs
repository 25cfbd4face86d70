//! `domicile certificates`: creates test certificates, with which the regions authenticate to each other.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::demo::certificates::Authority;

use super::Outcome;

#[derive(Args)]
pub(super) struct Options {
    /// The output directory; existing files with the same names are replaced.
    #[arg(long, default_value = "certs")]
    out: PathBuf,
    /// The host names in `site.pem`, the certificate for clients.
    #[arg(long, default_values_t = ["localhost".to_owned(), "127.0.0.1".to_owned()])]
    host: Vec<String>,
    /// The names of the regions; each region gets one certificate.
    #[arg(required = true)]
    regions: Vec<String>,
}

pub(super) fn run(options: &Options) -> Outcome {
    let is_plain = |name: &String| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if let Some(name) = options.regions.iter().find(|name| !is_plain(name)) {
        return Err(format!("`{name}` is not a valid region name; use lower-case letters, digits and `-`"));
    }
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(&options.out)?;
        // A random name, so that software that trusts two of these authorities can tell them apart.
        let authority = Authority::new(&format!("Domicile trial authority {:08x}", fastrand::u32(..)))?;
        authority.write(&options.out.join("peers-ca.pem"))?;
        for region in &options.regions {
            authority.write_region(&options.out, region)?;
        }
        let hosts: Vec<&str> = options.host.iter().map(String::as_str).collect();
        authority.write_site(&options.out, "site", &hosts)
    };
    write().map_err(|error| format!("`{}`: {error}", options.out.display()))?;
    println!(
        "wrote peers-ca.pem, site.pem and a certificate for each of {} to {}",
        options.regions.join(", "),
        options.out.display()
    );
    println!("the authority's key was not saved: to add a region, run this again with all regions");
    Ok(ExitCode::SUCCESS)
}
