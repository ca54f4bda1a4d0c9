//! The kubeconfig that every tool carries: one cluster, one user, one context, https, a token and nothing else. No
//! tool in the field reads less than this, and each thing beyond it is lost by some tool (docs/kubeconfigs.md). And the
//! same without a token, for people: it names the command that asks for one. Pure.

use api::secret::Secret;
use api::yaml;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Where a cluster is reached through the gateway.
#[derive(Debug, Clone, Copy)]
pub struct Reached<'a> {
    /// The cluster's name.
    pub name: &'a str,
    /// Its id.
    pub id: &'a str,
    /// Server, as it stands in a kubeconfig.
    pub server: &'a str,
    /// CA of the gateway; none if every tool trusts it anyway.
    pub ca_pem: Option<&'a str>,
}

impl Reached<'_> {
    /// The CA as kubeconfigs and Secrets hold it.
    pub fn ca_base64(&self) -> Option<String> {
        self.ca_pem.map(|ca| STANDARD.encode(ca))
    }

    /// `cluster` of a kubeconfig.
    pub fn cluster(&self) -> Value {
        let mut cluster = json!({ "server": self.server });
        if let Some(ca) = self.ca_base64() {
            cluster["certificate-authority-data"] = ca.into();
        }
        cluster
    }
}

/// A token that was issued.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// The text.
    pub text: &'a Secret,
    /// Id of the credential, to revoke it by.
    pub credential: &'a str,
    /// The end.
    pub expires: Timestamp,
}

/// With a token.
pub fn kubeconfig(cluster: &Reached<'_>, token: &Secret) -> Secret {
    written(cluster, &json!({ "token": token.reveal() }))
}

/// With a command of `kubectl towline` and these arguments, which gets a token when one is needed.
pub fn with_command(cluster: &Reached<'_>, arguments: &[String]) -> Secret {
    let arguments: Vec<&str> = ["towline"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    let exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "kubectl",
        "args": arguments,
        "installHint": "kubectl towline is missing: put kubectl-towline into a folder of your PATH",
        // The credential of the parent may have to ask the person something.
        "interactiveMode": "IfAvailable",
        "provideClusterInfo": false,
    });
    written(cluster, &json!({ "exec": exec }))
}

fn written(cluster: &Reached<'_>, user: &Value) -> Secret {
    let name = cluster.name;
    Secret::from(yaml::document(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "current-context": name,
        "clusters": [{ "name": name, "cluster": cluster.cluster() }],
        "users": [{ "name": name, "user": user }],
        "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
    })))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::generate::tests::parse;

    pub(crate) const EDGE: Reached<'_> = Reached {
        name: "edge-1",
        id: "6f0a1b1e-0000-4000-8000-000000000000",
        server: "https://hub.example.com/k8s/clusters/edge-1",
        ca_pem: Some("-----BEGIN CERTIFICATE-----\nQ0EK\n-----END CERTIFICATE-----\n"),
    };

    fn expected(user: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "edge-1",
            "clusters": [{ "name": "edge-1", "cluster": {
                "server": "https://hub.example.com/k8s/clusters/edge-1",
                "certificate-authority-data": EDGE.ca_base64().unwrap() } }],
            "users": [{ "name": "edge-1", "user": user }],
            "contexts": [{ "name": "edge-1", "context": { "cluster": "edge-1", "user": "edge-1" } }],
        })
    }

    #[test]
    fn it_holds_one_of_each_and_a_token_alone() {
        let token = Secret::from("twl-abc".to_owned());
        let made = kubeconfig(&EDGE, &token);
        let [read] = &parse(made.reveal())[..] else { panic!("one document") };
        assert_eq!(*read, expected(&json!({ "token": "twl-abc" })));
        assert!(!format!("{made:?}").contains("twl-abc"));
        let trusted = kubeconfig(&Reached { ca_pem: None, ..EDGE }, &token);
        assert!(
            !trusted.reveal().contains("certificate-authority") && !trusted.reveal().contains("insecure")
        );
    }

    #[test]
    fn with_a_command_it_holds_no_secret() {
        let made = with_command(&EDGE, &["exec-credential".to_owned(), "edge-1".to_owned()]);
        let [read] = &parse(made.reveal())[..] else { panic!("one document") };
        let exec = json!({
            "apiVersion": "client.authentication.k8s.io/v1", "command": "kubectl",
            "args": ["towline", "exec-credential", "edge-1"], "interactiveMode": "IfAvailable",
            "installHint": "kubectl towline is missing: put kubectl-towline into a folder of your PATH",
            "provideClusterInfo": false,
        });
        assert_eq!(*read, expected(&json!({ "exec": exec })));
    }
}
