//! The same over HTTP/1.1 as it is on the wire.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::testing::{ORDER, PATH, Rig, sign};
use crate::domain::route::Unrouted;
use crate::ingress::IngressLimits;
use crate::net::listener::{ListenerLimits, ListenerObserver, PeerInfo, Proxies};
use crate::net::memory::MemoryServer;

struct Unobserved;

impl ListenerObserver for Unobserved {}

/// A connection to the ingress.
fn connect(rig: &Rig) -> DuplexStream {
    let (client, server) = duplex(64 * 1024);
    let minute = Duration::from_secs(60);
    let listener = MemoryServer {
        limits: ListenerLimits {
            connections_max: 1,
            connections_per_address_max: 1,
            proxies: Proxies::default(),
            requests_per_connection_max: u32::MAX,
            handshake_timeout: minute,
            header_timeout: minute,
            idle_timeout: minute,
        },
        observer: Arc::new(Unobserved),
        drain: CancellationToken::new(),
        tracker: rig.tracker.clone(),
    };
    let ingress = Arc::clone(&rig.ingress);
    let service = move |request, peer: PeerInfo| {
        let ingress = Arc::clone(&ingress);
        async move { ingress.serve(request, peer.client(), peer.certificate).await }
    };
    drop(rig.tracker.spawn(async move {
        listener.serve(server, "192.0.2.7:4711".parse().unwrap(), service).await;
    }));
    client
}

fn head(path: &str, length: usize, more: &str) -> String {
    let signature = sign(ORDER);
    format!(
        "POST {path} HTTP/1.1\r\nHost: relay\r\nSignature: {signature}\r\n\
         Content-Length: {length}\r\n{more}\r\n"
    )
}

/// What comes within a moment.
async fn read(client: &mut DuplexStream) -> String {
    let mut bytes = vec![0; 4096];
    let read = timeout(Duration::from_secs(5), client.read(&mut bytes)).await.unwrap().unwrap();
    bytes.truncate(read);
    String::from_utf8(bytes).unwrap()
}

const EXPECT: &str = "Expect: 100-Continue\r\n";

#[tokio::test]
async fn a_sender_that_waits_is_told_to_go_ahead_after_the_cheap_checks_only() {
    let rig = Rig::new();
    for (path, length, status) in [("/else", ORDER.len(), "404"), (PATH, 70_000, "413")] {
        let mut client = connect(&rig);
        client.write_all(head(path, length, EXPECT).as_bytes()).await.unwrap();
        let answer = read(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(read(&mut client).await, "", "closed");
    }
    let mut client = connect(&rig);
    client.write_all(head(PATH, ORDER.len(), EXPECT).as_bytes()).await.unwrap();
    assert_eq!(read(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(ORDER).await.unwrap();
    let answer = read(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 202 Accepted\r\n"), "{answer}");
}

#[tokio::test]
async fn a_connection_whose_refused_body_was_read_goes_on() {
    let rig = Rig::new();
    let mut client = connect(&rig);
    for length in [70_000, 60_000] {
        client.write_all(head(PATH, length, "").as_bytes()).await.unwrap();
        client.write_all(&vec![b'x'; length]).await.unwrap();
        let status = if length == 70_000 { "413" } else { "401" };
        let answer = read(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(!answer.contains("connection:"), "{answer}");
    }
}

#[tokio::test]
async fn a_sender_that_closes_after_its_last_byte_is_stored_and_one_before_is_not() {
    let rig = Rig::new();
    rig.store.open.send_replace(false);
    let mut client = connect(&rig);
    client.write_all(head(PATH, ORDER.len(), "").as_bytes()).await.unwrap();
    client.write_all(ORDER).await.unwrap();
    drop(client);
    rig.begun(1).await;
    let mut client = connect(&rig);
    client.write_all(head(PATH, ORDER.len(), "").as_bytes()).await.unwrap();
    client.write_all(&ORDER[1..]).await.unwrap();
    drop(client);
    rig.store.open.send_replace(true);
    rig.tracker.close();
    rig.tracker.wait().await;
    assert_eq!(rig.committed().len(), 1);
}

#[tokio::test]
async fn a_chunked_body_is_taken_and_holds_a_place_of_its_own_length_only() {
    let limits = IngressLimits { in_flight_bytes_max: 300 * 1024, ..IngressLimits::default() };
    let rig = Rig::with(super::testing::source(), Unrouted::Keep, limits);
    rig.store.open.send_replace(false);
    let mut clients = Vec::new();
    for number in 0..8 {
        let mut client = connect(&rig);
        let body = format!("{{\"n\":{number}}}");
        let signature = sign(body.as_bytes());
        let request = format!(
            "POST {PATH} HTTP/1.1\r\nHost: relay\r\nSignature: {signature}\r\n\
             Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        client.write_all(request.as_bytes()).await.unwrap();
        rig.begun(1).await;
        clients.push(client);
    }
    rig.store.open.send_replace(true);
    for mut client in clients {
        assert!(read(&mut client).await.starts_with("HTTP/1.1 202 "));
    }
}
