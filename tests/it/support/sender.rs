//! The sender, down to the bytes on the wire. Its signatures are made here, not by the relay's code.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use sha2::Sha256;

use super::http2_sender::Http2Sender;
use super::receiver::RUNTIME;
use super::relay::TestRelay;
use super::routes::{PATH, SECRET};
use super::{AUTHORITY, patience};

/// Lower-case hex of HMAC-SHA256, as PHP's `hash_hmac('sha256', $body, $secret)`.
pub(crate) fn sign(secret: impl AsRef<[u8]>, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_ref()).unwrap();
    mac.update(body);
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How a request says where its body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length,
    Chunked,
}

/// A request, written out by hand.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) framing: Framing,
}

impl Request {
    /// A POST as the sender makes it, but without a signature.
    pub(crate) fn unsigned(path: &str, body: &[u8]) -> Self {
        let headers = [
            ("User-Agent", "GuzzleHttp/7"),
            ("Content-Type", "application/json"),
            ("Host", "localhost"),
        ];
        Self {
            method: "POST".to_owned(),
            path: path.to_owned(),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            body: body.to_vec(),
            framing: Framing::Length,
        }
    }

    /// A POST to [`PATH`], signed with [`SECRET`].
    pub(crate) fn signed(body: &[u8]) -> Self {
        Self::unsigned(PATH, body).header("Signature", &sign(SECRET, body))
    }

    pub(crate) fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    pub(crate) fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// One more header line.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without these lines.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self
    }

    pub(crate) fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// The head with its empty line.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        match self.framing {
            Framing::Length => text.push_str(&format!("Content-Length: {}\r\n", self.body.len())),
            Framing::Chunked => text.push_str("Transfer-Encoding: chunked\r\n"),
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    /// The body as it goes over the wire.
    pub(crate) fn encoded_body(&self) -> Vec<u8> {
        if self.framing == Framing::Length {
            return self.body.clone();
        }
        let mut encoded = Vec::new();
        for chunk in self.body.chunks(1000) {
            encoded.extend(chunk_of(chunk));
        }
        encoded.extend(b"0\r\n\r\n");
        encoded
    }

    fn bytes(&self) -> Vec<u8> {
        [self.head(), self.encoded_body()].concat()
    }
}

/// One chunk of a chunked body.
pub(crate) fn chunk_of(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// A header's value; its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let line = self.headers.iter().find(|(other, _)| other == name);
        line.map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    #[track_caller]
    pub(crate) fn webhook_id(&self) -> String {
        let json = self.json();
        json["webhook_id"].as_str().unwrap_or_else(|| panic!("no webhook_id: {self:?}")).to_owned()
    }

    /// It is 202 `accepted`; its id.
    #[track_caller]
    pub(crate) fn accepted(&self) -> String {
        self.is(202, "accepted")
    }

    /// It is 200 `duplicate`; the first one's id.
    #[track_caller]
    pub(crate) fn duplicate(&self) -> String {
        self.is(200, "duplicate")
    }

    #[track_caller]
    fn is(&self, status: u16, word: &str) -> String {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{text}");
        assert_eq!(self.json()["status"], word, "{text}");
        assert!(
            self.header("content-type").is_some_and(|kind| kind.starts_with("application/json"))
        );
        self.webhook_id()
    }

    /// It is a problem document of this status, and no redirect or end of the relationship.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{text}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!(self.json()["status"], status, "{text}");
        assert!(self.json()["title"].is_string() || self.json()["type"].is_string(), "{text}");
        assert_eq!(self.header("location"), None);
    }
}

/// One connection to a relay or to its admin address.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    /// Read, but not taken yet.
    ahead: Vec<u8>,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Connection {
    pub(crate) fn open(address: SocketAddr, tls: Option<Arc<ClientConfig>>) -> io::Result<Self> {
        Self::over(TcpStream::connect(address)?, tls)
    }

    fn over(stream: TcpStream, tls: Option<Arc<ClientConfig>>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience()))?;
        stream.set_write_timeout(Some(patience()))?;
        let stream = match tls {
            None => Stream::Plain(stream),
            Some(config) => {
                let name = ServerName::try_from("localhost").unwrap();
                let client = ClientConnection::new(config, name).map_err(io::Error::other)?;
                let mut stream = StreamOwned::new(client, stream);
                while stream.conn.is_handshaking() {
                    stream.conn.complete_io(&mut stream.sock)?;
                }
                Stream::Tls(Box::new(stream))
            }
        };
        Ok(Self { stream, ahead: Vec::new() })
    }

    /// The TCP connection below.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
        }
    }

    /// The TLS session, if it has one.
    pub(crate) fn tls(&self) -> Option<&ClientConnection> {
        match &self.stream {
            Stream::Plain(_) => None,
            Stream::Tls(stream) => Some(&stream.conn),
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes),
            Stream::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    fn read_more(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16 * 1024];
        let count = match &mut self.stream {
            Stream::Plain(stream) => stream.read(&mut buffer)?,
            // Not `stream.read`, which writes what is left to write first: an answer counts also
            // when the relay has stopped reading.
            Stream::Tls(stream) => loop {
                let StreamOwned { conn, sock } = &mut **stream;
                match conn.reader().read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => break read?,
                }
                if conn.read_tls(sock)? == 0 {
                    break 0;
                }
                conn.process_new_packets().map_err(io::Error::other)?;
            },
        };
        self.ahead.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    fn read_some(&mut self) -> io::Result<()> {
        match self.read_more()? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the relay")),
            _ => Ok(()),
        }
    }

    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.ahead.len() < count {
            self.read_some()?;
        }
        let rest = self.ahead.split_off(count);
        Ok(std::mem::replace(&mut self.ahead, rest))
    }

    fn take_until(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.ahead.windows(mark.len()).position(|window| window == mark) {
                return self.take(at + mark.len());
            }
            self.read_some()?;
        }
    }

    /// The next head, an interim `100` included; without a body.
    pub(crate) fn read_head(&mut self) -> io::Result<Answer> {
        let head = String::from_utf8(self.take_until(b"\r\n\r\n")?).map_err(io::Error::other)?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status in {head:?}")))?;
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Answer { status, headers, body: Vec::new() })
    }

    /// The next answer that is not interim.
    pub(crate) fn read_answer(&mut self) -> io::Result<Answer> {
        loop {
            let mut answer = self.read_head()?;
            if answer.status >= 200 {
                self.read_body(&mut answer)?;
                return Ok(answer);
            }
        }
    }

    fn read_body(&mut self, answer: &mut Answer) -> io::Result<()> {
        if let Some(length) = answer.header("content-length") {
            let length = length.parse().map_err(io::Error::other)?;
            answer.body = self.take(length)?;
        } else if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let line = self.take_until(b"\r\n")?;
                let text = String::from_utf8_lossy(&line);
                let length = usize::from_str_radix(text.trim(), 16).map_err(io::Error::other)?;
                answer.body.extend(self.take(length)?);
                self.take(2)?;
                if length == 0 {
                    break;
                }
            }
        } else if answer.status != 204 && answer.status != 304 {
            while self.read_more()? != 0 {}
            answer.body = std::mem::take(&mut self.ahead);
        }
        Ok(())
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn send(&mut self, request: &Request) -> io::Result<Answer> {
        // An answer may come before the relay has read everything: look for it in any case.
        let written = self.write(&request.bytes());
        let answer = if request.method == "HEAD" { self.read_head() } else { self.read_answer() };
        match (written, answer) {
            (_, Ok(answer)) => Ok(answer),
            (Err(error), Err(_)) | (Ok(()), Err(error)) => Err(error),
        }
    }
}

/// A sender with one connection that it keeps, and the relay's address.
#[derive(Debug)]
pub(crate) struct Sender {
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    secret: String,
    path: String,
    connection: Option<Connection>,
}

impl Sender {
    pub(crate) fn new(relay: &TestRelay) -> Self {
        let tls = relay.is_tls().then(|| AUTHORITY.client_config(&[&TLS12, &TLS13], &["http/1.1"]));
        Self {
            address: relay.listen(),
            tls,
            secret: SECRET.to_owned(),
            path: PATH.to_owned(),
            connection: None,
        }
    }

    pub(crate) fn secret(mut self, secret: &str) -> Self {
        secret.clone_into(&mut self.secret);
        self
    }

    pub(crate) fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    pub(crate) fn tls_config(mut self, config: Arc<ClientConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// The request that [`Self::post`] sends.
    pub(crate) fn request(&self, body: &[u8]) -> Request {
        Request::unsigned(&self.path, body).header("Signature", &sign(&self.secret, body))
    }

    /// A new connection.
    #[track_caller]
    pub(crate) fn connect(&self) -> Connection {
        self.try_connect().unwrap_or_else(|error| panic!("no connection to the relay: {error}"))
    }

    pub(crate) fn try_connect(&self) -> io::Result<Connection> {
        Connection::open(self.address, self.tls.clone())
    }

    /// A new connection that comes from another address of this machine.
    #[track_caller]
    pub(crate) fn connect_from(&self, from: [u8; 4]) -> Connection {
        self.connect_behind(from, b"").unwrap()
    }

    /// The same with something before TLS, as a proxy sends it.
    pub(crate) fn connect_behind(&self, from: [u8; 4], header: &[u8]) -> io::Result<Connection> {
        let stream = RUNTIME.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from((from, 0)))?;
            socket.connect(self.address).await?.into_std()
        });
        let mut stream = stream?;
        stream.set_nonblocking(false)?;
        stream.write_all(header)?;
        Connection::over(stream, self.tls.clone())
    }

    /// Posts a signed body on the kept connection.
    #[track_caller]
    pub(crate) fn post(&mut self, body: &[u8]) -> Answer {
        self.try_post(body).unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    pub(crate) fn try_post(&mut self, body: &[u8]) -> io::Result<Answer> {
        let request = self.request(body);
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.try_connect()?,
        };
        let answer = connection.send(&request)?;
        if answer.header("connection") != Some("close") {
            self.connection = Some(connection);
        }
        Ok(answer)
    }

    /// Sends any request on a connection of its own.
    #[track_caller]
    pub(crate) fn send(&self, request: &Request) -> Answer {
        self.connect().send(request).unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// Posts a signed body over HTTP/2, on a connection of its own.
    #[track_caller]
    pub(crate) fn post_http2(&self, body: &[u8]) -> Answer {
        self.over_http2().try_post(body).unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// The same sender, over HTTP/2.
    pub(crate) fn over_http2(&self) -> Http2Sender {
        // Whatever it shows otherwise, and HTTP/2 only.
        let mut tls = ClientConfig::clone(self.tls.as_ref().expect("the relay has TLS"));
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Http2Sender::new(self.address, tls, &self.secret, &self.path)
    }
}

/// Reads one path of a plain HTTP server.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let mut request = Request::unsigned(path, b"").method("GET");
    request = request.without("Content-Type").header("Connection", "close");
    Connection::open(address, None)?.send(&request)
}

#[test]
fn signatures_are_php_s() {
    for vector in super::vectors::all() {
        assert_eq!(sign(&vector.secret, &vector.body), vector.signature, "{}", vector.name);
    }
}
