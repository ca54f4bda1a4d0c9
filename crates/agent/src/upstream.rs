//! The child's kube-apiserver: one address, fixed at start. Ordinary requests share a few HTTP/2
//! connections, requests without an end (watch, follow, proxied services) share others, upgrades get a
//! fresh HTTP/1.1 connection each. Takes requests in two forms only: [`Impersonated`] for people and
//! [`OwnRequest`] for the agent's own accounts. Follows no redirect, retries nothing that may have been sent.

pub(crate) mod body;
pub(crate) mod connect;
mod location;
mod pool;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tunnel_proto::Body;

use self::body::without_trailers;
pub use self::connect::ConnectError;
use self::connect::{Alpn, Connector};
use self::pool::{Connection, Pool};
use crate::account::OwnRequest;
use crate::config::Address;
use crate::impersonate::Impersonated;
use crate::limits::{
    ANSWER_HEADER_LINES, CONNECTIONS, HEAD_TIMEOUT, LONG_CONNECTIONS, SEND_BUFFER, UPGRADE_TIMEOUT,
};
use crate::tasks::Tasks;

/// Headers that belong to one connection (RFC 9110 section 7.6.1), and those that only we may set.
const NEVER_RELAYED: [HeaderName; 8] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static(tunnel_proto::names::HEADER_AGENT_ERROR),
];

/// The one API server.
#[derive(Debug)]
pub struct Upstream {
    authority: Authority,
    connector: Connector,
    short: Pool,
    long: Pool,
    /// Drivers of connections; they end with this.
    tasks: Tasks,
    /// Set once HTTP/2 was refused, so that it is logged once.
    told_http1: AtomicBool,
}

/// Why the child gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nothing was sent.
    #[error("the child's kube-apiserver cannot be reached: {0}")]
    Connect(#[from] ConnectError),
    /// It may have been sent.
    #[error("the request to the child's kube-apiserver failed: {}", crate::trouble::chain(.0))]
    Failed(#[source] hyper::Error),
    /// No head of an answer in time.
    #[error("the child's kube-apiserver did not answer within {0:?}")]
    Silent(Duration),
    /// An answer that no API server gives.
    #[error("the child's kube-apiserver gave an answer that cannot be passed on: {0}")]
    Answer(&'static str),
}

/// What kind of a request it is, by its address alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Short,
    Long,
}

impl Upstream {
    /// Connects to nothing yet; `ca_file` is read for each new connection.
    ///
    /// # Errors
    /// The address cannot stand in a URL or certificate.
    pub fn new(address: &Address, ca_file: PathBuf) -> Result<Self, ConnectError> {
        let authority = address.authority().parse().map_err(|_| ConnectError::Name(address.host.clone()))?;
        Ok(Self {
            authority,
            connector: Connector::new(address, ca_file)?,
            short: Pool::new(CONNECTIONS),
            long: Pool::new(LONG_CONNECTIONS),
            tasks: Tasks::default(),
            told_http1: AtomicBool::new(false),
        })
    }

    /// Sends a person's request and gives the child's answer, streaming, without what belongs to the
    /// connection.
    ///
    /// # Errors
    /// There is no answer that can be passed on.
    pub async fn forward(&self, request: Impersonated) -> Result<Response<Body>, UpstreamError> {
        let request = request.into_request();
        let length = length_of(request.uri());
        let mut answer = self.exchange(request, length).await?;
        location::shorten(&self.authority, answer.headers_mut());
        Ok(answer)
    }

    /// Sends a request of one of the agent's own accounts.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn own(&self, request: OwnRequest) -> Result<Response<Body>, UpstreamError> {
        self.exchange(request.into_request(), Length::Short).await
    }

    /// Sends an upgrade on a connection of its own. The answer is the child's, whatever its status;
    /// dropping it closes the connection.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn upgrade(&self, request: Impersonated) -> Result<Response<Incoming>, UpstreamError> {
        let stream = self.connector.connect(Alpn::Http1).await?;
        within(UPGRADE_TIMEOUT, self.send_http1(stream, request.into_request())).await
    }

    /// Connections now open for ordinary requests and for those without an end.
    pub fn connections(&self) -> (usize, usize) {
        (self.short.len(), self.long.len())
    }

    async fn exchange(
        &self,
        request: Request<Body>,
        length: Length,
    ) -> Result<Response<Body>, UpstreamError> {
        match length {
            Length::Short => within(HEAD_TIMEOUT, self.exchange_once_more(request, &self.short)).await,
            // `kubectl logs -f` of a silent container has no head until it speaks.
            Length::Long => self.exchange_once_more(request, &self.long).await,
        }
    }

    /// A connection can close between being picked and being used. The HTTP library gives a request back
    /// that was never written; only such a one is sent again, once.
    async fn exchange_once_more(
        &self,
        mut request: Request<Body>,
        pool: &Pool,
    ) -> Result<Response<Body>, UpstreamError> {
        let mut tries_left = 2;
        loop {
            tries_left -= 1;
            let Some(place) = pool.place(self.open()).await? else {
                return Box::pin(self.exchange_http1(request)).await;
            };
            *request.uri_mut() = self.absolute(request.uri())?;
            *request.version_mut() = Version::HTTP_2;
            match place.send(request).await {
                Ok(answer) => return relayed(answer),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) if tries_left > 0 => request = unsent,
                    _ => return Err(UpstreamError::Failed(failed.into_error())),
                },
            }
        }
    }

    /// One more HTTP/2 connection; `None` when the server does not speak it.
    async fn open(&self) -> Result<Option<Connection>, ConnectError> {
        let stream = self.connector.connect(Alpn::Http2).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            if !self.told_http1.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "the child's kube-apiserver does not speak HTTP/2: each request costs a connection of its own"
                );
            }
            return Ok(None);
        }
        Box::pin(Connection::start(stream, &self.tasks)).await.map(Some)
    }

    /// For servers without HTTP/2: a connection for this request alone.
    async fn exchange_http1(&self, request: Request<Body>) -> Result<Response<Body>, UpstreamError> {
        let stream = self.connector.connect(Alpn::Http1).await?;
        relayed(self.send_http1(stream, request).await?.map(without_trailers))
    }

    async fn send_http1(
        &self,
        stream: TlsStream<tokio::net::TcpStream>,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(SEND_BUFFER)
            .max_headers(ANSWER_HEADER_LINES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(UpstreamError::Failed)?;
        self.tasks.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "an HTTP/1.1 connection to the child ended early");
            }
        });
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().map_err(|_| UpstreamError::Answer("the path is unusable"))?;
        *request.version_mut() = Version::HTTP_11;
        let host = HeaderValue::from_str(self.authority.as_str());
        request
            .headers_mut()
            .insert(header::HOST, host.map_err(|_| UpstreamError::Answer("the address is no header value"))?);
        sender.send_request(request).await.map_err(UpstreamError::Failed)
    }

    fn absolute(&self, uri: &Uri) -> Result<Uri, UpstreamError> {
        let mut parts = uri.clone().into_parts();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(self.authority.clone());
        Uri::from_parts(parts).map_err(|_| UpstreamError::Answer("the path is unusable"))
    }
}

async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    timeout(limit, answer).await.unwrap_or(Err(UpstreamError::Silent(limit)))
}

/// The answer as it may go into the tunnel.
pub(crate) fn relayed(mut answer: Response<Body>) -> Result<Response<Body>, UpstreamError> {
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpstreamError::Answer("it switched protocols without being asked"));
    }
    if !(200..600).contains(&answer.status().as_u16()) {
        return Err(UpstreamError::Answer("its status is none of HTTP"));
    }
    clean(answer.headers_mut());
    *answer.version_mut() = Version::HTTP_2;
    answer.extensions_mut().clear();
    Ok(answer)
}

/// Removes what belongs to the connection, and the mark that tells our own errors from the child's answers.
pub(crate) fn clean(headers: &mut HeaderMap) {
    // The HTTP library keeps a content-length beside a transfer-encoding (hyper issue 4181), and it is a lie.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .collect();
    for name in named.iter().chain(&NEVER_RELAYED) {
        headers.remove(name);
    }
}

/// Requests that may last for hours hold a stream all that time. They must not use up those of others.
fn length_of(uri: &Uri) -> Length {
    let truth = |value: &str| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True");
    let endless = uri.query().unwrap_or_default().split('&').any(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        matches!(key, "watch" | "follow") && truth(value)
    });
    let path = uri.path();
    // `/api/v1/watch/…` is the old spelling of a watch; proxied services stream what they like.
    let by_path = path.split('/').any(|segment| segment == "proxy" || segment == "watch");
    if endless || by_path { Length::Long } else { Length::Short }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod tests;
