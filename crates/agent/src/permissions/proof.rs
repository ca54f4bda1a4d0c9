//! What the account holds according to the child (SelfSubjectRulesReview), and the proof that impersonation
//! works from end to end: a request as a person who does not exist, answered with that person's name. An answer
//! that shows the agent's own account means that something on the way drops the headers; every person's
//! request would then run as the agent.

use api::identity::Identity;
use api::names::{IMPERSONATOR_ACCOUNT, SYSTEM_NAMESPACE};
use api::status::printable;
use http::StatusCode;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{Ask, Mode, REVIEWS, RULES, Review, Standing, Verdict, review_of};
use crate::account::{Account, AskError};

/// Nobody. No hub sends it, for nobody is called so, and it needs no right in the child.
pub(crate) const NOBODY: &str = "towline-impersonation-probe";
/// From Kubernetes 1.28 on.
const WHO_AM_I: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
/// Surplus rules that are named in the warning; the rest is counted.
const NAMED: usize = 3;

/// Rules by which an authorizer says what the account may. Not the whole truth (webhooks, other namespaces):
/// good for a warning, never for a yes.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Rules {
    #[serde(deserialize_with = "list")]
    resource_rules: Vec<Rule>,
}

/// Go writes an empty list as `null` where it is not left out.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    #[serde(deserialize_with = "list")]
    verbs: Vec<String>,
    #[serde(deserialize_with = "list")]
    api_groups: Vec<String>,
    #[serde(deserialize_with = "list")]
    resources: Vec<String>,
    #[serde(deserialize_with = "list")]
    resource_names: Vec<String>,
}

fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct RulesReview {
    status: Rules,
}

#[derive(Deserialize)]
struct SelfReview {
    status: SelfStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SelfStatus {
    user_info: UserInfo,
}

#[derive(Deserialize)]
struct UserInfo {
    username: String,
    #[serde(default)]
    groups: Vec<String>,
}

/// Asks for the rules in the agent's own namespace, those of the whole cluster among them.
///
/// # Errors
/// No answer. A child that does not tell anybody's rules is no reason to serve nobody.
pub(super) async fn rules(account: &Account) -> Result<Rules, String> {
    let body = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": { "namespace": SYSTEM_NAMESPACE },
    });
    let review: Result<RulesReview, AskError> = account.post(RULES, &body).await;
    match review {
        Ok(review) => Ok(review.status),
        Err(error) if matches!(error.code(), Some(StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)) => {
            Ok(Rules::default())
        }
        Err(error) => Err(error.to_string()),
    }
}

impl Rules {
    /// Whether users are listed by name for this generation.
    pub(super) fn lists_users(&self, mode: Mode) -> bool {
        self.of(mode).any(|rule| {
            rule.resources.iter().any(|resource| resource == "users") && !rule.resource_names.is_empty()
        })
    }

    /// Whether there is any rule of this generation.
    pub(super) fn has(&self, mode: Mode) -> bool {
        self.of(mode).next().is_some()
    }

    fn of(&self, mode: Mode) -> impl Iterator<Item = &Rule> {
        let (group, verb) = mode.rule();
        self.resource_rules.iter().filter(move |rule| {
            rule.verbs.iter().any(|held| held == verb) && rule.api_groups.iter().any(|held| held == group)
        })
    }

    /// A warning when the account holds more than impersonation and what everybody holds.
    pub(super) fn surplus(&self) -> Vec<String> {
        let surplus: Vec<String> =
            self.resource_rules.iter().filter(|rule| !rule.is_expected()).map(Rule::short).collect();
        if surplus.is_empty() {
            return Vec::new();
        }
        let more = match surplus.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named = surplus.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
        vec![format!(
            "the account {IMPERSONATOR_ACCOUNT} is meant to impersonate and nothing else, so that a request whose \
             identity got lost is refused; it also may {named}{more}"
        )]
    }
}

impl Rule {
    fn is_expected(&self) -> bool {
        let impersonates = self.verbs.iter().all(|verb| verb.starts_with("impersonate"));
        // ClusterRole system:basic-user, which everybody has.
        let self_reviews = self.verbs.iter().all(|verb| verb == "create")
            && self.resources.iter().all(|resource| resource.starts_with("selfsubject"));
        impersonates || self_reviews
    }

    fn short(&self) -> String {
        let text = format!("{} {}", self.verbs.join(","), self.resources.join(","));
        printable(&text, 80)
    }
}

/// Makes the standing a verdict, or finds that the child does not see whom we impersonate.
///
/// # Errors
/// The child does not answer.
pub(super) async fn prove(account: &Account, standing: Standing) -> Result<Verdict, String> {
    let nobody = Identity::of(NOBODY, &[]).map_err(|error| error.to_string())?;
    let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let answer: Result<SelfReview, AskError> = account.post_as(&nobody, WHO_AM_I, &body).await;
    let error = match answer {
        Ok(review) => return Ok(judge(&review.status.user_info, standing)),
        Err(error) => error,
    };
    match error.code() {
        // Before 1.28 it is 403: nobody is granted what does not exist.
        Some(StatusCode::NOT_FOUND | StatusCode::FORBIDDEN) => {
            prove_by_comparison(account, &nobody, standing).await
        }
        _ => Err(error.to_string()),
    }
}

fn judge(seen: &UserInfo, standing: Standing) -> Verdict {
    if seen.username != NOBODY {
        return Verdict::Dangerous(format!(
            "the child answered a request as user {NOBODY:?} to user {:?}: something between the agent and the \
             child's kube-apiserver drops the impersonation headers; connect the agent to kube-apiserver itself",
            printable(&seen.username, 128)
        ));
    }
    let more = seen.groups.iter().find(|group| *group != "system:authenticated");
    match more {
        Some(group) => Verdict::Dangerous(format!(
            "the child gives group {:?} to whomever the agent impersonates",
            printable(group, 128)
        )),
        None => Verdict::May(standing),
    }
}

/// A 403 is safe: without the headers the answer would have been the agent's own name.
fn refused(error: &AskError, standing: Standing) -> Verdict {
    match standing {
        // The child's owner lists who may be impersonated, and nobody of that name is among them.
        Standing { any_user: false, .. } => Verdict::May(standing),
        Standing { mode: Mode::Constrained, .. } => Verdict::MayNot(format!(
            "constrained impersonation is granted and does not work: {error}; this child needs Kubernetes 1.36 or \
             later, and the verb impersonate-on:user-info:create on selfsubjectreviews (authentication.k8s.io), \
             selfsubjectaccessreviews and selfsubjectrulesreviews (authorization.k8s.io)"
        )),
        Standing { mode: Mode::Legacy, .. } => {
            Verdict::MayNot(format!("impersonation is granted and does not work: {error}"))
        }
    }
}

/// Before 1.28: a question that the child answers with yes to our own account, put as somebody who holds
/// nothing. A yes means that it was our account which asked.
async fn prove_by_comparison(
    account: &Account,
    nobody: &Identity,
    standing: Standing,
) -> Result<Verdict, String> {
    // Where users are listed by name there may be no right that is known to us; any group of agent.yaml is.
    let (group, verb) = standing.mode.rule();
    let (resource, name) = if standing.any_user { ("users", "") } else { ("groups", "clusternet:view") };
    let body: Value = review_of(Ask { verb, group, resource, name, ..Ask::default() });
    let answer: Result<Review, AskError> = account.post_as(nobody, REVIEWS, &body).await;
    match answer {
        Ok(review) if review.status.allowed => Ok(Verdict::Dangerous(format!(
            "the child let user {NOBODY:?}, who holds no right, impersonate as if it were the agent's own account: \
             something on the way drops the impersonation headers, or everybody may impersonate"
        ))),
        Ok(_) => Ok(Verdict::May(standing)),
        Err(error) if error.code() == Some(StatusCode::FORBIDDEN) => Ok(refused(&error, standing)),
        Err(error) => Err(error.to_string()),
    }
}
