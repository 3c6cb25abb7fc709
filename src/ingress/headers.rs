//! Which inbound headers are kept with a webhook: never a secret, never the signature.

use bytes::{Bytes, BytesMut};
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT,
    HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::domain::limit::KEPT_HEADERS_BYTES_MAX;
use crate::domain::proof::Proof;
use crate::domain::signature::SIGNATURE;
use crate::domain::webhook::Header;

/// About the connection rather than the webhook, or a secret.
const NEVER: [HeaderName; 11] = [
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    COOKIE,
    EXPECT,
    HOST,
    SIGNATURE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The headers that are kept, those about the body first; what goes past the bound is left out.
pub(super) fn kept(inbound: &HeaderMap, proof: &Proof) -> Vec<Header> {
    let mut left = KEPT_HEADERS_BYTES_MAX;
    let mut chosen = Vec::with_capacity(inbound.len());
    let body_first = [CONTENT_TYPE, CONTENT_ENCODING];
    let first =
        body_first.iter().flat_map(|name| inbound.get_all(name).iter().map(move |v| (name, v)));
    let rest = inbound.iter().filter(|(name, _)| !body_first.contains(name));
    for (name, value) in first.chain(rest) {
        let size = name.as_str().len() + value.len();
        if size <= left && may_be_kept(name, inbound, proof) && !value.is_sensitive() {
            left -= size;
            chosen.push((name, value));
        }
    }
    unshared(&chosen)
}

fn may_be_kept(name: &HeaderName, inbound: &HeaderMap, proof: &Proof) -> bool {
    let text = name.as_str();
    let is_connections = text.starts_with("proxy-") || text == "keep-alive";
    !(NEVER.contains(name) || proof.claims(name) || is_connections || is_hop_by_hop(text, inbound))
}

/// Whether the sender's `Connection` header names it.
fn is_hop_by_hop(name: &str, inbound: &HeaderMap) -> bool {
    inbound
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .any(|named| named.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
}

/// The values in one piece of their own: as they came they would keep the connection's whole read
/// buffer alive for as long as the webhook waits.
fn unshared(chosen: &[(&HeaderName, &HeaderValue)]) -> Vec<Header> {
    let mut bytes = BytesMut::with_capacity(chosen.iter().map(|(_, value)| value.len()).sum());
    for (_, value) in chosen {
        bytes.extend_from_slice(value.as_bytes());
    }
    let mut bytes: Bytes = bytes.freeze();
    let own = |(name, value): &(&HeaderName, &HeaderValue)| {
        let own = HeaderValue::from_maybe_shared(bytes.split_to(value.len()));
        ((*name).clone(), own.expect("these bytes were a header value already"))
    };
    chosen.iter().map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limit::TIMESTAMP_TOLERANCE;
    use crate::domain::proof::RequiredHeader;
    use crate::domain::signature::{Scheme, Secret, Verification};

    fn proof(scheme: Scheme, header: &'static str) -> Proof {
        let secret = Secret::new("env:S", b"abc").unwrap();
        let signature = Verification {
            scheme,
            secrets: vec![secret.clone()],
            header: HeaderName::from_static(header),
            tolerance: TIMESTAMP_TOLERANCE,
        };
        let token = RequiredHeader { name: HeaderName::from_static("x-token"), secret };
        Proof::new(Some(signature), vec![token]).unwrap()
    }

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::try_from(*value).unwrap())
        };
        lines.iter().map(line).collect()
    }

    fn names(kept: &[Header]) -> Vec<&str> {
        kept.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn secrets_signatures_and_the_connections_own_headers_are_never_kept() {
        let inbound = map(&[
            ("host", "relay"),
            ("user-agent", "GuzzleHttp/7"),
            ("content-length", "7"),
            ("expect", "100-Continue"),
            ("authorization", "Bearer x"),
            ("cookie", "a=b"),
            ("proxy-authorization", "x"),
            ("proxy-connection", "close"),
            ("connection", "keep-alive, X-Hop"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("signature", "00"),
            ("x-mine", "00"),
            ("timestamp", "1"),
            ("x-token", "abc"),
            ("x-team", "a"),
            ("content-type", "application/json"),
        ]);
        let kept_of = |scheme, header| kept(&inbound, &proof(scheme, header));
        let aryeo = kept_of(Scheme::Aryeo, "x-mine");
        assert_eq!(names(&aryeo), ["content-type", "user-agent", "timestamp", "x-team"]);
        assert_eq!(aryeo[0].1, "application/json");
        assert_eq!(aryeo[3].1, "a");
        let stamped = kept_of(Scheme::AryeoTimestamped, "signature");
        assert_eq!(names(&stamped), ["content-type", "user-agent", "x-mine", "x-team"]);
    }

    #[test]
    fn what_goes_past_the_bound_is_left_out_and_the_type_of_the_body_stays() {
        let large = "x".repeat(KEPT_HEADERS_BYTES_MAX - 50);
        let inbound =
            map(&[("x-a", &large), ("x-b", &large), ("x-c", "c"), ("content-type", "text/plain")]);
        let kept = kept(&inbound, &proof(Scheme::Aryeo, "signature"));
        assert_eq!(names(&kept), ["content-type", "x-a", "x-c"]);
        assert_eq!(kept[1].1, large);
    }
}
