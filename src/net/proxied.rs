//! For whom a proxy connects: the header of the PROXY protocol, read before anything else.

use std::io;
use std::net::SocketAddr;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::domain::client::Networks;
use crate::domain::proxied::{Malformed, Proxied, Step, is_header, step};

/// Why it is not known for whom.
#[derive(Debug)]
pub(super) enum Unproxied {
    /// The peer left before it had said it.
    Closed,
    /// A proxy did not say it, or not rightly.
    Malformed,
    /// Somebody said it who is not trusted to.
    NotAProxy,
}

impl From<io::Error> for Unproxied {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

impl From<Malformed> for Unproxied {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// The address of the client; none if a proxy does not say for whom it connects. Of what comes after the header
/// nothing is read.
pub(super) async fn client(
    stream: &mut TcpStream,
    peer: SocketAddr,
    proxies: &Networks,
) -> Result<Option<SocketAddr>, Unproxied> {
    if proxies.contains(peer.ip()) {
        return Ok(match read(stream).await? {
            Proxied::For(client) => {
                Some(SocketAddr::new(client.ip().to_canonical(), client.port()))
            }
            Proxied::Itself => None,
        });
    }
    let mut first_bytes = [0; 12];
    let count = stream.peek(&mut first_bytes).await?;
    if first_bytes.get(..count).is_some_and(is_header) {
        return Err(Unproxied::NotAProxy);
    }
    Ok(Some(peer))
}

async fn read(stream: &mut TcpStream) -> Result<Proxied, Unproxied> {
    let mut header = Vec::new();
    loop {
        match step(&header)? {
            Step::Done(proxied) => return Ok(proxied),
            Step::More(more) => {
                let begin = header.len();
                header.resize(begin + more, 0);
                let fresh = header.get_mut(begin..).unwrap_or_default();
                stream.read_exact(fresh).await?;
            }
        }
    }
}
