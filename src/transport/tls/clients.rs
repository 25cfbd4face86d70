//! TLS for clients: selects the certificate by SNI.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, ServerName};

use super::{ACME_TLS, AcmeFiles, CertificateFiles, Challenges, TlsError, provider, roots_of, unusable};

/// The certificates of a listener for clients, and whether it requests client certificates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientTlsFiles {
    pub certificates: Vec<CertificateFiles>,
    /// The authority of client certificates; `None` if none are requested.
    pub clients: Option<ClientAuthority>,
    /// Names whose certificate comes from an ACME server. That certificate is also in `certificates`.
    pub acme: Option<AcmeFiles>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientAuthority {
    pub authority: PathBuf,
    pub required: bool,
}

/// The TLS configuration of a listener for clients.
pub struct ClientTls {
    pub config: Arc<ServerConfig>,
    certificates: Arc<BySni>,
}

impl ClientTls {
    /// Selects the certificate by SNI, or the first if none matches; prefers HTTP/2.
    pub fn load(files: &ClientTlsFiles, challenges: &Arc<Challenges>) -> Result<Arc<Self>, TlsError> {
        let certificates = Arc::new(BySni::load(&files.certificates, challenges)?);
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider serves TLS 1.2 and 1.3");
        let builder = match &files.clients {
            None => builder.with_no_client_auth(),
            Some(clients) => builder.with_client_cert_verifier(clients.verifier()?),
        };
        let mut config = builder.with_cert_resolver(Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if files.acme.is_some() {
            config.alpn_protocols.push(ACME_TLS.to_vec());
        }
        // A resumed session would skip the check of a client's certificate, which may have expired since.
        if files.clients.is_some() {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else if let Ok(tickets) = aws_lc_rs::Ticketer::new() {
            config.ticketer = tickets;
        }
        Ok(Arc::new(Self { config: Arc::new(config), certificates }))
    }
}

impl ClientAuthority {
    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let roots = Arc::new(roots_of(&self.authority)?);
        let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let builder = if self.required { builder } else { builder.allow_unauthenticated() };
        builder.build().or_else(|error| unusable(&self.authority, error))
    }
}

/// The certificate that was presented on a connection. It determines the hosts that the connection may request.
#[derive(Clone)]
pub struct Site {
    tls: Arc<ClientTls>,
    shown: Option<Arc<CertifiedKey>>,
}

impl Site {
    /// The certificate that was presented to a client with SNI `name`.
    pub fn shown(tls: &Arc<ClientTls>, name: Option<&str>) -> Self {
        Self { shown: tls.certificates.find(name), tls: Arc::clone(tls) }
    }

    /// Whether a request for `host` is allowed on this connection. The presented certificate must be valid for `host`, because
    /// another certificate may belong to another tenant (RFC 9110 section 7.4, RFC 9113 section 9.1.1).
    ///
    /// `all` contains the TLS configurations of every listener, so that a host of one listener is not served through another.
    /// A host without a certificate is served on connections with the first certificate, which clients without SNI also get.
    pub fn may_serve(&self, host: &str, all: &[Arc<ClientTls>]) -> bool {
        let Some(shown) = &self.shown else { return false };
        let is_covered = all.iter().any(|tls| tls.certificates.named(host).is_some());
        if !is_covered && self.tls.certificates.default.as_ref().is_some_and(|first| Arc::ptr_eq(first, shown)) {
            return true;
        }
        let name = ServerName::try_from(host.trim_matches(['[', ']']));
        let certificate = shown.cert.first().and_then(|first| webpki::EndEntityCert::try_from(first).ok());
        certificate.zip(name.ok()).is_some_and(|(certificate, name)| certificate.verify_is_valid_for_subject_name(&name).is_ok())
    }
}

struct BySni {
    challenges: Arc<Challenges>,
    default: Option<Arc<CertifiedKey>>,
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By the domain after `*.`, which matches exactly one label (RFC 6125 section 6.4.3).
    wildcard: HashMap<String, Arc<CertifiedKey>>,
}

impl BySni {
    fn load(files: &[CertificateFiles], challenges: &Arc<Challenges>) -> Result<Self, TlsError> {
        let mut found =
            Self { challenges: Arc::clone(challenges), default: None, exact: HashMap::new(), wildcard: HashMap::new() };
        for files in files {
            let key = Arc::new(files.load()?);
            for name in dns_names(&key.cert, &files.certificate)? {
                match name.strip_prefix("*.") {
                    Some(domain) => found.wildcard.entry(domain.to_owned()).or_insert(Arc::clone(&key)),
                    None => found.exact.entry(name).or_insert(Arc::clone(&key)),
                };
            }
            found.default.get_or_insert(key);
        }
        Ok(found)
    }

    /// The certificate for this name.
    fn named(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let wildcard = name.split_once('.').and_then(|(_, domain)| self.wildcard.get(domain));
        self.exact.get(&name).or(wildcard)
    }

    fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        name.and_then(|name| self.named(name)).or(self.default.as_ref()).cloned()
    }
}

fn dns_names(chain: &[CertificateDer<'static>], file: &Path) -> Result<Vec<String>, TlsError> {
    let first = chain.first().expect("a loaded chain has a certificate");
    match webpki::EndEntityCert::try_from(first) {
        Ok(certificate) => Ok(certificate.valid_dns_names().map(str::to_ascii_lowercase).collect()),
        Err(error) => unusable(file, format!("is not a server certificate: {error}")),
    }
}

impl fmt::Debug for BySni {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("BySni").field("exact", &self.exact.keys()).field("wildcard", &self.wildcard.keys()).finish()
    }
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == ACME_TLS)) {
            return self.challenges.certificate(hello.server_name()?);
        }
        self.find(hello.server_name())
    }
}
