//! Listening sockets that a service manager opened and holds: systemd's socket activation.
//!
//! Whoever holds a socket keeps its backlog: while one relay ends and the next begins, senders that connect wait
//! instead of being refused.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::address::Bound;

/// What the socket is called on which webhooks come in: `FileDescriptorName=` of its unit.
pub const WEBHOOKS: &str = "webhooks";

/// What that of the operators is called.
pub const ADMIN: &str = "admin";

/// The sockets that were passed to this process; none where no service manager did.
#[derive(Debug, Default)]
pub struct Inherited {
    /// For webhooks: TCP.
    pub webhooks: Option<TcpListener>,
    /// For operators: TCP, or a file.
    pub admin: Option<Bound>,
}

/// Why what was passed can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// Not as systemd writes it.
    #[error(
        "LISTEN_PID, LISTEN_FDS or LISTEN_FDNAMES of the environment can't be understood: {0}; they are set by \
         a service manager that passes sockets: unset them to have the relay open its own"
    )]
    Environment(String),
    /// No name that is known.
    #[error(
        "a socket called \"{0}\" was passed, and only \"{WEBHOOKS}\" and \"{ADMIN}\" have a use here: name it \
         by FileDescriptorName= in a socket unit of its own, or by --fdname of systemd-socket-activate"
    )]
    Unknown(String),
    /// Two of a kind.
    #[error(
        "two sockets called \"{0}\" were passed, and one is served: leave one ListenStream= in that socket \
         unit; one on a port only, without an address, takes IPv4 and IPv6"
    )]
    Twice(&'static str),
    /// Not a socket of that kind.
    #[error(
        "what was passed as \"{0}\" is no socket that listens{1}: use ListenStream= and Accept=no"
    )]
    NotListening(&'static str, &'static str),
    /// The system refused.
    #[error("the socket \"{0}\" that was passed can't be used: {1}")]
    Io(&'static str, io::Error),
}

/// Takes over what was passed to this process. Call it once, before anything else opens files.
pub fn inherit() -> Result<Inherited, InheritError> {
    // Looks whether all of them are there, and keeps them from programs that would be run.
    let checked = sd_notify::listen_fds_with_names()
        .map_err(|error| InheritError::Environment(error.to_string()))?;
    if checked.len() == 0 {
        return Ok(Inherited::default());
    }
    let passed = sd_listen_fds::get()
        .map_err(|error| InheritError::Environment(error.to_string()))?
        .into_iter()
        .map(|(name, socket)| (name.unwrap_or_else(|| UNNAMED.to_owned()), socket.into_std()));
    by_name(passed)
}

/// What systemd calls a socket that has no name.
const UNNAMED: &str = "unknown";

fn by_name(passed: impl Iterator<Item = (String, OwnedFd)>) -> Result<Inherited, InheritError> {
    let mut inherited = Inherited::default();
    for (name, socket) in passed {
        match &*name {
            WEBHOOKS if inherited.webhooks.is_some() => return Err(InheritError::Twice(WEBHOOKS)),
            WEBHOOKS => inherited.webhooks = Some(webhooks(socket)?),
            ADMIN if inherited.admin.is_some() => return Err(InheritError::Twice(ADMIN)),
            ADMIN => inherited.admin = Some(admin(socket)?),
            _ => return Err(InheritError::Unknown(name)),
        }
    }
    Ok(inherited)
}

fn webhooks(socket: OwnedFd) -> Result<TcpListener, InheritError> {
    if !listens(&socket) || !is_tcp(&socket) {
        return Err(InheritError::NotListening(WEBHOOKS, " on TCP"));
    }
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true).map_err(|error| InheritError::Io(WEBHOOKS, error))?;
    Ok(listener)
}

fn admin(socket: OwnedFd) -> Result<Bound, InheritError> {
    let is_file = sockopt::socket_domain(&socket).is_ok_and(|kind| kind == AddressFamily::UNIX);
    if !listens(&socket) || !(is_file || is_tcp(&socket)) {
        return Err(InheritError::NotListening(ADMIN, ""));
    }
    let bound = if is_file {
        Bound::held_file(UnixListener::from(socket))
    } else {
        Bound::held_tcp(TcpListener::from(socket))
    };
    bound.map_err(|error| InheritError::Io(ADMIN, error))
}

fn listens(socket: impl AsFd) -> bool {
    sockopt::socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM)
        && sockopt::socket_acceptconn(&socket).unwrap_or(false)
}

fn is_tcp(socket: impl AsFd) -> bool {
    let tcp = [AddressFamily::INET, AddressFamily::INET6];
    sockopt::socket_domain(socket).is_ok_and(|kind| tcp.contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpStream, UdpSocket};

    fn passed<const N: usize>(sockets: [(&str, OwnedFd); N]) -> Result<Inherited, InheritError> {
        by_name(sockets.into_iter().map(|(name, socket)| (name.to_owned(), socket)))
    }

    fn tcp() -> OwnedFd {
        TcpListener::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn sockets_are_told_apart_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let file = UnixListener::bind(&path).unwrap();
        let taken = passed([(ADMIN, file.into()), (WEBHOOKS, tcp())]).unwrap();
        assert!(taken.webhooks.unwrap().local_addr().unwrap().ip().is_loopback());
        let admin = taken.admin.unwrap();
        assert_eq!(admin.address().to_string(), format!("unix:{}", path.display()));
        drop(admin);
        assert!(path.exists(), "it belongs to whoever made it");
        assert!(passed([(ADMIN, tcp())]).unwrap().webhooks.is_none());
        assert!(passed([]).unwrap().admin.is_none());
    }

    #[test]
    fn what_can_not_be_meant_is_refused_and_said() {
        let said = |refused: Result<Inherited, InheritError>| refused.unwrap_err().to_string();
        let unknown = said(passed([("aryeo-relay.socket", tcp())]));
        assert!(unknown.contains("\"aryeo-relay.socket\"") && unknown.contains(WEBHOOKS));
        assert!(said(passed([(WEBHOOKS, tcp()), (WEBHOOKS, tcp())])).contains("two sockets"));
        assert!(said(passed([(ADMIN, tcp()), (ADMIN, tcp())])).contains("two sockets"));
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = TcpStream::connect(listening.local_addr().unwrap()).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = UnixListener::bind(folder.path().join("socket")).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        for wrong in [connected.into(), udp.into(), file.into(), null.into()] {
            assert!(said(passed([(WEBHOOKS, wrong)])).contains("no socket that listens on TCP"));
        }
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(said(passed([(ADMIN, udp.into())])).contains("no socket that listens"));
    }
}
