//! Seen from the kernel: a sync of what was written comes before each 2xx.
//!
//! The relay runs under `strace`, which writes one line for each system call, in the order in which
//! they began and ended. For every acknowledgement there must be a write of the webhook's bytes to
//! a file, then a sync of that file that begins after the write has ended, then the answer's bytes
//! on a socket, begun after the sync has ended. And the file must have been made, and its directory
//! synced after that, before the answer begins: a file without a name is lost. Traces from which the
//! syncs are taken out must fail the same check.

use std::collections::HashMap;

use crate::support::tools::has_strace;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Routes, Sender, TestRelay, eventually};

const CALLS: &str =
    "trace=openat,pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg,fdatasync,fsync";

/// One system call: when it began and when it ended, counted in lines.
#[derive(Debug, Clone)]
struct Call {
    name: String,
    /// Everything between the brackets, and what came after.
    text: String,
    began: usize,
    ended: usize,
}

impl Call {
    /// The file or socket it is about, as `-y` shows it: `7</data/segment>`.
    fn file(&self) -> &str {
        self.text.split_once('>').map_or("", |(file, _)| file)
    }

    fn is_sync(&self) -> bool {
        self.name == "fdatasync" || self.name == "fsync"
    }

    fn is_good_sync_of(&self, file: &str) -> bool {
        let synced = self.file().split_once('<').map_or("", |(_, path)| path);
        self.is_sync() && synced == file && self.text.trim_end().ends_with("= 0")
    }

    /// Whether it made this file, without an error.
    fn made(&self, file: &str) -> bool {
        self.name == "openat"
            && self.text.contains("O_CREAT")
            && self.text.trim_end().ends_with(&format!("<{file}>"))
    }

    fn is_on_socket(&self) -> bool {
        let file = self.file();
        ["<socket:", "<TCP", "<UNIX"].iter().any(|kind| file.contains(kind))
    }
}

/// Reads a trace of `strace -f -y`, putting interrupted lines together again.
fn calls(trace: &str) -> Vec<Call> {
    let mut open: HashMap<&str, Call> = HashMap::new();
    let mut calls = Vec::new();
    for (number, line) in trace.lines().enumerate() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(resumed) = rest.strip_prefix("<... ") {
            if let Some(mut call) = open.remove(pid) {
                call.text.push_str(resumed.split_once("resumed>").map_or("", |(_, text)| text));
                call.ended = number;
                calls.push(call);
            }
            continue;
        }
        let Some((name, text)) = rest.split_once('(') else { continue };
        let call =
            Call { name: name.to_owned(), text: text.to_owned(), began: number, ended: number };
        if let Some(text) = text.strip_suffix(" <unfinished ...>") {
            open.insert(pid, Call { text: text.to_owned(), ..call });
        } else {
            calls.push(call);
        }
    }
    calls
}

/// A webhook as the sender knows it: a mark in its body, and the id it was acknowledged with.
#[derive(Debug, Clone)]
struct Acknowledged {
    mark: String,
    id: String,
    answers: usize,
}

/// Why an acknowledgement was not allowed, for each that was not.
fn violations(trace: &str, acknowledged: &[Acknowledged]) -> Vec<String> {
    let calls = calls(trace);
    let mut violations = Vec::new();
    for Acknowledged { mark, id, answers } in acknowledged {
        let answered: Vec<&Call> = calls
            .iter()
            .filter(|call| call.is_on_socket() && call.text.contains(id.as_str()))
            .filter(|call| call.text.contains("HTTP/1.1 20"))
            .collect();
        if answered.len() != *answers {
            violations.push(format!("{mark}: {} answers seen, not {answers}", answered.len()));
        }
        let writes: Vec<&Call> = calls
            .iter()
            .filter(|call| {
                !call.is_sync() && !call.is_on_socket() && call.text.contains(mark.as_str())
            })
            .collect();
        for answer in answered {
            let safe = writes.iter().any(|write| is_durable_before(&calls, write, answer));
            if !safe {
                let when = writes.iter().map(|write| write.ended).collect::<Vec<_>>();
                let at = answer.began;
                violations.push(format!(
                    "{mark}: answered on line {at}, written on {when:?}, no syncs between"
                ));
            }
        }
    }
    violations
}

/// Whether what was written, and the name of the file that it was written to, were durable before
/// the answer began.
fn is_durable_before(calls: &[Call], write: &Call, answer: &Call) -> bool {
    let Some((_, file)) = write.file().split_once('<') else { return false };
    let Some((dir, _)) = file.rsplit_once('/') else { return false };
    let synced_since = |file: &str, since: usize| {
        calls.iter().any(|sync| {
            sync.is_good_sync_of(file) && sync.began > since && sync.ended < answer.began
        })
    };
    synced_since(file, write.ended)
        && calls.iter().any(|call| call.made(file) && synced_since(dir, call.ended))
}

#[test]
fn a_sync_of_what_was_written_ends_before_each_2xx_begins() {
    if !has_strace() {
        return;
    }
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let builder = TestRelay::with(&routes).plain_http();
    let path = builder.path("trace");
    let flags = ["-D", "-f", "-y", "-s", "100000", "-e", CALLS, "-e", "signal=none", "-o"];
    let flags: Vec<&str> = ["strace"].into_iter().chain(flags).chain(path.to_str()).collect();
    let mut relay = builder.under(&flags).start();
    let acknowledged: Vec<Acknowledged> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..8)
            .map(|number| {
                let mut sender = Sender::new(&relay);
                scope.spawn(move || {
                    let post = |count: u32| {
                        let mark = format!("mark-{number}-{count}-end");
                        let body = listing_delivered(&mark);
                        let id = sender.post(&body).accepted();
                        let repeated = count.is_multiple_of(4);
                        if repeated {
                            assert_eq!(sender.post(&body).duplicate(), id);
                        }
                        Acknowledged { mark, id, answers: 1 + usize::from(repeated) }
                    };
                    (0..12).map(post).collect::<Vec<_>>()
                })
            })
            .collect();
        senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect()
    });
    crm.wait_for(acknowledged.len());
    relay.terminate();
    let trace = eventually("strace has written everything", || {
        let trace = std::fs::read_to_string(&path).unwrap();
        trace.contains("+++ exited with 0 +++").then_some(trace)
    });

    let found = violations(&trace, &acknowledged);
    assert!(found.is_empty(), "{} violations:\n{}", found.len(), found.join("\n"));

    // The same trace of a relay that never syncs, and of one that syncs too late.
    let without: Vec<&str> = trace.lines().filter(|line| !line.contains("sync")).collect();
    assert_eq!(violations(&without.join("\n"), &acknowledged).len(), answers(&acknowledged));
    let (syncs, rest): (Vec<&str>, Vec<&str>) =
        trace.lines().partition(|line| line.contains("sync"));
    let late = [rest, syncs].concat().join("\n");
    assert_eq!(violations(&late, &acknowledged).len(), answers(&acknowledged));
}

fn answers(acknowledged: &[Acknowledged]) -> usize {
    acknowledged.iter().map(|one| one.answers).sum()
}

#[test]
fn the_check_finds_what_it_is_for() {
    let one = [Acknowledged { mark: "mark-1".to_owned(), id: "id-1".to_owned(), answers: 1 }];
    let made = "10 openat(AT_FDCWD</d>, \"/d/a\", O_RDWR|O_CREAT|O_EXCL, 0600) = 7</d/a>\n";
    let named = "10 fsync(8</d>) = 0\n";
    let write = "10 pwrite64(7</d/a>, \"mark-1\", 6, 0) = 6\n";
    let sync = "10 fdatasync(7</d/a>) = 0\n";
    let answer = "11 sendto(9<socket:[5]>, \"HTTP/1.1 202 Accepted\\r\\n\\r\\nid-1\", 30) = 30\n";
    let count = |lines: &[&str]| violations(&lines.concat(), &one).len();
    let check = |lines: &[&str]| count(&[&[made, named], lines].concat());
    assert_eq!(check(&[write, sync, answer]), 0);
    assert_eq!(check(&[write, answer, sync]), 1);
    assert_eq!(check(&[sync, write, answer]), 1);
    assert_eq!(check(&[write, answer]), 1);
    assert_eq!(check(&[sync, answer]), 1);
    assert_eq!(check(&[write, "10 fdatasync(8</d/b>) = 0\n", answer]), 1, "another file");
    assert_eq!(check(&[write, "10 fdatasync(7</d/a>) = -1 EIO (Error)\n", answer]), 1);
    assert_eq!(check(&[write, sync]), 1, "no answer seen");
    let begun = "10 fdatasync(7</d/a> <unfinished ...>\n";
    let done = "10 <... fdatasync resumed>) = 0\n";
    assert_eq!(check(&[write, begun, done, answer]), 0);
    assert_eq!(check(&[write, begun, answer, done]), 1, "answered while it syncs");
    assert_eq!(check(&[begun, write, done, answer]), 1, "began before the write");
    assert_eq!(count(&[made, write, sync, named, answer]), 0, "named in time");
    assert_eq!(count(&[made, write, sync, answer]), 1, "never named");
    assert_eq!(count(&[made, write, sync, answer, named]), 1, "named too late");
    assert_eq!(count(&[named, made, write, sync, answer]), 1, "named before it was there");
    assert_eq!(count(&[made, "10 fsync(8</e>) = 0\n", write, sync, answer]), 1, "not its own");
}
