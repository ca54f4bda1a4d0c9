//! The policy that holds now: read again every few seconds with the agent's own account, swapped whole, so that each
//! request goes by one version. What is open when a version is replaced is judged again by the next one, and ends if
//! that does not admit it.
//!
//! Everything that goes wrong takes away: before the first reading nobody is admitted; a text that is wrong changes
//! nothing, and at the start admits nobody; a ConfigMap that was there and is gone, or cannot be read, leaves the
//! last good policy in force for [`POLICY_LOST`], then nobody is admitted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::cluster::{PolicyRefusal, PolicyStatus};
use api::identity::Identity;
use api::names::SYSTEM_NAMESPACE;
use api::report::MAX_REFUSALS;
use api::status::printable;
use arc_swap::ArcSwap;
use http::StatusCode;
use jiff::Timestamp;
use runtime::readiness::Readiness;
use runtime::stop::Stop;
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::request_info::RequestInfo;
use super::{POLICY_CONFIGMAP, POLICY_KEY, Policy, Refused, Rule};
use crate::account::{Account, AskError};
use crate::limits::{POLICY_EVERY, POLICY_LOST, POLICY_REFUSALS_LOGGED};
use crate::metrics::Metrics;

/// The readiness check of this module.
pub const CHECK: &str = "policy";
/// Longest user and request in what is told of a refusal.
const SHOWN: usize = 256;

/// Holds the policy.
#[derive(Debug)]
pub struct InForce {
    version: ArcSwap<Version>,
    told: ArcSwap<Told>,
    last: Mutex<Last>,
    metrics: Metrics,
}

/// Where the policy is from, and what is wrong with what stands there now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Told {
    configured: bool,
    resource_version: String,
    error: String,
}

/// What was refused last: ten of at most 1 KiB each.
#[derive(Debug, Default)]
struct Last {
    refusals: VecDeque<PolicyRefusal>,
    /// Lines logged in the minute that began then; what is beyond is only counted.
    logged: Option<(Instant, u32)>,
}

/// One state of affairs.
#[derive(Debug)]
pub struct Version {
    held: Held,
    /// Set off when the next one holds.
    replaced: Stop,
}

/// What there is to go by.
#[derive(Debug, Clone, PartialEq)]
enum Held {
    /// Nothing yet; passes by itself.
    Unread,
    /// Nothing yet, because it could not be read when it was tried.
    Unreadable(String),
    /// This.
    Policy(Box<Policy>),
    /// Nothing that can be trusted: nobody is admitted.
    Nobody(String),
}

/// Why somebody is not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// By the policy.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is none yet: the first reading is on its way.
    #[error("the agent has not read its cluster's policy yet")]
    Unread,
    /// There is none yet, and reading it again may well fail again.
    #[error("the agent cannot read its cluster's policy, and admits nobody before it has: {0}")]
    Unreadable(String),
}

/// The ConfigMap, as far as it matters.
#[derive(Deserialize)]
struct ConfigMap {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    resource_version: String,
}

/// What one reading found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reading {
    Absent,
    Text { version: String, text: Result<String, String> },
    Unreadable(String),
}

/// What was good, and since when it cannot be confirmed.
#[derive(Debug, Default)]
struct Keeper {
    good: Option<Policy>,
    /// A ConfigMap was there since this process began.
    seen: bool,
    lost: Option<Instant>,
}

impl InForce {
    /// Admits nobody before [`InForce::run`] has read something.
    pub fn unread() -> Self {
        Self::holding(Held::Unread)
    }

    /// A policy that is never read again.
    pub fn fixed(policy: Policy) -> Self {
        Self::holding(Held::Policy(Box::new(policy)))
    }

    fn holding(held: Held) -> Self {
        Self {
            version: ArcSwap::from_pointee(Version { held, replaced: Stop::new() }),
            told: ArcSwap::default(),
            last: Mutex::default(),
            metrics: Metrics::default(),
        }
    }

    /// The same, counting what it refuses.
    #[must_use]
    pub fn counting(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Judges a request by the version that holds now, which is given back with the person as the owner sees them.
    ///
    /// # Errors
    /// It is not admitted.
    pub fn admit(
        &self,
        who: &Identity,
        asked: &RequestInfo,
    ) -> Result<(Arc<Version>, Identity), NotAdmitted> {
        let version = self.version.load_full();
        let policy = version.judge(who, asked).inspect_err(|refused| self.note(who, asked, refused))?;
        let believed = policy
            .believed(who.clone())
            .map_err(|error| NotAdmitted::Refused(Refused::fixed(Rule::Users, error.to_string())))?;
        Ok((version, believed))
    }

    /// Ends when a later version than `version` does not admit the request any more.
    pub async fn until_refused(
        self: Arc<Self>,
        mut version: Arc<Version>,
        who: Identity,
        believed: Identity,
        asked: RequestInfo,
    ) -> NotAdmitted {
        loop {
            version.replaced.cancelled().await;
            match self.admit(&who, &asked) {
                Ok((next, now)) if now == believed => version = next,
                Ok(_) => {
                    let why = "groups or roles that the request was made with are no longer believed";
                    return NotAdmitted::Refused(Refused::new(Rule::Users, why, "add them"));
                }
                Err(refused) => return refused,
            }
        }
    }

    /// For the report: what holds, what is wrong, what was refused last.
    pub fn status(&self) -> PolicyStatus {
        let (version, told) = (self.version.load(), self.told.load());
        let (preset, summary, closed) = match &version.held {
            Held::Policy(policy) => {
                (policy.preset().to_string(), policy.sentences().join("; "), policy.is_closed())
            }
            Held::Unread | Held::Unreadable(_) | Held::Nobody(_) => {
                (String::new(), "there is no policy to go by: nobody is admitted".to_owned(), true)
            }
        };
        PolicyStatus {
            source: if told.configured { "configmap" } else { "default" }.to_owned(),
            preset,
            summary,
            resource_version: told.resource_version.clone(),
            closed,
            error: told.error.clone(),
            last_refusals: self.last().refusals.iter().cloned().collect(),
            as_of: String::new(),
        }
    }

    fn note(&self, who: &Identity, asked: &RequestInfo, why: &NotAdmitted) {
        let NotAdmitted::Refused(refused) = why else { return };
        self.metrics.refused(refused.rule);
        let refusal = PolicyRefusal {
            time: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            user: printable(who.user(), SHOWN),
            asked: printable(&asked.to_string(), SHOWN),
            rule: refused.rule.to_string(),
        };
        let mut last = self.last();
        let now = Instant::now();
        let this_minute = last.logged.filter(|(since, _)| now.duration_since(*since).as_secs() < 60);
        let (since, count) = this_minute.unwrap_or((now, 0));
        last.logged = Some((since, count.saturating_add(1)));
        if count < POLICY_REFUSALS_LOGGED {
            tracing::warn!(
                user = refusal.user,
                asked = refusal.asked,
                rule = refusal.rule,
                "the policy refused a request"
            );
        } else if count == POLICY_REFUSALS_LOGGED {
            tracing::warn!(
                "the policy refuses many requests; for the rest of this minute they are only counted"
            );
        }
        last.refusals.truncate(MAX_REFUSALS - 1);
        last.refusals.push_front(refusal);
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        // Nothing under this lock can panic half way through a change.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the policy every [`POLICY_EVERY`] until `stop`.
    pub async fn run(&self, account: Account, readiness: Readiness, stop: Stop) {
        let mut keeper = Keeper::default();
        let mut ticks = interval(POLICY_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        let mut told = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let reading = read(&account).await;
            if told.as_ref() != Some(&reading) {
                tell(&reading);
                told = Some(reading.clone());
            }
            let outcome = Told::of(&reading, keeper.seen);
            let held = keeper.next(reading, Instant::now());
            readiness.set(
                CHECK,
                match &held {
                    Held::Policy(_) => Ok(()),
                    Held::Unread => Err("nobody is admitted: the policy has not been read yet".to_owned()),
                    Held::Unreadable(why) | Held::Nobody(why) => Err(format!("nobody is admitted: {why}")),
                },
            );
            self.told.store(Arc::new(outcome));
            let opens = match &held {
                Held::Policy(policy) => policy.is_open_at(Timestamp::now()),
                Held::Unread | Held::Unreadable(_) | Held::Nobody(_) => true,
            };
            // When the clock opens or shuts the door, what is open is judged again too.
            if self.version.load().held != held || open != opens {
                open = opens;
                self.replace(held);
            }
        }
    }

    fn replace(&self, held: Held) {
        match &held {
            Held::Policy(policy) => {
                tracing::info!(policy = policy.sentences().join("; "), "a policy is in force");
            }
            Held::Unread => {}
            Held::Unreadable(why) => tracing::warn!(why, "nobody is admitted: the policy cannot be read"),
            Held::Nobody(why) => tracing::error!(why, "nobody is admitted: there is no policy to go by"),
        }
        let before = self.version.swap(Arc::new(Version { held, replaced: Stop::new() }));
        before.replaced.cancel();
    }
}

impl Told {
    /// `seen` is whether there has been a ConfigMap before.
    fn of(reading: &Reading, seen: bool) -> Self {
        match reading {
            Reading::Text { version, text } => {
                let read = text
                    .as_ref()
                    .map_err(Clone::clone)
                    .and_then(|text| Policy::read(text).map_err(|mistakes| mistakes.to_string()));
                Self {
                    configured: true,
                    resource_version: version.clone(),
                    error: read.err().map(|why| format!("the policy is invalid: {why}")).unwrap_or_default(),
                }
            }
            Reading::Absent if !seen => Self::default(),
            Reading::Absent => Self {
                configured: true,
                error: format!(
                    "ConfigMap {POLICY_CONFIGMAP} was removed; the last one holds for {} min, then nobody is admitted",
                    POLICY_LOST.as_secs() / 60
                ),
                ..Self::default()
            },
            Reading::Unreadable(why) => Self {
                configured: seen,
                error: format!("the policy cannot be read: {why}"),
                ..Self::default()
            },
        }
    }
}

impl Version {
    fn judge(&self, who: &Identity, asked: &RequestInfo) -> Result<&Policy, NotAdmitted> {
        match &self.held {
            Held::Policy(policy) => {
                policy.admit(who, asked, Timestamp::now())?;
                Ok(policy)
            }
            Held::Unread => Err(NotAdmitted::Unread),
            Held::Unreadable(why) => Err(NotAdmitted::Unreadable(why.clone())),
            Held::Nobody(why) => Err(NotAdmitted::Refused(Refused::new(
                Rule::NoPolicy,
                why.clone(),
                "write a policy that `towline-agent policy check` finds good",
            ))),
        }
    }
}

impl Keeper {
    fn next(&mut self, reading: Reading, now: Instant) -> Held {
        let missing = match reading {
            Reading::Text { text, .. } => {
                self.seen = true;
                return self.take(text.and_then(|text| {
                    Policy::read(&text).map(|checked| checked.policy).map_err(|mistakes| mistakes.to_string())
                }));
            }
            Reading::Absent if !self.seen => {
                self.lost = None;
                let policy = self.good.get_or_insert(Policy::DEFAULT);
                return Held::Policy(Box::new(policy.clone()));
            }
            Reading::Absent => format!("ConfigMap {POLICY_CONFIGMAP} was there and is gone"),
            Reading::Unreadable(why) => why,
        };
        let Some(good) = &self.good else {
            return if self.seen { Held::Nobody(missing) } else { Held::Unreadable(missing) };
        };
        let since = *self.lost.get_or_insert(now);
        if now.duration_since(since) < POLICY_LOST {
            return Held::Policy(Box::new(good.clone()));
        }
        Held::Nobody(format!("for {} s the policy could not be confirmed: {missing}", POLICY_LOST.as_secs()))
    }

    fn take(&mut self, read: Result<Policy, String>) -> Held {
        self.lost = None;
        match (read, &self.good) {
            (Ok(policy), _) => {
                self.good = Some(policy.clone());
                Held::Policy(Box::new(policy))
            }
            (Err(_), Some(good)) => Held::Policy(Box::new(good.clone())),
            (Err(why), None) => Held::Nobody(format!("the policy is invalid: {why}")),
        }
    }
}

fn tell(reading: &Reading) {
    match reading {
        Reading::Absent => tracing::info!(configmap = POLICY_CONFIGMAP, "there is no policy"),
        Reading::Unreadable(why) => tracing::warn!(why, "the policy cannot be read"),
        Reading::Text { version, text } => {
            let read = text
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|text| Policy::read(text).map_err(|mistakes| mistakes.to_string()));
            match read {
                Ok(checked) => {
                    for warning in checked.warnings {
                        tracing::warn!(version, warning, "the policy is odd");
                    }
                }
                Err(why) => tracing::error!(version, why, "the policy is invalid; nothing changes"),
            }
        }
    }
}

async fn read(account: &Account) -> Reading {
    let path = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/configmaps/{POLICY_CONFIGMAP}");
    match account.get::<ConfigMap>(&path).await {
        Ok(mut map) => {
            let missing = || format!("ConfigMap {POLICY_CONFIGMAP} has no key {POLICY_KEY}");
            let text = map.data.remove(POLICY_KEY).ok_or_else(missing);
            Reading::Text { version: map.metadata.resource_version, text }
        }
        Err(error) if error.code() == Some(StatusCode::NOT_FOUND) => Reading::Absent,
        Err(error) => Reading::Unreadable(unreadable(&error)),
    }
}

fn unreadable(error: &AskError) -> String {
    if error.code() == Some(StatusCode::FORBIDDEN) {
        return format!("{error} (apply a new agent.yaml: it grants the agent get on this ConfigMap)");
    }
    error.to_string()
}

#[cfg(test)]
mod tests;
