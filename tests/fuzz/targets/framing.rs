//! The gates for HTTP/1: the result does not depend on how the input is split into reads, and an independent parser finds the
//! framing unambiguous.

use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use domicile::http::framing::{ConnectionState, ExchangeState, RequestGate, RequestGateLimits, RequestKind, ResponseGate};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

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

/// A reader that returns at most `step` bytes per read, and then the end.
struct SplitReader<'a> {
    rest: &'a [u8],
    step: usize,
}

impl tokio::io::AsyncRead for SplitReader<'_> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let size = self.step.min(buf.remaining()).min(self.rest.len());
        let (now, rest) = self.rest.split_at(size);
        buf.put_slice(now);
        self.rest = rest;
        std::task::Poll::Ready(Ok(()))
    }
}

/// The bytes of the requests that the gate passes, and whether it ends with an error.
fn passed_requests(bytes: &[u8], step: usize) -> (Vec<u8>, bool) {
    let hour = Duration::from_secs(3600);
    let limits = RequestGateLimits {
        bytes: 32 << 10,
        fields: 100,
        target_bytes: 8 << 10,
        timeout: hour,
        keep_alive: hour,
        write_stall: hour,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let connection_state: Rc<ConnectionState> = Rc::default();
        let mut gate = RequestGate::new(
            SplitReader { rest: bytes, step },
            (Instant::now(), BytesMut::new()),
            limits,
            Rc::clone(&connection_state),
        );
        let mut out = Vec::new();
        loop {
            let mut buffer = [0; 4096];
            // After an upgrade request, the gate reads nothing before the response, so reading stops there.
            let read = std::future::poll_fn(|cx| {
                let mut read = tokio::io::ReadBuf::new(&mut buffer);
                match tokio::io::AsyncRead::poll_read(std::pin::Pin::new(&mut gate), cx, &mut read) {
                    std::task::Poll::Ready(outcome) => std::task::Poll::Ready(outcome.map(|()| read.filled().len())),
                    std::task::Poll::Pending => std::task::Poll::Ready(Ok(0)),
                }
            });
            match read.await {
                Ok(0) => return (out, false),
                Ok(size) => out.extend_from_slice(&buffer[..size]),
                Err(_) => return (out, true),
            }
        }
    })
}

/// An independent parser: finds the messages of a stream with httparse and the strictest interpretation of RFC 9112 section 6.
/// Returns the number of complete messages. Panics if the framing is ambiguous.
fn check_requests(mut bytes: &[u8]) -> usize {
    let mut whole = 0;
    loop {
        bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut request = httparse::Request::new(&mut fields);
        let head = match request.parse(bytes) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) => return whole,
            Err(error) => panic!("the gate passes this, but an independent parser reports: {error}"),
        };
        let all = |name: &str| {
            let fields = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
            fields.map(|field| String::from_utf8_lossy(field.value).trim().to_owned()).collect::<Vec<_>>()
        };
        let (lengths, encodings, hosts) = (all("content-length"), all("transfer-encoding"), all("host"));
        assert!(lengths.len() + encodings.len() <= 1, "the framing is ambiguous: {lengths:?} {encodings:?}");
        assert!(hosts.len() <= 1 && (request.version == Some(0) || hosts.len() == 1), "{hosts:?}");
        assert!(encodings.is_empty() || request.version == Some(1));
        bytes = &bytes[head..];
        if all("domicile-fault").len() == 1 {
            assert!(bytes.is_empty(), "no byte may follow a malformed request");
            return whole;
        }
        if let Some(encoding) = encodings.first() {
            assert!(encoding.eq_ignore_ascii_case("chunked"), "{encoding}");
            let Some(rest) = after_chunks(bytes) else { return whole };
            bytes = rest;
        } else {
            let length: usize = lengths.first().map_or(0, |length| length.parse().expect("a length is a number"));
            let Some(rest) = bytes.get(length..) else { return whole };
            bytes = rest;
        }
        whole += 1;
    }
}

fn check_request(bytes: &[u8]) {
    let (whole, has_failed) = passed_requests(bytes, usize::MAX);
    for step in [1, 7] {
        assert_eq!(passed_requests(bytes, step), (whole.clone(), has_failed), "in reads of {step} bytes");
    }
    // After an error, the output may end within a body.
    if !has_failed {
        check_requests(&whole);
    }
    assert!(whole.len() <= bytes.len() + 200);
}

fn response_seeds() -> Vec<Vec<u8>> {
    let seeds = [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\nuntil the end",
        "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nbytes",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    ];
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}

/// The bytes of a response that the gate passes, and whether it ends with an error.
fn passed_response(bytes: &[u8], asked: RequestKind, step: usize) -> (Vec<u8>, bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let link = Rc::new(ExchangeState::default());
        let mut gate = ResponseGate::new(SplitReader { rest: bytes, step }, Rc::clone(&link), Duration::from_secs(3600));
        link.ask(asked);
        let mut out = Vec::new();
        let has_failed = gate.read_to_end(&mut out).await.is_err();
        assert_eq!(has_failed, link.is_faulty());
        (out, has_failed)
    })
}

fn check_response(bytes: &[u8]) {
    for asked in [RequestKind::Other, RequestKind::Head, RequestKind::Upgrade, RequestKind::Connect] {
        let (whole, has_failed) = passed_response(bytes, asked, usize::MAX);
        for step in [1, 7] {
            assert_eq!(passed_response(bytes, asked, step), (whole.clone(), has_failed), "{asked:?} in reads of {step} bytes");
        }
        assert!(bytes.starts_with(&whole), "the gate must not add bytes");
        check_response_framing(&whole, asked);
    }
}

/// An independent parser for responses: expects informational responses, one final response, and no byte after its end.
fn check_response_framing(mut bytes: &[u8], asked: RequestKind) {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 300];
        let mut answer = httparse::Response::new(&mut fields);
        let head = match answer.parse(bytes) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) => return,
            Err(error) => panic!("the gate passes this, but an independent parser reports: {error}"),
        };
        let all = |name: &str| {
            let fields = answer.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
            fields.map(|field| String::from_utf8_lossy(field.value).trim().to_owned()).collect::<Vec<_>>()
        };
        let (lengths, encodings) = (all("content-length"), all("transfer-encoding"));
        assert!(lengths.len() + encodings.len() <= 1, "the framing is ambiguous: {lengths:?} {encodings:?}");
        bytes = &bytes[head..];
        match answer.code.expect("a whole head has a status") {
            101 => return assert_eq!(asked, RequestKind::Upgrade),
            100..=199 => continue,
            200..=299 if asked == RequestKind::Connect => return,
            204 | 304 => return assert!(bytes.is_empty(), "the response must not have a body"),
            _ if asked == RequestKind::Head => return assert!(bytes.is_empty(), "the response must not have a body"),
            _ => {}
        }
        if !encodings.is_empty() {
            return if let Some(rest) = after_chunks(bytes) {
                assert!(rest.is_empty(), "no byte may follow the end of the response")
            };
        }
        if let Some(length) = lengths.first() {
            assert!(bytes.len() <= length.parse().expect("a length is a number"), "no byte may follow the end of the response");
        }
        return;
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
        Err(error) => panic!("the gate passes these trailers, but an independent parser reports: {error}"),
    }
}
