//! One bounded question to an API server in its own words: a path in, status, time and JSON out. For commands that
//! look at what may be of any version, or broken: nothing here takes an answer for an error.
//!
//! Never unbounded: each answer is cut at [`MAX_ANSWER`], each question has a deadline.

use std::time::{Duration, Instant};

use api::status::{MAX_MESSAGE, printable};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use serde_json::Value;

/// Largest answer that is read: a list of some thousand objects, and no more memory than a command may take.
pub(crate) const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: StatusCode,
    /// When the answer was made, by the clock of whoever made it.
    pub(crate) date: Option<Timestamp>,
    /// How long it took.
    pub(crate) took: Duration,
    /// The body; null if it is no JSON.
    pub(crate) body: Value,
    /// The body as text.
    pub(crate) text: String,
}

impl Answer {
    /// Whether it is a yes.
    pub(crate) fn is_ok(&self) -> bool {
        self.status.is_success()
    }

    /// What the other side says, for a sentence.
    pub(crate) fn said(&self) -> String {
        let message = self.body["message"].as_str().filter(|message| !message.is_empty());
        let said = message.map_or_else(|| format!("HTTP {}", self.status.as_u16()), str::to_owned);
        printable(said.trim_end(), MAX_MESSAGE)
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// Not in time.
    #[error("no answer in {} s", .0.as_secs())]
    Late(Duration),
    /// The connection, the credential, or a body that is too large.
    #[error("{0}")]
    Broken(String),
}

/// GET.
pub(crate) async fn get(client: &Client, path: &str, limit: Duration) -> Result<Answer, NoAnswer> {
    send(client, Method::GET, path, None, limit).await
}

/// POST of JSON.
pub(crate) async fn post(
    client: &Client,
    path: &str,
    body: &Value,
    limit: Duration,
) -> Result<Answer, NoAnswer> {
    send(client, Method::POST, path, Some(body), limit).await
}

/// Any method; JSON if there is a body.
pub(crate) async fn send(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
    limit: Duration,
) -> Result<Answer, NoAnswer> {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let mut request = Request::builder().method(method).uri(path).header(header::ACCEPT, "application/json");
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, kind);
    }
    let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let request = request.body(Body::from(bytes)).map_err(|error| NoAnswer::Broken(error.to_string()))?;
    finish(client, request, limit).await
}

/// A request made elsewhere.
pub(crate) async fn finish(
    client: &Client,
    request: Request<Body>,
    limit: Duration,
) -> Result<Answer, NoAnswer> {
    let started = Instant::now();
    let work = async {
        let response = client.send(request).await.map_err(|error| NoAnswer::Broken(innermost(&error)))?;
        let (head, body) = response.into_parts();
        let took = started.elapsed();
        // After a 101 the body is the stream of the upgrade, which has no end.
        let bytes = if head.status == StatusCode::SWITCHING_PROTOCOLS {
            Vec::new()
        } else {
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            body.map_err(|error| NoAnswer::Broken(error.to_string()))?.to_bytes().to_vec()
        };
        let date = head.headers.get(header::DATE).and_then(|date| date.to_str().ok()).and_then(date);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Answer { status: head.status, date, took, body, text })
    };
    tokio::time::timeout(limit, work).await.unwrap_or(Err(NoAnswer::Late(limit)))
}

/// The date of an HTTP header.
fn date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// The innermost cause of an error: the outer ones of a client are wrappers that repeat it.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    printable(&text, MAX_MESSAGE)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An answer for tests of what is made of answers.
    pub(crate) fn answer(status: u16, body: Value) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            date: None,
            took: Duration::from_millis(7),
            text: body.to_string(),
            body,
        }
    }

    #[test]
    fn the_date_of_an_answer_is_read() {
        assert_eq!(date("Thu, 01 Jan 1970 00:01:01 GMT"), Some(Timestamp::from_second(61).unwrap()));
        assert_eq!(date("yesterday"), None);
    }

    #[test]
    fn what_the_other_side_says_is_fit_for_a_terminal() {
        let hostile = answer(403, serde_json::json!({ "message": "\u{1b}[2Jno\n" }));
        assert!(!hostile.said().contains('\u{1b}') && hostile.said().ends_with("no"), "{:?}", hostile.said());
        assert_eq!(answer(502, Value::Null).said(), "HTTP 502");
    }
}
