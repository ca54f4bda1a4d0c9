//! One TLS connection to the child's kube-apiserver. The CA file is read for each of them (they are few), so
//! that a rotated CA is used from the next connection on; while there is no usable one, the last that was is. Verification
//! is never off.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::Address;
use crate::limits::CONNECT_TIMEOUT;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not a name or IP address.
    #[error("{0:?} is no host name or IP address")]
    Name(String),
    /// The CA file.
    #[error("{path}: {why}")]
    Ca {
        /// Which file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// TCP.
    #[error("{address}: {error}")]
    Tcp {
        /// Where to.
        address: String,
        /// What happened.
        error: std::io::Error,
    },
    /// TLS; the certificate among others.
    #[error("TLS with {address}: {error}")]
    Tls {
        /// With whom.
        address: String,
        /// What happened.
        error: std::io::Error,
    },
    /// HTTP/2 did not start.
    #[error("HTTP/2: {0}")]
    Http2(hyper::Error),
    /// No connection in time.
    #[error("{address}: no connection within {CONNECT_TIMEOUT:?}")]
    Slow {
        /// Where to.
        address: String,
    },
    /// The same connection was awaited by others and failed.
    #[error("{0}")]
    Shared(Arc<str>),
}

/// Which protocol is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpn {
    Http1,
    Http2,
}

/// Makes connections to one address.
pub(crate) struct Connector {
    host: String,
    port: u16,
    name: ServerName<'static>,
    ca_file: PathBuf,
    trusted: ArcSwapOption<Trusted>,
}

/// What a CA file with this content means. Kept while the content is the same, for it holds TLS sessions.
struct Trusted {
    pem: Vec<u8>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl Connector {
    pub(crate) fn new(address: &Address, ca_file: PathBuf) -> Result<Self, ConnectError> {
        let name = ServerName::try_from(address.host.clone())
            .map_err(|_| ConnectError::Name(address.host.clone()))?;
        Ok(Self {
            host: address.host.clone(),
            port: address.port,
            name,
            ca_file,
            trusted: ArcSwapOption::empty(),
        })
    }

    pub(crate) async fn connect(&self, alpn: Alpn) -> Result<TlsStream<TcpStream>, ConnectError> {
        let address = || format!("{}:{}", self.host, self.port);
        let connecting = async {
            let trusted = self.trusted().await?;
            let tcp = TcpStream::connect((self.host.as_str(), self.port))
                .await
                .map_err(|error| ConnectError::Tcp { address: address(), error })?;
            // Without it, a small answer waits for an acknowledgement. A socket that refuses still works.
            let _ = tcp.set_nodelay(true);
            let config = match alpn {
                Alpn::Http1 => &trusted.http1,
                Alpn::Http2 => &trusted.http2,
            };
            TlsConnector::from(Arc::clone(config))
                .connect(self.name.clone(), tcp)
                .await
                .map_err(|error| ConnectError::Tls { address: address(), error })
        };
        // On the heap: a handshake is large and rare, and this is a part of every request's future.
        timeout(CONNECT_TIMEOUT, Box::pin(connecting))
            .await
            .unwrap_or_else(|_| Err(ConnectError::Slow { address: address() }))
    }

    async fn trusted(&self) -> Result<Arc<Trusted>, ConnectError> {
        let known = self.trusted.load_full();
        let ca_error = |why: String| ConnectError::Ca { path: self.ca_file.display().to_string(), why };
        let read = match tokio::fs::read(&self.ca_file).await {
            Ok(pem) if known.as_ref().is_some_and(|known| pem == known.pem) => Ok(None),
            Ok(pem) => roots(&pem).map(|roots| Some((pem, roots))),
            Err(error) => Err(error.to_string()),
        };
        let (pem, roots) = match (read, known) {
            (Ok(Some(new)), _) => new,
            (Ok(None), Some(known)) => return Ok(known),
            // Whoever swaps the file may do it in two steps. What was good last is no less good for that.
            (Err(why), Some(known)) => {
                tracing::warn!(path = %self.ca_file.display(), why, "the CA file cannot be used; the CA of before is");
                return Ok(known);
            }
            (Err(why), None) => return Err(ca_error(why)),
            (Ok(None), None) => return Err(ca_error("empty".to_owned())),
        };
        let config = |alpn: &[&[u8]]| {
            let mut config =
                ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth();
            config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        let trusted =
            Arc::new(Trusted { pem, http1: config(&[b"http/1.1"]), http2: config(&[b"h2", b"http/1.1"]) });
        self.trusted.store(Some(Arc::clone(&trusted)));
        Ok(trusted)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}

/// The certificates of a PEM bundle as roots, and nothing besides them.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn roots(pem: &[u8]) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("not PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("a certificate cannot be used: {error}"))?;
    }
    if roots.is_empty() {
        return Err("no CERTIFICATE block".to_owned());
    }
    Ok(Arc::new(roots))
}
