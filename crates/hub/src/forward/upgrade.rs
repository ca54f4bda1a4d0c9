//! exec, attach, port-forward: the caller's HTTP/1.1 upgrade becomes an extended CONNECT in the tunnel, and
//! the child's 101 becomes ours. Until the child has said 101 not a byte of the caller's stream moves
//! (CVE-2018-1002105); any other answer is passed on as a complete error, after which the connection closes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tunnel_proto::UpgradeProtocol;
use tunnel_proto::names::AUTHORITY_KUBERNETES;
use tunnel_proto::upgrade::{connect_request, switching_protocols, tunnel_uri};

use super::{Stay, empty, exchange, pass_on};
use crate::body::ResponseBody;
use crate::catalog::Cluster;
use crate::handle::Hub;
use crate::metrics::InFlight;
use crate::refusal::Refusal;
use crate::request_info::Proxied;
use crate::route::Target;
use crate::told::Told;

/// Buffer of one direction of an open stream; two of them are 64 KiB per exec.
const BUFFER: usize = 32 * 1024;

/// The upgrade that a request asks for, if it asks for one. `Connection` has to name it: an `Upgrade` header
/// alone is an offer that one may ignore (RFC 9110 section 7.8).
///
/// # Errors
/// It asks for a protocol, with a method or a body, that no Kubernetes API server upgrades.
pub(super) fn wanted(request: &Request<Incoming>) -> Result<Option<UpgradeProtocol>, Refusal> {
    asked(request.method(), request.version(), request.headers())
}

fn asked(method: &Method, version: Version, headers: &HeaderMap) -> Result<Option<UpgradeProtocol>, Refusal> {
    let bad = |why: &str| Err(Refusal::BadRequest(why.to_owned()));
    let named = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    if version != Version::HTTP_11 || !named || !headers.contains_key(UPGRADE) {
        return Ok(None);
    }
    let mut upgrades = headers.get_all(UPGRADE).iter();
    let (Some(only), None) = (upgrades.next(), upgrades.next()) else {
        return bad("a request may ask for one upgrade");
    };
    let Some(protocol) = only.to_str().ok().and_then(UpgradeProtocol::from_upgrade_header) else {
        return bad("the only upgrades are websocket and SPDY/3.1");
    };
    let fits = match protocol {
        UpgradeProtocol::WebSocket => *method == Method::GET,
        UpgradeProtocol::Spdy31 => *method == Method::GET || *method == Method::POST,
    };
    if !fits {
        return bad("this method cannot ask for this upgrade");
    }
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || headers.get_all(CONTENT_LENGTH).iter().any(|length| length != "0");
    if has_body {
        return bad("a request for an upgrade has no body");
    }
    Ok(Some(protocol))
}

/// Carries the upgrade to the child; the streams run on a task of their own.
#[expect(clippy::too_many_arguments, reason = "one caller, which has taken the request apart already")]
pub(super) async fn send(
    hub: &Arc<Hub>,
    target: Target,
    cluster: &Cluster,
    proxied: Proxied,
    protocol: UpgradeProtocol,
    outbound: HeaderMap,
    mut request: Request<Incoming>,
    mut stay: Stay,
    told: &mut Told,
) -> Result<Response<ResponseBody>, Refusal> {
    let name = cluster.name.as_str();
    let uri = tunnel_uri(AUTHORITY_KUBERNETES, proxied.target)
        .map_err(|_| Refusal::BadRequest("the path or query is malformed".to_owned()))?;
    let mut connect = connect_request(protocol, request.method(), uri, empty());
    // The identity and the rest beside the one header that the mapping has set.
    connect.headers_mut().extend(outbound);
    let mut answer = exchange(hub, target, cluster, connect).await?;
    if answer.status() != StatusCode::OK {
        return not_switched(hub, name, answer, stay);
    }
    if protocol == UpgradeProtocol::WebSocket
        && !answer.headers().contains_key(http::header::SEC_WEBSOCKET_ACCEPT)
    {
        return Err(Refusal::BadAnswer(
            name.to_owned(),
            "it switched to websocket without sec-websocket-accept".to_owned(),
        ));
    }
    let child = hyper::upgrade::on(&mut answer);
    let caller = hyper::upgrade::on(&mut request);
    told.answered(request.method(), StatusCode::SWITCHING_PROTOCOLS);
    stay.keep(told.take());
    hub.streams.spawn(carry(Arc::clone(hub), name.to_owned(), caller, child, stay));
    Ok(switching_protocols(protocol, answer.headers(), ResponseBody::empty()))
}

/// The child did not switch: its answer, if that is an error, is what kubectl falls back on.
fn not_switched(
    hub: &Hub,
    name: &str,
    answer: Response<Incoming>,
    stay: Stay,
) -> Result<Response<ResponseBody>, Refusal> {
    let (mut parts, body) = answer.into_parts();
    if parts.status.as_u16() < 400 {
        let why = format!("it answered an upgrade with {}", parts.status.as_u16());
        return Err(Refusal::BadAnswer(name.to_owned(), why));
    }
    pass_on(hub, name, parts.status, &mut parts.headers)?;
    let mut response = Response::new(ResponseBody::Child(body, Box::new(stay)));
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(response)
}

/// Copies both ways, with half-close, until both have ended, either breaks, nothing moves for too long, or the caller
/// loses the right to it.
async fn carry(hub: Arc<Hub>, name: String, caller: OnUpgrade, child: OnUpgrade, mut stay: Stay) {
    let _counted = InFlight::new(&hub.metrics.upgrades);
    let moved = Arc::new(AtomicU64::new(0));
    let streams = async {
        let (caller, child) = tokio::try_join!(caller, child)?;
        let mut caller = Watched { stream: TokioIo::new(caller), moved: Arc::clone(&moved) };
        let mut child = TokioIo::new(child);
        let copied = copy_bidirectional_with_sizes(&mut caller, &mut child, BUFFER, BUFFER).await;
        Ok::<_, hyper::Error>(copied)
    };
    let ended = tokio::select! {
        biased;
        () = hub.phases.cut.cancelled() => return stay.ended("stopped", "this hub has stopped"),
        ended = streams => Some(ended),
        () = stay.ended_by_rights() => None,
        () = idle(&moved, hub.running.limits().stream_idle) => {
            stay.ended("idle", "nothing moved for too long");
            None
        }
    };
    match ended {
        Some(Ok(Ok((up, down)))) => tracing::debug!(cluster = name, up, down, "a stream has ended"),
        Some(Ok(Err(error))) => {
            stay.broke();
            tracing::debug!(cluster = name, %error, "a stream broke");
        }
        Some(Err(error)) => tracing::debug!(cluster = name, %error, "an upgrade did not happen"),
        None => tracing::info!(cluster = name, "a stream was ended by this hub"),
    }
}

/// Resolves when nothing has moved for the whole of the limit.
async fn idle(moved: &AtomicU64, limit: Duration) {
    let mut before = moved.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(limit).await;
        let now = moved.load(Ordering::Relaxed);
        if now == before {
            return;
        }
        before = now;
    }
}

/// A stream that counts what moves through it, in either direction.
struct Watched<S> {
    stream: S,
    moved: Arc<AtomicU64>,
}

impl<S> Watched<S> {
    fn count<T>(&self, polled: &Poll<T>) {
        if polled.is_ready() {
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.count(&polled);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.count(&polled);
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_the_two_upgrades_of_kubernetes_are_carried() {
        let ask = |method: &Method, connection, upgrade| {
            asked(method, Version::HTTP_11, &map(&[("Connection", connection), ("Upgrade", upgrade)]))
        };
        assert_eq!(ask(&Method::GET, "Upgrade", "websocket"), Ok(Some(UpgradeProtocol::WebSocket)));
        assert_eq!(ask(&Method::POST, "keep-alive, upgrade", "SPDY/3.1"), Ok(Some(UpgradeProtocol::Spdy31)));
        assert_eq!(
            ask(&Method::GET, "Upgrade, Impersonate-User", "spdy/3.1"),
            Ok(Some(UpgradeProtocol::Spdy31))
        );
        assert!(ask(&Method::POST, "Upgrade", "websocket").is_err());
        assert!(ask(&Method::PUT, "Upgrade", "SPDY/3.1").is_err());
        for other in ["h2c", "foo", "SPDY/3.1, websocket", ""] {
            assert!(ask(&Method::GET, "Upgrade", other).is_err(), "{other}");
        }
        assert_eq!(ask(&Method::GET, "x-upgrade-x", "websocket"), Ok(None));
        assert_eq!(asked(&Method::GET, Version::HTTP_11, &map(&[("Connection", "Upgrade")])), Ok(None));
        assert_eq!(
            asked(
                &Method::GET,
                Version::HTTP_2,
                &map(&[("Connection", "Upgrade"), ("Upgrade", "websocket")])
            ),
            Ok(None)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_idle_only_when_nothing_moved_for_the_whole_limit() {
        let limit = Duration::from_secs(60);
        let moved = Arc::new(AtomicU64::new(0));
        let began = tokio::time::Instant::now();
        let idle = idle(&moved, limit);
        let one_byte = async {
            tokio::time::sleep(Duration::from_secs(59)).await;
            let mut stream = Watched { stream: tokio::io::empty(), moved: Arc::clone(&moved) };
            tokio::io::AsyncReadExt::read(&mut stream, &mut [0]).await.unwrap();
        };
        tokio::join!(idle, one_byte);
        assert_eq!(began.elapsed(), 2 * limit);
    }

    #[test]
    fn an_upgrade_with_a_body_is_refused() {
        let ask = |name, value| {
            let headers = map(&[("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), (name, value)]);
            asked(&Method::POST, Version::HTTP_11, &headers)
        };
        assert!(ask("Content-Length", "0").is_ok());
        assert!(ask("Content-Length", "5").is_err());
        assert!(ask("Transfer-Encoding", "chunked").is_err());
    }
}
