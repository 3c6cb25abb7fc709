//! The relay of a run: a folder on the operator's disk, and a process that can be killed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::app::harm;
use crate::cli::certificate::{Files, LOCAL_NAMES, make};
use crate::cli::torture::load::{NAMES, SECRET, Shared, Target};
use crate::domain::time::Timestamp;
use crate::domain::webhook::WebhookId;

/// A start reads what a kill left; on a busy machine that takes its time.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Lines of its log that are shown when it fails.
const LINES_KEPT: usize = 40;

/// What all relays of the run have logged.
const LOG: &str = "relay.log";

const SECRET_ENV: &str = "ARYEO_RELAY_TORTURE_SECRET";

/// A folder with all that a relay needs.
#[derive(Debug)]
pub(super) struct Stage {
    folder: PathBuf,
    listen: SocketAddr,
    shared: Arc<Shared>,
    old_segment: u64,
}

/// A relay that runs.
#[derive(Debug)]
pub(super) struct Relay {
    child: Child,
    reader: Option<JoinHandle<()>>,
    events: Receiver<Event>,
    tail: Arc<Mutex<VecDeque<String>>>,
    /// Where its admin address is.
    pub(super) admin: String,
}

#[derive(Debug)]
enum Event {
    Bound { listen: SocketAddr, admin: String },
    Ready,
}

impl Stage {
    /// Writes the certificate and the routes file.
    pub(super) fn set(
        folder: &Path,
        targets: &[Target],
        shared: &Arc<Shared>,
        now: Timestamp,
    ) -> anyhow::Result<Self> {
        let names = LOCAL_NAMES.map(str::to_owned);
        Files::of(folder).write(&make(&names, now)?)?;
        std::fs::write(folder.join("routes.yaml"), routes(targets))?;
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Self { folder: folder.to_owned(), listen, shared: Arc::clone(shared), old_segment: 0 })
    }

    /// Its data directory.
    pub(super) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The newest segment that was there when the last relay started: it wrote later ones only.
    pub(super) fn old_segment(&self) -> u64 {
        self.old_segment
    }

    /// Where webhooks go: the same address over all restarts.
    pub(super) fn url(&self) -> String {
        format!("https://localhost:{}/webhooks/aryeo", self.listen.port())
    }

    /// Whose certificate is good.
    pub(super) fn authority(&self) -> anyhow::Result<Vec<u8>> {
        Ok(std::fs::read(Files::of(&self.folder).certificate)?)
    }

    /// Starts a relay and waits until it is ready.
    pub(super) fn start(&mut self, limit_mib: u64) -> anyhow::Result<Relay> {
        self.old_segment = harm::newest_segment(&self.data())?;
        let mut command = Command::new(std::env::current_exe()?);
        for (name, _) in std::env::vars_os() {
            // What an operator has set for his own relay is not meant for this one.
            if name.to_string_lossy().starts_with("RELAY_") {
                command.env_remove(name);
            }
        }
        let files = Files::of(&self.folder);
        command
            .arg("serve")
            .args(["--log-format", "json", "--retain", "1m", "--allow-volatile-data"])
            .args(["--store-limit", &format!("{limit_mib}MiB")])
            .args(["--admin", "127.0.0.1:0", "--listen", &self.listen.to_string()])
            .arg("--routes")
            .arg(self.folder.join("routes.yaml"))
            .arg("--data")
            .arg(self.data())
            .arg("--tls-cert")
            .arg(files.certificate)
            .arg("--tls-key")
            .arg(files.key)
            .env(SECRET_ENV, SECRET)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for us: the relay is stopped in order.
            .process_group(0);
        let mut child = command.spawn().context("the relay can't be started")?;
        let pipe = child.stderr.take().context("the relay has no stderr")?;
        let (sender, events) = channel();
        let tail = Arc::default();
        let (kept, shared) = (Arc::clone(&tail), Arc::clone(&self.shared));
        let file = File::options().create(true).append(true).open(self.folder.join(LOG))?;
        let reader = std::thread::spawn(move || {
            let mut file = file;
            read_log(pipe, &sender, &kept, &shared, &mut file);
        });
        let reader = Some(reader);
        let mut relay = Relay { child, reader, events, tail, admin: String::new() };
        loop {
            match relay.events.recv_timeout(START_TIMEOUT) {
                Ok(Event::Bound { listen, admin }) => {
                    self.listen = listen;
                    relay.admin = admin;
                }
                Ok(Event::Ready) => return Ok(relay),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("it is not ready in time:\n{}", relay.tail())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = relay.child.wait()?;
                    bail!("it ended at start with {status}:\n{}", relay.tail());
                }
            }
        }
    }
}

impl Relay {
    /// `kill -9`.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.still_runs()?;
        self.child.kill()?;
        self.wait().map(drop)
    }

    /// Stops it in order.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.still_runs()?;
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.wait()?;
        if !status.success() {
            bail!("asked to stop, it ended with {status}:\n{}", self.tail());
        }
        Ok(())
    }

    /// It does not end by itself, whatever is done to it.
    pub(super) fn still_runs(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("it ended by itself with {status}:\n{}", self.tail()),
        }
    }

    /// Waits for its end, and for its last line.
    fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let status = self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            // It can't have panicked: it only reads.
            drop(reader.join());
        }
        Ok(status)
    }

    fn tail(&self) -> String {
        let lines = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| format!("  {line}\n")).collect()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It has ended already, or something went wrong here.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

fn read_log(
    pipe: impl Read,
    events: &Sender<Event>,
    tail: &Mutex<VecDeque<String>>,
    shared: &Shared,
    file: &mut File,
) {
    for line in BufReader::new(pipe).lines().map_while(Result::ok) {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default();
        let message = text("message");
        let listen = text("listen").parse();
        let sent = match listen {
            Ok(listen) => events.send(Event::Bound { listen, admin: text("admin").to_owned() }),
            Err(_) if message.starts_with("Ready:") => events.send(Event::Ready),
            Err(_) => Ok(()),
        };
        // Nobody listens once it has started.
        sent.unwrap_or_default();
        if message.contains("damaged")
            && let Some(id) = WebhookId::parse(text("webhook_id"))
        {
            shared.with(|ledger| ledger.tell(id));
        }
        // Where the disk is full the run goes on without it.
        writeln!(file, "{line}").unwrap_or_default();
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.push_back(line);
        if tail.len() > LINES_KEPT {
            tail.pop_front();
        }
    }
}

fn routes(targets: &[Target]) -> String {
    let mut text = format!(
        "sources:
  aryeo:
    path: /webhooks/aryeo
    verify: {{ scheme: aryeo, secrets: [{{ env: {SECRET_ENV} }}] }}
targets:
"
    );
    for (name, target) in NAMES.iter().zip(targets) {
        text.push_str(&format!(
            "  {name}:
    url: http://{}/hook
    sign: {{ scheme: aryeo, secrets: [{{ env: {SECRET_ENV} }}] }}
    retry: {{ first: 100ms, max: 1s }}
    backlog_limit: 1024GiB
",
            target.address
        ));
    }
    text.push_str(
        "routes:
  - name: everything
    to: [crm, billing]
  - name: orders
    activity: \"ORDER_*\"
    to: [orders]
",
    );
    text
}
