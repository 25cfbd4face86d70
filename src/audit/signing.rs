//! Checkpoints: the end of the chain, signed with Ed25519 (RFC 8032), so that lines before it cannot be changed without the key.

use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{self, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

use super::chain::Hash;
use super::pseudonym::write_secret;

/// The key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason}; the file must contain a private key as `openssl genpkey -algorithm ed25519` writes it", file.display())]
pub struct SigningError {
    file: PathBuf,
    reason: String,
}

/// Signs the checkpoints of one region.
pub(super) struct Signer {
    region: String,
    key: Ed25519KeyPair,
}

/// A signed end of the chain.
pub(super) struct Checkpoint<'a> {
    pub region: &'a str,
    /// The hash of the line before the checkpoint.
    pub previous: Hash,
    pub time: &'a str,
    /// The key that signs from now on, if it is another one.
    pub next: Option<&'a str>,
}

impl Checkpoint<'_> {
    /// The signed text.
    fn message(&self) -> String {
        let Self { region, previous, time, next } = self;
        let next = next.map_or_else(String::new, |key| format!("next {key}\n"));
        format!("domicile ledger checkpoint\nregion {region}\nprevious {previous}\ntime {time}\n{next}")
    }
}

impl Signer {
    /// Reads the key, or creates the file for a ledger that has no lines yet.
    pub fn open(file: &Path, region: &str, may_create: bool) -> Result<Self, SigningError> {
        let failed = |reason: String| SigningError { file: file.into(), reason };
        let pem = match std::fs::read(file) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_create => {
                create(file).map_err(|error| failed(format!("cannot create the signing key: {error}")))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(failed("the key that signed this ledger is missing; restore it, or move the ledger away".into()));
            }
            Err(error) => return Err(failed(format!("cannot read the signing key: {error}"))),
        };
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| failed("this is not a private key in PEM".into()))?;
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
            .map_err(|_| failed("this is not an Ed25519 key".into()))?;
        Ok(Self { region: region.to_owned(), key })
    }

    pub fn region(&self) -> &str {
        &self.region
    }

    pub fn public_key(&self) -> PublicKey {
        PublicKey(*self.key.public_key().as_ref().first_chunk().expect("an Ed25519 public key has 32 bytes"))
    }

    /// Creates the key that replaces this one, in a file beside `file`.
    pub fn successor(&self, file: &Path) -> Result<Self, SigningError> {
        let next = next_of(file);
        // Left over from a crash before the ledger named it.
        let _ = std::fs::remove_file(&next);
        Self::open(&next, &self.region, true)
    }

    /// The signature of a checkpoint, in Base64. `next` is the key that signs from now on, if it is another one.
    pub fn sign(&self, previous: Hash, time: &str, next: Option<&str>) -> String {
        let checkpoint = Checkpoint { region: &self.region, previous, time, next };
        STANDARD.encode(self.key.sign(checkpoint.message().as_bytes()))
    }
}

fn next_of(file: &Path) -> PathBuf {
    file.with_extension("key.next")
}

/// Puts the key into place that the ledger names as its next one, and destroys the one before it.
pub(super) fn replace(file: &Path) -> io::Result<()> {
    std::fs::rename(next_of(file), file)?;
    std::fs::File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Finishes a replacement that a crash interrupted: the next key counts once the ledger names it.
pub(super) fn finish_replacement(file: &Path, named: Option<PublicKey>) -> Result<(), SigningError> {
    let failed = |error: io::Error| SigningError { file: file.into(), reason: format!("cannot finish its replacement: {error}") };
    if next_of(file).exists() && Some(Signer::open(&next_of(file), "", false)?.public_key()) == named {
        replace(file).map_err(failed)?;
    }
    Ok(())
}

fn create(file: &Path) -> io::Result<Vec<u8>> {
    let random = aws_lc_rs::rand::SystemRandom::new();
    let der = Ed25519KeyPair::generate_pkcs8v1(&random).map_err(|_| io::Error::other("the system provides no random bytes"))?;
    let pem = pem("PRIVATE KEY", der.as_ref());
    write_secret(file, &pem)?;
    Ok(pem.into_bytes())
}

/// PEM (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in STANDARD.encode(der).as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}

/// The public half of a signing key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublicKey([u8; 32]);

/// The encoding of an Ed25519 public key before its 32 bytes (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl PublicKey {
    /// Reads a public key in PEM, as `openssl pkey -pubout` writes it.
    pub fn from_pem(pem: &str) -> Option<Self> {
        let der = rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).ok()?;
        Some(Self(der.as_ref().strip_prefix(&SPKI_PREFIX)?.try_into().ok()?))
    }

    pub fn pem(&self) -> String {
        pem("PUBLIC KEY", &[SPKI_PREFIX.as_slice(), &self.0].concat())
    }

    /// Reads 64 lower-case hexadecimal digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut key = [0; 32];
        hex::decode_to_slice(text, &mut key).ok().map(|()| Self(key))
    }

    /// Whether this key has signed the checkpoint.
    pub(super) fn has_signed(&self, checkpoint: &Checkpoint<'_>, signature: &str) -> bool {
        let key = UnparsedPublicKey::new(&signature::ED25519, self.0);
        STANDARD.decode(signature).is_ok_and(|signature| key.verify(checkpoint.message().as_bytes(), &signature).is_ok())
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&hex::encode(self.0))
    }
}
