//! What an agent says of its cluster, over the tunnel, when the hub asks (`GET /v1/status` at authority
//! `agent`). All of it is the child's own word: the hub cuts and cleans it before anyone sees it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cluster::NodeStatistics;
use crate::status::printable;

/// Largest report in bytes that the hub reads.
pub const MAX_REPORT: usize = 64 * 1024;
/// Longest text in a report after cleaning.
const MAX_TEXT: usize = 256;
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
    /// Nodes by state.
    pub nodes: NodeStatistics,
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
            capacity: resources(self.capacity),
            allocatable: resources(self.allocatable),
            healthz: self.healthz,
            livez: self.livez,
            readyz: self.readyz,
            nodes: self.nodes,
        }
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
    }
}
