//! A whole store on a disk that decays: it starts, delivers what is sound, and says what is not.

use super::*;
use crate::domain::delivery::Cause;
use crate::store::embedded::disk::Disk;
use crate::store::embedded::log::Log;
use crate::store::embedded::record::{Kind, peek_webhook};
use crate::store::embedded::scanner::Scanner;
use crate::store::embedded::segment::HEADER_BYTES;
use crate::store::embedded::tests::damage::{Snapshot, snapshot, three};

const TARGET: &str = "crm";
const BODIES: [&[u8]; 3] = [b"first", b"second", b"third"];

/// A stopped store: its world, its segment, its index, and where its records begin and end.
struct Stopped {
    world: World,
    path: std::path::PathBuf,
    bytes: Vec<u8>,
    index: Vec<u8>,
    offsets: Vec<usize>,
}

/// How a store finds its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Sound,
    Gone,
}

impl Stopped {
    async fn new() -> Self {
        let mut world = World::new();
        let store = world.open();
        let path = segments(&world).pop().unwrap();
        let mut offsets = vec![usize::try_from(HEADER_BYTES).unwrap()];
        for body in BODIES {
            let (webhook, result) = world.commit(&store, body, &[TARGET]).await;
            result.unwrap();
            let meta = crate::store::embedded::record::encode_webhook(&webhook, None).len();
            offsets.push(offsets.last().unwrap() + 32 + (meta + body.len()).next_multiple_of(8));
        }
        store.flush().await;
        // Killed: a stop in order would write one more record.
        let disk = world.disk.kill();
        drop(store);
        world.use_disk(disk);
        let index = std::fs::read(world.index_file()).unwrap();
        let mut bytes = Vec::new();
        world.disk.change(&path, |content| bytes = content.clone());
        Self { world, path, bytes, index, offsets }
    }

    /// Opens it with other bytes in its segment; everything else is as at first.
    fn open(&self, bytes: Vec<u8>, found: Found) -> EmbeddedStore {
        for path in segments(&self.world) {
            self.world.disk.remove(&path).unwrap();
        }
        drop(self.world.disk.create(&self.path, 0).unwrap());
        self.world.disk.change(&self.path, |content| *content = bytes);
        self.world.delete_index();
        if found == Found::Sound {
            std::fs::write(self.world.index_file(), &self.index).unwrap();
        }
        self.world.open()
    }

    /// A store with these bytes delivers all but the lost ones, knows them as duplicates, and goes
    /// on; answers how many records were damaged.
    async fn check(&self, bytes: Vec<u8>, found: Found, what: &str) -> (Vec<Bytes>, u64) {
        let store = self.open(bytes, found);
        let mut leases = Vec::new();
        while (leases.len() as u64) < pending(&store, TARGET).await {
            leases.extend(lease_or_settled(&store, leases.len()).await);
        }
        let bodies: Vec<Bytes> =
            leases.iter().map(|lease| lease.delivery.webhook.body.clone()).collect();
        for body in BODIES {
            let known = is_duplicate(&store, body).await.is_some();
            // Of what is lost a copy is taken for new.
            let expected = bodies.iter().any(|b| *b == body);
            assert_eq!(known, expected, "{what}, {found:?}: {body:?}");
        }
        let lost = (BODIES.len() - bodies.len()) as u64;
        let dead: Vec<_> = store.lanes().into_iter().flat_map(|lane| lane.dead).collect();
        let expected = if found == Found::Sound && lost > 0 {
            vec![(Cause::Damaged, lost)]
        } else {
            Vec::new()
        };
        assert_eq!(dead, expected, "{what}, {found:?}");
        self.world.commit(&store, b"another", &["other"]).await.1.unwrap();
        (bodies, store.health().damaged_records)
    }
}

/// Leases more, or answers with none when what was pending is a dead letter.
async fn lease_or_settled(store: &EmbeddedStore, held: usize) -> Vec<Lease> {
    let settled = async {
        while pending(store, TARGET).await > held as u64 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        leases = lease(store, TARGET, 8) => leases,
        () = within(PATIENCE, settled) => Vec::new(),
    }
}

/// What becomes of the bytes of a segment, and how many of the webhooks are whole then.
struct Case {
    what: String,
    bytes: Vec<u8>,
    whole: Vec<&'static [u8]>,
    /// Whether it must be counted as damage also without an index: a torn tail is none.
    is_damage: bool,
}

/// Goes through the cases on several threads, each with a store of its own, with and without index.
fn check_all(cases: fn(&Stopped) -> Vec<Case>) {
    const THREADS: usize = 8;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let stopped = Stopped::new().await;
                    let mine = cases(&stopped).into_iter().skip(thread).step_by(THREADS);
                    for Case { what, bytes, whole, is_damage } in mine {
                        for found in [Found::Gone, Found::Sound] {
                            let (bodies, damaged) =
                                stopped.check(bytes.clone(), found, &what).await;
                            assert_eq!(bodies, whole, "{what}, {found:?}");
                            let counts = is_damage || found == Found::Sound;
                            let expected = if counts { BODIES.len() - whole.len() } else { 0 };
                            assert_eq!(damaged, expected as u64, "{what}, {found:?}");
                        }
                    }
                });
            });
        }
    });
}

/// A record's filling and the mark at its end hold nothing.
const IDLE_BYTES: usize = 15;

#[test]
fn a_flipped_bit_of_any_byte_costs_at_most_its_webhook() {
    check_all(|stopped| {
        let records = stopped.offsets[0]..stopped.offsets[BODIES.len()];
        let header = (0..64).chain(2048..2112);
        let flipped = header.chain(records).filter_map(|at| {
            let mut bytes = stopped.bytes.clone();
            bytes[at] ^= 1 << (at * 5 % 8);
            let of = stopped.offsets.iter().rposition(|begin| *begin <= at);
            let is_idle = |nth: usize| at + IDLE_BYTES >= stopped.offsets[nth + 1];
            // Whether filling or payload, which depends on the length of what is in it.
            let is_certain =
                of.is_none_or(|nth| !is_idle(nth) || at + 8 >= stopped.offsets[nth + 1]);
            let lost = of.filter(|nth| !is_idle(*nth));
            let whole = (0..BODIES.len()).filter(|n| Some(*n) != lost).map(|n| BODIES[n]);
            is_certain.then(|| Case {
                what: format!("byte {at}"),
                bytes,
                whole: whole.collect(),
                is_damage: true,
            })
        });
        flipped.collect()
    });
}

#[test]
fn a_tail_torn_anywhere_costs_only_what_was_not_whole() {
    check_all(|stopped| {
        let last = stopped.offsets[2]..stopped.offsets[3] - IDLE_BYTES;
        let torn = last.flat_map(|at| {
            let mut zeroed = stopped.bytes.clone();
            zeroed[at..].fill(0);
            [zeroed, stopped.bytes[..at].to_vec()].map(|bytes| Case {
                what: format!("torn at {at} of {}", bytes.len()),
                bytes,
                whole: BODIES[..2].to_vec(),
                is_damage: false,
            })
        });
        torn.collect()
    });
}

#[tokio::test]
async fn a_newest_segment_that_vanished_takes_no_later_webhook_with_it() {
    let Stopped { mut world, path, .. } = Stopped::new().await;
    // Whoever deletes it, the index still knows it; the next one must not pass for it.
    world.disk.remove(&path).unwrap();
    let store = world.open();
    for body in BODIES {
        assert_eq!(is_duplicate(&store, body).await, None, "what is lost is no duplicate");
    }
    world.commit(&store, b"later", &[TARGET]).await.1.unwrap();
    store.flush().await;
    let disk = world.disk.kill();
    drop(store);
    world.use_disk(disk);
    let store = world.open();
    assert_eq!(drain(&store, TARGET).await, [&b"later"[..]]);
}

#[tokio::test]
async fn a_damaged_record_still_says_whose_it_was_wherever_its_own_words_are_whole() {
    let (world, path, offsets) = three().await;
    let Snapshot(bytes) = snapshot(&world, &path);
    let scanner = |content: Vec<u8>| {
        world.disk.change(&path, |now| *now = content);
        let dir = world.settings.dir.join("segments");
        let log = Log::open(dir, Arc::new(world.disk.clone()));
        let segment = log.unwrap().all().remove(0);
        Scanner::new(segment, 0, u64::MAX).unwrap()
    };
    for (nth, pair) in offsets.windows(2).enumerate() {
        let mut whole = scanner(bytes.clone());
        let frame = (0..=nth).map(|_| whole.next_frame().unwrap().unwrap()).last().unwrap();
        let id = peek_webhook(&frame.payload).unwrap();
        // A byte of the head, and the first one of the body.
        let body = BODIES[nth];
        let in_body = bytes.windows(body.len()).position(|window| window == body).unwrap();
        for at in [pair[0], pair[0] + 12, in_body] {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            let mut scanner = scanner(changed);
            while scanner.next_frame().unwrap().is_some() {}
            let flaws = scanner.take_flaws();
            let [flaw] = flaws.as_slice() else { panic!("at {at}: {flaws:?}") };
            assert_eq!((flaw.offset, flaw.bytes), (pair[0] as u64, (pair[1] - pair[0]) as u64));
            let trace = flaw.trace.as_ref().unwrap_or_else(|| panic!("at {at}"));
            assert_eq!((trace.webhook, trace.kind), (id, Kind::Webhook));
        }
    }
}
