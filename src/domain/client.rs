//! Whose request it is: networks of addresses, and the client behind proxies that are trusted.

// Addresses are plain data; `std::net` would bring sockets with it.
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use crate::domain::time::Timestamp;

/// A network of addresses, as in `192.0.2.0/24` or `2001:db8::/32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    // Not a mapped one, and with no bit set beyond `length`.
    first: IpAddr,
    length: u8,
}

/// Why a text is not a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NetworkError {
    /// It is something else.
    #[error("is not a network such as 192.0.2.0/24 or 2001:db8::/32")]
    Malformed,
    /// The address has bits beyond the length of the network; which may have been meant.
    #[error("has bits set beyond its first {}", .0.length)]
    HostBits(Network),
}

impl Network {
    /// Of an address, the network of that length; `None` if it is longer than the address.
    fn around(address: IpAddr, length: u8) -> Option<Self> {
        let first = match address {
            IpAddr::V4(address) => {
                let host_bits = u32::from(32_u8.checked_sub(length)?);
                let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & mask).into()
            }
            IpAddr::V6(address) => {
                let host_bits = u32::from(128_u8.checked_sub(length)?);
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        };
        Some(Self { first, length })
    }

    /// Whether the address is in it. An IPv4 address is the same however it is written.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::around(address.to_canonical(), self.length).is_some_and(|other| other == *self)
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    /// A single address is a network of its own.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let written: IpAddr = address.parse().map_err(|_| NetworkError::Malformed)?;
        let bits = if written.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Some(bits), decimal).ok_or(NetworkError::Malformed)?;
        let network = Self::around(written, length).ok_or(NetworkError::Malformed)?;
        let is_exact = network.first == written;
        // Addresses are compared as IPv4 where they are that, so networks have to be it, too.
        let network = match (network.first.to_canonical(), length.checked_sub(96)) {
            (first @ IpAddr::V4(_), Some(length)) if written.is_ipv6() => Self { first, length },
            _ => network,
        };
        if is_exact { Ok(network) } else { Err(NetworkError::HostBits(network)) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

/// A number without a sign or zeros before it.
fn decimal(text: &str) -> Option<u8> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let is_short = text == "0" || !text.starts_with('0');
    text.parse().ok().filter(|_| is_plain && is_short)
}

/// Some networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Arc<[Network]>);

impl Networks {
    /// Whether the address is in one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Network> for Networks {
    fn from_iter<I: IntoIterator<Item = Network>>(networks: I) -> Self {
        Self(networks.into_iter().collect())
    }
}

/// The subjects of a certificate: whatever it calls its holder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subjects(Arc<[Box<str>]>);

impl Subjects {
    /// Whether exactly this is one of them.
    pub fn contains(&self, subject: &str) -> bool {
        self.0.iter().any(|own| **own == *subject)
    }
}

impl FromIterator<String> for Subjects {
    fn from_iter<I: IntoIterator<Item = String>>(subjects: I) -> Self {
        Self(subjects.into_iter().map(String::into_boxed_str).collect())
    }
}

/// A certificate that a client showed when it connected, as far as it matters later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Whose it is.
    pub subjects: Subjects,
    /// The last second in which it is good.
    pub not_after: Timestamp,
}

impl ClientCertificate {
    /// Whether its time is over, which comes while its connection is open, too.
    pub fn is_over(&self, now: Timestamp) -> bool {
        now.as_secs() > self.not_after.as_secs()
    }
}

/// The address of the client, where it is known: that of the peer, or what proxies that are trusted
/// say of theirs.
///
/// `forwarded` are the values of `X-Forwarded-For`, in the order in which they came. Each proxy adds
/// its own peer at the end, so that they are believed from there on, as far as those are trusted who
/// said it: the first that is not is the client. What a stranger wrote stands before that. Nobody is
/// known where there is something else than an address, or nothing but proxies.
pub fn address(
    peer: IpAddr,
    trusted: &Networks,
    forwarded: impl DoubleEndedIterator<Item: AsRef<[u8]>>,
) -> Option<IpAddr> {
    if !trusted.contains(peer) {
        return Some(peer.to_canonical());
    }
    for value in forwarded.rev() {
        for element in value.as_ref().rsplit(|byte| *byte == b',') {
            let address = forwarded_address(element)?;
            if !trusted.contains(address) {
                return Some(address);
            }
        }
    }
    None
}

/// An element of `X-Forwarded-For`: some proxies add the port.
fn forwarded_address(element: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(element).ok()?.trim_matches([' ', '\t']);
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address: Option<IpAddr> = text.parse().ok().or_else(with_port).or_else(in_brackets);
    address.map(|address| address.to_canonical())
}

/// Whom to count together: an address, or the network that one IPv6 host has to itself.
pub fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn networks(list: &[&str]) -> Networks {
        list.iter().map(|text| text.parse::<Network>().unwrap()).collect()
    }

    #[test]
    fn a_network_has_the_addresses_that_begin_as_it_does() {
        for (network, inside, outside) in [
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("192.0.2.0/24", "::ffff:192.0.2.9", "2001:db8::1"),
            ("192.0.2.4/31", "192.0.2.5", "192.0.2.6"),
            ("192.0.2.4", "192.0.2.4", "192.0.2.5"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "2001:db8::1", "192.0.2.1"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
            ("::1", "::1", "::2"),
            ("::ffff:192.0.2.0/120", "192.0.2.7", "192.0.3.7"),
        ] {
            let read: Network = network.parse().unwrap();
            assert!(read.contains(ip(inside)), "{network} {inside}");
            assert!(!read.contains(ip(outside)), "{network} {outside}");
            assert_eq!(read.to_string().parse(), Ok(read), "{network}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused_and_bits_too_many_are_told() {
        for text in [
            "",
            "/",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0.0/8/8",
            "10.0.0.0/ 8",
            " 10.0.0.0/8",
            "10.0.0/8",
            "::/129",
            "[::1]",
            "host",
            "10.0.0.1:80",
            "fe80::1%eth0",
            "10.0.0.0/255.0.0.0",
            "10.0.0.0/256",
        ] {
            assert_eq!(text.parse::<Network>(), Err(NetworkError::Malformed), "{text}");
        }
        for (text, meant) in [
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("2001:db8::1/64", "2001:db8::/64"),
            ("::ffff:10.0.0.1/104", "10.0.0.0/8"),
        ] {
            let Err(NetworkError::HostBits(network)) = text.parse::<Network>() else {
                panic!("{text} has bits too many");
            };
            assert_eq!(network.to_string(), meant);
        }
    }

    #[test]
    fn only_proxies_that_are_trusted_are_believed() {
        let trusted = networks(&["10.0.0.0/8", "2001:db8:1::/48"]);
        let of = |peer: &str, lines: &[&str]| {
            let address = address(ip(peer), &trusted, lines.iter());
            address.map(|address| address.to_string())
        };
        // Who is no proxy is the client, whatever it says.
        for lines in [&[][..], &["198.51.100.1"], &["rubbish"]] {
            assert_eq!(of("192.0.2.1", lines).as_deref(), Some("192.0.2.1"));
        }
        assert_eq!(of("::ffff:192.0.2.1", &[]).as_deref(), Some("192.0.2.1"));
        for (lines, client) in [
            (&["192.0.2.1"][..], Some("192.0.2.1")),
            (&["198.51.100.1, 192.0.2.1"], Some("192.0.2.1")),
            (&["198.51.100.1,192.0.2.1 ,\t10.1.1.1"], Some("192.0.2.1")),
            (&["198.51.100.1", "192.0.2.1", "10.1.1.1, 10.2.2.2"], Some("192.0.2.1")),
            (&["198.51.100.1, 192.0.2.1:4711"], Some("192.0.2.1")),
            (&["192.0.2.1, [2001:db8:1::7]:443"], Some("192.0.2.1")),
            (&["[2001:db8::1]:443"], Some("2001:db8::1")),
            (&["[2001:db8::1]"], Some("2001:db8::1")),
            (&["2001:db8::1"], Some("2001:db8::1")),
            (&["::ffff:192.0.2.1"], Some("192.0.2.1")),
            (&["rubbish, 192.0.2.1"], Some("192.0.2.1")),
            (&["192.0.2.1, rubbish"], None),
            (&["192.0.2.1, rubbish, 10.1.1.1"], None),
            (&["192.0.2.1,"], None),
            (&["192.0.2.1", ""], None),
            (&["192.0.2.1, unknown"], None),
            (&["192.0.2.1, _hidden"], None),
            (&["192.0.2.1:99999"], None),
            (&["[192.0.2.1]"], None),
            (&["10.1.1.1"], None),
            (&[], None),
        ] {
            assert_eq!(of("10.0.0.1", lines).as_deref(), client, "{lines:?}");
        }
        assert_eq!(of("::ffff:10.0.0.1", &["192.0.2.1"]).as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn an_ipv6_host_is_its_network() {
        assert_eq!(host(ip("2001:db8::1")), host(ip("2001:db8::2:3")));
        assert_ne!(host(ip("2001:db8::1")), host(ip("2001:db8:0:1::1")));
        assert_eq!(host(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
    }

    proptest! {
        #[test]
        fn what_a_stranger_sends_changes_nothing(
            sent in "[0-9a-f.:, \\[\\]a-z]{0,40}", own in any::<[u8; 4]>()
        ) {
            let trusted = networks(&["10.0.0.0/8"]);
            let own = IpAddr::from(own);
            prop_assume!(!trusted.contains(own));
            let added = own.to_string();
            let lines = [&sent, &added];
            prop_assert_eq!(address(ip("10.0.0.1"), &trusted, lines.into_iter()), Some(own));
            let line = format!("{sent},{added}");
            let found = address(ip("10.0.0.1"), &trusted, [line].into_iter());
            prop_assert_eq!(found, Some(own));
            prop_assert_eq!(address(own, &trusted, [sent].into_iter()), Some(own));
        }

        #[test]
        fn nothing_written_makes_a_network_panic(text in "[0-9a-f./:]{0,24}") {
            if let Ok(network) = text.parse::<Network>() {
                prop_assert!(network.contains(network.first));
            }
        }
    }
}
