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
    let (certificate, key) = (options.out.join("peers-ca.pem"), options.out.join("peers-ca.key"));
    let is_new = !key.exists();
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(&options.out)?;
        let authority = if is_new {
            // A random name, so that software that trusts two of these authorities can tell them apart.
            let authority = Authority::new(&format!("Domicile trial authority {:08x}", fastrand::u32(..)))?;
            authority.write(&certificate)?;
            authority.write_key(&key)?;
            authority
        } else {
            Authority::open(&certificate, &key)?
        };
        for region in &options.regions {
            authority.write_region(&options.out, region)?;
        }
        let hosts: Vec<&str> = options.host.iter().map(String::as_str).collect();
        authority.write_site(&options.out, "site", &hosts)
    };
    write().map_err(|error| format!("`{}`: {error}", options.out.display()))?;
    let authority = if is_new { "a new authority (peers-ca.pem)" } else { "the authority of peers-ca.key" };
    println!(
        "wrote site.pem and certificates for {} to {}, valid for a year and signed by {authority}",
        options.regions.join(", "),
        options.out.display()
    );
    println!("to add a region, run this again with its name; whoever has peers-ca.key can act as any region");
    Ok(ExitCode::SUCCESS)
}
