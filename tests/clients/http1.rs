//! One request by HTTP/1.1 on a connection of its own, to be asked word for word what a tool asks.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tests::bench::load::Target;
use tests::process::own_timeout;
use tokio::task::JoinSet;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: String,
}

/// The answer to it. A connection that was upgraded has no body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    pub(crate) took: Duration,
}

impl Answer {
    /// The body as JSON, null if it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

impl Question {
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: HeaderMap::new(), body: String::new() }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Result<Self> {
        self.headers.insert(name, HeaderValue::from_str(value)?);
        Ok(self)
    }

    pub(crate) fn bearer(self, token: &str) -> Result<Self> {
        self.header(header::AUTHORIZATION, &format!("Bearer {token}"))
    }

    pub(crate) fn json(mut self, body: &Value) -> Result<Self> {
        self.body = body.to_string();
        self.header(header::CONTENT_TYPE, "application/json")
    }

    /// Sends it to a gateway that shows a certificate of `host`, and waits as long as the tool would.
    ///
    /// # Errors
    /// No connection, no TLS, or no answer in time: what a tool calls a failure whatever it asked.
    pub(crate) async fn ask(&self, gateway: &Gateway, limit: Duration) -> Result<Answer> {
        let began = Instant::now();
        let work = self.clone().sent(gateway);
        let (code, headers, body) = own_timeout(limit, work)
            .await
            .with_context(|| format!("{} {}: no answer within {limit:?}", self.method, self.path))?
            .with_context(|| format!("{} {}", self.method, self.path))?;
        Ok(Answer { code, headers, body, took: began.elapsed() })
    }

    async fn sent(self, gateway: &Gateway) -> Result<(StatusCode, HeaderMap, String)> {
        let target = Target::new(gateway.address, &gateway.host, &gateway.ca_pem, None)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(target.dial(true).await?)).await?;
        // Ends with this function, whatever is left on the connection.
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let mut request = Request::builder().method(self.method).uri(&self.path);
        if !self.headers.contains_key(header::HOST) {
            request = request.header(header::HOST, format!("{}:{}", gateway.host, gateway.address.port()));
        }
        let mut request = request.body(Full::new(Bytes::from(self.body)))?;
        request.headers_mut().extend(self.headers);
        let (head, body) = sender.send_request(request).await?.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok((head.status, head.headers, String::new()));
        }
        let body = String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned();
        Ok((head.status, head.headers, body))
    }
}

/// Where a gateway is, and whom it shows.
#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    pub(crate) ca_pem: String,
}
