//! What shows an ACME server that a name is ours (RFC 8555, RFC 8737).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{CertificateFiles, provider};

/// The protocol of a connection that only asks for the certificate of a challenge.
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// Where answers to challenges over HTTP are asked for.
pub const ACME_PATH: &str = "/.well-known/acme-challenge/";

/// Names whose certificate is fetched, and renewed, from an ACME server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcmeFiles {
    /// The URL of the server's directory.
    pub server: String,
    /// `mailto:` URLs.
    pub contact: Vec<String>,
    pub names: Vec<String>,
    /// Holds the account, and the certificate with its key.
    pub store: PathBuf,
    pub by: ChallengeKind,
    /// Who signs the server's own certificate; the system's authorities if left out.
    pub authority: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChallengeKind {
    /// On the listener itself (TLS-ALPN-01).
    Tls,
    /// On any listener in the clear, which the server reaches at port 80 (HTTP-01).
    Http,
}

impl AcmeFiles {
    pub fn pair(&self) -> CertificateFiles {
        CertificateFiles { certificate: self.store.join("certificate.pem"), key: self.store.join("certificate.key") }
    }
}

/// The answers that are waited for now.
#[derive(Default)]
pub struct Challenges {
    by_name: Mutex<HashMap<String, Arc<CertifiedKey>>>,
    by_token: Mutex<HashMap<String, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Challenges {
    /// Shows a certificate to whoever asks for a challenge of this name.
    pub fn show(&self, name: &str, certificate: CertificateDer<'static>, key_pem: &str) -> Result<(), String> {
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| error.to_string())?;
        let key = provider().key_provider.load_private_key(key).map_err(|error| error.to_string())?;
        // It carries a critical extension, which only who asked for it has to understand.
        let shown = CertifiedKey::new(vec![certificate], key);
        lock(&self.by_name).insert(name.to_ascii_lowercase(), Arc::new(shown));
        Ok(())
    }

    /// Answers whoever asks for this token.
    pub fn answer(&self, token: &str, answer: &str) {
        lock(&self.by_token).insert(token.into(), answer.into());
    }

    /// It is over, well or badly.
    pub fn clear(&self) {
        lock(&self.by_name).clear();
        lock(&self.by_token).clear();
    }

    pub(super) fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        lock(&self.by_name).get(&name.to_ascii_lowercase()).cloned()
    }

    pub fn answer_to(&self, token: &str) -> Option<String> {
        lock(&self.by_token).get(token).cloned()
    }
}
