//! What the hub answers, before it is written, printed or merged. A kubeconfig can name commands and a shell runs what it
//! is given, so a hub that lies could act on the computer of whoever asks it. Pure.
//!
//! Promises: what leaves here as a kubeconfig or as exports was written here, from a server, a CA and a token that were
//! looked at; nothing else of the answer is in it. What a person applies elsewhere (a Secret for Argo CD) is the hub's own
//! text: they are to look at it, and it does nothing to their terminal.

use api::kubeconfig::{Format, KubeconfigRequestSpec, KubeconfigRequestStatus};
use api::yaml;
use k8s_openapi::ByteString;
use serde_json::{Map, Value, json};

use crate::failure::{Exit, Failure};

/// What may stand in an exec entry; `env` is none of it. The words beside `command` and `args` decide nothing.
const EXEC: [&str; 6] =
    ["apiVersion", "command", "args", "installHint", "interactiveMode", "provideClusterInfo"];

/// The kubeconfig of an answer, made anew.
///
/// # Errors
/// Something stands in it that no honest hub writes.
pub(crate) fn kubeconfig(
    spec: &KubeconfigRequestSpec,
    status: &KubeconfigRequestStatus,
) -> Result<Value, Failure> {
    let made: Value = serde_saphyr::from_str(status.kubeconfig.reveal()).map_err(|_| {
        // What a parser says quotes the text, and the text holds a token.
        Failure::new(Exit::Error, "the kubeconfig in the hub's answer cannot be read")
            .next("compare the versions of hub and command: kubectl towline version")
    })?;
    let cluster = cluster(only(&made, "clusters", "cluster")?, status)?;
    let user = only(&made, "users", "user")?;
    let user = match spec.format.has_token() {
        true => with_token(user, status)?,
        false => with_command(user, spec)?,
    };
    // Its names and what it refers to are not taken: they follow from the question.
    only(&made, "contexts", "context")?;
    let name = &spec.cluster;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "current-context": name,
        "clusters": [{ "name": name, "cluster": cluster }],
        "users": [{ "name": name, "user": user }],
        "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
    }))
}

/// The text that was asked for.
///
/// # Errors
/// As above.
pub(crate) fn content(
    spec: &KubeconfigRequestSpec,
    status: &KubeconfigRequestStatus,
) -> Result<String, Failure> {
    match spec.format {
        Format::Kubeconfig | Format::Exec => Ok(yaml::document(&kubeconfig(spec, status)?)),
        Format::Env => exports(&kubeconfig(spec, status)?),
        Format::Tkestack
        | Format::ArgocdSecret
        | Format::FluxSecret
        | Format::ClusterProfile
        | Format::Terraform => {
            let content = status.content.reveal();
            if content.chars().any(|c| c.is_control() && !"\n\r\t".contains(c)) {
                return Err(refused("it holds characters that act on a terminal"));
            }
            Ok(content.to_owned())
        }
    }
}

/// The token.
///
/// # Errors
/// It is none as the hub makes them: base64url behind a prefix, which needs no escape wherever it is put.
pub(crate) fn token(status: &KubeconfigRequestStatus) -> Result<&str, Failure> {
    let token = status.token.as_ref().map(|token| token.reveal()).unwrap_or_default();
    let plain = token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if !plain || token.is_empty() {
        return Err(refused("it holds no token as the hub makes them"));
    }
    Ok(token)
}

fn refused(why: &str) -> Failure {
    Failure::new(Exit::Error, format!("the hub's answer is not used: {why}")).next(
        "ask those who run the hub, and compare the versions of hub and command: kubectl towline version",
    )
}

/// What the one entry of a list holds.
fn only<'a>(made: &'a Value, list: &str, kind: &str) -> Result<&'a Map<String, Value>, Failure> {
    let entries = made[list].as_array().map(Vec::as_slice).unwrap_or_default();
    let [entry] = entries else {
        return Err(refused(&format!("its kubeconfig has {} {list} and not one", entries.len())));
    };
    entry[kind].as_object().ok_or_else(|| refused(&format!("its kubeconfig holds no {kind}")))
}

/// Server and CA. A file name, a proxy, another name for the server or an end of verification would each send the token
/// elsewhere.
fn cluster(cluster: &Map<String, Value>, status: &KubeconfigRequestStatus) -> Result<Value, Failure> {
    if let Some(key) =
        cluster.keys().find(|key| !["server", "certificate-authority-data"].contains(&key.as_str()))
    {
        return Err(refused(&format!("the cluster of its kubeconfig has {key:?}")));
    }
    let server = cluster.get("server").and_then(Value::as_str).unwrap_or_default();
    let uri = server.parse::<http::Uri>().ok();
    let is_https = uri.as_ref().is_some_and(|uri| {
        uri.scheme() == Some(&http::uri::Scheme::HTTPS)
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
    });
    if !is_https || server != status.server {
        return Err(refused(&format!("{server:?} is no server as the hub spells them, with https://")));
    }
    let mut made = json!({ "server": server });
    if let Some(ca) = cluster.get("certificate-authority-data") {
        pem(ca)?;
        made["certificate-authority-data"] = ca.clone();
    }
    Ok(made)
}

fn pem(ca: &Value) -> Result<String, Failure> {
    let bytes = serde_json::from_value::<ByteString>(ca.clone()).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes.0).ok());
    text.filter(|text| !text.chars().any(|c| c.is_control() && !"\n\r\t".contains(c)))
        .ok_or_else(|| refused("the CA of its kubeconfig is no PEM in base64"))
}

fn with_token(user: &Map<String, Value>, status: &KubeconfigRequestStatus) -> Result<Value, Failure> {
    let token = token(status)?;
    let wanted = json!({ "token": token });
    if wanted.as_object() != Some(user) {
        // Which words stand there, but not what is behind them.
        let keys: Vec<&str> = user.keys().map(String::as_str).collect();
        return Err(refused(&format!(
            "the user of its kubeconfig is not the token alone (it has {})",
            keys.join(", ")
        )));
    }
    Ok(wanted)
}

/// The command that gets a token: this one, for what was asked, as the hub writes it (generate/kubeconfig.rs there).
fn with_command(user: &Map<String, Value>, spec: &KubeconfigRequestSpec) -> Result<Value, Failure> {
    let mut args = vec!["towline".to_owned(), "exec-credential".to_owned(), spec.cluster.clone()];
    args.extend(spec.role.map(|role| format!("--role={}", role.subresource())));
    args.extend(spec.service.as_ref().map(|service| format!("--service={service}")));
    args.extend(spec.ttl_seconds.map(|seconds| format!("--ttl={seconds}s")));
    let exec = user.get("exec").and_then(Value::as_object).filter(|_| user.len() == 1);
    let exec = exec.ok_or_else(|| refused("the user of its kubeconfig is not one command alone"))?;
    if let Some(key) = exec.keys().find(|key| !EXEC.contains(&key.as_str())) {
        return Err(refused(&format!("the command of its kubeconfig has {key:?}")));
    }
    if exec.get("command") != Some(&json!("kubectl")) || exec.get("args") != Some(&json!(args)) {
        return Err(refused(&format!("the command of its kubeconfig is not: kubectl {}", args.join(" "))));
    }
    Ok(json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "kubectl",
        "args": args,
        "installHint": "kubectl towline is missing: put kubectl-towline into a folder of your PATH",
        // The credential of the parent may have to ask the person something.
        "interactiveMode": "IfAvailable",
        "provideClusterInfo": false,
    } }))
}

/// For `eval "$(…)"`. No comment at its head: an interactive zsh would run it.
fn exports(kubeconfig: &Value) -> Result<String, Failure> {
    let cluster = &kubeconfig["clusters"][0]["cluster"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ca = cluster.get("certificate-authority-data").map(pem).transpose()?;
    let mut out = String::new();
    for (name, value) in [
        ("KUBE_HOST", text(&cluster["server"])),
        ("KUBE_TOKEN", text(&kubeconfig["users"][0]["user"]["token"])),
    ] {
        out.push_str(&format!("export {name}={}\n", quoted(&value)));
    }
    match ca {
        Some(ca) => out.push_str(&format!("export KUBE_CLUSTER_CA_CERT_DATA={}\n", quoted(&ca))),
        // That of another cluster must not stay.
        None => out.push_str("unset KUBE_CLUSTER_CA_CERT_DATA\n"),
    }
    Ok(out)
}

/// One word of a POSIX shell, whatever stands in it (XCU section 2.2.2).
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
pub(crate) mod tests {
    use api::secret::Secret;
    use jiff::Timestamp;

    use super::*;

    const SERVER: &str = "https://hub.example.com/k8s/clusters/edge-1";
    /// "CA'\n"
    const CA: &str = "Q0EnCg==";

    pub(crate) fn spec(value: Value) -> KubeconfigRequestSpec {
        let mut whole = json!({ "cluster": "edge-1" });
        whole.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    pub(crate) fn status(kubeconfig: &str, content: &str, token: &str) -> KubeconfigRequestStatus {
        KubeconfigRequestStatus {
            credential: Some("0123456789abcdef".to_owned()),
            expires: Some(Timestamp::UNIX_EPOCH),
            server: SERVER.to_owned(),
            token: Some(Secret::from(token.to_owned())),
            kubeconfig: Secret::from(kubeconfig.to_owned()),
            content: Secret::from(content.to_owned()),
        }
    }

    /// As the hub makes it.
    pub(crate) fn honest(user: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "edge-1",
            "clusters": [{ "name": "edge-1", "cluster": { "server": SERVER, "certificate-authority-data": CA } }],
            "users": [{ "name": "edge-1", "user": user }],
            "contexts": [{ "name": "edge-1", "context": { "cluster": "edge-1", "user": "edge-1" } }],
        })
    }

    fn exec(args: &Value) -> Value {
        json!({ "exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "command": "kubectl", "args": args,
            "installHint": "kubectl towline is missing: put kubectl-towline into a folder of your PATH",
            "interactiveMode": "IfAvailable", "provideClusterInfo": false,
        } })
    }

    fn answered(spec: &KubeconfigRequestSpec, kubeconfig: &Value) -> Result<String, Failure> {
        content(spec, &status(&yaml::document(kubeconfig), "the hub's own text", "twl-a_b-9"))
    }

    #[test]
    fn what_an_honest_hub_writes_stays_as_it_is() {
        let with_token = honest(&json!({ "token": "twl-a_b-9" }));
        assert_eq!(answered(&spec(json!({})), &with_token).unwrap(), yaml::document(&with_token));
        let asked = spec(json!({ "format": "exec", "role": "view", "service": "argo", "ttlSeconds": 600 }));
        let args =
            json!(["towline", "exec-credential", "edge-1", "--role=view", "--service=argo", "--ttl=600s"]);
        let with_command = honest(&exec(&args));
        assert_eq!(answered(&asked, &with_command).unwrap(), yaml::document(&with_command));
        // A hub whose CA everybody trusts names none.
        let mut trusted = with_token;
        trusted["clusters"][0]["cluster"].as_object_mut().unwrap().remove("certificate-authority-data");
        assert_eq!(answered(&spec(json!({})), &trusted).unwrap(), yaml::document(&trusted));
    }

    /// What the hub's own tests hold it to.
    fn golden(name: &str) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../hub/src/generate/golden");
        std::fs::read_to_string(format!("{folder}/{name}.txt")).unwrap()
    }

    #[test]
    fn what_this_version_of_the_hub_answers_is_taken() {
        let (made, exec) = (golden("kubeconfig"), golden("exec"));
        for (format, kubeconfig, expected) in [
            ("kubeconfig", &made, made.as_str()),
            ("exec", &exec, exec.as_str()),
            // Without the hub's comment.
            ("env", &made, golden("env").split_once('\n').unwrap().1),
        ] {
            let asked = spec(json!({ "format": format, "role": "view" }));
            assert_eq!(content(&asked, &status(kubeconfig, "", "twl-abc")).unwrap(), expected);
        }
    }

    #[test]
    fn a_hub_that_lies_has_nobody_run_a_command() {
        let usual = json!(["towline", "exec-credential", "edge-1"]);
        let evil = json!({ "exec": { "apiVersion": "client.authentication.k8s.io/v1", "command": "sh",
                                     "args": ["-c", "id"], "interactiveMode": "Never" } });
        let changed = |path: &str, value: Value| {
            let mut user = exec(&usual);
            user["exec"][path] = value;
            user
        };
        for format in ["kubeconfig", "exec", "env"] {
            let asked = spec(json!({ "format": format }));
            let mut users = vec![
                evil.clone(),
                changed("command", json!("./kubectl")),
                changed("args", json!(["towline", "exec-credential", "edge-1", "--kubeconfig=/tmp/x"])),
                changed("args", json!(["ctx", "exec-credential", "edge-1"])),
                changed("args", json!(["towline", "exec-credential", "edge-2"])),
                changed("env", json!([{ "name": "PATH", "value": "/tmp" }])),
                json!({ "token": "twl-a_b-9", "exec": evil["exec"] }),
                json!({ "token": "twl-another" }),
                json!({ "token": "twl-a_b-9", "as": "root" }),
                json!({ "tokenFile": "/root/.ssh/id_rsa" }),
                json!({ "auth-provider": { "name": "gcp", "config": { "cmd-path": "sh" } } }),
                json!({}),
            ];
            users.extend((format != "exec").then(|| exec(&usual)));
            for user in users {
                let failure = answered(&asked, &honest(&user)).unwrap_err();
                assert_eq!(failure.exit(), Exit::Error, "{format} {user}");
                assert!(!failure.to_string().contains("twl-"), "{failure}");
            }
        }
        assert!(answered(&spec(json!({ "format": "exec" })), &honest(&exec(&usual))).is_ok());
    }

    #[test]
    fn a_server_that_is_not_verified_or_not_the_one_that_is_named_is_refused() {
        for (key, value) in [
            ("server", json!("http://hub.example.com/k8s/clusters/edge-1")),
            ("server", json!("https://elsewhere/k8s/clusters/edge-1")),
            ("server", json!("")),
            ("insecure-skip-tls-verify", json!(true)),
            ("proxy-url", json!("http://elsewhere")),
            ("tls-server-name", json!("elsewhere")),
            ("certificate-authority", json!("/etc/shadow")),
            ("certificate-authority-data", json!("no base64!")),
            ("certificate-authority-data", json!("G1sySg==")),
            ("extensions", json!([])),
        ] {
            let mut made = honest(&json!({ "token": "twl-a_b-9" }));
            made["clusters"][0]["cluster"][key] = value.clone();
            assert!(answered(&spec(json!({})), &made).is_err(), "{key}: {value}");
        }
        for list in ["clusters", "users", "contexts"] {
            let mut made = honest(&json!({ "token": "twl-a_b-9" }));
            let second = made[list][0].clone();
            made[list].as_array_mut().unwrap().push(second);
            assert!(answered(&spec(json!({})), &made).is_err(), "two {list}");
            made[list] = json!([]);
            assert!(answered(&spec(json!({})), &made).is_err(), "no {list}");
        }
        let torn = status("users: [", "c", "twl-a");
        assert!(content(&spec(json!({})), &torn).unwrap_err().to_string().contains("cannot be read"));
    }

    #[test]
    fn what_a_shell_is_to_run_is_written_here() {
        let asked = spec(json!({ "format": "env", "role": "view" }));
        let made = honest(&json!({ "token": "twl-a_b-9" }));
        let evil = "export KUBE_HOST='x'; touch /tmp/owned\n";
        let text = content(&asked, &status(&yaml::document(&made), evil, "twl-a_b-9")).unwrap();
        assert_eq!(
            text,
            "export KUBE_HOST='https://hub.example.com/k8s/clusters/edge-1'\nexport KUBE_TOKEN='twl-a_b-9'\n\
             export KUBE_CLUSTER_CA_CERT_DATA='CA'\\''\n'\n"
        );
        let said = std::process::Command::new("sh")
            .args(["-c", &format!("{text}printf %s \"$KUBE_HOST $KUBE_TOKEN $KUBE_CLUSTER_CA_CERT_DATA\"")])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), format!("{SERVER} twl-a_b-9 CA'\n"));

        let mut quoted = status(&yaml::document(&made), evil, "twl-a_b-9");
        quoted.server = "https://hub/'$(id)'".to_owned();
        let mut made = made;
        made["clusters"][0]["cluster"]["server"] = json!(quoted.server);
        quoted.kubeconfig = Secret::from(yaml::document(&made));
        if let Ok(text) = content(&asked, &quoted) {
            assert!(text.starts_with("export KUBE_HOST='https://hub/'\\''$(id)'\\'''\n"), "{text}");
        }
        made["clusters"][0]["cluster"].as_object_mut().unwrap().remove("certificate-authority-data");
        assert!(exports(&made).unwrap().ends_with("\nunset KUBE_CLUSTER_CA_CERT_DATA\n"));
    }

    #[test]
    fn a_text_for_another_tool_does_nothing_to_a_terminal() {
        for format in ["argocd-secret", "flux-secret", "terraform", "tkestack", "clusterprofile"] {
            let asked = spec(json!({ "format": format }));
            assert_eq!(content(&asked, &status("k", "a: b\n\tc\n", "twl-a")).unwrap(), "a: b\n\tc\n");
            assert!(content(&asked, &status("k", "\u{1b}]0;x\u{7}", "twl-a")).is_err(), "{format}");
        }
    }
}
