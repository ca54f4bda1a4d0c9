//! The agent's own requests to the child, as one of its two accounts: `clusternet-agent` for its state, and
//! `clusternet-app-deployer` to ask what it may impersonate. Never on behalf of a person: nothing that came
//! out of a tunnel becomes a part of them. [`Account::post_as`] asks as somebody who does not exist.

use std::path::PathBuf;
use std::sync::Arc;

use api::identity::Identity;
use api::secret::Secret;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;
use tunnel_proto::Body;

use crate::impersonate::{self, Inbound};
use crate::limits::{OWN_ANSWER, OWN_TIMEOUT};
use crate::upstream::body::bounded;
use crate::upstream::{Upstream, UpstreamError};

/// A request of one of the agent's own accounts. Made by [`Account`] only.
#[derive(Debug)]
pub struct OwnRequest(Request<Body>);

impl OwnRequest {
    /// The request, for the one who sends it.
    pub(crate) fn into_request(self) -> Request<Body> {
        self.0
    }
}

/// Why a question of the agent itself has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The token file.
    #[error("{path}: {error}")]
    Token {
        /// Which.
        path: String,
        /// Why not.
        error: std::io::Error,
    },
    /// No answer.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// An answer that says no.
    #[error("{path} answered {code}: {message}")]
    Status {
        /// What was asked.
        path: String,
        /// The status.
        code: StatusCode,
        /// The child's own words.
        message: String,
    },
    /// The answer is too long, breaks off or is not what was expected.
    #[error("{path} answered something unusable: {why}")]
    Unusable {
        /// What was asked.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// No whole answer in time.
    #[error("{path}: no answer within {OWN_TIMEOUT:?}")]
    Slow {
        /// What was asked.
        path: String,
    },
}

impl AskError {
    /// The status of an answer that says no.
    pub fn code(&self) -> Option<StatusCode> {
        match self {
            Self::Status { code, .. } => Some(*code),
            Self::Token { .. } | Self::Upstream(_) | Self::Unusable { .. } | Self::Slow { .. } => None,
        }
    }
}

/// Where an account's token comes from.
#[derive(Debug, Clone)]
pub enum Bearer {
    /// A file that the kubelet renews; read for each request.
    File(PathBuf),
    /// A token that was asked for.
    Token(Secret),
}

/// One of the agent's accounts at the child's API server.
#[derive(Debug, Clone)]
pub struct Account {
    upstream: Arc<Upstream>,
    bearer: Bearer,
}

impl Account {
    /// An account with this token.
    pub fn new(upstream: Arc<Upstream>, bearer: Bearer) -> Self {
        Self { upstream, bearer }
    }

    /// Another account at the same server.
    #[must_use]
    pub fn with_token(&self, token: Secret) -> Self {
        Self { upstream: Arc::clone(&self.upstream), bearer: Bearer::Token(token) }
    }

    /// GET, as JSON.
    ///
    /// # Errors
    /// No or another answer.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.json(Method::GET, path, None).await
    }

    /// POST, as JSON.
    ///
    /// # Errors
    /// No or another answer.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, AskError> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// POST as a person, as JSON: what the child says to that person, not to this account.
    ///
    /// # Errors
    /// No or another answer.
    pub(crate) async fn post_as<T: DeserializeOwned>(
        &self,
        who: &Identity,
        path: &str,
        body: &Value,
    ) -> Result<T, AskError> {
        let asked = async {
            let token = self.token().await?;
            let json = HeaderValue::from_static("application/json");
            let headers =
                HeaderMap::from_iter([(header::ACCEPT, json.clone()), (header::CONTENT_TYPE, json)]);
            let uri = path.parse().map_err(|error| unusable(path, error))?;
            let inbound = Inbound { method: &Method::POST, uri: &uri, headers: &headers };
            let request = impersonate::plain(who, &token, inbound, whole(body.to_string().into()))
                .map_err(|error| unusable(path, error))?;
            answered(path, self.upstream.forward(request).await?).await
        };
        let answer = timeout(OWN_TIMEOUT, asked)
            .await
            .unwrap_or_else(|_| Err(AskError::Slow { path: path.to_owned() }))?;
        serde_json::from_slice(&answer).map_err(|error| unusable(path, error))
    }

    /// PUT, as JSON.
    ///
    /// # Errors
    /// No or another answer.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, AskError> {
        self.json(Method::PUT, path, Some(body)).await
    }

    /// GET of a health path: whether it says `ok`.
    ///
    /// # Errors
    /// No or another answer.
    pub async fn healthy(&self, path: &str) -> Result<bool, AskError> {
        Ok(self.ask(Method::GET, path, None).await?.as_ref() == b"ok")
    }

    /// GET of a list, of which only the number of its items is wanted: the server sends a row for each (`Table`,
    /// apimachinery `meta/v1/types.go`), not the objects, some 250 bytes instead of some 10 KiB.
    ///
    /// # Errors
    /// No or another answer.
    pub(crate) async fn count(&self, path: &str) -> Result<usize, AskError> {
        const TABLE: &str = "application/json;as=Table;g=meta.k8s.io;v=v1";
        #[derive(serde::Deserialize)]
        struct Table {
            #[serde(default)]
            rows: Vec<serde::de::IgnoredAny>,
        }
        let asked = async {
            let mut request = self.request(Method::GET, path, None).await?;
            request.0.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(TABLE));
            answered(path, self.upstream.own(request).await?).await
        };
        let answer = timeout(OWN_TIMEOUT, asked)
            .await
            .unwrap_or_else(|_| Err(AskError::Slow { path: path.to_owned() }))?;
        let table: Table = serde_json::from_slice(&answer).map_err(|error| unusable(path, error))?;
        Ok(table.rows.len())
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, AskError> {
        let answer = self.ask(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(|error| unusable(path, error))
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes, AskError> {
        timeout(OWN_TIMEOUT, self.ask_unhurried(method, path, body))
            .await
            .unwrap_or_else(|_| Err(AskError::Slow { path: path.to_owned() }))
    }

    async fn ask_unhurried(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Bytes, AskError> {
        let request = self.request(method, path, body).await?;
        answered(path, self.upstream.own(request).await?).await
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<OwnRequest, AskError> {
        let token = self.token().await?;
        own(method, path, &token, body).map_err(|why| unusable(path, why))
    }

    async fn token(&self) -> Result<Secret, AskError> {
        match &self.bearer {
            Bearer::Token(token) => Ok(token.clone()),
            Bearer::File(path) => {
                let error = |error| AskError::Token { path: path.display().to_string(), error };
                Ok(Secret::from(tokio::fs::read_to_string(path).await.map_err(error)?))
            }
        }
    }
}

async fn answered(path: &str, answer: Response<Body>) -> Result<Bytes, AskError> {
    let code = answer.status();
    let body = bounded(answer.into_body(), OWN_ANSWER).await.map_err(|error| unusable(path, error))?;
    if code.is_success() {
        return Ok(body);
    }
    Err(AskError::Status { path: path.to_owned(), code, message: message_of(&body) })
}

fn own(method: Method, path: &str, token: &Secret, body: Option<&Value>) -> Result<OwnRequest, http::Error> {
    let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.reveal().trim()))?;
    bearer.set_sensitive(true);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, bearer)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("towline-agent/", env!("CARGO_PKG_VERSION")));
    let bytes = match body {
        Some(body) => {
            request = request.header(header::CONTENT_TYPE, "application/json");
            Bytes::from(body.to_string())
        }
        None => Bytes::new(),
    };
    request.body(whole(bytes)).map(OwnRequest)
}

fn whole(bytes: Bytes) -> Body {
    Body::new(Full::new(bytes).map_err(|never| match never {}))
}

fn unusable(path: &str, why: impl ToString) -> AskError {
    AskError::Unusable { path: path.to_owned(), why: why.to_string() }
}

/// The message of a `Status`, or the beginning of whatever else there is, fit for a log.
pub(crate) fn message_of(body: &[u8]) -> String {
    let status: Option<Value> = serde_json::from_slice(body).ok();
    let message = status.as_ref().and_then(|status| status.get("message")).and_then(Value::as_str);
    let text = message.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
    api::status::printable(&text, 256)
}
