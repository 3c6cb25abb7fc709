//! What a service manager does for a relay: it holds the sockets, and hears what the relay says of itself.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use super::patience;

/// Passes its input and output on as systemd would: as the files 3 and 4, and says so in the environment. They come
/// that way because whatever else a process hands down goes to all that it starts, those of other tests too.
const PASS_ON: &str = "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$; exec \"$@\"";

/// Two sockets that outlive each relay that they are passed to.
pub(crate) struct Sockets {
    passed: [OwnedFd; 2],
    names: String,
    count: usize,
}

impl Sockets {
    /// For webhooks and for operators.
    pub(crate) fn open() -> Self {
        Self::named(listening(), listening(), "webhooks:admin")
    }

    /// Two of any kind; names as in `LISTEN_FDNAMES`.
    pub(crate) fn named(
        first: impl Into<OwnedFd>,
        second: impl Into<OwnedFd>,
        names: &str,
    ) -> Self {
        let count = names.split(':').count();
        Self { passed: [first.into(), second.into()], names: names.to_owned(), count }
    }

    /// Only the first.
    pub(crate) fn one(socket: impl Into<OwnedFd>, name: &str) -> Self {
        Self { count: 1, ..Self::named(socket, File::open("/dev/null").unwrap(), name) }
    }

    /// Where webhooks come in.
    pub(crate) fn webhooks(&self) -> SocketAddr {
        TcpListener::from(self.passed[0].try_clone().unwrap()).local_addr().unwrap()
    }

    /// What runs a program that gets them.
    pub(crate) const fn under() -> [&'static str; 4] {
        ["sh", "-c", PASS_ON, "sh"]
    }

    /// Gives them to what [`Self::under`] begins.
    pub(crate) fn give_to(&self, command: &mut Command) {
        let [first, second] = self.passed.each_ref().map(|socket| socket.try_clone().unwrap());
        command
            .stdin(Stdio::from(first))
            .stdout(Stdio::from(second))
            .env("LISTEN_FDS", self.count.to_string())
            .env("LISTEN_FDNAMES", &self.names);
    }
}

/// A socket that listens on a port of its own.
pub(crate) fn listening() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Where a relay says how it is.
pub(crate) struct Notifications {
    socket: UnixDatagram,
}

impl Notifications {
    /// The path is for `NOTIFY_SOCKET`.
    pub(crate) fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(patience())).unwrap();
        Self { socket }
    }

    /// The next message; its lines.
    #[track_caller]
    pub(crate) fn next(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("the relay says something");
        let text = String::from_utf8(message[..length].to_vec()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Reads on until a message has this line.
    #[track_caller]
    pub(crate) fn until(&self, line: &str) -> Vec<String> {
        loop {
            let lines = self.next();
            if lines.iter().any(|other| other == line) {
                return lines;
            }
        }
    }

    /// Forgets what was said and not read; how many messages.
    pub(crate) fn forget(&self) -> usize {
        self.socket.set_nonblocking(true).unwrap();
        let said = std::iter::from_fn(|| self.socket.recv(&mut [0; 4096]).ok()).count();
        self.socket.set_nonblocking(false).unwrap();
        said
    }
}
