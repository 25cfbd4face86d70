//! Mutual TLS between peers: a certificate proves its region.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{CertificateFiles, TlsError, provider, read_certificates, unusable};

/// What a peer's certificate names its region with, in a subject alternative name of type URI.
pub const REGION_URI: &str = "domicile://region/";

/// What this region shows its peers, and who signs theirs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerFiles {
    pub own: CertificateFiles,
    pub authority: PathBuf,
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
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&own))));
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
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.own))));
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
