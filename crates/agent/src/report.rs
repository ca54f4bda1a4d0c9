//! What the agent says of its cluster when the hub asks: version, health, nodes. Made anew at most once in
//! [`REPORT_TTL`], however often the hub asks, so that it cannot make the agent hammer the child.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use api::cluster::{ImpersonationStatus, NodeStatistics};
use api::report::AgentReport;
use bytes::Bytes;
use moka::future::Cache;
use serde::Deserialize;

use crate::account::{Account, AskError};
use crate::limits::{NODE_PAGES, NODES_PER_PAGE, REPORT_TTL};
use crate::policy::in_force::InForce;
use crate::quantity::Quantity;
use crate::tokens::Impersonator;

/// Makes the report.
pub struct Reporter {
    agent: Account,
    impersonator: Arc<Impersonator>,
    policy: Arc<InForce>,
    last: Cache<(), Bytes>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    git_version: String,
    platform: String,
}

#[derive(Deserialize)]
struct NodeList {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Node>,
}

#[derive(Default, Deserialize)]
struct ListMeta {
    #[serde(default, rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    conditions: Vec<Condition>,
    capacity: BTreeMap<String, String>,
    allocatable: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// What is summed over nodes.
#[derive(Default)]
struct Nodes {
    states: NodeStatistics,
    capacity: BTreeMap<String, Quantity>,
    allocatable: BTreeMap<String, Quantity>,
}

impl Reporter {
    /// `agent` may read versions, health and nodes.
    pub fn new(agent: Account, impersonator: Arc<Impersonator>, policy: Arc<InForce>) -> Self {
        let last = Cache::builder().max_capacity(1).time_to_live(REPORT_TTL).build();
        Self { agent, impersonator, policy, last }
    }

    /// The report as JSON, at most [`REPORT_TTL`] old.
    pub async fn json(&self) -> Bytes {
        let make = async {
            // On the heap: five questions at once are large, and rare.
            let report = Box::pin(self.make()).await.cleaned();
            // A struct of strings and numbers; if it could not be written, an empty report would say so.
            Bytes::from(serde_json::to_vec(&report).unwrap_or_default())
        };
        self.last.get_with((), make).await
    }

    async fn make(&self) -> AgentReport {
        let agent = &self.agent;
        let (version, healthz, livez, readyz, nodes) = futures::join!(
            agent.get::<Version>("/version"),
            agent.healthy("/healthz"),
            agent.healthy("/livez"),
            agent.healthy("/readyz"),
            self.nodes(),
        );
        let mut errors: Vec<String> = Vec::new();
        let (kubernetes_version, platform) = match version {
            Ok(version) => (version.git_version, version.platform),
            Err(error) => {
                errors.push(error.to_string());
                Default::default()
            }
        };
        let nodes = nodes.unwrap_or_else(|error| {
            errors.push(error.to_string());
            Nodes::default()
        });
        errors.dedup();
        AgentReport {
            kubernetes_version,
            platform,
            agent_version: crate::VERSION.to_owned(),
            healthz: healthz.unwrap_or(false),
            livez: livez.unwrap_or(false),
            readyz: readyz.unwrap_or(false),
            api_server_error: errors.join("; "),
            impersonation_error: self.impersonator.error(),
            impersonation: self.impersonator.standing().map(|standing| ImpersonationStatus {
                mode: standing.mode.to_string(),
                warnings: standing.warnings,
            }),
            policy: Some(self.policy.status()),
            nodes: nodes.states,
            capacity: written(&nodes.capacity),
            allocatable: written(&nodes.allocatable),
        }
    }

    async fn nodes(&self) -> Result<Nodes, AskError> {
        let mut nodes = Nodes::default();
        let mut next = String::new();
        for _ in 0..NODE_PAGES {
            let mut path = format!("/api/v1/nodes?limit={NODES_PER_PAGE}");
            if !next.is_empty() {
                path = format!("/api/v1/nodes?limit={NODES_PER_PAGE}&continue={next}");
            }
            let page: NodeList = self.agent.get(&path).await?;
            page.items.iter().for_each(|node| nodes.add(node));
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=.".contains(&byte);
            next = page.metadata.next;
            if next.is_empty() || !next.bytes().all(plain) {
                break;
            }
        }
        Ok(nodes)
    }
}

impl Nodes {
    fn add(&mut self, node: &Node) {
        let ready = node.status.conditions.iter().find(|condition| condition.kind == "Ready");
        let counter = match ready.map(|condition| condition.status.as_str()) {
            Some("True") => &mut self.states.ready_nodes,
            Some("False") => &mut self.states.not_ready_nodes,
            _ => &mut self.states.unknown_nodes,
        };
        *counter = counter.saturating_add(1);
        sum(&mut self.capacity, &node.status.capacity);
        sum(&mut self.allocatable, &node.status.allocatable);
    }
}

/// Most resource names that are summed; the report carries no more.
const MAX_RESOURCES: usize = 64;

fn sum(sums: &mut BTreeMap<String, Quantity>, of: &BTreeMap<String, String>) {
    for (name, value) in of {
        let Some(value) = Quantity::parse(value) else { continue };
        if sums.len() < MAX_RESOURCES || sums.contains_key(name) {
            let sum = sums.entry(name.clone()).or_default();
            *sum = sum.plus(value);
        }
    }
}

fn written(sums: &BTreeMap<String, Quantity>) -> BTreeMap<String, String> {
    sums.iter().map(|(name, value)| (name.clone(), value.to_string())).collect()
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_counted_by_state_and_summed() {
        let list: NodeList = serde_json::from_value(serde_json::json!({
            "metadata": {}, "items": [
                { "status": { "conditions": [{ "type": "Ready", "status": "True" }],
                              "capacity": { "cpu": "4", "memory": "16Gi" }, "allocatable": { "cpu": "3900m" } } },
                { "status": { "conditions": [{ "type": "Ready", "status": "False" }],
                              "capacity": { "cpu": "4", "memory": "rubbish" } } },
                { "status": {} },
            ]
        }))
        .unwrap();
        let mut nodes = Nodes::default();
        list.items.iter().for_each(|node| nodes.add(node));
        assert_eq!(nodes.states, NodeStatistics { ready_nodes: 1, not_ready_nodes: 1, unknown_nodes: 1 });
        let capacity = written(&nodes.capacity);
        assert_eq!((capacity["cpu"].as_str(), capacity["memory"].as_str()), ("8", "16777216Ki"));
        assert_eq!(written(&nodes.allocatable)["cpu"], "3900m");
    }
}
