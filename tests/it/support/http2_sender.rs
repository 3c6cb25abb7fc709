//! A sender that speaks HTTP/2, by somebody else's client.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::patience;
use super::receiver::RUNTIME;
use super::sender::{Answer, sign};

type Failure = Box<dyn Error + Send + Sync>;

/// A sender with one connection that it keeps until it is told that it ends.
#[derive(Debug)]
pub(crate) struct Http2Sender {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    secret: String,
    path: String,
    client: Option<SendRequest<Full<Bytes>>>,
    /// For whoever waits in vain.
    does: &'static str,
}

impl Http2Sender {
    pub(super) fn new(address: SocketAddr, tls: ClientConfig, secret: &str, path: &str) -> Self {
        let (secret, path) = (secret.to_owned(), path.to_owned());
        Self { address, tls: Arc::new(tls), secret, path, client: None, does: "" }
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
            let answer = self.client().await?.send_request(request.clone());
            self.does = if is_again { "sent again, no head" } else { "sent, no head" };
            match answer.await {
                Ok(answer) => break answer,
                Err(error) if was_not_taken_in(&error) => (self.client, is_again) = (None, true),
                Err(error) => return Err(error.into()),
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
    async fn client(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, Failure> {
        let kept = self.client.take().filter(|client| !client.is_closed());
        let client = match kept {
            Some(client) => client,
            None => self.connect().await?,
        };
        Ok(self.client.insert(client))
    }

    async fn connect(&mut self) -> Result<SendRequest<Full<Bytes>>, Failure> {
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
        RUNTIME.spawn(connection);
        Ok(client)
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
