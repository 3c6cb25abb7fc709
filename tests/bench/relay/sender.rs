//! The sender's side: signed bodies made beforehand, posted over kept connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aryeo_relay::domain::signature::{SIGNATURE, Scheme, Secret, Signing};
use aryeo_relay::domain::time::Timestamp;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::body;

/// What the webhooks are signed with.
pub(crate) const SECRET: &str =
    "a secret of the bench, as long as those of the sender are: 64 letters";

/// Where they are posted.
pub(crate) const PATH: &str = "/webhooks/aryeo";

/// No answer may take longer: a relay that hangs ends the bench.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

/// Webhooks that differ in their number and signature only.
pub(crate) struct Webhooks {
    request: Vec<u8>,
    body_at: usize,
    signature_at: usize,
    first: u64,
    signatures: Vec<[u8; 64]>,
}

impl Webhooks {
    /// Signs `count` of them, numbered from `first`.
    pub(crate) fn sign(mut body: Vec<u8>, first: u64, count: usize) -> anyhow::Result<Self> {
        let secret = Secret::new("bench", SECRET.as_bytes()).context("the secret is empty")?;
        let signing =
            Signing::With { scheme: Scheme::Aryeo, secret, also: Vec::new(), header: SIGNATURE };
        let mut signatures = Vec::with_capacity(count);
        for number in (first..).take(count) {
            body::set_number(&mut body, number);
            let headers = signing.sign("", &body, Timestamp::from_millis(0));
            let (_, value) = headers.first().context("nothing is signed")?;
            signatures.push(value.as_bytes().try_into().context("no 64 digits")?);
        }
        let mut request = format!(
            "POST {PATH} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: GuzzleHttp/7\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nSignature: ",
            body.len()
        )
        .into_bytes();
        let signature_at = request.len();
        request.resize(signature_at + 64, b'0');
        request.extend_from_slice(b"\r\n\r\n");
        let body_at = request.len();
        request.append(&mut body);
        Ok(Self { request, body_at, signature_at, first, signatures })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.signatures.len()
    }

    /// Their numbers.
    pub(crate) fn numbers(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.count() as u64
    }

    /// The request of the `index`th.
    pub(crate) fn request(&self, index: usize) -> Vec<u8> {
        let mut request = self.request.clone();
        self.write(&mut request, index);
        request
    }

    /// A request that differs from the `index`th in that nobody signed it: it looks alike, and costs the
    /// relay all that has to be done to find that out.
    pub(crate) fn forged(&self, index: usize) -> Vec<u8> {
        let mut request = self.request(index);
        request[self.signature_at..self.signature_at + 64].fill(b'0');
        request
    }

    /// Turns `request` into the `index`th.
    fn write(&self, request: &mut [u8], index: usize) {
        body::set_number(&mut request[self.body_at..], self.first + index as u64);
        request[self.signature_at..self.signature_at + 64].copy_from_slice(&self.signatures[index]);
    }
}

/// Where to connect, and whom to trust there.
#[derive(Clone)]
pub(crate) struct Relay {
    address: SocketAddr,
    tls: TlsConnector,
}

impl Relay {
    /// One that shows exactly this certificate for `localhost`.
    pub(crate) fn new(
        address: SocketAddr,
        certificate: CertificateDer<'static>,
    ) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { address, tls: TlsConnector::from(Arc::new(config)) })
    }

    /// A connection of one sender.
    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        self.over(TcpStream::connect(self.address).await?).await
    }

    /// The same from one of this machine's loopback addresses.
    pub(crate) async fn connect_from(&self, from: Ipv4Addr) -> anyhow::Result<Connection> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        self.over(socket.connect(self.address).await?).await
    }

    async fn over(&self, stream: TcpStream) -> anyhow::Result<Connection> {
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let stream = self.tls.connect(name, stream).await?;
        Ok(Connection { stream, answer: Vec::with_capacity(1024) })
    }
}

/// One kept connection.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    answer: Vec<u8>,
}

impl Connection {
    /// Posts the `index`th webhook and waits until it is accepted.
    pub(crate) async fn post(&mut self, webhooks: &Webhooks, index: usize) -> anyhow::Result<()> {
        self.exchange(&webhooks.request(index)).await
    }

    async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<()> {
        let status = self.ask(request, ANSWER_WAIT_MAX).await?;
        ensure!(status == 202, "not accepted: {}", String::from_utf8_lossy(&self.answer));
        Ok(())
    }

    /// What is written to it, and what comes.
    pub(crate) fn into_stream(self) -> TlsStream<TcpStream> {
        self.stream
    }

    /// Sends a request and waits so long for its answer; the status.
    pub(crate) async fn ask(&mut self, request: &[u8], patience: Duration) -> anyhow::Result<u16> {
        let exchange = async {
            self.stream.write_all(request).await?;
            self.stream.flush().await?;
            self.answer.clear();
            loop {
                let read = self.stream.read_buf(&mut self.answer).await?;
                ensure!(read > 0, "the relay closed the connection");
                if is_complete(&self.answer) {
                    return anyhow::Ok(());
                }
            }
        };
        timeout(patience, exchange).await.context("no answer")??;
        let status =
            self.answer.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.first_chunk::<3>());
        let status = status.context("this is not HTTP/1.1")?;
        Ok(std::str::from_utf8(status)?.parse()?)
    }
}

/// Whether the head is there, and as much after it as it says.
fn is_complete(answer: &[u8]) -> bool {
    super::message_length(answer).is_some_and(|length| length <= answer.len())
}

/// What posting came to.
pub(crate) struct Posted {
    /// From the first to the last answer.
    pub(crate) took: Duration,
    /// From the first byte of each request to its answer, shortest first.
    pub(crate) waits: Vec<Duration>,
    /// When the first byte of each went out, with its number, where they were posted at a rate.
    pub(crate) sent: Vec<(u64, Instant)>,
}

/// Posts all of them over `senders` connections: as fast as they are answered, or `rate` a second.
pub(crate) async fn post_all(
    relay: &Relay,
    webhooks: &Arc<Webhooks>,
    senders: usize,
    rate: Option<u32>,
) -> anyhow::Result<Posted> {
    let mut connections = Vec::with_capacity(senders);
    for _ in 0..senders {
        connections.push(relay.connect().await?);
    }
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for mut connection in connections {
        let (webhooks, next) = (Arc::clone(webhooks), Arc::clone(&next));
        tasks.spawn(async move {
            let mut sent = Vec::new();
            let mut waits = Vec::new();
            let mut request = webhooks.request.clone();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= webhooks.count() {
                    return anyhow::Ok((waits, sent));
                }
                if let Some(rate) = rate {
                    let at = Duration::from_secs(1).mul_f64(index as f64 / f64::from(rate));
                    sleep_until(start + at).await;
                }
                webhooks.write(&mut request, index);
                let began = Instant::now();
                connection.exchange(&request).await?;
                waits.push(began.elapsed());
                if rate.is_some() {
                    sent.push((webhooks.first + index as u64, began));
                }
            }
        });
    }
    let mut waits = Vec::with_capacity(webhooks.count());
    let mut sent = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        let (mut some_waits, mut some_sent) = ended??;
        waits.append(&mut some_waits);
        sent.append(&mut some_sent);
    }
    let took = start.elapsed();
    waits.sort_unstable();
    Ok(Posted { took, waits, sent })
}
