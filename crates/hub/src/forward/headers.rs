//! Which headers cross. Towards a child: an allow-list, with the identity written last, so that nothing a
//! caller sends can become a right. Back to the caller: all but what a hostile child could use against the
//! hub, the parent or a browser that holds the hub's cookies. Pure.

use std::net::IpAddr;

use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH,
    CONTENT_TYPE, Entry, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LOCATION,
    ORIGIN, RANGE, RETRY_AFTER, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, USER_AGENT, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use api::identity::IDENTITY_HEADER;

use crate::authn::hyphenated;

/// Header with which an agent marks an answer of its own; it stays inside the tunnel.
pub const AGENT_ERROR: HeaderName = HeaderName::from_static(tunnel_proto::names::HEADER_AGENT_ERROR);
/// Header that ties the audit logs of parent, hub and child together.
pub const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const IDENTITY: HeaderName = HeaderName::from_static(IDENTITY_HEADER);
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// client-go's way to pass a bearer token where no header can be set (apiserver `request/websocket`).
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
/// Longest `Retry-After` in seconds that a child can make a client wait.
const MAX_RETRY_AFTER: u32 = 300;
/// Longest audit id; Kubernetes' own are UUIDs.
const MAX_AUDIT_ID: usize = 64;

/// End-to-end request headers that a Kubernetes API server understands. `Host`, `Content-Length`,
/// `Transfer-Encoding`, `Expect` and `TE` belong to each hop; whatever names a caller is not among them.
const REQUEST: [HeaderName; 15] = [
    ACCEPT,
    ACCEPT_ENCODING,
    ACCEPT_LANGUAGE,
    CACHE_CONTROL,
    CONTENT_ENCODING,
    CONTENT_TYPE,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    RANGE,
    USER_AGENT,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// What an upgrade needs on top; the protocols are filtered. A watch over WebSocket is refused without an `Origin`,
/// whatever it says (`checkOrigin` of golang.org/x/net/websocket, which apiserver `endpoints/handlers/watch.go` uses).
const UPGRADE: [HeaderName; 5] =
    [ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_EXTENSIONS, STREAM_PROTOCOL];

/// Response headers that do not cross: of one hop, or a child's hand on something that is not its own.
const DROPPED: [&str; 21] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-authentication-info",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "set-cookie",
    "set-cookie2",
    "clear-site-data",
    "refresh",
    "strict-transport-security",
    "alt-svc",
    "service-worker-allowed",
    "public-key-pins",
    "expect-ct",
    "x-forwarded-for",
    "forwarded",
];
const DROPPED_PREFIXES: [&str; 5] = ["access-control-", "x-remote-", "impersonate-", "towline-", "proxy-"];

/// The headers of a request to a child, built from nothing.
pub fn request(
    inbound: &HeaderMap,
    identity: HeaderValue,
    audit_id: HeaderValue,
    client: IpAddr,
) -> HeaderMap {
    let mut outbound = HeaderMap::with_capacity(REQUEST.len());
    copy(&REQUEST, inbound, &mut outbound);
    outbound.insert(AUDIT_ID, audit_id);
    if let Ok(client) = HeaderValue::try_from(client.to_string()) {
        outbound.insert(FORWARDED_FOR, client);
    }
    // Last, so that nothing before it can take its place.
    outbound.insert(IDENTITY, identity);
    outbound
}

/// Adds what an upgrade needs. A caller's token in the list of protocols stays behind.
pub fn add_upgrade(inbound: &HeaderMap, outbound: &mut HeaderMap) {
    copy(&UPGRADE, inbound, outbound);
    let lines = inbound.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|line| line.to_str().ok());
    let offered: Vec<_> = lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|protocol| !protocol.is_empty() && !is_token(protocol))
        .collect();
    if !offered.is_empty()
        && let Ok(value) = HeaderValue::try_from(offered.join(", "))
    {
        outbound.insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
}

/// Compared without case: what is no token to a kube-apiserver is still one to whoever reads its logs.
fn is_token(protocol: &str) -> bool {
    let prefix = protocol.as_bytes().get(..TOKEN_PROTOCOL.len());
    prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(TOKEN_PROTOCOL.as_bytes()))
}

fn copy(names: &[HeaderName], from: &HeaderMap, to: &mut HeaderMap) {
    for name in names {
        for value in from.get_all(name) {
            to.append(name.clone(), value.clone());
        }
    }
}

/// The audit id of a request: the parent's, if it is one.
pub fn audit_id(inbound: &HeaderMap) -> Option<HeaderValue> {
    let id = inbound.get(AUDIT_ID)?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    (1..=MAX_AUDIT_ID).contains(&id.len()).then_some(id).filter(|id| id.as_bytes().iter().all(plain)).cloned()
}

/// The address of the person or tool: the last one in `X-Forwarded-For`, which the parent has appended for
/// what it saw itself; those before it are whatever the client wrote.
pub fn client_address(inbound: &HeaderMap, peer: IpAddr) -> IpAddr {
    let last = inbound.get_all(FORWARDED_FOR).iter().next_back();
    let last = last.and_then(|line| line.to_str().ok()).and_then(|line| line.rsplit(',').next());
    last.and_then(|address| address.trim().parse().ok()).unwrap_or(peer)
}

/// Makes a child's answer fit to be passed on. Tells whether its agent made it.
///
/// # Errors
/// Why it cannot be passed on at all; for the caller's eyes.
pub fn sanitize_response(status: StatusCode, headers: &mut HeaderMap) -> Result<bool, String> {
    if !(200..=599).contains(&status.as_u16()) {
        return Err(format!("status {} answers no request", status.as_u16()));
    }
    if status.is_redirection() && headers.contains_key(LOCATION) {
        return Err(format!(
            "it redirects ({}) to another address, which the parent's API server would refuse to pass on",
            status.as_u16()
        ));
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if lengths.next().is_some() && lengths.next().is_some() {
        return Err("it has more than one length".to_owned());
    }
    let by_agent = headers.contains_key(AGENT_ERROR);
    let named: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let dropped = |name: &&HeaderName| {
        let folded = hyphenated(name);
        DROPPED.contains(&folded.as_ref())
            || DROPPED_PREFIXES.iter().any(|prefix| folded.starts_with(prefix))
            || named.iter().any(|named| named == name.as_str())
    };
    let doomed: Vec<HeaderName> = headers.keys().filter(dropped).cloned().collect();
    for name in doomed {
        if let Entry::Occupied(entry) = headers.entry(name) {
            entry.remove_entry_mult();
        }
    }
    cap_retry_after(headers);
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT) {
        headers.remove(CONTENT_LENGTH);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(by_agent)
}

/// A child must not put its callers to sleep; a date instead of a number of seconds is none of Kubernetes'.
fn cap_retry_after(headers: &mut HeaderMap) {
    let Some(value) = headers.remove(RETRY_AFTER) else { return };
    let text = value.to_str().unwrap_or_default();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return;
    }
    // Too many digits to be a number are a long time, too.
    let seconds = text.parse::<u32>().unwrap_or(MAX_RETRY_AFTER).min(MAX_RETRY_AFTER);
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn outbound(inbound: &HeaderMap) -> HeaderMap {
        let mut headers = request(
            inbound,
            HeaderValue::from_static("ALICE"),
            HeaderValue::from_static("1-2-3"),
            [10, 0, 0, 1].into(),
        );
        add_upgrade(inbound, &mut headers);
        headers
    }

    proptest! {
        #[test]
        fn nothing_a_caller_sends_can_become_an_identity_or_a_hop(
            lines in proptest::collection::vec((
                prop_oneof![
                    "(?i)(impersonate|x-remote|towline|x-forwarded|proxy|sec-websocket|accept|if)[-_][a-z]{1,12}",
                    "(?i)(authorization|cookie|connection|te|trailer|transfer-encoding|upgrade|host|forwarded|keep-alive|expect|content-length|towline-identity|audit-id|accept|user-agent)",
                    "[a-z][a-z0-9_-]{0,12}",
                ],
                "[ -~]{0,30}",
            ), 0..24),
        ) {
            let mut inbound = HeaderMap::new();
            for (name, value) in &lines {
                if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
                    inbound.append(name, value);
                }
            }
            let outbound = outbound(&inbound);
            prop_assert_eq!(outbound.get_all(IDENTITY).iter().collect::<Vec<_>>(), vec!["ALICE"]);
            prop_assert_eq!(outbound.get_all(AUDIT_ID).iter().count(), 1);
            prop_assert_eq!(outbound.get_all(FORWARDED_FOR).iter().collect::<Vec<_>>(), vec!["10.0.0.1"]);
            let ours = [IDENTITY, AUDIT_ID, FORWARDED_FOR, SEC_WEBSOCKET_PROTOCOL];
            for name in outbound.keys() {
                prop_assert!(REQUEST.contains(name) || UPGRADE.contains(name) || ours.contains(name), "{}", name);
            }
        }

        #[test]
        fn no_child_reaches_past_its_answer(
            lines in proptest::collection::vec((
                prop_oneof![
                    "(?i)(access-control|x-remote|impersonate|towline|proxy)[-_][a-z]{1,10}",
                    "(?i)(set-cookie|refresh|alt-svc|connection|upgrade|te|trailer|keep-alive|clear-site-data|x-content-type-options)",
                    "[a-z][a-z0-9-]{0,12}",
                ],
                "[a-z, -]{0,20}",
            ), 0..24),
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &lines {
                if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
                    headers.append(name, value);
                }
            }
            if sanitize_response(StatusCode::OK, &mut headers).is_ok() {
                for name in headers.keys() {
                    let folded = name.as_str().replace('_', "-");
                    prop_assert!(!DROPPED.contains(&folded.as_str()), "{}", name);
                    prop_assert!(!DROPPED_PREFIXES.iter().any(|prefix| folded.starts_with(prefix)), "{}", name);
                }
                prop_assert_eq!(headers.get_all(X_CONTENT_TYPE_OPTIONS).iter().collect::<Vec<_>>(), vec!["nosniff"]);
            }
        }
    }

    #[test]
    fn a_token_among_the_protocols_stays_behind() {
        let inbound = map(&[
            ("Sec-WebSocket-Protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0"),
            ("Sec-WebSocket-Protocol", "v4.channel.k8s.io, Base64URL.bearer.authorization.k8s.io.c2VjcmV0"),
            ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
            ("X-Stream-Protocol-Version", "v3.channel.k8s.io"),
            ("Sec-WebSocket-Key", "k"),
        ]);
        let outbound = outbound(&inbound);
        assert_eq!(outbound[SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io, v4.channel.k8s.io");
        assert_eq!(outbound.get_all(STREAM_PROTOCOL).iter().count(), 2);
        assert!(!format!("{outbound:?}").contains("c2VjcmV0"));
    }

    #[test]
    fn an_upgrade_has_the_origin_that_a_watch_over_websocket_needs_and_a_plain_request_has_none() {
        let inbound = map(&[("Origin", "https://console.example.com")]);
        assert_eq!(outbound(&inbound)[ORIGIN], "https://console.example.com");
        let plain = request(
            &inbound,
            HeaderValue::from_static("x"),
            HeaderValue::from_static("y"),
            [10, 0, 0, 1].into(),
        );
        assert!(!plain.contains_key(ORIGIN));
    }

    #[test]
    fn what_kubernetes_answers_goes_through_unchanged() {
        let mut headers = map(&[
            ("Content-Type", "application/json"),
            ("Content-Encoding", "gzip"),
            ("Retry-After", "7"),
            ("Warning", "299 - \"deprecated\""),
            ("X-Kubernetes-Pf-Flowschema-Uid", "a"),
            ("Content-Length", "5"),
        ]);
        let before = headers.clone();
        assert_eq!(sanitize_response(StatusCode::TOO_MANY_REQUESTS, &mut headers), Ok(false));
        headers.remove(X_CONTENT_TYPE_OPTIONS);
        assert_eq!(headers, before);
    }

    #[test]
    fn headers_that_a_child_must_not_set_are_gone() {
        let mut headers = map(&[
            ("Connection", "X-Hop, close"),
            ("X-Hop", "1"),
            ("Set-Cookie", "a=b"),
            ("Set-Cookie", "c=d"),
            ("Access-Control-Allow-Origin", "*"),
            ("X_Remote_User", "root"),
            ("Towline-Agent-Error", "1"),
            ("Retry-After", "99999999999999"),
        ]);
        assert_eq!(sanitize_response(StatusCode::BAD_GATEWAY, &mut headers), Ok(true));
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(headers[RETRY_AFTER], "300");
        let mut dated = map(&[("Retry-After", "Fri, 31 Dec 2100 23:59:59 GMT")]);
        sanitize_response(StatusCode::OK, &mut dated).unwrap();
        assert!(!dated.contains_key(RETRY_AFTER));
    }

    #[test]
    fn answers_that_cannot_be_passed_on_are_refused() {
        let sanitize = |code: u16, lines: &[(&str, &str)]| {
            sanitize_response(StatusCode::from_u16(code).unwrap(), &mut map(lines)).is_ok()
        };
        assert!(!sanitize(302, &[("Location", "http://169.254.169.254/")]));
        assert!(!sanitize(301, &[("Location", "/api/v1/")]));
        assert!(sanitize(304, &[]));
        assert!(!sanitize(101, &[]));
        assert!(!sanitize(999, &[]));
        assert!(!sanitize(200, &[("Content-Length", "1"), ("Content-Length", "2")]));
    }

    #[test]
    fn the_client_is_whom_the_parent_saw() {
        let address = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("X-Forwarded-For", *line)).collect();
            client_address(&map(&lines), [192, 0, 2, 1].into()).to_string()
        };
        assert_eq!(address(&["1.2.3.4, 10.9.8.7"]), "10.9.8.7");
        assert_eq!(address(&["127.0.0.1", "2001:db8::1"]), "2001:db8::1");
        assert_eq!(address(&["evil"]), "192.0.2.1");
        assert_eq!(address(&[]), "192.0.2.1");
    }

    #[test]
    fn an_audit_id_is_kept_if_it_is_one() {
        let id = |text: &str| audit_id(&map(&[("Audit-Id", text)])).is_some();
        assert!(id("6f0a1b1e-0000-4000-8000-000000000000"));
        assert!(!id("") && !id("a b") && !id(&"a".repeat(65)));
    }
}
