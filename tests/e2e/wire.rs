//! Requests that no kubectl makes: as an agent dials, and as the parent's aggregator asks.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tests::bench::load::Target;
use tokio::task::JoinSet;
use tunnel_proto::agent_side;

/// Sends one GET over a new HTTP/1.1 connection, which lives on one of the tasks.
pub(crate) async fn get(
    target: &Target,
    path: &str,
    headers: HeaderMap,
    tasks: &mut JoinSet<()>,
) -> Result<Response<Incoming>> {
    let stream = target.dial(true).await.context("dial")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tasks.spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let mut request = Request::get(path).header(header::HOST, "towline.test").body(Empty::<Bytes>::new())?;
    request.headers_mut().extend(headers);
    Ok(sender.send_request(request).await?)
}

/// The headers of an agent's WebSocket upgrade, with its token.
pub(crate) fn upgrade(key: &str, token: &str) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.extend(agent_side::upgrade_headers(key)?);
    headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}"))?);
    Ok(headers)
}

/// A body to its end.
pub(crate) async fn text(response: Response<Incoming>) -> Result<String> {
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
