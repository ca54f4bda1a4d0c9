//! A refusal: which rule of the owner's policy, why, and what the owner would write to allow it.

use std::fmt;

use super::POLICY_CONFIGMAP;

/// What refused. A closed set: it is the label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// `closed: true`
    Closed,
    /// `users` and `groups`
    Users,
    /// `hours`
    Hours,
    /// What no policy can lift.
    Floor,
    /// `preset`
    Preset,
    /// `verbs`
    Verbs,
    /// `resources`
    Resources,
    /// `namespaces`
    Namespaces,
    /// `nonResourceURLs`
    NonResourceUrls,
    /// The request has no clear reading.
    Unreadable,
    /// There is no policy to go by.
    NoPolicy,
}

impl Rule {
    /// As it stands in a policy, where it does.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Users => "users",
            Self::Hours => "hours",
            Self::Floor => "floor",
            Self::Preset => "preset",
            Self::Verbs => "verbs",
            Self::Resources => "resources",
            Self::Namespaces => "namespaces",
            Self::NonResourceUrls => "nonResourceURLs",
            Self::Unreadable => "unreadable",
            Self::NoPolicy => "no-policy",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a policy does not admit something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rule {rule}: {why}; {remedy}")]
pub struct Refused {
    /// Which rule.
    pub rule: Rule,
    /// What it says.
    pub why: String,
    /// What has to be done, by whom.
    pub remedy: String,
}

impl Refused {
    /// By a rule of the policy; `change` is what its owner would do to it.
    pub(super) fn new(rule: Rule, why: impl Into<String>, change: impl fmt::Display) -> Self {
        let remedy =
            format!("to allow it, the cluster's owner would {change} in ConfigMap {POLICY_CONFIGMAP}");
        Self { rule, why: why.into(), remedy }
    }

    /// By something that no policy lifts.
    pub(super) fn fixed(rule: Rule, why: impl Into<String>) -> Self {
        Self { rule, why: why.into(), remedy: "no policy can allow it".to_owned() }
    }
}
