//! The chain that is served with a certificate: whether each of it was issued by who follows it, and when
//! the first of them ends. Nothing is refused for it, since whom senders trust is known to them only.

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use x509_cert::Certificate;
use x509_cert::der::asn1::{AnyRef, BitStringRef};
use x509_cert::der::{self, Decode, Encode, Reader, SliceReader};

use super::load::{date, unix};
use super::provider;

/// What a chain came to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Chain {
    /// What senders may not like.
    pub doubts: Vec<Doubt>,
    /// When the first of those that senders need ends, in unix seconds.
    pub not_after_unix: i64,
}

/// What senders may not like of a certificate of a chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Doubt {
    /// Whose certificate it is about.
    pub subject: String,
    /// What it is.
    pub flaw: Flaw,
}

/// What is wrong with a certificate of a chain.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Flaw {
    /// Only senders that trust exactly that issuer accept it.
    #[error(
        "its issuer ({issuer}) does not follow it in the file, and is no root known here: append the \
         intermediate certificates"
    )]
    IssuerMissing {
        /// Who issued it.
        issuer: String,
    },
    /// Who follows is called like its issuer and has another key.
    #[error(
        "it is not signed with the key of the certificate that follows it in the file ({issuer})"
    )]
    OtherKey {
        /// Who should have issued it.
        issuer: String,
    },
    /// Its time is over.
    #[error("it expired on {date}")]
    Expired {
        /// When, RFC 3339.
        date: String,
    },
    /// Its time has not come. Our clock or the sender's may differ.
    #[error("it is not valid before {date}")]
    NotYetValid {
        /// RFC 3339.
        date: String,
    },
    /// It is no certificate.
    #[error("what follows it in the file can't be read: {reason}")]
    UnreadableIssuer {
        /// Why not.
        reason: String,
    },
}

/// Follows a chain from its leaf to where senders need no more of it: to who issued himself, or to what
/// one of the `roots` issued, which are asked for when that matters. Without any it is not known whether a
/// chain of several is whole.
pub(super) fn examine<R: AsRef<RootCertStore>>(
    chain: &[CertificateDer<'_>],
    roots: impl FnOnce() -> Option<R>,
    now_unix: i64,
) -> Chain {
    let mut examined = Chain { doubts: Vec::new(), not_after_unix: i64::MAX };
    let Some(Ok(mut link)) = chain.first().map(|leaf| Link::read(leaf)) else { return examined };
    let mut asked = Some(roots);
    let mut roots = None;
    for (position, next) in chain.iter().skip(1).map(Some).chain([None]).enumerate() {
        let is_leaf = position == 0;
        let not_after = unix(link.tbs().validity().not_after);
        examined.not_after_unix = examined.not_after_unix.min(not_after);
        let subject = link.tbs().subject().to_string();
        let mut doubt = |flaw| examined.doubts.push(Doubt { subject: subject.clone(), flaw });
        // A leaf's own dates are looked at where it is loaded.
        if !is_leaf {
            link.dates(now_unix).into_iter().for_each(&mut doubt);
        }
        if link.tbs().issuer() == link.tbs().subject() {
            break;
        }
        if let Some(ask) = asked.take() {
            roots = ask();
        }
        let roots = roots.as_ref().map(AsRef::as_ref);
        if roots.is_some_and(|roots| roots.roots.iter().any(|root| link.is_of_root(root))) {
            break;
        }
        let issuer = link.tbs().issuer().to_string();
        let next = match next.map(|next| Link::read(next)).transpose() {
            Ok(next) => next,
            Err(error) => {
                doubt(Flaw::UnreadableIssuer { reason: error.to_string() });
                break;
            }
        };
        let is_last = next.is_none();
        match next.filter(|next| next.tbs().subject() == link.tbs().issuer()) {
            Some(next) => {
                if !link.is_of(&next) {
                    doubt(Flaw::OtherKey { issuer });
                }
                link = next;
            }
            None => {
                if is_leaf || roots.is_some() || !is_last {
                    doubt(Flaw::IssuerMissing { issuer });
                }
                break;
            }
        }
    }
    examined
}

/// A certificate of a chain.
struct Link<'a> {
    certificate: Certificate,
    /// What its signature is over.
    signed: &'a [u8],
}

impl<'a> Link<'a> {
    fn read(certificate: &'a [u8]) -> der::Result<Self> {
        let signed = SliceReader::new(AnyRef::from_der(certificate)?.value())?.tlv_bytes()?;
        Ok(Self { certificate: Certificate::from_der(certificate)?, signed })
    }

    fn tbs(&self) -> &x509_cert::TbsCertificate {
        self.certificate.tbs_certificate()
    }

    /// What is wrong with its dates.
    fn dates(&self, now_unix: i64) -> Option<Flaw> {
        let validity = self.tbs().validity();
        let (not_before, not_after) = (unix(validity.not_before), unix(validity.not_after));
        if not_after <= now_unix {
            return Some(Flaw::Expired { date: date(not_after) });
        }
        (not_before > now_unix).then(|| Flaw::NotYetValid { date: date(not_before) })
    }

    /// Whether it is signed with the key of this one.
    fn is_of(&self, issuer: &Link<'_>) -> bool {
        let key = issuer.tbs().subject_public_key_info();
        let signed = contents(&key.algorithm)
            .and_then(|algorithm| self.is_signed(&algorithm, key.subject_public_key.raw_bytes()));
        signed.unwrap_or(false)
    }

    /// Whether this root issued it.
    fn is_of_root(&self, root: &TrustAnchor<'_>) -> bool {
        let signed = || {
            let mut key = SliceReader::new(&root.subject_public_key_info)?;
            let algorithm = AnyRef::decode(&mut key)?;
            let key = BitStringRef::decode(&mut key)?;
            self.is_signed(algorithm.value(), key.raw_bytes())
        };
        contents(self.tbs().issuer()).is_ok_and(|issuer| issuer == *root.subject)
            && signed().unwrap_or(false)
    }

    /// Whether it is signed with this key, as far as we can verify such signatures.
    fn is_signed(&self, key_algorithm: &[u8], key: &[u8]) -> der::Result<bool> {
        let algorithm = contents(self.certificate.signature_algorithm())?;
        let known = provider().signature_verification_algorithms.all;
        let by_signature = |one: &&&_| is_for(**one, &algorithm);
        let knows_key = known.iter().any(|one| *one.public_key_alg_id() == *key_algorithm);
        if !knows_key || !known.iter().any(|one| by_signature(&one)) {
            return Ok(true);
        }
        let signature = self.certificate.signature().raw_bytes();
        Ok(known
            .iter()
            .filter(by_signature)
            .filter(|one| *one.public_key_alg_id() == *key_algorithm)
            .any(|one| one.verify_signature(key, self.signed, signature).is_ok()))
    }
}

fn is_for(known: &dyn rustls::pki_types::SignatureVerificationAlgorithm, algorithm: &[u8]) -> bool {
    *known.signature_alg_id() == *algorithm
}

/// What is in a sequence, without its head.
fn contents(value: &impl Encode) -> der::Result<Vec<u8>> {
    Ok(AnyRef::from_der(&value.to_der()?)?.value().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use std::sync::Arc;
    use time::OffsetDateTime;

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    const NOW: i64 = 1_500_000_000;
    const LEAF_ENDS: i64 = 1_700_000_000;

    fn params(name: &str, from: i64, to: i64) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = OffsetDateTime::from_unix_timestamp(from).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(to).unwrap();
        params
    }

    fn issuer(name: &str, by: Option<&Issuer>, from: i64, to: i64) -> Issuer {
        let mut params = params(name, from, to);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        match by {
            Some(by) => Issuer::signed_by(params, key, by).unwrap(),
            None => Issuer::self_signed(params, key).unwrap(),
        }
    }

    fn leaf(by: &Issuer) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        params("leaf", 0, LEAF_ENDS).signed_by(&key, by).unwrap().der().clone()
    }

    /// What is said of a chain where these roots are known, and when it ends.
    fn said(
        leaf: &CertificateDer<'static>,
        behind: &[&Issuer],
        roots: Option<&[&Issuer]>,
    ) -> (Vec<String>, i64) {
        let chain = [leaf.clone()].into_iter().chain(behind.iter().map(|one| one.der().clone()));
        let roots = roots.map(|known| {
            let mut roots = RootCertStore::empty();
            known.iter().for_each(|root| roots.add(root.der().clone()).unwrap());
            Arc::new(roots)
        });
        let examined = examine(&chain.collect::<Vec<_>>(), || roots, NOW);
        let doubts = examined.doubts.iter().map(|Doubt { subject, flaw }| {
            let words = flaw.to_string();
            format!("{subject}: {}", words.split([':', '(']).next().unwrap_or_default().trim())
        });
        (doubts.collect(), examined.not_after_unix)
    }

    #[test]
    fn a_chain_that_ends_at_a_root_is_whole() {
        let root = issuer("root", None, 0, 4_000_000_000);
        let second = issuer("second", Some(&root), 0, 3_000_000_000);
        let first = issuer("first", Some(&second), 0, 2_000_000_000);
        let leaf = leaf(&first);
        let whole = (Vec::new(), LEAF_ENDS);
        assert_eq!(said(&leaf, &[&first, &second], Some(&[&root])), whole);
        assert_eq!(said(&leaf, &[&first, &second, &root], None), whole);
        // Who knows no root knows no more.
        assert_eq!(said(&leaf, &[&first], None), whole);
        // What is behind one that a root issued nobody needs.
        let old = issuer("second", Some(&root), 0, 1);
        assert_eq!(said(&leaf, &[&first, &old], Some(&[&second])), whole);
        let missing = "its issuer";
        for (behind, roots, subject) in [
            (&[][..], None, "CN=leaf"),
            (&[], Some(&[&root][..]), "CN=leaf"),
            (&[&second], Some(&[&root]), "CN=leaf"),
            (&[&second], None, "CN=leaf"),
            (&[&first], Some(&[&root]), "CN=first"),
            (&[&first, &root], None, "CN=first"),
        ] {
            let (doubts, ends) = said(&leaf, behind, roots);
            assert_eq!((doubts, ends), (vec![format!("{subject}: {missing}")], LEAF_ENDS));
        }
    }

    #[test]
    fn dates_and_keys_of_the_whole_chain_count() {
        let root = issuer("root", None, 0, 4_000_000_000);
        let roots = Some(&[&root][..]);
        let expired = issuer("first", Some(&root), 0, NOW);
        let of_expired = vec!["CN=first: it expired on 2017-07-14T02".to_owned()];
        assert_eq!(said(&leaf(&expired), &[&expired], roots), (of_expired, NOW));
        let early = issuer("first", Some(&root), NOW + 1, 4_000_000_000);
        let of_early = vec!["CN=first: it is not valid before 2017-07-14T02".to_owned()];
        assert_eq!(said(&leaf(&early), &[&early], roots), (of_early, LEAF_ENDS));
        let first = issuer("first", Some(&root), 0, 1_600_000_000);
        let other = issuer("first", Some(&root), 0, 1_600_000_000);
        let of_other = "CN=leaf: it is not signed with the key of the certificate that follows it \
                        in the file";
        let ends = 1_600_000_000;
        assert_eq!(said(&leaf(&first), &[&other], roots), (vec![of_other.to_owned()], ends));
        assert_eq!(said(&leaf(&first), &[&first], roots), (Vec::new(), ends));
        // A root of that name, and of another key, is another one.
        let namesake = issuer("root", None, 0, 4_000_000_000);
        let (doubts, _) = said(&leaf(&first), &[&first], Some(&[&namesake]));
        assert_eq!(doubts, ["CN=first: its issuer"]);
    }

    #[test]
    fn what_can_t_be_read_is_told_of_who_is_before_it() {
        let root = issuer("root", None, 0, 4_000_000_000);
        let first = issuer("first", Some(&root), 0, 4_000_000_000);
        let chain = [leaf(&first), first.der().clone(), CertificateDer::from(vec![0; 4])];
        let Chain { doubts, .. } = examine(&chain, || None::<Arc<RootCertStore>>, NOW);
        let [Doubt { subject, flaw: Flaw::UnreadableIssuer { .. } }] = &*doubts else {
            panic!("{doubts:?}")
        };
        assert_eq!(subject, "CN=first");
    }
}
