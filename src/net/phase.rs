//! What a connection is doing, and how long it may: its time limits, on one timer.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Version;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::crowd::Member;
use super::listener::{LAST_REQUEST_WAIT, ListenerLimits};

/// How long a connection that was told to end may take to say goodbye. Over HTTP/2 requests that come
/// meanwhile were written before the peer could know; those that come later are nobody's concern.
const GOODBYE: Duration = Duration::from_secs(1);

/// How a listener ends, as its connections see it.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    /// One more request at most.
    pub(super) drain: CancellationToken,
    /// Nobody follows.
    pub(super) stop_accepting: CancellationToken,
}

impl Ending {
    /// Resolves when who has said nothing yet had his time.
    pub(super) async fn unheard(&self) {
        self.drain.cancelled().await;
        self.stop_accepting.cancelled().await;
        sleep(LAST_REQUEST_WAIT).await;
    }
}

/// What a connection is doing, as far as its time limits are concerned.
#[derive(Debug)]
pub(super) struct Phase {
    /// Knows of the requests begun, and of the answers that are not read.
    member: Arc<Member>,
    /// Whether there will be another request.
    ending: Ending,
    /// Goes up with every change.
    changes: AtomicU32,
    /// Goes up with every request.
    begun: AtomicU32,
    /// A request has begun once.
    used: AtomicBool,
    /// Bytes came on an HTTP/1.1 connection that had no request to answer.
    in_head: AtomicBool,
    /// Bytes between requests are frames, not heads.
    http2: AtomicBool,
    /// When the peer was told that it ends.
    told: OnceLock<Instant>,
}

impl Phase {
    pub(super) fn new(member: &Arc<Member>, ending: &Ending) -> Self {
        Self {
            member: Arc::clone(member),
            ending: ending.clone(),
            changes: AtomicU32::new(0),
            begun: AtomicU32::new(0),
            used: AtomicBool::new(false),
            in_head: AtomicBool::new(false),
            http2: AtomicBool::new(false),
            told: OnceLock::new(),
        }
    }

    fn bytes_came(&self) {
        if self.member.requests() == 0
            && !self.http2.load(Ordering::Relaxed)
            && !self.in_head.swap(true, Ordering::Relaxed)
        {
            self.changed();
        }
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// It had all the requests that it may have.
    pub(super) fn is_worn_out(&self, requests_max: u32) -> bool {
        self.begun.load(Ordering::Relaxed) >= requests_max
    }

    /// It may have no more of them.
    pub(super) fn wear_out(&self) {
        self.begun.store(u32::MAX, Ordering::Relaxed);
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Relaxed)
    }

    /// Resolves when the listener ends and it is time to say so here: there is a request, which is the
    /// last one, or none came. Over HTTP/2 it is said at once, as a request can't miss it there. To be
    /// polled after the connection.
    pub(super) async fn ends(&self) {
        self.ending.drain.cancelled().await;
        let begun = self.begun.load(Ordering::Relaxed);
        let mut silence = pin!(async {
            if begun == 0 {
                self.ending.unheard().await;
            } else {
                sleep(LAST_REQUEST_WAIT).await;
            }
        });
        poll_fn(|context| {
            let has_come = self.begun.load(Ordering::Relaxed) != begun;
            if has_come || self.member.requests() > 0 || self.is_http2() {
                return Poll::Ready(());
            }
            silence.as_mut().poll(context)
        })
        .await;
    }

    fn say_goodbye(&self) {
        if self.told.set(Instant::now()).is_ok() {
            self.changed();
        }
    }

    fn is_told(&self) -> bool {
        self.told.get().is_some()
    }

    /// A request that begins now is not waited for: its peer was told, and does not care.
    fn is_over(&self) -> bool {
        self.told.get().is_some_and(|told| told.elapsed() >= GOODBYE)
    }

    fn waits_for_head(&self) -> bool {
        !self.used.load(Ordering::Relaxed)
            || (self.in_head.load(Ordering::Relaxed) && self.member.requests() == 0)
    }

    fn patience(&self, limits: &ListenerLimits) -> Duration {
        if self.is_told() && !self.member.is_in_work() {
            return self.member.time_to_read().max(GOODBYE);
        }
        if self.waits_for_head() { limits.header_timeout } else { limits.idle_timeout }
    }
}

/// A request, from its head to its answer.
pub(super) struct Active {
    phase: Arc<Phase>,
    /// It came too late to be waited for.
    late: bool,
}

impl Active {
    pub(super) fn begin(phase: &Arc<Phase>, version: Version) -> Self {
        let phase = Arc::clone(phase);
        if version == Version::HTTP_2 && phase.is_over() {
            return Self { phase, late: true };
        }
        phase.member.request_begins();
        phase.begun.update(Ordering::Relaxed, Ordering::Relaxed, |begun| begun.saturating_add(1));
        phase.used.store(true, Ordering::Relaxed);
        phase.in_head.store(false, Ordering::Relaxed);
        phase.http2.store(version == Version::HTTP_2, Ordering::Relaxed);
        phase.changed();
        Self { phase, late: false }
    }

    /// It has its answer, which is to be read.
    pub(super) fn answered(self) -> Unread {
        if !self.late {
            self.phase.member.answer_begins();
        }
        Unread { phase: Arc::clone(&self.phase), late: self.late }
    }

    /// Whether the connection takes no other after it.
    pub(super) fn is_last(&self, requests_max: u32) -> bool {
        self.phase.is_worn_out(requests_max) || self.phase.ending.drain.is_cancelled()
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if !self.late {
            self.phase.member.request_ends();
            self.phase.changed();
        }
    }
}

/// An answer, to its last byte.
pub(super) struct Unread {
    phase: Arc<Phase>,
    late: bool,
}

impl Drop for Unread {
    fn drop(&mut self) {
        if !self.late {
            self.phase.member.answer_ends();
            self.phase.changed();
        }
    }
}

#[derive(Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    GoOn,
    SayGoodbye,
    Drop,
}

/// When a connection ends, and the time limits that it is under, on one timer that is hardly ever set
/// anew.
pub(super) struct Watch<'a> {
    phase: &'a Phase,
    limits: &'a ListenerLimits,
    alarm: Pin<Box<Sleep>>,
    seen: u32,
    deadline: Instant,
    unwanted: bool,
}

impl<'a> Watch<'a> {
    pub(super) fn new(phase: &'a Phase, limits: &'a ListenerLimits) -> Self {
        let deadline = Instant::now() + limits.header_timeout;
        let alarm = Box::pin(sleep_until(deadline));
        Self { phase, limits, alarm, seen: 0, deadline, unwanted: false }
    }

    /// To be polled after the connection, until it says nothing new. `unwanted` resolves when another
    /// wants the slot, `over` when the [listener ends](Phase::ends).
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        unwanted: Pin<&mut impl Future<Output = ()>>,
        over: Pin<&mut impl Future<Output = ()>>,
    ) -> Verdict {
        let phase = self.phase;
        if !self.unwanted && unwanted.poll(context).is_ready() {
            self.unwanted = true;
            if phase.member.is_idle() {
                return Verdict::Drop; // It need not say goodbye.
            }
        }
        // Over HTTP/1.1 the last answer says so.
        let worn_out =
            || phase.is_worn_out(self.limits.requests_per_connection_max) && phase.is_http2();
        if !phase.is_told() && (self.unwanted || worn_out() || over.poll(context).is_ready()) {
            phase.say_goodbye();
            return Verdict::SayGoodbye;
        }
        self.look_at_the_time(context)
    }

    fn look_at_the_time(&mut self, context: &mut Context<'_>) -> Verdict {
        let changes = self.phase.changes.load(Ordering::Relaxed);
        if changes != self.seen {
            self.seen = changes;
            // The first head's time runs from the start, not from its first byte.
            if self.phase.used.load(Ordering::Relaxed) || self.phase.is_told() {
                self.deadline = Instant::now() + self.phase.patience(self.limits);
            }
            let deadline = self.deadline;
            if deadline < self.alarm.deadline() {
                self.alarm.as_mut().reset(deadline);
            }
        }
        while self.alarm.as_mut().poll(context).is_ready() {
            let deadline = self.deadline;
            if Instant::now() < deadline {
                self.alarm.as_mut().reset(deadline);
            } else if self.phase.is_told() || self.phase.waits_for_head() {
                // There is no answer to lose.
                return Verdict::Drop;
            } else {
                self.phase.say_goodbye();
                return Verdict::SayGoodbye;
            }
        }
        Verdict::GoOn
    }
}

/// Notes the first bytes of a request.
pub(super) struct Watched<I> {
    pub(super) io: I,
    pub(super) phase: Arc<Phase>,
}

impl<I: Read + Unpin> Read for Watched<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        if matches!(polled, Poll::Ready(Ok(()))) {
            self.phase.bytes_came();
        }
        polled
    }
}

impl<I: Write + Unpin> Write for Watched<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }
}

/// An answer's body, which is unread until it was taken.
pub(super) struct Tracked<B> {
    pub(super) body: B,
    pub(super) _unread: Unread,
}

impl<B: Body + Unpin> Body for Tracked<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::crowd::Crowd;
    use crate::net::testing;
    use std::future::pending;
    use tokio::time::advance;

    fn phase() -> Arc<Phase> {
        let crowd = Crowd::new(1);
        let member = Arc::new(crowd.enter(crowd.try_slot().unwrap()));
        let ending =
            Ending { drain: CancellationToken::new(), stop_accepting: CancellationToken::new() };
        Arc::new(Phase::new(&member, &ending))
    }

    fn begin(phase: &Arc<Phase>) -> Active {
        Active::begin(phase, Version::HTTP_2)
    }

    /// What is to be done next, and after what time; its clock stands still but for waiting.
    async fn next(watch: &mut Watch<'_>) -> (Verdict, Duration) {
        let began = Instant::now();
        let verdict =
            poll_fn(|context| match watch.poll(context, pin!(pending()), pin!(pending())) {
                Verdict::GoOn => Poll::Pending,
                verdict => Poll::Ready(verdict),
            });
        (verdict.await, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_told_is_waited_for_until_what_came_in_time_is_answered() {
        let (phase, limits) = (phase(), testing::limits());
        let mut watch = Watch::new(&phase, &limits);
        let first = begin(&phase);
        phase.say_goodbye();
        advance(GOODBYE / 2).await;
        let second = begin(&phase);
        advance(GOODBYE).await;
        let late = begin(&phase);
        let too_soon = tokio::time::timeout(GOODBYE * 5, next(&mut watch)).await;
        assert!(too_soon.is_err(), "two are in work: {too_soon:?}");
        drop((first, second.answered()));
        let (verdict, after) = next(&mut watch).await;
        assert_eq!(verdict, Verdict::Drop);
        assert!((GOODBYE..GOODBYE * 2).contains(&after), "{after:?}");
        drop(late);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_told_has_a_moment_to_read_his_answer() {
        let (phase, limits) = (phase(), testing::limits());
        let mut watch = Watch::new(&phase, &limits);
        let unread = begin(&phase).answered();
        phase.say_goodbye();
        let (verdict, after) = next(&mut watch).await;
        assert_eq!(verdict, Verdict::Drop);
        assert!((GOODBYE * 2..GOODBYE * 5).contains(&after), "{after:?}");
        drop(unread);
    }

    #[tokio::test(start_paused = true)]
    async fn who_had_his_goodbye_still_gives_way() {
        let (phase, limits) = (phase(), testing::limits());
        let mut watch = Watch::new(&phase, &limits);
        drop(begin(&phase).answered());
        phase.say_goodbye();
        let wanted = poll_fn(|context| {
            let (unwanted, over) = (pin!(std::future::ready(())), pin!(pending()));
            Poll::Ready(watch.poll(context, unwanted, over))
        });
        assert_eq!(wanted.await, Verdict::Drop);
    }
}
