//! What is valid and probably not meant: names that look like others. In a list of what is denied, a slip of the pen
//! would open what was to be shut. Pure.

use super::names::Kind;

/// Names that mean something to every Kubernetes, and never come through a hub.
const PROTECTED: [&str; 12] = [
    "system:masters",
    "system:nodes",
    "system:authenticated",
    "system:unauthenticated",
    "system:serviceaccounts",
    "system:anonymous",
    "system:admin",
    "kubeadm:cluster-admins",
    "cluster-admin",
    "clusternet:admin",
    "clusternet:edit",
    "clusternet:view",
];
const SERVICE_ACCOUNTS: &str = "clusternet:serviceaccount:";
const NAMESPACES: [&str; 5] =
    ["kube-system", "kube-public", "kube-node-lease", "clusternet-system", "default"];
/// What owners write most. Anything else is taken as it stands: a cluster has kinds that nobody here knows.
const RESOURCES: [&str; 45] = [
    "pods",
    "secrets",
    "configmaps",
    "services",
    "endpoints",
    "events",
    "namespaces",
    "nodes",
    "serviceaccounts",
    "persistentvolumes",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "limitranges",
    "podtemplates",
    "bindings",
    "componentstatuses",
    "deployments",
    "daemonsets",
    "statefulsets",
    "replicasets",
    "controllerrevisions",
    "jobs",
    "cronjobs",
    "ingresses",
    "ingressclasses",
    "networkpolicies",
    "horizontalpodautoscalers",
    "poddisruptionbudgets",
    "endpointslices",
    "leases",
    "roles",
    "rolebindings",
    "clusterroles",
    "clusterrolebindings",
    "storageclasses",
    "volumeattachments",
    "priorityclasses",
    "customresourcedefinitions",
    "apiservices",
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
    "certificatesigningrequests",
    "tokenreviews",
    "subjectaccessreviews",
];
const SUBRESOURCES: [&str; 10] = [
    "exec",
    "attach",
    "portforward",
    "log",
    "proxy",
    "ephemeralcontainers",
    "status",
    "scale",
    "token",
    "eviction",
];
/// Kinds that have no namespace, so that nothing is shown across namespaces.
const CLUSTER_SCOPED: [&str; 14] = [
    "nodes",
    "namespaces",
    "persistentvolumes",
    "componentstatuses",
    "clusterroles",
    "clusterrolebindings",
    "storageclasses",
    "volumeattachments",
    "priorityclasses",
    "ingressclasses",
    "customresourcedefinitions",
    "apiservices",
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
];

/// What is odd about a user or group.
pub(super) fn subject(name: &str) -> Option<String> {
    if name.starts_with(SERVICE_ACCOUNTS) {
        return None;
    }
    if let Some(&near) = PROTECTED.iter().find(|known| **known != name && is_near(name, known)) {
        return Some(format!("{name:?} looks like {near:?}, and is another name"));
    }
    if api::mapping::RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return Some(format!("{name:?} never comes through the hub, so this entry admits nobody"));
    }
    if name.starts_with("clusternet:") {
        return Some(format!(
            "{name:?} is one of the hub's own; say which roles are believed with the key roles"
        ));
    }
    None
}

/// The namespace that was probably meant.
pub(super) fn namespace(name: &str) -> Option<&'static str> {
    nearest(name, &NAMESPACES)
}

/// The resource that was probably meant.
pub(super) fn resource(text: &str) -> Option<String> {
    let (kind, sub) = text.split_once('/').unwrap_or((text, ""));
    let (name, group) = kind.split_once('.').unwrap_or((kind, ""));
    if let Some(near) = nearest(name, &RESOURCES).filter(|_| name.len() > 2) {
        let dot = if group.is_empty() { "" } else { "." };
        return Some(format!("{near}{dot}{group}"));
    }
    nearest(sub, &SUBRESOURCES).map(|near| format!("{kind}/{near}"))
}

/// Whether an entry of `clusterScoped` is not known to be without a namespace.
pub(super) fn spans_namespaces(kind: &Kind) -> bool {
    kind.resource() == "*"
        || RESOURCES.contains(&kind.resource()) && !CLUSTER_SCOPED.contains(&kind.resource())
}

/// The known word that a text is near to, if it is none itself.
pub(super) fn nearest<'a>(text: &str, known: &[&'a str]) -> Option<&'a str> {
    if known.contains(&text) {
        return None;
    }
    known.iter().copied().find(|word| is_near(text, word))
}

/// At most two letters apart, or one in short words; or the same letters in another order. Case does not count.
fn is_near(text: &str, word: &str) -> bool {
    // Longer texts are near to no word that is known here.
    if text.len() > 64 || text.len() + 2 < word.len() || word.len() + 2 < text.len() {
        return false;
    }
    let text = text.to_ascii_lowercase();
    let allowed = if word.len() < 6 { 1 } else { 2 };
    let sorted = |text: &str| {
        let mut letters = text.as_bytes().to_vec();
        letters.sort_unstable();
        letters
    };
    sorted(&text) == sorted(word) || distance(text.as_bytes(), word.as_bytes()) <= allowed
}

/// Levenshtein's, in bytes.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut before = i + 1;
        for (right, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let above = *cell;
            let here = (diagonal + usize::from(left != right)).min(above + 1).min(before + 1);
            (diagonal, before, *cell) = (above, here, here);
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_of_a_protected_name_is_told() {
        for (name, near) in [
            ("system:master", "system:masters"),
            ("sytem:masters", "system:masters"),
            ("System:Masters", "system:masters"),
            ("kubeadm:cluster-admin", "kubeadm:cluster-admins"),
            ("clusternet:edti", "clusternet:edit"),
        ] {
            assert!(subject(name).unwrap().contains(near), "{name}: {:?}", subject(name));
        }
        assert!(subject("system:masters").unwrap().contains("admits nobody"));
        assert!(subject("clusternet:admin").unwrap().contains("roles"));
        for good in ["alice", "dev", "team-*", "clusternet:serviceaccount:ci:*", "admin"] {
            assert_eq!(subject(good), None, "{good}");
        }
    }

    #[test]
    fn a_near_miss_of_a_resource_or_namespace_is_told() {
        for (text, near) in [
            ("secret", "secrets"),
            ("pod", "pods"),
            ("pods/exce", "pods/exec"),
            ("deployment.apps", "deployments.apps"),
        ] {
            assert_eq!(resource(text).as_deref(), Some(near));
        }
        for good in ["secrets", "pods/exec", "*", "*.apps", "widgets.example.com", "pods/*"] {
            assert_eq!(resource(good), None, "{good}");
        }
        assert_eq!(namespace("kube-sytem"), Some("kube-system"));
        assert_eq!(namespace("team-a"), None);
    }

    #[test]
    fn distance_counts_single_letters() {
        for (a, b, apart) in
            [("", "", 0), ("a", "", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), apart, "{a} {b}");
        }
    }
}
