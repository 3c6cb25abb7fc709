//! The bounds that are not settings, each with its reason.

use std::num::NonZeroU32;
use std::time::Duration;

/// Outcome of an attempt: how much of a target's answer is kept, for the operator to read.
pub const ANSWER_EXCERPT_BYTES_MAX: usize = 1024;

/// How much of a target's answer is read before the attempt counts as `answer_too_large`. Nobody needs
/// it: it is read so that the connection can be kept.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The head of a request, over HTTP/1.1 and HTTP/2: twenty times the sender's, with room for what
/// proxies add. Anybody can send most of one and then wait, on each of `--connections-max`
/// connections: with the buffers around it and the connection itself, that comes to 46 KiB for
/// each. Over HTTP/1.1 a body comes through the same buffer: with 16 KiB, one of 26 KB costs a
/// twelfth more CPU.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Lines of a request's head: some five times the sender's. It is what hyper has room for over HTTP/1.1
/// without an allocation for each request, and answers 431 beyond; over HTTP/2 they are counted here.
pub const HEADER_LINES_MAX: usize = 100;

/// Addresses of which is remembered how much was refused that they sent, those whose requests are
/// refused for it, and those that webhooks came from: each of these takes some 3 MB at most. Then the
/// older half goes.
pub const STRANGERS_MAX: usize = 65_536;

/// How many seconds' worth of `--unverified-rate` may be refused at once.
pub const UNVERIFIED_BURST: NonZeroU32 = NonZeroU32::new(4).expect("it is not zero");

/// How long nobody is refused where a verified webhook came from: the nights of a sender, who may share
/// a balancer's address with strangers.
pub const VERIFIED_FOR: Duration = Duration::from_secs(24 * 3600);

/// The header of the PROXY protocol: addresses, and what proxies add about the client's certificate.
pub const PROXY_HEADER_BYTES_MAX: usize = 1024;

/// How much of a refused body is read and thrown away, so that the answer arrives.
pub const DISCARD_BYTES_MAX: usize = 256 * 1024;

/// How long that may take.
pub const DISCARD_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long the rest of a body over HTTP/2 is still read and thrown away after the answer, before
/// the stream is reset. Some clients that are told to stop while they send take it for a failure
/// and lose the answer.
pub const UNREAD_STREAM_WAIT: Duration = Duration::from_secs(1);

/// Such streams at the same time, so that reading for nothing stays cheap; more are reset at once.
pub const UNREAD_STREAMS_MAX: usize = 64;

/// What the slowest sender with any hope of being in time has sent of its body after
/// [`BODY_PACE_TIME`]: its median webhook. Requests that are behind this pace give way first when
/// others want their places.
pub const BODY_PACE_BYTES: usize = 24 * 1024;

/// The sender's whole patience, as far as is known: what takes longer is lost at the sender.
pub const BODY_PACE_TIME: Duration = Duration::from_secs(3);

/// The names and values of the headers that are stored with a webhook.
pub const KEPT_HEADERS_BYTES_MAX: usize = 16 * 1024;

/// Failed verifications of a source in a row, without a success, that someone must look at.
pub const FAILURES_IN_A_ROW: u32 = 3;

/// The whole answer after the body was read: the sender's time-out is likely 3 s.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_millis(2_500);

/// The sender's three tries of a webhook lie within this: the last comes after 110 s and the time that
/// the others took. What a start has to know before it takes anything for new.
pub const SENDER_RETRIES_SPAN: Duration = Duration::from_secs(150);

/// How long after a start a webhook may wait for that knowledge. Whoever is told 503 meanwhile is
/// stored all the same, when the wait is over; but others may find no room in flight, and must find
/// it at their second try.
pub const RECALL_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a verified request waits for its turn under a source's rate limit.
pub const RATE_LIMIT_WAIT_MAX: Duration = Duration::from_secs(1);

/// How far an inbound `Timestamp` may be from now, either way.
pub const TIMESTAMP_TOLERANCE: Duration = Duration::from_secs(300);

/// The longest `Retry-After` that is obeyed, unless the target's `retry.max` is longer.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Attempts kept of a delivery: the first ones.
pub const ATTEMPTS_KEPT_FIRST: usize = 5;

/// Attempts kept of a delivery: the last ones.
pub const ATTEMPTS_KEPT_LAST: usize = 20;

/// Attempts of a target that came to the same, a retry or a dead letter, that are logged one by one
/// within [`ATTEMPTS_LOGGED_WINDOW`]: a target that is down with a large backlog fails thousands of them a
/// second for days. The others are told by their number.
pub const ATTEMPTS_LOGGED: u32 = 20;

/// Within this.
pub const ATTEMPTS_LOGGED_WINDOW: Duration = Duration::from_secs(60);

/// Targets of one webhook: what its record can carry.
pub const DELIVERIES_PER_WEBHOOK_MAX: usize = 1024;

/// A routes file larger than this is refused unread.
pub const ROUTES_FILE_BYTES_MAX: usize = 16 * 1024 * 1024;

// Less is none of hyper's sizes.
const _: () = assert!(HEAD_BYTES_MAX >= 8192 && HEAD_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(BODY_PACE_BYTES > 0 && BODY_PACE_BYTES <= u32::MAX as usize);
const _: () = assert!(ANSWER_EXCERPT_BYTES_MAX <= ANSWER_BYTES_MAX);
const _: () = assert!(RECALL_WAIT_MAX.as_secs() * 10 < SENDER_RETRIES_SPAN.as_secs());
const _: () = assert!(RATE_LIMIT_WAIT_MAX.as_millis() < ANSWER_WAIT_MAX.as_millis());
