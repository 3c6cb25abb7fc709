//! What a service manager does for a relay: it holds the sockets.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

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
