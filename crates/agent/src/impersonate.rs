//! A person's request to the child: the **only** way to make one is from an [`Identity`], in this file.
//!
//! Threat model: impersonation fails open. kube-apiserver takes a request without `Impersonate-User` (or
//! with an empty one and no other such header) as the request of whoever owns the token (apiserver
//! `pkg/endpoints/filters/impersonation`). What holds it:
//! * [`Impersonated`] has a private field and two constructors, both of which need an [`Identity`], and an
//!   identity has a user that is not blank; [`crate::upstream`] sends people's requests in this type only;
//! * the token is that of `clusternet-app-deployer`, which may impersonate and do nothing else: if all of
//!   this were lost, the child would answer 403;
//! * the request is built from an allow-list, never edited: no inbound header that is not named here goes
//!   on, and the identity is written last;
//! * `system:` and `kubeadm:` names are refused here again, whatever the hub has sent.

use api::identity::Identity;
use api::mapping::{MappingRefusal, refuse_in_child};
use api::secret::Secret;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Uri};
use tunnel_proto::{Body, UpgradeProtocol};

/// The headers of a request that go on to the child. `content-length` is not among them: the HTTP library
/// writes it from the body's own length, which the tunnel has checked.
const ALLOWED: [HeaderName; 20] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::ORIGIN,
    header::RANGE,
    header::USER_AGENT,
    // The child's audit log joins up with those of parent and hub by these two.
    HeaderName::from_static("audit-id"),
    HeaderName::from_static("x-forwarded-for"),
    // kubectl's own, seen in audit logs (KEP-859).
    HeaderName::from_static("kubectl-command"),
    HeaderName::from_static("kubectl-session"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// What goes on with an upgrade besides: the client and the child agree on these end to end.
const ALLOWED_IN_UPGRADE: [HeaderName; 4] = [
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_EXTENSIONS,
    HeaderName::from_static("x-stream-protocol-version"),
];

/// A "subprotocol" that is a credential (apiserver `pkg/authentication/request/websocket/protocol.go`).
const BEARER_SUBPROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");

/// A request to the child as a person. Its URI is a path; the address is the upstream's to add.
#[derive(Debug)]
pub struct Impersonated(Request<Body>);

impl Impersonated {
    /// The request, for the one who sends it.
    pub(crate) fn into_request(self) -> Request<Body> {
        self.0
    }
}

/// Why there is no request to the child.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImpersonateError {
    /// A name that means something else in the child.
    #[error(transparent)]
    Reserved(#[from] MappingRefusal),
    /// HTTP/1.1 cuts spaces at both ends of a value, which would make it another person.
    #[error("a user or group begins or ends with a space")]
    Blank,
    /// What cannot stand in a header.
    #[error("the identity cannot be written as headers")]
    Unwritable,
    /// The request itself brings an identity.
    #[error("the request carries the header {0:?}; identities come from the hub alone")]
    Inbound(String),
    /// No path, or not one of a server.
    #[error("the request has no path that begins with /")]
    Path,
}

/// The head of a request as it came out of the tunnel.
#[derive(Debug, Clone, Copy)]
pub struct Inbound<'a> {
    /// For an upgrade, the original one.
    pub method: &'a Method,
    /// Only its path and query are read.
    pub uri: &'a Uri,
    /// All headers.
    pub headers: &'a HeaderMap,
}

/// A plain request as this person.
///
/// # Errors
/// The person cannot exist in the child, or the request brings an identity of its own.
pub fn plain(
    who: &Identity,
    token: &Secret,
    inbound: Inbound<'_>,
    body: Body,
) -> Result<Impersonated, ImpersonateError> {
    build(who, token, inbound, HeaderMap::new(), body)
}

/// The upgrade (exec, attach, port-forward) as this person. It has no body: what the client sends after its
/// head must wait until the child has switched protocols.
///
/// # Errors
/// As [`plain`].
pub fn upgrade(
    who: &Identity,
    token: &Secret,
    inbound: Inbound<'_>,
    protocol: UpgradeProtocol,
    empty: Body,
) -> Result<Impersonated, ImpersonateError> {
    let mut headers = HeaderMap::new();
    copy(inbound.headers, &ALLOWED_IN_UPGRADE, &mut headers)?;
    for offered in inbound.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        let offered = offered.to_str().map_err(|_| ImpersonateError::Unwritable)?;
        let kept: Vec<&str> = offered
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty() && !name.to_ascii_lowercase().starts_with(BEARER_SUBPROTOCOL))
            .collect();
        if !kept.is_empty() {
            append(&mut headers, header::SEC_WEBSOCKET_PROTOCOL, kept.join(", ").as_bytes())?;
        }
    }
    append(&mut headers, header::CONNECTION, b"Upgrade")?;
    append(&mut headers, header::UPGRADE, protocol.as_upgrade_header().as_bytes())?;
    build(who, token, inbound, headers, empty)
}

fn build(
    who: &Identity,
    token: &Secret,
    inbound: Inbound<'_>,
    mut headers: HeaderMap,
    body: Body,
) -> Result<Impersonated, ImpersonateError> {
    refuse_in_child(who)?;
    refuse_inbound(inbound.headers)?;
    copy(inbound.headers, &ALLOWED, &mut headers)?;

    let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.reveal()))
        .map_err(|_| ImpersonateError::Unwritable)?;
    bearer.set_sensitive(true);
    headers.insert(header::AUTHORIZATION, bearer);

    for name in [who.user()].into_iter().chain(who.groups().iter().map(String::as_str)) {
        if name.trim_matches([' ', '\t']) != name {
            return Err(ImpersonateError::Blank);
        }
    }
    append(&mut headers, IMPERSONATE_USER, who.user().as_bytes())?;
    for group in who.groups() {
        append(&mut headers, IMPERSONATE_GROUP, group.as_bytes())?;
    }
    // No uid and no extra: `refuse_in_child` has refused an identity that brings one.

    let path = inbound.uri.path_and_query().filter(|path| path.as_str().starts_with('/'));
    let mut request = Request::new(body);
    *request.method_mut() = inbound.method.clone();
    *request.uri_mut() = path.cloned().map(Uri::from).ok_or(ImpersonateError::Path)?;
    *request.headers_mut() = headers;
    Ok(Impersonated(request))
}

/// Refuses what a later server could fold into an identity header: kube-apiserver does not, but proxies
/// before it may read `_` as `-`.
fn refuse_inbound(headers: &HeaderMap) -> Result<(), ImpersonateError> {
    let bad = headers.keys().find(|name| name.as_str().replace('_', "-").starts_with("impersonate"));
    bad.map_or(Ok(()), |name| Err(ImpersonateError::Inbound(name.as_str().to_owned())))
}

fn copy(from: &HeaderMap, allowed: &[HeaderName], to: &mut HeaderMap) -> Result<(), ImpersonateError> {
    for name in allowed {
        for value in from.get_all(name) {
            append(to, name.clone(), value.as_bytes())?;
        }
    }
    Ok(())
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: &[u8]) -> Result<(), ImpersonateError> {
    let value = HeaderValue::from_bytes(value).map_err(|_| ImpersonateError::Unwritable)?;
    headers.try_append(name, value).map_err(|_| ImpersonateError::Unwritable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http_body_util::{BodyExt as _, Empty};
    use proptest::prelude::*;

    use super::*;

    const TOKEN: &str = "the-impersonators-token";

    fn empty() -> Body {
        Body::new(Empty::new().map_err(|never| match never {}))
    }

    fn built(
        who: &Identity,
        headers: &HeaderMap,
        upgrading: bool,
    ) -> Result<Request<Body>, ImpersonateError> {
        let uri = Uri::from_static("http://kubernetes/api/v1/namespaces/a%2Fb/pods?watch=1&x=%20");
        let inbound = Inbound { method: &Method::POST, uri: &uri, headers };
        let token = Secret::from(TOKEN.to_owned());
        if upgrading {
            upgrade(who, &token, inbound, UpgradeProtocol::WebSocket, empty())
        } else {
            plain(who, &token, inbound, empty())
        }
        .map(Impersonated::into_request)
    }

    fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
        headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap())
            .collect()
    }

    /// Header names that carry, or look as if they carried, an identity or a credential.
    fn dangerous_name() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("authorization".to_owned()),
            Just("proxy-authorization".to_owned()),
            Just("x-remote-user".to_owned()),
            Just("x-remote-group".to_owned()),
            Just("towline-identity".to_owned()),
            Just("cookie".to_owned()),
            Just("connection".to_owned()),
            Just("host".to_owned()),
            Just("te".to_owned()),
            Just("transfer-encoding".to_owned()),
            Just("x-forwarded-user".to_owned()),
            Just("accept".to_owned()),
            "[a-z-]{1,20}",
        ]
    }

    proptest! {
        #[test]
        fn the_child_sees_exactly_this_user_these_groups_and_our_token(
            user in "\\PC{1,30}",
            groups in proptest::collection::vec("\\PC{0,20}", 0..6),
            extra in proptest::collection::btree_map("\\PC{1,10}", proptest::collection::vec("[a-z]{0,5}", 1..3), 0..3),
            inbound in proptest::collection::vec((dangerous_name(), "[ -~]{0,30}"), 0..12),
            upgrading in any::<bool>(),
        ) {
            let Ok(who) = Identity::new(user, None, groups, extra) else { return Ok(()) };
            let mut headers = HeaderMap::new();
            for (name, value) in &inbound {
                if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.as_str()), HeaderValue::from_str(value)) {
                    headers.append(name, value);
                }
            }
            match built(&who, &headers, upgrading) {
                Ok(request) => {
                    let sent = request.headers();
                    prop_assert_eq!(values(sent, "impersonate-user"), vec![who.user().to_owned()]);
                    prop_assert_eq!(values(sent, "impersonate-group"), who.groups().to_vec());
                    prop_assert_eq!(values(sent, "authorization"), vec![format!("Bearer {TOKEN}")]);
                    for name in sent.keys() {
                        let ours = [IMPERSONATE_USER, IMPERSONATE_GROUP].contains(name)
                            || ALLOWED.contains(name)
                            || *name == header::AUTHORIZATION;
                        let of_upgrade = ALLOWED_IN_UPGRADE.contains(name)
                            || [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_PROTOCOL].contains(name);
                        prop_assert!(ours || (upgrading && of_upgrade), "{name} went on");
                    }
                    prop_assert_eq!(request.uri().to_string(), "/api/v1/namespaces/a%2Fb/pods?watch=1&x=%20");
                }
                Err(ImpersonateError::Reserved(_)) => prop_assert!(refuse_in_child(&who).is_err()),
                Err(ImpersonateError::Blank) => {}
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    #[test]
    fn a_request_that_brings_an_identity_is_refused_not_cleaned() {
        let who = Identity::of("alice", &[]).unwrap();
        for name in ["impersonate-user", "impersonate_user", "impersonate-extra-x", "impersonatefoo"] {
            let headers =
                HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static("root"))]);
            for upgrading in [false, true] {
                assert!(
                    matches!(built(&who, &headers, upgrading), Err(ImpersonateError::Inbound(_))),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn reserved_names_never_reach_the_child() {
        for (user, groups) in [
            ("system:admin", vec![]),
            ("system:serviceaccount:kube-system:x", vec![]),
            ("alice", vec!["system:masters"]),
            ("alice", vec!["dev", "kubeadm:cluster-admins"]),
        ] {
            let who = Identity::of(user, &groups).unwrap();
            let refused = built(&who, &HeaderMap::new(), false);
            assert!(matches!(refused, Err(ImpersonateError::Reserved(_))), "{user}");
        }
    }

    #[test]
    fn a_name_that_http_would_trim_is_refused() {
        for (user, groups) in [(" alice", vec![]), ("alice ", vec![]), ("alice", vec!["dev "])] {
            let who = Identity::of(user, &groups).unwrap();
            assert_eq!(built(&who, &HeaderMap::new(), false).unwrap_err(), ImpersonateError::Blank);
        }
    }

    #[test]
    fn a_trace_context_reaches_the_child_as_it_came() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut inbound = HeaderMap::new();
        inbound.insert("traceparent", parent.parse().unwrap());
        inbound.append("tracestate", "a=1,b=2".parse().unwrap());
        inbound.append("tracestate", "c=3".parse().unwrap());
        for upgrading in [false, true] {
            let request = built(&Identity::of("alice", &[]).unwrap(), &inbound, upgrading).unwrap();
            assert_eq!(values(request.headers(), "traceparent"), [parent]);
            // A list may be folded over lines (W3C Trace Context section 3.3.1).
            assert_eq!(values(request.headers(), "tracestate"), ["a=1,b=2", "c=3"]);
        }
    }

    #[test]
    fn a_uid_or_an_extra_field_reaches_no_child() {
        let extra = BTreeMap::from([("example.com/scope".to_owned(), vec!["a".to_owned()])]);
        for (uid, extra) in [(Some("7".to_owned()), BTreeMap::new()), (None, extra)] {
            let who = Identity::new("alice".to_owned(), uid, vec![], extra).unwrap();
            for upgrading in [false, true] {
                let refused = built(&who, &HeaderMap::new(), upgrading);
                assert!(matches!(refused, Err(ImpersonateError::Reserved(_))));
            }
        }
    }

    #[test]
    fn an_upgrade_carries_no_credential_in_its_subprotocols() {
        let who = Identity::of("alice", &[]).unwrap();
        let headers = HeaderMap::from_iter([
            (
                header::SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static("v5.channel.k8s.io,base64url.bearer.authorization.k8s.io.eHg"),
            ),
            (header::CONNECTION, HeaderValue::from_static("Upgrade, Impersonate-User")),
        ]);
        let request = built(&who, &headers, true).unwrap();
        assert_eq!(values(request.headers(), "sec-websocket-protocol"), ["v5.channel.k8s.io"]);
        assert_eq!(values(request.headers(), "connection"), ["Upgrade"]);
        assert_eq!(values(request.headers(), "upgrade"), ["websocket"]);
    }

    #[test]
    fn a_request_without_a_path_goes_nowhere() {
        let who = Identity::of("alice", &[]).unwrap();
        let inbound =
            Inbound { method: &Method::OPTIONS, uri: &Uri::from_static("*"), headers: &HeaderMap::new() };
        let refused = plain(&who, &Secret::from(TOKEN.to_owned()), inbound, empty());
        assert_eq!(refused.unwrap_err(), ImpersonateError::Path);
    }
}
