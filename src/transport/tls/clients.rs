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
    /// The certificates for the name in SNI: one of each type of key. Which one the client got depends on its signature schemes.
    shown: Candidates,
}

impl Site {
    /// The certificate that was presented to a client with SNI `name`.
    pub fn shown(tls: &Arc<ClientTls>, name: Option<&str>) -> Self {
        Self { shown: tls.certificates.find(name).clone(), tls: Arc::clone(tls) }
    }

    /// Whether a request for `host` is allowed on this connection. The presented certificate must be valid for `host`, because
    /// another certificate may belong to another tenant (RFC 9110 section 7.4, RFC 9113 section 9.1.1).
    ///
    /// `all` contains the TLS configurations of every listener, so that a host of one listener is not served through another.
    /// A host without a certificate is served on connections with the first certificate, which clients without SNI also get.
    pub fn may_serve(&self, host: &str, all: &[Arc<ClientTls>]) -> bool {
        let is_covered = all.iter().any(|tls| tls.certificates.named(host).is_some());
        let first = self.tls.certificates.default.first();
        if !is_covered && first.is_some_and(|first| self.shown.iter().any(|shown| Arc::ptr_eq(first, shown))) {
            return true;
        }
        let Ok(name) = ServerName::try_from(host.trim_matches(['[', ']'])) else { return false };
        !self.shown.is_empty() && self.shown.iter().all(|shown| is_valid_for(shown, &name))
    }
}

fn is_valid_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let certificate = key.cert.first().and_then(|first| webpki::EndEntityCert::try_from(first).ok());
    certificate.is_some_and(|certificate| certificate.verify_is_valid_for_subject_name(name).is_ok())
}

/// The certificates for one name, in the order of the configuration: an operator may have one for each type of key.
type Candidates = Vec<Arc<CertifiedKey>>;

struct BySni {
    challenges: Arc<Challenges>,
    /// The first certificate, and those for the same names.
    default: Candidates,
    exact: HashMap<String, Candidates>,
    /// By the domain after `*.`, which matches exactly one label (RFC 6125 section 6.4.3).
    wildcard: HashMap<String, Candidates>,
}

impl BySni {
    fn load(files: &[CertificateFiles], challenges: &Arc<Challenges>) -> Result<Self, TlsError> {
        let mut found =
            Self { challenges: Arc::clone(challenges), default: Vec::new(), exact: HashMap::new(), wildcard: HashMap::new() };
        let mut first_names = None;
        for files in files {
            let key = Arc::new(files.load()?);
            let mut names = dns_names(&key.cert, &files.certificate)?;
            names.sort();
            for name in &names {
                let candidates = match name.strip_prefix("*.") {
                    Some(domain) => found.wildcard.entry(domain.to_owned()).or_default(),
                    None => found.exact.entry(name.clone()).or_default(),
                };
                // Of two certificates with the same type of key, the first counts.
                if !candidates.iter().any(|known| known.key.algorithm() == key.key.algorithm()) {
                    candidates.push(Arc::clone(&key));
                }
            }
            if *first_names.get_or_insert_with(|| names.clone()) == names {
                found.default.push(key);
            }
        }
        Ok(found)
    }

    /// The certificates for this name.
    fn named(&self, name: &str) -> Option<&Candidates> {
        let name = name.to_ascii_lowercase();
        let wildcard = name.split_once('.').and_then(|(_, domain)| self.wildcard.get(domain));
        self.exact.get(&name).or(wildcard)
    }

    fn find(&self, name: Option<&str>) -> &Candidates {
        name.and_then(|name| self.named(name)).unwrap_or(&self.default)
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
        let candidates = self.find(hello.server_name());
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        candidates.iter().find(fits).or(candidates.first()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, ServerConnection, SignatureScheme};
    use rustls_pki_types::UnixTime;

    use super::*;

    /// A client that takes any certificate with a signature of these schemes.
    #[derive(Debug)]
    struct Takes(Vec<SignatureScheme>);

    type Checked = Result<HandshakeSignatureValid, rustls::Error>;

    impl ServerCertVerifier for Takes {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Checked {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Checked {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.clone()
        }
    }

    fn write(folder: &Path, name: &str, algorithm: &'static rcgen::SignatureAlgorithm, host: &str) -> CertificateFiles {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let certificate = rcgen::CertificateParams::new([host.to_owned()]).unwrap().self_signed(&key).unwrap();
        let files = CertificateFiles { certificate: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// The certificate that a client with these schemes gets.
    fn shown(tls: &ClientTls, name: &str, schemes: &[SignatureScheme]) -> Option<Vec<u8>> {
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Takes(schemes.to_vec()))).with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let mut server = ServerConnection::new(Arc::clone(&tls.config)).unwrap();
        while client.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets().ok()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &wire[..]).unwrap();
            client.process_new_packets().ok()?;
        }
        Some(client.peer_certificates()?.first()?.to_vec())
    }

    #[test]
    fn of_two_certificates_for_one_name_the_client_gets_the_one_that_it_can_verify() {
        let folder = tempfile::tempdir().unwrap();
        let certificates = vec![
            write(folder.path(), "first", &rcgen::PKCS_ECDSA_P256_SHA256, "a.test"),
            write(folder.path(), "second", &rcgen::PKCS_ED25519, "a.test"),
            write(folder.path(), "other", &rcgen::PKCS_ED25519, "b.test"),
        ];
        let files = ClientTlsFiles { certificates, clients: None, acme: None };
        let tls = ClientTls::load(&files, &Arc::default()).unwrap();
        let der = |index: usize| files.certificates[index].load().unwrap().cert[0].to_vec();
        let (ecdsa, ed25519) = (SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519);
        for (name, schemes, expected) in [
            ("a.test", &[ecdsa, ed25519][..], Some(0)),
            ("a.test", &[ed25519, ecdsa], Some(0)),
            ("a.test", &[ed25519], Some(1)),
            ("b.test", &[ecdsa, ed25519], Some(2)),
            ("b.test", &[ecdsa], None),
            ("c.test", &[ed25519], Some(1)),
        ] {
            assert_eq!(shown(&tls, name, schemes), expected.map(der), "{name} {schemes:?}");
        }
        let all = [Arc::clone(&tls)];
        let site = Site::shown(&tls, Some("a.test"));
        assert!(site.may_serve("a.test", &all) && site.may_serve("c.test", &all) && !site.may_serve("b.test", &all));
    }
}
