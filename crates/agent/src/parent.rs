//! The way to the parent: name, TCP, perhaps a proxy's CONNECT, and TLS that believes exactly the CA of the
//! registration Secret. Each step fails with a code of its own. Where it leads stands in the child's own
//! Secret; nothing that the hub says can change it, and no redirect is followed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use api::names::REGISTRATIONS_PATH;
use api::secret::Secret;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tunnel_proto::opening::{check_upgrade_answer, new_key, upgrade_headers};

use crate::account::message_of;
use crate::config::{Address, Proxy, parse_https};
use crate::dial::seats::Replica;
use crate::limits::{
    ANSWER_HEADER_LINES, PARENT_ADDRESSES, PARENT_ANSWER_TIMEOUT, PARENT_CONNECT_TIMEOUT,
    REGISTRATION_ANSWER, RETRY_AFTER_MAX, SEND_BUFFER, UNSENT,
};
use crate::tasks::Tasks;
use crate::trouble::{Code, Trouble, chain};
use crate::upstream::connect::roots;

/// A parent's address with what is needed to reach it.
pub struct Parent {
    address: Address,
    /// Before every path; empty unless the parent stands behind something that needs one.
    prefix: String,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    proxy: Option<Intercept>,
}

/// A byte stream with TLS to the parent, whatever it runs through.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// The parent's answer to a registration.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub code: StatusCode,
    /// Its `Retry-After`.
    pub after: Option<Duration>,
    /// Its body, bounded.
    pub body: Bytes,
}

impl Parent {
    /// The parent of a registration Secret.
    ///
    /// # Errors
    /// Its URL or CA cannot be used.
    pub fn new(url: &str, ca_pem: &[u8], proxy: &Proxy) -> Result<Self, Trouble> {
        let broken = |why: String| Trouble::new(Code::Registration, why);
        let (address, prefix) = parse_https(url).map_err(|why| broken(format!("parentURL: {why}")))?;
        let name = ServerName::try_from(address.host.clone())
            .map_err(|_| broken(format!("parentURL: {:?} is no host name or IP address", address.host)))?;
        let roots = roots(ca_pem).map_err(|why| broken(format!("ca.crt: {why}")))?;
        let mut tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        // An upgrade exists in HTTP/1.1 only.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let proxy = proxy_for(&address, proxy);
        Ok(Self { address, prefix, name, tls: Arc::new(tls), proxy })
    }

    /// Opens a WebSocket at `path` with this token, and tells at which replica of the hub it ends.
    ///
    /// # Errors
    /// Where it failed, and how.
    pub(crate) async fn websocket(
        &self,
        path: &str,
        token: &Secret,
        tasks: &Tasks,
    ) -> Result<(TokioIo<Upgraded>, Replica), Trouble> {
        let key = new_key();
        let mut headers =
            upgrade_headers(&key).map_err(|error| Trouble::new(Code::Upgrade, error.to_string()))?;
        headers.insert(header::AUTHORIZATION, bearer(token)?);
        let request = self.request(Method::GET, path, headers, Bytes::new())?;
        let mut answer = self.send(request, tasks).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (code, after) = (answer.status(), retry_after(answer.headers()));
            let body = self.bounded(answer.into_body()).await.unwrap_or_default();
            return Err(refused_upgrade(code, after, &body));
        }
        check_upgrade_answer(&key, answer.status(), answer.headers())
            .map_err(|error| Trouble::new(Code::Upgrade, error.to_string()))?;
        let replica = Replica::of(answer.headers());
        let upgraded = hyper::upgrade::on(&mut answer);
        let upgraded = upgraded.await.map_err(|error| Trouble::new(Code::Upgrade, chain(&error)))?;
        Ok((TokioIo::new(upgraded), replica))
    }

    /// Sends a registration with this token.
    ///
    /// # Errors
    /// Where it failed, and how; a refusal is an answer.
    pub async fn register(&self, json: Vec<u8>, token: &Secret, tasks: &Tasks) -> Result<Answer, Trouble> {
        let headers = HeaderMap::from_iter([
            (header::AUTHORIZATION, bearer(token)?),
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header::ACCEPT, HeaderValue::from_static("application/json")),
            (header::CONNECTION, HeaderValue::from_static("close")),
        ]);
        let request = self.request(Method::POST, REGISTRATIONS_PATH, headers, json.into())?;
        let answer = self.send(request, tasks).await?;
        let (code, after) = (answer.status(), retry_after(answer.headers()));
        let body = self.bounded(answer.into_body()).await?;
        Ok(Answer { code, after, body })
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Trouble> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.prefix)
            .parse()
            .map_err(|error| Trouble::new(Code::Registration, format!("parentURL: {error}")))?;
        *request.headers_mut() = headers;
        let host = HeaderValue::from_str(&self.host())
            .map_err(|error| Trouble::new(Code::Registration, format!("parentURL: {error}")))?;
        request.headers_mut().insert(header::HOST, host);
        request.headers_mut().insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("towline-agent/", env!("CARGO_PKG_VERSION"))),
        );
        Ok(request)
    }

    fn host(&self) -> String {
        let authority = self.address.authority();
        authority.strip_suffix(":443").map_or_else(|| authority.clone(), str::to_owned)
    }

    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        tasks: &Tasks,
    ) -> Result<Response<Incoming>, Trouble> {
        let stream = self.connect(tasks).await?;
        let failed = |error: hyper::Error| {
            Trouble::new(Code::HubDown, format!("{} did not answer: {}", self.host(), chain(&error)))
        };
        let answer = async {
            let (mut sender, connection) = http1::Builder::new()
                .max_buf_size(SEND_BUFFER)
                .max_headers(ANSWER_HEADER_LINES)
                .handshake(TokioIo::new(stream))
                .await?;
            tasks.spawn(async move {
                // Its end is seen by whoever waits for the answer or reads the upgraded stream.
                let _ = connection.with_upgrades().await;
            });
            sender.send_request(request).await
        };
        match timeout(PARENT_ANSWER_TIMEOUT, answer).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(Trouble::new(
                Code::HubDown,
                format!("{} did not answer within {PARENT_ANSWER_TIMEOUT:?}", self.host()),
            )),
        }
    }

    async fn bounded(&self, body: Incoming) -> Result<Bytes, Trouble> {
        let collecting = Limited::new(body, REGISTRATION_ANSWER).collect();
        match timeout(PARENT_ANSWER_TIMEOUT, collecting).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => {
                Err(Trouble::new(Code::HubDown, format!("{}: unusable answer: {error}", self.host())))
            }
            Err(_) => {
                Err(Trouble::new(Code::HubDown, format!("{}: the answer did not end in time", self.host())))
            }
        }
    }

    /// TLS to the parent.
    async fn connect(&self, tasks: &Tasks) -> Result<Box<dyn Stream>, Trouble> {
        let transport: Box<dyn Stream> = match &self.proxy {
            None => Box::new(tcp(&self.address.host, self.address.port).await?),
            Some(proxy) => Box::new(self.through(proxy, tasks).await?),
        };
        let handshake = TlsConnector::from(Arc::clone(&self.tls)).connect(self.name.clone(), transport);
        match timeout(PARENT_ANSWER_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(Trouble::new(Code::Tls, format!("TLS with {}: {error}", self.host()))),
            Err(_) => Err(Trouble::new(
                Code::Tls,
                format!("TLS with {}: no handshake within {PARENT_ANSWER_TIMEOUT:?}", self.host()),
            )),
        }
    }

    /// A connection to the parent through a proxy (RFC 9110 section 9.3.6).
    async fn through(&self, proxy: &Intercept, tasks: &Tasks) -> Result<TokioIo<Upgraded>, Trouble> {
        let host = proxy.uri().host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let port = proxy.uri().port_u16().unwrap_or(80);
        let name = format!("proxy {host}:{port}");
        let trouble = |why: String| Trouble::new(Code::Proxy, format!("{name}: {why}"));
        let stream = tcp(host, port).await.map_err(|error| trouble(error.message))?;

        let target = self.address.authority();
        let uri: Uri =
            target.parse().map_err(|_| trouble("the parent's address is no authority".to_owned()))?;
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        let host_value = HeaderValue::from_str(&target)
            .map_err(|_| trouble("the parent's address is no header".to_owned()))?;
        headers.insert(header::HOST, host_value);
        if let Some(credential) = proxy.basic_auth() {
            headers.insert(header::PROXY_AUTHORIZATION, credential.clone());
        }
        let answer = async {
            let (mut sender, connection) = http1::Builder::new()
                .max_buf_size(SEND_BUFFER)
                .max_headers(ANSWER_HEADER_LINES)
                .handshake(TokioIo::new(stream))
                .await?;
            tasks.spawn(async move {
                let _ = connection.with_upgrades().await;
            });
            sender.send_request(request).await
        };
        let mut answer = match timeout(PARENT_ANSWER_TIMEOUT, answer).await {
            Ok(answer) => answer.map_err(|error| trouble(chain(&error)))?,
            Err(_) => return Err(trouble(format!("no answer within {PARENT_ANSWER_TIMEOUT:?}"))),
        };
        match answer.status() {
            code if code.is_success() => {}
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                return Err(trouble("it wants another user or password (407)".to_owned()));
            }
            code => return Err(trouble(format!("it answered {code} to CONNECT {target}"))),
        }
        let upgraded = hyper::upgrade::on(&mut answer).await.map_err(|error| trouble(chain(&error)))?;
        Ok(TokioIo::new(upgraded))
    }
}

impl fmt::Debug for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The proxy's address may hold a password.
        f.debug_struct("Parent")
            .field("address", &self.address)
            .field("prefix", &self.prefix)
            .field("proxied", &self.proxy.is_some())
            .finish_non_exhaustive()
    }
}

/// The proxy for this address, if it is not excepted.
fn proxy_for(address: &Address, proxy: &Proxy) -> Option<Intercept> {
    let https = proxy.https.as_ref()?;
    let matcher = Matcher::builder().https(https.reveal().trim()).no(proxy.no.as_str()).build();
    let target: Uri = format!("https://{}/", address.authority()).parse().ok()?;
    matcher.intercept(&target)
}

fn bearer(token: &Secret) -> Result<HeaderValue, Trouble> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.reveal().trim()))
        .map_err(|_| Trouble::new(Code::Registration, "the token is not printable"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What an answer other than 101 to the upgrade means.
fn refused_upgrade(code: StatusCode, after: Option<Duration>, body: &[u8]) -> Trouble {
    let said = message_of(body);
    match code {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Trouble::new(Code::Refused, format!("the parent refused the credential ({code}): {said}"))
        }
        StatusCode::NOT_FOUND => {
            Trouble::new(Code::NotFound, format!("the parent knows no tunnels ({code}): {said}"))
        }
        code if code.is_server_error() || code == StatusCode::TOO_MANY_REQUESTS => {
            Trouble::new(Code::HubDown, format!("the parent answered {code}: {said}")).not_before(after)
        }
        code => Trouble::new(Code::Upgrade, format!("the parent answered {code} instead of 101: {said}")),
    }
}

/// How long the other side wants to be left alone (RFC 9110 section 10.2.3), within bounds. Its other form, a date, no
/// Kubernetes server uses, and it would be one of another clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// TCP to one of the name's addresses.
async fn tcp(host: &str, port: u16) -> Result<TcpStream, Trouble> {
    let looked_up = timeout(PARENT_CONNECT_TIMEOUT, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<_> = match looked_up {
        Ok(Ok(addresses)) => addresses.take(PARENT_ADDRESSES).collect(),
        Ok(Err(error)) => return Err(Trouble::new(Code::Dns, format!("{host}: {error}"))),
        Err(_) => {
            return Err(Trouble::new(
                Code::Dns,
                format!("{host}: no answer within {PARENT_CONNECT_TIMEOUT:?}"),
            ));
        }
    };
    let mut last = Trouble::new(Code::Dns, format!("{host} has no address"));
    for address in addresses {
        match timeout(PARENT_CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Both only make it faster; a socket that refuses them still works.
                let _ = stream.set_nodelay(true);
                let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
                return Ok(stream);
            }
            Ok(Err(error)) => last = Trouble::new(Code::Tcp, format!("{host} ({address}): {error}")),
            Err(_) => {
                last = Trouble::new(
                    Code::Tcp,
                    format!("{host} ({address}): no connection within {PARENT_CONNECT_TIMEOUT:?}"),
                );
            }
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests;
