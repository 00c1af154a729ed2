//! A client's byte stream, and reading from it without a standing buffer.
//!
//! A [`Wire`] is TCP, with or without TLS; a [`Stream`] is what MQTT's bytes come and go by: the
//! wire itself, or WebSocket frames on it. An idle connection holds no buffer in either.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::websocket::WebSocket;

/// Bytes taken from a socket at a time. They lie on the stack of the poll, so that an idle
/// connection holds no buffer.
pub(crate) const CHUNK_BYTES: usize = 16 << 10;

/// How long a client may take to read our last words and close.
const GOODBYE: Duration = Duration::from_secs(1);

/// What the bytes travel on.
pub(crate) enum Wire {
    Plain(TcpStream),
    /// Boxed: the state of a TLS connection is large, and moves with the connection's task.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A client's byte stream.
pub(crate) enum Stream {
    Bare(Wire),
    /// Boxed: most connections are none.
    WebSocket(Box<WebSocket>),
}

impl Stream {
    /// Its TLS, if it has that.
    pub(crate) fn tls(&self) -> Option<&TlsStream<TcpStream>> {
        match self.wire() {
            Wire::Tls(tls) => Some(tls),
            Wire::Plain(_) => None,
        }
    }

    fn wire(&self) -> &Wire {
        match self {
            Self::Bare(wire) => wire,
            Self::WebSocket(socket) => socket.wire(),
        }
    }

    /// Appends what the client has sent. `Ready(0)` is the end of the stream.
    pub(crate) fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        input: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Bare(wire) => wire.poll_fill(context, input),
            Self::WebSocket(socket) => socket.poll_fill(context, input, CHUNK_BYTES),
        }
    }

    /// Writes from the front of `out` until it is empty and flushed, or the socket is full.
    /// `Ready` once all is with the operating system.
    pub(crate) fn poll_drain(
        &mut self,
        context: &mut Context<'_>,
        out: &mut Vec<u8>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Bare(wire) => wire.poll_drain(context, out),
            Self::WebSocket(socket) => socket.poll_drain(context, out),
        }
    }

    /// Sends the last words and closes. Reads on for a moment: a socket that is closed with
    /// unread bytes is reset, and the reset can overtake the reason code.
    pub(crate) async fn close(mut self, last_words: &[u8]) {
        let goodbye = async {
            let mut out = last_words.to_vec();
            poll_fn(|context| self.poll_drain(context, &mut out)).await?;
            let mut wire = match self {
                Self::Bare(wire) => wire,
                Self::WebSocket(mut socket) => {
                    socket.say_close();
                    poll_fn(|context| socket.poll_drain(context, &mut out)).await?;
                    socket.into_wire()
                }
            };
            wire.shutdown().await?;
            let mut bin = [0; 512];
            // Whatever it says is not heard any more; a client that goes on talking is cut off.
            for _ in 0..128 {
                if wire.read(&mut bin).await? == 0 {
                    break;
                }
            }
            io::Result::Ok(())
        };
        // A client that is gone already needs no goodbye.
        tokio::time::timeout(GOODBYE, goodbye).await.ok();
    }
}

impl Wire {
    /// Appends what has come. `Ready(0)` is the end.
    fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        input: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        let mut chunk = [MaybeUninit::uninit(); CHUNK_BYTES];
        let mut buffer = ReadBuf::uninit(&mut chunk);
        match self.poll_take(context, &mut buffer) {
            Poll::Ready(Ok(())) => {
                input.extend_from_slice(buffer.filled());
                Poll::Ready(Ok(buffer.filled().len()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Takes what is there, as far as it fits; nothing at the end.
    pub(crate) fn poll_take(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // TLS gives one record at a time: take what is there.
        while buffer.remaining() > 0 {
            let before = buffer.filled().len();
            match Pin::new(&mut *self).poll_read(context, buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() > before => {}
                Poll::Ready(Err(error)) if before == 0 => return Poll::Ready(Err(error)),
                Poll::Pending if before == 0 => return Poll::Pending,
                // The end or an error will be there again at the next read.
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_drain(&mut self, context: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<io::Result<()>> {
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
}

/// For the CONNECT, of which only a little is read at a time.
impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Bare(wire) => Pin::new(wire).poll_read(context, buffer),
            Self::WebSocket(socket) => {
                let mut input = Vec::new();
                ready!(socket.poll_fill(context, &mut input, buffer.remaining()))?;
                buffer.put_slice(&input);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncRead for Wire {
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

impl AsyncWrite for Wire {
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

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
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
