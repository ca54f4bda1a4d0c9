//! The HTTP/1.1 upgrade that opens a tunnel (RFC 6455 section 4), both halves. Pure: no socket, no clock.
//! The hub answers only what it fully understands, the agent accepts only the answer to its own question;
//! neither ever agrees to an extension, so there is no compression in a tunnel.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
    },
    request,
};
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};

use crate::names::SUBPROTOCOL;

/// Why a hub does not open a tunnel for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeRefusal {
    /// Another method than GET.
    #[error("a tunnel is opened with GET")]
    Method,
    /// Not HTTP/1.1, where alone an upgrade exists.
    #[error("a tunnel is opened over HTTP/1.1; something between has changed the request")]
    HttpVersion,
    /// No, other or several `Connection`/`Upgrade`.
    #[error("the request does not ask for an upgrade to websocket; does a proxy between drop the headers?")]
    NotWebSocket,
    /// Another version of WebSocket.
    #[error("only WebSocket version 13 is spoken here")]
    WebSocketVersion,
    /// No, several or no valid keys.
    #[error("sec-websocket-key must be there once, 16 bytes in base64")]
    Key,
    /// The request has a body.
    #[error("a request that opens a tunnel has no body")]
    Body,
    /// Our subprotocol was not offered.
    #[error("the request does not offer a subprotocol of this hub; supported: {SUBPROTOCOL}")]
    Subprotocol,
}

impl UpgradeRefusal {
    /// The status to refuse with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::WebSocketVersion => StatusCode::UPGRADE_REQUIRED,
            Self::HttpVersion | Self::NotWebSocket | Self::Key | Self::Body | Self::Subprotocol => {
                StatusCode::BAD_REQUEST
            }
        }
    }

    /// The header that belongs to the status, when one does.
    pub fn header(self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::Method => Some((http::header::ALLOW, HeaderValue::from_static("GET"))),
            Self::WebSocketVersion => Some((SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))),
            Self::HttpVersion | Self::NotWebSocket | Self::Key | Self::Body | Self::Subprotocol => None,
        }
    }
}

/// Why an agent does not take an answer for an opened tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeAnswerError {
    /// Not 101. A redirect is among these: an agent follows none.
    #[error("the hub answered {0} instead of 101")]
    Status(StatusCode),
    /// 101, but to something else.
    #[error("the answer is not an upgrade to websocket; does a proxy between answer for the hub?")]
    NotWebSocket,
    /// The accept value does not belong to the key.
    #[error("the answer does not belong to this request: sec-websocket-accept is missing or wrong")]
    Accept,
    /// Another subprotocol.
    #[error("the hub did not choose the subprotocol {SUBPROTOCOL}")]
    Subprotocol,
    /// An extension nobody asked for.
    #[error("the answer turns on a WebSocket extension, but none was offered")]
    Extension,
}

/// Checks a request to open a tunnel and gives the answer to send: 101 with its headers, without a body.
///
/// # Errors
/// What to refuse it with.
pub fn upgrade_response(request: &request::Parts) -> Result<Response<()>, UpgradeRefusal> {
    let headers = &request.headers;
    if request.method != Method::GET {
        return Err(UpgradeRefusal::Method);
    }
    if request.version != Version::HTTP_11 {
        return Err(UpgradeRefusal::HttpVersion);
    }
    if !is_websocket_upgrade(headers) {
        return Err(UpgradeRefusal::NotWebSocket);
    }
    // A body would be read as the first WebSocket frames.
    let empty = headers.get_all(CONTENT_LENGTH).iter().all(|length| length == "0");
    if !empty || headers.contains_key(TRANSFER_ENCODING) {
        return Err(UpgradeRefusal::Body);
    }
    if single(headers, &SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(UpgradeRefusal::WebSocketVersion);
    }
    let key = single(headers, &SEC_WEBSOCKET_KEY).ok_or(UpgradeRefusal::Key)?;
    if STANDARD.decode(key).map_or(true, |bytes| bytes.len() != 16) {
        return Err(UpgradeRefusal::Key);
    }
    // Case matters in subprotocols (RFC 6455 section 11.3.4 compares them as they are).
    if !tokens(headers, &SEC_WEBSOCKET_PROTOCOL).any(|offered| offered == SUBPROTOCOL) {
        return Err(UpgradeRefusal::Subprotocol);
    }

    let accept = derive_accept_key(key.as_bytes());
    let accept = HeaderValue::from_str(&accept).map_err(|_| UpgradeRefusal::Key)?;
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    Ok(answer)
}

/// A fresh key for [`upgrade_headers`]: 16 random bytes in base64.
pub fn new_key() -> String {
    generate_key()
}

/// The headers with which an agent asks for a tunnel, besides `Host` and its credential.
///
/// # Errors
/// When `key` is not a header value; one of [`new_key`] always is.
pub fn upgrade_headers(key: &str) -> Result<HeaderMap, http::header::InvalidHeaderValue> {
    Ok(HeaderMap::from_iter([
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        (SEC_WEBSOCKET_KEY, HeaderValue::from_str(key)?),
        (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL)),
    ]))
}

/// Checks the hub's answer to a request with the headers of [`upgrade_headers`].
///
/// # Errors
/// Why the connection is not a tunnel.
pub fn check_upgrade_answer(
    key: &str,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<(), UpgradeAnswerError> {
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpgradeAnswerError::Status(status));
    }
    if !is_websocket_upgrade(headers) {
        return Err(UpgradeAnswerError::NotWebSocket);
    }
    let accept = derive_accept_key(key.as_bytes());
    if single(headers, &SEC_WEBSOCKET_ACCEPT).is_none_or(|value| value != accept) {
        return Err(UpgradeAnswerError::Accept);
    }
    if single(headers, &SEC_WEBSOCKET_PROTOCOL).is_none_or(|value| value != SUBPROTOCOL) {
        return Err(UpgradeAnswerError::Subprotocol);
    }
    if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        return Err(UpgradeAnswerError::Extension);
    }
    Ok(())
}

/// `Connection` may list several options, and proxies add some; `Upgrade` must name websocket alone.
fn is_websocket_upgrade(headers: &HeaderMap) -> bool {
    tokens(headers, &CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"))
        && single(headers, &UPGRADE).is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket"))
}

/// The value of a header that is there exactly once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// The comma-separated values of a header, from all its lines.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    /// The key and accept value of RFC 6455 section 1.3.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn request() -> request::Parts {
        let mut request = Request::get("/sockets/c-1/attach").body(()).unwrap();
        *request.headers_mut() = upgrade_headers(KEY).unwrap();
        request.into_parts().0
    }

    #[test]
    fn each_side_takes_what_the_other_sends() {
        let key = new_key();
        let mut request = request();
        request.headers = upgrade_headers(&key).unwrap();
        let answer = upgrade_response(&request).unwrap();
        assert_eq!(check_upgrade_answer(&key, answer.status(), answer.headers()), Ok(()));
        let other = check_upgrade_answer(KEY, answer.status(), answer.headers());
        assert_eq!(other, Err(UpgradeAnswerError::Accept));
    }

    #[test]
    fn the_answer_has_these_headers_and_no_other() {
        let answer = upgrade_response(&request()).unwrap();
        let mut headers: Vec<_> =
            answer.headers().iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        headers.sort_unstable();
        assert_eq!(
            headers,
            [
                ("connection", "Upgrade"),
                ("sec-websocket-accept", ACCEPT),
                ("sec-websocket-protocol", "v1.tunnel.towline.io"),
                ("upgrade", "websocket"),
            ]
        );
    }

    #[test]
    fn only_a_whole_and_clear_request_opens_a_tunnel() {
        type Change = fn(&mut request::Parts);
        fn set(request: &mut request::Parts, name: HeaderName, value: &'static str) {
            request.headers.insert(name, HeaderValue::from_static(value));
        }
        fn add(request: &mut request::Parts, name: HeaderName, value: &'static str) {
            request.headers.append(name, HeaderValue::from_static(value));
        }
        let allowed: [Change; 4] = [
            |r| set(r, CONNECTION, "keep-alive, upgrade"),
            |r| set(r, UPGRADE, "WebSocket"),
            |r| set(r, SEC_WEBSOCKET_PROTOCOL, "v9.tunnel.towline.io, v1.tunnel.towline.io"),
            |r| set(r, SEC_WEBSOCKET_EXTENSIONS, "permessage-deflate"),
        ];
        for (index, change) in allowed.into_iter().enumerate() {
            let mut request = request();
            change(&mut request);
            let answer = upgrade_response(&request).unwrap();
            assert!(!answer.headers().contains_key(SEC_WEBSOCKET_EXTENSIONS), "{index}");
        }
        use UpgradeRefusal as R;
        let refused: [(Change, R); 20] = [
            (|r| r.method = Method::POST, R::Method),
            (|r| r.version = Version::HTTP_2, R::HttpVersion),
            (|r| r.version = Version::HTTP_10, R::HttpVersion),
            (|r| drop(r.headers.remove(UPGRADE)), R::NotWebSocket),
            (|r| drop(r.headers.remove(CONNECTION)), R::NotWebSocket),
            (|r| set(r, CONNECTION, "close"), R::NotWebSocket),
            (|r| set(r, UPGRADE, "SPDY/3.1"), R::NotWebSocket),
            (|r| set(r, UPGRADE, "websocket, h2c"), R::NotWebSocket),
            (|r| add(r, UPGRADE, "h2c"), R::NotWebSocket),
            (|r| set(r, SEC_WEBSOCKET_VERSION, "12"), R::WebSocketVersion),
            (|r| add(r, SEC_WEBSOCKET_VERSION, "13"), R::WebSocketVersion),
            (|r| drop(r.headers.remove(SEC_WEBSOCKET_KEY)), R::Key),
            (|r| add(r, SEC_WEBSOCKET_KEY, KEY), R::Key),
            (|r| set(r, SEC_WEBSOCKET_KEY, "AAAA"), R::Key),
            (|r| set(r, SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ!!"), R::Key),
            (|r| set(r, CONTENT_LENGTH, "5"), R::Body),
            (|r| set(r, TRANSFER_ENCODING, "chunked"), R::Body),
            (|r| drop(r.headers.remove(SEC_WEBSOCKET_PROTOCOL)), R::Subprotocol),
            (|r| set(r, SEC_WEBSOCKET_PROTOCOL, "v2.tunnel.towline.io"), R::Subprotocol),
            (|r| set(r, SEC_WEBSOCKET_PROTOCOL, "V1.TUNNEL.TOWLINE.IO"), R::Subprotocol),
        ];
        for (index, (change, refusal)) in refused.into_iter().enumerate() {
            let mut request = request();
            change(&mut request);
            assert_eq!(upgrade_response(&request).unwrap_err(), refusal, "{index}");
        }
    }

    #[test]
    fn a_refusal_has_the_status_and_header_that_rfc_6455_asks_for() {
        assert_eq!(UpgradeRefusal::WebSocketVersion.status(), 426);
        let (name, value) = UpgradeRefusal::WebSocketVersion.header().unwrap();
        assert_eq!((name, value.to_str().unwrap()), (SEC_WEBSOCKET_VERSION, "13"));
        assert_eq!(UpgradeRefusal::Subprotocol.status(), 400);
        assert!(UpgradeRefusal::Subprotocol.to_string().contains("supported: v1.tunnel.towline.io"));
    }

    #[test]
    fn an_agent_takes_only_the_answer_to_its_own_question() {
        use UpgradeAnswerError as E;
        let good = upgrade_response(&request()).unwrap();
        let check = |status: u16, change: fn(&mut HeaderMap)| {
            let mut headers = good.headers().clone();
            change(&mut headers);
            check_upgrade_answer(KEY, StatusCode::from_u16(status).unwrap(), &headers)
        };
        assert_eq!(check(101, |_| {}), Ok(()));
        assert_eq!(check(200, |_| {}), Err(E::Status(StatusCode::OK)));
        assert_eq!(check(307, |_| {}), Err(E::Status(StatusCode::TEMPORARY_REDIRECT)));
        assert_eq!(check(101, |h| drop(h.remove(UPGRADE))), Err(E::NotWebSocket));
        assert_eq!(
            check(101, |h| drop(h.insert(UPGRADE, HeaderValue::from_static("h2c")))),
            Err(E::NotWebSocket)
        );
        assert_eq!(check(101, |h| drop(h.remove(SEC_WEBSOCKET_ACCEPT))), Err(E::Accept));
        let twice = check(101, |h| {
            h.append(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static(ACCEPT));
        });
        assert_eq!(twice, Err(E::Accept));
        assert_eq!(check(101, |h| drop(h.remove(SEC_WEBSOCKET_PROTOCOL))), Err(E::Subprotocol));
        assert_eq!(
            check(101, |h| drop(
                h.insert(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static("permessage-deflate"))
            )),
            Err(E::Extension)
        );
    }
}
