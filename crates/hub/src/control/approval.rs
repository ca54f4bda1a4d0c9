//! Turns approved `ClusterRegistrationRequest`s into clusters: namespace, account, role, binding,
//! `ManagedCluster`, in this order, so that a cluster which can be seen is complete. And the other way round:
//! when somebody deletes the `ManagedCluster`, everything that belonged to it goes, the request last.
//!
//! A person's word is `status.result`. `Approved` sets up; `Denied` after that shuts the cluster out
//! (`spec.denied`); `Failed` is the hub's own word for an approval it could not carry out yet, with the reason,
//! and is tried again. Every step is taken on what the API says at that moment, never on the watch's copy,
//! and changes carry the resourceVersion they were decided on.
//!
//! An approval is for the key that the person saw, and `status.approvedKey` names it, as `kubectl towline approve` does.
//! One that names another key than the one that asks now is no approval: the request is pending again. One that names
//! none (`kubectl patch`, or what people have from Clusternet) counts where only one key can be meant: the request has
//! asked with one key ever since it was made, and no cluster has another.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::cluster::ManagedCluster;
use api::names::{ClusterId, ClusterName, LABEL_CLUSTER_NAME, registration_request_name};
use api::registration::{ClusterRegistrationRequest, RegistrationResult};
use api::status::printable;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Controller, Error as ControllerError};
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use runtime::backoff::Backoff;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::belongings::{self, Ensured, absent, ensure, ensure_account, ensure_cluster};
use super::claims::Claims;
use super::events::{Requests, Story};
use super::objects::{
    KEY_SINCE, account, dedicated_namespace, managed_cluster, namespace, place_of, role, role_binding,
};
use super::{Control, DEADLINE, catalog_is_filled};
use crate::join::has_code;
use crate::tunnels::end::End;

type Request = ClusterRegistrationRequest;
type Guarded = DeserializeGuard<Request>;

/// Requests worked on at once: about ten small API calls each.
const CONCURRENCY: u16 = 8;
/// First and longest pause before a failed set-up is tried again: whoever removed the cause waits a minute at
/// most, or sets `Approved` once more.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Pause after losing a race; the winner is done by then.
const RACE_RETRY: Duration = Duration::from_millis(500);

/// Why a request could not be carried out.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// The parent's API.
    #[error("{0}: {1}")]
    Api(&'static str, #[source] kube::Error),
    /// Something that would belong to the cluster.
    #[error(transparent)]
    Belonging(#[from] belongings::Trouble),
    /// It must not be carried out.
    #[error("{0}")]
    Refused(String),
    /// What was to be carried out stands there no more.
    #[error("the request was deleted or changed while the cluster was set up")]
    Withdrawn,
    /// It took too long.
    #[error("the parent's API did not answer within {} s", DEADLINE.as_secs())]
    Slow,
    /// The approval does not say which key, or says another one.
    #[error("{0}")]
    Unnamed(String),
    /// The same name, or what was left of the same cluster, is being worked on at this moment.
    #[error("another cluster of this name is being set up, or what was left of this one is being removed")]
    Busy,
    /// Its `ManagedCluster` cannot be read.
    #[error("the ManagedCluster in {0} cannot be read: {1}")]
    Malformed(String, String),
}

impl Trouble {
    /// Somebody else changed the same object: another replica, or a person. Not worth telling anybody.
    fn is_lost_race(&self) -> bool {
        match self {
            Self::Busy | Self::Withdrawn => true,
            Self::Api(_, error) | Self::Belonging(belongings::Trouble::Api(_, error)) => has_code(error, 409),
            Self::Belonging(belongings::Trouble::NotOurs { .. })
            | Self::Refused(_)
            | Self::Unnamed(_)
            | Self::Slow
            | Self::Malformed(..) => false,
        }
    }
}

/// After so many results, what is remembered of requests that are gone is forgotten: 300 bytes each until then.
const FORGET_EVERY: usize = 256;

/// What a request asks of the hub, given the cluster that it made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    SetUp,
    Remove,
    ShutOut,
}

/// What the decision looks at in a cluster.
#[derive(Debug, Clone, Copy)]
struct Known<'a> {
    key_fingerprint: &'a str,
    denied: bool,
}

/// When a request that failed is tried again. One entry per failed request: 100 bytes.
struct Retry {
    backoff: Backoff,
    at: Instant,
}

struct Context {
    control: Arc<Control>,
    retries: Mutex<HashMap<String, Retry>>,
    /// Names that are being set up, so that two requests for one name cannot both find it free.
    names: Claims<ClusterName>,
    /// Clusters that are being set up or removed, here or by [`super::gc`], or renamed.
    clusters: Claims<ClusterId>,
    /// What was told of each request.
    told: Requests,
    story: Story,
}

/// Runs until stop.
pub(super) async fn run(
    control: Arc<Control>,
    clusters: Claims<ClusterId>,
    names: Claims<ClusterName>,
    story: Story,
) -> anyhow::Result<()> {
    // With an empty catalog every approved request would look like one whose cluster was deleted.
    if !catalog_is_filled(&control).await {
        return Ok(());
    }
    let requests: Api<Guarded> = Api::all(control.client.clone());
    let stop: CancellationToken = control.stop.clone();
    let changes = futures::stream::unfold(control.catalog.registrations(), |mut changes| async move {
        changes.changed().await.ok().map(|()| ((), changes))
    });
    let (retries, told) = (Mutex::default(), Requests::default());
    let context = Arc::new(Context { control, retries, names, clusters, told, story });
    let forgetting = Arc::clone(&context);
    let controller = Controller::new(requests, watcher::Config::default())
        .with_config(Config::default().concurrency(CONCURRENCY));
    let (there, mut done) = (controller.store(), 0_usize);
    controller
        .reconcile_all_on(changes)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, retry, context)
        .for_each(|result| {
            done += 1;
            if done.is_multiple_of(FORGET_EVERY) {
                let there: HashSet<String> = there.state().iter().map(|request| request.name_any()).collect();
                lock(&forgetting.retries).retain(|name, _| there.contains(name));
                forgetting.told.retain(|name| there.contains(name));
            }
            match result {
                // Gone by the time that its turn came, or told where it happened.
                Ok(_) | Err(ControllerError::ObjectNotFound(_) | ControllerError::ReconcilerFailed(..)) => {}
                Err(error) => {
                    tracing::warn!(%error, "the watch on registration requests broke; it goes on by itself");
                }
            }
            std::future::ready(())
        })
        .await;
    Ok(())
}

fn retry(request: Arc<Guarded>, trouble: &Trouble, context: Arc<Context>) -> Action {
    if trouble.is_lost_race() {
        return Action::requeue(RACE_RETRY);
    }
    let mut retries = lock(&context.retries);
    let now = Instant::now();
    let retry = retries
        .entry(request.name_any())
        .or_insert_with(|| Retry { backoff: Backoff::new(RETRY.0, RETRY.1), at: now });
    let delay = retry.backoff.delay().max(RACE_RETRY);
    retry.at = now + delay;
    Action::requeue(delay)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn reconcile(cached: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Trouble> {
    let name = cached.name_any();
    match tokio::time::timeout(DEADLINE, Box::pin(judge_and_act(cached, context))).await {
        Ok(done) => done,
        Err(_) => {
            tracing::warn!(
                request = name,
                "a registration request was not carried out in time; trying again"
            );
            Err(Trouble::Slow)
        }
    }
}

async fn judge_and_act(cached: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Trouble> {
    let name = cached.name_any();
    let control = &context.control;
    let Ok(cached) = &cached.0 else {
        tracing::warn!(request = name, "this registration request cannot be read; delete it");
        return Ok(Action::await_change());
    };
    if let Some(news) = context.told.news(cached, Timestamp::now()) {
        context.story.tell(news);
    }
    let Ok(id) = cached.spec.cluster_id.parse::<ClusterId>() else { return Ok(Action::await_change()) };
    let known = control.catalog.get(&id);
    let known =
        known.as_ref().map(|known| Known { key_fingerprint: &known.key_fingerprint, denied: known.denied });
    if decide(cached, known) == Step::Nothing {
        return Ok(Action::await_change());
    }
    // Every change of a registration comes by here: it must not hurry what failed.
    let failed =
        cached.status.as_ref().is_some_and(|status| status.result == Some(RegistrationResult::Failed));
    let wait =
        lock(&context.retries).get(&name).map(|retry| retry.at.saturating_duration_since(Instant::now()));
    if let Some(wait) = wait.filter(|wait| failed && !wait.is_zero()) {
        return Ok(Action::requeue(wait));
    }

    // Something is to be done, as far as the watches have told: now ask the API itself.
    let _claim = context.clusters.take(&id).ok_or(Trouble::Busy)?;
    let requests: Api<Request> = Api::all(control.client.clone());
    let request =
        requests.get_opt(&name).await.map_err(|error| Trouble::Api("reading the request", error))?;
    let Some(request) = request else { return Ok(Action::await_change()) };
    let found = find(control, &id).await?;
    let known = found
        .as_ref()
        .map(|found| Known { key_fingerprint: &found.spec.key_fingerprint, denied: found.spec.denied });
    let step = decide(&request, known);
    let done = match step {
        Step::Nothing => Ok(()),
        Step::SetUp => set_up(&context, &requests, &request, &id, found.as_ref()).await,
        Step::Remove => remove(control, &requests, &request, &id).await,
        Step::ShutOut => shut_out(control, found.as_ref()).await,
    };
    match done {
        Ok(()) => {
            lock(&context.retries).remove(&name);
            Ok(Action::await_change())
        }
        Err(trouble) => {
            if trouble.is_lost_race() {
                tracing::debug!(request = name, %trouble, "a registration request was changed meanwhile");
            } else {
                tracing::warn!(request = name, %trouble, "a registration request could not be carried out");
                if let Trouble::Unnamed(why) = &trouble {
                    ask_again(&requests, &request, why).await?;
                    lock(&context.retries).remove(&name);
                    return Ok(Action::await_change());
                }
                // Only an approval can fail; a denial or removal that fails is tried again as it stands.
                if step == Step::SetUp {
                    report(&requests, &request, &trouble).await;
                }
            }
            Err(trouble)
        }
    }
}

/// The whole of the controller's judgement.
fn decide(request: &Request, cluster: Option<Known<'_>>) -> Step {
    let status = request.status.clone().unwrap_or_default();
    if request.metadata.deletion_timestamp.is_some() {
        return Step::Nothing;
    }
    let Some(cluster) = cluster else {
        let was_set_up = !status.managed_cluster_name.is_empty();
        return match status.result {
            _ if was_set_up => Step::Remove,
            Some(RegistrationResult::Approved | RegistrationResult::Failed) => Step::SetUp,
            None | Some(RegistrationResult::Pending | RegistrationResult::Denied) => Step::Nothing,
        };
    };
    let same_key = cluster.key_fingerprint == request.spec.key_fingerprint;
    match status.result {
        // A person denies the key that is in use: it must not work a moment longer. If it was another key
        // that asked, the cluster goes on with its own.
        Some(RegistrationResult::Denied) if same_key && !cluster.denied => Step::ShutOut,
        Some(RegistrationResult::Approved) if same_key && !status.managed_cluster_name.is_empty() => {
            Step::Nothing
        }
        Some(RegistrationResult::Approved | RegistrationResult::Failed) => Step::SetUp,
        None | Some(RegistrationResult::Pending | RegistrationResult::Denied) => Step::Nothing,
    }
}

/// The `ManagedCluster` of this id, from the API.
async fn find(control: &Control, id: &ClusterId) -> Result<Option<ManagedCluster>, Trouble> {
    let space = dedicated_namespace(id);
    let clusters: Api<DeserializeGuard<ManagedCluster>> = Api::namespaced(control.client.clone(), &space);
    let list = clusters
        .list(&ListParams::default())
        .await
        .map_err(|error| Trouble::Api("reading the cluster", error))?;
    let mut first: Option<ManagedCluster> = None;
    for object in list.items {
        let object = object
            .0
            .map_err(|error| Trouble::Malformed(space.clone(), printable(&error.to_string(), 256)))?;
        let counts = first.as_ref().is_none_or(|first| place_of(&object) < place_of(first));
        if object.spec.cluster_id == id.as_str() && counts {
            first = Some(object);
        }
    }
    Ok(first)
}

async fn set_up(
    context: &Context,
    requests: &Api<Request>,
    request: &Request,
    id: &ClusterId,
    found: Option<&ManagedCluster>,
) -> Result<(), Trouble> {
    let control = &context.control;
    if request.name_any() != registration_request_name(id) {
        return Err(Trouble::Refused(format!(
            "the request has to be named {}",
            registration_request_name(id)
        )));
    }
    let name: ClusterName = request
        .spec
        .cluster_name
        .parse()
        .map_err(|error| Trouble::Refused(format!("spec.clusterName: {error}")))?;
    let new_key = found.is_some_and(|found| found.spec.key_fingerprint != request.spec.key_fingerprint);
    check_named(request, new_key)?;
    let _claim = context.names.take(&name).ok_or(Trouble::Busy)?;
    refuse_taken_name(control, id, &name).await?;
    if let Some(found) = found
        && found.name_any() != name.as_str()
    {
        return Err(Trouble::Refused(format!("this cluster is already registered as {}", found.name_any())));
    }

    let client = &control.client;
    let space = dedicated_namespace(id);
    let spaces: Api<Namespace> = Api::all(client.clone());
    let first = ensure(&spaces, &namespace(id, &name), id, "creating the namespace").await?;
    ensure(&Api::<ClusterRole>::all(client.clone()), &role(id, &name), id, "creating the role").await?;
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    ensure(&bindings, &role_binding(id, &name), id, "creating the role binding").await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &space);
    let clusters: Api<ManagedCluster> = Api::namespaced(client.clone(), &space);
    // From here on agents notice. Whoever took the approval back meanwhile has taken it back.
    match requests.get_opt(&request.name_any()).await {
        Ok(Some(now)) if is_same_approval(&now, request) => {}
        Ok(now) => return Err(withdraw(control, &clusters, request, id, found, now.as_ref()).await),
        Err(error) => return Err(Trouble::Api("reading the request", error)),
    }
    let account = account(id, &name, &request.spec.key_fingerprint);
    ensure_account(&accounts, &account, id, new_key).await?;
    match found {
        None => {
            let mut cluster = managed_cluster(id, &name, &request.spec);
            // A namespace is never deleted: an account in it may have been believed until a moment ago.
            if first == Ensured::WasThere {
                cluster.annotations_mut().insert(KEY_SINCE.to_owned(), Timestamp::now().to_string());
            }
            ensure_cluster(&clusters, &cluster, id).await?;
        }
        Some(found) if new_key => {
            let patch = json!({
                "metadata": {
                    "resourceVersion": found.metadata.resource_version,
                    "annotations": { KEY_SINCE: Timestamp::now() },
                },
                "spec": { "keyFingerprint": request.spec.key_fingerprint },
            });
            clusters
                .patch(name.as_str(), &PatchParams::default(), &Patch::Merge(patch))
                .await
                .map_err(|error| Trouble::Api("writing the cluster's key", error))?;
            control.tunnels.close(id, End::Rekeyed);
        }
        Some(_) => {}
    }
    let patch = json!({
        "metadata": { "resourceVersion": request.metadata.resource_version },
        "status": {
            "result": RegistrationResult::Approved, "errorMessage": null,
            "dedicatedNamespace": space, "managedClusterName": name,
        },
    });
    match requests.patch_status(&request.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => {}
        Err(error) if has_code(&error, 404) || has_code(&error, 409) => {
            let now = requests
                .get_opt(&request.name_any())
                .await
                .map_err(|error| Trouble::Api("reading the request", error))?;
            return Err(withdraw(control, &clusters, request, id, found, now.as_ref()).await);
        }
        Err(error) => return Err(Trouble::Api("writing the request's status", error)),
    }
    tracing::info!(cluster = %id, %name, namespace = space, key = request.spec.key_fingerprint, new_key, "a cluster was set up");
    Ok(())
}

/// Whether this is the request that was decided on, and the decision still stands.
fn is_same_approval(now: &Request, before: &Request) -> bool {
    let result = now.status.as_ref().and_then(|status| status.result);
    now.uid() == before.uid()
        && now.metadata.deletion_timestamp.is_none()
        && now.spec.key_fingerprint == before.spec.key_fingerprint
        && matches!(result, Some(RegistrationResult::Approved | RegistrationResult::Failed))
}

/// The request changed while it was carried out. If it is gone, nobody would ever remove what was made for it:
/// it goes at once, unless the cluster was there before.
async fn withdraw(
    control: &Control,
    clusters: &Api<ManagedCluster>,
    request: &Request,
    id: &ClusterId,
    found: Option<&ManagedCluster>,
    now: Option<&Request>,
) -> Trouble {
    let gone = now.is_none_or(|now| now.uid() != request.uid());
    if found.is_some() || !gone {
        return Trouble::Withdrawn;
    }
    let undone = async {
        belongings::remove_cluster(clusters, &request.spec.cluster_name, id).await?;
        belongings::remove(&control.client, id).await
    };
    match undone.await {
        Ok(()) => {
            tracing::info!(cluster = %id, "nothing was set up: the request was deleted meanwhile");
            Trouble::Withdrawn
        }
        Err(trouble) => trouble.into(),
    }
}

/// Whether the approval is for the key that asks now. `new_key`: a registered cluster would lose its own.
fn check_named(request: &Request, new_key: bool) -> Result<(), Trouble> {
    let asks = &request.spec.key_fingerprint;
    let named = request.status.as_ref().map(|status| status.approved_key.as_str()).unwrap_or_default();
    let command = format!(
        "kubectl towline approve {} --fingerprint {}",
        printable(&request.spec.cluster_name, 64),
        printable(asks, 64)
    );
    if !named.is_empty() {
        if named == asks {
            return Ok(());
        }
        return Err(Trouble::Unnamed(format!(
            "not approved: the approval was for key {}, and {asks} asks now; if that is the agent's: {command}",
            printable(named, 64)
        )));
    }
    // The spec of a request is another one only when another key or name asks. Without a generation it is no CRD's.
    if request.metadata.generation == Some(1) && !new_key {
        return Ok(());
    }
    let why = if new_key { "the cluster has another key" } else { "more than one key has asked" };
    Err(Trouble::Unnamed(format!(
        "not approved: {why}, and the approval does not say which it is for: {command}"
    )))
}

/// Takes an approval back that does not say what it is for, and says so to whoever gave it.
async fn ask_again(requests: &Api<Request>, request: &Request, why: &str) -> Result<(), Trouble> {
    let patch = json!({
        "metadata": { "resourceVersion": request.metadata.resource_version },
        "status": { "result": RegistrationResult::Pending, "errorMessage": why, "approvedKey": null },
    });
    let patched =
        requests.patch_status(&request.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.map(|_| ()).map_err(|error| Trouble::Api("writing the request's status", error))
}

async fn refuse_taken_name(control: &Control, id: &ClusterId, name: &ClusterName) -> Result<(), Trouble> {
    let clusters: Api<DeserializeGuard<ManagedCluster>> = Api::all(control.client.clone());
    let same_name = ListParams::default().labels(&format!("{LABEL_CLUSTER_NAME}={name}"));
    let list =
        clusters.list(&same_name).await.map_err(|error| Trouble::Api("looking for the name", error))?;
    let other = list.items.iter().filter_map(|object| object.0.as_ref().ok()).any(|object| {
        let belongs = object.spec.cluster_id.parse().is_ok_and(|other| {
            object.namespace().as_deref() == Some(dedicated_namespace(&other).as_str()) && other != *id
        });
        belongs && object.name_any() == name.as_str()
    });
    if other {
        return Err(Trouble::Refused(format!(
            "the name {name} is taken by another cluster; unregister that one, or delete this request and invite the cluster under another name"
        )));
    }
    Ok(())
}

/// Removes what belonged to a cluster whose `ManagedCluster` is gone. First what lets the agent in, then the
/// invitations that would let it back, then the request: whatever breaks in between, the request is still
/// there to begin again with.
async fn remove(
    control: &Control,
    requests: &Api<Request>,
    request: &Request,
    id: &ClusterId,
) -> Result<(), Trouble> {
    control.tunnels.close(id, End::Unregistered);
    belongings::remove(&control.client, id).await?;
    let this_one = DeleteParams {
        preconditions: Some(Preconditions {
            uid: request.uid(),
            resource_version: request.resource_version(),
        }),
        ..DeleteParams::default()
    };
    absent(requests.delete(&request.name_any(), &this_one).await)
        .map_err(|error| Trouble::Api("deleting the request", error))?;
    tracing::info!(cluster = %id, name = request.spec.cluster_name, "a cluster was unregistered");
    Ok(())
}

async fn shut_out(control: &Control, found: Option<&ManagedCluster>) -> Result<(), Trouble> {
    let Some(found) = found else { return Ok(()) };
    let space = found.namespace().unwrap_or_default();
    let clusters: Api<ManagedCluster> = Api::namespaced(control.client.clone(), &space);
    let patch = json!({
        "metadata": { "resourceVersion": found.metadata.resource_version },
        "spec": { "denied": true },
    });
    clusters
        .patch(&found.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(|error| Trouble::Api("shutting the cluster out", error))?;
    tracing::info!(
        cluster = found.spec.cluster_id,
        name = found.name_any(),
        "a cluster was shut out: its request was denied"
    );
    Ok(())
}

/// Tells the person who approved why nothing came of it, be it a new cluster or a new key of one.
async fn report(requests: &Api<Request>, request: &Request, trouble: &Trouble) {
    let message = printable(&trouble.to_string(), 512);
    let status = request.status.as_ref();
    let told = status.is_some_and(|status| {
        status.result == Some(RegistrationResult::Failed) && status.error_message == message
    });
    if told {
        return;
    }
    let patch = json!({
        "metadata": { "resourceVersion": request.metadata.resource_version },
        "status": { "result": RegistrationResult::Failed, "errorMessage": message },
    });
    let patched =
        requests.patch_status(&request.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
    if let Err(error) = patched {
        tracing::debug!(%error, "the failure could not be written");
    }
}

#[cfg(test)]
mod against_the_api;

#[cfg(test)]
pub(super) mod tests {
    use api::registration::{ClusterRegistrationRequestSpec, ClusterRegistrationRequestStatus};

    use super::*;

    /// What would be done about a cluster as the API has it now.
    pub(crate) async fn step_for(control: &Control, id: &str) -> String {
        let id: ClusterId = id.parse().unwrap();
        let requests: Api<Request> = Api::all(control.client.clone());
        let request = requests.get(&registration_request_name(&id)).await.unwrap();
        let found = find(control, &id).await.unwrap().unwrap();
        let known = Known { key_fingerprint: &found.spec.key_fingerprint, denied: found.spec.denied };
        format!("{:?}", decide(&request, Some(known)))
    }

    fn request(result: Option<RegistrationResult>, set_up: bool) -> Request {
        let spec = ClusterRegistrationRequestSpec { key_fingerprint: "k".to_owned(), ..Default::default() };
        let mut request = Request::new("clusternet-c1", spec);
        let managed_cluster_name = if set_up { "edge".to_owned() } else { String::new() };
        request.status =
            Some(ClusterRegistrationRequestStatus { result, managed_cluster_name, ..Default::default() });
        request
    }

    #[test]
    fn the_step_follows_from_decision_and_cluster() {
        use RegistrationResult::{Approved, Denied, Failed, Pending};
        let known = |key_fingerprint: &'static str, denied| Some(Known { key_fingerprint, denied });
        for (what, result, set_up, cluster, wanted) in [
            ("undecided", None, false, None, Step::Nothing),
            ("pending", Some(Pending), false, None, Step::Nothing),
            ("approved", Some(Approved), false, None, Step::SetUp),
            ("failed", Some(Failed), false, None, Step::SetUp),
            ("denied", Some(Denied), false, None, Step::Nothing),
            ("half way", Some(Approved), false, known("k", false), Step::SetUp),
            ("all is well", Some(Approved), true, known("k", false), Step::Nothing),
            ("shut out by hand", Some(Approved), true, known("k", true), Step::Nothing),
            ("another key was approved", Some(Approved), true, known("old", false), Step::SetUp),
            ("another key is pending", Some(Pending), true, known("old", false), Step::Nothing),
            ("another key was denied", Some(Denied), true, known("old", false), Step::Nothing),
            ("denied afterwards", Some(Denied), true, known("k", false), Step::ShutOut),
            ("denied and shut out", Some(Denied), true, known("k", true), Step::Nothing),
            ("cluster deleted", Some(Approved), true, None, Step::Remove),
            ("cluster deleted while pending again", Some(Pending), true, None, Step::Remove),
            ("cluster deleted after denial", Some(Denied), true, None, Step::Remove),
        ] {
            assert_eq!(decide(&request(result, set_up), cluster), wanted, "{what}");
        }
        let mut leaving = request(Some(Approved), false);
        leaving.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        assert_eq!(decide(&leaving, None), Step::Nothing);
    }

    #[test]
    fn an_approval_is_for_the_key_that_it_names() {
        for (what, named, generation, new_key, good) in [
            ("named", "k", Some(3), false, true),
            ("named, and it replaces another", "k", Some(1), true, true),
            ("another was named", "other", Some(1), false, false),
            ("by another spelling", "K", Some(1), false, false),
            ("none, and only one has asked", "", Some(1), false, true),
            ("none, and another asked before", "", Some(2), false, false),
            ("none, and the cluster has another", "", Some(1), true, false),
            ("none, of an object without generations", "", None, false, false),
        ] {
            let mut request = request(Some(RegistrationResult::Approved), false);
            request.metadata.generation = generation;
            request.status.as_mut().unwrap().approved_key = named.to_owned();
            let checked = check_named(&request, new_key).map_err(|trouble| trouble.to_string());
            assert_eq!(checked.is_ok(), good, "{what}: {checked:?}");
            let command = "--fingerprint k";
            assert!(checked.err().is_none_or(|why| why.contains(command)), "{what}");
        }
    }
}
