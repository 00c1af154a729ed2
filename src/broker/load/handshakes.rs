//! TLS handshakes in turn, so that ten thousand clients that come at once all get in.
//!
//! What costs is one step: the answer to the ClientHello, with its signature. If every peer began
//! at once, all would be in the middle when their time is over, and all that work would be for
//! nothing. So at most `handshakes_max` do that step at a time, and the others stand in line; who
//! has had its turn is soon through, because the runtime is not full of those who begin.
//!
//! Invariant: nobody holds a turn while it waits for its peer. A peer that says nothing never
//! gets one, and one that falls silent after its ClientHello has given it back.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use crate::model::Reason;

/// The turns.
pub(crate) struct Handshakes {
    turns: Semaphore,
    /// How long a ClientHello may take to come, and the rest after its turn.
    timeout: Duration,
    /// How long one may stand in line.
    wait_max: Duration,
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// The peer was too slow.
    #[error("no TLS handshake in time")]
    Timeout,
    /// We were: too many came at once.
    #[error("no turn for a TLS handshake within broker.handshake_wait")]
    NoTurn,
    /// It broke off, or the two cannot agree.
    #[error("the TLS handshake failed: {0}")]
    Failed(#[from] io::Error),
}

impl HandshakeError {
    /// Why, for the metrics.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Timeout => Reason::ConnectTimeout,
            Self::NoTurn => Reason::TooMany,
            Self::Failed(_) => Reason::TlsFailed,
        }
    }
}

impl Handshakes {
    pub(crate) fn new(at_once_max: usize, timeout: Duration, wait_max: Duration) -> Self {
        Self { turns: Semaphore::new(at_once_max), timeout, wait_max }
    }

    /// Takes `socket` through the handshake.
    pub(crate) async fn shake(
        &self,
        socket: TcpStream,
        acceptor: &TlsAcceptor,
    ) -> Result<TlsStream<TcpStream>, HandshakeError> {
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket);
        let hello = timeout_at(Instant::now() + self.timeout, hello).await;
        let hello = hello.map_err(|_| HandshakeError::Timeout)??;
        let turn = timeout_at(Instant::now() + self.wait_max, self.turns.acquire()).await;
        let turn = turn.map_err(|_| HandshakeError::NoTurn)?;
        // Time in line is ours and not the peer's.
        let until = Instant::now() + self.timeout;
        let mut rest = pin!(hello.into_stream(acceptor.config().clone()));
        let at_once = poll_fn(|context| match rest.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => Poll::Ready(None),
        })
        .await;
        drop(turn);
        if let Some(done) = at_once {
            return Ok(done?);
        }
        let rest = timeout_at(until, rest).await;
        Ok(rest.map_err(|_| HandshakeError::Timeout)??)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::PrivateKeyDer;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;

    use super::*;

    /// Both ends' TLS for `localhost`.
    fn both_ends() -> (TlsAcceptor, TlsConnector) {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let cert = params.self_signed(&key).expect("signed").der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS #8");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(cert.clone()).expect("a certificate");
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert], key)
            .expect("a pair");
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        (Arc::new(server).into(), Arc::new(client).into())
    }

    /// What a client that is honest, or says nothing, gets from `handshakes`.
    async fn outcome(handshakes: &Handshakes, is_honest: bool) -> Result<(), HandshakeError> {
        let (acceptor, connector) = both_ends();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).await.expect("connected");
        let (server, _) = listener.accept().await.expect("a client");
        let shaken = handshakes.shake(server, &acceptor);
        let name = "localhost".try_into().expect("a name");
        let client = async {
            match is_honest {
                // Why it failed is for the other side to say.
                true => drop(connector.connect(name, client).await),
                false => drop((std::future::pending::<()>().await, client)),
            }
        };
        tokio::select! {
            biased;
            shaken = shaken => shaken.map(drop),
            () = client => panic!("the client ends first only if it was let in"),
        }
    }

    #[tokio::test]
    async fn whoever_has_no_turn_or_says_nothing_is_told_apart() {
        let long = Duration::from_secs(60);
        let short = Duration::from_millis(20);
        let handshakes = Handshakes::new(1, long, short);
        let turn = handshakes.turns.acquire().await.expect("never closed");
        let found = outcome(&handshakes, true).await;
        assert!(matches!(found, Err(HandshakeError::NoTurn)), "{found:?}");
        drop(turn);
        let impatient = Handshakes::new(1, short, long);
        let found = outcome(&impatient, false).await;
        assert!(matches!(found, Err(HandshakeError::Timeout)), "{found:?}");
        assert_eq!(impatient.turns.available_permits(), 1);
    }
}
