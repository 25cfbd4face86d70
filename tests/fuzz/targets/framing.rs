//! The HTTP/1 codec: the result does not depend on how the input is split into reads, and independent parsers (httparse, and hyper
//! as a server and as a client) read every accepted message in the same way.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use domicile::http::http1::{BodyDecoder, Decoded, HeadLimits, RequestKind, ResponseReader, read_request};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Target;

pub const REQUESTS: Target = Target { name: "requests", words: WORDS, seeds: payloads, check: check_request, most: 2048 };

pub const ANSWERS: Target = Target { name: "answers", words: WORDS, seeds: response_seeds, check: check_response, most: 2048 };

const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Host: a\r\n",
    b"Connection: upgrade\r\nUpgrade: x\r\n",
    b"chunked",
    b"gzip, ",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b";ext=\"x\"",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"GET / HTTP/1.1\r\n",
    b"POST ",
    b"CONNECT ",
    b"\r\n ",
    b"_",
    b"+",
    b"0x",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"\x80",
];

fn payloads() -> Vec<Vec<u8>> {
    let corpus: serde_json::Value = serde_yaml::from_str(include_str!("../../framing/corpus.yaml")).unwrap();
    let groups = corpus.as_array().unwrap().iter().flat_map(|group| group["payloads"].as_array().unwrap());
    groups.map(|payload| payload["send"].as_str().unwrap().as_bytes().to_vec()).collect()
}

/// A message as a parser has read it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Message {
    /// Method and target, or the status.
    start: String,
    /// In lower case, sorted by name. `Host` and the fields of a connection are included.
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
}

fn sorted(fields: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = fields.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    fields
}

/// Input that arrives in pieces.
struct Pieces<'a> {
    buffer: BytesMut,
    rest: &'a [u8],
    step: usize,
}

impl<'a> Pieces<'a> {
    fn of(rest: &'a [u8], step: usize) -> Self {
        Self { buffer: BytesMut::new(), rest, step }
    }

    /// Receives the next piece; false at the end.
    fn receive(&mut self) -> bool {
        let (now, rest) = self.rest.split_at(self.step.min(self.rest.len()));
        self.buffer.extend_from_slice(now);
        self.rest = rest;
        !now.is_empty()
    }

    fn left(&self) -> usize {
        self.buffer.len() + self.rest.len()
    }
}

/// How reading ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Complete,
    Incomplete,
    Malformed,
    /// HTTP ends here, or may end here.
    Tunnel,
}

fn read_body(mut decoder: BodyDecoder, pieces: &mut Pieces<'_>, message: &mut Message) -> End {
    loop {
        match decoder.decode(&mut pieces.buffer) {
            Err(_) => return End::Malformed,
            Ok(Decoded::Ended) => return End::Complete,
            Ok(Decoded::Data(data)) => message.body.extend_from_slice(&data),
            Ok(Decoded::Trailers(trailers)) => message.trailers = sorted(&trailers),
            Ok(Decoded::Incomplete) => {
                if !pieces.receive() && decoder.close().is_err() {
                    return End::Incomplete;
                }
            }
        }
    }
}

/// The complete requests that the codec reads, how many bytes they have, and how reading ends.
fn read_requests(bytes: &[u8], step: usize) -> (Vec<Message>, usize, End) {
    let hour = Duration::from_secs(3600);
    let (timeout, keep_alive) = (hour, hour);
    let limits = HeadLimits { bytes: 32 << 10, fields: 100, target_bytes: 8 << 10, timeout, keep_alive };
    let (mut pieces, mut seen, mut found, mut end) = (Pieces::of(bytes, step), 0, Vec::new(), 0);
    loop {
        match read_request(&mut pieces.buffer, &mut seen, &limits) {
            Err(_) => return (found, end, End::Malformed),
            Ok(None) if !pieces.receive() => {
                let outcome = if pieces.left() == 0 { End::Complete } else { End::Incomplete };
                return (found, end, outcome);
            }
            Ok(None) => {}
            Ok(Some(head)) => {
                let start = format!("{} {} {:?}", head.parts.method, head.parts.uri, head.parts.version);
                let mut message = Message { start, fields: sorted(&head.parts.headers), ..Message::default() };
                let may_tunnel = head.parts.method == http::Method::CONNECT || head.parts.headers.contains_key("upgrade");
                match read_body(head.body, &mut pieces, &mut message) {
                    End::Complete => found.push(message),
                    other => return (found, end, other),
                }
                end = bytes.len() - pieces.left();
                if may_tunnel {
                    return (found, end, End::Tunnel);
                }
                if !head.keeps_alive {
                    return (found, end, End::Complete);
                }
            }
        }
    }
}

fn check_request(bytes: &[u8]) {
    let (found, end, outcome) = read_requests(bytes, usize::MAX);
    for step in [1, 7] {
        assert_eq!(read_requests(bytes, step), (found.clone(), end, outcome), "in reads of {step} bytes");
    }
    check_with_httparse(&bytes[..end], &found);
    if outcome != End::Tunnel {
        assert_eq!(requests_of_hyper(&bytes[..end]), found, "hyper reads this differently");
    }
}

/// Finds the requests with httparse and the strictest interpretation of RFC 9112 section 6, and compares them.
fn check_with_httparse(mut bytes: &[u8], expected: &[Message]) {
    for message in expected {
        bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut request = httparse::Request::new(&mut fields);
        let head = match request.parse(bytes) {
            Ok(httparse::Status::Complete(head)) => head,
            other => panic!("the codec accepts this, but an independent parser reports: {other:?}"),
        };
        let mut names: Vec<_> =
            request.headers.iter().map(|field| (field.name.to_ascii_lowercase(), field.value.to_vec())).collect();
        names.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(names, message.fields);
        let all = |name: &str| names.iter().filter(|(other, _)| other == name).map(|(_, value)| value).collect::<Vec<_>>();
        let (lengths, encodings, hosts) = (all("content-length"), all("transfer-encoding"), all("host"));
        assert!(lengths.len() + encodings.len() <= 1, "the framing is ambiguous: {lengths:?} {encodings:?}");
        assert!(hosts.len() <= 1 && (request.version == Some(0) || hosts.len() == 1), "{hosts:?}");
        assert!(encodings.is_empty() || request.version == Some(1));
        bytes = &bytes[head..];
        if let Some(encoding) = encodings.first() {
            assert!(encoding.eq_ignore_ascii_case(b"chunked"), "{encoding:?}");
            bytes = after_chunks(bytes).expect("the body is complete");
        } else {
            let length = lengths.first().map_or(0, |length| std::str::from_utf8(length).unwrap().parse().unwrap());
            assert_eq!(bytes[..length], message.body);
            bytes = &bytes[length..];
        }
    }
    assert!(bytes.is_empty());
}

/// The requests that hyper reads.
fn requests_of_hyper(bytes: &[u8]) -> Vec<Message> {
    let found: Arc<Mutex<Vec<Message>>> = Arc::default();
    let seen = Arc::clone(&found);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let (head, body) = request.into_parts();
            let start = format!("{} {} {:?}", head.method, head.uri, head.version);
            let mut message = Message { start, fields: sorted(&head.headers), ..Message::default() };
            let whole = body.collect().await.expect("the body is complete");
            message.trailers = whole.trailers().map(sorted).unwrap_or_default();
            message.body = whole.to_bytes().to_vec();
            seen.lock().unwrap().push(message);
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let mut builder = hyper::server::conn::http1::Builder::new();
        let serving = builder.half_close(true).max_headers(128).serve_connection(TokioIo::new(server), service);
        let _ = serving.await;
        let _ = client.read_to_end(&mut Vec::new()).await;
    });
    std::mem::take(&mut *found.lock().unwrap())
}

fn response_seeds() -> Vec<Vec<u8>> {
    let seeds = [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\nuntil the end",
        "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nbytes",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
    ];
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}

/// The final response that the codec reads, how many bytes come before it and up to its end, and how reading ends.
fn read_response(bytes: &[u8], asked: RequestKind, step: usize) -> (Message, usize, usize, End) {
    let (mut pieces, mut reader, mut start) = (Pieces::of(bytes, step), ResponseReader::to(asked), 0);
    loop {
        match reader.read(&mut pieces.buffer) {
            Err(_) => return (Message::default(), start, 0, End::Malformed),
            Ok(None) if !pieces.receive() => return (Message::default(), start, 0, End::Incomplete),
            Ok(None) => {}
            Ok(Some(head)) => {
                let status = head.parts.status;
                if status.is_informational() && !head.opens_tunnel {
                    start = bytes.len() - pieces.left();
                    continue;
                }
                let mut message =
                    Message { start: status.to_string(), fields: sorted(&head.parts.headers), ..Message::default() };
                if head.opens_tunnel {
                    return (message, start, bytes.len() - pieces.left(), End::Tunnel);
                }
                let end = read_body(head.body, &mut pieces, &mut message);
                return (message, start, bytes.len() - pieces.left(), end);
            }
        }
    }
}

fn check_response(bytes: &[u8]) {
    for asked in [RequestKind::Other, RequestKind::Head, RequestKind::Upgrade, RequestKind::Connect] {
        let (message, start, end, outcome) = read_response(bytes, asked, usize::MAX);
        for step in [1, 7] {
            let again = read_response(bytes, asked, step);
            // A body may be malformed behind different amounts of data, depending on the reads.
            assert_eq!((&again.0.start, &again.0.fields, again.1, again.3), (&message.start, &message.fields, start, outcome));
            assert!(
                outcome != End::Complete || again == (message.clone(), start, end, outcome),
                "{asked:?} in reads of {step} bytes"
            );
        }
        if outcome == End::Complete {
            check_response_with_httparse(&bytes[start..end], asked, &message);
        }
    }
}

/// An independent parser for a final response, without any byte after its end.
fn check_response_with_httparse(mut bytes: &[u8], asked: RequestKind, message: &Message) {
    let mut fields = [httparse::EMPTY_HEADER; 300];
    let mut answer = httparse::Response::new(&mut fields);
    let mut config = httparse::ParserConfig::default();
    config.allow_spaces_after_header_name_in_responses(true);
    let head = match config.parse_response(&mut answer, bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        other => panic!("the codec accepts this, but an independent parser reports: {other:?}"),
    };
    let all = |name: &str| {
        let fields = answer.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        fields.map(|field| String::from_utf8_lossy(field.value).trim().to_owned()).collect::<Vec<_>>()
    };
    let (lengths, encodings) = (all("content-length"), all("transfer-encoding"));
    assert!(lengths.len() + encodings.len() <= 1, "the framing is ambiguous: {lengths:?} {encodings:?}");
    bytes = &bytes[head..];
    match answer.code.expect("a whole head has a status") {
        100..=199 => panic!("informational responses come before the final one"),
        204 | 304 => return assert!(bytes.is_empty(), "the response must not have a body"),
        _ if asked == RequestKind::Head => return assert!(bytes.is_empty(), "the response must not have a body"),
        _ => {}
    }
    if !encodings.is_empty() {
        assert!(after_chunks(bytes).expect("the body is complete").is_empty(), "no byte may follow the end of the response");
    } else {
        assert_eq!(bytes, message.body);
        assert!(lengths.first().is_none_or(|length| length.parse() == Ok(bytes.len())));
    }
}

/// The bytes after a chunked body; `None` if the body is incomplete.
fn after_chunks(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let Ok(httparse::Status::Complete((at, size))) = httparse::parse_chunk_size(bytes) else { return None };
        bytes = &bytes[at..];
        if size == 0 {
            break;
        }
        bytes = bytes.get(size as usize..)?;
        if bytes.len() < 2 {
            return None;
        }
        bytes = bytes.strip_prefix(b"\r\n").expect("a chunk ends where its size says");
    }
    let mut trailers = [httparse::EMPTY_HEADER; 128];
    match httparse::parse_headers(bytes, &mut trailers) {
        Ok(httparse::Status::Complete((at, _))) => Some(&bytes[at..]),
        Ok(httparse::Status::Partial) => None,
        Err(error) => panic!("the codec accepts these trailers, but an independent parser reports: {error}"),
    }
}
