//! A credential in the form in which a tool takes it. Pure: what goes in was checked, and yet nothing that stands in
//! it could end a string, a line or a document.

use api::kubeconfig::{Format, Spelling};
use api::secret::Secret;
use api::yaml;
use serde_json::json;

use super::kubeconfig::{Reached, Token, kubeconfig, with_command};
use super::{shell, terraform, tkestack};

/// What a format lets a hub spell if nobody says; `host` is whether this hub has hosts for clusters.
pub fn fitting(format: Format, host: bool) -> Spelling {
    match format {
        Format::Tkestack if host => Spelling::Host,
        Format::Tkestack => Spelling::Root,
        Format::Kubeconfig
        | Format::Exec
        | Format::ArgocdSecret
        | Format::FluxSecret
        | Format::ClusterProfile
        | Format::Terraform
        | Format::Env => Spelling::Path,
    }
}

/// Whether the tool can do with such a server.
///
/// # Errors
/// Why not, and what to do.
pub fn check(format: Format, spelling: Spelling, cluster: &Reached<'_>) -> Result<(), String> {
    match (format, spelling) {
        (Format::ArgocdSecret, Spelling::Root) => Err(
            "spec.address root: Argo CD knows a cluster by its server, so two clusters of one server would be one; use path or host"
                .to_owned(),
        ),
        (Format::ClusterProfile, Spelling::Root) => Err(
            "spec.address root: readers of the inventory know a cluster by its server, so two clusters of one server would be one; use path or host"
                .to_owned(),
        ),
        (Format::Tkestack, Spelling::Path) => Err(
            "spec.address path: TKEStack 1.8 loses the path of a server; use host, or root for host and port alone"
                .to_owned(),
        ),
        (Format::Tkestack, Spelling::Host | Spelling::Root) => {
            tkestack::check(cluster).map_err(|unfit| format!("spec.format tkestack: {unfit}"))
        }
        _ => Ok(()),
    }
}

/// The text of a format that holds a token, or leaves it to a variable.
pub fn with_token(format: Format, cluster: &Reached<'_>, token: &Token<'_>) -> Secret {
    match format {
        // The latter two hold none and are written by [`without_token`].
        Format::Kubeconfig | Format::Exec | Format::ClusterProfile => kubeconfig(cluster, token.text),
        Format::Tkestack => tkestack::text(cluster, token),
        Format::ArgocdSecret => argocd_secret(cluster, token),
        Format::FluxSecret => flux_secret(cluster, token),
        Format::Terraform => Secret::from(terraform::provider(cluster)),
        Format::Env => shell::exports(cluster, token),
    }
}

/// The text of a format that holds none.
pub fn without_token(format: Format, cluster: &Reached<'_>, command: &[String]) -> Secret {
    if format == Format::ClusterProfile {
        return Secret::from(cluster_profile(cluster));
    }
    with_command(cluster, command)
}

/// The first line of what holds a token.
pub(super) fn head(cluster: &Reached<'_>, token: &Token<'_>) -> String {
    yaml::comment(&format!(
        "Cluster {}, with a token that is good until {}: do not publish it. End it: kubectl towline credentials revoke {}",
        cluster.name, token.expires, token.credential,
    ))
}

/// <https://argo-cd.readthedocs.io/en/stable/operator-manual/declarative-setup/#clusters>
fn argocd_secret(cluster: &Reached<'_>, token: &Token<'_>) -> Secret {
    let mut tls = json!({ "insecure": false });
    if let Some(ca) = cluster.ca_base64() {
        tls["caData"] = ca.into();
    }
    let config = json!({ "bearerToken": token.text.reveal(), "tlsClientConfig": tls });
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {
            "name": format!("cluster-{}", cluster.name), "namespace": "argocd",
            "labels": { "argocd.argoproj.io/secret-type": "cluster" },
        },
        "stringData": { "name": cluster.name, "server": cluster.server, "config": config.to_string() },
    });
    applied(cluster, token, &secret)
}

/// <https://fluxcd.io/flux/components/kustomize/kustomizations/#kubeconfig-reference>: key `value`, in the
/// namespace of whatever refers to it.
fn flux_secret(cluster: &Reached<'_>, token: &Token<'_>) -> Secret {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": { "name": format!("{}-kubeconfig", cluster.name) },
        "stringData": { "value": kubeconfig(cluster, token.text).reveal() },
    });
    applied(cluster, token, &secret)
}

fn applied(cluster: &Reached<'_>, token: &Token<'_>, object: &serde_json::Value) -> Secret {
    // Client-side apply would keep a second copy of the token in an annotation.
    let how = yaml::comment("kubectl apply --server-side -f FILE");
    Secret::from(head(cluster, token) + &how + &yaml::document(object))
}

/// `ClusterProfile` (KEP-4322) with one of `status.accessProviders` (KEP-5339, kubernetes-sigs/cluster-inventory-api
/// since v0.1.0; `credentialProviders` is its deprecated name, which v1alpha2 drops). A profile holds nothing secret:
/// whoever reads it brings an identity of their own, and asks `kubectl-towline exec-credential` for a token, which
/// finds the cluster's name in the extension that client-go hands to such commands.
fn cluster_profile(cluster: &Reached<'_>) -> String {
    let mut access = cluster.cluster();
    access["extensions"] = json!([{
        "name": "client.authentication.k8s.io/exec",
        "extension": { "clusterName": cluster.name },
    }]);
    let profile = json!({
        "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ClusterProfile",
        "metadata": { "name": cluster.name, "labels": { "x-k8s.io/cluster-manager": "towline" } },
        "spec": { "displayName": cluster.name, "clusterManager": { "name": "towline" } },
        "status": {
            "properties": [{ "name": "clusterset.k8s.io/cluster-id", "value": cluster.id }],
            "accessProviders": [{ "name": "towline", "cluster": access }],
        },
    });
    let how = [
        "The status is a subresource, so it takes two commands:".to_owned(),
        "kubectl apply -f FILE".to_owned(),
        format!(
            "kubectl patch clusterprofile {} --subresource=status --type=merge --patch-file FILE",
            cluster.name
        ),
    ];
    how.iter().map(|line| yaml::comment(line)).collect::<String>() + &yaml::document(&profile)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::kubeconfig::tests::EDGE;
    use super::super::tests::{golden_in, parse};
    use super::*;

    fn token(text: &Secret) -> Token<'_> {
        let expires = "2030-01-02T03:04:05Z".parse().unwrap();
        Token { text, credential: "0123456789abcdef", expires }
    }

    fn written(format: Format, cluster: &Reached<'_>, text: &str) -> String {
        let text = Secret::from(text.to_owned());
        let command = ["exec-credential".to_owned(), cluster.name.to_owned(), "--role=view".to_owned()];
        let made = match format.has_token() {
            true => with_token(format, cluster, &token(&text)),
            false => without_token(format, cluster, &command),
        };
        made.reveal().to_owned()
    }

    #[test]
    fn each_format_is_the_text_in_its_golden_file() {
        for format in Format::ALL {
            let name = serde_json::to_value(format).unwrap();
            let server =
                if format == Format::Tkestack { "https://edge-1.k8s.example.com" } else { EDGE.server };
            let made = written(format, &Reached { server, ..EDGE }, "twl-abc");
            golden_in("crates/hub/src/generate/golden", &format!("{}.txt", name.as_str().unwrap()), &made);
            let holds = made.contains("twl-abc");
            assert_eq!(holds, format.has_token() && format != Format::Terraform, "{name}");
        }
    }

    #[test]
    fn combinations_that_a_tool_cannot_use_are_refused_with_what_to_do() {
        use Spelling::{Host, Path, Root};
        for format in Format::ALL {
            for spelling in [Path, Host, Root] {
                let said = check(format, spelling, &EDGE);
                let refused = matches!(
                    (format, spelling),
                    (Format::ArgocdSecret | Format::ClusterProfile, Root) | (Format::Tkestack, Path)
                );
                assert_eq!(said.is_err(), refused, "{format:?} {spelling:?}: {said:?}");
                assert!(said.is_ok() || said.unwrap_err().contains("; use "), "{format:?}");
            }
            for host in [true, false] {
                let spelling = fitting(format, host);
                assert!(check(format, spelling, &EDGE).is_ok(), "{format:?}");
                assert!(host || spelling != Host, "{format:?}: this hub has no hosts");
            }
        }
    }

    #[test]
    fn argo_cd_reads_its_secret() {
        let made = written(Format::ArgocdSecret, &EDGE, "twl-abc");
        let [secret] = &parse(&made)[..] else { panic!("one document") };
        assert_eq!(secret["metadata"]["labels"]["argocd.argoproj.io/secret-type"], "cluster");
        let data = &secret["stringData"];
        assert_eq!((&data["name"], &data["server"]), (&json!("edge-1"), &json!(EDGE.server)));
        let config: serde_json::Value = serde_json::from_str(data["config"].as_str().unwrap()).unwrap();
        let tls = json!({ "insecure": false, "caData": EDGE.ca_base64().unwrap() });
        assert_eq!(config, json!({ "bearerToken": "twl-abc", "tlsClientConfig": tls }));
    }

    #[test]
    fn flux_reads_the_kubeconfig_under_value() {
        let made = written(Format::FluxSecret, &EDGE, "twl-abc");
        let [secret] = &parse(&made)[..] else { panic!("one document") };
        let inner = secret["stringData"]["value"].as_str().unwrap();
        assert_eq!(inner, kubeconfig(&EDGE, &Secret::from("twl-abc".to_owned())).reveal());
    }

    proptest! {
        #[test]
        fn no_text_breaks_out_of_its_place(
            texts in proptest::collection::vec("\\PC{0,20}|[-#:{}\\[\\]&*!|>%@`\"'$()\\\\\n\r\t ]{1,12}|[a-z]{1,9}", 3),
            ca in proptest::option::of("\\PC{0,30}"),
        ) {
            let [name, server, secret] = &texts[..] else { unreachable!() };
            let cluster = Reached { name, id: "x", server, ca_pem: ca.as_deref() };
            for (format, documents) in
                [(Format::Kubeconfig, 1), (Format::Exec, 1), (Format::ArgocdSecret, 1), (Format::FluxSecret, 1), (Format::ClusterProfile, 1)]
            {
                let made = written(format, &cluster, secret);
                let read = parse(&made);
                prop_assert_eq!(read.len(), documents, "{:?}", format);
                prop_assert!(made.is_ascii());
                let read = &read[0];
                match format {
                    Format::Kubeconfig => {
                        prop_assert_eq!(&read["users"][0]["user"], &json!({ "token": secret }));
                        prop_assert_eq!(&read["clusters"][0]["cluster"]["server"], &json!(server));
                        prop_assert_eq!(&read["current-context"], &json!(name));
                    }
                    Format::Exec => {
                        let wanted = json!(["towline", "exec-credential", name, "--role=view"]);
                        prop_assert_eq!(&read["users"][0]["user"]["exec"]["args"], &wanted);
                    }
                    Format::ArgocdSecret => {
                        let config: serde_json::Value =
                            serde_json::from_str(read["stringData"]["config"].as_str().unwrap()).unwrap();
                        prop_assert_eq!(&config["bearerToken"], &json!(secret));
                        prop_assert_eq!(&read["stringData"]["server"], &json!(server));
                    }
                    Format::FluxSecret => {
                        let inner = parse(read["stringData"]["value"].as_str().unwrap());
                        prop_assert_eq!(&inner[0]["users"][0]["user"]["token"], &json!(secret));
                    }
                    Format::ClusterProfile | Format::Tkestack | Format::Terraform | Format::Env => {
                        let access = &read["status"]["accessProviders"][0]["cluster"];
                        prop_assert_eq!(&access["server"], &json!(server));
                        prop_assert_eq!(&access["extensions"][0]["extension"], &json!({ "clusterName": name }));
                    }
                }
            }
        }
    }
}
