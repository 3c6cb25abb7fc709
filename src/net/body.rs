//! Reading a body with a bound on its bytes and on its time.

use std::error::Error;
use std::io::{self, ErrorKind};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::causes;

/// How much more of a refused body is read and thrown away, so that the answer arrives.
pub const DRAIN_MAX: usize = 256 * 1024;

/// A body in one piece below this is copied: a slice would keep the connection's whole read
/// buffer alive for as long as the body is.
const COPY_BELOW: usize = 16 * 1024;

/// Bodies of unknown length start with this much room and double.
const FIRST_ROOM: usize = 16 * 1024;

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
    /// The sender is gone.
    #[error("sender closed the connection within the body")]
    Disconnected(#[source] Box<dyn Error + Send + Sync>),
    /// What came is not HTTP.
    #[error("body is not valid HTTP")]
    Malformed(#[source] Box<dyn Error + Send + Sync>),
}

/// Reads a body whole, at most `limit` bytes and until `deadline`.
///
/// `content_length` is what the sender announced: more than `limit` is refused before a byte is
/// read, else it saves growing. The body is borrowed, so that the rest of a refused one can go to
/// [`drain`].
pub async fn read<B>(
    body: &mut B,
    content_length: Option<u64>,
    limit: usize,
    deadline: Instant,
) -> Result<Bytes, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let announced = content_length.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > limit) {
        return Err(BodyError::TooLarge { limit });
    }
    timeout_at(deadline, read_within(body, announced, limit))
        .await
        .unwrap_or(Err(BodyError::Timeout))
}

async fn read_within<B>(
    body: &mut B,
    announced: Option<usize>,
    limit: usize,
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
        return Ok(unshared(first));
    }
    let room = announced.unwrap_or_else(|| FIRST_ROOM.max(first.len() * 2)).min(limit);
    let mut whole = Vec::with_capacity(room.max(first.len()));
    whole.extend_from_slice(&first);
    drop(first);
    while let Some(chunk) = next(body).await.map_err(classify)? {
        if chunk.len() > limit - whole.len() {
            return Err(BodyError::TooLarge { limit });
        }
        whole.extend_from_slice(&chunk);
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
    use http_body::Frame;
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
    }

    fn pieces(sizes: &[usize], then: Option<Option<ErrorKind>>) -> Pieces {
        let pieces: Vec<_> = sizes.iter().map(|size| Bytes::from(vec![b'x'; *size])).collect();
        Pieces { pieces: pieces.into_iter(), then }
    }

    const END: Option<Option<ErrorKind>> = Some(None);

    #[tokio::test]
    async fn a_large_body_in_one_piece_is_not_copied() {
        let bytes = Bytes::from(vec![7; COPY_BELOW]);
        let mut body = Full::new(bytes.clone());
        let got = read(&mut body, Some(COPY_BELOW as u64), usize::MAX, soon()).await.unwrap();
        assert_eq!(got.as_ptr(), bytes.as_ptr());
        let small = bytes.slice(..100);
        let got = read(&mut Full::new(small.clone()), Some(100), 100, soon()).await.unwrap();
        assert_eq!(got, small);
        assert_ne!(got.as_ptr(), small.as_ptr(), "a small one does not pin what it was cut from");
    }

    #[tokio::test]
    async fn pieces_are_joined_and_bounded() {
        for announced in [None, Some(60_000)] {
            let mut body = pieces(&[20_000, 0, 30_000, 10_000], END);
            assert_eq!(read(&mut body, announced, 60_000, soon()).await.unwrap().len(), 60_000);
        }
        assert!(read(&mut pieces(&[], END), None, 0, soon()).await.unwrap().is_empty());
        for sizes in [&[60_001][..], &[60_000, 1], &[1, 60_000]] {
            let error = read(&mut pieces(sizes, END), None, 60_000, soon()).await.unwrap_err();
            assert!(matches!(error, BodyError::TooLarge { limit: 60_000 }), "{error}");
        }
        let mut untouched = pieces(&[1], END);
        let error = read(&mut untouched, Some(u64::MAX), 60_000, soon()).await.unwrap_err();
        assert!(matches!(error, BodyError::TooLarge { .. }), "{error}");
        assert_eq!(untouched.pieces.len(), 1, "nothing was read");
    }

    #[tokio::test]
    async fn a_hanging_body_times_out() {
        let soon = || Instant::now() + Duration::from_millis(50);
        let error = read(&mut pieces(&[10], None), Some(20), 100, soon()).await.unwrap_err();
        assert!(matches!(error, BodyError::Timeout), "{error}");
        assert!(!drain(&mut pieces(&[10], None), 100, soon()).await);
    }

    #[tokio::test]
    async fn a_broken_body_is_told_from_a_lost_sender() {
        let mut lost = pieces(&[10], Some(Some(ErrorKind::UnexpectedEof)));
        let error = read(&mut lost, Some(20), 100, soon()).await.unwrap_err();
        assert!(matches!(error, BodyError::Disconnected(_)), "{error}");
        let mut broken = pieces(&[10], Some(Some(ErrorKind::InvalidInput)));
        let error = read(&mut broken, None, 100, soon()).await.unwrap_err();
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
