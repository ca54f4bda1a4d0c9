//! The listener: TCP, TLS, HTTP/2 or HTTP/1.1 by ALPN, limits, and an orderly end.
//!
//! **Client certificates are asked for and not verified here.** The handshake proves only that the peer holds
//! the key of what it shows ([`AnyCertificate`] checks that signature). Whether the certificate means
//! anything is decided per request, in `authn`, because the CA can change and the certificate expire while a
//! connection is open; kube-apiserver does the same (`RequestClientCert`, verified in the authenticator).
//! Until then a connection is a stranger's: deadlines and limits below are for strangers.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use futures::future::Either;
use hyper::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::tls::ServingCert;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::authn::{Door, Peer};
use crate::handle::{self, Hub};
use crate::limits::Limits;
use crate::metrics::InFlight;

mod handshakes;
mod places;

pub use handshakes::Handshakes;
pub use places::{KEPT_FOR_EACH_DOOR, MAX_CONNECTIONS, Places};
use places::{Place, Placed};

/// Room for the request line of HTTP/1.1 beside its headers: the longest target that the `http` crate takes.
const REQUEST_LINE: usize = 64 * 1024;
/// Streams of one HTTP/2 connection. An API server puts all its plain requests and watches on one.
const MAX_STREAMS: u32 = 10_000;
/// HTTP/2 window of one stream: an upload whose child has stopped reading holds at most this much.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// HTTP/2 window of the connection: the largest there is, so that stalled uploads never stop the others.
const CONNECTION_WINDOW: u32 = i32::MAX as u32;
/// Bytes of one stream that wait to be written.
const SEND_BUFFER: usize = 128 * 1024;
/// HTTP/2 PING and the time for its answer; notices an API server that is gone without a word.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// See [`KEEP_ALIVE_INTERVAL`].
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes that wait in the kernel of one socket, unsent. More would stand in front of every small request
/// that comes after a bulk transfer.
const NOT_SENT_LOWAT: u32 = 128 * 1024;
/// Silence after which the kernel asks whether the other end of a TCP connection still exists.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Pause after `accept` has failed, which it does again at once while there are no file descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the hub drains, then until the last connection has ended or is cut.
///
/// # Errors
/// TLS cannot be set up.
pub async fn serve(
    door: Door,
    listener: TcpListener,
    certificate: ServingCert,
    hub: Arc<Hub>,
) -> anyhow::Result<()> {
    let tls = Arc::new(tls(door, certificate)?);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = hub.phases.draining.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(door, &listener, &hub.places) => accepted,
        };
        match accepted {
            Ok((socket, address, place)) => {
                let (tls, hub) = (Arc::clone(&tls), Arc::clone(&hub));
                let open = hub.doors.token();
                connections.spawn(async move {
                    connection(door, socket, address, place, tls, hub).await;
                    drop(open);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tokio::select! {
        biased;
        () = async { while connections.join_next().await.is_some() {} } => {}
        () = hub.phases.cut.cancelled() => connections.shutdown().await,
    }
    Ok(())
}

/// The next connection, when there is room for one: until then it waits in the kernel.
async fn accept(
    door: Door,
    listener: &TcpListener,
    places: &Places,
) -> std::io::Result<(TcpStream, SocketAddr, Place)> {
    let place = places.take(door).await.ok_or_else(|| std::io::Error::other("the listener has ended"))?;
    let (socket, address) = listener.accept().await?;
    Ok((socket, address, place))
}

fn tls(door: Door, certificate: ServingCert) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = AnyCertificate { algorithms: provider.signature_verification_algorithms };
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("TLS versions")?;
    let builder = match door {
        Door::Aggregated => builder.with_client_cert_verifier(Arc::new(verifier)),
        // A browser that is asked for a certificate asks its user.
        Door::Gateway => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificate));
    // A client without ALPN speaks HTTP/1.1, as the aggregator of Kubernetes 1.20 does for upgrades.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// One connection, from accept to end.
async fn connection(
    door: Door,
    socket: TcpStream,
    address: SocketAddr,
    place: Place,
    tls: Arc<ServerConfig>,
    hub: Arc<Hub>,
) {
    let _counted = InFlight::new(&hub.metrics.connections);
    let limits = hub.running.limits();
    if let Err(error) = tune(&socket) {
        tracing::debug!(%address, %error, "a socket could not be tuned");
    }
    let socket = match timeout(limits.head_timeout, hub.handshakes.accept(door, socket, tls)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(handshakes::Failed::NoRoom)) => {
            hub.metrics.handshakes_refused.inc();
            return tracing::debug!(%address, "too many TLS handshakes wait for their turn");
        }
        Ok(Err(error)) => return tracing::debug!(%address, %error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!(%address, "a TLS handshake took too long"),
    };
    let (_, session) = socket.get_ref();
    let certificates = session.peer_certificates().unwrap_or_default();
    let certificates = certificates.iter().map(|certificate| certificate.clone().into_owned()).collect();
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let peer = Arc::new(Peer::new(door, address, certificates));
    let asked = Arc::new(AtomicBool::new(false));

    let service = service_fn(|request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let (hub, peer) = (Arc::clone(&hub), Arc::clone(&peer));
        // Boxed: the HTTP library would move its kilobytes from place to place, and keep them for as long as the body lasts.
        Box::pin(async move { Ok::<_, Infallible>(handle::answer(&hub, &peer, request).await) })
    });
    let io = TokioIo::new(Placed::new(socket, place));
    // Tasks of HTTP/2 streams end with their connection; the tracker only waits for them.
    let streams = TaskTracker::new();
    let connection = if is_http2 {
        Either::Left(http2(&streams, &limits).serve_connection(io, service))
    } else {
        Either::Right(http1(&limits).serve_connection(io, service).with_upgrades())
    };
    let mut connection = pin!(connection);
    let (mut first, mut draining) = (pin!(sleep(limits.head_timeout)), false);
    let mut waited = false;
    loop {
        tokio::select! {
            biased;
            ended = poll_fn(|cx| connection.as_mut().poll(cx)) => {
                if let Err(error) = ended {
                    tracing::debug!(%address, %error, "a connection ended early");
                }
                break;
            }
            () = hub.phases.draining.cancelled(), if !draining => {
                draining = true;
                match connection.as_mut().as_pin_mut() {
                    Either::Left(http2) => http2.graceful_shutdown(),
                    Either::Right(http1) => http1.graceful_shutdown(),
                }
            }
            () = first.as_mut(), if !waited => {
                waited = true;
                if !asked.load(Ordering::Relaxed) {
                    tracing::debug!(%address, "no request came in time");
                    return;
                }
            }
        }
    }
}

/// Small writes at once, and little that waits in the kernel.
pub(crate) fn tune(socket: &TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = socket2::SockRef::from(socket);
    socket.set_tcp_notsent_lowat(NOT_SENT_LOWAT)?;
    socket.set_tcp_keepalive(
        &socket2::TcpKeepalive::new().with_time(TCP_KEEP_ALIVE).with_interval(TCP_KEEP_ALIVE),
    )
}

fn http1(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_headers(limits.header_lines as usize)
        // The read buffer bounds a request's head; it grows only as far as a head needs.
        .max_buf_size(limits.header_bytes as usize + REQUEST_LINE);
    builder
}

fn http2(streams: &TaskTracker, limits: &Limits) -> http2::Builder<Tracked> {
    let mut builder = http2::Builder::new(Tracked(streams.clone()));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        // The default of 16 KiB makes Go's client fail for users of many groups.
        .max_header_list_size(limits.header_bytes)
        // Never `adaptive_window`: it would make the window of the connection that of one stream.
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}

/// Runs the tasks of one HTTP/2 connection.
#[derive(Debug, Clone)]
pub(crate) struct Tracked(TaskTracker);

impl Tracked {
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        Self(tasks)
    }
}

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// Takes any client certificate whose key the peer holds, and none as well.
#[derive(Debug)]
struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hint: a client then shows what it has (Go's `tls.Config.GetClientCertificate`).
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // Deliberately nothing: see the head of this file.
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
