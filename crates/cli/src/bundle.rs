//! `support-bundle`: what somebody who helps would ask for, in one file: versions, the doctor's findings, objects,
//! events, logs. Whatever could not be had is named in its README.
//!
//! Promises: no Secret is ever asked for; every text goes through [`redact`] before it is written, by type; sizes are
//! bounded; the file is new and readable by its owner alone.

mod archive;
mod redact;

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use api::names::{ClusterId, proxy_path};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::args::SupportBundle;
use crate::ask::get;
use crate::failure::{Exit, Failure};
use crate::output::{data, say};
use crate::session::Session;
use crate::{doctor, find};
use archive::Files;
use redact::Clean;

/// Longest time for one question.
const MOST: Duration = Duration::from_secs(15);
/// Most pods of one side whose logs are taken.
const MAX_PODS: usize = 10;
/// How much of each log.
const LOG: &str = "tailLines=5000&limitBytes=1500000&timestamps=true";

/// What is asked of the parent: where it goes, and the path.
const PARENT: [(&str, &str); 8] = [
    ("parent/version.json", "/version"),
    ("parent/managedclusters.json", "/apis/clusters.clusternet.io/v1beta1/managedclusters?limit=500"),
    (
        "parent/clusterregistrationrequests.json",
        "/apis/clusters.clusternet.io/v1beta1/clusterregistrationrequests?limit=500",
    ),
    (
        "parent/apiservice-proxies.json",
        "/apis/apiregistration.k8s.io/v1/apiservices/v1alpha1.proxies.clusternet.io",
    ),
    (
        "parent/apiservice-access.json",
        "/apis/apiregistration.k8s.io/v1/apiservices/v1alpha1.access.towline.io",
    ),
    (
        "parent/crd-managedclusters.json",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/managedclusters.clusters.clusternet.io",
    ),
    ("parent/services.json", "/api/v1/namespaces/clusternet-system/services?limit=50"),
    ("parent/hub-openapi.json", "/openapi/v3/apis/proxies.clusternet.io/v1alpha1"),
];

/// What is asked of either side.
const EITHER: [(&str, &str); 3] = [
    ("deployments.json", "/apis/apps/v1/namespaces/clusternet-system/deployments?limit=50"),
    ("pods.json", "/api/v1/namespaces/clusternet-system/pods?limit=50"),
    ("events.json", "/api/v1/namespaces/clusternet-system/events?limit=500"),
];

/// What is asked of the cluster besides.
const CHILD: [(&str, &str); 4] = [
    ("version.json", "/version"),
    ("readyz.txt", "/readyz?verbose"),
    ("policy.json", "/api/v1/namespaces/clusternet-system/configmaps/clusternet-agent-policy"),
    ("nodes.json", "/api/v1/nodes?limit=50"),
];

/// Runs the command.
pub(crate) async fn run(session: &Session, args: &SupportBundle) -> Result<(), Failure> {
    // The file first: what cannot be written down need not be collected.
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let unwritable = |error: std::io::Error| {
        Failure::new(Exit::Error, format!("could not write {}: {error}", args.out.display()))
            .next("choose another name: a file that exists is not replaced")
    };
    let mut file = options.open(&args.out).map_err(unwritable)?;
    let made = make(session, args, &mut file).await;
    if made.is_err() {
        // The command says why; half a bundle would only look like one.
        drop(std::fs::remove_file(&args.out));
    }
    let (size, there, missing) = made?;
    told(&args.out, size, there, missing)
}

/// Fills the file: its size, how many files are in it, and how many are not.
async fn make(
    session: &Session,
    args: &SupportBundle,
    file: &mut File,
) -> Result<(usize, usize, usize), Failure> {
    let (files, head) = fill(session, args.cluster.as_ref()).await?;
    let (there, missing) = files.counts();
    let unwritable =
        |error: std::io::Error| Failure::new(Exit::Error, format!("could not write the bundle: {error}"));
    let bytes = files.pack(&head).map_err(unwritable)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(unwritable)?;
    Ok((bytes.len(), there, missing))
}

fn told(out: &Path, size: usize, there: usize, missing: usize) -> Result<(), Failure> {
    data(&format!("{}\n", out.display()))?;
    say(&format!(
        "{there} files, {} KiB; {missing} could not be had, README.txt in it says why.\n\
         Secrets were not asked for and what looks like one is cut. Names, addresses and logs are in it: look before you \
         send it.\n\
         next:  tar tzf {}",
        size.div_ceil(1024),
        crate::args::shell_word(&out.display().to_string()),
    ));
    Ok(())
}

async fn fill(session: &Session, wanted: Option<&ClusterId>) -> Result<(Files, String), Failure> {
    let mut files = Files::default();
    let found = match wanted {
        None => None,
        Some(wanted) => Some(find::registered(session, wanted).await?),
    };
    say("collecting: the doctor's findings");
    files.add("doctor.json", &Clean::object(&doctor::report(&session.global, wanted).await));
    files.add("command.json", &Clean::object(&json!({ "version": env!("CARGO_PKG_VERSION") })));
    say("collecting: the parent");
    for (name, path) in PARENT {
        take(session, &mut files, name, path).await;
    }
    side(session, &mut files, "parent", "").await;
    let Some(cluster) = found else { return Ok((files, head(None))) };
    if let Some(namespace) = cluster.namespace() {
        let path = format!("/api/v1/namespaces/{namespace}/events?limit=500");
        take(session, &mut files, "parent/cluster-events.json", &path).await;
    }
    let Ok(id) = cluster.spec.cluster_id.parse::<ClusterId>() else {
        files.miss("child", "the cluster has a broken id");
        return Ok((files, head(None)));
    };
    say("collecting: the cluster, through the hub");
    let root = proxy_path(&id);
    for (name, path) in CHILD {
        take(session, &mut files, &format!("child/{name}"), &format!("{root}{path}")).await;
    }
    side(session, &mut files, "child", &root).await;
    Ok((files, head(Some(&cluster.name_any()))))
}

fn head(cluster: Option<&str>) -> String {
    let about = cluster.map_or_else(|| "the parent and its hub".to_owned(), |name| format!("cluster {name}"));
    format!(
        "Support bundle of kubectl-towline {} about {about}.\nWhat looks like a secret is cut: [cut].",
        env!("CARGO_PKG_VERSION")
    )
}

/// Deployments, pods, events and logs of one side.
async fn side(session: &Session, files: &mut Files, name: &str, root: &str) {
    for (file, path) in EITHER {
        let body = take(session, files, &format!("{name}/{file}"), &format!("{root}{path}")).await;
        if file != "pods.json" {
            continue;
        }
        for pod in pods(&body) {
            if !is_name(pod) {
                files.miss(&format!("{name}/logs"), "a pod whose name is none in Kubernetes");
                continue;
            }
            let log = format!("{root}/api/v1/namespaces/clusternet-system/pods/{pod}/log?{LOG}");
            take(session, files, &format!("{name}/logs/{pod}.log"), &log).await;
            take(session, files, &format!("{name}/logs/{pod}.previous.log"), &format!("{log}&previous=true"))
                .await;
        }
    }
}

fn pods(list: &Value) -> impl Iterator<Item = &str> {
    let pods = list["items"].as_array().into_iter().flatten();
    pods.filter_map(|pod| pod["metadata"]["name"].as_str()).take(MAX_PODS)
}

/// Whether it is a DNS-1123 subdomain, as names of pods are. A hostile child names its pods as it likes, and the name
/// becomes a part of a path at the parent and of one in the archive.
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &str| {
        let (first, last) = (label.bytes().next(), label.bytes().last());
        first.is_some_and(plain) && last.is_some_and(plain) && label.bytes().all(|b| plain(b) || b == b'-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

/// One file; what came, for what follows from it.
async fn take(session: &Session, files: &mut Files, name: &str, path: &str) -> Value {
    match get(&session.client, path, session.global.request_timeout.min(MOST)).await {
        Ok(answer) if answer.is_ok() && answer.body.is_object() => {
            files.add(name, &Clean::object(&answer.body));
            answer.body
        }
        Ok(answer) if answer.is_ok() => {
            files.add(name, &Clean::text(&answer.text));
            Value::Null
        }
        Ok(answer) => {
            files.miss(name, &answer.said());
            Value::Null
        }
        Err(error) => {
            files.miss(name, &error.to_string());
            Value::Null
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_ever_asked_for() {
        for (name, path) in PARENT.iter().chain(&EITHER).chain(&CHILD) {
            let path = path.to_ascii_lowercase();
            assert!(!path.contains("secret") && !path.contains("token"), "{name}: {path}");
        }
    }

    #[test]
    fn a_pod_has_a_name_of_kubernetes_or_no_log() {
        for name in ["clusternet-agent-7c9d8f-xyz", "a", "0.b-c.d"] {
            assert!(is_name(name), "{name}");
        }
        let long = "a".repeat(254);
        for name in [
            "",
            ".",
            "..",
            "../../../../secrets/a",
            "a/b",
            "a?b",
            "a%2e",
            "A",
            "-a",
            "a-",
            "a..b",
            "a b",
            "a\nb",
            "ä",
            &long,
        ] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn nothing_is_asked_for_without_a_bound() {
        for (name, path) in PARENT.iter().chain(&EITHER).chain(&CHILD) {
            let list = path.rsplit('/').next().unwrap_or_default().split('?').next().unwrap_or_default();
            if ["managedclusters", "pods", "events", "deployments", "services", "nodes"].contains(&list) {
                assert!(path.contains("limit="), "{name}: {path}");
            }
        }
        assert!(LOG.contains("tailLines=") && LOG.contains("limitBytes="));
    }
}
