//! Responses to ACME challenges, which prove control of a name (RFC 8555, RFC 8737).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{CertificateFiles, provider};

/// The ALPN protocol of a connection that only requests the certificate of a challenge.
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// The path under which an ACME server requests HTTP challenges.
pub const ACME_PATH: &str = "/.well-known/acme-challenge/";

/// Names whose certificate is obtained from an ACME server and renewed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcmeFiles {
    /// The URL of the server's directory.
    pub server: String,
    /// `mailto:` URLs.
    pub contact: Vec<String>,
    pub names: Vec<String>,
    /// The folder of the account, the certificate and its key.
    pub store: PathBuf,
    pub by: ChallengeKind,
    /// The authority of the ACME server's own certificate; `None` for the system's authorities.
    pub authority: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChallengeKind {
    /// On the listener itself (TLS-ALPN-01).
    Tls,
    /// On any cleartext listener, which the ACME server must reach at port 80 (HTTP-01).
    Http,
}

impl AcmeFiles {
    pub fn pair(&self) -> CertificateFiles {
        CertificateFiles { certificate: self.store.join("certificate.pem"), key: self.store.join("certificate.key") }
    }
}

/// The responses to the challenges that are open now.
#[derive(Default)]
pub struct Challenges {
    by_name: Mutex<HashMap<String, Arc<CertifiedKey>>>,
    by_token: Mutex<HashMap<String, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The challenges that one order has open: dropping it removes those, and no others.
pub struct OpenChallenges {
    challenges: Arc<Challenges>,
    names: Vec<(String, Arc<CertifiedKey>)>,
    tokens: Vec<String>,
}

impl OpenChallenges {
    pub fn of(challenges: &Arc<Challenges>) -> Self {
        Self { challenges: Arc::clone(challenges), names: Vec::new(), tokens: Vec::new() }
    }

    /// Presents this certificate to ACME connections for `name`.
    pub fn show(&mut self, name: &str, certificate: CertificateDer<'static>, key_pem: &str) -> Result<(), String> {
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| error.to_string())?;
        let key = provider().key_provider.load_private_key(key).map_err(|error| error.to_string())?;
        // `CertifiedKey::new` does not parse the certificate, whose critical extension only the ACME server understands.
        let (name, shown) = (name.to_ascii_lowercase(), Arc::new(CertifiedKey::new(vec![certificate], key)));
        lock(&self.challenges.by_name).insert(name.clone(), Arc::clone(&shown));
        self.names.push((name, shown));
        Ok(())
    }

    /// Sets the response to an HTTP challenge with this token.
    pub fn answer(&mut self, token: &str, answer: &str) {
        lock(&self.challenges.by_token).insert(token.into(), answer.into());
        self.tokens.push(token.into());
    }
}

impl Drop for OpenChallenges {
    fn drop(&mut self) {
        let mut by_name = lock(&self.challenges.by_name);
        for (name, shown) in &self.names {
            // Another listener's order may have a challenge open for the same name by now.
            if by_name.get(name).is_some_and(|known| Arc::ptr_eq(known, shown)) {
                by_name.remove(name);
            }
        }
        let mut by_token = lock(&self.challenges.by_token);
        self.tokens.iter().for_each(|token| drop(by_token.remove(token)));
    }
}

impl Challenges {
    pub(super) fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        lock(&self.by_name).get(&name.to_ascii_lowercase()).cloned()
    }

    pub fn answer_to(&self, token: &str) -> Option<String> {
        lock(&self.by_token).get(token).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_that_ends_leaves_the_challenges_of_others_open() {
        let challenges = Arc::new(Challenges::default());
        let certificate = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = rcgen::CertificateParams::new(vec!["a.test".into()]).unwrap().self_signed(&key).unwrap();
            (certificate.der().clone(), key.serialize_pem())
        };
        let (mut first, mut second) = (OpenChallenges::of(&challenges), OpenChallenges::of(&challenges));
        first.answer("one", "1");
        second.answer("two", "2");
        let (der, key) = certificate();
        first.show("a.test", der, &key).unwrap();
        let (der, key) = certificate();
        second.show("A.test", der, &key).unwrap();
        let shown = challenges.certificate("a.test").unwrap();
        drop(first);
        assert_eq!((challenges.answer_to("one"), challenges.answer_to("two").as_deref()), (None, Some("2")));
        assert!(Arc::ptr_eq(&challenges.certificate("a.test").unwrap(), &shown));
        drop(second);
        assert!(challenges.answer_to("two").is_none() && challenges.certificate("a.test").is_none());
    }
}
