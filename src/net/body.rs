//! Reading a body with a bound on its bytes and on its time.

use std::error::Error;
use std::io::{self, ErrorKind};

use bytes::{Bytes, BytesMut};
use http::Version;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::causes;

/// A body in one piece below this is copied: a slice would keep the connection's whole read
/// buffer alive for as long as the body is.
const COPY_BELOW: usize = 16 * 1024;

/// A body starts with this much room, or with as much as it announced if that is less, and doubles:
/// who announces much gets memory for what he has sent.
const FIRST_ROOM: usize = 32 * 1024;

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is longer than allowed; the rest has not been read.
    #[error("body is larger than {limit} bytes")]
    TooLarge {
        /// What was allowed.
        limit: usize,
    },
    /// It was not complete at the deadline.
    #[error("body was not complete in time")]
    Timeout,
    /// Others wanted its room while it was being read.
    #[error("body gave way to others")]
    GaveWay,
    /// There is no memory for it.
    #[error("no room for the body")]
    NoRoom,
    /// The sender is gone.
    #[error("sender closed the connection within the body")]
    Disconnected(#[source] Box<dyn Error + Send + Sync>),
    /// What came is not HTTP.
    #[error("body is not valid HTTP")]
    Malformed(#[source] Box<dyn Error + Send + Sync>),
}

/// Says how much memory a body may take while it is read.
pub trait Room {
    /// So many bytes have arrived, all in all.
    fn arrived(&mut self, bytes: usize);

    /// Waits until the body may take so many bytes, all in all. An error ends it.
    fn reserve(&mut self, bytes: usize) -> impl Future<Output = Result<(), BodyError>> + Send;
}

/// As much room as the body's limit.
#[derive(Debug)]
pub struct NoSharing;

impl Room for NoSharing {
    fn arrived(&mut self, _bytes: usize) {}

    fn reserve(&mut self, _bytes: usize) -> impl Future<Output = Result<(), BodyError>> + Send {
        std::future::ready(Ok(()))
    }
}

/// Reads a body whole, at most `limit` bytes and until `deadline`, into memory that `room` grants.
///
/// A body that announces more than `limit` is refused before a byte is read. It is borrowed, so
/// that the rest of a refused one can go to [`drain`]. `version` is that of its request: it says how a
/// body that was cut off is known.
pub async fn read<B>(
    body: &mut B,
    version: Version,
    limit: usize,
    deadline: Instant,
    room: &mut impl Room,
) -> Result<Bytes, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let announced = body.size_hint().exact();
    let announced = announced.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > limit) {
        return Err(BodyError::TooLarge { limit });
    }
    let read = async {
        let bytes = read_within(body, announced, limit, room).await?;
        whole(body, version, announced, bytes.len()).map(|()| bytes)
    };
    timeout_at(deadline, read).await.unwrap_or(Err(BodyError::Timeout))
}

/// Whether what was read is all of it. Over HTTP/2 a stream that was reset without an error, by its
/// sender or because the connection fell silent, looks to hyper like the end of the body.
fn whole<B: Body>(
    body: &B,
    version: Version,
    announced: Option<usize>,
    read: usize,
) -> Result<(), BodyError> {
    let is_whole = match announced {
        Some(length) => read == length,
        // Over HTTP/1.1 hyper never calls this the end, and what is cut off is an error.
        None => version != Version::HTTP_2 || body.is_end_stream(),
    };
    if is_whole { Ok(()) } else { Err(BodyError::Disconnected("it was cut off".into())) }
}

async fn read_within<B>(
    body: &mut B,
    announced: Option<usize>,
    limit: usize,
    room: &mut impl Room,
) -> Result<Bytes, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let Some(first) = next(body).await.map_err(classify)? else { return Ok(Bytes::new()) };
    if first.len() > limit {
        return Err(BodyError::TooLarge { limit });
    }
    if body.is_end_stream() || announced == Some(first.len()) {
        room.reserve(first.len()).await?;
        return Ok(unshared(first));
    }
    let mut whole = Vec::new();
    let mut chunk = first;
    loop {
        if chunk.len() > limit - whole.len() {
            return Err(BodyError::TooLarge { limit });
        }
        let length = whole.len() + chunk.len();
        room.arrived(length);
        if length > whole.capacity() {
            let capacity = (length * 2).max(FIRST_ROOM).min(announced.unwrap_or(limit)).max(length);
            room.reserve(capacity).await?;
            whole.reserve_exact(capacity - whole.len());
        }
        whole.extend_from_slice(&chunk);
        let Some(following) = next(body).await.map_err(classify)? else { break };
        chunk = following;
    }
    // The body may wait a long time for its target: give back what doubling took too much.
    whole.shrink_to_fit();
    Ok(Bytes::from(whole))
}

fn unshared(bytes: Bytes) -> Bytes {
    if bytes.len() < COPY_BELOW { Bytes::copy_from_slice(&bytes) } else { bytes }
}

/// Reads and throws away at most `max` bytes until `deadline`; true if the body ended.
///
/// Closing a connection with unread bytes resets it, and the reset can overtake the answer.
pub async fn drain<B>(body: &mut B, max: usize, deadline: Instant) -> bool
where
    B: Body<Data = Bytes> + Unpin,
{
    let read = async {
        let mut left = max;
        loop {
            match next(body).await {
                Ok(Some(chunk)) if chunk.len() <= left => left -= chunk.len(),
                Ok(Some(_)) | Err(_) => return false,
                Ok(None) => return true,
            }
        }
    };
    timeout_at(deadline, read).await.unwrap_or(false)
}

/// The beginning of an answer, and how it went on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CappedBody {
    /// The first bytes, at most as many as were to be kept.
    pub excerpt: Bytes,
    /// Bytes read.
    pub total: usize,
    /// The body is longer than allowed; its rest has not been read.
    pub overflow: bool,
}

/// Reads a body for its beginning: keeps `keep` bytes, gives up beyond `max`.
pub async fn read_capped<B>(body: &mut B, keep: usize, max: usize) -> Result<CappedBody, B::Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut excerpt = BytesMut::new();
    let mut total = 0usize;
    while let Some(chunk) = next(body).await? {
        let wanted = chunk.len().min(keep.saturating_sub(excerpt.len()));
        excerpt.extend_from_slice(chunk.get(..wanted).unwrap_or_default());
        total = total.saturating_add(chunk.len());
        if total > max {
            return Ok(CappedBody { excerpt: excerpt.freeze(), total, overflow: true });
        }
    }
    Ok(CappedBody { excerpt: excerpt.freeze(), total, overflow: false })
}

/// The next piece with bytes in it; trailers are passed over.
async fn next<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Result<Option<Bytes>, B::Error> {
    loop {
        match body.frame().await.transpose()?.map(http_body::Frame::into_data) {
            None => return Ok(None),
            Some(Ok(bytes)) if !bytes.is_empty() => return Ok(Some(bytes)),
            Some(_) => {}
        }
    }
}

fn classify<E: Into<Box<dyn Error + Send + Sync>>>(error: E) -> BodyError {
    let error = error.into();
    let broken = causes(&*error).any(|cause| {
        cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse)
            || cause.downcast_ref::<io::Error>().is_some_and(|error| {
                matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::InvalidInput)
            })
    });
    if broken { BodyError::Malformed(error) } else { BodyError::Disconnected(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::{Frame, SizeHint};
    use http_body_util::Full;
    use std::task::{Context, Poll};
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// A body that gives out pieces, then ends, fails or hangs.
    struct Pieces {
        pieces: std::vec::IntoIter<Bytes>,
        then: Option<Option<ErrorKind>>,
        announced: Option<u64>,
    }

    impl Body for Pieces {
        type Data = Bytes;
        type Error = io::Error;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
            match (self.pieces.next(), self.then) {
                (Some(piece), _) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                (None, None) => Poll::Pending,
                (None, Some(None)) => Poll::Ready(None),
                (None, Some(Some(kind))) => Poll::Ready(Some(Err(kind.into()))),
            }
        }

        fn size_hint(&self) -> SizeHint {
            self.announced.map(SizeHint::with_exact).unwrap_or_default()
        }
    }

    fn pieces(sizes: &[usize], then: Option<Option<ErrorKind>>) -> Pieces {
        let pieces: Vec<_> = sizes.iter().map(|size| Bytes::from(vec![b'x'; *size])).collect();
        Pieces { pieces: pieces.into_iter(), then, announced: None }
    }

    fn announcing(announced: u64, mut pieces: Pieces) -> Pieces {
        pieces.announced = Some(announced);
        pieces
    }

    const END: Option<Option<ErrorKind>> = Some(None);

    async fn read_alone(
        body: &mut (impl Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin),
        limit: usize,
    ) -> Result<Bytes, BodyError> {
        read(body, Version::HTTP_11, limit, soon(), &mut NoSharing).await
    }

    #[tokio::test]
    async fn a_large_body_in_one_piece_is_not_copied() {
        let bytes = Bytes::from(vec![7; COPY_BELOW]);
        let got = read_alone(&mut Full::new(bytes.clone()), usize::MAX).await.unwrap();
        assert_eq!(got.as_ptr(), bytes.as_ptr());
        let small = bytes.slice(..100);
        let got = read_alone(&mut Full::new(small.clone()), 100).await.unwrap();
        assert_eq!(got, small);
        assert_ne!(got.as_ptr(), small.as_ptr(), "a small one does not pin what it was cut from");
    }

    #[tokio::test]
    async fn pieces_are_joined_and_bounded() {
        let sizes = [20_000, 0, 30_000, 10_000];
        for mut body in [pieces(&sizes, END), announcing(60_000, pieces(&sizes, END))] {
            assert_eq!(read_alone(&mut body, 60_000).await.unwrap().len(), 60_000);
        }
        assert!(read_alone(&mut pieces(&[], END), 0).await.unwrap().is_empty());
        for sizes in [&[60_001][..], &[60_000, 1], &[1, 60_000]] {
            let error = read_alone(&mut pieces(sizes, END), 60_000).await.unwrap_err();
            assert!(matches!(error, BodyError::TooLarge { limit: 60_000 }), "{error}");
        }
        let mut untouched = announcing(u64::MAX, pieces(&[1], END));
        let error = read_alone(&mut untouched, 60_000).await.unwrap_err();
        assert!(matches!(error, BodyError::TooLarge { .. }), "{error}");
        assert_eq!(untouched.pieces.len(), 1, "nothing was read");
    }

    /// Notes what is asked of it, and grants no more than it has.
    #[derive(Default)]
    struct Ledger {
        has: usize,
        arrived: Vec<usize>,
        reserved: Vec<usize>,
    }

    impl Room for Ledger {
        fn arrived(&mut self, bytes: usize) {
            self.arrived.push(bytes);
        }

        async fn reserve(&mut self, bytes: usize) -> Result<(), BodyError> {
            self.reserved.push(bytes);
            if bytes > self.has { Err(BodyError::NoRoom) } else { Ok(()) }
        }
    }

    #[tokio::test]
    async fn memory_is_asked_for_as_bytes_arrive_and_not_as_they_are_announced() {
        const KB: usize = 1000;
        let of_26 = [10 * KB, 16 * KB];
        let of_100 = [10 * KB, 30 * KB, 60 * KB];
        for (sizes, announced, reserved) in [
            (&of_26[..], Some(26_000), &[26 * KB][..]),
            (&of_26, None, &[FIRST_ROOM]),
            (&of_100, Some(100_000), &[FIRST_ROOM, 80 * KB, 100 * KB]),
            (&of_100, None, &[FIRST_ROOM, 80 * KB, 200 * KB]),
        ] {
            let mut body = pieces(sizes, END);
            body.announced = announced;
            let mut room = Ledger { has: usize::MAX, ..Ledger::default() };
            read(&mut body, Version::HTTP_11, 1000 * KB, soon(), &mut room).await.unwrap();
            assert_eq!(room.reserved, reserved, "{sizes:?} {announced:?}");
            assert_eq!(room.arrived.last(), Some(&sizes.iter().sum()));
        }
        let mut room = Ledger { has: FIRST_ROOM, ..Ledger::default() };
        let error =
            read(&mut pieces(&of_100, END), Version::HTTP_11, 1000 * KB, soon(), &mut room).await;
        assert!(matches!(error, Err(BodyError::NoRoom)), "{error:?}");
        assert_eq!(room.arrived, [10 * KB, 40 * KB], "nothing more was read");
    }

    #[tokio::test]
    async fn a_body_that_was_cut_off_is_not_taken_for_whole() {
        for (announced, version, is_whole) in [
            (None, Version::HTTP_11, true),
            (None, Version::HTTP_2, false),
            (Some(30), Version::HTTP_2, true),
            (Some(40), Version::HTTP_2, false),
            (Some(40), Version::HTTP_11, false),
        ] {
            for sizes in [&[30][..], &[10, 20]] {
                let mut body = pieces(sizes, END);
                body.announced = announced;
                let read = read(&mut body, version, 100, soon(), &mut NoSharing).await;
                assert_eq!(read.is_ok(), is_whole, "{announced:?} {version:?} {sizes:?}");
            }
        }
        let mut empty = pieces(&[], END);
        let read = read(&mut empty, Version::HTTP_2, 100, soon(), &mut NoSharing).await;
        assert!(matches!(read, Err(BodyError::Disconnected(_))), "its end was not told");
    }

    #[tokio::test]
    async fn a_hanging_body_times_out() {
        let soon = || Instant::now() + Duration::from_millis(50);
        let mut body = announcing(20, pieces(&[10], None));
        let error =
            read(&mut body, Version::HTTP_11, 100, soon(), &mut NoSharing).await.unwrap_err();
        assert!(matches!(error, BodyError::Timeout), "{error}");
        assert!(!drain(&mut pieces(&[10], None), 100, soon()).await);
    }

    #[tokio::test]
    async fn a_broken_body_is_told_from_a_lost_sender() {
        let mut lost = announcing(20, pieces(&[10], Some(Some(ErrorKind::UnexpectedEof))));
        let error = read_alone(&mut lost, 100).await.unwrap_err();
        assert!(matches!(error, BodyError::Disconnected(_)), "{error}");
        let mut broken = pieces(&[10], Some(Some(ErrorKind::InvalidInput)));
        let error = read_alone(&mut broken, 100).await.unwrap_err();
        assert!(matches!(error, BodyError::Malformed(_)), "{error}");
    }

    #[tokio::test]
    async fn draining_stops_at_its_limit() {
        assert!(drain(&mut pieces(&[50, 50], END), 100, soon()).await);
        let mut long = pieces(&[50, 51, 1], END);
        assert!(!drain(&mut long, 100, soon()).await);
        assert_eq!(long.pieces.len(), 1);
    }

    #[tokio::test]
    async fn an_answer_is_kept_up_to_its_excerpt_and_read_up_to_its_limit() {
        let got = read_capped(&mut pieces(&[600, 600], END), 1000, 1200).await.unwrap();
        assert_eq!((got.excerpt.len(), got.total, got.overflow), (1000, 1200, false));
        let got = read_capped(&mut pieces(&[600, 601, 5], END), 1000, 1200).await.unwrap();
        assert_eq!((got.excerpt.len(), got.total, got.overflow), (1000, 1201, true));
        let trailers = async { Some(Ok(http::HeaderMap::new())) };
        let mut body = Box::pin(Full::new(Bytes::from_static(b"ok")).with_trailers(trailers));
        let got = read_capped(&mut body, 10, 10).await.unwrap();
        assert_eq!(&got.excerpt[..], b"ok");
    }
}
