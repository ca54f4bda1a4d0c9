//! The client that measures: one HTTP/2 connection over TLS, as kube-apiserver's aggregator holds one, either to
//! the backend itself or to the hub; and an exec on a connection of its own, as kubectl has.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::backend::{BODY, EXEC, SMALL, WATCHED};

/// Where requests go, and with what.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    name: ServerName<'static>,
    prefix: String,
    small: &'static str,
    headers: HeaderMap,
    tls: Arc<rustls::ClientConfig>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("address", &self.address)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl Target {
    /// A server, verified by a CA, with a client certificate if it wants one.
    ///
    /// # Errors
    /// What is given as PEM is none.
    pub fn new(address: SocketAddr, name: &str, ca_pem: &str, client: Option<(&str, &str)>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(certificate?)?;
        }
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
        let mut tls = match client {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(
                CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>()?,
                PrivateKeyDer::from_pem_slice(key.as_bytes())?,
            )?,
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            address,
            name: ServerName::try_from(name.to_owned())?,
            prefix: String::new(),
            small: "/bench/small",
            headers: HeaderMap::new(),
            tls: Arc::new(tls),
        })
    }

    /// The same below a path and with headers on each request.
    #[must_use]
    pub fn below(mut self, prefix: String, headers: &[(&'static str, &'static str)]) -> Self {
        self.prefix = prefix;
        for (name, value) in headers {
            self.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        self
    }

    /// The same with one more header on each request.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// The same with another object that is small.
    #[must_use]
    pub fn asking(mut self, small: &'static str) -> Self {
        self.small = small;
        self
    }

    /// The same server at another address: the near end of a link that leads to it.
    #[must_use]
    pub fn at(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// A TLS connection, for HTTP/2 or, with `http1`, for an upgrade.
    ///
    /// # Errors
    /// No connection.
    pub async fn dial(&self, http1: bool) -> Result<TlsStream<TcpStream>> {
        self.dial_over(TcpStream::connect(self.address).await?, http1).await
    }

    /// The same over a socket that is already connected.
    ///
    /// # Errors
    /// No TLS.
    pub async fn dial_over(&self, socket: TcpStream, http1: bool) -> Result<TlsStream<TcpStream>> {
        socket.set_nodelay(true)?;
        let tls = if http1 {
            let mut tls = (*self.tls).clone();
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            Arc::new(tls)
        } else {
            self.tls.clone()
        };
        Ok(TlsConnector::from(tls).connect(self.name.clone(), socket).await?)
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn request(&self, path: &str) -> Result<Request<Empty<Bytes>>> {
        let mut request =
            Request::get(format!("https://{}{}{path}", self.address, self.prefix)).body(Empty::new())?;
        request.headers_mut().extend(self.headers.clone());
        Ok(request)
    }
}

/// An open connection to a target.
#[derive(Debug)]
pub struct Client {
    target: Target,
    sender: SendRequest<Empty<Bytes>>,
    _driver: JoinSet<()>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// No connection.
    pub async fn connect(target: &Target) -> Result<Self> {
        Self::with_window(target, 4 << 20).await
    }

    /// Connects, and takes so many bytes of each answer before it has to be read.
    ///
    /// # Errors
    /// No connection.
    pub async fn with_window(target: &Target, window: u32) -> Result<Self> {
        let mut http = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .initial_stream_window_size(window)
            .initial_connection_window_size(1 << 30)
            .max_frame_size(64 * 1024);
        let (sender, connection) = http.handshake(TokioIo::new(target.dial(false).await?)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { target: target.clone(), sender, _driver: driver })
    }

    /// One GET; the number of bytes of its body.
    ///
    /// # Errors
    /// Any answer but 200.
    pub async fn get(&self, path: &str) -> Result<usize> {
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let response = sender.send_request(self.target.request(path)?).await?;
        let status = response.status();
        let mut body = response.into_body();
        if status != 200 {
            let text = body.collect().await?.to_bytes();
            anyhow::bail!("{path} answered {status}: {}", String::from_utf8_lossy(&text));
        }
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(bytes)
    }

    /// One small GET; the number of bytes of its body.
    ///
    /// # Errors
    /// Any answer but 200.
    pub async fn small(&self) -> Result<usize> {
        self.get(self.target.small).await
    }

    /// The body of a GET, which is read no further than this client's window.
    ///
    /// # Errors
    /// Any answer but 200.
    pub async fn open(&self, path: &str) -> Result<Incoming> {
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let response = sender.send_request(self.target.request(path)?).await?;
        ensure!(response.status() == 200, "{path} answered {}", response.status());
        Ok(response.into_body())
    }

    /// A watch whose events tell when they were made.
    ///
    /// # Errors
    /// Any answer but 200.
    pub async fn watch(&self) -> Result<Incoming> {
        self.open(WATCHED).await
    }

    /// The time of each of `count` small GETs, one after the other.
    ///
    /// # Errors
    /// A GET failed.
    pub async fn latencies(&self, count: usize) -> Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let started = Instant::now();
            ensure!(self.small().await? >= SMALL, "a small body of another size");
            times.push(started.elapsed());
        }
        Ok(times)
    }

    /// How many small GETs `in_flight` loops finish until the time is up, and how long it took.
    ///
    /// # Errors
    /// A GET failed.
    pub async fn saturate(self: &Arc<Self>, in_flight: usize, time: Duration) -> Result<(u64, Duration)> {
        let started = Instant::now();
        let end = started + time;
        let mut loops = JoinSet::new();
        for _ in 0..in_flight {
            let client = self.clone();
            loops.spawn(async move {
                let mut done = 0u64;
                while Instant::now() < end {
                    client.small().await?;
                    done += 1;
                }
                Ok::<_, anyhow::Error>(done)
            });
        }
        let mut done = 0;
        while let Some(one) = loops.join_next().await {
            done += one.context("a loop")??;
        }
        Ok((done, started.elapsed()))
    }

    /// The time of one GET with a body of so many bytes.
    ///
    /// # Errors
    /// It failed, or its body was cut.
    pub async fn bulk(&self, bytes: usize) -> Result<Duration> {
        let started = Instant::now();
        ensure!(self.get(&format!("{BODY}{bytes}")).await? == bytes, "a body of another size");
        Ok(started.elapsed())
    }
}

/// An open exec that echoes.
#[derive(Debug)]
pub struct Exec {
    stream: TokioIo<Upgraded>,
    _driver: JoinSet<()>,
}

impl Exec {
    /// Opens one on a new connection; tells how long it took from the request, the connection being there, to the 101.
    ///
    /// # Errors
    /// Any answer but 101.
    pub async fn open(target: &Target) -> Result<(Self, Duration)> {
        let stream = target.dial(true).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        sender.ready().await?;
        let mut request = Request::post(format!("{}{EXEC}", target.prefix))
            .header(header::HOST, target.name.to_str().as_ref())
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "SPDY/3.1")
            .header("x-stream-protocol-version", "v4.channel.k8s.io")
            .body(Empty::<Bytes>::new())?;
        request.headers_mut().extend(target.headers.clone());
        let asked = Instant::now();
        let response = sender.send_request(request).await?;
        let took = asked.elapsed();
        if response.status() != 101 {
            let (status, body) = (response.status(), response.into_body().collect().await?.to_bytes());
            anyhow::bail!("exec answered {status}: {}", String::from_utf8_lossy(&body));
        }
        let stream = TokioIo::new(hyper::upgrade::on(response).await?);
        Ok((Self { stream, _driver: driver }, took))
    }

    /// The time of each of `count` keystrokes until it has come back, one after the other.
    ///
    /// # Errors
    /// The stream ends, or something else comes back.
    pub async fn echoes(&mut self, count: usize) -> Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(count);
        for n in 0..count {
            let sent = format!("{n:016}").into_bytes();
            let mut heard = vec![0; sent.len()];
            let started = Instant::now();
            self.stream.write_all(&sent).await?;
            self.stream.flush().await?;
            self.stream.read_exact(&mut heard).await?;
            times.push(started.elapsed());
            ensure!(heard == sent, "another keystroke came back");
        }
        Ok(times)
    }
}

/// The value below which a share of the sorted times lies.
pub fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a length is an index"
    )]
    let at = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
    times.get(at).copied().unwrap_or_default()
}
