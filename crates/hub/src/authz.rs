//! May they: the parent's RBAC decides, asked by `SubjectAccessReview`, remembered for ten seconds. No
//! answer is an error (500), never a yes. The parent has asked the same before it sent a request on, but
//! apiserver's own rule is not to rely on that (`options/authorization.go`).

use std::sync::Arc;
use std::time::Duration;

use api::identity::Identity;
use api::names::{ACCESS_GROUP, ACCESS_VERSION, ClusterId, PROXIES_GROUP, PROXIES_VERSION, Role};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use moka::future::Cache;
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use crate::refusal::Refusal;

/// How long an answer holds, yes or no alike; the default of apiserver's webhook authorizer.
const CACHE_TTL: Duration = Duration::from_secs(10);
/// Entries of ordinary size. With [`ENTRY_UNIT`] the cache stays below 32 MiB.
const CACHE_ENTRIES: u64 = 8192;
/// What an entry of ordinary size may take; one with thousands of groups counts as several.
const ENTRY_UNIT: usize = 4096;
/// Larger identities are asked about each time: 80 of them would fill the cache.
const CACHE_MAX_KEY: usize = 400 * 1024;
/// Questions on their way at once. The parent's API server gives a service account far more seats, and each
/// takes a millisecond or two; the rest waits here instead of there.
const MAX_ASKING: usize = 64;
/// Time for one answer, waiting included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Members may do everything, and are asked about by nobody (apiserver `privilegedGroups`).
const PRIVILEGED: &str = "system:masters";

/// What is asked; with an identity it is the whole spec of a review.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// A verb on a subresource of one socket.
    Socket {
        /// `get`, `create`, `assume`, …
        verb: &'static str,
        /// `proxy`, `attach`, or a role.
        subresource: &'static str,
        /// Its name.
        cluster: ClusterId,
    },
    /// `create` on a resource of access.towline.io.
    Create(&'static str),
    /// A verb on everybody's objects of a resource of access.towline.io, not only on the caller's own. It is asked on
    /// the subresource `all`: whoever comes through the parent has the verb on the resource itself already.
    All {
        /// `list` or `delete`
        verb: &'static str,
        /// `issuedcredentials`
        resource: &'static str,
    },
    /// `impersonate` on somebody.
    Impersonate {
        /// `users`, `groups` or `serviceaccounts`.
        resource: &'static str,
        /// Of a service account.
        namespace: Option<String>,
        /// Who.
        name: String,
    },
    /// A path that is no resource.
    Path {
        /// `get`
        verb: &'static str,
        /// `/metrics`
        path: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    who: Arc<Identity>,
    action: Action,
}

/// The parent's authorizer.
#[derive(Clone)]
pub struct Authz {
    reviews: Api<SubjectAccessReview>,
    known: Cache<Question, bool>,
    asking: Arc<Semaphore>,
    metrics: Metrics,
}

impl std::fmt::Debug for Authz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authz").field("known", &self.known.entry_count()).finish_non_exhaustive()
    }
}

impl Authz {
    /// Asks through this client, and remembers answers as long as documented.
    pub fn new(client: Client, metrics: Metrics) -> Self {
        Self::remembering(client, metrics, CACHE_TTL)
    }

    /// The same with another memory.
    pub(crate) fn remembering(client: Client, metrics: Metrics, memory: Duration) -> Self {
        let known = Cache::builder()
            .max_capacity(CACHE_ENTRIES)
            .weigher(|question: &Question, _| {
                u32::try_from(1 + size(&question.who) / ENTRY_UNIT).unwrap_or(u32::MAX)
            })
            .time_to_live(memory)
            .build();
        Self { reviews: Api::all(client), known, asking: Arc::new(Semaphore::new(MAX_ASKING)), metrics }
    }

    /// Whether the parent allows it. Equal questions at the same time are asked once.
    ///
    /// # Errors
    /// The parent did not say.
    pub async fn allowed(&self, who: &Arc<Identity>, action: Action) -> Result<bool, Refusal> {
        if is_privileged(who) {
            return Ok(true);
        }
        let question = Question { who: Arc::clone(who), action };
        if size(who) > CACHE_MAX_KEY {
            return Box::pin(self.ask(&question)).await;
        }
        if let Some(answer) = self.known.get(&question).await {
            self.metrics.reviewed("hit");
            return Ok(answer);
        }
        let ask = self.ask(&question);
        // Boxed, here and above: asking takes 8 KiB of state, and every request's future would hold it.
        let answer = Box::pin(self.known.try_get_with(question.clone(), ask)).await;
        answer.map_err(|error: Arc<Refusal>| (*error).clone())
    }

    /// The roles that the parent grants this person on this cluster.
    ///
    /// # Errors
    /// The parent did not say; a missing role must not look like a refusal of the child.
    pub async fn roles(&self, who: &Arc<Identity>, cluster: &ClusterId) -> Result<Vec<Role>, Refusal> {
        let ask = |role: Role| {
            let subresource = role.subresource();
            self.allowed(who, Action::Socket { verb: "assume", subresource, cluster: cluster.clone() })
        };
        let (admin, edit, view) = tokio::try_join!(ask(Role::Admin), ask(Role::Edit), ask(Role::View))?;
        let held = [(Role::Admin, admin), (Role::Edit, edit), (Role::View, view)];
        Ok(held.into_iter().filter(|(_, held)| *held).map(|(role, _)| role).collect())
    }

    /// Makes these the answers of the parent, for as long as answers are remembered; all others are forgotten.
    #[cfg(test)]
    pub(crate) async fn know(&self, answers: impl IntoIterator<Item = (Arc<Identity>, Action, bool)>) {
        self.known.invalidate_all();
        for (who, action, allowed) in answers {
            self.known.insert(Question { who, action }, allowed).await;
        }
    }

    async fn ask(&self, question: &Question) -> Result<bool, Refusal> {
        let answer = match tokio::time::timeout(TIMEOUT, self.ask_in_turn(question)).await {
            Ok(answer) => answer.map_err(|error| reason(&error)),
            Err(_) => Err("timeout"),
        };
        self.metrics.reviewed(match answer {
            Ok(true) => "allowed",
            Ok(false) => "denied",
            Err(_) => "error",
        });
        answer.map_err(|why| Refusal::AuthorizerUnavailable(why.to_owned()))
    }

    async fn ask_in_turn(&self, question: &Question) -> Result<bool, kube::Error> {
        // The semaphore is never closed, so an error cannot happen; no permit would still be no harm.
        let _turn = self.asking.acquire().await.ok();
        let review = SubjectAccessReview { spec: spec(question), ..SubjectAccessReview::default() };
        let status = match self.reviews.create(&PostParams::default(), &review).await {
            Ok(review) => review.status,
            // A pooled connection that the parent has closed shows itself only when it is used.
            Err(kube::Error::Service(error)) => {
                tracing::debug!(%error, "an access review failed and is asked once more");
                self.reviews.create(&PostParams::default(), &review).await?.status
            }
            Err(error) => return Err(error),
        };
        let status = status.unwrap_or_default();
        if let Some(error) = status.evaluation_error.filter(|_| !status.allowed) {
            tracing::debug!(%error, "the parent's authorizer had an error and allowed nothing");
        }
        Ok(status.allowed && status.denied != Some(true))
    }
}

/// Whether no question is needed.
fn is_privileged(who: &Identity) -> bool {
    who.groups().iter().any(|group| group == PRIVILEGED)
}

/// Nothing of the parent's own words: they go to a caller.
fn reason(error: &kube::Error) -> &'static str {
    tracing::warn!(%error, "the parent did not answer an access review");
    let kube::Error::Api(status) = error else { return "it could not be reached" };
    if status.code == 403 {
        return "the hub may not create subjectaccessreviews";
    }
    "its API server answered with an error"
}

/// About how many bytes an identity takes.
fn size(who: &Identity) -> usize {
    let extras =
        who.extra().iter().map(|(key, values)| key.len() + values.iter().map(String::len).sum::<usize>());
    who.user().len()
        + who.groups().iter().map(|group| group.len() + 24).sum::<usize>()
        + extras.sum::<usize>()
}

fn access(verb: &str, resource: &str) -> ResourceAttributes {
    ResourceAttributes {
        group: Some(ACCESS_GROUP.to_owned()),
        version: Some(ACCESS_VERSION.to_owned()),
        resource: Some(resource.to_owned()),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    }
}

fn spec(question: &Question) -> SubjectAccessReviewSpec {
    let who = &question.who;
    let mut spec = SubjectAccessReviewSpec {
        user: Some(who.user().to_owned()),
        uid: who.uid().map(str::to_owned),
        groups: Some(who.groups().to_vec()),
        extra: Some(who.extra().clone()).filter(|extra| !extra.is_empty()),
        ..SubjectAccessReviewSpec::default()
    };
    let own = |text: &str| Some(text.to_owned());
    match &question.action {
        Action::Socket { verb, subresource, cluster } => {
            spec.resource_attributes = Some(ResourceAttributes {
                group: own(PROXIES_GROUP),
                version: own(PROXIES_VERSION),
                resource: own("sockets"),
                subresource: own(subresource),
                name: own(cluster.as_str()),
                verb: own(verb),
                ..ResourceAttributes::default()
            });
        }
        Action::Create(resource) => spec.resource_attributes = Some(access("create", resource)),
        Action::All { verb, resource } => {
            let whole = access(verb, resource);
            spec.resource_attributes = Some(ResourceAttributes { subresource: own("all"), ..whole });
        }
        Action::Impersonate { resource, namespace, name } => {
            spec.resource_attributes = Some(ResourceAttributes {
                group: own(""),
                resource: own(resource),
                namespace: namespace.clone(),
                name: own(name),
                verb: own("impersonate"),
                ..ResourceAttributes::default()
            });
        }
        Action::Path { verb, path } => {
            spec.non_resource_attributes = Some(NonResourceAttributes { path: own(path), verb: own(verb) });
        }
    }
    spec
}

#[cfg(test)]
pub(crate) mod fake_parent;

#[cfg(test)]
mod tests {
    use super::fake_parent::FakeParent;
    use super::*;

    fn who(groups: &[&str]) -> Arc<Identity> {
        Arc::new(Identity::of("alice", groups).unwrap())
    }

    fn action(cluster: &str) -> Action {
        Action::Socket { verb: "get", subresource: "proxy", cluster: cluster.parse().unwrap() }
    }

    #[tokio::test]
    async fn equal_questions_are_asked_once_whether_yes_or_no() {
        let parent = FakeParent::start(|spec| Some(spec["resourceAttributes"]["name"] == "c1")).await;
        let authz = Authz::new(parent.client(), Metrics::default());
        let alice = who(&["dev"]);
        let all = futures::future::join_all((0..50).map(|_| authz.allowed(&alice, action("c1")))).await;
        assert!(all.into_iter().all(|answer| answer == Ok(true)));
        assert_eq!(authz.allowed(&alice, action("c2")).await, Ok(false));
        assert_eq!(authz.allowed(&alice, action("c2")).await, Ok(false));
        let asked = parent.asked();
        assert_eq!(asked.len(), 2, "{asked:#?}");
        assert_eq!(
            asked[0],
            serde_json::json!({
                "user": "alice", "groups": ["dev"],
                "resourceAttributes": {
                    "group": "proxies.clusternet.io", "version": "v1alpha1", "resource": "sockets",
                    "subresource": "proxy", "name": "c1", "verb": "get",
                },
            })
        );
    }

    #[tokio::test]
    async fn whoever_differs_in_anything_is_asked_about_anew() {
        let parent = FakeParent::start(|_| Some(true)).await;
        let authz = Authz::new(parent.client(), Metrics::default());
        for groups in [&["dev"][..], &["dev", "ops"], &["ops", "dev"], &[]] {
            authz.allowed(&who(groups), action("c1")).await.unwrap();
        }
        assert_eq!(parent.asked().len(), 4);
    }

    #[tokio::test]
    async fn no_answer_is_an_error_and_is_not_remembered() {
        let parent = FakeParent::start(|_| None).await;
        let authz = Authz::new(parent.client(), Metrics::default());
        let alice = who(&["dev"]);
        for _ in 0..2 {
            let refusal = authz.allowed(&alice, action("c1")).await.unwrap_err();
            assert_eq!(refusal.to_status().code.as_u16(), 500);
        }
        parent.rule(|_| Some(true));
        assert_eq!(authz.allowed(&alice, action("c1")).await, Ok(true));
    }

    #[tokio::test]
    async fn masters_are_not_asked_about() {
        let parent = FakeParent::start(|_| None).await;
        let authz = Authz::new(parent.client(), Metrics::default());
        let root = who(&["system:masters"]);
        assert_eq!(authz.allowed(&root, action("c1")).await, Ok(true));
        assert_eq!(authz.roles(&root, &"c1".parse().unwrap()).await.unwrap(), Role::ALL);
        assert!(parent.asked().is_empty());
    }

    #[tokio::test]
    async fn roles_are_what_assume_says() {
        let parent = FakeParent::start(|spec| {
            let asked = &spec["resourceAttributes"];
            Some(asked["verb"] == "assume" && asked["subresource"] == "view")
        })
        .await;
        let authz = Authz::new(parent.client(), Metrics::default());
        let roles = authz.roles(&who(&[]), &"c1".parse().unwrap()).await.unwrap();
        assert_eq!(roles, [Role::View]);
        assert_eq!(parent.asked().len(), 3);
    }
}
