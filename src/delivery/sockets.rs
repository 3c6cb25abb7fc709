//! Lanes over real sockets.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::client::Clients;
use super::fake_store::Settled;
use super::testing::{FakeNetwork, World, status, target};
use crate::domain::delivery::Settlement;
use crate::domain::outcome::Outcome;
use crate::domain::signature::{Scheme, Secret, Signing};
use crate::domain::target::Target;
use crate::net::tls::{Names, load_certificate, serve_one};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

/// Reads one request and answers it.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"{\"a\": 1}") {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "closed after {read:?}");
        read.extend_from_slice(&buffer[..count]);
    }
    stream.write_all(ANSWER).await.unwrap();
    stream.shutdown().await.unwrap();
    String::from_utf8(read).unwrap()
}

fn world(targets: Vec<Target>) -> World {
    World::over(targets, Clients::default(), FakeNetwork::new(|_| status(200)))
}

/// Waits until so many were settled.
async fn settled(world: &World, count: usize) -> Vec<Settled> {
    let until = Instant::now() + Duration::from_secs(10);
    while world.store.settled().len() < count && Instant::now() < until {
        sleep(Duration::from_millis(5)).await;
    }
    world.store.settled()
}

async fn listen(target: &mut Target, scheme: &str) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    target.url = format!("{scheme}://{address}/hook?tenant=1").parse().unwrap();
    listener
}

#[tokio::test]
async fn a_signed_request_reaches_the_target_and_the_answer_settles_it() {
    let mut crm = target("crm");
    crm.sign = Signing::With {
        scheme: Scheme::Aryeo,
        secret: Secret::new("env:CRM", b"key").unwrap(),
        also: Vec::new(),
        header: HeaderName::from_static("signature"),
    };
    let listener = listen(&mut crm, "http").await;
    let mut world = world(vec![crm]);
    world.add("crm", Duration::ZERO);
    let (stream, _) = timeout(Duration::from_secs(10), listener.accept()).await.unwrap().unwrap();
    let request = serve(stream).await;
    assert_eq!(settled(&world, 1).await[0].settlement, Settlement::Delivered);
    assert!(request.starts_with("POST /hook?tenant=1 HTTP/1.1\r\n"), "{request}");
    // echo -n '{"a": 1}' | openssl dgst -sha256 -hmac key
    for line in [
        "signature: 85e7b68cdf027474f0f0b8e2e63c4afb88cacf8a3e503aa13160f290dfc506d4",
        "content-length: 8",
        "relay-attempt: 1",
    ] {
        assert!(request.contains(&format!("\r\n{line}\r\n")), "{line} in {request}");
    }
    world.stopped().await;
}

#[tokio::test]
async fn a_private_authority_is_trusted_and_a_bad_one_is_an_outcome() {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let names = Names { certificate: "crt", key: "key" };
    let (certificate, key) = (own.cert.pem(), own.signing_key.serialize_pem());
    let loaded = load_certificate(certificate.as_bytes(), key.as_bytes(), names, 0).unwrap();
    let (mut good, mut bad) = (target("good"), target("bad"));
    let listener = listen(&mut good, "https").await;
    good.tls.ca = Some(Bytes::from(certificate));
    bad.url.clone_from(&good.url);
    bad.tls.ca = Some(Bytes::from_static(b"nonsense"));
    let mut config = (*serve_one(loaded).unwrap()).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve(TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap()).await
    });
    let world = world(vec![good, bad]);
    world.add("good", Duration::ZERO);
    world.add("bad", Duration::ZERO);
    for settled in settled(&world, 2).await {
        let attempt = settled.attempt.unwrap();
        let text = String::from_utf8_lossy(&attempt.excerpt).into_owned();
        match &*settled.delivery.target {
            "good" => assert_eq!(settled.settlement, Settlement::Delivered, "{text}"),
            _ => {
                assert_eq!(attempt.outcome, Outcome::Tls);
                assert!(text.contains("ca: no certificate"), "{text}");
            }
        }
    }
    assert!(server.join_next().await.unwrap().unwrap().contains("relay-webhook-id: "));
}

#[tokio::test]
async fn a_closed_port_is_refused_and_a_silent_target_times_out() {
    let (mut closed, mut silent) = (target("closed"), target("silent"));
    drop(listen(&mut closed, "http").await);
    let _listener = listen(&mut silent, "http").await;
    silent.timeout = Duration::from_millis(300);
    let world = world(vec![closed, silent]);
    world.add("closed", Duration::ZERO);
    world.add("silent", Duration::ZERO);
    for settled in settled(&world, 2).await {
        let attempt = settled.attempt.unwrap();
        let expected = match &*settled.delivery.target {
            "closed" => Outcome::Refused,
            _ => Outcome::Timeout,
        };
        assert_eq!(attempt.outcome, expected);
        assert!(!attempt.excerpt.is_empty() && attempt.duration < Duration::from_secs(2));
    }
}
