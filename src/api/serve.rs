//! The server loop: accept, a permit and a task for each connection, time limits on both ways.
//!
//! axum's own loop has neither a limit of connections nor of time, and an idle peer would hold
//! a task for ever. Stopping: no new connections, no new requests on those there are; those that
//! run are finished.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep};
use tower_service::Service as _;

use super::Config;
use super::auth::Peer;

/// Longest request head, bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// After an accept that failed for want of files or memory: long enough to let some be freed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then until the last connection has ended.
pub(super) async fn run(
    listener: TcpListener,
    config: &Config,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(config.connections_max));
    let mut connections = JoinSet::new();
    let mut failing = false;
    loop {
        // Over the limit new peers wait in the system's queue.
        let permit = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            permit = Arc::clone(&permits).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                let connection =
                    connection(stream, Peer(peer), config, router.clone(), stop.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(
                        %error,
                        "no HTTP connection can be accepted; raise the limit of open files, or lower \
                         api.connections_max"
                    );
                }
                failing = true;
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn connection(
    stream: TcpStream,
    peer: Peer,
    config: &Config,
    router: Router,
    mut stop: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send + use<> {
    let write_timeout = config.write_timeout.get();
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(config.read_timeout.get())
        .max_buf_size(HEAD_BYTES_MAX);
    async move {
        // Answers are small and somebody waits for them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "an HTTP peer has gone");
            return;
        }
        let io = TokioIo::new(Bounded::new(stream, write_timeout));
        let service = service_fn(move |request: Request<Incoming>| {
            let mut router = router.clone();
            async move {
                let mut request = request.map(axum::body::Body::new);
                request.extensions_mut().insert(peer);
                router.call(request).await as Result<Response, Infallible>
            }
        });
        let mut connection = std::pin::pin!(builder.serve_connection(io, service));
        let mut stopping = false;
        loop {
            tokio::select! {
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(peer = %peer.0, error = crate::telemetry::chain(&error), "an HTTP connection ended");
                    }
                    return;
                }
                _ = stop.wait_for(|stop| *stop), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// A stream whose peer must read: a write that waits longer than the limit fails.
struct Bounded {
    stream: TcpStream,
    limit: Duration,
    /// Runs while a write waits.
    patience: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Bounded {
    fn new(stream: TcpStream, limit: Duration) -> Self {
        Self { stream, limit, patience: Box::pin(sleep(limit)), waiting: false }
    }

    fn bound<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = false;
            return written;
        }
        if !self.waiting {
            self.waiting = true;
            self.patience.as_mut().reset(Instant::now() + self.limit);
        }
        ready!(self.patience.as_mut().poll(context));
        let text = "the peer does not read (api.write_timeout)";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bound(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.bound(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
