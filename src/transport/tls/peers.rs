//! Mutual TLS between peers: a certificate proves its region.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};

use super::{CertificateFiles, TlsError, provider, roots_of, unusable};

/// The prefix of the URI that names the region, in a subject alternative name of a peer's certificate.
pub const REGION_URI: &str = "domicile://region/";

/// The certificate of this region, and the authority of its peers' certificates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerFiles {
    pub own: CertificateFiles,
    pub authority: PathBuf,
    /// Certificate revocation lists (CRLs) of the authority.
    pub revoked: Vec<PathBuf>,
}

/// Server and client TLS for connections between peers: only TLS 1.3, and no resumption, so that every connection proves its
/// region.
pub struct PeerTls {
    pub server: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    own: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    revoked: Arc<Vec<CertificateRevocationListDer<'static>>>,
}

impl PeerTls {
    pub fn load(files: &PeerFiles) -> Result<Self, TlsError> {
        let own = Arc::new(files.own.load()?);
        let roots = Arc::new(roots_of(&files.authority)?);
        let lists: Vec<_> = files.revoked.iter().map(|file| read_lists(file)).collect::<Result<_, _>>()?;
        let revoked = Arc::new(lists.concat());
        let verifier = match WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .with_crls(revoked.iter().cloned())
            .allow_unknown_revocation_status()
            .build()
        {
            Ok(verifier) => verifier,
            Err(error) => return unusable(&files.authority, error),
        };
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider serves TLS 1.3")
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&own))));
        server.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would skip the check of a certificate that may have been revoked since.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self { server: Arc::new(server), verifier, own, roots, revoked })
    }

    /// Whether a chain that was accepted before is still valid: its authority, its validity period and its revocation.
    pub fn still_proves(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((own, intermediates)) = chain.split_first() else { return false };
        self.verifier.verify_client_cert(own, intermediates, UnixTime::now()).is_ok()
    }

    /// The region that this process's own certificate names, if it names exactly one.
    pub fn own_region(&self) -> Option<String> {
        region_of(&self.own.cert)
    }

    /// A client configuration that accepts only the proxy of `region`.
    pub fn client_for(&self, region: &str) -> Arc<ClientConfig> {
        // `load` built a verifier from the same authorities and lists, so this cannot fail.
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .with_crls(self.revoked.iter().cloned())
            .allow_unknown_revocation_status()
            .build()
            .expect("the same authorities and lists verify clients");
        let verifier = RegionVerifier { region: region.into(), inner };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider serves TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.own))));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        // `tests/residency` reads what peers send each other. A release build never writes the keys of its sessions.
        #[cfg(debug_assertions)]
        {
            config.key_log = Arc::new(rustls::KeyLogFile::new());
        }
        Arc::new(config)
    }
}

/// The region that a certificate names in a URI such as `domicile://region/eu-west`; `None` if it names none or several.
pub fn region_of(chain: &[CertificateDer<'_>]) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(chain.first()?).ok()?;
    let mut regions = certificate.valid_uri_names().filter_map(|uri| uri.strip_prefix(REGION_URI));
    let region = regions.next()?.to_owned();
    regions.next().is_none().then_some(region)
}

/// Reads all revocation lists in a file, which may contain those of several authorities.
fn read_lists(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let lists = CertificateRevocationListDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match lists {
        Ok(lists) if lists.is_empty() => unusable(file, "contains no revocation list; add an `X509 CRL` block in PEM"),
        Ok(lists) => Ok(lists),
        Err(error) => unusable(file, format!("is not a PEM file of revocation lists: {error}")),
    }
}

/// Verifies a server by its region instead of its host name, because the address of a gateway may change.
#[derive(Debug)]
struct RegionVerifier {
    region: String,
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for RegionVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
            // A name error means that the chain, its validity period and its revocation have passed: they are checked first.
            Ok(_)
            | Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {}
            Err(error) => return Err(error),
        }
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
        Err(rustls::Error::General("peers must use TLS 1.3".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
