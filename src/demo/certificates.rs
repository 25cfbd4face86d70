//! Certificates made at start: an authority, one certificate a region, and one for clients.

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};

use crate::transport::tls::REGION_URI;

/// An authority that signs for as long as it lives in memory; its key is never written.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

fn failed(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("cannot make a certificate: {error}"))
}

impl Authority {
    pub fn new(name: &str) -> io::Result<Self> {
        let mut params = CertificateParams::new(vec![]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed)?;
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, key).map_err(failed)? })
    }

    /// Writes the authority's own certificate.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        std::fs::write(file, self.issuer.pem())
    }

    /// Writes `NAME.pem` and `NAME.key` for the proxy of a region.
    pub fn write_region(&self, folder: &Path, region: &str) -> io::Result<()> {
        let uri = format!("{REGION_URI}{region}").try_into().map_err(failed)?;
        self.write_leaf(folder, region, vec![SanType::URI(uri)])
    }

    /// Writes `NAME.pem` and `NAME.key` for a server of these host names and addresses.
    pub fn write_site(&self, folder: &Path, name: &str, hosts: &[&str]) -> io::Result<()> {
        let names = CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>()).map_err(failed)?;
        self.write_leaf(folder, name, names.subject_alt_names)
    }

    fn write_leaf(&self, folder: &Path, name: &str, names: Vec<SanType>) -> io::Result<()> {
        let mut params = CertificateParams::new(vec![]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem())?;
        write_secret(&folder.join(format!("{name}.key")), &key.serialize_pem())
    }
}

fn write_secret(file: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    let mut out = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    out.write_all(text.as_bytes())
}
