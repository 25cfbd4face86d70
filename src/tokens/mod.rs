//! Tokens that identify a client (JWT, RFC 7519; best practices of RFC 8725).
//!
//! Promises: a key is used only with its own algorithm, whatever the token's header says; a token is accepted only with a
//! valid signature, within its period of validity, from the configured issuer and for the configured audience. A token that
//! does not verify is never taken for a missing one. Never: a token or a claim in a log line.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use http::HeaderName;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

/// The maximum length of a token, in bytes.
const MAX_TOKEN: usize = 8 << 10;

/// The maximum number of keys in a set, because each may have to be tried.
const MAX_KEYS: usize = 64;

/// The tokens that are accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// A JWKS file (RFC 7517).
    pub keys: PathBuf,
    pub issuer: String,
    pub audience: String,
    pub location: TokenLocation,
    /// The accepted difference between the issuer's clock and ours.
    pub leeway: Duration,
    pub others: Others,
}

/// The treatment of a request with a credential of another kind, such as Basic or an opaque key, for data that may not be
/// anywhere: the app may read such a credential, and this process cannot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Others {
    Refuse,
    Ignore,
}

/// Where a request carries its token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TokenLocation {
    /// `NAME: Bearer TOKEN` (RFC 6750), or the token alone.
    Header(HeaderName),
    Cookie(String),
}

/// Why a key set cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason}", file.display())]
pub struct KeysError {
    file: PathBuf,
    reason: String,
}

/// Why a token is not accepted; a metric label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Malformed,
    UnknownKey,
    BadSignature,
    Expired,
    /// The issuer or the audience is wrong, a required claim is missing, or the token is not valid yet.
    NotForUs,
}

impl Fault {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::Expired => "expired",
            Self::NotForUs => "not_for_us",
        }
    }
}

/// The claims of a verified token.
#[derive(Debug)]
pub struct Verified {
    claims: Map<String, Value>,
    expires: SystemTime,
}

impl Verified {
    /// The claims of a token that does not exist, for `explain`.
    pub fn saying(claims: &[(String, String)]) -> Self {
        let claims = claims.iter().map(|(name, value)| (name.clone(), Value::String(value.clone()))).collect();
        Self { claims, expires: SystemTime::UNIX_EPOCH }
    }

    /// When the token expires, leeway included.
    pub const fn expires(&self) -> SystemTime {
        self.expires
    }

    /// A claim as text; `None` unless it is a string or an integer.
    pub fn claim(&self, name: &str) -> Option<String> {
        match self.claims.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) if number.is_u64() || number.is_i64() => Some(number.to_string()),
            _ => None,
        }
    }
}

/// The keys of an issuer, ready to verify tokens.
pub struct Tokens {
    pub settings: Settings,
    keys: Vec<Key>,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Tokens {
    /// Reads the key file. Ignores keys that cannot verify tokens; at least one key must be usable.
    pub fn open(settings: &Settings) -> Result<Self, KeysError> {
        let failed = |reason: String| KeysError { file: settings.keys.clone(), reason };
        let text = std::fs::read_to_string(&settings.keys).map_err(|error| failed(error.to_string()))?;
        let set: Value = serde_json::from_str(&text).map_err(|error| failed(format!("is not valid JSON: {error}")))?;
        let entries =
            set.get("keys").and_then(Value::as_array).ok_or_else(|| failed("is not a JWKS: `keys` is missing".into()))?;
        if entries.len() > MAX_KEYS {
            return Err(failed(format!("contains more than {MAX_KEYS} keys; remove those that are no longer used")));
        }
        let mut keys = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            match read_key(entry) {
                Ok(Some(key)) => keys.push(key),
                Ok(None) => tracing::warn!(file = %settings.keys.display(), index, "ignoring a key that cannot verify tokens"),
                Err(reason) => return Err(failed(format!("key {index}: {reason}"))),
            }
        }
        if keys.is_empty() {
            return Err(failed(
                "contains no key that can verify a token; add an RSA, EC (P-256, P-384), Ed25519 or symmetric key".into(),
            ));
        }
        Ok(Self { settings: settings.clone(), keys })
    }

    /// Verifies a token and returns its claims, or why it is not accepted.
    pub fn verify(&self, token: &str) -> Result<Verified, Fault> {
        if token.len() > MAX_TOKEN {
            return Err(Fault::Malformed);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Fault::Malformed)?;
        // A recipient must reject critical extensions that it does not support, and none is supported (RFC 7515 section 4.1.11).
        if header.crit.is_some() {
            return Err(Fault::Malformed);
        }
        let fits = |key: &&Key| key.algorithm == header.alg && (header.kid.is_none() || key.id == header.kid);
        let mut fault = Fault::UnknownKey;
        for key in self.keys.iter().filter(fits) {
            match jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &self.validation(key.algorithm)) {
                Ok(data) => return self.accepted(data.claims),
                Err(error) => fault = fault_of(&error),
            }
        }
        Err(fault)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.settings.leeway.as_secs();
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.settings.issuer]);
        validation.set_audience(&[&self.settings.audience]);
        validation.required_spec_claims = HashSet::from(["exp", "iss", "aud"].map(str::to_owned));
        validation
    }

    fn accepted(&self, claims: Map<String, Value>) -> Result<Verified, Fault> {
        let seconds = claims.get("exp").and_then(Value::as_f64).filter(|seconds| (0.0..1e11).contains(seconds));
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds.ok_or(Fault::Malformed)?) + self.settings.leeway;
        Ok(Verified { claims, expires })
    }
}

fn fault_of(error: &jsonwebtoken::errors::Error) -> Fault {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::ExpiredSignature => Fault::Expired,
        ErrorKind::InvalidSignature => Fault::BadSignature,
        ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience | ErrorKind::ImmatureSignature => Fault::NotForUs,
        ErrorKind::MissingRequiredClaim(_) => Fault::NotForUs,
        _ => Fault::Malformed,
    }
}

/// A key with its algorithm; `None` for a key that cannot verify tokens.
fn read_key(entry: &Value) -> Result<Option<Key>, String> {
    // A key of an unknown type is ignored. A malformed key of a known type is an error.
    let is_known = matches!(entry.get("kty").and_then(Value::as_str), Some("RSA" | "EC" | "OKP" | "oct"));
    let jwk: Jwk = match serde_json::from_value(entry.clone()) {
        Ok(jwk) => jwk,
        Err(_) if !is_known => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return Ok(None);
    }
    let Some(algorithm) = algorithm_of(&jwk) else { return Ok(None) };
    let key = DecodingKey::from_jwk(&jwk).map_err(|error| error.to_string())?;
    if let (AlgorithmParameters::OctetKey(_), Ok(secret)) = (&jwk.algorithm, key.try_get_as_bytes())
        && secret.len() < 32
    {
        return Err("a shared secret of less than 32 bytes can be guessed; use at least 32 random bytes".into());
    }
    Ok(Some(Key { id: jwk.common.key_id.clone(), algorithm, key }))
}

/// The algorithm that the key names (`alg`), else the usual algorithm of its type; `None` for one that is not supported.
fn algorithm_of(jwk: &Jwk) -> Option<Algorithm> {
    let standard = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
        AlgorithmParameters::OctetKeyPair(_) => Algorithm::EdDSA,
        AlgorithmParameters::EllipticCurve(parameters) => match parameters.curve {
            EllipticCurve::P256 => Algorithm::ES256,
            EllipticCurve::P384 => Algorithm::ES384,
            _ => return None,
        },
        _ => return None,
    };
    let Some(named) = jwk.common.key_algorithm else { return Some(standard) };
    let named = match named {
        KeyAlgorithm::HS256 => Algorithm::HS256,
        KeyAlgorithm::HS384 => Algorithm::HS384,
        KeyAlgorithm::HS512 => Algorithm::HS512,
        KeyAlgorithm::ES256 => Algorithm::ES256,
        KeyAlgorithm::ES384 => Algorithm::ES384,
        KeyAlgorithm::RS256 => Algorithm::RS256,
        KeyAlgorithm::RS384 => Algorithm::RS384,
        KeyAlgorithm::RS512 => Algorithm::RS512,
        KeyAlgorithm::PS256 => Algorithm::PS256,
        KeyAlgorithm::PS384 => Algorithm::PS384,
        KeyAlgorithm::PS512 => Algorithm::PS512,
        KeyAlgorithm::EdDSA => Algorithm::EdDSA,
        _ => return None,
    };
    // A key whose `alg` belongs to another key type is not usable.
    (named.family() == standard.family()).then_some(named)
}

/// One worker's verified tokens, because verifying a signature costs more than the rest of a request. The size is bounded:
/// when the young half is full, it replaces the old half.
#[derive(Default)]
pub struct Cache {
    of: Option<Arc<Tokens>>,
    young: HashMap<[u8; 32], Arc<Verified>>,
    old: HashMap<[u8; 32], Arc<Verified>>,
}

const HALF_CAPACITY: usize = 2048;

/// Whether a token was verified now or found in the cache; a metric label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    Verified,
    Remembered,
}

impl Cache {
    /// Verifies a token or finds it in the cache. A call with other keys than the last call clears the cache.
    pub fn verify(&mut self, tokens: &Arc<Tokens>, token: &str, now: SystemTime) -> Result<(Arc<Verified>, How), Fault> {
        if !self.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, tokens)) {
            *self = Self { of: Some(Arc::clone(tokens)), ..Self::default() };
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        if let Some(known) = self.young.get(&fingerprint).or_else(|| self.old.get(&fingerprint)) {
            if known.expires <= now {
                return Err(Fault::Expired);
            }
            return Ok((Arc::clone(known), How::Remembered));
        }
        let verified = Arc::new(tokens.verify(token)?);
        if self.young.len() >= HALF_CAPACITY {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(fingerprint, Arc::clone(&verified));
        Ok((verified, How::Verified))
    }
}

impl Settings {
    /// The key file, to be watched for changes.
    pub fn file(&self) -> &Path {
        &self.keys
    }
}

#[cfg(test)]
mod tests;
