//! Headers: whatever a caller, a hub or a child sends, the child sees one identity and it is the right one, and the
//! caller sees nothing that a child must not say.

use std::sync::OnceLock;

use agent::impersonate::{ImpersonateError, Inbound};
use api::identity::Identity;
use api::mapping::to_child as map_to_child;
use api::names::Role;
use api::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use hub::authn::front_proxy::{self, Trust};
use hub::authn::refuse_forged_headers;
use hub::forward::headers as forwarded;
use tunnel_proto::UpgradeProtocol;

use crate::head::{first_line, folded, headers, values};

const TOKEN: &str = "the-impersonators-token";
const TARGET: &str = "/api/v1/namespaces/a%2Fb/pods?watch=1";

/// What may stand in a request to a child beside the identity and the agent's own token.
const END_TO_END: [&str; 20] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "content-encoding",
    "content-type",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "range",
    "user-agent",
    "traceparent",
    "tracestate",
    "audit-id",
    "x-forwarded-for",
    "origin",
    "kubectl-command",
    "kubectl-session",
];
/// What may stand in an upgrade besides.
const OF_UPGRADES: [&str; 5] = [
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-extensions",
    "sec-websocket-protocol",
    "x-stream-protocol-version",
];
/// What no answer may bring, whoever made it.
const NEVER_IN_ANSWERS: [&str; 21] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
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
    "forwarded",
    "x-forwarded-for",
    "proxy-authentication-info",
];
const NEVER_PREFIXES: [&str; 4] = ["access-control-", "x-remote-", "impersonate-", "towline-"];

fn trust() -> &'static Trust {
    static TRUST: OnceLock<Trust> = OnceLock::new();
    TRUST.get_or_init(|| {
        let data = [
            ("requestheader-client-ca-file", include_str!("testdata/ca.pem")),
            ("requestheader-username-headers", r#"["X-Remote-User"]"#),
            ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
            ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
            ("requestheader-uid-headers", r#"["X-Remote-Uid"]"#),
            ("requestheader-allowed-names", r#"["front-proxy-client"]"#),
        ];
        let data = data.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        Trust::parse(&data, 1).expect("the ConfigMap of a usual cluster")
    })
}

fn upgrade_of(flags: &str) -> Option<UpgradeProtocol> {
    if flags.contains("websocket") {
        Some(UpgradeProtocol::WebSocket)
    } else if flags.contains("spdy") {
        UpgradeProtocol::from_upgrade_header("SPDY/3.1")
    } else {
        None
    }
}

/// `[websocket|spdy] [admin] [edit] [view] [accounts]`, then the headers of a caller, behind the aggregator: through
/// hub and agent up to the request that the child gets.
pub(crate) fn to_child(data: &[u8]) {
    let (flags, rest) = first_line(data);
    let inbound = headers(rest);
    if refuse_forged_headers(&inbound).is_err() {
        return;
    }
    for name in inbound.keys() {
        assert!(!folded(name).starts_with("impersonate"), "{name} was let in");
    }
    let Ok(who) = front_proxy::identity(trust(), &inbound) else { return };
    assert_eq!(values(&inbound, "x-remote-user"), [who.user().as_bytes()]);

    let roles: Vec<Role> = [("admin", Role::Admin), ("edit", Role::Edit), ("view", Role::View)]
        .into_iter()
        .filter(|(word, _)| flags.contains(word))
        .map(|(_, role)| role)
        .collect();
    let Ok(child) = map_to_child(&who, &roles, flags.contains("accounts")) else { return };
    let Ok(identity) = child.to_header() else { return };
    let upgrade = upgrade_of(flags);
    let audit = forwarded::audit_id(&inbound).unwrap_or_else(|| HeaderValue::from_static("of-the-hub"));
    let client = forwarded::client_address(&inbound, [127, 0, 0, 1].into());
    let mut outbound = forwarded::request(&inbound, identity.clone(), audit, client);
    if upgrade.is_some() {
        forwarded::add_upgrade(&inbound, &mut outbound);
    }
    assert_eq!(values(&outbound, "towline-identity"), [identity.as_bytes()]);
    for name in ["audit-id", "x-forwarded-for"] {
        assert_eq!(values(&outbound, name).len(), 1, "{name}");
    }
    for name in outbound.keys() {
        let known = END_TO_END.contains(&name.as_str())
            || name == "towline-identity"
            || (upgrade.is_some() && OF_UPGRADES.contains(&name.as_str()));
        assert!(known, "{name} went into the tunnel");
    }
    no_token(&outbound);

    let seen = agent::fuzzing::identity(&outbound).expect("the agent reads what the hub wrote");
    assert_eq!(seen, child);
    match as_child_gets_it(&seen, &outbound, upgrade) {
        Ok(request) => check_impersonated(&request, &seen, upgrade),
        Err(ImpersonateError::Blank | ImpersonateError::Unwritable) => {}
        Err(other) => panic!("the agent refuses what an honest hub sends: {other}"),
    }
}

/// `[websocket|spdy]`, an identity as JSON, then headers: whatever a hub sends, no reserved name and no second
/// identity reaches the child.
pub(crate) fn hostile_hub(data: &[u8]) {
    let (flags, rest) = first_line(data);
    let (identity, rest) = first_line(rest);
    let mut inbound = headers(rest);
    if let Ok(identity) = HeaderValue::try_from(URL_SAFE_NO_PAD.encode(identity)) {
        inbound.append("towline-identity", identity);
    }
    let Ok(who) = agent::fuzzing::identity(&inbound) else { return };
    assert_eq!(values(&inbound, "towline-identity").len(), 1);
    let upgrade = upgrade_of(flags);
    let Ok(request) = as_child_gets_it(&who, &inbound, upgrade) else { return };
    for name in inbound.keys() {
        assert!(!folded(name).starts_with("impersonate"), "{name} was let in");
    }
    check_impersonated(&request, &who, upgrade);
}

fn as_child_gets_it(
    who: &Identity,
    headers: &HeaderMap,
    upgrade: Option<UpgradeProtocol>,
) -> Result<Request<()>, ImpersonateError> {
    let uri = Uri::from_static(TARGET);
    let inbound = Inbound { method: &Method::POST, uri: &uri, headers };
    agent::fuzzing::request_as(who, &Secret::from(TOKEN.to_owned()), inbound, upgrade)
}

fn check_impersonated(request: &Request<()>, who: &Identity, upgrade: Option<UpgradeProtocol>) {
    let sent = request.headers();
    assert_eq!(values(sent, "impersonate-user"), [who.user().as_bytes()]);
    assert!(!who.user().trim().is_empty());
    let groups: Vec<&[u8]> = who.groups().iter().map(String::as_bytes).collect();
    assert_eq!(values(sent, "impersonate-group"), groups);
    let uid: Vec<&[u8]> = who.uid().map(str::as_bytes).into_iter().collect();
    assert_eq!(values(sent, "impersonate-uid"), uid);
    assert_eq!(values(sent, "authorization"), [format!("Bearer {TOKEN}").as_bytes()]);
    for name in who.groups().iter().map(String::as_str).chain([who.user()]) {
        let lower = name.to_ascii_lowercase();
        assert!(!lower.starts_with("system:") && !lower.starts_with("kubeadm:"), "{name} reached the child");
        if lower != name {
            continue;
        }
        let ours = ["clusternet:admin", "clusternet:edit", "clusternet:view"].contains(&name)
            || name.starts_with("clusternet:serviceaccount:");
        assert!(!name.starts_with("clusternet:") || ours, "{name} reached the child");
    }
    let mut extras = 0;
    for name in sent.keys() {
        let name = name.as_str();
        if name.starts_with("impersonate-extra-") {
            extras += 1;
            continue;
        }
        let known = END_TO_END.contains(&name)
            || ["impersonate-user", "impersonate-group", "impersonate-uid", "authorization"].contains(&name)
            || (upgrade.is_some()
                && (OF_UPGRADES.contains(&name) || name == "connection" || name == "upgrade"));
        assert!(known, "{name} went to the child");
    }
    assert_eq!(extras, who.extra().values().filter(|values| !values.is_empty()).count());
    no_token(sent);
    if let Some(protocol) = upgrade {
        assert_eq!(values(sent, "connection"), [b"Upgrade"]);
        assert_eq!(values(sent, "upgrade"), [protocol.as_upgrade_header().as_bytes()]);
    }
    assert_eq!(request.uri(), TARGET);
}

/// A token among the protocols is the caller's for the parent, and nobody else's.
fn no_token(sent: &HeaderMap) {
    for protocols in values(sent, "sec-websocket-protocol") {
        let text = String::from_utf8_lossy(protocols).to_ascii_lowercase();
        let token = |name: &str| name.trim().starts_with("base64url.bearer.authorization.k8s.io.");
        assert!(!text.split(',').any(token), "a token went along: {text}");
    }
}

/// A status, then headers: as a child's answer through agent and hub, and as an agent's straight to the hub.
pub(crate) fn answer(data: &[u8]) {
    let (status, rest) = first_line(data);
    let Some(status) = status.trim().parse::<u16>().ok().and_then(|code| StatusCode::from_u16(code).ok())
    else {
        return;
    };
    let sent = headers(rest);
    let mut answer = Response::new(());
    *answer.status_mut() = status;
    *answer.headers_mut() = sent.clone();
    if let Some(relayed) = agent::fuzzing::relayed(answer) {
        let (head, ()) = relayed.into_parts();
        assert!(values(&head.headers, "towline-agent-error").is_empty(), "a child speaks as its agent");
        let mut passed = head.headers;
        if let Ok(by_agent) = forwarded::sanitize_response(head.status, &mut passed) {
            assert!(!by_agent);
            check_answer(head.status, &sent, &passed);
        }
    }
    let mut passed = sent.clone();
    if forwarded::sanitize_response(status, &mut passed).is_ok() {
        check_answer(status, &sent, &passed);
    }
}

fn check_answer(status: StatusCode, sent: &HeaderMap, passed: &HeaderMap) {
    assert!((200..600).contains(&status.as_u16()));
    assert!(!(status.is_redirection() && passed.contains_key("location")), "a redirect went on");
    let connection = values(sent, "connection").join(&b","[..]);
    let connection = String::from_utf8_lossy(&connection).to_ascii_lowercase();
    let hops: Vec<&str> = connection.split(',').map(str::trim).collect();
    for name in passed.keys() {
        let folded = folded(name);
        assert!(!NEVER_IN_ANSWERS.contains(&folded.as_str()), "{name} went on");
        assert!(!NEVER_PREFIXES.iter().any(|prefix| folded.starts_with(prefix)), "{name} went on");
        assert!(name == "x-content-type-options" || sent.contains_key(name), "{name} was made up");
        let of_hop = std::str::from_utf8(connection.as_bytes()).is_ok() && hops.contains(&name.as_str());
        let every_line_is_text = sent.get_all("connection").iter().all(|line| line.to_str().is_ok());
        let written_here = name == "x-content-type-options" || name == "retry-after";
        assert!(!of_hop || written_here || !every_line_is_text, "{name} is the connection's and went on");
    }
    assert_eq!(values(passed, "x-content-type-options"), [b"nosniff"]);
    assert!(values(passed, "content-length").len() <= 1);
    for wait in values(passed, "retry-after") {
        let seconds: u32 = std::str::from_utf8(wait).unwrap().parse().expect("a number");
        assert!(seconds <= 300);
    }
    // What is nobody's weapon goes through as it is.
    for name in ["content-type", "warning", "etag", "x-kubernetes-pf-flowschema-uid"] {
        if !hops.contains(&name) {
            assert_eq!(values(passed, name), values(sent, name), "{name}");
        }
    }
}
