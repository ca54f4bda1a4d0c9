//! What an agent says of its cluster, over the tunnel, when the hub asks (`GET /v1/status` at authority
//! `agent`). All of it is the child's own word: the hub cuts and cleans it before anyone sees it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cluster::{ImpersonationStatus, NodeStatistics, PodStatistics, PolicyRefusal, PolicyStatus};
use crate::status::printable;

/// Largest report in bytes that the hub reads.
pub const MAX_REPORT: usize = 64 * 1024;
/// Longest text in a report after cleaning.
const MAX_TEXT: usize = 256;
/// Longest summary and error of a policy: several sentences.
const MAX_SUMMARY: usize = 1024;
/// Longest time of a refusal; RFC 3339 takes 20.
const MAX_TIME: usize = 40;
/// Most refusals of a policy that are shown.
pub const MAX_REFUSALS: usize = 10;
/// Most warnings about rights that are shown.
const MAX_WARNINGS: usize = 10;
/// Longest name of a provider: a scheme of a URL (`azure`, `digitalocean`).
const MAX_PROVIDER: usize = 32;
/// Most resource names in `capacity` and `allocatable`.
const MAX_RESOURCES: usize = 64;

/// An agent's report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentReport {
    /// The child's Kubernetes version; empty if its API server does not answer.
    pub kubernetes_version: String,
    /// `linux/amd64` and the like.
    pub platform: String,
    /// The agent's version.
    pub agent_version: String,
    /// `/healthz` of the child answered `ok`.
    pub healthz: bool,
    /// `/livez`
    pub livez: bool,
    /// `/readyz`
    pub readyz: bool,
    /// Why the child's API server does not answer, if it does not.
    pub api_server_error: String,
    /// What the agent's probe of impersonation found, empty if all is well.
    pub impersonation_error: String,
    /// By which rules it acts as callers; absent while it cannot.
    pub impersonation: Option<ImpersonationStatus>,
    /// What the child's owner admits; an agent that knows no policy says nothing.
    pub policy: Option<PolicyStatus>,
    /// Nodes by state.
    pub nodes: NodeStatistics,
    /// Pods by state; absent if the agent may not count them.
    pub pods: Option<PodStatistics>,
    /// The scheme of the nodes' `spec.providerID`.
    pub provider: String,
    /// How long the child's API server took to answer `/version`, rounded up; absent if it did not.
    pub api_server_rtt_milliseconds: Option<u32>,
    /// Sums over the nodes.
    pub capacity: BTreeMap<String, String>,
    /// Sums over the nodes.
    pub allocatable: BTreeMap<String, String>,
}

impl AgentReport {
    /// The same with every text printable and bounded.
    #[must_use]
    pub fn cleaned(self) -> Self {
        let clean = |text: String| printable(&text, MAX_TEXT);
        let resources = |map: BTreeMap<String, String>| {
            map.into_iter().take(MAX_RESOURCES).map(|(key, value)| (clean(key), clean(value))).collect()
        };
        Self {
            kubernetes_version: clean(self.kubernetes_version),
            platform: clean(self.platform),
            agent_version: clean(self.agent_version),
            api_server_error: clean(self.api_server_error),
            impersonation_error: clean(self.impersonation_error),
            impersonation: self.impersonation.map(|how| ImpersonationStatus {
                mode: clean(how.mode),
                warnings: how.warnings.into_iter().take(MAX_WARNINGS).map(clean).collect(),
                // The hub's to say, not the agent's.
                as_of: String::new(),
            }),
            policy: self.policy.map(cleaned_policy),
            capacity: resources(self.capacity),
            allocatable: resources(self.allocatable),
            healthz: self.healthz,
            livez: self.livez,
            readyz: self.readyz,
            nodes: self.nodes,
            pods: self.pods,
            provider: printable(&self.provider, MAX_PROVIDER),
            api_server_rtt_milliseconds: self.api_server_rtt_milliseconds,
        }
    }
}

fn cleaned_policy(policy: PolicyStatus) -> PolicyStatus {
    let clean = |text: String| printable(&text, MAX_TEXT);
    let refusal = |refusal: PolicyRefusal| PolicyRefusal {
        time: printable(&refusal.time, MAX_TIME),
        user: clean(refusal.user),
        asked: clean(refusal.asked),
        rule: clean(refusal.rule),
    };
    PolicyStatus {
        source: clean(policy.source),
        preset: clean(policy.preset),
        summary: printable(&policy.summary, MAX_SUMMARY),
        resource_version: clean(policy.resource_version),
        closed: policy.closed,
        error: printable(&policy.error, MAX_SUMMARY),
        last_refusals: policy.last_refusals.into_iter().take(MAX_REFUSALS).map(refusal).collect(),
        as_of: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_report_is_cut_and_cleaned() {
        let report = AgentReport {
            kubernetes_version: format!("v1.36.0\u{1b}]0;x\u{7}{}", "x".repeat(1_000_000)),
            capacity: (0..1000).map(|n| (n.to_string(), "\u{1b}[2J".to_owned())).collect(),
            ..AgentReport::default()
        }
        .cleaned();
        assert!(report.kubernetes_version.len() <= MAX_TEXT && !report.kubernetes_version.contains('\u{1b}'));
        assert_eq!(report.capacity.len(), MAX_RESOURCES);

        let long = || format!("\u{1b}[2J{}", "x".repeat(1_000_000));
        let refusal = PolicyRefusal { time: long(), user: long(), asked: long(), rule: long() };
        let policy = PolicyStatus {
            summary: long(),
            error: long(),
            preset: long(),
            source: long(),
            resource_version: long(),
            as_of: long(),
            last_refusals: vec![refusal; 1000],
            ..PolicyStatus::default()
        };
        let impersonation = ImpersonationStatus { mode: long(), warnings: vec![long(); 1000], as_of: long() };
        let report = AgentReport {
            policy: Some(policy),
            impersonation: Some(impersonation),
            platform: long(),
            agent_version: long(),
            provider: long(),
            api_server_error: long(),
            impersonation_error: long(),
            ..AgentReport::default()
        }
        .cleaned();
        let text = serde_json::to_string(&report).unwrap();
        assert!(!text.contains("u001b") && text.len() < 20 * 1024, "{} bytes", text.len());
        // When something was true is for the hub to say.
        assert!(report.policy.unwrap().as_of.is_empty() && report.impersonation.unwrap().as_of.is_empty());
    }

    #[test]
    fn an_agent_that_knows_no_policy_is_understood() {
        let report: AgentReport = serde_json::from_str(r#"{"kubernetesVersion":"v1.36.0"}"#).unwrap();
        assert_eq!((report.policy, report.impersonation), (None, None));
    }
}
