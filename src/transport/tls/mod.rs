//! TLS: certificates by SNI for clients, mutual TLS for peers, whose certificate proves their region.

mod challenges;
mod clients;
mod peers;
mod upstreams;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub use challenges::{ACME_PATH, ACME_TLS, AcmeFiles, ChallengeKind, Challenges, OpenChallenges};
pub use clients::{ClientAuthority, ClientTls, ClientTlsFiles, Site};
pub use peers::{PeerFiles, PeerTls, REGION_URI, region_of};
pub use upstreams::UpstreamFiles;

/// A certificate chain and its private key, as PEM files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason}", file.display())]
pub struct TlsError {
    pub file: PathBuf,
    reason: String,
}

fn unusable<T>(file: &Path, reason: impl fmt::Display) -> Result<T, TlsError> {
    Err(TlsError { file: file.into(), reason: reason.to_string() })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = match CertificateDer::pem_file_iter(file) {
        Ok(certificates) => certificates.collect(),
        Err(error) if !file.exists() => {
            return unusable(
                file,
                format!("cannot read the certificate: {error}; for tests, `domicile certificates` makes some"),
            );
        }
        Err(error) => return unusable(file, format!("cannot read the certificate: {error}")),
    };
    match certificates {
        Ok(certificates) if certificates.is_empty() => unusable(file, "contains no certificate; add a `BEGIN CERTIFICATE` block"),
        Ok(certificates) => Ok(certificates),
        Err(error) => unusable(file, format!("is not a PEM file of certificates: {error}")),
    }
}

/// The trusted authorities in a file.
fn roots_of(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(file)? {
        if let Err(error) = roots.add(certificate) {
            return unusable(file, format!("is not a usable CA certificate: {error}"));
        }
    }
    Ok(roots)
}

impl CertificateFiles {
    fn load(&self) -> Result<CertifiedKey, TlsError> {
        let chain = read_certificates(&self.certificate)?;
        let key = match PrivateKeyDer::from_pem_file(&self.key) {
            Ok(key) => key,
            Err(error) => return unusable(&self.key, format!("cannot read the private key: {error}")),
        };
        CertifiedKey::from_der(chain, key, &provider()).or_else(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                unusable(&self.key, format!("does not match the certificate `{}`", self.certificate.display()))
            }
            // The error has no variant of its own for this.
            error if format!("{error:?}").contains("UnsupportedCertVersion") => unusable(
                &self.certificate,
                "is a certificate of X.509 version 1, which names no host; make one of version 3, with a `subjectAltName`",
            ),
            error => unusable(&self.certificate, error),
        })
    }
}

/// The time in which a certificate is valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    pub from: SystemTime,
    pub until: SystemTime,
}

/// The validity of the first certificate of a PEM file; `None` if the file cannot be read.
pub fn validity_of(file: &Path) -> Option<Validity> {
    let certificate = CertificateDer::pem_file_iter(file).ok()?.next()?.ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).ok()?;
    let time = |time: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    };
    let validity = parsed.validity();
    Some(Validity { from: time(validity.not_before), until: time(validity.not_after) })
}
