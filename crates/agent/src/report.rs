//! What the agent says of its cluster when the hub asks: version, health, nodes, pods. Made anew at most once in
//! [`REPORT_TTL`], however often the hub asks, so that it cannot make the agent hammer the child; what has to be
//! counted, more seldom still. Of pods the agent reads the number alone, and of a cluster that does not let it count
//! them it says nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use api::cluster::{ImpersonationStatus, NodeStatistics, PodStatistics};
use api::report::AgentReport;
use bytes::Bytes;
use moka::future::Cache;
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use crate::account::{Account, AskError};
use crate::limits::{
    INVENTORY_TIME, INVENTORY_TTL, INVENTORY_TTL_LARGE, NODE_PAGES, NODES_PER_PAGE, PODS_COUNTED, REPORT_TTL,
};
use crate::policy::in_force::InForce;
use crate::quantity::Quantity;
use crate::tokens::Impersonator;

/// Makes the report.
pub struct Reporter {
    agent: Account,
    impersonator: Arc<Impersonator>,
    policy: Arc<InForce>,
    last: Cache<(), Bytes>,
    counted: Mutex<Option<Counted>>,
}

/// What was counted last.
#[derive(Clone)]
struct Counted {
    nodes: Arc<Nodes>,
    pods: Option<PodStatistics>,
    /// Until when it is good enough.
    until: Instant,
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
#[serde(default, rename_all = "camelCase")]
struct ListMeta {
    #[serde(rename = "continue")]
    next: String,
    remaining_item_count: Option<u32>,
}

/// One pod at most, of which nothing is read.
#[derive(Deserialize)]
struct PodList {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
struct NodeSpec {
    #[serde(default, rename = "providerID")]
    provider_id: String,
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
    /// By name, how many nodes say so; at most [`MAX_PROVIDERS`].
    providers: BTreeMap<String, u32>,
    /// More than fit on one page.
    large: bool,
}

impl Reporter {
    /// `agent` may read versions, health and nodes.
    pub fn new(agent: Account, impersonator: Arc<Impersonator>, policy: Arc<InForce>) -> Self {
        let last = Cache::builder().max_capacity(1).time_to_live(REPORT_TTL).build();
        Self { agent, impersonator, policy, last, counted: Mutex::default() }
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
        let (version, healthz, livez, readyz, counted) = futures::join!(
            timed(agent.get::<Version>("/version")),
            agent.healthy("/healthz"),
            agent.healthy("/livez"),
            agent.healthy("/readyz"),
            self.counted(),
        );
        let mut errors: Vec<String> = Vec::new();
        let (kubernetes_version, platform, api_server_rtt_milliseconds) = match version {
            (Ok(version), took) => (version.git_version, version.platform, Some(took)),
            (Err(error), _) => {
                errors.push(error.to_string());
                Default::default()
            }
        };
        let (nodes, pods) = counted.unwrap_or_else(|error| {
            errors.push(error.to_string());
            Default::default()
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
                as_of: String::new(),
            }),
            policy: Some(self.policy.status()),
            nodes: nodes.states.clone(),
            pods,
            provider: nodes.provider(),
            api_server_rtt_milliseconds,
            capacity: written(&nodes.capacity),
            allocatable: written(&nodes.allocatable),
        }
    }

    /// Nodes and pods, counted anew if it is time. Only one report is made at a time.
    async fn counted(&self) -> Result<(Arc<Nodes>, Option<PodStatistics>), AskError> {
        let before = self.last_counted().clone();
        if let Some(counted) = before.clone().filter(|counted| Instant::now() < counted.until) {
            return Ok((counted.nodes, counted.pods));
        }
        let (nodes, pods, ttl) =
            match timeout(INVENTORY_TIME, async { futures::join!(self.nodes(), self.pods()) }).await {
                Ok((nodes, pods)) => {
                    let nodes = Arc::new(nodes?);
                    let ttl = if nodes.large { INVENTORY_TTL_LARGE } else { INVENTORY_TTL };
                    (nodes, pods, ttl)
                }
                // Too many to count in time: what is known stays, and nobody is asked again soon.
                Err(_) => {
                    let before = before.map(|counted| (counted.nodes, counted.pods)).unwrap_or_default();
                    (before.0, before.1, INVENTORY_TTL_LARGE)
                }
            };
        let counted = Counted { nodes: Arc::clone(&nodes), pods, until: Instant::now() + ttl };
        *self.last_counted() = Some(counted);
        Ok((nodes, pods))
    }

    fn last_counted(&self) -> std::sync::MutexGuard<'_, Option<Counted>> {
        // Nothing under this lock can panic.
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever may not list pods, or asks a server that is too busy to count, says nothing of them: it is no sign of ill
    /// health.
    async fn pods(&self) -> Option<PodStatistics> {
        // One object and the number of the others: the server counts them without reading them.
        let first: PodList = self.agent.get("/api/v1/pods?limit=1").await.ok()?;
        let listed = u32::try_from(first.items.len()).ok()?;
        let total_pods = match first.metadata.remaining_item_count {
            Some(others) => listed.saturating_add(others),
            None if first.metadata.next.is_empty() => listed,
            None => return None,
        };
        let mut running_pods = None;
        if total_pods <= PODS_COUNTED {
            // Most pods run. From the server's memory: resourceVersion=0.
            const OTHERS: &str =
                "/api/v1/pods?fieldSelector=status.phase!%3DRunning&resourceVersion=0&includeObject=None";
            let others = self.agent.count(OTHERS).await.ok().and_then(|others| u32::try_from(others).ok());
            running_pods = others.map(|others| total_pods.saturating_sub(others));
        }
        Some(PodStatistics { running_pods, total_pods })
    }

    async fn nodes(&self) -> Result<Nodes, AskError> {
        let mut nodes = Nodes::default();
        let mut next = String::new();
        for page in 0..NODE_PAGES {
            nodes.large = page > 0;
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
        if let Some(provider) = provider(&node.spec.provider_id)
            && (self.providers.len() < MAX_PROVIDERS || self.providers.contains_key(provider))
        {
            let count = self.providers.entry(provider.to_owned()).or_default();
            *count = count.saturating_add(1);
        }
        sum(&mut self.capacity, &node.status.capacity);
        sum(&mut self.allocatable, &node.status.allocatable);
    }
}

impl Nodes {
    /// What most nodes say; empty if none says anything.
    fn provider(&self) -> String {
        let most = self.providers.iter().max_by_key(|(_, count)| **count);
        most.map(|(name, _)| name.clone()).unwrap_or_default()
    }
}

/// Most different providers that are told apart in one cluster.
const MAX_PROVIDERS: usize = 8;

/// `aws` of `aws:///eu-central-1a/i-0abc` (cloud-provider `node/helpers`): the name of whoever runs the node.
fn provider(id: &str) -> Option<&str> {
    let (scheme, _) = id.split_once("://")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (!scheme.is_empty() && scheme.len() <= 32 && scheme.bytes().all(plain)).then_some(scheme)
}

/// An answer and how many milliseconds it took, rounded up.
async fn timed<T>(asked: impl Future<Output = T>) -> (T, u32) {
    let began = Instant::now();
    let answer = asked.await;
    let took = u32::try_from(began.elapsed().as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
    (answer, took.max(1))
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
                { "spec": { "providerID": "kind://docker/edge/edge-worker" }, "status": {} },
            ]
        }))
        .unwrap();
        let mut nodes = Nodes::default();
        list.items.iter().for_each(|node| nodes.add(node));
        assert_eq!(nodes.states, NodeStatistics { ready_nodes: 1, not_ready_nodes: 1, unknown_nodes: 1 });
        let capacity = written(&nodes.capacity);
        assert_eq!((capacity["cpu"].as_str(), capacity["memory"].as_str()), ("8", "16777216Ki"));
        assert_eq!(written(&nodes.allocatable)["cpu"], "3900m");
        assert_eq!(nodes.provider(), "kind");
    }

    #[test]
    fn a_provider_is_what_most_nodes_say_and_a_plain_word() {
        for (id, wanted) in [
            ("aws:///eu-central-1a/i-0abc", Some("aws")),
            ("k3s://node-1", Some("k3s")),
            ("", None),
            ("node-1", None),
            ("://x", None),
            ("\u{1b}[2J://x", None),
            ("a b://x", None),
        ] {
            assert_eq!(provider(id), wanted, "{id}");
        }
        let mut nodes = Nodes::default();
        let node =
            |id: &str| Node { spec: NodeSpec { provider_id: id.to_owned() }, status: NodeStatus::default() };
        ["gce://a", "azure://b", "azure://c"].iter().for_each(|id| nodes.add(&node(id)));
        assert_eq!(nodes.provider(), "azure");
        (0..100).for_each(|n| nodes.add(&node(&format!("p{n}://x"))));
        assert_eq!(nodes.providers.len(), MAX_PROVIDERS);
    }
}
