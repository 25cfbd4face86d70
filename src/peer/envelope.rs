//! The envelope: the sending proxy's statement about a request that it forwards, in the header `Domicile-Request` (RFC 9651).

use std::net::IpAddr;

use sfv::{BareItem, Dictionary, KeyRef, ListEntry, Parser};

use crate::model::country::CountryCode;
use crate::model::user::{Evidence, Proof};
use crate::model::vitals::{PolicyHash, TableVersion};

use super::VERSION;

/// Maximum length of a request's id, in bytes.
const MAX_ID: usize = 64;

/// The sender's statement about a request. It has names of regions and classes, because numbers differ between processes.
#[derive(Clone, PartialEq, Debug)]
pub struct Envelope {
    /// The request's id, for the logs of both sides.
    pub id: String,
    pub client: IpAddr,
    /// The caller's key, and how well it is proven to the sender.
    pub user: Option<(String, Proof)>,
    /// The home region; `None` for an unowned request.
    pub home: Option<String>,
    pub evidence: Option<Evidence>,
    /// `None` if the sender's GeoIP database gives no country or is too old.
    pub country: Option<CountryCode>,
    pub classes: Vec<String>,
    pub policy: PolicyHash,
    /// The version of the sender's user table, if it has one.
    pub directory: Option<TableVersion>,
    /// The client's verified certificate (DER), if it presented one.
    pub certificate: Option<Vec<u8>>,
    /// The client uses HTTPS.
    pub is_https: bool,
    /// Asks whether the receiver would accept the request. No body follows, and no upstream gets the request.
    pub is_question: bool,
    /// The sender has received a 421 for this request and repeated its directory lookup.
    pub is_retry: bool,
}

/// The header is not an envelope of this version.
#[derive(Debug, thiserror::Error)]
#[error("the header `Domicile-Request` is malformed: {0}")]
pub struct EnvelopeError(&'static str);

fn key(name: &'static str) -> &'static KeyRef {
    KeyRef::from_str(name).expect("the member names are valid keys")
}

impl Envelope {
    /// The value of the header.
    pub fn write(&self) -> String {
        let mut out = sfv::DictSerializer::new();
        let text = |text: &str| sfv::String::from_string(text.to_owned()).map(BareItem::from).ok();
        let mut put = |name, item: Option<BareItem>| {
            if let Some(item) = item {
                let _ = out.bare_item(key(name), &item);
            }
        };
        put("v", Some(BareItem::from(sfv::Integer::constant(VERSION))));
        put("id", text(&self.id));
        put("client", text(&self.client.to_string()));
        if let Some((user, proof)) = &self.user {
            // A byte sequence, because a key may contain characters that a structured string may not.
            put("user", Some(BareItem::ByteSequence(user.as_bytes().to_vec())));
            put("proof", text(proof.as_str()));
        }
        put("home", self.home.as_deref().and_then(text));
        put("evidence", self.evidence.and_then(|evidence| text(evidence.as_str())));
        put("country", self.country.and_then(|country| text(country.as_str())));
        put("class", text(&self.classes.join(" ")));
        put("policy", text(&self.policy.to_string()));
        put("directory", self.directory.and_then(|version| text(&version.to_string())));
        put("certificate", self.certificate.clone().map(BareItem::ByteSequence));
        put("https", Some(BareItem::Boolean(self.is_https)));
        put("question", Some(BareItem::Boolean(self.is_question)));
        put("again", Some(BareItem::Boolean(self.is_retry)));
        out.finish().expect("a dictionary with members can be serialized")
    }

    /// Reads a header that [`Envelope::write`] wrote.
    pub fn read(value: &str) -> Result<Self, EnvelopeError> {
        let fields: Dictionary = Parser::new(value).parse().map_err(|_| EnvelopeError("it is not a dictionary"))?;
        let item = |name: &'static str| match fields.get(key(name)) {
            Some(ListEntry::Item(item)) => Some(&item.bare_item),
            Some(ListEntry::InnerList(_)) | None => None,
        };
        let text = |name| item(name).and_then(BareItem::as_string).map(sfv::StringRef::as_str);
        let flag = |name| item(name).and_then(BareItem::as_boolean).ok_or(EnvelopeError("a flag is missing"));
        if item("v").and_then(BareItem::as_integer) != Some(sfv::Integer::constant(VERSION)) {
            return Err(EnvelopeError("the version is not supported"));
        }
        let user = match item("user") {
            None => None,
            Some(user) => {
                let user = user.as_byte_sequence().and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
                let proof = text("proof").and_then(Proof::parse);
                Some(user.zip(proof).ok_or(EnvelopeError("the user is malformed"))?)
            }
        };
        let evidence =
            text("evidence").map(|text| Evidence::parse(text).ok_or(EnvelopeError("the evidence is unknown"))).transpose()?;
        let country =
            text("country").map(|text| CountryCode::parse(text).ok_or(EnvelopeError("the country is unknown"))).transpose()?;
        Ok(Self {
            id: text("id").filter(|id| is_plain_id(id)).ok_or(EnvelopeError("the id is missing or malformed"))?.to_owned(),
            client: text("client").and_then(|client| client.parse().ok()).ok_or(EnvelopeError("the client is missing"))?,
            user,
            home: text("home").map(str::to_owned),
            evidence,
            country,
            classes: text("class").ok_or(EnvelopeError("the class is missing"))?.split(' ').map(str::to_owned).collect(),
            policy: text("policy").and_then(PolicyHash::parse).ok_or(EnvelopeError("the policy is missing"))?,
            directory: match text("directory") {
                Some(version) => Some(TableVersion::parse(version).ok_or(EnvelopeError("the directory's version is malformed"))?),
                None => None,
            },
            certificate: item("certificate").and_then(BareItem::as_byte_sequence).map(<[u8]>::to_vec),
            is_https: flag("https")?,
            is_question: flag("question")?,
            is_retry: flag("again")?,
        })
    }
}

/// Whether an id has only letters, digits and `-`, because ids are written to logs, the ledger and the app server's headers.
fn is_plain_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= MAX_ID && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            id: "01J".into(),
            client: "2001:db8::1".parse().unwrap(),
            user: Some(("zoë \"x\"".into(), Proof::Claimed)),
            home: Some("eu-west".into()),
            evidence: Some(Evidence::Inferred),
            country: CountryCode::parse("DE"),
            classes: vec!["personal".into(), "restricted".into()],
            policy: PolicyHash([7; 16]),
            directory: Some(TableVersion([9; 16])),
            certificate: Some(vec![0x30, 0, 0xff]),
            is_https: true,
            is_question: false,
            is_retry: true,
        }
    }

    #[test]
    fn an_envelope_reads_back_as_it_was_written() {
        let whole = envelope();
        assert_eq!(Envelope::read(&whole.write()).unwrap(), whole);
        let bare =
            Envelope { user: None, home: None, evidence: None, country: None, certificate: None, directory: None, ..whole };
        assert_eq!(Envelope::read(&bare.write()).unwrap(), bare);
    }

    #[test]
    fn a_partly_valid_envelope_is_refused() {
        let good = envelope().write();
        for bad in [
            "",
            "v=2",
            "x",
            &good.replace("v=2", "v=1"),
            &good.replace("\"01J\"", "\"\""),
            &good.replace("\"01J\"", "\"a b\""),
            &good.replace("\"01J\"", &format!("\"{}\"", "x".repeat(65))),
            &good.replace("\"DE\"", "\"EU\""),
            &good.replace("claimed", "sworn"),
            &good[..good.len() / 2],
        ] {
            assert!(Envelope::read(bad).is_err(), "{bad}");
        }
    }
}
