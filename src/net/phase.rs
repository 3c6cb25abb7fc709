//! What a connection is doing, and how long it may: its time limits, on one timer.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Version;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::crowd::Member;
use super::listener::{LAST_REQUEST_WAIT, ListenerLimits};

/// How long a connection that was told to end may take to say goodbye.
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

    fn waits_for_head(&self) -> bool {
        !self.used.load(Ordering::Relaxed)
            || (self.in_head.load(Ordering::Relaxed) && self.member.requests() == 0)
    }

    fn patience(&self, limits: &ListenerLimits) -> Duration {
        if self.waits_for_head() { limits.header_timeout } else { limits.idle_timeout }
    }
}

/// A request, from its head to its answer.
pub(super) struct Active(Arc<Phase>);

impl Active {
    pub(super) fn begin(phase: &Arc<Phase>, version: Version) -> Self {
        phase.member.request_begins();
        phase.begun.update(Ordering::Relaxed, Ordering::Relaxed, |begun| begun.saturating_add(1));
        phase.used.store(true, Ordering::Relaxed);
        phase.in_head.store(false, Ordering::Relaxed);
        phase.http2.store(version == Version::HTTP_2, Ordering::Relaxed);
        phase.changed();
        Self(Arc::clone(phase))
    }

    /// It has its answer, which is to be read.
    pub(super) fn answered(self) -> Unread {
        self.0.member.answer_begins();
        Unread(Arc::clone(&self.0))
    }

    /// Whether the connection takes no other after it.
    pub(super) fn is_last(&self, requests_max: u32) -> bool {
        self.0.is_worn_out(requests_max) || self.0.ending.drain.is_cancelled()
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.member.request_ends();
        self.0.changed();
    }
}

/// An answer, to its last byte.
pub(super) struct Unread(Arc<Phase>);

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.member.answer_ends();
        self.0.changed();
    }
}

#[derive(Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    GoOn,
    SayGoodbye,
    Drop,
}

/// The time limits of one connection, on one timer that is hardly ever set anew.
pub(super) struct Watch<'a> {
    phase: &'a Phase,
    limits: &'a ListenerLimits,
    alarm: Pin<Box<Sleep>>,
    seen: u32,
    deadline: Instant,
    said_goodbye: bool,
}

impl<'a> Watch<'a> {
    pub(super) fn new(phase: &'a Phase, limits: &'a ListenerLimits) -> Self {
        let deadline = Instant::now() + limits.header_timeout;
        let alarm = Box::pin(sleep_until(deadline));
        Self { phase, limits, alarm, seen: 0, deadline, said_goodbye: false }
    }

    pub(super) fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Verdict {
        let changes = self.phase.changes.load(Ordering::Relaxed);
        if changes != self.seen {
            self.seen = changes;
            // The first head's time runs from the start, not from its first byte.
            if self.phase.used.load(Ordering::Relaxed) {
                self.deadline = Instant::now() + self.phase.patience(self.limits);
            }
            let deadline = self.deadline;
            if deadline < self.alarm.deadline() {
                self.alarm.as_mut().reset(deadline);
            }
        }
        while self.alarm.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            let deadline = self.deadline;
            if now < deadline {
                self.alarm.as_mut().reset(deadline);
            } else if self.said_goodbye || self.phase.waits_for_head() {
                // There is no answer to lose.
                return Verdict::Drop;
            } else {
                self.said_goodbye = true;
                self.deadline = now + GOODBYE;
                let deadline = self.deadline;
                self.alarm.as_mut().reset(deadline);
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
