//! The real binary as a child process, with everything around it that it needs.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::manager::Sockets;
use super::metrics::Metrics;
use super::sender::{Answer, get};
use super::{AUTHORITY, Routes, eventually};

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_aryeo-relay");

/// A folder on a real disk.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("relay-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A command with nothing of the tests' own environment.
pub(crate) fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env_clear().stdin(Stdio::null());
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

/// What a command that ended left behind.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Self { code: output.status.code(), stdout, stderr }
    }
}

/// Runs a command to its end, which must come within patience.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Ended {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    finish(child, command)
}

#[track_caller]
fn finish(mut child: Child, what: &Command) -> Ended {
    let read = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(Box::new(child.stdout.take().unwrap()));
    let stderr = read(Box::new(child.stderr.take().unwrap()));
    let mut guard = Guard(child);
    let status = eventually(&format!("{what:?} ends"), || guard.0.try_wait().unwrap());
    Ended { code: status.code(), stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// A command that runs until it is dropped.
pub(crate) struct Background {
    process: Guard,
    stdout: Logs,
}

impl Background {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (stdout, _) = Logs::of(child.stdout.take().unwrap());
        Self { process: Guard(child), stdout }
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.0.id()
    }

    /// What it printed so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.stdout.all()
    }
}

/// Kills its process when dropped.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.0.kill();
        let _status = self.0.wait();
    }
}

/// How a relay is to run: the folder survives restarts.
pub(crate) struct Builder {
    folder: TempDir,
    data: PathBuf,
    addresses: Vec<(String, String)>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    under: Vec<String>,
    sockets: Option<Sockets>,
    binary: PathBuf,
    tls: bool,
    /// It is given one.
    certificate: bool,
}

impl Builder {
    fn new(routes: &str, environment: &[(String, String)]) -> Self {
        let folder = folder();
        let identity = AUTHORITY.server();
        fs::write(folder.path().join("routes.yaml"), routes).unwrap();
        fs::create_dir(folder.path().join("certs")).unwrap();
        fs::write(folder.path().join("certs/tls.crt"), identity.certificate).unwrap();
        fs::write(folder.path().join("certs/tls.key"), identity.key).unwrap();
        fs::write(folder.path().join("certs/ca.crt"), AUTHORITY.pem()).unwrap();
        Self {
            data: folder.path().join("data"),
            folder,
            addresses: ["--listen", "--admin"]
                .map(|flag| (flag.to_owned(), "127.0.0.1:0".to_owned()))
                .to_vec(),
            arguments: Vec::new(),
            environment: environment.to_vec(),
            under: Vec::new(),
            sockets: None,
            binary: BINARY.into(),
            tls: true,
            certificate: true,
        }
    }

    /// More flags of `serve`.
    pub(crate) fn flags(mut self, flags: &[&str]) -> Self {
        self.arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Instead of an address of our choice.
    pub(crate) fn override_flag(mut self, flag: &str, value: &str) -> Self {
        self.addresses.retain(|(name, _)| name != flag);
        self.addresses.push((flag.to_owned(), value.to_owned()));
        self
    }

    /// A variable of its environment.
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without TLS.
    pub(crate) fn plain_http(mut self) -> Self {
        self.tls = false;
        self.flags(&["--plain-http"])
    }

    /// With TLS, but without the files for it.
    pub(crate) fn without_certificate(mut self) -> Self {
        self.certificate = false;
        self
    }

    /// Keeps its data somewhere else.
    pub(crate) fn data_in(mut self, data: &Path) -> Self {
        data.clone_into(&mut self.data);
        self
    }

    /// Run by another program, such as `strace` with its flags.
    pub(crate) fn under(mut self, program: &[&str]) -> Self {
        self.under = program.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    /// Run by a service manager that holds its sockets.
    pub(crate) fn sockets(mut self, sockets: Sockets) -> Self {
        self.sockets = Some(sockets);
        self.under(&Sockets::under())
    }

    /// A file beside `routes.yaml`.
    pub(crate) fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.folder.path().join(name), text).unwrap();
        self
    }

    /// Where everything is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = match self.under.split_first() {
            None => command(&self.binary),
            Some((program, flags)) => {
                let mut command = command(program);
                command.args(flags).arg(&self.binary);
                command
            }
        };
        command
            .arg("serve")
            .args(self.addresses.iter().flat_map(|(flag, value)| [flag, value]))
            .args(["--log-format", "json", "--routes"])
            .arg(self.path("routes.yaml"))
            .arg("--data")
            .arg(&self.data);
        if self.tls && self.certificate {
            command.arg("--tls-cert").arg(self.path("certs/tls.crt"));
            command.arg("--tls-key").arg(self.path("certs/tls.key"));
        }
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(sockets) = &self.sockets {
            sockets.give_to(&mut command);
        }
        command
    }

    /// Starts it, and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(self) -> TestRelay {
        let mut relay = TestRelay { builder: self, running: None };
        relay.start_again();
        relay
    }

    /// Starts it, and waits until it says where it listens.
    #[track_caller]
    pub(crate) fn start_unready(self) -> TestRelay {
        let mut relay = TestRelay { builder: self, running: None };
        relay.launch_again();
        relay
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(&self) -> Ended {
        run(&mut self.command())
    }

    /// Starts it; it must refuse, with status 1.
    #[track_caller]
    pub(crate) fn refused(&self) -> Ended {
        let ended = self.run();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        ended
    }
}

/// A relay with a folder of its own; it is killed when dropped.
pub(crate) struct TestRelay {
    builder: Builder,
    running: Option<Running>,
}

struct Running {
    child: Guard,
    listen: SocketAddr,
    admin: String,
    logs: Logs,
    /// Ends with the relay's last line.
    reader: Option<JoinHandle<()>>,
}

/// The newest lines of its log.
#[derive(Clone, Default)]
pub(crate) struct Logs(Arc<Mutex<VecDeque<String>>>);

/// More are forgotten, oldest but the first.
const LOG_LINES_MAX: usize = 20_000;

impl Logs {
    /// All lines of a pipe, from now on.
    fn of(pipe: impl Read + Send + 'static) -> (Self, JoinHandle<()>) {
        let logs = Self::default();
        let sink = logs.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                sink.push(line);
            }
        });
        (logs, reader)
    }

    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap();
        if lines.len() >= LOG_LINES_MAX {
            lines.remove(1);
        }
        lines.push_back(line);
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().cloned().collect()
    }

    fn tail(&self) -> String {
        let lines = self.0.lock().unwrap();
        let mut text = String::new();
        for line in lines.iter().skip(lines.len().saturating_sub(40)) {
            writeln!(text, "{line}").unwrap();
        }
        text
    }
}

impl TestRelay {
    /// How to run one with this table.
    pub(crate) fn with(routes: &Routes) -> Builder {
        Builder::new(&routes.yaml(), routes.secrets())
    }

    /// How to run one with this file.
    pub(crate) fn with_file(routes: &str) -> Builder {
        Builder::new(routes, &[])
    }

    /// Starts it once more on the same data, and waits until it is ready.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.launch_again();
        self.wait_until_ready();
    }

    /// Starts it once more on the same data; it listens, but need not be ready.
    #[track_caller]
    pub(crate) fn launch_again(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let mut child = self.builder.command().spawn().unwrap();
        let (logs, reader) = Logs::of(child.stderr.take().unwrap());
        let mut guard = Guard(child);
        let (listen, admin) = eventually("the relay says where it listens", || {
            if let Some(status) = guard.0.try_wait().unwrap() {
                panic!("the relay ended at start with {status}:\n{}", logs.tail());
            }
            let lines = logs.all();
            let found = lines.iter().find_map(|line| {
                let event: Value = serde_json::from_str(line).ok()?;
                let listen = event["listen"].as_str()?.parse::<SocketAddr>().ok()?;
                Some((listen, event["admin"].as_str()?.to_owned()))
            });
            found.ok_or_else(|| format!("it says only: {}", lines.join("\n")))
        });
        self.running = Some(Running { child: guard, listen, admin, logs, reader: Some(reader) });
    }

    /// Waits until it is ready.
    #[track_caller]
    pub(crate) fn wait_until_ready(&self) {
        eventually("the relay is ready", || {
            if self.admin_text().starts_with("unix:") {
                let lines = self.logs();
                let is_ready = |line: &String| line.contains("Ready: accepting and delivering.");
                return if lines.iter().any(is_ready) { Ok(()) } else { Err(lines.join("\n")) };
            }
            let answer = get(self.admin(), "/readyz").map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            if answer.status == 200 { Ok(()) } else { Err(text) }
        });
    }

    #[track_caller]
    fn running(&self) -> &Running {
        self.running.as_ref().expect("the relay runs")
    }

    /// The senders' address.
    #[track_caller]
    pub(crate) fn listen(&self) -> SocketAddr {
        self.running().listen
    }

    /// The operators' address.
    #[track_caller]
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin_text().parse().expect("it listens on TCP")
    }

    /// The same as the relay says it.
    #[track_caller]
    pub(crate) fn admin_text(&self) -> &str {
        &self.running().admin
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.builder.tls
    }

    pub(crate) fn data(&self) -> &Path {
        &self.builder.data
    }

    /// A file in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.builder.path(name)
    }

    /// The process id.
    #[track_caller]
    fn pid(&self) -> Pid {
        Pid::from_child(&self.running().child.0)
    }

    /// The same as a number.
    #[track_caller]
    pub(crate) fn process(&self) -> u32 {
        self.running().child.0.id()
    }

    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// `kill -9`.
    #[track_caller]
    pub(crate) fn kill9(&mut self) {
        self.signal(Signal::KILL);
        let status = self.wait();
        assert_eq!(status.signal(), Some(9), "it ended by itself: {status}");
    }

    /// Asks it to stop and waits until it has, with status 0.
    #[track_caller]
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::TERM);
        let logs = self.running().logs.clone();
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{status}:\n{}", logs.tail());
    }

    /// Waits for its end, and until its last line is read.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut running = self.running.take().expect("the relay runs");
        let status = eventually("the relay ends", || running.child.0.try_wait().unwrap());
        running.reader.take().expect("nobody waited before").join().unwrap();
        status
    }

    /// Whether it has ended, for tests that look while it stops.
    #[track_caller]
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.running.as_mut().expect("the relay runs").child.0.try_wait().unwrap()
    }

    /// Stops it in order and starts it again.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.terminate();
        self.start_again();
    }

    /// Stops it in order and starts another program in its place.
    #[track_caller]
    pub(crate) fn replace(&mut self, binary: &Path) {
        binary.clone_into(&mut self.builder.binary);
        self.restart();
    }

    /// A second process on the same folder.
    pub(crate) fn second(&self) -> Ended {
        self.builder.refused()
    }

    /// Asks it by a command, as its operator does.
    #[track_caller]
    pub(crate) fn ask(&self, words: &[&str]) -> Ended {
        let admin = format!("http://{}", self.admin());
        run(command(BINARY).args(words).args(["--admin", &admin]))
    }

    /// What the command that asks it prints; it has to succeed.
    #[track_caller]
    pub(crate) fn told(&self, words: &[&str]) -> String {
        let ended = self.ask(words);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.stdout
    }

    /// Its log lines so far.
    #[track_caller]
    pub(crate) fn logs(&self) -> Vec<String> {
        self.running().logs.all()
    }

    /// Its log, also after its end.
    #[track_caller]
    pub(crate) fn log(&self) -> Logs {
        self.running().logs.clone()
    }

    /// Asks the admin address.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        get(self.admin(), path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// Reads its metrics.
    #[track_caller]
    pub(crate) fn metrics(&self) -> Metrics {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200);
        Metrics::parse(String::from_utf8(answer.body).unwrap())
    }

    /// Waits until a metric has a value.
    #[track_caller]
    pub(crate) fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        eventually(&format!("{name}{labels:?} is {value}"), || {
            match self.metrics().get(name, labels) {
                Some(is) if (is - value).abs() < 1e-9 => Ok(()),
                other => Err(format!("it is {other:?}")),
            }
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the relay's last words:\n{}", self.logs.tail());
        }
    }
}
