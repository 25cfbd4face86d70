//! The owner's response to a request or a question: its code, its data classes, and a declined upgrade.

use http::{HeaderMap, HeaderValue, StatusCode};

use crate::http::lists;
use crate::model::outcome::Code;

use super::fields;

/// The status with which the owner accepts the request of a question.
pub const ACCEPTED: StatusCode = StatusCode::NO_CONTENT;

/// The meaning of an owner's response for the sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// The app server's response.
    Served,
    /// The owner did not process the request: it does not own it, or could not read the envelope.
    Disowned,
    /// The owner was unable to serve the request; another region may be able to.
    Outage(Code),
    /// The owner refuses the request under its policy.
    Refused(Code),
}

/// Reads the code of an owner's response. A code that this version does not know counts as none.
pub fn code_of(headers: &HeaderMap) -> Option<Code> {
    let code = headers.get(fields::CODE)?;
    Code::ALL.iter().copied().find(|known| code == known.as_str())
}

/// Reads the meaning of an owner's response.
pub fn meaning_of(headers: &HeaderMap) -> Meaning {
    match code_of(headers) {
        None => Meaning::Served,
        Some(Code::Misdirected | Code::PeerMalformed) => Meaning::Disowned,
        Some(code) if is_outage(code) => Meaning::Outage(code),
        Some(code) => Meaning::Refused(code),
    }
}

const fn is_outage(code: Code) -> bool {
    matches!(
        code,
        Code::UpstreamUnreachable
            | Code::UpstreamBad
            | Code::UpstreamTimeout
            | Code::HomeDown
            | Code::AllDown
            | Code::LedgerUnavailable
            | Code::Overloaded
            | Code::DirectoryUnavailable
    )
}

/// Writes the code of a refusal.
pub fn write_code(headers: &mut HeaderMap, code: Code) {
    headers.insert(fields::CODE, HeaderValue::from_static(code.as_str()));
}

/// Marks a 2xx response with which the app server declined the upgrade.
pub fn write_declined(headers: &mut HeaderMap) {
    headers.insert(fields::DECLINED, HeaderValue::from_static("?1"));
}

/// Reads the data classes with which an app server, or the owner for it, labelled a response; `None` if the field is malformed or
/// empty.
pub fn labels_of(headers: &HeaderMap) -> Option<Vec<Box<str>>> {
    let mut labels = Vec::new();
    for value in headers.get_all(fields::DATA_CLASS) {
        let before = labels.len();
        for name in lists::tokens(value.to_str().ok()?.as_bytes()) {
            labels.push(std::str::from_utf8(name).ok()?.into());
        }
        if labels.len() == before {
            return None;
        }
    }
    Some(labels)
}

/// Writes the data classes of a response.
pub fn write_labels(headers: &mut HeaderMap, labels: &[Box<str>]) {
    if let Ok(value) = HeaderValue::from_str(&labels.join(", "))
        && !labels.is_empty()
    {
        headers.insert(fields::DATA_CLASS, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_as_it_was_written() {
        let mut outages = 0;
        for code in Code::ALL.iter().copied() {
            let mut headers = HeaderMap::new();
            write_code(&mut headers, code);
            assert_eq!(code_of(&headers), Some(code));
            match meaning_of(&headers) {
                Meaning::Served => panic!("{code:?} is not a response of an app server"),
                Meaning::Disowned => assert!(matches!(code, Code::Misdirected | Code::PeerMalformed)),
                Meaning::Outage(read) => {
                    assert_eq!(read, code);
                    outages += 1;
                }
                Meaning::Refused(read) => assert_eq!(read, code),
            }
        }
        assert_eq!(outages, 8);
        let mut unknown = HeaderMap::new();
        unknown.insert(fields::CODE, HeaderValue::from_static("some.other"));
        assert_eq!((meaning_of(&HeaderMap::new()), meaning_of(&unknown)), (Meaning::Served, Meaning::Served));
    }

    #[test]
    fn labels_read_back_as_they_were_written() {
        let labels: Vec<Box<str>> = vec!["personal".into(), "restricted".into()];
        let mut headers = HeaderMap::new();
        write_labels(&mut headers, &labels);
        assert_eq!(labels_of(&headers), Some(labels));
        write_labels(&mut headers, &[]);
        assert_eq!(labels_of(&headers).map(|labels| labels.len()), Some(2), "no labels change nothing");
        assert_eq!(labels_of(&HeaderMap::new()), Some(Vec::new()));
        for malformed in [&b""[..], b" , ", b"a\xff"] {
            let mut headers = HeaderMap::new();
            headers.insert(fields::DATA_CLASS, HeaderValue::from_bytes(malformed).unwrap());
            assert_eq!(labels_of(&headers), None, "{malformed:?}");
        }
    }
}
