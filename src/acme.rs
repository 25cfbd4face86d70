//! Certificates from an ACME server (RFC 8555): fetched at the first start, renewed after two thirds of their lifetime.
//!
//! Promises: the certificate on disk is always complete and stays until a newer one replaces it; a failure of the ACME server
//! fails no request and is retried later. The watcher of certificate files loads a new certificate like any other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use instant_acme::{
    Account, AccountCredentials, AuthorizationHandle, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::transport::tls::{AcmeFiles, ChallengeKind, Challenges, OpenChallenges};

/// How often the age of the certificate is checked, and the delay before a retry after a failure.
const CHECK_INTERVAL: Duration = Duration::from_secs(3600);
const RETRY_DELAY: Duration = Duration::from_secs(60);

/// Timeout for the server to validate the challenges, and again to issue the certificate.
const POLL_TIMEOUT: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(120));

/// Why a certificate could not be obtained.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    #[error("ACME request failed: {0}")]
    Server(#[from] Error),
    #[error("the ACME server does not offer the configured challenge for `{0}`; set the other `challenge`")]
    NoChallenge(String),
    #[error("the ACME server did not validate the names (order status {0:?}); check that each resolves to this proxy")]
    NotReady(OrderStatus),
    #[error("cannot create a self-signed certificate: {0}")]
    Certificate(String),
    #[error("`{}`: {reason}", file.display())]
    File { file: PathBuf, reason: String },
}

fn at(file: &Path) -> impl Fn(std::io::Error) -> AcmeError + '_ {
    move |error| AcmeError::File { file: file.into(), reason: error.to_string() }
}

/// Writes an untrusted placeholder if there is no certificate, because a listener cannot start without one.
pub fn prepare(files: &AcmeFiles) -> Result<(), AcmeError> {
    let pair = files.pair();
    if pair.certificate.exists() && pair.key.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(&files.store).map_err(at(&files.store))?;
    let failed = |error: rcgen::Error| AcmeError::Certificate(error.to_string());
    let mut params = CertificateParams::new(files.names.clone()).map_err(failed)?;
    // The placeholder has already expired, so that it is due for renewal.
    params.not_before = SystemTime::now().into();
    params.not_after = params.not_before;
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    write(files, &certificate.pem(), &key.serialize_pem())
}

/// Renews the certificate whenever it is due, until the future is dropped.
pub async fn keep(files: AcmeFiles, challenges: Arc<Challenges>) {
    loop {
        let pause = match is_due(&files.pair().certificate, SystemTime::now()) {
            false => CHECK_INTERVAL,
            true => match fetch(&files, &challenges).await {
                Ok(()) => {
                    tracing::info!(names = ?files.names, "new certificate fetched");
                    CHECK_INTERVAL
                }
                Err(error) => {
                    tracing::error!(%error, names = ?files.names, "certificate renewal failed; retrying in a minute");
                    RETRY_DELAY
                }
            },
        };
        // Jitter, so that the proxies do not contact the server in step.
        tokio::time::sleep(pause.mul_f64(1.0 + fastrand::f64() * 0.2)).await;
    }
}

/// Whether two thirds of the certificate's lifetime have passed. A certificate that cannot be read is due as well.
fn is_due(certificate: &Path, now: SystemTime) -> bool {
    let Ok(der) = CertificateDer::from_pem_file(certificate) else { return true };
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&der) else { return true };
    let validity = parsed.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs() as i64);
    now >= from + (until - from) / 3 * 2
}

async fn fetch(files: &AcmeFiles, challenges: &Arc<Challenges>) -> Result<(), AcmeError> {
    let account = account(files).await?;
    // Dropped with the order, whether it succeeds or fails.
    let mut open = OpenChallenges::of(challenges);
    let names: Vec<_> = files.names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&names)).await?;
    answer_challenges(files, &mut order, &mut open).await?;
    match order.poll_ready(&POLL_TIMEOUT).await? {
        OrderStatus::Ready => {}
        status => return Err(AcmeError::NotReady(status)),
    }
    let key = order.finalize().await?;
    let chain = order.poll_certificate(&POLL_TIMEOUT).await?;
    write(files, &chain, &key)
}

async fn answer_challenges(files: &AcmeFiles, order: &mut Order, open: &mut OpenChallenges) -> Result<(), AcmeError> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let authorization = authorization?;
        match authorization.status {
            AuthorizationStatus::Valid => {}
            _ => answer(files, authorization, open).await?,
        }
    }
    Ok(())
}

async fn answer(
    files: &AcmeFiles,
    mut authorization: AuthorizationHandle<'_>,
    open: &mut OpenChallenges,
) -> Result<(), AcmeError> {
    let kind = match files.by {
        ChallengeKind::Tls => ChallengeType::TlsAlpn01,
        ChallengeKind::Http => ChallengeType::Http01,
    };
    let name = authorization.identifier().to_string();
    let mut challenge = authorization.challenge(kind).ok_or_else(|| AcmeError::NoChallenge(name.clone()))?;
    let proof = challenge.key_authorization();
    match files.by {
        ChallengeKind::Http => open.answer(&challenge.token, proof.as_str()),
        ChallengeKind::Tls => show(&name, proof.digest().as_ref(), open).map_err(AcmeError::Certificate)?,
    }
    Ok(challenge.set_ready().await?)
}

/// Installs the TLS-ALPN-01 certificate: self-signed, for this name only, with the digest of the proof (RFC 8737 section 3).
fn show(name: &str, digest: &[u8], open: &mut OpenChallenges) -> Result<(), String> {
    let failed = |error: rcgen::Error| error.to_string();
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    open.show(name, certificate.der().clone(), &key.serialize_pem())
}

/// The stored account, or a new one.
async fn account(files: &AcmeFiles) -> Result<Account, AcmeError> {
    let file = files.store.join("account.json");
    let builder = || match &files.authority {
        Some(authority) => Account::builder_with_root(authority),
        None => Account::builder(),
    };
    if let Ok(text) = std::fs::read_to_string(&file) {
        let credentials: AccountCredentials = serde_json::from_str(&text).map_err(|error| AcmeError::File {
            file: file.clone(),
            reason: format!("is not a valid ACME account; move the file away to register a new one: {error}"),
        })?;
        return Ok(builder()?.from_credentials(credentials).await?);
    }
    let contact: Vec<_> = files.contact.iter().map(String::as_str).collect();
    let wanted = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) = builder()?.create(&wanted, files.server.clone(), None).await?;
    let text = serde_json::to_string(&credentials).map_err(|error| AcmeError::Certificate(error.to_string()))?;
    write_secret(&file, &text)?;
    Ok(account)
}

/// Writes the key first: if the certificate is not written as well, the old one stays due and the next renewal repairs the pair.
fn write(files: &AcmeFiles, chain: &str, key: &str) -> Result<(), AcmeError> {
    let pair = files.pair();
    write_secret(&pair.key, key)?;
    write_secret(&pair.certificate, chain)
}

/// Replaces a file atomically; only the owner can read it.
fn write_secret(file: &Path, text: &str) -> Result<(), AcmeError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let fresh = file.with_extension("new");
    let written = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh);
    written.and_then(|mut out| out.write_all(text.as_bytes()).and_then(|()| out.sync_all())).map_err(at(&fresh))?;
    std::fs::rename(&fresh, file).map_err(at(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_due_after_two_thirds_of_its_lifetime() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("certificate.pem");
        let mut params = CertificateParams::new(vec!["a.test".into()]).unwrap();
        let (from, day) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000), Duration::from_secs(86_400));
        params.not_before = from.into();
        params.not_after = (from + day * 90).into();
        std::fs::write(&file, params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()).unwrap();
        assert!(!is_due(&file, from + day * 59));
        assert!(is_due(&file, from + day * 61));
        assert!(is_due(&folder.path().join("none.pem"), from));
    }
}
