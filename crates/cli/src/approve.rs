//! `approve` and `deny`: a person's decision on a cluster. A decision is bound to what the person saw: the
//! patch carries the version of the object, so a request that changed meanwhile is a conflict, not a yes, and an
//! approval names the key, which the hub compares once more. Names that look like another cluster's are pointed out.

use std::collections::BTreeSet;

use api::cluster::ManagedCluster;
use api::names::ClusterId;
use api::registration::{ClusterRegistrationRequest, RegistrationResult};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::args::{Approve, Deny};
use crate::failure::{Exit, Failure};
use crate::output::{ask, data, say, shown};
use crate::session::Session;
use crate::{find, wait};

/// Who writes, in the objects' managed fields.
const FIELD_MANAGER: &str = "kubectl-towline";

/// Runs `approve`.
pub(crate) async fn approve(session: &Session, args: &Approve) -> Result<(), Failure> {
    let request = find::request(session, &args.cluster).await?;
    let Some(request) = request else {
        let cluster = find::registered(session, &args.cluster).await?;
        return readmit(session, args, &cluster).await;
    };
    if find::decision(&request) == Some(RegistrationResult::Approved) {
        return match find::cluster(session, &args.cluster).await? {
            Some(cluster) => readmit(session, args, &cluster).await,
            None if args.dry_run => data("Nothing to do (dry run): the cluster is approved already.\n"),
            None => {
                say(&format!("Cluster {} is approved already.", shown(&request.spec.cluster_name)));
                ready(session, args, &request.spec.cluster_id, &request.spec.cluster_name).await
            }
        };
    }
    say(&card(&request, &registered_as(session, &request).await?));
    say_similar(session, &request).await?;
    compare(args.fingerprint.as_deref(), &request)?;
    if args.dry_run {
        return data(&format!("Would approve (dry run): cluster {}.\n", shown(&request.spec.cluster_name)));
    }
    confirm(session, args)?;
    decide(session, &request, &approval(&request)).await?;
    // A cluster that was shut out and asks anew needs both decisions taken back. Whoever may approve need not
    // be allowed to see clusters; then there is nothing to take back for them.
    match find::cluster(session, &args.cluster).await {
        Ok(Some(cluster)) if cluster.spec.denied => shut(session, &cluster, false).await?,
        Ok(Some(_) | None) => {}
        Err(failure) if failure.exit() == Exit::Denied => {}
        Err(failure) => return Err(failure),
    }
    data(&format!("Approved: cluster {}.\n", shown(&request.spec.cluster_name)))?;
    ready(session, args, &request.spec.cluster_id, &request.spec.cluster_name).await
}

/// Runs `deny`.
pub(crate) async fn deny(session: &Session, args: &Deny) -> Result<(), Failure> {
    let request = find::request(session, &args.cluster).await?;
    if let Some(request) = request.filter(may_be_denied) {
        let registered = registered_as(session, &request).await?;
        say(&card(&request, &registered));
        if args.dry_run {
            return data(&format!("Would deny (dry run): cluster {}.\n", shown(&request.spec.cluster_name)));
        }
        decide(session, &request, &denial(&request, &args.reason)).await?;
        data(&format!("Denied: cluster {}.\n", shown(&request.spec.cluster_name)))?;
        say(&after_denial(&request, &registered, &session.command()));
        return Ok(());
    }
    let cluster = find::registered(session, &args.cluster).await?;
    let name = shown(&cluster.name_any());
    if cluster.spec.denied {
        say(&format!("Cluster {name} is shut out already."));
        return Ok(());
    }
    if args.dry_run {
        return data(&format!("Would shut out (dry run): cluster {name}.\n"));
    }
    shut(session, &cluster, true).await?;
    let command = session.command();
    data(&format!("Shut out: cluster {name}.\n"))?;
    say(&format!(
        "Its tunnel closes within 5 seconds and none is accepted.\n\
         next:  {command} approve {name} (to let it in again) or {command} unregister {name}"
    ));
    Ok(())
}

/// The cluster that a request is about, as it is registered now.
#[derive(Debug)]
enum Registered {
    /// It is not.
    No,
    /// For this key; shut out or not.
    For { key: String, denied: bool },
    /// The caller may not see clusters.
    Hidden,
}

async fn registered_as(
    session: &Session,
    request: &ClusterRegistrationRequest,
) -> Result<Registered, Failure> {
    let Ok(id) = request.spec.cluster_id.parse::<ClusterId>() else { return Ok(Registered::No) };
    match find::cluster(session, &id).await {
        Ok(None) => Ok(Registered::No),
        Ok(Some(cluster)) => {
            Ok(Registered::For { key: cluster.spec.key_fingerprint, denied: cluster.spec.denied })
        }
        Err(failure) if failure.exit() == Exit::Denied => Ok(Registered::Hidden),
        Err(failure) => Err(failure),
    }
}

/// Nobody has decided, or what was approved could not be carried out.
fn may_be_denied(request: &ClusterRegistrationRequest) -> bool {
    find::is_open(request) || find::decision(request) == Some(RegistrationResult::Failed)
}

/// What a denial means, and what it does not.
fn after_denial(request: &ClusterRegistrationRequest, registered: &Registered, command: &str) -> String {
    let name = shown(&request.spec.cluster_name);
    let asks = "Its agent asks again every minute and is told the same.";
    match registered {
        Registered::For { key, denied: false } if *key != request.spec.key_fingerprint => format!(
            "The agent with this key asks again every minute and is told the same.\n\
             The cluster stays registered with key {} and goes on working.\n\
             next:  {command} deny {name} (once more, to shut the cluster out too)",
            shown(key)
        ),
        Registered::For { denied: false, .. } => {
            format!("{asks} The cluster is registered with this key: it is shut out within 5 seconds.")
        }
        Registered::Hidden => format!(
            "{asks}\nIf it is registered with another key, it goes on working with that; you may not see clusters."
        ),
        Registered::No | Registered::For { .. } => asks.to_owned(),
    }
}

async fn readmit(session: &Session, args: &Approve, cluster: &ManagedCluster) -> Result<(), Failure> {
    let name = cluster.name_any();
    same_key(args.fingerprint.as_deref(), &cluster.spec.key_fingerprint)?;
    if cluster.spec.denied && args.dry_run {
        return data(&format!("Would let in again (dry run): cluster {}.\n", shown(&name)));
    }
    if args.dry_run {
        return data(&format!("Nothing to do (dry run): cluster {} is registered already.\n", shown(&name)));
    }
    if cluster.spec.denied {
        shut(session, cluster, false).await?;
        data(&format!("Approved: cluster {} may connect again.\n", shown(&name)))?;
    } else {
        say(&format!("Cluster {} is registered already.", shown(&name)));
    }
    ready(session, args, &cluster.spec.cluster_id, &name).await
}

async fn ready(session: &Session, args: &Approve, id: &str, name: &str) -> Result<(), Failure> {
    let (command, name) = (session.command(), shown(name));
    if !args.wait {
        say(&format!("next:  {command} status {name}"));
        return Ok(());
    }
    let id: ClusterId = id
        .parse()
        .map_err(|error| Failure::new(Exit::Error, format!("cluster {name} has a broken id: {error}")))?;
    wait::until_ready(session, &id, &name, args.timeout).await?;
    say(&format!("next:  {command} kubeconfig {name} --out {name}.kubeconfig"));
    Ok(())
}

async fn decide(
    session: &Session,
    request: &ClusterRegistrationRequest,
    patch: &Value,
) -> Result<(), Failure> {
    let api: Api<ClusterRegistrationRequest> = Api::all(session.client.clone());
    let name = request.name_any();
    let doing = format!("decide on registration request {name}");
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
    session.ask(&doing, api.patch_status(&name, &params, &Patch::Merge(patch))).await?;
    Ok(())
}

async fn shut(session: &Session, cluster: &ManagedCluster, denied: bool) -> Result<(), Failure> {
    let name = cluster.name_any();
    let api: Api<ManagedCluster> =
        Api::namespaced(session.client.clone(), &cluster.namespace().unwrap_or_default());
    let patch = json!({
        "metadata": { "uid": cluster.uid() },
        "spec": { "denied": denied },
    });
    let doing = format!("{} cluster {name}", if denied { "shut out" } else { "readmit" });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
    session.ask(&doing, api.patch(&name, &params, &Patch::Merge(&patch))).await?;
    Ok(())
}

fn approval(request: &ClusterRegistrationRequest) -> Value {
    decision(request, "Approved", Some(&request.spec.key_fingerprint), "")
}

fn denial(request: &ClusterRegistrationRequest, reason: &str) -> Value {
    decision(request, "Denied", None, reason)
}

fn decision(
    request: &ClusterRegistrationRequest,
    result: &str,
    approved_key: Option<&str>,
    message: &str,
) -> Value {
    // A merge patch: null takes an older message or key away.
    let message = Some(message).filter(|message| !message.is_empty());
    json!({
        "metadata": { "uid": request.uid(), "resourceVersion": request.resource_version() },
        "status": { "result": result, "approvedKey": approved_key, "errorMessage": message },
    })
}

/// Points out names that a person could take this one for. Whoever may not see clusters is told about requests only.
async fn say_similar(session: &Session, request: &ClusterRegistrationRequest) -> Result<(), Failure> {
    let clusters: Api<ManagedCluster> = Api::all(session.client.clone());
    let clusters = match session.list("list clusters", &clusters, ListParams::default()).await {
        Ok(clusters) => clusters,
        Err(failure) if failure.exit() == Exit::Denied => Vec::new(),
        Err(failure) => return Err(failure),
    };
    let registered = clusters.iter().map(|cluster| (cluster.name_any(), cluster.spec.cluster_id.clone()));
    let requests = find::requests(session).await?;
    let asking =
        requests.iter().map(|other| (other.spec.cluster_name.clone(), other.spec.cluster_id.clone()));
    let names = similar(request, registered.chain(asking));
    if !names.is_empty() {
        let names: Vec<String> = names.iter().map(|name| shown(name)).collect();
        say(&format!("similar to   {}: look twice whether this is the cluster you mean", names.join(", ")));
    }
    Ok(())
}

/// Names of other clusters that look like the request's: the same one too, for only one can have it.
fn similar(
    request: &ClusterRegistrationRequest,
    others: impl Iterator<Item = (String, String)>,
) -> BTreeSet<String> {
    let looks = skeleton(&request.spec.cluster_name);
    let other = |(name, id): (String, String)| {
        (id != request.spec.cluster_id && skeleton(&name) == looks).then_some(name)
    };
    others.filter_map(other).collect()
}

/// A name without what the eye does not tell apart. Names of clusters are `a-z`, `0-9` and `-`.
fn skeleton(name: &str) -> String {
    let single = |character: char| match character {
        '0' => 'o',
        '1' | 'i' => 'l',
        '5' => 's',
        '2' => 'z',
        '8' => 'b',
        other => other,
    };
    let plain: String =
        name.to_lowercase().chars().filter(|character| !"-_.".contains(*character)).map(single).collect();
    plain.replace("rn", "m").replace("vv", "w").replace("cl", "d")
}

/// What the person decides on.
fn card(request: &ClusterRegistrationRequest, registered: &Registered) -> String {
    let mut text = format!(
        "cluster      {}\nid           {}\nfingerprint  {}",
        shown(&request.spec.cluster_name),
        shown(&request.spec.cluster_id),
        shown(&request.spec.key_fingerprint)
    );
    match registered {
        Registered::For { key, .. } if *key != request.spec.key_fingerprint => text.push_str(&format!(
            "\nreplaces     key {} of the cluster as it is registered; the agent with that key loses its place",
            shown(key)
        )),
        Registered::For { .. } | Registered::No => {}
        Registered::Hidden => {
            text.push_str("\nreplaces     perhaps the key of a registered cluster; you may not see clusters");
        }
    }
    if let Some(result) = find::decision(request).filter(|result| *result != RegistrationResult::Pending) {
        let why = request.status.as_ref().map_or("", |status| &status.error_message);
        text.push_str(&format!("\nso far       {result:?}: {}", shown(why)));
    }
    text
}

fn compare(wanted: Option<&str>, request: &ClusterRegistrationRequest) -> Result<(), Failure> {
    same_key(wanted, &request.spec.key_fingerprint)
}

fn same_key(wanted: Option<&str>, actual: &str) -> Result<(), Failure> {
    let Some(wanted) = wanted else { return Ok(()) };
    if wanted == actual && !actual.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Denied,
        format!("not approved: the agent's key is {}, not {wanted}; another agent may hold the invitation", shown(actual)),
    )
    .next("compare with the cluster: kubectl -n clusternet-system logs deployment/clusternet-agent | grep SHA256"))
}

fn confirm(session: &Session, args: &Approve) -> Result<(), Failure> {
    if args.yes || args.fingerprint.is_some() {
        return Ok(());
    }
    confirmed(ask("The agent logs the same fingerprint. Approve? [y/N] "), args, &session.command())
}

/// A reply of `None` comes from nobody: a script that has not said which key it means has not decided.
fn confirmed(reply: Option<String>, args: &Approve, command: &str) -> Result<(), Failure> {
    let Some(reply) = reply else {
        return Err(Failure::new(Exit::Usage, "not approved: there is no terminal to ask on").next(format!(
            "{command} approve {} --fingerprint SHA256:... (the agent logs it), or --yes",
            args.cluster
        )));
    };
    if matches!(reply.to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Failure::new(Exit::Error, "not approved: you said no"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find::tests::asking;

    #[test]
    fn a_decision_is_bound_to_what_was_seen() {
        let mut request = asking("id-1", "edge-1", None);
        request.metadata.resource_version = Some("41".to_owned());
        request.metadata.uid = Some("u".to_owned());
        assert_eq!(
            approval(&request),
            json!({ "metadata": { "uid": "u", "resourceVersion": "41" },
                    "status": { "result": "Approved", "approvedKey": "SHA256:id-1", "errorMessage": null } })
        );
        assert_eq!(
            denial(&request, "not ours")["status"],
            json!({ "result": "Denied", "approvedKey": null, "errorMessage": "not ours" })
        );
    }

    #[test]
    fn a_name_that_looks_like_another_clusters_is_pointed_out() {
        let similar = |name: &str, others: &[(&str, &str)]| {
            let others = others.iter().map(|(name, id)| ((*name).to_owned(), (*id).to_owned()));
            similar(&asking("me", name, None), others).into_iter().collect::<Vec<_>>()
        };
        for (name, other) in [
            ("edge-l", "edge-1"),
            ("edge1", "edge-1"),
            ("edge--1", "edge-1"),
            ("pr0d", "prod"),
            ("rnunich", "munich"),
            ("vvest", "west"),
            ("edge-1", "edge-1"),
        ] {
            assert_eq!(similar(name, &[(other, "x"), ("elsewhere", "y")]), [other], "{name}");
        }
        for (name, other) in [("edge-1", "edge-2"), ("prod", "test"), ("edge-1", "edge-11")] {
            assert!(similar(name, &[(other, "x")]).is_empty(), "{name} {other}");
        }
        assert!(similar("edge-1", &[("edge-1", "me")]).is_empty(), "itself");
    }

    #[test]
    fn what_another_side_says_reaches_no_terminal_as_an_escape() {
        let mut request = asking("i\u{1b}[2K", "n\u{1b}]0;x\u{7}\u{202e}", Some(RegistrationResult::Failed));
        request.spec.key_fingerprint = "SHA256:\rk\u{9b}31m".to_owned();
        request.status.as_mut().unwrap().error_message = "why\u{1b}[31m\r\n<b>".to_owned();
        let key = registered("SHA256:\u{1b}old", false);
        let texts = [card(&request, &key), after_denial(&request, &key, "kubectl towline")];
        for text in texts {
            let escape = |character: char| character.is_control() && character != '\n';
            assert!(!text.contains(escape) && !text.contains('\u{202e}'), "{text:?}");
        }
    }

    #[test]
    fn another_key_is_never_approved() {
        let request = asking("id-1", "edge-1", None);
        assert!(compare(None, &request).is_ok());
        assert!(compare(Some("SHA256:id-1"), &request).is_ok());
        for wrong in ["SHA256:id-2", "SHA256:ID-1", "id-1", "", "SHA256:id-1 "] {
            let failure = compare(Some(wrong), &request).unwrap_err();
            assert_eq!(failure.exit(), Exit::Denied, "{wrong:?}");
        }
        assert!(same_key(Some(""), "").is_err());
    }

    fn registered(key: &str, denied: bool) -> Registered {
        Registered::For { key: key.to_owned(), denied }
    }

    #[test]
    fn the_card_shows_an_earlier_decision() {
        let card = |result| card(&asking("i", "n", result), &Registered::No);
        assert!(!card(None).contains("so far"));
        assert!(card(Some(RegistrationResult::Denied)).contains("so far       Denied"));
    }

    #[test]
    fn the_card_shows_which_key_an_approval_replaces() {
        let request = asking("i", "n", None);
        let replaced = card(&request, &registered("SHA256:old", false));
        assert!(replaced.contains("replaces     key SHA256:old"), "{replaced}");
        assert!(card(&request, &Registered::Hidden).contains("perhaps"));
        for same in [Registered::No, registered("SHA256:i", true)] {
            assert!(!card(&request, &same).contains("replaces"), "{same:?}");
        }
    }

    #[test]
    fn without_a_terminal_nothing_is_approved_by_silence() {
        use clap::Parser as _;
        let cli = crate::args::Cli::try_parse_from(["kubectl-towline", "approve", "edge"]).unwrap();
        let crate::args::Command::Approve(args) = cli.command else { panic!("approve") };
        let confirmed = |reply: Option<&str>| {
            confirmed(reply.map(ToOwned::to_owned), &args, "kubectl towline")
                .map_err(|failure| failure.exit())
        };
        assert_eq!(confirmed(None), Err(Exit::Usage));
        for (reply, wanted) in
            [("y", Ok(())), ("Yes", Ok(())), ("", Err(Exit::Error)), ("n", Err(Exit::Error))]
        {
            assert_eq!(confirmed(Some(reply)), wanted, "{reply:?}");
        }
    }

    #[test]
    fn a_denied_newcomer_takes_nothing_from_the_cluster_and_the_person_learns_that() {
        let request = asking("i", "n", None);
        let after = |registered| after_denial(&request, &registered, "kubectl towline");
        let other = after(registered("SHA256:old", false));
        assert!(
            other.contains("stays registered with key SHA256:old") && other.contains("deny n"),
            "{other}"
        );
        assert!(after(registered("SHA256:i", false)).contains("shut out"));
        for plain in [Registered::No, registered("SHA256:old", true)] {
            assert_eq!(after(plain), "Its agent asks again every minute and is told the same.");
        }
    }

    #[test]
    fn what_could_not_be_carried_out_can_be_denied_and_what_was_cannot() {
        use RegistrationResult::{Approved, Denied, Failed, Pending};
        for (result, may) in [
            (None, true),
            (Some(Pending), true),
            (Some(Failed), true),
            (Some(Approved), false),
            (Some(Denied), false),
        ] {
            assert_eq!(may_be_denied(&asking("i", "n", result)), may, "{result:?}");
        }
    }
}
