//! What the impersonator may do in the child, and what neither of the agent's accounts may. Everything is asked,
//! nothing is assumed: SelfSubjectAccessReviews with the account's own token, and at the end one request as a
//! person who does not exist, which has to come back with that person's name.
//!
//! Two generations of rules exist: one verb `impersonate` (every Kubernetes), and constrained impersonation
//! (KEP-5284, on by default from 1.36). kube-apiserver tries the old verb after the new ones (apiserver
//! `pkg/endpoints/filters/impersonation/mode.go`), so where both are granted the old one is what counts.
//!
//! Fails closed: a right that agent.yaml never gives and that would undo what bounds the hub is
//! [`Verdict::Dangerous`], and nobody is served; no answer is [`Verdict::Unknown`], and nobody is served either.

use std::fmt;

use api::names::{AGENT_ACCOUNT, IMPERSONATOR_ACCOUNT};
use futures::future::try_join_all;
use moka::future::Cache;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::account::Account;
use crate::limits::{GROUP_CACHE, GROUP_QUESTIONS, GROUP_TTL};

pub(crate) mod dangers;
pub(crate) mod proof;

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const RULES: &str = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";

/// The rules by which the child lets us impersonate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Verb `impersonate` on core `users` and `groups`.
    Legacy,
    /// Verb `impersonate:user-info` on `users` and `groups` of authentication.k8s.io.
    Constrained,
}

/// How people can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// By which rules.
    pub mode: Mode,
    /// Whether any user name may be impersonated; else the child's owner has listed them.
    pub any_user: bool,
    /// What the child's owner should look at; nothing of it keeps people out.
    pub warnings: Vec<String>,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// People can be served.
    May(Standing),
    /// The account may not impersonate users.
    MayNot(String),
    /// It may too much, or the child does not see whom we impersonate.
    Dangerous(String),
    /// The child did not answer.
    Unknown(String),
}

impl Verdict {
    /// What is wrong; empty if nothing is.
    pub fn error(&self) -> String {
        match self {
            Self::May(_) => String::new(),
            Self::MayNot(why) | Self::Dangerous(why) | Self::Unknown(why) => why.clone(),
        }
    }
}

impl Mode {
    /// API group and verb of its rules on users and groups.
    fn rule(self) -> (&'static str, &'static str) {
        match self {
            Self::Legacy => ("", "impersonate"),
            Self::Constrained => ("authentication.k8s.io", "impersonate:user-info"),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy (verb impersonate)",
            Self::Constrained => "constrained (KEP-5284)",
        })
    }
}

/// Answers on groups, kept for a while.
#[derive(Debug)]
pub struct Permissions {
    groups: Cache<(Mode, String), bool>,
    questions: Semaphore,
}

/// One question of a SelfSubjectAccessReview.
#[derive(Debug, Clone, Copy, Default)]
struct Ask<'a> {
    verb: &'a str,
    group: &'a str,
    resource: &'a str,
    subresource: &'a str,
    namespace: &'a str,
    /// Empty asks for all names.
    name: &'a str,
}

#[derive(Deserialize)]
struct Review {
    status: ReviewStatus,
}

#[derive(Deserialize)]
struct ReviewStatus {
    #[serde(default)]
    allowed: bool,
}

impl Permissions {
    /// Knows nothing yet.
    pub(crate) fn new() -> Self {
        let groups = Cache::builder()
            .max_capacity(GROUP_CACHE)
            // The entry's own bookkeeping is about 128 bytes.
            .weigher(|(_, name): &(Mode, String), _: &bool| {
                u32::try_from(name.len() + 128).unwrap_or(u32::MAX)
            })
            .time_to_live(GROUP_TTL)
            .build();
        Self { groups, questions: Semaphore::new(GROUP_QUESTIONS) }
    }

    /// Asks what `impersonator` may, whether it or `agent` may too much, and whether the child sees whom we
    /// impersonate.
    pub async fn probe(impersonator: &Account, agent: &Account) -> Verdict {
        match probe(impersonator, agent).await {
            Ok(verdict) => verdict,
            Err(why) => Verdict::Unknown(format!("the right to impersonate is not known: {why}")),
        }
    }

    /// Those of `groups` that `account` may impersonate, in their order.
    ///
    /// # Errors
    /// The child does not answer. Leaving groups out then would change who somebody is.
    pub async fn allowed_groups(
        &self,
        account: &Account,
        mode: Mode,
        groups: &[String],
    ) -> Result<Vec<String>, String> {
        let asked = groups.iter().map(|group| self.may_be_group(account, mode, group));
        let answers = try_join_all(asked).await?;
        Ok(groups
            .iter()
            .zip(answers)
            .filter(|(_, allowed)| *allowed)
            .map(|(group, _)| group.clone())
            .collect())
    }

    async fn may_be_group(&self, account: &Account, mode: Mode, group: &str) -> Result<bool, String> {
        // Bounded over all requests: a hub could send thousands of made-up groups.
        let ask = async {
            let _permit = self.questions.acquire().await;
            may_impersonate(account, mode, "groups", group).await
        };
        let key = (mode, group.to_owned());
        self.groups.try_get_with(key, ask).await.map_err(|why| String::clone(&why))
    }
}

async fn probe(impersonator: &Account, agent: &Account) -> Result<Verdict, String> {
    if let Some(danger) = dangers::find(impersonator, agent).await? {
        return Ok(Verdict::Dangerous(danger));
    }
    let rules = proof::rules(impersonator).await?;
    let mut warnings = rules.surplus();
    if may(agent, Ask { verb: "get", resource: "secrets", ..Ask::default() }).await? {
        warnings.push(format!(
            "the account {AGENT_ACCOUNT} may read all Secrets of this cluster, which agent.yaml does not grant"
        ));
    }
    let legacy = may_impersonate(impersonator, Mode::Legacy, "users", "").await?;
    let constrained = may_impersonate(impersonator, Mode::Constrained, "users", "").await?;
    let (mode, any_user) = match (legacy, constrained) {
        (true, _) => (Mode::Legacy, true),
        (false, true) => (Mode::Constrained, true),
        // The child's owner has listed users by name.
        (false, false) if rules.lists_users(Mode::Legacy) => (Mode::Legacy, false),
        (false, false) if rules.lists_users(Mode::Constrained) => (Mode::Constrained, false),
        (false, false) => {
            return Ok(Verdict::MayNot(format!(
                "the account {IMPERSONATOR_ACCOUNT} may not impersonate users"
            )));
        }
    };
    if !any_user && let Some(danger) = dangers::listed_by_name(impersonator, mode).await? {
        return Ok(Verdict::Dangerous(danger));
    }
    if rules.has(Mode::Legacy) && (constrained || rules.has(Mode::Constrained)) {
        warnings.push(
            "rules for constrained impersonation are granted beside the verb impersonate, which cancels them: \
             kube-apiserver falls back to it; remove the rules with the verb impersonate"
                .to_owned(),
        );
    }
    proof::prove(impersonator, Standing { mode, any_user, warnings }).await
}

async fn may_impersonate(account: &Account, mode: Mode, resource: &str, name: &str) -> Result<bool, String> {
    let (group, verb) = mode.rule();
    may(account, Ask { verb, group, resource, name, ..Ask::default() }).await
}

async fn may(account: &Account, ask: Ask<'_>) -> Result<bool, String> {
    let review: Review = account.post(REVIEWS, &review_of(ask)).await.map_err(|error| error.to_string())?;
    Ok(review.status.allowed)
}

fn review_of(ask: Ask<'_>) -> serde_json::Value {
    json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": {
            "verb": ask.verb, "group": ask.group, "resource": ask.resource, "subresource": ask.subresource,
            "namespace": ask.namespace, "name": ask.name,
        } },
    })
}

#[cfg(test)]
mod tests;
