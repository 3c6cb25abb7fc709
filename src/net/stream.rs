//! A read-ahead buffer under TLS, which costs nothing while a connection is idle.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// How much is asked of the socket at once: a webhook of the median size in one call.
pub const READ_AHEAD: usize = 32 * 1024;

/// Reads [`READ_AHEAD`] bytes at a time from `inner`, however little the reader asks for.
///
/// rustls reads in steps of 4 KiB, which makes seven system calls of a body of 26 KB. The buffer
/// is allocated when there is something to read and freed as soon as it is empty. Writes pass
/// through.
#[derive(Debug)]
pub struct ReadAhead<S> {
    inner: S,
    buffer: BytesMut,
}

impl<S> ReadAhead<S> {
    /// Wraps a stream of which nothing has been read yet.
    pub fn new(inner: S) -> Self {
        Self { inner, buffer: BytesMut::new() }
    }

    /// The wrapped stream. Reading from it directly loses what was read ahead.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Bytes of memory that the buffer holds now.
    #[cfg(test)]
    fn buffered_capacity(&self) -> usize {
        self.buffer.capacity()
    }

    fn hand_out(&mut self, out: &mut ReadBuf<'_>) {
        let count = self.buffer.len().min(out.remaining());
        if let Some(bytes) = self.buffer.get(..count) {
            out.put_slice(bytes);
        }
        self.buffer.advance(count);
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.buffer.is_empty() {
            if out.remaining() >= READ_AHEAD {
                return Pin::new(&mut this.inner).poll_read(context, out);
            }
            let mut fresh = BytesMut::with_capacity(READ_AHEAD);
            // The future holds no state between polls, so it may be made anew each time.
            let count = ready!(pin!(this.inner.read_buf(&mut fresh)).poll(context))?;
            if count == 0 {
                return Poll::Ready(Ok(()));
            }
            this.buffer = fresh;
        }
        this.hand_out(out);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// Gives out `bytes` in pieces of random size, with a pause before each.
    struct Chunked {
        bytes: Vec<u8>,
        at: usize,
        random: fastrand::Rng,
        pause: bool,
    }

    impl AsyncRead for Chunked {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.pause = !self.pause;
            if self.pause {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let left = self.bytes.len() - self.at;
            let count = self.random.usize(1..=50_000).min(left).min(out.remaining());
            out.put_slice(&self.bytes[self.at..self.at + count]);
            self.at += count;
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn every_byte_arrives_once_and_in_order() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let length = random.usize(0..300_000);
            let bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
            let inner =
                Chunked { bytes: bytes.clone(), at: 0, random: random.fork(), pause: false };
            let mut stream = ReadAhead::new(inner);
            let mut got = Vec::new();
            let mut piece = vec![0; 70_000];
            loop {
                let ask = random.usize(1..=piece.len());
                let count = stream.read(&mut piece[..ask]).await.unwrap();
                if count == 0 {
                    break;
                }
                got.extend_from_slice(&piece[..count]);
            }
            assert_eq!(got, bytes, "seed {seed}");
            assert_eq!(stream.buffered_capacity(), 0, "an empty buffer is freed");
        }
    }

    #[tokio::test]
    async fn a_waiting_read_holds_no_buffer() {
        let (mut far, near) = tokio::io::duplex(64 * 1024);
        let mut stream = ReadAhead::new(near);
        let mut piece = [0; 4];
        assert!(
            std::future::poll_fn(|context| {
                let mut out = ReadBuf::new(&mut piece);
                Poll::Ready(Pin::new(&mut stream).poll_read(context, &mut out).is_pending())
            })
            .await
        );
        assert_eq!(stream.buffered_capacity(), 0);
        far.write_all(b"abcdef").await.unwrap();
        stream.read_exact(&mut piece).await.unwrap();
        assert_eq!(&piece, b"abcd");
        assert!(stream.buffered_capacity() > 0, "two bytes are waiting in the buffer");
        stream.read_exact(&mut piece[..2]).await.unwrap();
        assert_eq!(&piece[..2], b"ef");
        assert_eq!(stream.buffered_capacity(), 0);
    }

    #[tokio::test]
    async fn writes_pass_through() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut stream = ReadAhead::new(near);
        let slices = [IoSlice::new(b"ab"), IoSlice::new(b"cd")];
        assert_eq!(stream.is_write_vectored(), stream.get_ref().is_write_vectored());
        assert!(stream.write_vectored(&slices).await.unwrap() > 0);
        stream.shutdown().await.unwrap();
        let mut got = String::new();
        far.read_to_string(&mut got).await.unwrap();
        assert!("abcd".starts_with(&got));
    }

    /// Counts the reads that gave something.
    struct Counted<S>(S, usize);

    impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let polled = Pin::new(&mut self.0).poll_read(context, out);
            self.1 += usize::from(polled.is_ready());
            polled
        }
    }

    impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(context, bytes)
        }
        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }
        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }

    #[tokio::test]
    async fn a_webhook_of_26_kb_is_one_read_under_tls() {
        let authority = crate::net::testing::Authority::new();
        let config = authority.issue(&["relay"]).server_config();
        let (far, near) = tokio::io::duplex(256 * 1024);
        let connector = tokio_rustls::TlsConnector::from(authority.client_config());
        let name = rustls::pki_types::ServerName::try_from("relay").unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let near = ReadAhead::new(Counted(near, 0));
        let (client, server) = tokio::join!(connector.connect(name, far), acceptor.accept(near));
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        let reads = |server: &tokio_rustls::server::TlsStream<ReadAhead<Counted<_>>>| {
            server.get_ref().0.get_ref().1
        };
        let before = reads(&server);
        client.write_all(&[7; 26_000]).await.unwrap();
        client.flush().await.unwrap();
        let mut got = vec![0; 26_000];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(reads(&server) - before, 1);
        assert_eq!(server.get_ref().0.buffered_capacity(), 0);
    }
}
