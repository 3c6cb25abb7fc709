//! Which certificate a connection gets: by the name it asks for, from a set that is replaced whole.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::LoadedCertificate;

/// Who proves by TLS-ALPN-01 that a name is ours speaks this and nothing else (RFC 8737).
pub const CHALLENGE_PROTOCOL: &[u8] = b"acme-tls/1";

/// Where certificates come from. Each owner replaces its own; where both have one for a name, that of
/// the first here is served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owner {
    /// Files that an operator named.
    Files,
    /// An authority that we ask for them.
    Acme,
}

/// Two certificates for one name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Clash {
    /// The name.
    pub host: String,
    /// Which one is served, by its position.
    pub served: usize,
    /// Which one is not.
    pub ignored: usize,
}

/// Names for which several of these certificates are; the first of them is the one that is served.
pub fn clashes(certificates: &[Arc<LoadedCertificate>]) -> Vec<Clash> {
    let mut first = HashMap::new();
    let mut clashes = Vec::new();
    for (position, certificate) in certificates.iter().enumerate() {
        for host in &certificate.hosts {
            let served = *first.entry(host.as_str()).or_insert(position);
            if served != position {
                clashes.push(Clash { host: host.clone(), served, ignored: position });
            }
        }
    }
    clashes
}

/// The certificates in force, and those that answer challenges.
///
/// Handshakes see either all of a change or nothing of it, and one that has begun keeps what it got.
#[derive(Debug, Default)]
pub struct Resolver {
    held: RwLock<Held>,
}

#[derive(Debug, Default)]
struct Held {
    files: Vec<Arc<LoadedCertificate>>,
    acme: Vec<Arc<LoadedCertificate>>,
    /// Made of both.
    by_host: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
    challenges: HashMap<String, Arc<CertifiedKey>>,
}

impl Resolver {
    /// Puts these in the place of all that the owner had. The very first of all certificates is for
    /// who asks for no name, or for one that nothing is for.
    pub fn replace(&self, owner: Owner, certificates: Vec<Arc<LoadedCertificate>>) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        match owner {
            Owner::Files => held.files = certificates,
            Owner::Acme => held.acme = certificates,
        }
        held.index();
    }

    /// Answers a challenge for a name from now on; where one is answered already, with this one.
    pub fn answer_challenge(&self, host: &str, key: Arc<CertifiedKey>) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.challenges.insert(host.to_ascii_lowercase(), key);
    }

    /// Answers it no longer.
    pub fn end_challenge(&self, host: &str) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.challenges.remove(&host.to_ascii_lowercase());
    }

    /// What is served now, in order.
    pub fn in_force(&self) -> Vec<Arc<LoadedCertificate>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.certificates().cloned().collect()
    }

    fn choose(&self, host: Option<&str>, asks: Asks) -> Option<Arc<CertifiedKey>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let host = host.map(str::to_ascii_lowercase);
        match asks {
            Asks::Service => held.of_host(host.as_deref()),
            Asks::Proof => held.challenges.get(&host?).cloned(),
            Asks::Both => None,
        }
    }
}

impl Held {
    fn certificates(&self) -> impl Iterator<Item = &Arc<LoadedCertificate>> {
        self.files.iter().chain(&self.acme)
    }

    fn index(&mut self) {
        let mut by_host = HashMap::new();
        for certificate in self.certificates() {
            for host in &certificate.hosts {
                by_host.entry(host.clone()).or_insert_with(|| Arc::clone(&certificate.key));
            }
        }
        let default = self.certificates().next().map(|first| Arc::clone(&first.key));
        self.default = default;
        self.by_host = by_host;
    }

    /// The exact name, then the wildcard for its first label, then whatever is first.
    fn of_host(&self, host: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let by_name = host.and_then(|host| {
            let by_wildcard = || {
                let (_, parent) = host.split_once('.')?;
                self.by_host.get(&format!("*.{parent}"))
            };
            self.by_host.get(host).or_else(by_wildcard)
        });
        by_name.or(self.default.as_ref()).cloned()
    }
}

/// What a connection is for, as its protocols tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Asks {
    Service,
    /// It offers the challenge's protocol and no other.
    Proof,
    /// It offers that and others, which nobody who checks a challenge does: it gets no certificate,
    /// so that the challenge's protocol is never agreed on with one of ours.
    Both,
}

impl Asks {
    fn of(protocols: &mut dyn Iterator<Item = &[u8]>) -> Self {
        let (mut service, mut proof) = (0_usize, 0_usize);
        for protocol in protocols {
            *(if protocol == CHALLENGE_PROTOCOL { &mut proof } else { &mut service }) += 1;
        }
        match (service, proof) {
            (_, 0) => Self::Service,
            (0, 1) => Self::Proof,
            _ => Self::Both,
        }
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asks = hello.alpn().map_or(Asks::Service, |mut offered| Asks::of(&mut offered));
        self.choose(hello.server_name(), asks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::Authority;

    fn certificate(authority: &Authority, hosts: &[&str]) -> Arc<LoadedCertificate> {
        Arc::new(authority.issue(hosts).loaded())
    }

    /// Which of them a name gets.
    fn chosen(
        resolver: &Resolver,
        of: &[&Arc<LoadedCertificate>],
        host: Option<&str>,
    ) -> Option<usize> {
        let key = resolver.choose(host, Asks::Service)?;
        of.iter().position(|one| Arc::ptr_eq(&one.key, &key))
    }

    #[test]
    fn a_name_gets_its_own_then_its_wildcard_then_the_first() {
        let authority = Authority::new();
        let first = certificate(&authority, &["relay.example.com", "127.0.0.1"]);
        let wild = certificate(&authority, &["*.example.org", "Example.ORG"]);
        let exact = certificate(&authority, &["a.example.org"]);
        let resolver = Resolver::default();
        let all = [&first, &wild, &exact];
        assert_eq!(chosen(&resolver, &all, None), None, "there is nothing yet");
        resolver.replace(Owner::Files, all.map(Arc::clone).to_vec());
        for (host, expected) in [
            (None, 0),
            (Some("relay.example.com"), 0),
            (Some("RELAY.example.com"), 0),
            (Some("a.example.org"), 2),
            (Some("b.example.org"), 1),
            (Some("B.EXAMPLE.org"), 1),
            (Some("example.org"), 1),
            // One label, and no more.
            (Some("a.b.example.org"), 0),
            (Some("org"), 0),
            (Some("nobody.test"), 0),
            (Some(""), 0),
        ] {
            assert_eq!(chosen(&resolver, &all, host), Some(expected), "{host:?}");
        }
        assert_eq!(resolver.in_force().len(), 3);
    }

    #[test]
    fn each_owner_replaces_its_own_and_files_go_first() {
        let authority = Authority::new();
        let file = certificate(&authority, &["a.test"]);
        let (asked, renewed) =
            (certificate(&authority, &["a.test", "b.test"]), certificate(&authority, &["b.test"]));
        let all = [&file, &asked, &renewed];
        let resolver = Resolver::default();
        resolver.replace(Owner::Acme, vec![Arc::clone(&asked)]);
        assert_eq!(chosen(&resolver, &all, None), Some(1));
        resolver.replace(Owner::Files, vec![Arc::clone(&file)]);
        assert_eq!(chosen(&resolver, &all, None), Some(0));
        assert_eq!(chosen(&resolver, &all, Some("a.test")), Some(0));
        assert_eq!(chosen(&resolver, &all, Some("b.test")), Some(1));
        resolver.replace(Owner::Acme, vec![Arc::clone(&renewed)]);
        assert_eq!(chosen(&resolver, &all, Some("b.test")), Some(2));
        resolver.replace(Owner::Files, Vec::new());
        assert_eq!(chosen(&resolver, &all, Some("a.test")), Some(2), "the first that is left");
    }

    #[test]
    fn names_that_several_are_for_are_told() {
        let authority = Authority::new();
        let all = [&["a.test", "b.test"][..], &["c.test"], &["b.test", "A.test"]]
            .map(|hosts| certificate(&authority, hosts));
        let clash = |host: &str| Clash { host: host.to_owned(), served: 0, ignored: 2 };
        assert_eq!(clashes(&all), [clash("b.test"), clash("a.test")]);
        assert_eq!(clashes(&all[..2]), []);
    }

    #[test]
    fn a_challenge_is_answered_to_who_asks_for_nothing_else() {
        let authority = Authority::new();
        let (service, proof) =
            (certificate(&authority, &["a.test"]), certificate(&authority, &["a.test"]));
        let resolver = Resolver::default();
        resolver.replace(Owner::Files, vec![Arc::clone(&service)]);
        let proves = |host| resolver.choose(host, Asks::Proof);
        assert!(proves(Some("a.test")).is_none(), "never with what is served otherwise");
        resolver.answer_challenge("A.test", Arc::clone(&proof.key));
        assert!(Arc::ptr_eq(&proves(Some("a.test")).unwrap(), &proof.key));
        assert!(proves(Some("b.test")).is_none() && proves(None).is_none());
        let served = resolver.choose(Some("a.test"), Asks::Service).unwrap();
        assert!(Arc::ptr_eq(&served, &service.key));
        assert!(resolver.choose(Some("a.test"), Asks::Both).is_none());
        resolver.end_challenge("a.TEST");
        assert!(proves(Some("a.test")).is_none());
    }

    #[test]
    fn what_is_asked_for_follows_from_the_protocols() {
        for (offered, expected) in [
            (&[][..], Asks::Service),
            (&["h2"], Asks::Service),
            (&["h2", "http/1.1", "x"], Asks::Service),
            (&["acme-tls/1"], Asks::Proof),
            (&["acme-tls/1", "acme-tls/1"], Asks::Both),
            (&["acme-tls/1", "h2"], Asks::Both),
            (&["h2", "http/1.1", "acme-tls/1"], Asks::Both),
        ] {
            let mut protocols = offered.iter().map(|one: &&str| one.as_bytes());
            assert_eq!(Asks::of(&mut protocols), expected, "{offered:?}");
        }
    }
}
