//! Plain sockets by their address: TCP, or a file that only its owner can use.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncWrite};

/// What an address of a Unix socket begins with.
pub const UNIX: &str = "unix:";

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A file.
    Unix(PathBuf),
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it must be ADDRESS:PORT, or unix:PATH")]
pub struct NoAddress;

/// Why nothing can listen there.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody does.
    #[error("another process listens there")]
    Taken,
    /// It would have to be removed, and nobody said so.
    #[error("there is a file of that name, and it is no socket")]
    NoSocket,
    /// Two are making one at the same time.
    #[error("another process is just making a socket in that folder")]
    Contended,
    /// Such as port 443, for a user that is not root.
    #[error(
        "the system does not let this user: a port below 1024 needs the capability \
         CAP_NET_BIND_SERVICE, or a socket that a service manager passes"
    )]
    PortNotPermitted,
    /// No interface has it.
    #[error("no interface of this machine has that address")]
    NotHere,
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl BindError {
    /// What the system says of an IP address.
    pub(super) fn of_tcp(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::Taken,
            io::ErrorKind::PermissionDenied => Self::PortNotPermitted,
            io::ErrorKind::AddrNotAvailable => Self::NotHere,
            _ => Self::Io(error),
        }
    }
}

impl Address {
    /// Whether only who is on this machine can get there: the permissions of a file say who that is.
    pub const fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// Takes it. A file is readable and writable by its owner only, from the moment that it is there;
    /// one that a killed process left behind is replaced.
    pub fn bind(&self) -> Result<Bound, BindError> {
        match self {
            Self::Tcp(address) => {
                let listener = TcpListener::bind(address).map_err(BindError::of_tcp)?;
                listener.set_nonblocking(true)?;
                let address = Self::Tcp(listener.local_addr()?);
                Ok(Bound { address, socket: Socket::Tcp(listener) })
            }
            Self::Unix(path) => {
                let (listener, file) = bind_file(path)?;
                Ok(Bound { address: self.clone(), socket: Socket::Unix(listener, Some(file)) })
            }
        }
    }
}

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        match text.strip_prefix(UNIX) {
            Some("") => Err(NoAddress),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| NoAddress),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// A socket that listens, outside any runtime.
#[derive(Debug)]
pub struct Bound {
    address: Address,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, Option<SocketFile>),
}

impl Bound {
    /// Where it listens.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// One that another holds.
    pub(super) fn held_tcp(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = Address::Tcp(listener.local_addr()?);
        Ok(Self { address, socket: Socket::Tcp(listener) })
    }

    /// One that another holds: its file is not ours to remove.
    pub(super) fn held_file(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let path = address.as_pathname().ok_or_else(|| io::Error::other("it has no path"))?;
        Ok(Self { address: Address::Unix(path.to_owned()), socket: Socket::Unix(listener, None) })
    }

    /// Takes connections on the runtime that this is called in.
    pub fn listen(self) -> io::Result<Listening> {
        Ok(match self.socket {
            Socket::Tcp(listener) => Listening::Tcp(tokio::net::TcpListener::from_std(listener)?),
            Socket::Unix(listener, file) => Listening::Unix {
                listener: tokio::net::UnixListener::from_std(listener)?,
                _file: file,
            },
        })
    }
}

/// Takes connections. The file of a socket is removed when this is dropped.
#[derive(Debug)]
pub enum Listening {
    /// Over TCP.
    Tcp(tokio::net::TcpListener),
    /// On this machine.
    Unix {
        /// Takes them.
        listener: tokio::net::UnixListener,
        /// Ours, kept as long as somebody listens.
        _file: Option<SocketFile>,
    },
}

impl Listening {
    /// The next connection. Dropping the future loses none.
    pub async fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix { listener, .. } => Box::new(listener.accept().await?.0),
        })
    }
}

/// A connection of either kind.
pub type Stream = Box<dyn Duplex>;

/// What can be read and written.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The file of a socket of ours; removed when this is dropped, unless it has become somebody else's.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    id: Option<(u64, u64)>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && id(&self.path) == self.id {
            // Whoever starts next removes it as well.
            let _left = std::fs::remove_file(&self.path);
        }
    }
}

fn id(path: &Path) -> Option<(u64, u64)> {
    let data = std::fs::symlink_metadata(path).ok()?;
    Some((data.dev(), data.ino()))
}

fn bind_file(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
    // Two that start at once would each remove what the other has just made.
    let _turn = turn(path)?;
    remove_stale(path, &address)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket(flags)?;
    // Linux makes the file with the mode that the socket has by then, less the umask: there is no
    // moment at which others could connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(io::Error::from)?;
    rustix::net::bind(&socket, &address).map_err(io::Error::from)?;
    let file = SocketFile { path: path.to_owned(), id: id(path) };
    rustix::net::listen(&socket, BACKLOG).map_err(io::Error::from)?;
    Ok((UnixListener::from(socket), file))
}

fn socket(flags: SocketFlags) -> io::Result<rustix::fd::OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// A lock on the folder, for as long as it is held.
fn turn(path: &Path) -> Result<rustix::fd::OwnedFd, BindError> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty()).map_err(io::Error::from)?;
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(folder),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(BindError::Contended),
        Err(error) => Err(BindError::Io(error.into())),
    }
}

/// Removes a socket that nobody listens on any more.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), BindError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(data) if !data.file_type().is_socket() => return Err(BindError::NoSocket),
        Ok(_) => {}
    }
    // Without waiting: one whose queue is full has somebody, too.
    let probe = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    match rustix::net::connect(&probe, address) {
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Err(BindError::Taken),
        Err(rustix::io::Errno::CONNREFUSED) => Ok(std::fs::remove_file(path)?),
        Err(error) => Err(BindError::Io(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_port_that_only_root_may_have_comes_with_what_to_do() {
        let error = BindError::of_tcp(io::ErrorKind::PermissionDenied.into());
        assert!(error.to_string().contains("CAP_NET_BIND_SERVICE"), "{error}");
    }

    #[test]
    fn an_address_is_read_and_written_alike() {
        for text in ["127.0.0.1:9464", "[::1]:1", "unix:/run/relay/admin.sock", "unix:a"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "9464", "localhost:9464", "/run/relay/admin.sock"] {
            assert_eq!(text.parse::<Address>(), Err(NoAddress), "{text}");
        }
    }

    #[test]
    fn what_only_this_machine_reaches_is_local() {
        let is_local = |text: &str| text.parse::<Address>().unwrap().is_local();
        for text in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:/a"] {
            assert!(is_local(text), "{text}");
        }
        for text in ["0.0.0.0:1", "[::]:1", "192.0.2.7:1"] {
            assert!(!is_local(text), "{text}");
        }
    }

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_socket_is_its_owner_s_alone_and_gone_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let bound = Address::Unix(path.clone()).bind().unwrap();
        assert_eq!(mode(&path), 0o600);
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let address = Address::Unix(path.clone());
        // As a killed process leaves it: the file is there, and nobody behind it.
        drop(UnixListener::bind(&path).unwrap());
        let bound = address.bind().unwrap();
        assert_eq!(mode(&path), 0o600);
        assert!(matches!(address.bind(), Err(BindError::Taken)));
        UnixStream::connect(&path).expect("who has it keeps it");
        drop(bound);
        for make in [
            |path: &Path| std::fs::write(path, "precious").unwrap(),
            |path: &Path| std::os::unix::fs::symlink("elsewhere", path).unwrap(),
            |path: &Path| std::fs::create_dir(path).unwrap(),
        ] {
            make(&path);
            assert!(matches!(address.bind(), Err(BindError::NoSocket)));
            let _file = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
        }
        let nowhere = Address::Unix(folder.path().join("none/socket"));
        assert!(matches!(nowhere.bind(), Err(BindError::Io(_))));
    }

    #[test]
    fn a_queue_that_is_full_is_no_stale_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = socket(SocketFlags::CLOEXEC).unwrap();
        let address = SocketAddrUnix::new(&path).unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        loop {
            let next = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).unwrap();
            if rustix::net::connect(&next, &address).is_err() {
                break;
            }
            waiting.push(next);
        }
        assert!(matches!(Address::Unix(path).bind(), Err(BindError::Taken)));
    }

    #[test]
    fn the_file_of_another_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let bound = Address::Unix(path.clone()).bind().unwrap();
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(bound);
        UnixStream::connect(&path).unwrap();
        drop(other);
    }
}
