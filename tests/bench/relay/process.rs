//! The relay as a process: how it is started, and what the kernel says of it.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, sleep};

use super::sender::{PATH, Relay, SECRET};
use super::target::Target;
use super::{Args, WAIT_MAX, body};

/// How long it may take to stop in order.
const STOP_WAIT_MAX: Duration = Duration::from_secs(30);

/// A relay's files, which outlive its process.
pub(crate) struct Home {
    folder: tempfile::TempDir,
    certificate: CertificateDer<'static>,
    /// The program.
    binary: PathBuf,
    /// Flags besides those that every run needs.
    flags: Vec<String>,
}

/// A target of the routing table.
pub(crate) struct Lane {
    /// Its name.
    pub(crate) name: &'static str,
    /// The activity it wants.
    pub(crate) activity: &'static str,
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// Further keys, as YAML.
    pub(crate) more: String,
}

impl Home {
    /// Makes certificate and table in a new folder under `parent`, which has to be a real disk.
    pub(crate) fn new(
        parent: &Path,
        binary: &Path,
        flags: &[String],
        lanes: &[Lane],
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(parent)?;
        let kind = rustix::fs::statfs(parent)?.f_type;
        ensure!(kind != TMPFS_MAGIC, "{} is no disk, it is in memory", parent.display());
        let folder = tempfile::Builder::new().prefix("relay-bench-").tempdir_in(parent)?;
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        std::fs::write(folder.path().join("tls.crt"), made.cert.pem())?;
        std::fs::write(folder.path().join("tls.key"), made.signing_key.serialize_pem())?;
        std::fs::write(folder.path().join("routes.yaml"), routes(lanes)?)?;
        let certificate = made.cert.der().clone();
        Ok(Self { folder, certificate, binary: binary.into(), flags: flags.to_vec() })
    }

    /// Executes `aryeo-relay serve`; it may not be ready yet when this returns.
    pub(crate) fn start(&self) -> anyhow::Result<Process> {
        let (listen, admin) = (free_port()?, free_port()?);
        let path = |name: &str| self.folder.path().join(name);
        let log = std::fs::File::options().create(true).append(true).open(path("log"))?;
        let mut command = Command::new(&self.binary);
        command.arg("serve");
        command.arg("--listen").arg(listen.to_string()).arg("--admin").arg(admin.to_string());
        command.arg("--routes").arg(path("routes.yaml")).arg("--data").arg(path("data"));
        command.arg("--tls-cert").arg(path("tls.crt")).arg("--tls-key").arg(path("tls.key"));
        command.args(&self.flags).env("BENCH_SECRET", SECRET).env("BENCH_TARGET_SECRET", "target");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let relay = Relay::new(listen, self.certificate.clone())?;
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("{}", self.binary.display()))?;
        Ok(Process { child, relay, admin, started, log: path("log") })
    }

    /// Saves another table.
    pub(crate) fn route(&self, lanes: &[Lane]) -> anyhow::Result<()> {
        Ok(std::fs::write(self.folder.path().join("routes.yaml"), routes(lanes)?)?)
    }

    /// Bytes on the disk.
    pub(crate) fn data_bytes(&self) -> anyhow::Result<u64> {
        let mut bytes = 0;
        for entry in std::fs::read_dir(self.folder.path().join("data"))? {
            bytes += std::os::unix::fs::MetadataExt::blocks(&entry?.metadata()?) * 512;
        }
        Ok(bytes)
    }
}

const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

fn routes(lanes: &[Lane]) -> anyhow::Result<String> {
    let mut yaml = format!(
        "sources:\n  aryeo:\n    path: {PATH}\n    verify: {{ scheme: aryeo, secrets: [{{ env: \
         BENCH_SECRET }}] }}\ntargets:\n"
    );
    for lane in lanes {
        write!(
            yaml,
            "  {}:\n    url: http://{}/hook\n    sign: {{ scheme: aryeo, secrets: [{{ env: \
             BENCH_TARGET_SECRET }}] }}\n{}",
            lane.name, lane.address, lane.more
        )?;
    }
    yaml.push_str("routes:\n");
    for lane in lanes {
        let Lane { name, activity, .. } = lane;
        writeln!(yaml, "  - {{ name: {name}, activity: {activity}, to: [{name}] }}")?;
    }
    Ok(yaml)
}

/// A relay that listens, with one target and a log of errors only, and its files.
pub(crate) async fn alone(args: &Args, target: &Target) -> anyhow::Result<(Home, Process)> {
    let lane = Lane {
        name: "target",
        activity: body::ACTIVITY,
        address: target.address,
        more: String::new(),
    };
    let mut flags = args.flags.clone();
    flags.extend(["--log-level".to_owned(), "error".to_owned()]);
    let home = Home::new(&args.folder, &args.binary, &flags, &[lane])?;
    let mut process = home.start()?;
    process.listening(WAIT_MAX).await?;
    Ok((home, process))
}

/// A command that asks a running relay.
pub(crate) fn command(args: &Args, process: &Process, words: &[&str]) -> Command {
    let mut command = Command::new(&args.binary);
    command.args(words).args(["--admin", &format!("http://{}", process.admin)]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A running relay. Dropped, it is killed.
pub(crate) struct Process {
    child: Child,
    /// How to reach it.
    pub(crate) relay: Relay,
    /// Where it answers operators.
    pub(crate) admin: SocketAddr,
    /// When it was executed.
    pub(crate) started: Instant,
    log: PathBuf,
}

/// Memory in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) now: f64,
    /// Resident at most.
    pub(crate) peak: f64,
}

impl Process {
    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until somebody can connect.
    pub(crate) async fn listening(&mut self, limit: Duration) -> anyhow::Result<()> {
        let end = self.started + limit;
        loop {
            match self.relay.connect().await {
                Ok(_) => return Ok(()),
                Err(error) => ensure!(Instant::now() < end, "not listening: {error:#}"),
            }
            self.is_alive()?;
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Fails with the end of its log where it has ended.
    pub(crate) fn is_alive(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        anyhow::bail!("the relay ended with {status}:\n{}", lines.join("\n"))
    }

    /// CPU time so far, user and system, all threads.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = self.proc("stat")?;
        // The name of the program may have blanks and brackets in it: fields count from behind it.
        let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
        let mut fields = fields.split_ascii_whitespace().skip(11);
        let mut ticks = || anyhow::Ok(fields.next().context("stat is short")?.parse::<u64>()?);
        let ticks = ticks()? + ticks()?;
        Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
    }

    /// Waits until it has nothing left to do, such as writing its index, and says what it has used.
    pub(crate) async fn cpu_at_rest(&self) -> anyhow::Result<Duration> {
        let end = Instant::now() + Duration::from_secs(10);
        let mut before = self.cpu()?;
        loop {
            sleep(Duration::from_millis(500)).await;
            let now = self.cpu()?;
            if now - before < Duration::from_millis(20) || Instant::now() > end {
                return Ok(now);
            }
            before = now;
        }
    }

    /// What it takes of the memory.
    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        let status = self.proc("status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kibibytes: f64 = line?.split_ascii_whitespace().next()?.parse().ok()?;
            Some(kibibytes * 1024.0)
        };
        let missing = "a field of status is missing";
        let now = field("VmRSS:").context(missing)?;
        Ok(Memory { now, peak: field("VmHWM:").context(missing)? })
    }

    fn proc(&self, name: &str) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(format!("/proc/{}/{name}", self.id()))?)
    }

    /// Stops it as an operator does.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        let end = Instant::now() + STOP_WAIT_MAX;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the relay stopped with {status}");
                return Ok(());
            }
            ensure!(Instant::now() < end, "the relay does not stop");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops it as a power cut does.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}
