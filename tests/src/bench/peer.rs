//! Another tunnel, measured beside ours: a command that is told where the fake child is and says at which URL it serves
//! it; and the smallest such command, a reverse proxy, which shows what one hop costs that does nothing else.
//!
//! What a peer gets in its environment stands at the constants. It prints one line, `https://HOST:PORT/PATH` and,
//! if its certificate is not of the child's CA, after a space the file with its own CA; and serves until it is killed, with
//! HTTP/2 over TLS. Each request bears the token of the token file.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::load::{Client, Target};
use super::machine::{Part, pin};
use super::options::PeerCommand;
use super::stage::{CHILD_CA, TOKEN};
use super::usage::Whose;
use super::ways::Way;
use crate::pki::Authority;
use crate::process::{Process, Program, wait_until};
use crate::scratch::Scratch;

/// The variable with the URL of the fake child's kube-apiserver.
pub const CHILD_URL: &str = "BENCH_CHILD_URL";
/// With the file that holds the CA of its certificate.
pub const CHILD_CA_FILE: &str = "BENCH_CHILD_CA_FILE";
/// With the file that holds a token for it.
pub const CHILD_TOKEN_FILE: &str = "BENCH_CHILD_TOKEN_FILE";
/// With a directory of the peer's own.
pub const DIRECTORY: &str = "BENCH_DIRECTORY";

/// Time until it serves: some pull up a whole control plane.
const READY: Duration = Duration::from_secs(120);

/// A running peer.
#[derive(Debug)]
pub struct Peer {
    name: String,
    process: Process,
    target: Target,
}

impl Peer {
    /// Starts it, and waits until the child answers through it.
    ///
    /// # Errors
    /// It ends, says no URL in time, or does not serve the child there.
    pub async fn start(
        peer: &PeerCommand,
        scratch: &Scratch,
        child: &Target,
        directory: &Path,
    ) -> Result<Self> {
        let own = scratch.directory(format!("peer-{}", peer.name))?;
        let process = Program::new(format!("peer-{}", peer.name), "sh")
            .args(["-c", &peer.command])
            .env(CHILD_URL, format!("https://{}", child.address()))
            .env(CHILD_CA_FILE, directory.join(CHILD_CA))
            .env(CHILD_TOKEN_FILE, directory.join(TOKEN))
            .env(DIRECTORY, &own)
            .start(scratch)?;
        pin(process.pid(), Part::Hub)?;
        let token =
            HeaderValue::from_str(&format!("Bearer {}", super::stage::read(directory, TOKEN)?.trim()))?;
        let what = format!("the peer {} to serve the child", peer.name);
        let target = wait_until(&what, READY, async || {
            process.check()?;
            let (url, ca) = announced(&process.log_text()?)?;
            let ca = std::fs::read_to_string(ca.unwrap_or_else(|| directory.join(CHILD_CA)))?;
            let target = target(&url, &ca)?.with_header(header::AUTHORIZATION, token.clone());
            let bytes = Client::connect(&target).await?.get("/bench/small").await?;
            ensure!(bytes == super::backend::SMALL, "it answered with {bytes} bytes");
            Ok(target)
        })
        .await?;
        Ok(Self { name: peer.name.clone(), process, target })
    }

    /// The way over it. All its processes count, as long as they stay in its group.
    ///
    /// # Errors
    /// No connection.
    pub async fn way(&self) -> Result<Way> {
        let roles = vec![("peer", Whose::Group(self.process.pid()))];
        Way::new(&self.name, &self.name, self.target.clone(), roles).await
    }
}

/// The URL and, perhaps, the CA file, of the first line that begins with one.
fn announced(output: &str) -> Result<(Uri, Option<std::path::PathBuf>)> {
    // The last line may be half written.
    let (lines, _) = output.rsplit_once('\n').context("it has said nothing yet")?;
    let line =
        lines.lines().find(|line| line.starts_with("https://")).context("it has said no https:// URL yet")?;
    let (url, ca) = match line.trim().split_once(' ') {
        Some((url, ca)) => (url, Some(ca.trim().into())),
        None => (line.trim(), None),
    };
    Ok((url.parse().with_context(|| format!("{url:?} is no URL"))?, ca))
}

fn target(url: &Uri, ca_pem: &str) -> Result<Target> {
    let host = url.host().context("the URL has no host")?;
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    let address = (plain, url.port_u16().unwrap_or(443)).to_socket_addrs()?.next();
    let address = address.with_context(|| format!("{host} has no address"))?;
    let prefix = url.path().trim_end_matches('/').to_owned();
    Ok(Target::new(address, plain, ca_pem, None)?.below(prefix, &[]))
}

/// The example: a reverse proxy, one process, HTTP/2 over TLS on both sides, nothing else. Announces itself on standard
/// output.
///
/// # Errors
/// The environment of a peer is missing, or there is no port.
pub async fn example(announce: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "how a peer learns what it serves")]
    let given =
        |name: &str| std::env::var(name).with_context(|| format!("{name}: run me as --peer NAME=COMMAND"));
    let (url, ca) = (given(CHILD_URL)?, std::fs::read_to_string(given(CHILD_CA_FILE)?)?);
    reverse_proxy(&target(&url.parse()?, &ca)?, Path::new(&given(DIRECTORY)?), announce).await
}

async fn reverse_proxy(child: &Target, own: &Path, announce: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let authority = Authority::new("bench-peer")?;
    let serving = authority.server("bench-peer", &["127.0.0.1".to_owned()])?;
    let ca = own.join("ca.crt");
    std::fs::write(&ca, authority.certificate_pem())?;
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(serving.certificate_pem.as_bytes()).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(serving.key_pem.as_bytes())?;
    let mut tls = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    announce(&format!("https://{} {}", listener.local_addr()?, ca.display()))?;
    // One connection to the child: it allows 100 requests at once, and 64 are made.
    let upstream = Arc::new(Client::connect(child).await?);
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let (tls, upstream) = (tls.clone(), Arc::clone(&upstream));
        connections.spawn(async move {
            let Ok(stream) = tls.accept(socket).await else { return };
            let service = service_fn(move |request| pass_on(Arc::clone(&upstream), request));
            let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http.timer(TokioTimer::new()).max_concurrent_streams(100).max_frame_size(64 * 1024);
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// GETs only: nothing else is measured of a peer.
async fn pass_on(upstream: Arc<Client>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let answer = upstream.open(path).await;
    let (status, body) = match answer {
        Ok(body) => (StatusCode::OK, body.boxed_unsync()),
        Err(_) => (StatusCode::BAD_GATEWAY, Empty::new().map_err(|never| match never {}).boxed_unsync()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    Ok(response)
}

/// A line of a peer, whose log is its standard output.
///
/// # Errors
/// Standard output is closed.
pub fn print_line(line: &str) -> Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    if line.is_empty() { bail!("nothing to announce") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_url_counts_and_what_is_half_written_does_not() {
        let of = |text: &str| announced(text).map(|(url, ca)| (url.to_string(), ca));
        assert_eq!(
            of("starting\nhttps://h:1/p /ca\nhttps://later/\n").unwrap(),
            ("https://h:1/p".to_owned(), Some("/ca".into()))
        );
        assert_eq!(of("https://h:1/\n").unwrap().1, None);
        for nothing in ["", "https://h:1/p /c", "http://h\n"] {
            assert!(of(nothing).is_err(), "{nothing:?}");
        }
    }

    #[tokio::test]
    async fn the_example_passes_whole_bodies_on() {
        let directory = std::env::temp_dir().join(format!("towline-test-peer-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let authority = Authority::new("child").unwrap();
        let serving = authority.server("child", &["127.0.0.1".to_owned()]).unwrap();
        let address = super::super::stage::free().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            super::super::backend::serve(address, &serving.certificate_pem, &serving.key_pem).await
        });
        let child = Target::new(address, "127.0.0.1", authority.certificate_pem(), None).unwrap();
        wait_until("the child", Duration::from_secs(10), async || Client::connect(&child).await.map(drop))
            .await
            .unwrap();
        let (line_tx, line_rx) = tokio::sync::oneshot::channel();
        let own = directory.clone();
        let announce = |line: &str| {
            line_tx.send(format!("{line}\n")).unwrap();
            Ok(())
        };
        tasks.spawn(async move { reverse_proxy(&child, &own, announce).await });
        let (url, ca) = announced(&line_rx.await.unwrap()).unwrap();
        let peer = target(&url, &std::fs::read_to_string(ca.unwrap()).unwrap()).unwrap();
        let client = Client::connect(&peer).await.unwrap();
        assert_eq!(client.latencies(3).await.unwrap().len(), 3);
        client.bulk(3_000_000).await.unwrap();
        assert!(client.get("/nothing").await.is_err(), "an error stays one");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
