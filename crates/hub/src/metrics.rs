//! Every metric of the hub, registered once. Labels are bounded: none carries a cluster, a user or a path.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Labels of an answered request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answered {
    /// What was asked: proxy, attach, discovery, …
    pub kind: &'static str,
    /// get, create, update, patch, delete.
    pub verb: &'static str,
    /// 1xx to 5xx.
    pub code_class: &'static str,
}

/// Label of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Refused {
    /// [`crate::refusal::Refusal::label`].
    pub reason: &'static str,
}

/// Label of an open request that the hub ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ended {
    /// rights, idle.
    pub reason: &'static str,
}

/// Label of a tunnel that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TunnelEnded {
    /// [`crate::tunnels::end::End::as_str`].
    pub reason: &'static str,
}

/// Label of a question to the parent's authorizer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Asked {
    /// hit, allowed, denied, error.
    pub result: &'static str,
}

/// Label of a request that was sent on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Sent {
    /// tunnel: one of this replica; peer: to another replica.
    pub target: &'static str,
}

/// The metrics; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// `towline_hub_requests_total`
    pub requests: Family<Answered, Counter>,
    /// `towline_hub_refusals_total`
    pub refusals: Family<Refused, Counter>,
    /// `towline_hub_access_reviews_total`
    pub reviews: Family<Asked, Counter>,
    /// `towline_hub_tunnels`
    pub tunnels: Gauge,
    /// `towline_hub_tunnels_opened_total`
    pub tunnels_opened: Counter,
    /// `towline_hub_tunnels_ended_total`
    pub tunnels_ended: Family<TunnelEnded, Counter>,
    /// `towline_hub_requests_in_flight`
    pub in_flight: Gauge,
    /// `towline_hub_upgrades_open`
    pub upgrades: Gauge,
    /// `towline_hub_token_reviews_total`
    pub token_reviews: Family<Asked, Counter>,
    /// `towline_hub_agent_errors_total`
    pub agent_errors: Counter,
    /// `towline_hub_connections`
    pub connections: Gauge,
    /// `towline_hub_handshakes_refused_total`
    pub handshakes_refused: Counter,
    /// `towline_hub_audit_lost_total`
    pub audit_lost: Counter,
    /// `towline_hub_streams_ended_total`
    pub streams_ended: Family<Ended, Counter>,
    /// `towline_hub_sent_total{target="tunnel"}`
    pub sent_here: Counter,
    /// `towline_hub_sent_total{target="peer"}`
    pub sent_to_peers: Counter,
    /// `towline_hub_relayed_total`
    pub relayed: Counter,
    /// `towline_hub_peers`
    pub peers: Gauge,
    /// `towline_hub_peer_presence`
    pub peer_presence: Gauge,
    /// `towline_hub_leading`
    pub leading: Gauge,
}

impl Metrics {
    /// The metrics and the registry that shows them.
    pub fn new() -> (Self, Arc<Registry>) {
        let sent = Family::<Sent, Counter>::default();
        let metrics = Self {
            // Looked up once: they are counted with every request.
            sent_here: sent.get_or_create_owned(&Sent { target: "tunnel" }),
            sent_to_peers: sent.get_or_create_owned(&Sent { target: "peer" }),
            ..Self::default()
        };
        let mut registry = Registry::with_prefix("towline_hub");
        registry.register("requests", "Requests answered", metrics.requests.clone());
        registry.register(
            "refusals",
            "Requests that the hub answered with an error of its own",
            metrics.refusals.clone(),
        );
        registry.register("access_reviews", "Questions to the parent's authorizer", metrics.reviews.clone());
        registry.register(
            "token_reviews",
            "Questions to the parent's authenticator",
            metrics.token_reviews.clone(),
        );
        registry.register("tunnels", "Tunnels that are open", metrics.tunnels.clone());
        registry.register("tunnels_opened", "Tunnels that were opened", metrics.tunnels_opened.clone());
        registry.register("tunnels_ended", "Tunnels that have ended", metrics.tunnels_ended.clone());
        registry.register("requests_in_flight", "Requests to children in flight", metrics.in_flight.clone());
        registry.register(
            "upgrades_open",
            "Open exec, attach and port-forward streams",
            metrics.upgrades.clone(),
        );
        registry.register(
            "agent_errors",
            "Answers that agents made themselves",
            metrics.agent_errors.clone(),
        );
        registry.register("connections", "Connections that are open", metrics.connections.clone());
        registry.register(
            "handshakes_refused",
            "Connections that were closed because too many TLS handshakes waited",
            metrics.handshakes_refused.clone(),
        );
        registry.register("audit_lost", "Audit events that could not be written", metrics.audit_lost.clone());
        registry.register(
            "streams_ended",
            "Open requests that the hub itself ended",
            metrics.streams_ended.clone(),
        );
        registry.register("sent", "Requests sent on, into a tunnel here or to another replica", sent);
        registry.register("relayed", "Requests of other replicas", metrics.relayed.clone());
        registry.register("peers", "Other replicas that are connected", metrics.peers.clone());
        registry.register("peer_presence", "Tunnels that other replicas hold", metrics.peer_presence.clone());
        registry.register("leading", "Whether this replica runs the controllers", metrics.leading.clone());
        (metrics, Arc::new(registry))
    }

    /// Counts one answer.
    pub fn answered(&self, kind: &'static str, verb: &'static str, code: http::StatusCode) {
        let code_class = match code.as_u16() {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        self.requests.get_or_create(&Answered { kind, verb, code_class }).inc();
    }

    /// Counts one refusal.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&Refused { reason }).inc();
    }

    /// Counts one tunnel that has ended.
    pub fn tunnel_ended(&self, reason: &'static str) {
        self.tunnels_ended.get_or_create(&TunnelEnded { reason }).inc();
    }

    /// Counts one open request that the hub ended.
    pub fn stream_ended(&self, reason: &'static str) {
        self.streams_ended.get_or_create(&Ended { reason }).inc();
    }

    /// Counts one question to the authorizer.
    pub fn reviewed(&self, result: &'static str) {
        self.reviews.get_or_create(&Asked { result }).inc();
    }

    /// Counts one question to the authenticator.
    pub fn tokens_reviewed(&self, result: &'static str) {
        self.token_reviews.get_or_create(&Asked { result }).inc();
    }
}

/// Counts in a gauge while it lives: a request in flight, a tunnel, an open stream.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl InFlight {
    /// Counts up now and down on drop.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }

    /// How many are counted at the moment.
    pub fn count(&self) -> i64 {
        self.0.get()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_what_dashboards_read() {
        let (metrics, registry) = Metrics::new();
        metrics.answered("proxy", "get", http::StatusCode::OK);
        metrics.refused("offline");
        metrics.reviewed("hit");
        metrics.tunnel_ended("keep_alive");
        let one = InFlight::new(&metrics.in_flight);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"towline_hub_requests_total{kind="proxy",verb="get",code_class="2xx"} 1"#,
            r#"towline_hub_refusals_total{reason="offline"} 1"#,
            r#"towline_hub_access_reviews_total{result="hit"} 1"#,
            r#"towline_hub_tunnels_ended_total{reason="keep_alive"} 1"#,
            "towline_hub_requests_in_flight 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(one);
        assert_eq!(metrics.in_flight.get(), 0);
    }
}
