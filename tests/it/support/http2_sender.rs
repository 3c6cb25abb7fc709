//! A sender that speaks HTTP/2, by somebody else's client.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::task::JoinHandle;

use super::patience;
use super::receiver::RUNTIME;
use super::sender::{Answer, sign};

type Failure = Box<dyn Error + Send + Sync>;

/// How long an answer may take once its connection takes no more requests.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// A connection, and the task that takes requests for it.
#[derive(Debug)]
struct Connection {
    client: SendRequest<Full<Bytes>>,
    task: JoinHandle<hyper::Result<()>>,
}

impl Connection {
    /// No answer where the connection was over before. On a busy machine hyper's client may leave a request
    /// without an answer that comes while the connection ends, idle as it seems; that was seen once in twenty
    /// upgrades. Who sends it again is told that it is a duplicate if the relay has it.
    async fn send(
        &mut self,
        request: http::Request<Full<Bytes>>,
    ) -> Option<hyper::Result<Response<Incoming>>> {
        let mut answer = pin!(self.client.send_request(request));
        tokio::select! {
            biased;
            answer = answer.as_mut() => return Some(answer),
            _ = &mut self.task => {}
        }
        tokio::time::timeout(LAST_WAIT, answer).await.ok()
    }
}

/// A sender with one connection that it keeps until it is told that it ends.
#[derive(Debug)]
pub(crate) struct Http2Sender {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    secret: String,
    path: String,
    connection: Option<Connection>,
    /// For whoever waits in vain.
    does: &'static str,
}

impl Http2Sender {
    pub(super) fn new(address: SocketAddr, tls: ClientConfig, secret: &str, path: &str) -> Self {
        let (secret, path) = (secret.to_owned(), path.to_owned());
        Self { address, tls: Arc::new(tls), secret, path, connection: None, does: "" }
    }

    /// Posts a signed body.
    pub(crate) fn try_post(&mut self, body: &[u8]) -> io::Result<Answer> {
        let body = Bytes::copy_from_slice(body);
        RUNTIME.block_on(async {
            let answer = tokio::time::timeout(patience(), self.post(body)).await;
            let late = |late| io::Error::other(format!("{late}: {}", self.does));
            answer.map_err(late)?.map_err(io::Error::other)
        })
    }

    async fn post(&mut self, body: Bytes) -> Result<Answer, Failure> {
        let request = http::Request::post(format!("https://localhost{}", self.path))
            .header("content-type", "application/json")
            .header("signature", sign(&self.secret, &body))
            .body(Full::new(body))?;
        let mut is_again = false;
        let answer = loop {
            let mut connection = self.connection().await?;
            self.does = if is_again { "sent again, no head" } else { "sent, no head" };
            match connection.send(request.clone()).await {
                Some(Ok(answer)) => {
                    self.connection = Some(connection);
                    break answer;
                }
                Some(Err(error)) if !was_not_taken_in(&error) => return Err(error.into()),
                Some(Err(_)) | None => is_again = true,
            }
        };
        self.does = "a head, no body";
        let (head, body) = answer.into_parts();
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into();
        let headers =
            head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let body = body.collect().await?.to_bytes().to_vec();
        Ok(Answer { status: head.status.as_u16(), headers, body })
    }

    /// The connection, or another one if it has ended.
    async fn connection(&mut self) -> Result<Connection, Failure> {
        let kept = self.connection.take();
        match kept.filter(|kept| !kept.client.is_closed() && !kept.task.is_finished()) {
            Some(kept) => Ok(kept),
            None => self.connect().await,
        }
    }

    async fn connect(&mut self) -> Result<Connection, Failure> {
        self.does = "connecting";
        let tcp = tokio::net::TcpStream::connect(self.address).await?;
        self.does = "connected, no TLS";
        let name = ServerName::try_from("localhost")?;
        let tls = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls));
        let tls = tls.connect(name, tcp).await?;
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        self.does = "TLS, no HTTP/2";
        let (client, connection) = handshake(TokioExecutor::new(), TokioIo::new(tls)).await?;
        // It ends with the client.
        Ok(Connection { client, task: RUNTIME.spawn(connection) })
    }
}

/// Whether the connection had ended, or was ending in order and the request is not one of those that it
/// still answers: who sent it may send it again (RFC 9113, section 6.8), and everybody's client does.
fn was_not_taken_in(error: &hyper::Error) -> bool {
    if error.is_canceled() {
        return true;
    }
    let reason = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    reason.is_some_and(|error| error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR))
}
