//! The agent's metrics. No label takes a value that came from outside.

use std::sync::Arc;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::policy::Rule;
use crate::trouble::Code;

/// All families.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    answers: Family<Answer, Counter>,
    tunnels: Gauge,
    opened: Counter,
    same_hub: Counter,
    troubles: Family<Kind, Counter>,
    refusals: Family<Refusal, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    rule: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    code: u16,
    by: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    code: &'static str,
}

impl Metrics {
    /// All families, and the registry that holds them.
    pub fn new() -> (Self, Arc<Registry>) {
        let metrics = Self::default();
        let mut registry = Registry::with_prefix("towline_agent");
        registry.register(
            "answers",
            "Answers to the hub, by status and by who gave them (child or agent)",
            metrics.answers.clone(),
        );
        registry.register("tunnels", "Tunnels that are open now", metrics.tunnels.clone());
        registry.register("tunnels_opened", "Tunnels that were opened", metrics.opened.clone());
        registry.register(
            "tunnels_same_hub",
            "Tries for a second tunnel that met the hub replica which has the first, and were given up",
            metrics.same_hub.clone(),
        );
        registry.register(
            "troubles",
            "Failures to register or to open a tunnel, by code",
            metrics.troubles.clone(),
        );
        registry.register(
            "policy_refusals",
            "Requests that the cluster's own policy refused, by rule",
            metrics.refusals.clone(),
        );
        (metrics, Arc::new(registry))
    }

    pub(crate) fn answered(&self, status: StatusCode, own: bool) {
        let by = if own { "agent" } else { "child" };
        self.answers.get_or_create(&Answer { code: status.as_u16(), by }).inc();
    }

    pub(crate) fn trouble(&self, code: Code) {
        self.troubles.get_or_create(&Kind { code: code.as_str() }).inc();
    }

    pub(crate) fn refused(&self, rule: Rule) {
        self.refusals.get_or_create(&Refusal { rule: rule.as_str() }).inc();
    }

    pub(crate) fn met_the_same_hub(&self) {
        self.same_hub.inc();
    }

    /// Counts a tunnel as open until the guard is dropped.
    pub(crate) fn tunnel(&self) -> OpenTunnel {
        self.opened.inc();
        self.tunnels.inc();
        OpenTunnel(self.tunnels.clone())
    }
}

/// One open tunnel.
#[derive(Debug)]
pub(crate) struct OpenTunnel(Gauge);

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.dec();
    }
}
