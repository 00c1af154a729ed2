//! A client's byte stream, with or without TLS, and reading from it without a standing buffer.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Bytes taken from a socket at a time. They lie on the stack of the poll, so that an idle
/// connection holds no buffer.
const CHUNK_BYTES: usize = 16 << 10;

/// How long a client may take to read our last words and close.
const GOODBYE: Duration = Duration::from_secs(1);

/// A client's byte stream.
pub(crate) enum Stream {
    Plain(TcpStream),
    /// Boxed: the state of a TLS connection is large, and moves with the connection's task.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Appends what the client has sent. `Ready(0)` is the end of the stream.
    pub(crate) fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        input: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        let mut chunk = [MaybeUninit::uninit(); CHUNK_BYTES];
        let mut buffer = ReadBuf::uninit(&mut chunk);
        // TLS gives one record at a time: take what is there.
        while buffer.remaining() > 0 {
            let before = buffer.filled().len();
            match Pin::new(&mut *self).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() > before => {}
                Poll::Ready(Err(error)) if before == 0 => return Poll::Ready(Err(error)),
                Poll::Pending if before == 0 => return Poll::Pending,
                // The end or an error will be there again at the next read.
                _ => break,
            }
        }
        input.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Writes from the front of `out` until it is empty and flushed, or the socket is full.
    /// `Ready` once all is with the operating system.
    pub(crate) fn poll_drain(
        &mut self,
        context: &mut Context<'_>,
        out: &mut Vec<u8>,
    ) -> Poll<io::Result<()>> {
        let mut written = 0;
        let mut blocked = false;
        while let Some(rest) = out.get(written..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut *self).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => written += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    blocked = true;
                    break;
                }
            }
        }
        out.drain(..written);
        if blocked {
            return Poll::Pending;
        }
        // TLS may have taken it and not passed it on.
        Pin::new(self).poll_flush(context)
    }

    /// Sends the last words and closes. Reads on for a moment: a socket that is closed with
    /// unread bytes is reset, and the reset can overtake the reason code.
    pub(crate) async fn close(mut self, last_words: &[u8]) {
        let goodbye = async {
            self.write_all(last_words).await?;
            self.shutdown().await?;
            let mut bin = [0; 512];
            // Whatever it says is not heard any more; a client that goes on talking is cut off.
            for _ in 0..128 {
                if self.read(&mut bin).await? == 0 {
                    break;
                }
            }
            io::Result::Ok(())
        };
        // A client that is gone already needs no goodbye.
        tokio::time::timeout(GOODBYE, goodbye).await.ok();
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
