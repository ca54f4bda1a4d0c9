//! What the impersonator may do in the child, asked with its own token by SelfSubjectAccessReview. Two
//! generations of rules exist: one verb `impersonate` (every Kubernetes), and constrained impersonation
//! (KEP-5284, from 1.36 on). Which one agent.yaml granted is found out by asking.

use futures::future::try_join_all;
use moka::future::Cache;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::account::Account;
use crate::limits::{GROUP_CACHE, GROUP_QUESTIONS, GROUP_TTL};

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// The rules by which the child lets us impersonate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Verb `impersonate` on core `users` and `groups`.
    Legacy,
    /// Verb `impersonate:user-info` on `users` and `groups` of authentication.k8s.io.
    Constrained,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// People can be served.
    May(Mode),
    /// The account may not impersonate users.
    MayNot(String),
    /// It may impersonate too much.
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

/// Answers on groups, kept for a while.
#[derive(Debug)]
pub struct Permissions {
    groups: Cache<(Mode, String), bool>,
    questions: Semaphore,
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

    /// Asks what `account` may impersonate at all.
    pub async fn probe(account: &Account) -> Verdict {
        match probe(account).await {
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
            may(account, mode, "groups", Some(group)).await
        };
        let key = (mode, group.to_owned());
        self.groups.try_get_with(key, ask).await.map_err(|why| String::clone(&why))
    }
}

async fn probe(account: &Account) -> Result<Verdict, String> {
    // Constrained impersonation refuses system:masters by itself; the old verb does not.
    if may(account, Mode::Legacy, "groups", Some("system:masters")).await? {
        return Ok(Verdict::Dangerous(
            "its account may impersonate group system:masters, which passes all authorization; remove \
             whatever grants that to clusternet-app-deployer"
                .to_owned(),
        ));
    }
    for mode in [Mode::Constrained, Mode::Legacy] {
        if may(account, mode, "users", None).await? {
            return Ok(Verdict::May(mode));
        }
    }
    Ok(Verdict::MayNot("the account clusternet-app-deployer may not impersonate users".to_owned()))
}

async fn may(account: &Account, mode: Mode, resource: &str, name: Option<&str>) -> Result<bool, String> {
    let (group, verb) = match mode {
        Mode::Legacy => ("", "impersonate"),
        Mode::Constrained => ("authentication.k8s.io", "impersonate:user-info"),
    };
    let mut attributes = json!({ "group": group, "verb": verb, "resource": resource });
    if let (Some(name), Value::Object(attributes)) = (name, &mut attributes) {
        attributes.insert("name".to_owned(), name.into());
    }
    let body = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": attributes },
    });
    let review: Review = account.post(REVIEWS, &body).await.map_err(|error| error.to_string())?;
    Ok(review.status.allowed)
}
