//! Tokens by which a client proves who it is (JWT, RFC 7519; best practices of RFC 8725).
//!
//! Promises: a key is used with its own algorithm, whatever the token says; a token counts only with a good signature, in
//! its time, from the issuer and for the audience of the configuration. What cannot be verified is no identity, and never
//! an error. Never: a token or a claim in a log line.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use http::HeaderName;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

/// The longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 8 << 10;

/// The most keys of a set: each may have to be tried.
const MAX_KEYS: usize = 64;

/// Which tokens count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// A JWKS file (RFC 7517).
    pub keys: PathBuf,
    pub issuer: String,
    pub audience: String,
    pub place: Place,
    /// How far the issuer's clock may be off.
    pub leeway: Duration,
}

/// Where a token stands in a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// `NAME: Bearer TOKEN` (RFC 6750), or the token alone.
    Header(HeaderName),
    Cookie(String),
}

/// Why a set of keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason}", file.display())]
pub struct KeysError {
    file: PathBuf,
    reason: String,
}

/// Why a token is no identity; a metric label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Malformed,
    UnknownKey,
    BadSignature,
    Expired,
    /// Another issuer, audience or time than ours.
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

/// What a verified token says.
#[derive(Debug)]
pub struct Verified {
    claims: Map<String, Value>,
    /// Until when it may be believed.
    expires: SystemTime,
}

impl Verified {
    /// What a token would say, for questions about it.
    pub fn saying(claims: &[(String, String)]) -> Self {
        let claims = claims.iter().map(|(name, value)| (name.clone(), Value::String(value.clone()))).collect();
        Self { claims, expires: SystemTime::UNIX_EPOCH }
    }

    /// Until when it may be believed.
    pub const fn expires(&self) -> SystemTime {
        self.expires
    }

    /// A claim as text; `None` if it is absent, or neither text nor a whole number.
    pub fn claim(&self, name: &str) -> Option<String> {
        match self.claims.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) if number.is_u64() || number.is_i64() => Some(number.to_string()),
            _ => None,
        }
    }
}

/// The keys of an issuer, ready to verify with.
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
    /// Reads the keys. Those of kinds that are not known here are passed over; at least one must be usable.
    pub fn open(settings: &Settings) -> Result<Self, KeysError> {
        let failed = |reason: String| KeysError { file: settings.keys.clone(), reason };
        let text = std::fs::read_to_string(&settings.keys).map_err(|error| failed(error.to_string()))?;
        let set: Value = serde_json::from_str(&text).map_err(|error| failed(format!("is no JSON: {error}")))?;
        let entries =
            set.get("keys").and_then(Value::as_array).ok_or_else(|| failed("is no JWKS: it has no list `keys`".into()))?;
        if entries.len() > MAX_KEYS {
            return Err(failed(format!("holds more than {MAX_KEYS} keys")));
        }
        let mut keys = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            match read_key(entry) {
                Ok(Some(key)) => keys.push(key),
                Ok(None) => tracing::warn!(file = %settings.keys.display(), index, "a key is of a kind that is not used here"),
                Err(reason) => return Err(failed(format!("key {index}: {reason}"))),
            }
        }
        if keys.is_empty() {
            return Err(failed("holds no key that can verify a token".into()));
        }
        Ok(Self { settings: settings.clone(), keys })
    }

    /// Believes a token, or says why not.
    pub fn verify(&self, token: &str) -> Result<Verified, Fault> {
        if token.len() > MAX_TOKEN {
            return Err(Fault::Malformed);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Fault::Malformed)?;
        // What we must understand and do not (RFC 7515 section 4.1.11).
        if header.crit.is_some() {
            return Err(Fault::Malformed);
        }
        let fits = |key: &&Key| key.algorithm == header.alg && (header.kid.is_none() || key.id == header.kid);
        let mut fault = Fault::UnknownKey;
        for key in self.keys.iter().filter(fits) {
            match jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &self.validation(key.algorithm)) {
                Ok(data) => return self.believed(data.claims),
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

    fn believed(&self, claims: Map<String, Value>) -> Result<Verified, Fault> {
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

/// A key with the one algorithm it is for; `None` for a kind that is not used here.
fn read_key(entry: &Value) -> Result<Option<Key>, String> {
    // A kind of key that is not known fails to read; what is known and wrong is a mistake to be told.
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
        return Err("a shared secret of less than 32 bytes can be guessed".into());
    }
    Ok(Some(Key { id: jwk.common.key_id.clone(), algorithm, key }))
}

/// The key's own word, else what its kind is used for everywhere.
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
    // A key that names an algorithm of another kind is none.
    (named.family() == standard.family()).then_some(named)
}

/// One worker's verified tokens: a signature costs more than all else that a request needs. Bounded: when the young half
/// is full, the old half is forgotten.
#[derive(Default)]
pub struct Cache {
    of: Option<Arc<Tokens>>,
    young: HashMap<[u8; 32], Arc<Verified>>,
    old: HashMap<[u8; 32], Arc<Verified>>,
}

const HALF: usize = 2048;

/// How a token came to be believed; a metric label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    Verified,
    Remembered,
}

impl Cache {
    /// Believes a token, or says why not; other keys than the last time forget everything.
    pub fn verify(&mut self, tokens: &Arc<Tokens>, token: &str, now: SystemTime) -> Result<(Arc<Verified>, How), Fault> {
        if !self.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, tokens)) {
            *self = Self { of: Some(Arc::clone(tokens)), ..Self::default() };
        }
        let mut print = [0; 32];
        print.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        if let Some(known) = self.young.get(&print).or_else(|| self.old.get(&print)) {
            if known.expires <= now {
                return Err(Fault::Expired);
            }
            return Ok((Arc::clone(known), How::Remembered));
        }
        let verified = Arc::new(tokens.verify(token)?);
        if self.young.len() >= HALF {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(print, Arc::clone(&verified));
        Ok((verified, How::Verified))
    }
}

/// The file of keys, for whoever watches it.
impl Settings {
    pub fn file(&self) -> &Path {
        &self.keys
    }
}

#[cfg(test)]
mod tests;
