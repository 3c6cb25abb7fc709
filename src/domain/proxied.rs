//! What a proxy says of a connection before anything else: the header of the PROXY protocol.
//!
//! [`step`] is asked again and again with what has come so far, and says how much more belongs to
//! the header in any case: who reads no more than that leaves the first byte of what follows where
//! it is.

// Addresses are plain data; `std::net` would bring sockets with it.
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::domain::limit::PROXY_HEADER_BYTES_MAX;

/// How version 2 begins. Shorter than any header of either version.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// How version 1 begins.
const WORD: &[u8] = b"PROXY ";

/// The longest header of version 1, with its end.
const LINE_BYTES_MAX: usize = 107;

/// The shortest line that tells an IPv6 address, and one that tells an IPv4 address.
const LINE6_BYTES_MIN: usize = b"PROXY TCP6 :: :: 0 0\r\n".len();
const LINE4_BYTES_MIN: usize = b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n".len();

/// What version 2 has before the addresses.
const FIXED_BYTES: usize = 16;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// At least so many more bytes.
    More(usize),
    /// Nothing: that was all of it.
    Done(Proxied),
}

/// For whom the proxy connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxied {
    /// For this client.
    For(SocketAddr),
    /// For itself, or for somebody whose address is not told.
    Itself,
}

/// It is no such header, or a wrong one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Looks at what has come so far, nothing at first.
pub fn step(header: &[u8]) -> Result<Step, Malformed> {
    let begins = |with: &[u8]| header.iter().zip(with).all(|(byte, wanted)| byte == wanted);
    if begins(SIGNATURE) {
        return version_2(header);
    }
    if begins(WORD) { version_1(header) } else { Err(Malformed) }
}

/// Whether a connection that begins so begins with such a header, as far as can be told.
pub fn is_header(first_bytes: &[u8]) -> bool {
    first_bytes.starts_with(WORD) || first_bytes.starts_with(SIGNATURE)
}

fn version_1(header: &[u8]) -> Result<Step, Malformed> {
    if let Some(line) = header.strip_suffix(b"\r\n") {
        let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
        return told(line).map(Step::Done).ok_or(Malformed);
    }
    if header.len() >= LINE_BYTES_MAX || header.contains(&b'\n') {
        return Err(Malformed);
    }
    let least = match header {
        [b'P', b'R', b'O', b'X', b'Y', b' ', b'T', b'C', b'P', b'4', ..] => LINE4_BYTES_MIN,
        [b'P', b'R', b'O', b'X', b'Y', b' ', b'T', b'C', b'P', b'6', ..] => LINE6_BYTES_MIN,
        _ => SIGNATURE.len(),
    };
    // Two bytes end it; of these the first may be here.
    let end = if header.ends_with(b"\r") { 1 } else { 2 };
    let more = least.saturating_sub(header.len()).max(end);
    Ok(Step::More(more.min(LINE_BYTES_MAX - header.len())))
}

fn told(line: &str) -> Option<Proxied> {
    let rest = line.strip_prefix("PROXY ")?;
    if rest == "UNKNOWN" || rest.starts_with("UNKNOWN ") {
        return Some(Proxied::Itself);
    }
    let mut words = rest.split(' ');
    let family = words.next()?;
    let mut address = || -> Option<IpAddr> {
        let word = words.next()?;
        match family {
            "TCP4" => word.parse().ok().map(IpAddr::V4),
            "TCP6" => word.parse().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (client, _relay) = (address()?, address()?);
    let mut port = || {
        let word = words.next()?;
        let is_plain = word.bytes().all(|byte| byte.is_ascii_digit());
        let is_short = word == "0" || !word.starts_with('0');
        word.parse::<u16>().ok().filter(|_| is_plain && is_short)
    };
    let (client_port, _relay_port) = (port()?, port()?);
    words.next().is_none().then(|| Proxied::For(SocketAddr::new(client, client_port)))
}

fn version_2(header: &[u8]) -> Result<Step, Malformed> {
    let Some((fixed, rest)) = header.split_first_chunk::<FIXED_BYTES>() else {
        // The length says how much follows, and that is the last of these.
        let until = if header.len() < SIGNATURE.len() { SIGNATURE.len() } else { FIXED_BYTES };
        return Ok(Step::More(until - header.len()));
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if FIXED_BYTES + length > PROXY_HEADER_BYTES_MAX || rest.len() > length {
        return Err(Malformed);
    }
    if rest.len() < length {
        return Ok(Step::More(length - rest.len()));
    }
    match (command, family) {
        (0x21, 0x11) => told_v4(rest),
        (0x21, 0x21) => told_v6(rest),
        // For itself, or for somebody who has no address of the internet.
        (0x20, _) | (0x21, 0x00 | 0x31) => Ok(Proxied::Itself),
        _ => Err(Malformed),
    }
    .map(Step::Done)
}

/// Two addresses, two ports, and what is of no use here.
fn told_v4(rest: &[u8]) -> Result<Proxied, Malformed> {
    let (all, _more) = rest.split_first_chunk::<12>().ok_or(Malformed)?;
    let [a, b, c, d, _, _, _, _, high, low, _, _] = *all;
    let address = Ipv4Addr::new(a, b, c, d);
    Ok(Proxied::For(SocketAddr::new(address.into(), u16::from_be_bytes([high, low]))))
}

fn told_v6(rest: &[u8]) -> Result<Proxied, Malformed> {
    let (address, rest) = rest.split_first_chunk::<16>().ok_or(Malformed)?;
    let (_relay, rest) = rest.split_first_chunk::<16>().ok_or(Malformed)?;
    let ([high, low, _, _], _more) = rest.split_first_chunk::<4>().ok_or(Malformed)?;
    let address = Ipv6Addr::from(*address);
    Ok(Proxied::For(SocketAddr::new(address.into(), u16::from_be_bytes([*high, *low]))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a header as a connection does; also, how much of `bytes` was taken.
    fn read(bytes: &[u8]) -> (Result<Proxied, Malformed>, usize) {
        let mut taken = 0;
        loop {
            match step(&bytes[..taken]) {
                Ok(Step::Done(proxied)) => return (Ok(proxied), taken),
                Ok(Step::More(more)) if taken + more <= bytes.len() => taken += more,
                Ok(Step::More(_)) | Err(Malformed) => return (Err(Malformed), taken),
            }
        }
    }

    fn client(text: &str) -> Proxied {
        Proxied::For(text.parse().unwrap())
    }

    fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, rest].concat()
    }

    #[test]
    fn version_1_is_read_to_its_end_and_no_further() {
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(LINE_BYTES_MAX - 16));
        assert_eq!(longest.len(), LINE_BYTES_MAX);
        for (line, told) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", client("192.0.2.1:56324")),
            ("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", client("0.0.0.0:0")),
            (
                "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
                client("255.255.255.255:65535"),
            ),
            ("PROXY TCP6 2001:db8::1 ::1 4124 443\r\n", client("[2001:db8::1]:4124")),
            ("PROXY TCP6 :: :: 0 0\r\n", client("[::]:0")),
            ("PROXY UNKNOWN\r\n", Proxied::Itself),
            ("PROXY UNKNOWN and whatever\r\n", Proxied::Itself),
            (&longest, Proxied::Itself),
        ] {
            for after in ["", "\r\n", "POST / HTTP/1.1\r\n"] {
                let bytes = format!("{line}{after}");
                assert_eq!(read(bytes.as_bytes()), (Ok(told), line.len()), "{bytes:?}");
            }
        }
    }

    #[test]
    fn what_is_no_line_of_version_1_is_refused() {
        for line in [
            "",
            "POST / HTTP/1.1\r\nhost: a\r\n\r\n",
            "PROXY\r\n            ",
            "proxy TCP4 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n        ",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 2 \r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 65536 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 01 2\r\n",
            "PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.1 1 2 \r\n",
            "PROXY TCP5 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
            &format!("PROXY UNKNOWN {}\r\n", "f".repeat(LINE_BYTES_MAX - 15)),
            &"PROXY TCP4 ".repeat(100),
        ] {
            assert_eq!(read(line.as_bytes()).0, Err(Malformed), "{line:?}");
            assert!(read(line.as_bytes()).1 <= LINE_BYTES_MAX);
        }
    }

    #[test]
    fn version_2_is_read_to_its_end_and_no_further() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 187];
        let mut v6 = [0; 36];
        v6[..2].copy_from_slice(&[0x20, 1]);
        v6[15] = 9;
        v6[33] = 80;
        let more = [&v4[..], &[3, 0, 4, 1, 2, 3, 4]].concat();
        for (header, told) in [
            (version_2(0x21, 0x11, &v4), client("192.0.2.1:56324")),
            (version_2(0x21, 0x11, &more), client("192.0.2.1:56324")),
            (version_2(0x21, 0x21, &v6), client("[2001::9]:80")),
            (version_2(0x20, 0x11, &v4), Proxied::Itself),
            (version_2(0x20, 0, &[]), Proxied::Itself),
            (version_2(0x21, 0, &[]), Proxied::Itself),
            (version_2(0x21, 0x31, &[b'/'; 216]), Proxied::Itself),
        ] {
            let bytes = [&header[..], b"\x16\x03\x01"].concat();
            assert_eq!(read(&bytes), (Ok(told), header.len()), "{header:?}");
            assert_eq!(read(&header[..header.len() - 1]).0, Err(Malformed));
        }
        for header in [
            version_2(0x21, 0x11, &v4[..11]),
            version_2(0x21, 0x21, &v6[..35]),
            version_2(0x21, 0x12, &v4),
            version_2(0x22, 0x11, &v4),
            version_2(0x11, 0x11, &v4),
            version_2(0x21, 0x41, &v4),
            version_2(0x20, 0, &vec![0; PROXY_HEADER_BYTES_MAX]),
            SIGNATURE.repeat(2),
        ] {
            assert_eq!(read(&header).0, Err(Malformed), "{header:?}");
        }
    }

    #[test]
    fn a_header_is_known_by_how_it_begins() {
        assert!(is_header(b"PROXY TCP4 ") && is_header(SIGNATURE));
        assert!(!is_header(b"POST / HTTP") && !is_header(b"") && !is_header(b"\r\n\r\n\0"));
    }

    proptest! {
        #[test]
        fn whatever_comes_it_ends_within_its_bound(
            first in prop_oneof![Just(&b""[..]), Just(WORD), Just(&SIGNATURE[..])],
            rest in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            let bytes = [first, &rest].concat();
            let (_, taken) = read(&bytes);
            prop_assert!(taken <= PROXY_HEADER_BYTES_MAX);
        }
    }
}
