//! TLS to upstreams. Their certificates are always verified by name.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use super::super::dial::Secured;
use super::{CertificateFiles, TlsError, provider, roots_of};

/// The authority of an upstream's certificate, and the client certificate to present.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct UpstreamFiles {
    /// The authority of the upstream's certificate; `None` for the system's authorities.
    pub authority: Option<PathBuf>,
    /// The name for SNI and for verification; `None` for the URL's host.
    pub name: Option<String>,
    /// The client certificate, if the upstream requests one.
    pub own: Option<CertificateFiles>,
}

impl UpstreamFiles {
    /// The files to watch.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let own = self.own.iter().flat_map(|own| [&own.certificate, &own.key]);
        self.authority.iter().chain(own)
    }

    /// Reads the files. With `http2`, ALPN offers HTTP/2 and HTTP/1.1; else only HTTP/1.1.
    pub fn load(&self, http2: bool) -> Result<Secured, TlsError> {
        let roots = Arc::new(self.roots()?);
        let config = |protocols: &[&[u8]]| {
            let builder = ClientConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .expect("the provider supports TLS 1.2 and 1.3")
                .with_root_certificates(Arc::clone(&roots));
            let mut config = match &self.own {
                None => builder.with_no_client_auth(),
                Some(own) => {
                    builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::new(own.load()?))))
                }
            };
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Ok(Arc::new(config))
        };
        let http1 = config(&[b"http/1.1"])?;
        let config = if http2 { config(&[b"h2", b"http/1.1"])? } else { Arc::clone(&http1) };
        Ok(Secured { config, http1, name: self.name.as_deref().map(Arc::from) })
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        if let Some(file) = &self.authority {
            return roots_of(file);
        }
        // Skip system certificates that cannot be parsed, so that the others remain usable.
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Ok(roots)
    }
}
