//! `metav1.Status`: the one form in which hub and agent refuse a request (apimachinery `meta/v1/types.go`).

use http::StatusCode;
use serde::{Deserialize, Serialize};

/// Media type of every refusal.
pub const CONTENT_TYPE: &str = "application/json";
/// Longest message. What other sides said may be quoted in it, so it must have an end.
pub const MAX_MESSAGE: usize = 2048;

/// Reasons of `metav1.StatusReason` that we give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// 400
    BadRequest,
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 406
    NotAcceptable,
    /// 409
    AlreadyExists,
    /// 409
    Conflict,
    /// 410
    Expired,
    /// 413
    RequestEntityTooLarge,
    /// 415
    UnsupportedMediaType,
    /// 422
    Invalid,
    /// 429
    TooManyRequests,
    /// 500
    InternalError,
    /// 503
    ServiceUnavailable,
    /// 504
    Timeout,
    /// 502 and others: apimachinery has no constant for them; kubectl prints the message alone.
    #[serde(rename = "")]
    Unknown,
}

/// A refusal: what happened and what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status code.
    pub code: StatusCode,
    /// The machine's reason.
    pub reason: Reason,
    /// The person's: what happened, and the next step.
    pub message: String,
    /// Seconds for `Retry-After`. client-go retries any 5xx that has it, so only what passes by itself may.
    pub retry_after: Option<u32>,
}

impl Status {
    /// A status without `Retry-After`. Control characters in the message are replaced and its length is cut.
    pub fn new(code: StatusCode, reason: Reason, message: impl Into<String>) -> Self {
        Self { code, reason, message: printable(&message.into(), MAX_MESSAGE), retry_after: None }
    }

    /// The same, to be tried again after so many seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The body.
    pub fn to_json(&self) -> Vec<u8> {
        let mut body = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        if let (Some(seconds), Some(body)) = (self.retry_after, body.as_object_mut()) {
            body.insert("details".to_owned(), serde_json::json!({ "retryAfterSeconds": seconds }));
        }
        body.to_string().into_bytes()
    }
}

/// Text from the other side, made fit for a terminal or a log: cut at `max` bytes, and everything replaced that acts
/// without being seen: control characters, line and paragraph separators, what turns the direction of text, what has
/// no width, and tags. Two names that look the same are then the same.
pub fn printable(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for character in text.chars() {
        let shown = match character {
            '\n' => ' ',
            unseen if acts_unseen(unseen) => '\u{fffd}',
            other if other.is_control() => '\u{fffd}',
            other => other,
        };
        if out.len() + shown.len_utf8() > max {
            break;
        }
        out.push(shown);
    }
    out
}

/// Line and paragraph separators, bidirectional controls, and all that has the property
/// `Default_Ignorable_Code_Point` (Unicode 16, `DerivedCoreProperties.txt`): fonts draw nothing for it.
fn acts_unseen(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_what_kubectl_reads() {
        let status =
            Status::new(StatusCode::SERVICE_UNAVAILABLE, Reason::ServiceUnavailable, "gone").retry_after(1);
        let body: serde_json::Value = serde_json::from_slice(&status.to_json()).unwrap();
        assert_eq!(body["kind"], "Status");
        assert_eq!(body["reason"], "ServiceUnavailable");
        assert_eq!(body["code"], 503);
        assert_eq!(body["details"]["retryAfterSeconds"], 1);
    }

    #[test]
    fn escapes_never_reach_a_terminal() {
        let shown = printable("\u{1b}]0;x\u{7}a\rb\u{202e}", 100);
        assert!(!shown.chars().any(char::is_control) && !shown.contains('\u{202e}'));
        assert_eq!(printable("äää", 3).len(), 2);
        for unseen in [
            "\u{9b}2J",
            "\u{7f}",
            "\r",
            "\u{200b}",
            "\u{2028}",
            "\u{2066}",
            "\u{feff}",
            "\u{e0041}",
            "\u{8}",
            "\u{90}",
        ] {
            let shown = printable(unseen, 100);
            assert!(shown.starts_with('\u{fffd}'), "{unseen:?} {shown:?}");
        }
        assert_eq!(printable("edge-1 ä 北京 😀", 100), "edge-1 ä 北京 😀");
    }

    #[test]
    fn two_names_that_look_the_same_are_the_same() {
        for unseen in [
            '\u{200e}',
            '\u{200f}',
            '\u{61c}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2066}',
            '\u{2069}',
            '\u{200b}',
            '\u{200c}',
            '\u{200d}',
            '\u{2060}',
            '\u{feff}',
            '\u{ad}',
            '\u{34f}',
            '\u{115f}',
            '\u{17b4}',
            '\u{180e}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{ffa0}',
            '\u{fffa}',
            '\u{1d173}',
            '\u{e0020}',
            '\u{e0100}',
        ] {
            assert_eq!(printable(&format!("ed{unseen}ge"), 100), "ed\u{fffd}ge", "{unseen:?}");
        }
        // Arabic and Hebrew letters have a direction of their own; what they need no control for stays.
        for seen in ["עיר-1", "مدينة", "한국", "é", "a\u{301}"] {
            assert_eq!(printable(seen, 100), seen);
        }
    }
}
