//! `exec-credential`: a short token for one cluster, in the form in which client-go and its like ask a command for it
//! (<https://kubernetes.io/docs/reference/config-api/client-authentication.v1/>). They run this whenever they have none
//! that is good; it asks the hub with the parent's kubeconfig and keeps the answer for two thirds of its life, ten minutes
//! at most.
//!
//! The token is on stdout and in the cache, and nowhere else: not in an argument, not in what is said.

use api::kubeconfig::{Format, KubeconfigRequestSpec};
use jiff::Timestamp;
use kube::config::{AuthInfo, Kubeconfig as Source};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::{ExecCredential, Global};
use crate::failure::{Exit, Failure};
use crate::issue;
use crate::output::{data, say};
use crate::session::Session;
use crate::token_cache::{Kept, TokenCache};
use crate::{config, kubeconfig, merge};

/// The versions of the form that this writes; client-go has had one of them since 1.11.
const VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// What a client says about itself in KUBERNETES_EXEC_INFO.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    api_version: String,
    #[serde(default)]
    spec: AskedSpec,
}

#[derive(Debug, Default, Deserialize)]
struct AskedSpec {
    #[serde(default)]
    cluster: Option<AskedCluster>,
}

#[derive(Debug, Default, Deserialize)]
struct AskedCluster {
    /// The extension `client.authentication.k8s.io/exec` of the cluster, as a ClusterProfile has it.
    #[serde(default)]
    config: Value,
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: &ExecCredential) -> Result<(), Failure> {
    let asked = asked(config::exec_info().as_deref())?;
    let spec = spec(args, &asked)?;
    let cache = TokenCache::new(config::cache_folder(), &[&key(global, &spec)?]);
    let now = Timestamp::now();
    let kept = cache.read(now);
    if let Some(kept) = kept.as_ref().filter(|kept| now < kept.renew) {
        return data(&answer(&asked.api_version, kept, kept.renew));
    }
    let got = match get(global, &spec, now).await {
        Ok(got) => got,
        Err(failure) => {
            // The old one is good for a while yet: a hub that restarts is no reason to stop somebody's work.
            let unreachable = matches!(failure.exit(), Exit::Unreachable | Exit::Timeout);
            let Some(kept) = kept.filter(|_| unreachable) else { return Err(failure) };
            say(&format!("warning: {failure}; going on with the token that there is"));
            return data(&answer(&asked.api_version, &kept, kept.expires));
        }
    };
    if let Err(failure) = cache.write(&got, now) {
        say(&format!("warning: the token could not be kept for the next command: {failure}"));
    }
    data(&answer(&asked.api_version, &got, got.renew))
}

fn asked(info: Option<&str>) -> Result<Asked, Failure> {
    let Some(info) = info else {
        return Ok(Asked { api_version: VERSIONS[0].to_owned(), ..Asked::default() });
    };
    let wrong = |what: &str| {
        Failure::new(Exit::Error, format!("KUBERNETES_EXEC_INFO cannot be used: {what}"))
            .next(format!("in the kubeconfig, users[].user.exec.apiVersion has to be {}", VERSIONS[0]))
    };
    let asked: Asked = serde_json::from_str(info).map_err(|_| wrong("it is no ExecCredential"))?;
    if !VERSIONS.contains(&asked.api_version.as_str()) {
        return Err(wrong(&format!("it asks for {:?}", asked.api_version)));
    }
    Ok(asked)
}

fn spec(args: &ExecCredential, asked: &Asked) -> Result<KubeconfigRequestSpec, Failure> {
    let configured = asked.spec.cluster.as_ref().and_then(|cluster| cluster.config["clusterName"].as_str());
    let cluster = args.cluster.as_ref().map(|cluster| cluster.as_str()).or(configured).ok_or_else(|| {
        Failure::new(Exit::Usage, "nobody says which cluster")
            .next("name it: kubectl towline exec-credential CLUSTER; or have the client give the cluster's configuration: provideClusterInfo: true")
    })?;
    Ok(KubeconfigRequestSpec {
        cluster: cluster.to_owned(),
        role: args.role.role(),
        service: args.service.clone(),
        ttl_seconds: Some(args.ttl.as_secs()),
        address: None,
        format: Format::Kubeconfig,
    })
}

/// Whose token for what: the parent, the caller's credential there, and the question.
fn key(global: &Global, spec: &KubeconfigRequestSpec) -> Result<String, Failure> {
    let parent = match config::kubeconfig(global)? {
        None => Value::Null,
        Some(source) => {
            let (context, cluster, user) = kubeconfig::selected(&source, global.context.as_deref())?;
            refuse_itself(&source, &context, &user)?;
            json!([context, cluster.server, user])
        }
    };
    Ok(json!([parent, global.impersonate, global.impersonate_groups, spec]).to_string())
}

/// A kubeconfig that asks this command for its token cannot be that which this command asks with: it would ask itself
/// for ever.
fn refuse_itself(source: &Source, context: &str, user: &AuthInfo) -> Result<(), Failure> {
    let arguments = user.exec.as_ref().and_then(|exec| exec.args.as_ref());
    let itself = arguments.is_some_and(|all| all.iter().any(|argument| argument == "exec-credential"));
    if !itself && !merge::is_marked(source, context) {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, format!("context {context:?} leads to a cluster, not to its parent"))
        .next("name the parent's kubeconfig in users[].user.exec.args: --kubeconfig FILE, or --context NAME"))
}

async fn get(global: &Global, spec: &KubeconfigRequestSpec, now: Timestamp) -> Result<Kept, Failure> {
    let session = Session::open(global).await?;
    let status = issue::issue(&session, spec).await?;
    let (Some(token), Some(expires)) = (status.token, status.expires) else {
        return Err(Failure::new(Exit::Error, "the hub's answer holds no token")
            .next("compare the versions of hub and command: kubectl towline version"));
    };
    Ok(Kept::new(token, status.credential.unwrap_or_default(), now, expires))
}

/// `until` is when the client is to ask again; it keeps the token in memory until then.
fn answer(version: &str, kept: &Kept, until: Timestamp) -> String {
    let until = Timestamp::from_second(until.as_second()).unwrap_or(until);
    let answer = json!({
        "apiVersion": version, "kind": "ExecCredential",
        "status": { "token": kept.token.reveal(), "expirationTimestamp": until.to_string() },
    });
    format!("{answer}\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(line: &str) -> ExecCredential {
        let words = ["kubectl-towline", "exec-credential"].into_iter().chain(line.split_whitespace());
        let command = Cli::try_parse_from(words).unwrap().command;
        if let Command::ExecCredential(args) = command { args } else { panic!("{line}") }
    }

    #[test]
    fn it_answers_in_the_version_that_was_asked_for() {
        for version in VERSIONS {
            let info = format!(
                r#"{{"kind":"ExecCredential","apiVersion":"{version}","spec":{{"interactive":true}}}}"#
            );
            assert_eq!(asked(Some(&info)).unwrap().api_version, version);
        }
        assert_eq!(asked(None).unwrap().api_version, VERSIONS[0]);
        for wrong in ["", "{}", "x", r#"{"apiVersion":"client.authentication.k8s.io/v1alpha1"}"#] {
            assert_eq!(asked(Some(wrong)).unwrap_err().exit(), Exit::Error, "{wrong}");
        }
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (now, end) = (at("2030-01-01T00:00:00.5Z"), at("2030-01-01T01:00:00.5Z"));
        let kept = Kept::new("twl-a".to_owned().into(), "id".to_owned(), now, end);
        let read: Value = serde_json::from_str(&answer(VERSIONS[1], &kept, kept.renew)).unwrap();
        assert_eq!(
            read,
            json!({ "apiVersion": VERSIONS[1], "kind": "ExecCredential",
                    "status": { "token": "twl-a", "expirationTimestamp": "2030-01-01T00:10:00Z" } })
        );
    }

    #[test]
    fn the_cluster_is_named_by_argument_or_by_the_clients_configuration() {
        let info = r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",
            "spec":{"interactive":false,"cluster":{"server":"https://x","config":{"clusterName":"edge-2"}}}}"#;
        let info = asked(Some(info)).unwrap();
        assert_eq!(spec(&parsed(""), &info).unwrap().cluster, "edge-2");
        assert_eq!(spec(&parsed("edge-1"), &info).unwrap().cluster, "edge-1");
        assert_eq!(spec(&parsed(""), &asked(None).unwrap()).unwrap_err().exit(), Exit::Usage);
        let whole =
            spec(&parsed("edge-1 --role view --service argo --ttl 10m"), &asked(None).unwrap()).unwrap();
        assert_eq!(
            serde_json::to_value(whole).unwrap(),
            json!({ "cluster": "edge-1", "role": "view", "service": "argo", "ttlSeconds": 600 })
        );
        assert_eq!(spec(&parsed("edge-1"), &info).unwrap().ttl_seconds, Some(3600));
    }

    #[test]
    fn it_never_asks_itself() {
        let source = |user: &str, extensions: &str| {
            Source::from_yaml(&format!(
                "current-context: one\nclusters: [{{name: c, cluster: {{server: 'https://p'}}}}]\n\
                 users: [{{name: u, user: {user}}}]\n\
                 contexts: [{{name: one, context: {{cluster: c, user: u, extensions: {extensions}}}}}]\n"
            ))
            .unwrap()
        };
        for (user, extensions, refused) in [
            ("{token: t}", "[]", false),
            ("{exec: {command: kubectl, args: [oidc-login, get-token]}}", "[]", false),
            ("{exec: {command: kubectl, args: [towline, exec-credential, edge-1]}}", "[]", true),
            ("{token: t}", "[{name: towline.io, extension: {cluster: edge-1}}]", true),
        ] {
            let source = source(user, extensions);
            let (context, _, user) = kubeconfig::selected(&source, None).unwrap();
            assert_eq!(refuse_itself(&source, &context, &user).is_err(), refused, "{context}");
        }
    }
}
