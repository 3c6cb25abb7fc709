//! Acts as Aryeo, exactly as on the wire: one request per connection, three seconds for all of it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::domain::webhook::Header;
use crate::net::body;
use crate::net::resolve::{CONNECT_SLICE, Resolver, connect};
use crate::net::tls;

/// What Aryeo gives one attempt, from the name look-up to the end of the answer.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// What Aryeo waits between its three attempts.
pub const RETRY_WAITS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(100)];

/// From here on the sender asks before it sends a body, as curl does for PHP.
const EXPECT_BYTES_MIN: usize = 1024 * 1024;

/// How long it then waits for a word.
const EXPECT_WAIT: Duration = Duration::from_secs(1);

const ANSWER_KEPT: usize = 4096;
const ANSWER_MAX: usize = 1024 * 1024;

/// Whose certificate is good.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// Anybody's: for a development certificate.
    Anything,
    /// That of these authorities only, PEM.
    Authority(&'a [u8]),
    /// That of the system's authorities, as for Aryeo.
    System,
}

/// Posts webhooks to one URL.
#[derive(Debug, Clone)]
pub struct Sender {
    url: Uri,
    tls: Option<Arc<ClientConfig>>,
    resolver: Resolver,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// From 1.
    pub number: usize,
    /// How long it took.
    pub duration: Duration,
    /// What came of it.
    pub result: Result<Answer, Failure>,
}

impl Attempt {
    /// Aryeo is content: a 2xx.
    pub fn succeeded(&self) -> bool {
        self.result.as_ref().is_ok_and(|answer| answer.status.is_success())
    }
}

/// What the receiver answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status; redirects are not followed.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The first 4 KiB of the body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection, no TLS, no HTTP; the text says which.
    #[error("{0}")]
    Broken(String),
    /// Not done in time.
    #[error("no answer within {} s", ATTEMPT_TIMEOUT.as_secs())]
    Timeout,
}

impl Sender {
    /// Connects to nothing yet. The URL is absolute, http or https.
    pub fn new(url: Uri, trust: Trust<'_>) -> anyhow::Result<Self> {
        let tls = match url.scheme_str() {
            Some("https") => Some(client_config(trust)?),
            Some("http") => None,
            _ => anyhow::bail!("a URL to post to begins with https:// or http://"),
        };
        anyhow::ensure!(url.host().is_some_and(|host| !host.is_empty()), "the URL has no host");
        Ok(Self { url, tls, resolver: Resolver::default() })
    }

    /// Makes one attempt, then one more after each of `waits` until one succeeds.
    ///
    /// `prove` makes the signature's headers of an attempt, `report` hears of each attempt as it
    /// ends. True if Aryeo would be content.
    pub async fn deliver(
        &self,
        body: &Bytes,
        waits: &[Duration],
        mut prove: impl FnMut() -> Vec<Header>,
        mut report: impl FnMut(&Attempt),
    ) -> bool {
        let pauses = std::iter::once(Duration::ZERO).chain(waits.iter().copied());
        for (number, pause) in (1..).zip(pauses) {
            sleep(pause).await;
            let attempt = Attempt { number, ..self.post(body, &prove()).await };
            report(&attempt);
            if attempt.succeeded() {
                return true;
            }
        }
        false
    }

    /// Makes one attempt with the signature's headers as given.
    pub async fn post(&self, body: &Bytes, proof: &[Header]) -> Attempt {
        let start = Instant::now();
        let result = match timeout(ATTEMPT_TIMEOUT, self.exchange(body, proof)).await {
            Err(_) => Err(Failure::Timeout),
            Ok(Err(error)) => Err(Failure::Broken(format!("{error:#}"))),
            Ok(Ok(answer)) => Ok(answer),
        };
        Attempt { number: 1, duration: start.elapsed(), result }
    }

    async fn exchange(&self, body: &Bytes, proof: &[Header]) -> anyhow::Result<Answer> {
        let host = self.url.host().unwrap_or_default();
        let port = self.url.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let addresses = self.resolver.resolve(host, port).await?;
        let stream = connect(&addresses, CONNECT_SLICE)
            .await
            .with_context(|| format!("no connection to {host}:{port}"))?;
        stream.set_nodelay(true)?;
        let request = self.request(body, proof)?;
        let Some(config) = &self.tls else { return talk(stream, request).await };
        let name = tls::server_name(host)?;
        let stream = TlsConnector::from(Arc::clone(config))
            .connect(name, stream)
            .await
            .with_context(|| format!("no TLS with {host}:{port}"))?;
        talk(stream, request).await
    }

    fn request(&self, body: &Bytes, proof: &[Header]) -> anyhow::Result<Request<AskedBody>> {
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .body(AskedBody { answer: None, bytes: Some(body.clone()) })?;
        let headers = request.headers_mut();
        // In the order in which PHP writes them.
        headers.insert(HOST, self.host_header()?);
        headers.insert(USER_AGENT, HeaderValue::from_static("GuzzleHttp/7"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in proof {
            headers.append(name.clone(), value.clone());
        }
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        if body.len() >= EXPECT_BYTES_MIN {
            headers.insert(EXPECT, HeaderValue::from_static("100-Continue"));
            let asked = Arc::new(Notify::new());
            let answered = Arc::clone(&asked);
            hyper::ext::on_informational(&mut request, move |_| answered.notify_one());
            request.body_mut().answer = Some(Box::pin(async move {
                // Whoever does not know the question gets the body all the same.
                drop(timeout(EXPECT_WAIT, asked.notified()).await);
            }));
        }
        Ok(request)
    }

    fn host_header(&self) -> anyhow::Result<HeaderValue> {
        let host = self.url.host().unwrap_or_default();
        let usual = if self.tls.is_some() { 443 } else { 80 };
        let text = match self.url.port_u16() {
            Some(port) if port != usual => format!("{host}:{port}"),
            _ => host.to_owned(),
        };
        Ok(HeaderValue::try_from(text)?)
    }
}

async fn talk<S>(stream: S, request: Request<AskedBody>) -> anyhow::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await
        .context("the connection broke")?;
    let exchange = async move {
        let response = sender.send_request(request).await.context("no HTTP answer came")?;
        let (head, mut body) = response.into_parts();
        let read = body::read_capped(&mut body, ANSWER_KEPT, ANSWER_MAX);
        let read = read.await.context("the answer broke off")?;
        Ok(Answer { status: head.status, headers: head.headers, body: read.excerpt })
    };
    let mut exchange = pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // What it ended with the exchange knows as well; the answer may have come before.
        _ = connection => exchange.await,
    }
}

/// A body in one piece, held back until the receiver has answered to `Expect`.
struct AskedBody {
    answer: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    bytes: Option<Bytes>,
}

impl Body for AskedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(answer) = &mut self.answer {
            ready!(answer.as_mut().poll(context));
            self.answer = None;
        }
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

fn client_config(trust: Trust<'_>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut config = match trust {
        Trust::Authority(pem) => {
            let target = tls::TargetTls { ca: Some(pem), identity: None };
            (*tls::client_config(target)?).clone()
        }
        Trust::System => (*tls::client_config(tls::TargetTls::default())?).clone(),
        Trust::Anything => {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AcceptAnything(provider)))
                .with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Takes any certificate. Only whoever has its key can have shown it, which is still checked.
#[derive(Debug)]
struct AcceptAnything(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnything {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::signature::SIGNATURE;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    /// Reads until the text ends with `end`.
    async fn read_to(stream: &mut TcpStream, end: &str) -> String {
        let mut got = Vec::new();
        while !got.ends_with(end.as_bytes()) {
            got.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(got).unwrap()
    }

    async fn listening() -> (TcpListener, Sender, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let url = format!("http://{authority}/hooks/a?b=c").parse().unwrap();
        (listener, Sender::new(url, Trust::System).unwrap(), authority)
    }

    fn proof() -> Vec<Header> {
        vec![(SIGNATURE, HeaderValue::from_static("00ff"))]
    }

    #[tokio::test]
    async fn the_request_is_aryeo_s_to_the_byte() {
        let (listener, sender, authority) = listening().await;
        let receiver = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = read_to(&mut stream, "{\"a\":1}").await;
            stream
                .write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok")
                .await
                .unwrap();
            head
        };
        let body = Bytes::from_static(b"{\"a\":1}");
        let proof = proof();
        let (attempt, request) = tokio::join!(sender.post(&body, &proof), receiver);
        assert_eq!(
            request,
            format!(
                "POST /hooks/a?b=c HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: GuzzleHttp/7\r\n\
                 Content-Type: application/json\r\nSignature: 00ff\r\nContent-Length: 7\r\n\r\n\
                 {{\"a\":1}}"
            )
        );
        assert!(attempt.succeeded());
        assert_eq!(attempt.result.unwrap().body, "ok");
    }

    #[tokio::test]
    async fn a_large_body_waits_for_the_word_to_go_on() {
        let (listener, sender, _) = listening().await;
        let body = Bytes::from(vec![b'x'; EXPECT_BYTES_MIN]);
        let receiver = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = read_to(&mut stream, "\r\n\r\n").await;
            assert!(head.contains("\r\nExpect: 100-Continue\r\n"), "{head}");
            let early = timeout(Duration::from_millis(50), stream.read_u8()).await;
            assert!(early.is_err(), "the body came unasked");
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            let mut rest = vec![0; EXPECT_BYTES_MIN];
            stream.read_exact(&mut rest).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        };
        let (attempt, ()) = tokio::join!(sender.post(&body, &[]), receiver);
        assert!(attempt.succeeded(), "{attempt:?}");
        assert!(attempt.duration < EXPECT_WAIT);
    }

    #[tokio::test]
    async fn three_attempts_in_all_each_on_its_own_connection_until_a_2xx() {
        let (listener, sender, _) = listening().await;
        let receiver = async {
            let mut peers = Vec::new();
            for status in ["500 Oops", "302 Found", "204 No Content"] {
                let (mut stream, peer) = listener.accept().await.unwrap();
                read_to(&mut stream, "{}").await;
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                peers.push(peer);
            }
            peers
        };
        let body = Bytes::from_static(b"{}");
        let mut statuses = Vec::new();
        let report = |attempt: &Attempt| {
            let status = attempt.result.as_ref().map(|answer| answer.status.as_u16());
            statuses.push((attempt.number, status.unwrap_or(0)));
        };
        let waits = [Duration::from_millis(20), Duration::from_millis(30)];
        let start = Instant::now();
        let delivery = sender.deliver(&body, &waits, proof, report);
        let (content, peers) = tokio::join!(delivery, receiver);
        assert!(content);
        assert_eq!(statuses, [(1, 500), (2, 302), (3, 204)]);
        assert!(peers.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(start.elapsed() >= Duration::from_millis(50));
    }

    #[tokio::test]
    async fn nobody_there_and_no_answer_are_told_apart() {
        let (listener, sender, _) = listening().await;
        drop(listener);
        let attempt = sender.post(&Bytes::new(), &[]).await;
        assert!(matches!(attempt.result, Err(Failure::Broken(_))), "{attempt:?}");

        let (listener, sender, _) = listening().await;
        tokio::time::pause();
        let attempt = sender.post(&Bytes::new(), &[]).await;
        assert_eq!(attempt.result, Err(Failure::Timeout));
        drop(listener);
    }

    #[test]
    fn only_web_addresses_can_be_posted_to() {
        for url in ["/x", "ftp://a/b", "localhost:80"] {
            assert!(Sender::new(url.parse().unwrap(), Trust::System).is_err(), "{url}");
        }
    }
}
