//! Generates certificates: a certificate authority, one certificate per region, and one for client listeners.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

use crate::transport::tls::REGION_URI;

/// How long the certificates are valid: they are for tests.
const LIFETIME: Duration = Duration::from_secs(365 * 86_400);

/// Clocks may differ.
const SKEW: Duration = Duration::from_secs(86_400);

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    serials: RefCell<HashMap<String, SerialNumber>>,
}

fn failed(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("cannot make a certificate: {error}"))
}

/// Parameters that are valid from now on.
fn params() -> io::Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![]).map_err(failed)?;
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - SKEW).into(), (now + LIFETIME).into());
    Ok(params)
}

impl Authority {
    pub fn new(name: &str) -> io::Result<Self> {
        let key = KeyPair::generate().map_err(failed)?;
        let params = Self::params(name)?;
        let certificate = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate, serials: RefCell::default() })
    }

    /// Opens an authority that [`Self::write`] and [`Self::write_key`] have written.
    pub fn open(certificate: &Path, key: &Path) -> io::Result<Self> {
        let (certificate, key) = (std::fs::read_to_string(certificate)?, std::fs::read_to_string(key)?);
        let key = KeyPair::from_pem(&key).map_err(failed)?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).map_err(failed)?;
        let parsed = pem.parse_x509().map_err(failed)?;
        let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let name = name.ok_or_else(|| failed("the authority has no name"))?;
        Ok(Self { issuer: Issuer::new(Self::params(name)?, key), certificate, serials: RefCell::default() })
    }

    fn params(name: &str) -> io::Result<CertificateParams> {
        let mut params = params()?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(params)
    }

    /// Writes the authority's key, with which further regions can be added.
    pub fn write_key(&self, file: &Path) -> io::Result<()> {
        write_secret(file, &self.issuer.key().serialize_pem())
    }

    /// Writes the authority's own certificate.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        std::fs::write(file, &self.certificate)
    }

    /// Writes `REGION.pem` and `REGION.key` for the proxy of a region.
    pub fn write_region(&self, folder: &Path, region: &str) -> io::Result<()> {
        let uri = format!("{REGION_URI}{region}").try_into().map_err(failed)?;
        self.write_leaf(folder, region, vec![SanType::URI(uri)])
    }

    /// Writes `NAME.pem` and `NAME.key` for a server of these host names and addresses.
    pub fn write_site(&self, folder: &Path, name: &str, hosts: &[&str]) -> io::Result<()> {
        let names = CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>()).map_err(failed)?;
        self.write_leaf(folder, name, names.subject_alt_names)
    }

    /// Writes a revocation list (CRL) with the latest certificate of each of these names.
    pub fn write_revoked(&self, file: &Path, names: &[&str]) -> io::Result<()> {
        let serials = self.serials.borrow();
        let revoked = names.iter().filter_map(|name| serials.get(*name)).map(|serial| RevokedCertParams {
            serial_number: serial.clone(),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2099, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        std::fs::write(file, list.signed_by(&self.issuer).map_err(failed)?.pem().map_err(failed)?)
    }

    fn write_leaf(&self, folder: &Path, name: &str, names: Vec<SanType>) -> io::Result<()> {
        let mut params = params()?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = names;
        let serial = SerialNumber::from(fastrand::u64(1..u64::MAX / 2));
        self.serials.borrow_mut().insert(name.to_owned(), serial.clone());
        params.serial_number = Some(serial);
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
