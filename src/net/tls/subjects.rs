//! Whatever a client's certificate calls its holder, and until when.

use x509_cert::der::Decode;
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::{Certificate, TbsCertificate};

use crate::domain::client::{ClientCertificate, Subjects};
use crate::domain::time::Timestamp;

/// The common name, by RFC 5280.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// What matters of a certificate (DER) that was verified. One that can't be read is nobody's, and over.
pub fn client_certificate(certificate: &[u8]) -> ClientCertificate {
    let Ok(certificate) = Certificate::from_der(certificate) else {
        return ClientCertificate {
            subjects: Subjects::default(),
            not_after: Timestamp::default(),
        };
    };
    let certificate = certificate.tbs_certificate();
    let not_after = certificate.validity().not_after.to_unix_duration().as_millis();
    let not_after = Timestamp::from_millis(u64::try_from(not_after).unwrap_or(u64::MAX));
    ClientCertificate { subjects: subjects(certificate), not_after }
}

/// Its DNS names, URIs and e-mail addresses, and its common name.
fn subjects(certificate: &TbsCertificate) -> Subjects {
    let alternatives = certificate.get_extension::<SubjectAltName>().ok().flatten();
    let alternatives = alternatives.map(|(_, SubjectAltName(names))| names).unwrap_or_default();
    let names = alternatives.iter().filter_map(|name| match name {
        GeneralName::DnsName(name) | GeneralName::Rfc822Name(name) => Some(name.to_string()),
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
        _ => None,
    });
    let parts = certificate.subject().iter().filter(|part| part.oid == COMMON_NAME);
    let common_names = parts.filter_map(|part| {
        let value = &part.value;
        let utf8 = value.decode_as::<Utf8StringRef<'_>>().map(|text| text.to_string());
        let printable = || value.decode_as::<PrintableStringRef<'_>>().map(|text| text.to_string());
        let ascii = || value.decode_as::<Ia5StringRef<'_>>().map(|text| text.to_string());
        utf8.or_else(|_| printable()).or_else(|_| ascii()).ok()
    });
    names.chain(common_names).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, date_time_ymd};

    #[test]
    fn a_certificate_has_the_subjects_it_names() {
        let mut params = CertificateParams::new(vec!["hooks.example.com".to_owned()]).unwrap();
        let text = |text: &str| text.to_owned().try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(text("spiffe://example.com/hooks")));
        params.subject_alt_names.push(SanType::Rfc822Name(text("ops@example.com")));
        params.distinguished_name.push(DnType::CommonName, "Höoks");
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.not_after = date_time_ymd(2033, 5, 18);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let ClientCertificate { subjects, not_after } = client_certificate(certificate.der());
        assert_eq!(not_after.to_string(), "2033-05-18T00:00:00.000Z");
        let all = ["hooks.example.com", "spiffe://example.com/hooks", "ops@example.com", "Höoks"];
        for subject in all {
            assert!(subjects.contains(subject), "{subject} is not in {subjects:?}");
        }
        for other in ["example.com", "Example", "hooks.example.com ", ""] {
            assert!(!subjects.contains(other), "{other} is in {subjects:?}");
        }
        let unreadable = client_certificate(b"no certificate");
        assert_eq!(unreadable.subjects, Subjects::default());
        assert!(unreadable.is_over(Timestamp::from_millis(1000)));
    }
}
