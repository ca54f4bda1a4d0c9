//! The kubeconfig that every tool carries: one cluster, one user, one context, https, a token and nothing else. No
//! tool in the field reads less than this, and each thing beyond it is lost by some tool (docs/gateway.md). Pure.

use api::names::ClusterName;
use api::secret::Secret;
use api::yaml;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

/// Writes it.
pub fn kubeconfig(name: &ClusterName, server: &str, ca_pem: Option<&str>, token: &Secret) -> Secret {
    let name = name.as_str();
    let mut cluster = json!({ "server": server });
    if let Some(ca) = ca_pem {
        cluster["certificate-authority-data"] = STANDARD.encode(ca).into();
    }
    Secret::from(yaml::document(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "current-context": name,
        "clusters": [{ "name": name, "cluster": cluster }],
        "users": [{ "name": name, "user": { "token": token.reveal() } }],
        "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::tests::parse;

    #[test]
    fn it_holds_one_of_each_and_a_token_alone() {
        let token = Secret::from("twl-abc".to_owned());
        let made =
            kubeconfig(&"edge-1".parse().unwrap(), "https://hub/k8s/clusters/edge-1", Some("CA\n"), &token);
        let [read] = &parse(made.reveal())[..] else { panic!("one document") };
        assert_eq!(
            *read,
            json!({
                "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "edge-1",
                "clusters": [{ "name": "edge-1", "cluster": {
                    "server": "https://hub/k8s/clusters/edge-1", "certificate-authority-data": "Q0EK" } }],
                "users": [{ "name": "edge-1", "user": { "token": "twl-abc" } }],
                "contexts": [{ "name": "edge-1", "context": { "cluster": "edge-1", "user": "edge-1" } }],
            })
        );
        assert!(!format!("{made:?}").contains("twl-abc"));
    }
}
