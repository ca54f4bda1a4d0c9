//! `kubeconfig`: a kubeconfig for one cluster, made from the caller's own: the same credential and CA, and
//! the parent's address with the cluster's path below it. It gives nobody any right that they do not have.
//!
//! Never written: a connection that is not verified, or not encrypted.

use api::names::{ClusterId, proxy_path};
use api::yaml;
use kube::config::{AuthInfo, Cluster, Kubeconfig as Source};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::{Global, Kubeconfig};
use crate::config;
use crate::failure::{Exit, Failure};
use crate::find;
use crate::session::Session;

/// Makes it: the cluster's name, and the kubeconfig.
pub(crate) async fn own(global: &Global, args: &Kubeconfig) -> Result<(String, Value), Failure> {
    let source = config::kubeconfig(global)?.ok_or_else(|| {
        Failure::new(Exit::Error, "there is no kubeconfig of the parent to start from")
            .next("name one: --kubeconfig FILE")
    })?;
    let (name, id) = match &args.cluster_id {
        Some(id) => (args.cluster.to_string(), id.clone()),
        None => look_up(global, &args.cluster).await?,
    };
    let made = derived(&source, global, &name, &id)?;
    Ok((name, made))
}

async fn look_up(global: &Global, wanted: &ClusterId) -> Result<(String, ClusterId), Failure> {
    let session = Session::open(global).await?;
    let cluster = find::registered(&session, wanted).await.map_err(|failure| {
        if failure.exit() != Exit::Denied {
            return failure;
        }
        failure.next(format!(
            "if you know the cluster's id: {} kubeconfig {wanted} --cluster-id ID",
            global.command()
        ))
    })?;
    let id =
        cluster.spec.cluster_id.parse().map_err(|error| {
            Failure::new(Exit::Error, format!("cluster {wanted} has a broken id: {error}"))
        })?;
    // The name becomes names in the file, also when the id was typed.
    Ok((cluster.metadata.name.unwrap_or_else(|| wanted.to_string()), id))
}

/// The context that is meant, its cluster and its user.
pub(crate) fn selected(
    source: &Source,
    context: Option<&str>,
) -> Result<(String, Cluster, AuthInfo), Failure> {
    let broken = |what: String| {
        Failure::new(Exit::Error, format!("the kubeconfig cannot be used: {what}"))
            .next("see what there is: kubectl config get-contexts")
    };
    let name = context
        .or(source.current_context.as_deref())
        .filter(|name| !name.is_empty())
        .ok_or_else(|| broken("it has no current context".to_owned()))?;
    let context = source
        .contexts
        .iter()
        .find(|named| named.name == name)
        .and_then(|named| named.context.as_ref())
        .ok_or_else(|| broken(format!("it has no context {name:?}")))?;
    let cluster = source
        .clusters
        .iter()
        .find(|named| named.name == context.cluster)
        .and_then(|named| named.cluster.clone())
        .ok_or_else(|| {
            broken(format!("context {name:?} names a cluster {:?} that it does not have", context.cluster))
        })?;
    // Like client-go: a user that is not there is nobody, not an error.
    let user = source
        .auth_infos
        .iter()
        .find(|named| Some(&named.name) == context.user.as_ref())
        .and_then(|named| named.auth_info.clone())
        .unwrap_or_default();
    Ok((name.to_owned(), cluster, user))
}

/// The new kubeconfig: one cluster, one user, one context, all called `name`.
pub(crate) fn derived(
    source: &Source,
    global: &Global,
    name: &str,
    id: &ClusterId,
) -> Result<Value, Failure> {
    config::check_impersonation(global)?;
    let (context, mut cluster, mut user) = selected(source, global.context.as_deref())?;
    let server = cluster.server.clone().unwrap_or_default();
    if !server.starts_with("https://") {
        return Err(Failure::new(
            Exit::Error,
            format!("context {context:?} reaches the parent without TLS ({server:?}); a credential must not travel so"),
        )
        .next("use a context whose server begins with https://"));
    }
    if cluster.insecure_skip_tls_verify == Some(true) {
        return Err(Failure::new(
            Exit::Error,
            format!("context {context:?} has insecure-skip-tls-verify: whoever stands in between would get your credential"),
        )
        .next("put the parent's CA into certificate-authority-data and take the setting out"));
    }
    cluster.insecure_skip_tls_verify = None;
    cluster.server = Some(format!("{}{}", server.trim_end_matches('/'), proxy_path(id)));
    if let Some(as_user) = &global.impersonate {
        user.impersonate = Some(as_user.clone());
        user.impersonate_groups =
            (!global.impersonate_groups.is_empty()).then(|| global.impersonate_groups.clone());
        user.impersonate_uid = None;
        user.impersonate_user_extra = None;
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": name, "cluster": value(&cluster)? }],
        "users": [{ "name": name, "user": value(&user)? }],
        "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
        "current-context": name,
    }))
}

fn value(part: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(part)
        .map_err(|error| Failure::new(Exit::Error, format!("could not write the kubeconfig: {error}")))
}

pub(crate) fn text(name: &str, kubeconfig: &Value) -> String {
    // The name is the parent's to choose: it must not end its line.
    let head =
        format!("Cluster {name} through the hub in the parent, with your own credential of the parent.");
    let warning = "A tool that drops the path of the server address would reach the parent instead.";
    yaml::comment(&head) + &yaml::comment(warning) + &yaml::document(kubeconfig)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "6f0a1b1e-0000-4000-8000-000000000000";
    const SERVER: &str = "https://parent:6443/apis/proxies.clusternet.io/v1alpha1/sockets/6f0a1b1e-0000-4000-8000-000000000000/proxy/direct";

    fn source(cluster: &str, user: &str) -> Source {
        Source::from_yaml(&format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: one\n\
             clusters:\n- {{name: c, cluster: {cluster}}}\n- {{name: other, cluster: {{server: 'https://other'}}}}\n\
             users:\n- {{name: u, user: {user}}}\n\
             contexts:\n- {{name: one, context: {{cluster: c, user: u, namespace: team}}}}\n\
             - {{name: two, context: {{cluster: other, user: nobody}}}}\n\
             - {{name: torn, context: {{cluster: missing, user: u}}}}\n"
        ))
        .unwrap()
    }

    fn id() -> ClusterId {
        ID.parse().unwrap()
    }

    fn derive(source: &Source, global: &Global) -> Result<Value, Failure> {
        derived(source, global, "edge-1", &id())
    }

    #[test]
    fn every_kind_of_credential_comes_along_unchanged() {
        for user in [
            r#"{"token":"t"}"#,
            r#"{"tokenFile":"/var/token"}"#,
            r#"{"client-certificate-data":"Yw==","client-key-data":"aw=="}"#,
            r#"{"client-certificate":"/pki/c.pem","client-key":"/pki/k.pem"}"#,
            r#"{"exec":{"apiVersion":"client.authentication.k8s.io/v1","args":["login","--x: y"],"command":"helper",
                "env":[{"name":"A","value":"b"}],"interactiveMode":"IfAvailable","provideClusterInfo":true}}"#,
            r#"{"as":"bob","as-groups":["x"],"as-user-extra":{"k":["v"]},"token":"t"}"#,
            r#"{"token":"t","from-the-future":{"a":[1]}}"#,
            "{}",
        ] {
            let source =
                source(r#"{"server":"https://parent:6443","certificate-authority-data":"Y2E="}"#, user);
            let made = derive(&source, &Global::default()).unwrap();
            let expected: Value = serde_json::from_str(user).unwrap();
            assert_eq!(made["users"][0]["user"], expected);
            assert_eq!(
                made["clusters"][0]["cluster"],
                json!({ "server": SERVER, "certificate-authority-data": "Y2E=" })
            );
        }
    }

    #[test]
    fn there_is_one_cluster_one_user_one_context_and_no_namespace_of_the_parent() {
        let made = derive(&source(r#"{"server":"https://parent:6443/"}"#, "{}"), &Global::default()).unwrap();
        assert_eq!(made["clusters"][0]["cluster"]["server"], SERVER);
        assert_eq!(
            made["contexts"],
            json!([{ "name": "edge-1", "context": { "cluster": "edge-1", "user": "edge-1" } }])
        );
        assert_eq!(made["current-context"], "edge-1");
    }

    #[test]
    fn a_parent_behind_a_path_keeps_it() {
        let made =
            derive(&source(r#"{"server":"https://rancher/k8s/clusters/c-1/"}"#, "{}"), &Global::default());
        let server = made.unwrap()["clusters"][0]["cluster"]["server"].as_str().unwrap().to_owned();
        assert!(
            server.starts_with("https://rancher/k8s/clusters/c-1/apis/proxies.clusternet.io/"),
            "{server}"
        );
    }

    #[test]
    fn what_is_not_verified_or_not_encrypted_is_refused() {
        for (cluster, word) in [
            (r#"{"server":"https://p","insecure-skip-tls-verify":true}"#, "insecure-skip-tls-verify"),
            (r#"{"server":"http://p"}"#, "without TLS"),
            ("{}", "without TLS"),
        ] {
            let failure = derive(&source(cluster, "{}"), &Global::default()).unwrap_err();
            assert!(failure.to_string().contains(word), "{failure}");
        }
        let harmless = source(r#"{"server":"https://p","insecure-skip-tls-verify":false}"#, "{}");
        let made = derive(&harmless, &Global::default()).unwrap();
        assert_eq!(made["clusters"][0]["cluster"]["insecure-skip-tls-verify"], Value::Null);
    }

    #[test]
    fn proxy_and_server_name_of_the_parent_stay() {
        let cluster = r#"{"server":"https://p","proxy-url":"http://proxy:3128","tls-server-name":"parent"}"#;
        let made = derive(&source(cluster, "{}"), &Global::default()).unwrap();
        assert_eq!(made["clusters"][0]["cluster"]["proxy-url"], "http://proxy:3128");
        assert_eq!(made["clusters"][0]["cluster"]["tls-server-name"], "parent");
    }

    #[test]
    fn the_flags_choose_the_context_and_the_impersonated_user() {
        let source = source(r#"{"server":"https://p"}"#, r#"{"token":"t","as-groups":["old"]}"#);
        let global = Global { impersonate: Some("alice".to_owned()), ..Global::default() };
        assert_eq!(
            derive(&source, &global).unwrap()["users"][0]["user"],
            json!({ "token": "t", "as": "alice" })
        );
        let global = Global { context: Some("two".to_owned()), ..Global::default() };
        let made = derive(&source, &global).unwrap();
        assert!(
            made["clusters"][0]["cluster"]["server"].as_str().unwrap().starts_with("https://other/apis/")
        );
        for context in ["torn", "none"] {
            let global = Global { context: Some(context.to_owned()), ..Global::default() };
            assert_eq!(derive(&source, &global).unwrap_err().exit(), Exit::Error, "{context}");
        }
    }

    #[test]
    fn a_group_without_a_user_is_an_error_and_no_file() {
        let global = Global { impersonate_groups: vec!["dev".to_owned()], ..Global::default() };
        let failure = derive(&source(r#"{"server":"https://p"}"#, "{}"), &global).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
    }

    #[test]
    fn relative_files_become_absolute() {
        let folder = std::env::temp_dir().join(format!("towline-cli-kubeconfig-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("config");
        std::fs::write(
            &path,
            "current-context: one\nclusters: [{name: c, cluster: {server: 'https://p', certificate-authority: pki/ca.pem}}]\n\
             users: [{name: u, user: {client-certificate: c.pem, client-key: /abs/k.pem, exec: {command: ./helper}}}]\n\
             contexts: [{name: one, context: {cluster: c, user: u}}]\n",
        )
        .unwrap();
        let global = Global { kubeconfig: Some(path), ..Global::default() };
        let read = config::kubeconfig(&global).map(Option::unwrap);
        std::fs::remove_dir_all(&folder).unwrap();
        let made = derive(&read.unwrap(), &global).unwrap();
        let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        assert_eq!(made["clusters"][0]["cluster"]["certificate-authority"], *file("pki/ca.pem"));
        assert_eq!(made["users"][0]["user"]["client-certificate"], *file("c.pem"));
        assert_eq!(made["users"][0]["user"]["client-key"], "/abs/k.pem");
        assert_eq!(made["users"][0]["user"]["exec"]["command"], *file("./helper"));
    }

    #[test]
    fn no_name_of_a_cluster_ends_the_comment_above_it() {
        let made = derive(&source(r#"{"server":"https://parent:6443"}"#, "{}"), &Global::default()).unwrap();
        for name in ["a\rkind: Pod", "a\nkind: Pod", "a\u{2028}b", "a\u{85}b"] {
            let text = text(name, &made);
            assert_eq!(text.lines().filter(|line| line.starts_with('#')).count(), 2, "{name:?}");
            assert!(text.is_ascii() && !text.contains('\r') && !text.contains("\nkind: Pod"), "{name:?}");
        }
    }

    #[test]
    fn the_text_is_read_back_by_a_kubernetes_client() {
        let source = source(r#"{"server":"https://parent:6443"}"#, r#"{"token":"no: \"yaml\" # here\n"}"#);
        let text = text("edge-1", &derive(&source, &Global::default()).unwrap());
        let read = Source::from_yaml(&text).unwrap();
        assert_eq!(read.clusters[0].cluster.as_ref().unwrap().server.as_deref(), Some(SERVER));
        assert_eq!(
            serde_json::to_value(&read.auth_infos[0].auth_info).unwrap()["token"],
            "no: \"yaml\" # here\n"
        );
    }

    proptest! {
        #[test]
        fn no_text_breaks_out_of_its_place(
            name in "[a-z0-9]([-a-z0-9]{0,58}[a-z0-9])?",
            texts in proptest::collection::vec("\\PC{1,30}|[-#:{}\\[\\]&*!|>%@`\"'$()\n ]{1,12}", 4),
        ) {
            let user = json!({ "token": texts[0], "username": texts[1], "exec": { "apiVersion": "v1", "args": [texts[2]],
                               "command": "helper" } });
            let cluster = json!({ "server": "https://parent:6443", "tls-server-name": texts[3] });
            let made = derived(&source(&cluster.to_string(), &user.to_string()), &Global::default(), &name, &id()).unwrap();
            let text = text(&name, &made);
            let read = Source::from_yaml(&text).unwrap();
            prop_assert_eq!((read.clusters.len(), read.auth_infos.len(), read.contexts.len()), (1, 1, 1));
            let part = |value: Value, name: &str| value[name].clone();
            let (cluster, user) = (value(&read.clusters[0].cluster).unwrap(), value(&read.auth_infos[0].auth_info).unwrap());
            prop_assert_eq!(part(cluster, "tls-server-name"), json!(texts[3]));
            prop_assert_eq!(part(user.clone(), "token"), json!(texts[0]));
            prop_assert_eq!(part(user.clone(), "username"), json!(texts[1]));
            prop_assert_eq!(user["exec"]["args"][0].clone(), json!(texts[2]));
            prop_assert_eq!(read.current_context, Some(name));
        }

        #[test]
        fn nothing_is_added_that_the_source_has_not(token in "[a-z]{1,20}") {
            let made = derive(&source(r#"{"server":"https://p"}"#, &json!({ "token": token }).to_string()), &Global::default());
            let text = text("edge-1", &made.unwrap());
            for never in ["insecure", "proxy-url", "tls-server-name", "as:", "as-", "exec", "auth-provider", "namespace"] {
                prop_assert!(!text.contains(never) || token.contains(never), "{}: {}", never, text);
            }
        }
    }
}
