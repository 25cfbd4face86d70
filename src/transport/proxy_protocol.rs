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

/// Version 2, command LOCAL: the load balancer connects for itself.
const LOCAL: u8 = 0x20;

/// The address family of a version 2 header whose addresses are unknown or of a family that the sender does not support.
const UNSPECIFIED: u8 = 0;

/// The maximum length of a version 2 header after its first 16 bytes: addresses and fields, the largest of which is a client
/// certificate. A longer header is an attack.
const MAX_BINARY: usize = 16 << 10;

/// The version of the header that is sent to an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    One,
    Two,
}

/// Reads the header that a connection must begin with, and not a byte more. `None` if the load balancer connects for itself, for
/// example for a health check, and if the client has no IP address (a Unix socket) or an unspecified one: the specification then
/// lets the addresses of the connection itself count.
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
    if header.starts_with(SIGNATURE) { parse_binary(header) } else { parse_line(header) }
}

fn parse_line(header: &[u8]) -> Option<Option<SocketAddr>> {
    // Text after `UNKNOWN` and a space is ignored; text without the space makes it a different word.
    if header.strip_prefix(b"PROXY UNKNOWN").is_some_and(|rest| !matches!(rest.first(), Some(b' ' | b'\r'))) {
        return None;
    }
    let (parsed, length) = ProxyHeader::parse(header, ParseConfig::default()).ok()?;
    (length == header.len()).then(|| parsed.proxied_address().map(|address| address.source))
}

/// Section 2.2 of the specification.
fn parse_binary(header: &[u8]) -> Option<Option<SocketAddr>> {
    let [command, family] = *header.get(12..14)?.as_array()?;
    if command == LOCAL {
        // The receiver discards everything after a LOCAL command, its address family included.
        return Some(None);
    }
    let (parsed, length) = ProxyHeader::parse(header, ParseConfig::default()).ok()?;
    if length != header.len() {
        return None;
    }
    let fields: Result<Vec<_>, _> = parsed.tlvs().collect();
    let Ok(fields) = fields else {
        // The form of the content after an unspecified address is not specified.
        return (family == UNSPECIFIED).then_some(None);
    };
    let declared = fields.into_iter().find_map(|field| match field {
        Tlv::Crc32c(sum) => Some(sum),
        _ => None,
    });
    let is_sound = declared.is_none_or(|sum| checksum_without_itself(header).is_some_and(|computed| computed == sum));
    is_sound.then(|| parsed.proxied_address().map(|address| address.source))
}

/// The checksum of a version 2 header, computed with the checksum field set to zero.
fn checksum_without_itself(header: &[u8]) -> Option<u32> {
    let addresses = match header.get(13)? >> 4 {
        0 => 0,
        1 => 12,
        2 => 36,
        3 => 216,
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

    #[test]
    fn headers_written_by_haproxy_are_read() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/haproxy_proxy_protocol.json");
        let text = std::fs::read_to_string(file).unwrap();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let vectors = document["vectors"].as_array().unwrap();
        assert_eq!(vectors.len(), 23);
        for vector in vectors {
            let (read, rest) = block_on(read_all(&hex::decode(vector["hex"].as_str().unwrap()).unwrap()));
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

    /// A version 2 header with this command, family and content.
    fn binary(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, content].concat()
    }

    /// Adds the CRC-32C field, with a sum that is right.
    fn with_checksum(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut header = binary(command, family, &[addresses, &[3, 0, 4, 0, 0, 0, 0]].concat());
        let sum = crc32c(&header).to_be_bytes();
        let at = header.len() - 4;
        header[at..].copy_from_slice(&sum);
        header
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of the CRC catalogue");
    }

    #[test]
    fn every_family_and_command_is_read_with_and_without_a_checksum() {
        let ipv4 = [81, 2, 69, 142, 10, 0, 0, 1, 0x12, 0x34, 0, 80];
        let mut ipv6 = [0; 36];
        ipv6[..4].copy_from_slice(&[0x20, 1, 2, 0x18]);
        ipv6[15] = 1;
        ipv6[32..34].copy_from_slice(&[0x12, 0x34]);
        let v4: Option<SocketAddr> = Some("81.2.69.142:4660".parse().unwrap());
        let v6: Option<SocketAddr> = Some("[2001:218::1]:4660".parse().unwrap());
        let families: [(u8, &[u8], Option<SocketAddr>); 7] = [
            (0x11, &ipv4, v4),
            (0x12, &ipv4, v4),
            (0x21, &ipv6, v6),
            (0x22, &ipv6, v6),
            (0x31, &[7; 216], None),
            (0x32, &[7; 216], None),
            (0, &[], None),
        ];
        for (family, addresses, source) in families {
            for header in [binary(0x21, family, addresses), with_checksum(0x21, family, addresses)] {
                assert_eq!(block_on(read_all(&header)).0.unwrap(), source, "family {family:#x}");
                let mut local = header;
                local[12] = LOCAL;
                assert_eq!(block_on(read_all(&local)).0.unwrap(), None, "LOCAL with family {family:#x}");
            }
            let mut wrong = with_checksum(0x21, family, addresses);
            *wrong.last_mut().unwrap() ^= 1;
            assert!(block_on(read_all(&wrong)).0.is_err(), "a wrong checksum with family {family:#x}");
        }
        // Content of an unknown form is ignored where the specification says so, and refused elsewhere.
        assert_eq!(block_on(read_all(&binary(LOCAL, 0x99, b"??"))).0.unwrap(), None);
        assert_eq!(block_on(read_all(&binary(0x21, UNSPECIFIED, b"??"))).0.unwrap(), None);
        for (family, addresses, _) in &families[..6] {
            assert!(block_on(read_all(&binary(0x21, *family, &[*addresses, b"??"].concat()))).0.is_err(), "{family:#x}");
            assert!(block_on(read_all(&binary(0x21, *family, &addresses[1..]))).0.is_err(), "{family:#x} cut short");
        }
        for family in [0x01, 0x10, 0x13, 0x41, 0xff] {
            assert!(block_on(read_all(&binary(0x21, family, &[0; 216]))).0.is_err(), "reserved family {family:#x}");
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
