//! What a request asks for, read once from its raw path. Pure.
//!
//! A path is compared byte for byte with the few shapes that exist here, and nothing is ever decoded,
//! collapsed or resolved: the parent has authorized the path as it was sent, and another reading of it here
//! would be another request than the one that was allowed (aggregated-apiserver RequestInfo: of
//! `namespaces/n1/sockets/c1/proxy` any admin of n1 may be sure). What could be read in two ways is refused.

use std::time::Duration;

use api::names::ClusterId;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Uri, Version, header};

use crate::gateway::location::Spelt;
use crate::issued::stored;
use crate::refusal::Refusal;

const PROXIES: &str = "/apis/proxies.clusternet.io/v1alpha1/";
const ACCESS: &str = "/apis/access.towline.io/v1alpha1/";

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestInfo {
    /// `/livez`, `/readyz`, `/healthz`: for anyone.
    Health,
    /// One named check below `/readyz/`: by permission.
    HealthDetail,
    /// `/metrics`: by permission.
    Metrics,
    /// `/configz`: by permission.
    Configz,
    /// A constant document, for whoever the parent has authenticated.
    Document(Document),
    /// An agent opens its tunnel.
    Attach(ClusterId),
    /// A person's or tool's request to a child.
    Proxy(Proxied),
    /// A person asks for an invitation.
    Invite,
    /// An agent asks to be let in.
    Register,
    /// Somebody asks for a kubeconfig with a token of its own.
    RequestKubeconfig,
    /// Which such tokens there are.
    ListCredentials,
    /// One of them shall end; its id.
    RevokeCredential(String),
}

/// A request to a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxied {
    /// Whose API.
    pub cluster: ClusterId,
    /// Path and query there, exactly as they came.
    pub target: PathAndQuery,
    /// Kubernetes' verb for the method, as the parent saw it.
    pub verb: &'static str,
    /// How long the caller waits for the head of the answer, [`Duration::MAX`] if that was not said; `None` for what
    /// stays open by nature.
    pub deadline: Option<Duration>,
    /// At the gateway, how the caller has named the cluster.
    pub spelt: Option<Spelt>,
}

/// The constant documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Document {
    /// `/version`
    Version,
    /// `/apis`, in three dialects.
    Groups,
    /// `/apis/proxies.clusternet.io`
    ProxiesGroup,
    /// `/apis/access.towline.io`
    AccessGroup,
    /// `/apis/proxies.clusternet.io/v1alpha1`
    ProxiesResources,
    /// `/apis/access.towline.io/v1alpha1`
    AccessResources,
    /// `/openapi/v2`
    OpenApiV2,
    /// `/openapi/v3`
    OpenApiV3,
    /// `/openapi/v3/apis/proxies.clusternet.io/v1alpha1`
    ProxiesOpenApi,
    /// `/openapi/v3/apis/access.towline.io/v1alpha1`
    AccessOpenApi,
}

impl RequestInfo {
    /// Reads method, path and query, and refuses whatever has no clear meaning.
    ///
    /// # Errors
    /// 400, 404 or 405.
    pub fn parse(method: &Method, uri: &Uri, headers: &HeaderMap, version: Version) -> Result<Self, Refusal> {
        let verb = verb(method)?;
        check_form(uri, headers, version)?;
        let path = uri.path();
        check_path(path)?;
        let (info, allowed): (Self, &[Method]) = match shape(path, uri.query())? {
            Shape::Whole(info) => match info {
                Self::Invite | Self::Register | Self::RequestKubeconfig => (info, &[Method::POST]),
                Self::RevokeCredential(_) => (info, &[Method::DELETE]),
                Self::Attach(_) => (info, &[Method::GET]),
                Self::Health
                | Self::HealthDetail
                | Self::Metrics
                | Self::Configz
                | Self::Document(_)
                | Self::Proxy(_)
                | Self::ListCredentials => (info, &[Method::GET, Method::HEAD]),
            },
            Shape::Proxy(cluster, target) => {
                let deadline = deadline(target.path(), target.query());
                return Ok(Self::Proxy(Proxied { cluster, target, verb, deadline, spelt: None }));
            }
        };
        if allowed.contains(method) {
            return Ok(info);
        }
        Err(Refusal::MethodNotAllowed(format!("{method} is not allowed on {path}")))
    }

    /// The metric's label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Health | Self::HealthDetail => "health",
            Self::Metrics => "metrics",
            Self::Configz => "configz",
            Self::Document(_) => "document",
            Self::Attach(_) => "attach",
            Self::Proxy(_) => "proxy",
            Self::Invite => "invite",
            Self::Register => "register",
            Self::RequestKubeconfig => "kubeconfig",
            Self::ListCredentials | Self::RevokeCredential(_) => "credentials",
        }
    }
}

enum Shape {
    Whole(RequestInfo),
    Proxy(ClusterId, PathAndQuery),
}

/// The verb of a method (apiserver `requestinfo.go`). Methods that have none there are refused: they would
/// be allowed to whoever holds the verb `*`, and no Kubernetes API answers them.
pub fn verb(method: &Method) -> Result<&'static str, Refusal> {
    Ok(match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => {
            let shown = api::status::printable(method.as_str(), 32);
            return Err(Refusal::MethodNotAllowed(format!("method {shown} is not allowed here")));
        }
    })
}

/// HTTP/1.1 lets a request name its target in more ways than one (RFC 9112 section 3.2); here is one.
pub(crate) fn check_form(uri: &Uri, headers: &HeaderMap, version: Version) -> Result<(), Refusal> {
    if version == Version::HTTP_2 {
        return Ok(());
    }
    if uri.scheme().is_some() || uri.authority().is_some() {
        return bad("the request target must be a path, not a URL");
    }
    if headers.get_all(header::HOST).iter().count() != 1 {
        return bad("the request must have exactly one Host header");
    }
    // hyper passes `identity, chunked` and repeated lines on; the next hop may read them otherwise.
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (encodings.next(), encodings.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => bad("Transfer-Encoding may be \"chunked\", once"),
    }
}

fn bad<T>(message: &str) -> Result<T, Refusal> {
    Err(Refusal::BadRequest(message.to_owned()))
}

/// Refuses paths that two parsers could read differently: dot segments and separators in any encoding,
/// control characters, raw bytes beyond ASCII, malformed escapes, and `;`, at which some cut a segment.
pub(crate) fn check_path(path: &str) -> Result<(), Refusal> {
    if !path.starts_with('/') {
        return bad("the path must begin with a slash");
    }
    for segment in path.split('/') {
        check_segment(segment.as_bytes())?;
    }
    Ok(())
}

fn check_segment(segment: &[u8]) -> Result<(), Refusal> {
    let (mut dots, mut others, mut at) = (0_usize, false, 0_usize);
    while let Some(&byte) = segment.get(at) {
        let decoded = if byte == b'%' {
            let hex = |digit: Option<&u8>| digit.and_then(|&digit| char::from(digit).to_digit(16));
            let (Some(high), Some(low)) = (hex(segment.get(at + 1)), hex(segment.get(at + 2))) else {
                return bad("the path contains a malformed percent escape");
            };
            at += 2;
            match high * 16 + low {
                0x2f | 0x5c => return bad("the path contains an encoded slash or backslash"),
                0..=0x1f | 0x7f => return bad("the path contains an encoded control character"),
                0x2e => b'.',
                _ => b'x',
            }
        } else {
            byte
        };
        match decoded {
            b'.' => dots += 1,
            b'\\' | b';' => return bad("the path contains a backslash or semicolon"),
            0..=0x20 | 0x7f.. => return bad("the path contains a control character or one beyond ASCII"),
            _ => others = true,
        }
        at += 1;
    }
    if !others && (dots == 1 || dots == 2) {
        return bad("the path contains a dot segment");
    }
    Ok(())
}

/// Compares with the shapes that exist. Trailing slashes are tolerated on discovery alone, as kube-apiserver
/// does.
fn shape(path: &str, query: Option<&str>) -> Result<Shape, Refusal> {
    use Document::{
        AccessGroup, AccessOpenApi, AccessResources, Groups, OpenApiV2, OpenApiV3, ProxiesGroup,
        ProxiesOpenApi, ProxiesResources, Version,
    };
    let document = match path {
        "/version" | "/version/" => Version,
        "/apis" | "/apis/" => Groups,
        "/apis/proxies.clusternet.io" | "/apis/proxies.clusternet.io/" => ProxiesGroup,
        "/apis/access.towline.io" | "/apis/access.towline.io/" => AccessGroup,
        "/apis/proxies.clusternet.io/v1alpha1" | PROXIES => ProxiesResources,
        "/apis/access.towline.io/v1alpha1" | ACCESS => AccessResources,
        "/openapi/v2" => OpenApiV2,
        "/openapi/v3" | "/openapi/v3/" => OpenApiV3,
        "/openapi/v3/apis/proxies.clusternet.io/v1alpha1" => ProxiesOpenApi,
        "/openapi/v3/apis/access.towline.io/v1alpha1" => AccessOpenApi,
        "/livez" | "/readyz" | "/healthz" => return Ok(Shape::Whole(RequestInfo::Health)),
        "/metrics" => return Ok(Shape::Whole(RequestInfo::Metrics)),
        "/configz" => return Ok(Shape::Whole(RequestInfo::Configz)),
        _ => {
            if let Some(rest) = path.strip_prefix(PROXIES) {
                return socket(rest, query);
            }
            if let Some(rest) = path.strip_prefix(ACCESS) {
                return access(rest);
            }
            let health = ["/livez/", "/readyz/", "/healthz/"].iter().any(|prefix| path.starts_with(prefix));
            return if health { Ok(Shape::Whole(RequestInfo::HealthDetail)) } else { nothing_here() };
        }
    };
    Ok(Shape::Whole(RequestInfo::Document(document)))
}

fn nothing_here<T>() -> Result<T, Refusal> {
    Err(Refusal::NotFound("the server could not find the requested resource".to_owned()))
}

/// `sockets/<id>/attach` and `sockets/<id>/proxy/direct[/rest]`.
fn socket(rest: &str, query: Option<&str>) -> Result<Shape, Refusal> {
    if rest == "sockets" {
        return Err(Refusal::MethodNotAllowed(
            "sockets cannot be listed; list managedclusters instead".to_owned(),
        ));
    }
    let Some((id, rest)) =
        rest.strip_prefix("sockets/").map(|rest| rest.split_once('/').unwrap_or((rest, "")))
    else {
        return nothing_here();
    };
    let Ok(cluster) = id.parse::<ClusterId>() else { return nothing_here() };
    if rest == "attach" {
        return Ok(Shape::Whole(RequestInfo::Attach(cluster)));
    }
    if rest.is_empty() {
        return Err(Refusal::MethodNotAllowed(format!(
            "a socket has no content of its own; the cluster's API is at sockets/{cluster}/proxy/direct. An agent opens its tunnel at sockets/{cluster}/attach: in place of an agent of Clusternet, register the cluster again (kubectl towline register)"
        )));
    }
    let Some(target) = rest.strip_prefix("proxy/direct") else { return nothing_here() };
    let target = match target {
        "" => "/",
        deeper if deeper.starts_with('/') => deeper,
        _ => return nothing_here(),
    };
    let target = query.map_or_else(|| target.parse(), |query| format!("{target}?{query}").parse());
    match target {
        Ok(target) => Ok(Shape::Proxy(cluster, target)),
        Err(_) => bad("the path or query is malformed"),
    }
}

fn access(rest: &str) -> Result<Shape, Refusal> {
    match rest {
        "clusterinvitations" => Ok(Shape::Whole(RequestInfo::Invite)),
        "clusterregistrations" => Ok(Shape::Whole(RequestInfo::Register)),
        "kubeconfigrequests" => Ok(Shape::Whole(RequestInfo::RequestKubeconfig)),
        "issuedcredentials" => Ok(Shape::Whole(RequestInfo::ListCredentials)),
        _ => match rest.strip_prefix("issuedcredentials/").filter(|id| stored::is_id(id)) {
            Some(id) => Ok(Shape::Whole(RequestInfo::RevokeCredential(id.to_owned()))),
            None => nothing_here(),
        },
    }
}

/// How long the head of an answer may take. Nothing for what kube-apiserver calls long-running: watches,
/// `logs -f`, and the subresources of `BasicLongRunningRequestCheck`.
pub(crate) fn deadline(path: &str, query: Option<&str>) -> Option<Duration> {
    let open =
        |segment: &str| matches!(segment, "watch" | "proxy" | "exec" | "attach" | "portforward" | "log");
    if path.split('/').any(open) {
        return None;
    }
    let pairs =
        || query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    // As apimachinery converts strings to bool: whatever is not 0 or false is true.
    let truth = |value: &str| value != "0" && !value.eq_ignore_ascii_case("false");
    if pairs().any(|(key, value)| matches!(key, "watch" | "follow") && truth(value)) {
        return None;
    }
    let asked = pairs().find(|(key, _)| *key == "timeout").and_then(|(_, value)| go_duration(value));
    Some(asked.filter(|asked| !asked.is_zero()).unwrap_or(Duration::MAX))
}

/// Whether a GET of this is a watch of kube-apiserver's own. What a pod, service or node answers to such a query is theirs.
pub(crate) fn is_watch(target: &PathAndQuery) -> bool {
    let mut pairs =
        target.query().unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.any(|(key, value)| key == "watch" && value != "0" && !value.eq_ignore_ascii_case("false"))
        && !target.path().split('/').any(|segment| segment == "proxy")
}

/// Go's durations, as in `?timeout=1m30s`: whole numbers and the units of a request.
fn go_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let number: u32 = number.parse().ok()?;
        let end = after.find(|character: char| character.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            _ => return None,
        };
        total = total.checked_add(unit.checked_mul(number)?)?;
        rest = after;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: &str = "/apis/proxies.clusternet.io/v1alpha1/sockets";

    fn parse(method: &str, target: &str) -> Result<RequestInfo, u16> {
        let uri: Uri = target.parse().map_err(|_| 400_u16)?;
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| 405_u16)?;
        let headers = HeaderMap::from_iter([(header::HOST, http::HeaderValue::from_static("hub"))]);
        RequestInfo::parse(&method, &uri, &headers, Version::HTTP_11)
            .map_err(|refusal| refusal.to_status().code.as_u16())
    }

    fn proxied(target: &str) -> (String, String) {
        let Ok(RequestInfo::Proxy(proxied)) = parse("GET", target) else { panic!("{target}") };
        (proxied.cluster.to_string(), proxied.target.to_string())
    }

    #[test]
    fn every_shape_that_exists_is_found() {
        use super::Document::*;
        use RequestInfo::{Attach, Health, HealthDetail, Invite, Metrics, Register};
        let document = RequestInfo::Document;
        for (method, path, info) in [
            ("GET", "/livez", Health),
            ("GET", "/readyz?verbose", Health),
            ("GET", "/readyz/catalog", HealthDetail),
            ("GET", "/metrics", Metrics),
            ("GET", "/version", document(Version)),
            ("GET", "/apis", document(Groups)),
            ("GET", "/apis/", document(Groups)),
            ("GET", "/apis/proxies.clusternet.io", document(ProxiesGroup)),
            ("GET", "/apis/proxies.clusternet.io/v1alpha1", document(ProxiesResources)),
            ("GET", "/apis/proxies.clusternet.io/v1alpha1/", document(ProxiesResources)),
            ("GET", "/apis/access.towline.io/v1alpha1?timeout=32s", document(AccessResources)),
            ("GET", "/openapi/v2", document(OpenApiV2)),
            ("GET", "/openapi/v3", document(OpenApiV3)),
            ("GET", "/openapi/v3/apis/access.towline.io/v1alpha1?hash=0", document(AccessOpenApi)),
            ("GET", &format!("{BASE}/c1/attach"), Attach("c1".parse().unwrap())),
            (
                "POST",
                "/apis/access.towline.io/v1alpha1/clusterinvitations?fieldManager=kubectl-create",
                Invite,
            ),
            ("POST", "/apis/access.towline.io/v1alpha1/clusterregistrations", Register),
        ] {
            assert_eq!(parse(method, path), Ok(info), "{path}");
        }
    }

    #[test]
    fn a_child_gets_path_and_query_exactly_as_they_came() {
        for (sent, received) in [
            ("", "/"),
            ("/", "/"),
            ("/api/v1/pods", "/api/v1/pods"),
            ("/api//v1/", "/api//v1/"),
            ("//api//v1", "//api//v1"),
            ("/api?a=2&watch=&z=1", "/api?a=2&watch=&z=1"),
            ("/x?command=sh&command=-c&command=a%20b", "/x?command=sh&command=-c&command=a%20b"),
            ("?", "/?"),
            ("/x/%252e%252e%252f", "/x/%252e%252e%252f"),
            ("/apis/x/namespaces/a:b/y%3Az/...", "/apis/x/namespaces/a:b/y%3Az/..."),
            ("/x?to=../../y&access_token=t", "/x?to=../../y&access_token=t"),
        ] {
            let expected = ("c1".to_owned(), received.to_owned());
            assert_eq!(proxied(&format!("{BASE}/c1/proxy/direct{sent}")), expected, "{sent}");
        }
    }

    #[test]
    fn other_spellings_of_a_path_lead_nowhere() {
        for (path, code) in [
            // The parent authorizes each of these as something else (section 2.6).
            ("/apis/proxies.clusternet.io/v1alpha1/namespaces/n1/sockets/c1/proxy/direct/api", 404),
            ("/apis/proxies.clusternet.io/v1alpha1/watch/sockets/c1", 404),
            ("/apis/proxies.clusternet.io/v1alpha1/proxy/sockets/c1/x", 404),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets//proxy/direct/x", 404),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/Proxy/direct", 404),
            ("/apis/proxies.clusternet.io/v1alpha1/Sockets/c1/proxy/direct", 404),
            (
                "/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/direct/../../../c2/proxy/direct/api",
                400,
            ),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/https/10.0.0.1:22", 404),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy", 404),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/directly", 404),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/attach/", 404),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/attach/x", 404),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets", 405),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1", 405),
            ("/apis/access.towline.io/v1alpha1/clusterinvitations", 405),
            ("/apis/access.towline.io/v1alpha1/clusterinvitations/x", 404),
            ("/APIS", 404),
            ("//apis", 404),
            ("/apis//", 404),
            ("/", 404),
            ("/api", 404),
            // U-40 and following.
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/A%2f..%2fB/proxy/direct", 400),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1%2Fproxy/x", 400),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/direct/%2e%2e/%2E./B", 400),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/direct/.", 400),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/direct/a/.%2e", 400),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/direct/a\\b", 400),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/direct/a%5Cb", 400),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/direct/a;b", 400),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/direct/%00", 400),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/direct/%0d%0a", 400),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/direct/%7f", 400),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/direct/%zz", 400),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/direct/%2", 400),
            ("/apis/proxies.clusternet.io/v1alpha1/sockets/c1/proxy/direct/\u{e4}", 400),
            ("/apis/../apis", 400),
            ("http://169.254.169.254/latest", 400),
            ("*", 400),
        ] {
            assert_eq!(parse("GET", path), Err(code), "{path}");
        }
        for id in ["*", "_", ".x", "system:hub", "NULL", "a.b", "-a", "a%62"] {
            assert_eq!(parse("GET", &format!("{BASE}/{id}/proxy/direct")), Err(404), "{id}");
        }
    }

    #[test]
    fn only_methods_with_a_verb_pass() {
        for (method, verb) in [
            ("GET", "get"),
            ("HEAD", "get"),
            ("POST", "create"),
            ("PUT", "update"),
            ("PATCH", "patch"),
            ("DELETE", "delete"),
        ] {
            match parse(method, &format!("{BASE}/c1/proxy/direct/api")) {
                Ok(RequestInfo::Proxy(proxied)) => assert_eq!(proxied.verb, verb),
                other => panic!("{other:?}"),
            }
        }
        for method in ["OPTIONS", "TRACE", "CONNECT", "get", "G", "PROPFIND"] {
            assert_eq!(parse(method, &format!("{BASE}/c1/proxy/direct/api")), Err(405), "{method}");
        }
        assert_eq!(parse("POST", "/livez"), Err(405));
        assert_eq!(parse("POST", &format!("{BASE}/c1/attach")), Err(405));
    }

    #[test]
    fn hosts_and_transfer_encodings_have_one_reading() {
        let uri: Uri = "/livez".parse().unwrap();
        let parse = |pairs: &[(&'static str, &'static str)]| {
            let headers: HeaderMap = pairs
                .iter()
                .map(|(name, value)| {
                    (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
                })
                .collect();
            RequestInfo::parse(&Method::GET, &uri, &headers, Version::HTTP_11).is_ok()
        };
        assert!(parse(&[("host", "a"), ("transfer-encoding", "Chunked")]));
        assert!(!parse(&[]));
        assert!(!parse(&[("host", "a"), ("host", "a")]));
        assert!(!parse(&[("host", "a"), ("transfer-encoding", "identity, chunked")]));
        assert!(!parse(&[("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]));
    }

    #[test]
    fn short_requests_have_a_deadline_and_open_ones_have_none() {
        let deadline = |target: &str| {
            let target: PathAndQuery = target.parse().unwrap();
            deadline(target.path(), target.query())
                .map(|given| (given < Duration::MAX).then_some(given.as_millis()))
        };
        for (target, expected) in [
            ("/api/v1/pods", Some(None)),
            ("/api/v1/pods?timeout=5s", Some(Some(5_000))),
            ("/api/v1/pods?timeout=1m30s", Some(Some(90_000))),
            ("/api/v1/pods?timeout=500ms", Some(Some(500))),
            ("/api/v1/pods?timeout=0s", Some(None)),
            ("/api/v1/pods?timeout=99999999999h", Some(None)),
            ("/api/v1/pods?timeout=-1s", Some(None)),
            ("/api/v1/pods?watch=0&limit=5", Some(None)),
            ("/api/v1/pods?watch=False", Some(None)),
            ("/api/v1/pods?watch=true&timeoutSeconds=5", None),
            ("/api/v1/pods?watch=1&watch=0", None),
            ("/api/v1/pods?watch", None),
            ("/api/v1/pods?watch=", None),
            ("/api/v1/watch/pods", None),
            ("/api/v1/namespaces/a/pods/b/log?follow=true", None),
            ("/api/v1/namespaces/a/services/b/proxy/slow", None),
        ] {
            assert_eq!(deadline(target), expected, "{target}");
        }
    }

    proptest! {
        #[test]
        fn no_path_reaches_another_cluster_than_the_one_it_names(rest in "[ -~]{0,60}") {
            if let Ok(RequestInfo::Proxy(proxied)) = parse("GET", &format!("{BASE}/c1/proxy/direct/{rest}")) {
                prop_assert_eq!(proxied.cluster.as_str(), "c1");
                let path = proxied.target.path().to_ascii_lowercase();
                let has_dots = path.split('/').any(|segment| {
                    let plain = segment.replace("%2e", ".");
                    plain == "." || plain == ".."
                });
                prop_assert!(!has_dots, "{}", path);
            }
        }

        #[test]
        fn no_path_panics(path in "/\\PC{0,80}", method in "[A-Z]{1,8}") {
            let _ = parse(&method, &path);
        }
    }
}
