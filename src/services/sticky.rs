//! Sessions that stay at one app server, by a sealed cookie. The cookie names no server to its client.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;

use crate::session::{Keys, SealError};

use super::Upstream;

/// The settings of sticky sessions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StickySettings {
    /// The name of the cookie.
    pub cookie: Box<str>,
    /// The file of the keys that seal it.
    pub keys: PathBuf,
    /// How long the browser keeps the cookie; `None` until it closes.
    pub lifetime: Option<Duration>,
}

/// Authenticated with every cookie, so that no other sealed value can pass for one.
const PURPOSE: &[u8] = b"domicile sticky session 1";

/// Seals and opens the cookies of a service.
pub struct Sticky {
    pub settings: StickySettings,
    keys: Keys,
}

impl Sticky {
    pub(super) fn of(settings: &StickySettings) -> Result<Self, SealError> {
        Ok(Self { settings: settings.clone(), keys: Keys::read(&settings.keys)? })
    }

    /// The fingerprint of the upstream in the value of a cookie; `None` for a forged value.
    pub fn open(&self, value: &[u8]) -> Option<u64> {
        self.keys.open(PURPOSE, value)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// The value of `Set-Cookie` that keeps a session at an upstream (RFC 6265).
    pub fn cookie(&self, upstream: &Upstream, is_https: bool) -> Option<HeaderValue> {
        let sealed = self.keys.seal(PURPOSE, upstream.fingerprint.to_be_bytes().to_vec())?;
        let mut text = format!("{}={sealed}; Path=/; HttpOnly; SameSite=Lax", self.settings.cookie);
        if let Some(lifetime) = self.settings.lifetime {
            text += &format!("; Max-Age={}", lifetime.as_secs());
        }
        if is_https {
            text += "; Secure";
        }
        HeaderValue::try_from(text).ok()
    }
}
