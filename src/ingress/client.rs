//! Whose request it is, as far as that is known.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use crate::domain::client::{self, ClientCertificate, Networks};

/// What a proxy says of those before it.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// What is known of the one who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Client<'a> {
    /// Its address, where that is known.
    pub(super) address: Option<IpAddr>,
    /// For people: its address, or else that of the proxy who does not say it.
    pub(super) shown: Option<IpAddr>,
    /// Whom to count its requests with. Nobody, where its address may be that of a proxy.
    pub(super) counted: Option<IpAddr>,
    /// It says that it forwards for somebody else, and is none that is believed.
    pub(super) forwards: bool,
    /// The certificate that was shown on its connection.
    pub(super) certificate: Option<&'a ClientCertificate>,
}

/// Finds clients.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) trusted: Networks,
    /// Whoever is no trusted proxy is a client.
    pub(super) peers_are_clients: bool,
}

impl Clients {
    pub(super) fn of<'a>(
        &self,
        peer: Option<SocketAddr>,
        certificate: Option<&'a ClientCertificate>,
        headers: &HeaderMap,
    ) -> Client<'a> {
        let peer = peer.map(|peer| peer.ip().to_canonical());
        let forwarded = headers.get_all(FORWARDED_FOR).iter();
        let address = peer.and_then(|peer| client::address(peer, &self.trusted, forwarded));
        let counted = address.filter(|_| self.peers_are_clients);
        let forwards = headers.contains_key(FORWARDED_FOR)
            && peer.is_some_and(|peer| !self.trusted.contains(peer));
        Client { address, shown: address.or(peer), counted, forwards, certificate }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::client::Subjects;
    use crate::domain::route::Unrouted;
    use crate::domain::source::Source;
    use crate::ingress::IngressLimits;
    use crate::ingress::testing::{NOW, ORDER, Rig, post, signed, source};

    fn found(clients: &Clients, peer: &str, forwarded: &[&str]) -> [Option<String>; 3] {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(FORWARDED_FOR, line.parse().unwrap());
        }
        let Client { address, shown, counted, .. } = clients.of(peer.parse().ok(), None, &headers);
        [address, shown, counted].map(|address| address.map(|address| address.to_string()))
    }

    fn all(text: &str) -> [Option<String>; 3] {
        [(); 3].map(|()| Some(text.to_owned()))
    }

    #[test]
    fn a_client_is_counted_where_its_address_is_known_to_be_its_own() {
        let trusted: Networks = ["10.0.0.0/8".parse().unwrap()].into_iter().collect();
        let behind = Clients { trusted, peers_are_clients: true };
        let lines = ["198.51.100.1, 192.0.2.1", "10.1.1.1"];
        assert_eq!(found(&behind, "10.0.0.1:1", &lines), all("192.0.2.1"));
        assert_eq!(found(&behind, "192.0.2.7:1", &lines), all("192.0.2.7"));
        let proxy = Some("10.0.0.1".to_owned());
        assert_eq!(found(&behind, "10.0.0.1:1", &[]), [None, proxy.clone(), None]);
        assert_eq!(found(&behind, "10.0.0.1:1", &["unknown"]), [None, proxy.clone(), None]);
        // Something ends TLS, and nobody said what: all may come from there.
        let plain = Clients { trusted: Networks::default(), peers_are_clients: false };
        assert_eq!(found(&plain, "10.0.0.1:1", &lines), [proxy.clone(), proxy, None]);
    }

    #[tokio::test]
    async fn a_certificate_that_expires_while_its_connection_is_open_proves_nothing_any_more() {
        let source = Source { client_certificate: Some(["a".into()].into()), ..source() };
        let rig = Rig::with(source, Unrouted::Keep, IngressLimits::default());
        let subjects: Subjects = ["a".to_owned()].into_iter().collect();
        let minute = Duration::from_secs(60);
        let send = async |body: &[u8]| {
            let certificate =
                ClientCertificate { subjects: subjects.clone(), not_after: NOW.plus(minute) };
            rig.send_showing(certificate, signed(body)).await
        };
        send(b"1").await.check(202, "accepted");
        rig.clock.advance(minute);
        send(b"2").await.check(202, "accepted");
        rig.clock.advance(Duration::from_secs(1));
        let refused = send(b"3").await;
        // As for every other proof that is none.
        refused.check(401, "unauthorized");
        assert_eq!(refused.body, Rig::new().send(post(ORDER, "00")).await.body);
        // On another connection the sender can show another one.
        assert_eq!(refused.headers["connection"], "close");
        assert_eq!(rig.committed().len(), 2);
    }
}
