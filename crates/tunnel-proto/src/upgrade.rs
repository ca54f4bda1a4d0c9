//! exec, attach and port-forward through a tunnel: an HTTP/1.1 upgrade becomes an extended CONNECT
//! (RFC 8441) and comes out as an upgrade again. Pure: heads only, no bytes. What is mapped here is an
//! allow-list; a header that is not named does not cross by itself.

use std::str::FromStr as _;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
    uri::PathAndQuery,
};
use hyper::ext::Protocol;

use crate::names::HEADER_METHOD;

/// The protocols that a Kubernetes API server upgrades to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpgradeProtocol {
    /// kubectl from 1.31 on, and browsers.
    WebSocket,
    /// kubectl before 1.31, and many client libraries.
    Spdy31,
}

/// The headers of the child's 101 that the client needs, and all that cross.
pub const ANSWER_HEADERS: [HeaderName; 4] = [
    SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_EXTENSIONS,
    // SPDY's counterpart of the subprotocol (k8s.io/apimachinery/pkg/util/httpstream).
    HeaderName::from_static("x-stream-protocol-version"),
];

/// Why an extended CONNECT cannot be turned into an upgrade request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectRefusal {
    /// A plain CONNECT asks for a connection to a host; there is no such thing in a tunnel.
    #[error("CONNECT without :protocol is not allowed in a tunnel")]
    PlainConnect,
    /// Another protocol.
    #[error("the only upgrades in a tunnel are websocket and spdy-3.1")]
    Protocol,
    /// No or another original method.
    #[error("{HEADER_METHOD} must be there once and be GET or POST")]
    Method,
}

impl UpgradeProtocol {
    /// Reads the value of an `Upgrade` header; anything but the two known names is none of ours.
    pub fn from_upgrade_header(value: &str) -> Option<Self> {
        [Self::WebSocket, Self::Spdy31]
            .into_iter()
            .find(|protocol| value.eq_ignore_ascii_case(protocol.as_upgrade_header()))
    }

    /// Reads the value of `:protocol`.
    pub fn from_connect_protocol(value: &str) -> Option<Self> {
        [Self::WebSocket, Self::Spdy31].into_iter().find(|protocol| value == protocol.as_connect_protocol())
    }

    /// As `Upgrade` header.
    pub fn as_upgrade_header(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Spdy31 => "SPDY/3.1",
        }
    }

    /// As `:protocol`. A slash is not allowed in a token, so SPDY has another name here.
    pub fn as_connect_protocol(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Spdy31 => "spdy-3.1",
        }
    }
}

/// The address of a request inside a tunnel: one of the two authorities of [`crate::names`], and the path
/// and query as they are.
///
/// # Errors
/// When the authority is none.
pub fn tunnel_uri(authority: &'static str, path: PathAndQuery) -> Result<Uri, http::Error> {
    Uri::builder().scheme("http").authority(authority).path_and_query(path).build()
}

/// Hub: the head of an extended CONNECT for an upgrade request with this method. `uri` comes from
/// [`tunnel_uri`]; the caller adds the headers that may cross.
pub fn connect_request<B>(protocol: UpgradeProtocol, method: &Method, uri: Uri, body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    request.extensions_mut().insert(Protocol::from_static(protocol.as_connect_protocol()));
    // A method is a token, and every token is a header value; for none of ours does this fail.
    if let Ok(method) = HeaderValue::from_str(method.as_str()) {
        request.headers_mut().insert(HEADER_METHOD, method);
    }
    request
}

/// Agent: the upgrade and the original method that a CONNECT stands for; `None` for any other method.
///
/// # Errors
/// When the CONNECT is plain, names another protocol, or another method than GET and POST: WebSocket
/// begins with GET (RFC 6455 section 4.1), client-go's SPDY with POST.
pub fn connect_target<B>(request: &Request<B>) -> Result<Option<(UpgradeProtocol, Method)>, ConnectRefusal> {
    if request.method() != Method::CONNECT {
        return Ok(None);
    }
    let protocol = request.extensions().get::<Protocol>().ok_or(ConnectRefusal::PlainConnect)?;
    let protocol =
        UpgradeProtocol::from_connect_protocol(protocol.as_str()).ok_or(ConnectRefusal::Protocol)?;
    let mut methods = request.headers().get_all(HEADER_METHOD).iter();
    let (Some(method), None) = (methods.next(), methods.next()) else {
        return Err(ConnectRefusal::Method);
    };
    let method = method.to_str().ok().and_then(|method| Method::from_str(method).ok());
    match method {
        Some(method) if method == Method::GET || method == Method::POST => Ok(Some((protocol, method))),
        _ => Err(ConnectRefusal::Method),
    }
}

/// Agent: the answer to a CONNECT after the child's 101 with these headers; `None` when the child switched
/// to something else than it was asked for. It is exactly 200, the only status on which the hub's HTTP
/// library hands out the bytes.
pub fn connect_answer<B>(protocol: UpgradeProtocol, child: &HeaderMap, body: B) -> Option<Response<B>> {
    let mut upgrades = child.get_all(UPGRADE).iter();
    let (Some(upgrade), None) = (upgrades.next(), upgrades.next()) else { return None };
    if UpgradeProtocol::from_upgrade_header(upgrade.to_str().ok()?) != Some(protocol) {
        return None;
    }
    let mut answer = Response::new(body);
    copy_answer_headers(child, answer.headers_mut());
    Some(answer)
}

/// Hub: the 101 for the client, from the agent's answer to the CONNECT.
pub fn switching_protocols<B>(protocol: UpgradeProtocol, agent: &HeaderMap, body: B) -> Response<B> {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol.as_upgrade_header()));
    copy_answer_headers(agent, headers);
    answer
}

fn copy_answer_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for name in &ANSWER_HEADERS {
        for value in from.get_all(name) {
            to.append(name.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::AUTHORITY_KUBERNETES;

    const PATH: &str = "/api/v1/namespaces/a%2Fb/pods/p/exec?command=a%20b&stdin=true";

    fn connect(protocol: UpgradeProtocol, method: &Method) -> Request<()> {
        let uri = tunnel_uri(AUTHORITY_KUBERNETES, PATH.parse().unwrap()).unwrap();
        connect_request(protocol, method, uri, ())
    }

    #[test]
    fn only_the_two_upgrades_of_kubernetes_are_known() {
        use UpgradeProtocol::{Spdy31, WebSocket};
        let cases = [
            ("websocket", Some(WebSocket)),
            ("WebSocket", Some(WebSocket)),
            ("SPDY/3.1", Some(Spdy31)),
            ("spdy/3.1", Some(Spdy31)),
            ("spdy-3.1", None),
            ("SPDY/3", None),
            ("h2c", None),
            ("websocket, h2c", None),
            ("websocket ", None),
            ("", None),
        ];
        for (header, expected) in cases {
            assert_eq!(UpgradeProtocol::from_upgrade_header(header), expected, "{header:?}");
        }
    }

    #[test]
    fn an_upgrade_crosses_as_connect_and_comes_out_the_same() {
        for protocol in [UpgradeProtocol::WebSocket, UpgradeProtocol::Spdy31] {
            for method in [Method::GET, Method::POST] {
                let request = connect(protocol, &method);
                assert_eq!(request.uri().path_and_query().unwrap(), PATH);
                assert_eq!(request.uri().authority().unwrap(), "kubernetes");
                assert_eq!(connect_target(&request), Ok(Some((protocol, method))));
            }
        }
        assert_eq!(connect_target(&Request::get("/").body(()).unwrap()), Ok(None));
    }

    #[test]
    fn a_connect_that_names_a_host_or_a_strange_upgrade_is_refused() {
        let mut plain = connect(UpgradeProtocol::WebSocket, &Method::GET);
        plain.extensions_mut().clear();
        assert_eq!(connect_target(&plain), Err(ConnectRefusal::PlainConnect));
        let mut other = connect(UpgradeProtocol::WebSocket, &Method::GET);
        other.extensions_mut().insert(Protocol::from_static("connect-udp"));
        assert_eq!(connect_target(&other), Err(ConnectRefusal::Protocol));
        let deleting = connect(UpgradeProtocol::WebSocket, &Method::DELETE);
        assert_eq!(connect_target(&deleting), Err(ConnectRefusal::Method));
        let mut none = connect(UpgradeProtocol::WebSocket, &Method::GET);
        none.headers_mut().clear();
        assert_eq!(connect_target(&none), Err(ConnectRefusal::Method));
        let mut two = connect(UpgradeProtocol::WebSocket, &Method::GET);
        two.headers_mut().append(HEADER_METHOD, HeaderValue::from_static("GET"));
        assert_eq!(connect_target(&two), Err(ConnectRefusal::Method));
    }

    #[test]
    fn the_childs_101_comes_back_with_its_headers_and_no_other() {
        let child = HeaderMap::from_iter([
            (UPGRADE, HeaderValue::from_static("spdy/3.1")),
            (CONNECTION, HeaderValue::from_static("Upgrade")),
            (
                HeaderName::from_static("x-stream-protocol-version"),
                HeaderValue::from_static("v4.channel.k8s.io"),
            ),
            (http::header::SET_COOKIE, HeaderValue::from_static("a=b")),
        ]);
        assert!(connect_answer(UpgradeProtocol::WebSocket, &child, ()).is_none());
        assert!(connect_answer(UpgradeProtocol::Spdy31, &HeaderMap::new(), ()).is_none());
        let answer = connect_answer(UpgradeProtocol::Spdy31, &child, ()).unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers().len()), (200, 1));
        let client = switching_protocols(UpgradeProtocol::Spdy31, answer.headers(), ());
        assert_eq!(client.status(), 101);
        assert_eq!(client.headers()[UPGRADE], "SPDY/3.1");
        assert_eq!(client.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert_eq!(client.headers().len(), 3);
    }
}
