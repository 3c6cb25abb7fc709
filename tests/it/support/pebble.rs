//! A certificate authority (ACME) on this machine: Pebble, and the names that it resolves.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use instant_acme::{Account, AccountCredentials, BodyWrapper, BytesResponse, HttpClient};
use serde_json::Value;
use tempfile::TempDir;

use super::receiver::RUNTIME;
use super::relay::{Background, command, folder, run};
use super::tools::can_go_on;
use super::{AUTHORITY, eventually};

/// Whether Pebble is here.
#[track_caller]
pub(crate) fn has_pebble() -> bool {
    let is_there = command("pebble").arg("-h").stderr(Stdio::null()).status().is_ok();
    can_go_on(is_there, "pebble is missing: `tests/all --prepare` installs it")
}

/// A port that nobody listens on, to be named before it is bound. Below those that systems give to who
/// asks for any.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let of_process = (std::process::id() % 500) * 40;
        let port = 10_000 + (u16::try_from(of_process).unwrap() + offset) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Every name is this machine.
static NAMES: LazyLock<u16> = LazyLock::new(|| {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    // It answers as long as there are tests.
    drop(std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut query) {
            let _left = socket.send_to(&answer(&query[..length]), peer);
        }
    }));
    port
});

/// An answer to a DNS query: 127.0.0.1 for an A record, no records of other kinds.
fn answer(query: &[u8]) -> Vec<u8> {
    let name = query[12..].iter().position(|byte| *byte == 0).expect("a name ends");
    let question = &query[12..12 + name + 5];
    let is_a = question[name + 1..name + 3] == [0, 1];
    let mut answer = Vec::from(&query[..2]);
    // A good answer to one question, with one record or none.
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(question);
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    answer
}

/// An authority that connects to a relay's port, runs or not, and forgets all when it is stopped.
pub(crate) struct Pebble {
    folder: TempDir,
    port: u16,
    management: u16,
    /// Of a hundred requests, how many it wants once more.
    again: u8,
    process: Option<Background>,
}

impl Pebble {
    /// One that does not run yet. It looks at `relay_port` for every domain, and what it issues is good
    /// for `seconds`.
    pub(crate) fn new(relay_port: u16, seconds: u32) -> Self {
        let folder = folder();
        let (port, management) = (free_port(), free_port());
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let identity = AUTHORITY.server();
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": write("server.pem", &identity.certificate),
            "privateKey": write("server.key", &identity.key),
            "httpPort": 1,
            "tlsPort": relay_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": seconds,
        }});
        write("config.json", &config.to_string());
        write("ca.pem", &AUTHORITY.pem());
        Self { folder, port, management, again: 0, process: None }
    }

    /// It wants so many of a hundred requests once more, as authorities may.
    pub(crate) fn wants_again(mut self, percent: u8) -> Self {
        self.again = percent;
        self
    }

    /// Its directory's address.
    pub(crate) fn directory(&self) -> String {
        format!("https://127.0.0.1:{}/dir", self.port)
    }

    /// The roots of its own certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Starts it, with accounts, orders and roots all new.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        let config = self.folder.path().join("config.json");
        let process = Background::start(
            command("pebble")
                .args(["-strict=false", "-dnsserver", &format!("127.0.0.1:{}", *NAMES)])
                .arg("-config")
                .arg(config)
                // Nothing is left to chance but what a test asks for.
                .envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "0")])
                .env("PEBBLE_WFE_NONCEREJECT", self.again.to_string()),
        );
        self.process = Some(process);
        eventually("Pebble answers", || self.fetch(self.port, "dir").is_some());
    }

    /// Ends it.
    pub(crate) fn stop(&mut self) {
        self.process = None;
    }

    /// What its certificates are verified by until it is stopped, PEM.
    #[track_caller]
    pub(crate) fn root(&self) -> String {
        self.fetch(self.management, "roots/0").expect("Pebble has a root")
    }

    fn fetch(&self, port: u16, path: &str) -> Option<String> {
        let url = format!("https://127.0.0.1:{port}/{path}");
        let ended = run(command("curl").args(["-sSf", "--cacert"]).arg(self.ca()).arg(url));
        (ended.code == Some(0)).then_some(ended.stdout)
    }
}

/// Ends the account in this file at its authority, as its owner may from anywhere.
#[track_caller]
pub(crate) fn deactivate(account: &Path, pebble: &Pebble) {
    let stored: Value = serde_json::from_slice(&fs::read(account).unwrap()).unwrap();
    let credentials: AccountCredentials =
        serde_json::from_value(stored["credentials"].clone()).unwrap();
    let builder = Account::builder_with_http(Box::new(Curl { ca: pebble.ca() }));
    let deactivated = RUNTIME.block_on(async {
        builder.from_credentials(credentials).await.unwrap().deactivate().await
    });
    deactivated.unwrap();
}

/// A client that is not the relay's.
struct Curl {
    ca: PathBuf,
}

impl HttpClient for Curl {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let ca = self.ca.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let mut curl = command("curl");
            curl.args(["-sS", "-i", "--http1.1", "--cacert"]).arg(ca).arg(head.uri.to_string());
            match head.method {
                http::Method::HEAD => drop(curl.arg("--head")),
                http::Method::POST => drop(curl.arg("--data-binary").arg(to_text(&body))),
                _ => {}
            }
            for (name, value) in &head.headers {
                curl.arg("-H").arg(format!("{name}: {}", value.to_str().unwrap()));
            }
            let answer = run(&mut curl).stdout;
            let (lines, body) = answer.split_once("\r\n\r\n").unwrap();
            let status = lines.split(' ').nth(1).unwrap();
            let mut response = http::Response::builder().status(status);
            for (name, value) in lines.lines().filter_map(|line| line.split_once(": ")) {
                response = response.header(name, value);
            }
            Ok(BytesResponse::from(response.body(Full::new(Bytes::from(body.to_owned()))).unwrap()))
        })
    }
}

fn to_text(body: &Bytes) -> &str {
    std::str::from_utf8(body).unwrap()
}

/// Where a relay keeps the certificate that it got, in its data directory.
#[track_caller]
pub(crate) fn kept(data: &Path, name: &str) -> PathBuf {
    let mut folders = fs::read_dir(data.join("acme")).unwrap();
    let folder = folders.next().expect("there is an authority").unwrap().path();
    assert!(folders.next().is_none(), "there is one authority");
    folder.join(name)
}
