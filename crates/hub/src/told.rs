//! What is told of one request while it goes on: a label for metrics, its line in the audit log, its span in a trace.

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode};
use runtime::traces::Span;

use crate::audit::Event;
use crate::catalog::Cluster;

/// Of one request; audit line and span end when this is dropped.
#[derive(Debug)]
pub struct Told {
    /// What kind of request it is.
    pub kind: &'static str,
    /// For the audit log: who asked what, and how it ended.
    pub event: Event,
    /// For traces: how long it took, and where.
    pub span: Span,
}

impl Told {
    /// Nothing yet but its id, by which the lines of the audit logs are found.
    pub fn new(mut span: Span, id: &HeaderValue) -> Self {
        if span.is_kept() {
            span.set("kubernetes.audit_id", id.to_str().unwrap_or_default().to_owned());
        }
        Self { span, ..Self::default() }
    }

    /// Which cluster it is for, and as whom that is asked.
    pub fn child(&mut self, cluster: &Arc<Cluster>, user: &str) {
        self.event.child(cluster, user);
        if self.span.is_kept() {
            // OpenTelemetry semantic conventions, "Kubernetes".
            self.span.set("k8s.cluster.name", cluster.name.as_str().to_owned());
            self.span.set("k8s.cluster.uid", cluster.id.to_string());
        }
    }

    /// The head of the answer is there.
    pub fn answered(&mut self, method: &Method, status: StatusCode) {
        self.event.answered(status);
        if self.span.is_kept() {
            self.span.name(format!("{method} {}", self.kind));
            self.span.set("http.request.method", method.as_str().to_owned());
            self.span.answered(status);
        }
    }

    /// This, to be ended by somebody else; what stays behind ends nothing.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self { kind: self.kind, event: self.event.take(), span: std::mem::take(&mut self.span) }
    }
}

impl Default for Told {
    fn default() -> Self {
        Self { kind: "unknown", event: Event::default(), span: Span::default() }
    }
}
