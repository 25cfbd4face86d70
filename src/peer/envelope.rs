//! The envelope: what the sending proxy says of a request that it hands over, in the field `Domicile-Request` (RFC 9651).

use std::net::IpAddr;

use sfv::{BareItem, Dictionary, KeyRef, ListEntry, Parser};

use crate::model::country::CountryCode;
use crate::model::user::{Evidence, Proof};
use crate::model::vitals::{PolicyHash, TableVersion};

use super::VERSION;

/// The longest id of a request, in bytes.
const MAX_ID: usize = 64;

/// The sender's knowledge of a request. It names regions and classes, because numbers differ between processes.
#[derive(Clone, PartialEq, Debug)]
pub struct Envelope {
    /// The request's id, for the logs of both sides.
    pub id: String,
    pub client: IpAddr,
    /// The caller, and how well its key is proven to the sender.
    pub user: Option<(String, Proof)>,
    /// The home's region; `None` for a request that nobody owns.
    pub home: Option<String>,
    pub evidence: Option<Evidence>,
    /// Left out where the sender does not trust it.
    pub country: Option<CountryCode>,
    pub classes: Vec<String>,
    pub policy: PolicyHash,
    /// The version of the sender's user table, if it has one.
    pub directory: Option<TableVersion>,
    /// The certificate that the client has proven (DER), where it has.
    pub certificate: Option<Vec<u8>>,
    /// The client came by HTTPS.
    pub is_https: bool,
    /// Only asks whether the request would be taken: no body follows, and no upstream is asked.
    pub is_question: bool,
    /// The sender has seen a 421 for this request and asked its directory again.
    pub is_second_try: bool,
}

/// The peer's field is not what this version writes.
#[derive(Debug, thiserror::Error)]
#[error("the field `Domicile-Request` is malformed: {0}")]
pub struct EnvelopeError(&'static str);

fn key(name: &'static str) -> &'static KeyRef {
    KeyRef::from_str(name).expect("the names of this field are keys")
}

impl Envelope {
    /// The field's value.
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
            // Bytes, because a key may hold what a structured string may not.
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
        put("again", Some(BareItem::Boolean(self.is_second_try)));
        out.finish().expect("a dictionary with members has a form")
    }

    /// Reads what [`Envelope::write`] writes.
    pub fn read(value: &str) -> Result<Self, EnvelopeError> {
        let fields: Dictionary = Parser::new(value).parse().map_err(|_| EnvelopeError("it is no dictionary"))?;
        let item = |name: &'static str| match fields.get(key(name)) {
            Some(ListEntry::Item(item)) => Some(&item.bare_item),
            Some(ListEntry::InnerList(_)) | None => None,
        };
        let text = |name| item(name).and_then(BareItem::as_string).map(sfv::StringRef::as_str);
        let flag = |name| item(name).and_then(BareItem::as_boolean).ok_or(EnvelopeError("a flag is missing"));
        if item("v").and_then(BareItem::as_integer) != Some(sfv::Integer::constant(VERSION)) {
            return Err(EnvelopeError("it is of another version"));
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
            is_second_try: flag("again")?,
        })
    }
}

/// An id goes into logs, the ledger and the app server's headers: letters, digits and `-` alone.
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
            is_second_try: true,
        }
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let whole = envelope();
        assert_eq!(Envelope::read(&whole.write()).unwrap(), whole);
        let bare =
            Envelope { user: None, home: None, evidence: None, country: None, certificate: None, directory: None, ..whole };
        assert_eq!(Envelope::read(&bare.write()).unwrap(), bare);
    }

    #[test]
    fn what_is_not_understood_whole_is_not_believed_in_part() {
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
