//! PROXY protocol headers: read exactly to their end, or refused.

use std::net::SocketAddr;

use domicile::transport::proxy_protocol::{Version, read, write};

use super::{Target, poll_once};

pub const PROXY_PROTOCOL: Target = Target { name: "proxy_protocol", words: WORDS, seeds, check, most: 512 };

const WORDS: &[&[u8]] = &[
    b"PROXY ",
    b"TCP4 ",
    b"TCP6 ",
    b"UNKNOWN",
    b"\r\n",
    b"1.2.3.4",
    b"::1",
    b" 65535",
    b" 65536",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\x21\x11\0\x0c",
    b"\x20\0\0\0",
    b"\x03\0\x04",
    b"\xff\xff",
];

fn seeds() -> Vec<Vec<u8>> {
    let addresses = [("1.2.3.4:5", "6.7.8.9:10"), ("[2001:db8::1]:5", "[::1]:10")];
    let mut seeds = vec![b"PROXY UNKNOWN\r\nGET / HTTP/1.1\r\n".to_vec()];
    for (client, local) in addresses {
        for version in [Version::One, Version::Two] {
            let mut seed = write(version, client.parse().unwrap(), local.parse().unwrap()).to_vec();
            seed.extend_from_slice(b"GET / HTTP/1.1\r\n");
            seeds.push(seed);
        }
    }
    seeds
}

fn check(bytes: &[u8]) {
    let mut rest = bytes;
    let Ok(source) = poll_once(read(&mut rest)) else { return };
    let header = &bytes[..bytes.len() - rest.len()];
    assert!(header.len() <= 16 + 4096);
    if header.starts_with(b"PROXY ") {
        // An independent parser: splits the line at single spaces.
        let line = String::from_utf8_lossy(header);
        let line = line.strip_suffix("\r\n").expect("a line ends in CRLF");
        let parts: Vec<_> = line.split(' ').collect();
        match source {
            None => assert_eq!(parts[1], "UNKNOWN", "{line}"),
            Some(source) => {
                assert_eq!(parts.len(), 6, "{line}");
                assert_eq!((parts[2].parse(), parts[4].parse()), (Ok(source.ip()), Ok(source.port())), "{line}");
            }
        }
    } else {
        assert_eq!(header.len(), 16 + usize::from(u16::from_be_bytes([header[14], header[15]])));
        assert_eq!(source, source_by_specification(header), "{}", header.escape_ascii());
    }
}

/// An independent parser for the source address of version 2 (section 2.2 of the specification). Only the command PROXY has a
/// source; its transport may also be UDP (HTTP/3).
fn source_by_specification(header: &[u8]) -> Option<SocketAddr> {
    let (command, family, block) = (header[12], header[13], &header[16..]);
    let port = |at: usize| u16::from_be_bytes(block[at..at + 2].try_into().unwrap());
    match (command, family) {
        (0x21, 0x11 | 0x12) => {
            let address: [u8; 4] = block[..4].try_into().unwrap();
            Some((address, port(8)).into())
        }
        (0x21, 0x21 | 0x22) => {
            let address: [u8; 16] = block[..16].try_into().unwrap();
            Some((address, port(32)).into())
        }
        (0x20 | 0x21, _) => None,
        _ => panic!("the command is neither LOCAL nor PROXY of version 2"),
    }
}
