//! The PROXY protocol (versions 1 and 2, as HAProxy documents them): a load balancer that does not speak HTTP sends the client's
//! address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use proxy_header::{ParseConfig, ProxiedAddress, ProxyHeader, Tlv};
use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The maximum length of a version 1 line, CRLF included.
const MAX_LINE: usize = 107;

/// The maximum length of a version 2 header after its first 16 bytes: addresses and a few fields. A longer header is an attack.
const MAX_BINARY: usize = 4096;

/// The version of the header that is sent to an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    One,
    Two,
}

/// Reads the header that a connection must begin with, and not a byte more. `None` if the load balancer connects for itself, for
/// example for a health check.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut header = vec![0; SIGNATURE.len()];
    stream.read_exact(&mut header).await?;
    if header == SIGNATURE {
        header.resize(16, 0);
        stream.read_exact(&mut header[12..]).await?;
        let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if length > MAX_BINARY {
            return Err(malformed());
        }
        header.resize(16 + length, 0);
        stream.read_exact(&mut header[16..]).await?;
    } else {
        while !header.ends_with(b"\n") {
            if header.len() == MAX_LINE || !header.starts_with(b"PROXY ") {
                return Err(malformed());
            }
            header.push(stream.read_u8().await?);
        }
    }
    parse(&header).ok_or_else(malformed)
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "missing or malformed PROXY protocol header")
}

/// Parses a complete header. The outer `None` means that it is malformed.
fn parse(header: &[u8]) -> Option<Option<SocketAddr>> {
    // Text after `UNKNOWN` and a space is ignored; text without the space makes it a different word.
    if header.strip_prefix(b"PROXY UNKNOWN").is_some_and(|rest| !matches!(rest[0], b' ' | b'\r')) {
        return None;
    }
    let (parsed, length) = ProxyHeader::parse(header, ParseConfig::default()).ok()?;
    let is_whole = length == header.len();
    let fields: Result<Vec<_>, _> = parsed.tlvs().collect();
    let declared = fields.ok()?.into_iter().find_map(|field| match field {
        Tlv::Crc32c(sum) => Some(sum),
        _ => None,
    });
    let is_sound = declared.is_none_or(|sum| checksum_without_itself(header).is_some_and(|computed| computed == sum));
    (is_whole && is_sound).then(|| parsed.proxied_address().map(|address| address.source))
}

/// The checksum of a version 2 header, computed with the checksum field set to zero.
fn checksum_without_itself(header: &[u8]) -> Option<u32> {
    let addresses = match header.get(13)? >> 4 {
        1 => 12,
        2 => 36,
        _ => return None,
    };
    let mut zeroed = header.to_vec();
    let mut at = 16 + addresses;
    while let Some(field) = zeroed.get(at..at + 3) {
        let length = usize::from(u16::from_be_bytes([field[1], field[2]]));
        if field[0] == 3 {
            zeroed.get_mut(at + 3..at + 3 + length)?.fill(0);
            return Some(crc32c(&zeroed));
        }
        at += 3 + length;
    }
    None
}

/// CRC-32C (Castagnoli), bit by bit: the field is rare and the header has a few dozen bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// The header for a connection on behalf of `client`, which connected to `local`.
pub fn write(version: Version, client: SocketAddr, local: SocketAddr) -> Bytes {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    // Both addresses must have the same family.
    let local = match (client.ip(), local.ip().to_canonical()) {
        (IpAddr::V4(_), address @ IpAddr::V4(_)) | (IpAddr::V6(_), address @ IpAddr::V6(_)) => {
            SocketAddr::new(address, local.port())
        }
        (IpAddr::V4(_), IpAddr::V6(_)) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), local.port()),
        (IpAddr::V6(_), IpAddr::V4(_)) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), local.port()),
    };
    encode(version, &ProxyHeader::with_address(ProxiedAddress::stream(client, local)))
}

/// The header for one of the proxy's own connections, such as a health check.
pub fn write_own(version: Version) -> Bytes {
    match version {
        Version::One => Bytes::from_static(b"PROXY UNKNOWN\r\n"),
        Version::Two => encode(version, &ProxyHeader::with_local()),
    }
}

fn encode(version: Version, header: &ProxyHeader<'_>) -> Bytes {
    let mut out = Vec::new();
    let written = match version {
        Version::One => header.encode_v1(&mut out),
        Version::Two => header.encode_v2(&mut out),
    };
    written.expect("two addresses of one family can be encoded");
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(bytes: &[u8]) -> (io::Result<Option<SocketAddr>>, Vec<u8>) {
        let mut stream = bytes;
        let read = read(&mut stream).await;
        (read, stream.to_vec())
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn headers_written_by_haproxy_are_read() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/haproxy_proxy_protocol.json");
        let text = std::fs::read_to_string(file).unwrap();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let vectors = document["vectors"].as_array().unwrap();
        assert_eq!(vectors.len(), 23);
        for vector in vectors {
            let (read, rest) = block_on(read_all(&unhex(vector["hex"].as_str().unwrap())));
            let expect = &vector["expect"];
            let source = expect["source"].as_str().or_else(|| expect["raw"][2].as_str());
            let port = expect["source_port"].as_u64().or_else(|| expect["raw"][4].as_str()?.parse().ok());
            let expected = source.map(|source| SocketAddr::new(source.parse().unwrap(), port.unwrap() as u16));
            assert_eq!(read.unwrap(), expected, "{vector}");
            assert_eq!(rest, if vector["ends_with_payload"] == true { b"PAYLOAD\n".to_vec() } else { vec![] });
        }
    }

    #[test]
    fn a_written_header_is_read_back() {
        for (client, local) in [
            ("1.2.3.4:5", "6.7.8.9:10"),
            ("[2001:db8::1]:5", "[::1]:10"),
            ("1.2.3.4:5", "[::1]:10"),
            ("[2001:db8::1]:5", "6.7.8.9:10"),
        ] {
            let (client, local) = (client.parse().unwrap(), local.parse().unwrap());
            for version in [Version::One, Version::Two] {
                assert_eq!(block_on(read_all(&write(version, client, local))).0.unwrap(), Some(client));
                assert_eq!(block_on(read_all(&write_own(version))).0.unwrap(), None);
            }
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let sound = write(Version::Two, "1.2.3.4:5".parse().unwrap(), "6.7.8.9:10".parse().unwrap()).to_vec();
        let with = |at: usize, byte: u8| {
            let mut bytes = sound.clone();
            bytes[at] = byte;
            bytes
        };
        let mut bad_field = sound.clone();
        bad_field[15] += 4;
        bad_field.extend_from_slice(&[4, 0, 200, 1]);
        let mut bad_sum = sound.clone();
        bad_sum[15] += 7;
        bad_sum.extend_from_slice(&[3, 0, 4, 1, 2, 3, 4]);
        for bytes in [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            b"PROXY TCP4 1.2.3.4 5.6.7.8 99999 1\r\n".to_vec(),
            b"PROXY TCP4 1.2.3.4\r\n".to_vec(),
            b"PROXY UNKNOWNS 1.2.3.4\r\n".to_vec(),
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 1\n".to_vec(),
            b"PROXY TCP6 1.2.3.4 5.6.7.8 1 1\r\n".to_vec(),
            format!("PROXY TCP4 {}\r\n", "1".repeat(200)).into_bytes(),
            sound[..20].to_vec(),
            with(12, 0x31),
            with(12, 0x2f),
            with(14, 0xff),
            bad_field,
            bad_sum,
            vec![],
        ] {
            assert!(block_on(read_all(&bytes)).0.is_err(), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }
}
