//! TLS for clients: our certificates by SNI.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use super::{CertificateFiles, TlsError, provider, unusable};

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
