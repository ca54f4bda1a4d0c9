//! The policy of a child's owner: whatever stands in it, the agent's own namespace is not written to, and who closes
//! the cluster has closed it.

use agent::policy::check::{self, Exit};
use agent::policy::request_info::RequestInfo;
use agent::policy::{MAX_POLICY, Policy};
use api::identity::Identity;
use http::Method;
use jiff::Timestamp;

use crate::head::first_line;
use crate::path::decoded;

const OWN: &str = "clusternet-system";
/// What no policy admits: method, path, and whether the connection is to be switched.
const NEVER: [(&str, &str, bool); 18] = [
    ("PUT", "/api/v1/namespaces/clusternet-system/configmaps/clusternet-agent-policy", false),
    ("PATCH", "/api/v1/namespaces/clusternet-system/configmaps/clusternet-agent-policy", false),
    ("DELETE", "/api/v1/namespaces/clusternet-system/configmaps/clusternet-agent-policy", false),
    ("DELETE", "/api/v1/namespaces/clusternet-system/configmaps", false),
    ("POST", "/api/v1/namespaces/clusternet-system/pods", false),
    ("POST", "/api/v1/namespaces/clusternet-system/serviceaccounts/clusternet-app-deployer/token", false),
    ("POST", "/api/v1/namespaces/clusternet-system/pods/clusternet-agent-0/exec", true),
    ("GET", "/api/v1/namespaces/clusternet-system/pods/clusternet-agent-0/exec", true),
    ("GET", "/api/v1/namespaces/clusternet-system/pods/clusternet-agent-0/portforward", false),
    ("GET", "/api/v1/namespaces/clusternet-system/pods/clusternet-agent-0:8080/proxy/metrics", false),
    ("GET", "/api/v1/namespaces/clusternet-system/secrets/parent-cluster", false),
    ("GET", "/api/v1/namespaces/clusternet-system/secrets", false),
    ("GET", "/api/v1/watch/namespaces/clusternet-system/secrets", false),
    ("PATCH", "/apis/apps/v1/namespaces/clusternet-system/deployments/clusternet-agent/scale", false),
    ("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/clusternet-system/rolebindings", false),
    ("DELETE", "/api/v1/namespaces/clusternet-system", false),
    ("PUT", "/api/v1/namespaces/clusternet-system/finalize", false),
    ("DELETE", "/api/v1/namespaces", false),
];
/// What nobody may ask of a closed cluster.
const ALWAYS: [(&str, &str, bool); 4] = [
    ("GET", "/version", false),
    ("GET", "/api/v1/namespaces/default/pods", false),
    ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", false),
    ("DELETE", "/api/v1/namespaces/default/pods/web", false),
];

/// The text of a policy. Its first line may be a comment with a request: `# METHOD PATH [upgrade]`.
pub(crate) fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = Policy::read(text);
    assert_eq!(read, Policy::read(text), "the same text reads in two ways");
    // Wednesday noon: inside most hours that a person would write.
    let now = Timestamp::from_second(1_767_787_200).unwrap();
    let (told, exit) = check::check(text, None, now);
    assert!(told.ends_with('\n') && !told.contains('\u{1b}'), "{told:?}");
    let Ok(checked) = read else { return };
    assert_eq!(exit, Exit::Good, "`policy check` finds fault with what an agent takes:\n{told}");
    assert!(text.len() <= MAX_POLICY && text.contains("preset") && text.contains("AgentPolicy"));

    let people = [
        Identity::of("alice", &["dev", "clusternet:admin"]).unwrap(),
        Identity::of("clusternet:serviceaccount:ci:deployer", &[]).unwrap(),
    ];
    let first = first_line(data).0;
    let asked = first.strip_prefix("# ").and_then(|line| {
        let mut words = line.split(' ');
        let (method, path) = (words.next()?, words.next()?);
        Some((method, path, words.next() == Some("upgrade")))
    });
    let closed = Policy::read(&format!("{text}\nclosed: true\n")).ok().map(|checked| checked.policy);
    for who in &people {
        for never in NEVER.into_iter().chain(asked.filter(writes_in_own)) {
            assert!(!admits(&checked.policy, who, never, now), "{never:?} was admitted:\n{text}");
        }
        let Some(closed) = &closed else { continue };
        assert!(closed.is_closed(), "closed: true was read as something else:\n{text}");
        for any in ALWAYS.into_iter().chain(NEVER).chain(asked) {
            assert!(!admits(closed, who, any, now), "{any:?} was admitted by a closed cluster:\n{text}");
        }
    }
}

fn admits(policy: &Policy, who: &Identity, asked: (&str, &str, bool), now: Timestamp) -> bool {
    let (method, target, upgrade) = asked;
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return false };
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let Ok(asked) = RequestInfo::parse(&method, path, query, upgrade) else { return false };
    policy.admit(who, &asked, now).is_ok()
}

/// Whether this changes something in the agent's namespace, by a reading of the path that is not the agent's:
/// decoded first, then split, as kube-apiserver does.
fn writes_in_own(asked: &(&str, &str, bool)) -> bool {
    let (method, target, _) = asked;
    let decoded = decoded(target.split('?').next().unwrap_or_default());
    let parts: Vec<&str> = decoded.trim_matches('/').split('/').collect();
    let within = match parts.as_slice() {
        ["api", _, "proxy" | "watch", rest @ ..] | ["apis", _, _, "proxy" | "watch", rest @ ..] => rest,
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        _ => return false,
    };
    within.starts_with(&["namespaces", OWN]) && matches!(*method, "POST" | "PUT" | "PATCH" | "DELETE")
}
