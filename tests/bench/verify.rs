//! What every webhook costs before anything is done for it: its signature and its activity.
#![expect(clippy::indexing_slicing, reason = "a bench that panics is a bench that says why")]

use aryeo_relay::domain::activity;
use aryeo_relay::domain::signature::{
    SIGNATURE, Scheme, Secret, Signing, Verification, VerifyError,
};
use aryeo_relay::domain::time::Timestamp;
use divan::Bencher;
use divan::counter::BytesCount;
use http::{HeaderMap, HeaderValue};

mod body;

const SIZES: [usize; 2] = [4 * 1024, 26 * 1024];
const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn main() {
    divan::main();
}

fn secret(bytes: &[u8]) -> Secret {
    Secret::new("bench", bytes).expect("the secret is not empty")
}

fn verification(secrets: &[&[u8]], scheme: Scheme) -> Verification {
    let secrets = secrets.iter().map(|bytes| secret(bytes)).collect();
    let tolerance = std::time::Duration::from_secs(300);
    Verification { scheme, secrets, header: SIGNATURE, tolerance }
}

fn signed(body: &[u8], scheme: Scheme) -> HeaderMap {
    let signing = Signing::With {
        scheme,
        secret: secret(b"the secret"),
        also: Vec::new(),
        header: SIGNATURE,
    };
    signing.sign("", body, NOW).into_iter().collect()
}

#[divan::bench(args = SIZES)]
fn verify(bencher: Bencher<'_, '_>, size: usize) {
    let body = body::of_size(size);
    let headers = signed(&body, Scheme::Aryeo);
    let verification = verification(&[b"the secret"], Scheme::Aryeo);
    let bencher = bencher.counter(BytesCount::new(body.len()));
    bencher.bench(|| verification.verify(&headers, &body, NOW).expect("it is signed"));
}

#[divan::bench(args = SIZES)]
fn verify_timestamped(bencher: Bencher<'_, '_>, size: usize) {
    let body = body::of_size(size);
    let headers = signed(&body, Scheme::AryeoTimestamped);
    let verification = verification(&[b"the secret"], Scheme::AryeoTimestamped);
    let bencher = bencher.counter(BytesCount::new(body.len()));
    bencher.bench(|| verification.verify(&headers, &body, NOW).expect("it is signed"));
}

/// During a rotation the sender still signs with the second one.
#[divan::bench(args = SIZES)]
fn verify_second_secret(bencher: Bencher<'_, '_>, size: usize) {
    let body = body::of_size(size);
    let headers = signed(&body, Scheme::Aryeo);
    let verification = verification(&[b"the next secret", b"the secret"], Scheme::Aryeo);
    let bencher = bencher.counter(BytesCount::new(body.len()));
    bencher.bench(|| verification.verify(&headers, &body, NOW).expect("it is signed"));
}

/// What a stranger can make us do.
#[divan::bench(args = SIZES)]
fn refuse_forged(bencher: Bencher<'_, '_>, size: usize) {
    let body = body::of_size(size);
    let forged = HeaderMap::from_iter([(SIGNATURE, HeaderValue::from_static(FORGED))]);
    let verification = verification(&[b"the secret"], Scheme::Aryeo);
    let bencher = bencher.counter(BytesCount::new(body.len()));
    bencher.bench(|| {
        assert_eq!(verification.verify(&forged, &body, NOW), Err(VerifyError::Mismatch));
    });
}

const FORGED: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

#[divan::bench(args = SIZES)]
fn sign(bencher: Bencher<'_, '_>, size: usize) {
    let body = body::of_size(size);
    let secret = secret(b"the secret");
    let signing =
        Signing::With { scheme: Scheme::Aryeo, secret, also: Vec::new(), header: SIGNATURE };
    let bencher = bencher.counter(BytesCount::new(body.len()));
    bencher.bench(|| signing.sign("", &body, NOW));
}

/// An activity, whose facts are all near its beginning.
#[divan::bench(args = SIZES)]
fn read_activity(bencher: Bencher<'_, '_>, size: usize) {
    let mut body = body::of_size(size);
    body::set_number(&mut body, 1);
    assert_eq!(body::number(&body), Some(1), "the number is where the id is");
    let facts = activity::read(&body);
    assert_eq!(facts.activity.as_deref(), Some(body::ACTIVITY), "the body is an activity");
    bencher.counter(BytesCount::new(body.len())).bench(|| activity::read(&body));
}

/// A body that has to be read to its end: nothing in it settles the question before.
#[divan::bench(args = SIZES)]
fn read_to_the_end(bencher: Bencher<'_, '_>, size: usize) {
    let mut body = br#"{"before":["#.to_vec();
    while body.len() < size {
        body.extend_from_slice(br#"{"object":"IMAGE","id":12345,"url":"https:\/\/a.b\/c"},"#);
    }
    body.extend_from_slice(br#"0],"object":"LISTING"}"#);
    let facts = activity::read(&body);
    assert_eq!(facts.resource_type.as_deref(), Some("LISTING"), "the body is read to its end");
    bencher.counter(BytesCount::new(body.len())).bench(|| activity::read(&body));
}
