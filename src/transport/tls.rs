//! Certificates: ours by SNI for clients, mutual for peers, whose certificate proves their region.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// What a peer's certificate names its region with, in a subject alternative name of type URI.
pub const REGION_URI: &str = "domicile://region/";

/// A certificate chain and its private key, as PEM files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What this region shows its peers, and who signs theirs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerFiles {
    pub own: CertificateFiles,
    pub authority: PathBuf,
}

/// A certificate or key that cannot be used, and what to do about it.
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
        Err(error) => return unusable(file, format!("cannot read the certificate: {error}")),
    };
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            unusable(file, "holds no certificate; it needs a block `BEGIN CERTIFICATE`")
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => unusable(file, format!("is no PEM file of certificates: {error}")),
    }
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
                unusable(&self.key, format!("is not the key of the certificate `{}`", self.certificate.display()))
            }
            error => unusable(&self.certificate, error),
        })
    }
}

/// Serves clients: the certificate by SNI, the first where none fits; HTTP/2 preferred.
pub fn for_clients(files: &[CertificateFiles]) -> Result<Arc<ServerConfig>, TlsError> {
    let mut resolver = BySni { default: None, exact: HashMap::new(), wildcard: HashMap::new() };
    for files in files {
        let key = Arc::new(files.load()?);
        for name in dns_names(&key.cert, &files.certificate)? {
            match name.strip_prefix("*.") {
                Some(domain) => resolver.wildcard.entry(domain.to_owned()).or_insert(Arc::clone(&key)),
                None => resolver.exact.entry(name).or_insert(Arc::clone(&key)),
            };
        }
        resolver.default.get_or_insert(key);
    }
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider serves TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if let Ok(tickets) = aws_lc_rs::Ticketer::new() {
        config.ticketer = tickets;
    }
    Ok(Arc::new(config))
}

fn dns_names(chain: &[CertificateDer<'static>], file: &Path) -> Result<Vec<String>, TlsError> {
    let first = chain.first().expect("a loaded chain has a certificate");
    match webpki::EndEntityCert::try_from(first) {
        Ok(certificate) => Ok(certificate.valid_dns_names().map(str::to_ascii_lowercase).collect()),
        Err(error) => unusable(file, format!("is no server certificate: {error}")),
    }
}

#[derive(Debug)]
struct BySni {
    default: Option<Arc<CertifiedKey>>,
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows the `*.`, which stands for exactly one label (RFC 6125 section 6.4.3).
    wildcard: HashMap<String, Arc<CertifiedKey>>,
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let by_name = hello.server_name().and_then(|name| {
            let name = name.to_ascii_lowercase();
            let wildcard = name.split_once('.').and_then(|(_, domain)| self.wildcard.get(domain));
            self.exact.get(&name).or(wildcard).cloned()
        });
        by_name.or_else(|| self.default.clone())
    }
}

/// Both ends of the connections between peers: TLS 1.3 alone, no resumption, so that every connection proves itself.
pub struct PeerTls {
    pub server: Arc<ServerConfig>,
    own: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
}

impl PeerTls {
    pub fn load(files: &PeerFiles) -> Result<Self, TlsError> {
        let own = Arc::new(files.own.load()?);
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(&files.authority)? {
            if let Err(error) = roots.add(certificate) {
                return unusable(&files.authority, format!("is no certificate authority: {error}"));
            }
        }
        let roots = Arc::new(roots);
        let verifier = match WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider()).build() {
            Ok(verifier) => verifier,
            Err(error) => return unusable(&files.authority, error),
        };
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider serves TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(BySni {
                default: Some(Arc::clone(&own)),
                exact: HashMap::new(),
                wildcard: HashMap::new(),
            }));
        server.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would carry a certificate forward that has been revoked since.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self { server: Arc::new(server), own, roots })
    }

    /// The region that our own certificate names, if it names one.
    pub fn own_region(&self) -> Option<String> {
        region_of(&self.own.cert)
    }

    /// A client that accepts nobody but the proxy of `region`.
    pub fn client_for(&self, region: &str) -> Arc<ClientConfig> {
        let verifier = RegionVerifier { region: region.into(), roots: Arc::clone(&self.roots), provider: provider() };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider serves TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&self.own))));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    }
}

/// The region that a certificate names in a URI such as `domicile://region/eu-west`; none if it names several.
pub fn region_of(chain: &[CertificateDer<'_>]) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(chain.first()?).ok()?;
    let mut regions = certificate.valid_uri_names().filter_map(|uri| uri.strip_prefix(REGION_URI));
    let region = regions.next()?.to_owned();
    regions.next().is_none().then_some(region)
}

/// Accepts a server by its region, not by its host name: a gateway's address may change, its region may not.
#[derive(Debug)]
struct RegionVerifier {
    region: String,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for RegionVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = rustls::server::ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        match region_of(std::slice::from_ref(end_entity)) {
            Some(region) if region == self.region => Ok(ServerCertVerified::assertion()),
            _ => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("peers speak TLS 1.3".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
