//! Asks a running relay through its admin address.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::config::token_from_file;
use crate::net::address::{Stream, UNIX};
use crate::net::resolve::{CONNECT_SLICE, Resolver, connect};

/// Where a relay on this machine listens for its operator.
pub const DEFAULT_URL: &str = "http://127.0.0.1:9464";

/// More than any answer of the relay takes.
const TIMEOUT: Duration = Duration::from_secs(30);

/// No answer of the relay is larger.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Which relay is asked.
#[derive(Debug, Clone, clap::Args)]
pub struct Relay {
    /// The relay's admin address: a URL, or what its `serve` is told; unix:PATH for a socket
    #[arg(
        long = "admin",
        env = "RELAY_ADMIN",
        hide_env_values = true,
        value_name = "URL",
        default_value = DEFAULT_URL
    )]
    pub url: String,
    /// The file of its admin token, where it wants one. That of the variable `RELAY_ADMIN_TOKEN_FILE` is
    /// shown to the relay of `RELAY_ADMIN` and to those of this machine, and to nobody else
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
}

/// The file of the token that the environment has for the relay at that place.
fn known_token(place: &Place, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let known = variable("RELAY_ADMIN").and_then(|text| Place::new(text.to_str()?).ok());
    let is_its = known.is_some_and(|known| known == *place) || place.is_on_this_machine();
    is_its.then(|| variable("RELAY_ADMIN_TOKEN_FILE")).flatten().map(PathBuf::from)
}

/// A relay's admin address.
#[derive(Debug, Clone)]
pub struct AdminClient {
    place: Place,
    token: Option<Token>,
    resolver: Resolver,
}

/// Where it listens.
#[derive(Debug, Clone, PartialEq)]
enum Place {
    Http(Uri),
    Unix(PathBuf),
}

impl Place {
    fn new(text: &str) -> anyhow::Result<Self> {
        if let Some(path) = text.strip_prefix(UNIX) {
            return Ok(Self::Unix(path.into()));
        }
        // What listens on all addresses is reached by that one too: the system makes loopback of it.
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Http(format!("http://{address}").parse()?));
        }
        let url: Uri = text.parse().with_context(|| format!("--admin {text} is not a URL"))?;
        if url.scheme_str() != Some("http") || url.host().is_none_or(str::is_empty) {
            bail!("--admin takes a URL such as {DEFAULT_URL}, ADDRESS:PORT, or unix:PATH");
        }
        Ok(Self::Http(url))
    }

    fn is_on_this_machine(&self) -> bool {
        let Self::Http(url) = self else { return true };
        let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host.parse::<IpAddr>().is_ok_and(|address| {
                let address = address.to_canonical();
                address.is_loopback() || address.is_unspecified()
            })
    }

    /// A connection, and the host that the relay is to be called: it takes no name but localhost.
    async fn connect(&self, resolver: &Resolver) -> anyhow::Result<(Stream, String)> {
        let nobody =
            || format!("no relay answers at {self}: is it running, and is this its --admin?");
        match self {
            Self::Http(url) => {
                let host = url.host().unwrap_or_default();
                let port = url.port_u16().unwrap_or(80);
                let addresses = resolver.resolve(host, port).await?;
                let stream = connect(&addresses, CONNECT_SLICE).await.with_context(nobody)?;
                // Without the scope of an IPv6 address, which says something to this machine only.
                let peer = stream.peer_addr()?;
                let called = SocketAddr::new(peer.ip(), peer.port()).to_string();
                Ok((Box::new(stream), called))
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).await.with_context(nobody)?;
                Ok((Box::new(stream), "localhost".to_owned()))
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(url) => url.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// What a relay wants to be shown; `Debug` leaves it out.
#[derive(Debug, Clone)]
struct Token {
    line: HeaderValue,
    file: PathBuf,
}

impl Token {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let token = token_from_file(path, &mut Vec::new())
            .map_err(|error| anyhow::anyhow!("--admin-token-file: {error}"))?;
        let mut line = Zeroizing::new(b"Bearer ".to_vec());
        line.extend_from_slice(&token);
        let mut line = HeaderValue::from_bytes(&line)?;
        line.set_sensitive(true);
        Ok(Self { line, file: path.to_owned() })
    }
}

/// What the relay said no to.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// The problem that it describes.
    pub problem: Value,
}

impl AdminClient {
    /// Connects to nothing yet. The URL is `http://HOST:PORT`, or `unix:PATH`.
    pub fn new(relay: &Relay) -> anyhow::Result<Self> {
        let place = Place::new(&relay.url)?;
        let known = || known_token(&place, |name| std::env::var_os(name));
        let token = relay.admin_token_file.clone().or_else(known);
        let token = token.as_deref().map(Token::read).transpose()?;
        Ok(Self { place, token, resolver: Resolver::default() })
    }

    /// Posts JSON to `path` of the API; a refusal is an answer too.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Result<Value, Refusal>> {
        let answer = self.ask(Method::POST, path, Bytes::from(body.to_string())).await?;
        Ok(answer.map(|body| serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    /// Gets JSON from `path` of the API; a refusal is an answer too.
    pub async fn get(&self, path: &str) -> anyhow::Result<Result<Value, Refusal>> {
        let answer = self.get_bytes(path).await?;
        Ok(answer.map(|body| serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    /// Gets bytes as they are.
    pub async fn get_bytes(&self, path: &str) -> anyhow::Result<Result<Bytes, Refusal>> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Asks a probe: the status, and what it says. An answer that comes later is none.
    pub async fn probe(
        &self,
        path: &str,
        within: Duration,
    ) -> anyhow::Result<(StatusCode, String)> {
        let exchange = self.exchange(Method::GET, path, Bytes::new());
        let (status, body) = timeout(within, exchange).await.with_context(|| {
            format!("{} did not answer within {} s", self.place, within.as_secs())
        })??;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Result<Bytes, Refusal>> {
        let (status, body) = timeout(TIMEOUT, self.exchange(method, path, body))
            .await
            .with_context(|| format!("{} did not answer in time", self.place))??;
        if status.is_success() {
            return Ok(Ok(body));
        }
        if status == StatusCode::UNAUTHORIZED {
            match &self.token {
                None => bail!("{} wants its admin token: --admin-token-file FILE", self.place),
                Some(Token { file, .. }) => {
                    bail!("{} does not take the admin token of {}", self.place, file.display())
                }
            }
        }
        let problem = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Ok(Err(Refusal { status, problem }))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let (stream, host) = self.place.connect(&self.resolver).await?;
        let mut request = Request::builder().method(method).uri(path).body(())?;
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::try_from(host)?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.extend(self.token.iter().map(|token| (AUTHORIZATION, token.line.clone())));
        let request = request.map(|()| Full::new(body));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let exchange = async move {
            let response = sender.send_request(request).await.context("no HTTP answer came")?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?;
            Ok((status, body.to_bytes()))
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            // What it ended with the exchange knows as well.
            _ = connection => exchange.await,
        }
    }
}

impl Refusal {
    /// What the relay says of it, for a person.
    pub fn detail(&self) -> String {
        let text = |key: &str| self.problem.get(key).and_then(Value::as_str);
        match text("detail").or_else(|| text("title")) {
            Some(detail) => format!("the relay answers {}: {detail}", self.status.as_u16()),
            None => format!("the relay answers {}", self.status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_the_environment_is_for_the_relay_of_the_environment_and_this_machine() {
        let environment = |name: &str| match name {
            "RELAY_ADMIN" => Some("10.1.2.3:9464".into()),
            "RELAY_ADMIN_TOKEN_FILE" => Some("/run/token".into()),
            _ => None,
        };
        let known = |url: &str| known_token(&Place::new(url).unwrap(), environment).is_some();
        for its in [
            "10.1.2.3:9464",
            "http://10.1.2.3:9464",
            "http://localhost:1",
            "[::1]:9464",
            "0.0.0.0:9464",
            "unix:admin.sock",
        ] {
            assert!(known(its), "{its}");
        }
        for another in ["http://10.1.2.4:9464", "10.1.2.3:80", "http://localhost.example:9464"] {
            assert!(!known(another), "{another}");
        }
        assert_eq!(known_token(&Place::new("[::1]:9464").unwrap(), |_| None), None);
    }
}
