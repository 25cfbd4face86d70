//! The framing corpus over real sockets: every payload gets its expected verdict at home, through two regions and over TLS.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde::Deserialize;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{TIMEOUT, World, eventually, runtime, tls};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    group: String,
    verdict: String,
    #[serde(rename = "about")]
    _about: String,
    payloads: Vec<Payload>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    it: String,
    send: String,
}

fn corpus() -> Vec<Group> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/framing/corpus.yaml");
    serde_yaml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// Expands `{x*9000}` to 9,000 times `x`.
fn expanded(text: &str) -> Vec<u8> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let run = rest[at + 1..].split_once('}').and_then(|(run, after)| {
            let (what, count) = run.split_once('*')?;
            Some((what.repeat(count.parse().ok()?), after))
        });
        out.push_str(&rest[..at]);
        match run {
            Some((run, after)) => {
                out.push_str(&run);
                rest = after;
            }
            None => {
                out.push('{');
                rest = &rest[at + 1..];
            }
        }
    }
    (out + rest).into_bytes()
}

/// Sends these bytes and returns the statuses of all final responses.
fn statuses(address: SocketAddr, bytes: &[u8]) -> Vec<u16> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    // The proxy may refuse the request and close the connection before all bytes are written.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the proxy does not close the connection");
    }
    finals(&answer)
}

/// Like [`statuses`], over TLS.
fn statuses_over_tls(world: &World, address: SocketAddr, bytes: &[u8]) -> Vec<u16> {
    let answer = runtime().block_on(async {
        let mut stream = tls(world, address, "localhost", &[b"http/1.1"]).await;
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        // Ignore an error at the end, because the proxy may close the connection without a TLS close_notify.
        let read = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "the proxy does not close the connection");
        answer
    });
    finals(&answer)
}

fn finals(answer: &[u8]) -> Vec<u16> {
    let answer = String::from_utf8_lossy(answer).into_owned();
    let lines = answer.match_indices("HTTP/1.").map(|(at, _)| answer[at + 9..].get(..3).and_then(|status| status.parse().ok()));
    lines.flatten().filter(|status| *status >= 200).collect()
}

#[test]
fn every_payload_of_the_corpus_gets_its_verdict() {
    let world = World::start();
    let (mut sent, mut wrong) = (0, Vec::new());
    for group in corpus() {
        for payload in &group.payloads {
            sent += 1;
            let bytes = expanded(&payload.send);
            for (region, is_tls) in [(world.eu(), false), (world.us(), false), (world.us(), true)] {
                let before = world.eu().upstream().seen().len();
                let found = if is_tls { statuses_over_tls(&world, region.https, &bytes) } else { statuses(region.http, &bytes) };
                let (served, refused) = match group.verdict.split_once(", then ") {
                    Some((served, refused)) => (served, Some(refused)),
                    None => (group.verdict.as_str(), None),
                };
                let count = served.strip_prefix("serve ").map_or(0, |count| count.parse().unwrap());
                let mut expected = vec![200; count];
                match served {
                    "cut" => expected = found.iter().copied().filter(|status| *status >= 400).take(1).collect(),
                    _ if count > 0 => expected.extend(refused.map(|status| status.parse::<u16>().unwrap())),
                    status => expected.push(status.parse().unwrap()),
                }
                let seen = world.eu().upstream().seen().len() - before;
                if found != expected || seen != count {
                    wrong.push(format!(
                        "{}: {} at {}, TLS {is_tls}: {found:?}, {seen} seen; the verdict is {}",
                        group.group, payload.it, region.name, group.verdict
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {sent}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(sent >= 420, "the corpus has {sent} payloads, and 420 are recorded");
    assert!(world.eu().upstream().seen().iter().all(|seen| !seen.target.contains("smuggled")));
    for other in [world.us(), world.jp()] {
        other.upstream().assert_no_requests();
    }
    eventually("all connections are closed", || {
        world.eu().metrics().contains(&format!("domicile_connections{{listener=\"{}\"}} 0", world.eu().http))
    });
}
