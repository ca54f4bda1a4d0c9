//! The four presets, from wide to narrow: each admits what the next one does, and more. Beyond them stands what every
//! client needs to work at all ([`is_basic`]).

use std::fmt;

use super::decision::{Refused, Rule};
use super::floor::is_secret;
use super::names::UrlPattern;
use super::request_info::{RequestInfo, Resource, Target, Verb};

/// How much is admitted at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Preset {
    /// Reading, without Secrets.
    View,
    /// `Edit` without interactive streams into containers.
    NoExec,
    /// Everything but the keys of the cluster.
    Edit,
    /// Everything but the floor.
    Admin,
}

impl Preset {
    /// From narrow to wide.
    pub const ALL: [Self; 4] = [Self::View, Self::NoExec, Self::Edit, Self::Admin];

    /// As it stands in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::NoExec => "no-exec",
            Self::Edit => "edit",
            Self::Admin => "admin",
        }
    }

    /// Reads it.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.as_str() == text)
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Discovery, version and health: these paths and all below them.
const BASIC_PATHS: [&str; 7] = ["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz"];
/// The server's insides: profiles, logs of the node, flags, figures. Never by a preset, only where `nonResourceURLs`
/// has them (the last two are from Kubernetes 1.32, KEP-4827 and KEP-4828).
const INSIDE_PATHS: [&str; 6] = ["/debug", "/logs", "/configz", "/metrics", "/flagz", "/statusz"];
/// Groups whose objects decide who may do what.
const KEY_GROUPS: [&str; 3] =
    ["rbac.authorization.k8s.io", "admissionregistration.k8s.io", "apiregistration.k8s.io"];

/// What every client needs, whatever a policy's lists say: what there is, and "what may I do".
pub(super) fn is_basic(asked: &RequestInfo) -> bool {
    if asked.upgrade {
        return false;
    }
    match &asked.target {
        Target::NonResource(path) => asked.verb == Verb::Get && below_any(path, &BASIC_PATHS),
        Target::Resource(resource) => asked.verb == Verb::Create && is_self_review(resource),
    }
}

fn is_self_review(resource: &Resource) -> bool {
    let kind = (resource.group.as_str(), resource.resource.as_str());
    let review = matches!(
        kind,
        ("authorization.k8s.io", "selfsubjectaccessreviews" | "selfsubjectrulesreviews")
            | ("authentication.k8s.io", "selfsubjectreviews")
    );
    review && resource.subresource.is_empty() && resource.name.is_empty() && resource.namespace.is_empty()
}

/// # Errors
/// The preset does not admit it.
pub(super) fn admit(preset: Preset, asked: &RequestInfo, urls: &[UrlPattern]) -> Result<(), Refused> {
    match &asked.target {
        Target::NonResource(path) => admit_path(preset, asked, path, urls),
        Target::Resource(resource) => {
            let refusal = match preset {
                Preset::Admin => None,
                Preset::Edit => key(asked.verb, resource).map(|why| (why, "set preset: admin")),
                Preset::NoExec => key(asked.verb, resource)
                    .map(|why| (why, "set preset: admin"))
                    .or_else(|| exec(asked, resource).map(|why| (why, "set preset: edit"))),
                Preset::View => beyond_view(asked, resource),
            };
            match refusal {
                None => Ok(()),
                Some((why, change)) => {
                    Err(Refused::new(Rule::Preset, format!("preset {preset} admits {why}"), change))
                }
            }
        }
    }
}

fn admit_path(preset: Preset, asked: &RequestInfo, path: &str, urls: &[UrlPattern]) -> Result<(), Refused> {
    if preset < Preset::Admin && (asked.verb != Verb::Get || asked.upgrade) {
        return Err(Refused::new(
            Rule::Preset,
            format!("preset {preset} admits GET alone on paths that are no resource"),
            "set preset: admin",
        ));
    }
    let listed = urls.iter().any(|pattern| pattern.matches(path));
    let by_preset =
        below_any(path, &BASIC_PATHS) || (preset == Preset::Admin && !below_any(path, &INSIDE_PATHS));
    if listed || by_preset {
        return Ok(());
    }
    Err(Refused::new(
        Rule::NonResourceUrls,
        format!("nonResourceURLs does not have {path:?}"),
        format_args!("add {path} to nonResourceURLs"),
    ))
}

/// What would hand over the cluster, or lets a request leave the API server for a node, pod or service.
fn key(verb: Verb, resource: &Resource) -> Option<&'static str> {
    let (group, kind, sub) =
        (resource.group.as_str(), resource.resource.as_str(), resource.subresource.as_str());
    if sub == "proxy" {
        return Some("no proxying through the API server to nodes, pods or services");
    }
    if kind == "serviceaccounts" && sub == "token" {
        return Some("no tokens of service accounts");
    }
    if verb.reads() {
        return None;
    }
    if KEY_GROUPS.contains(&group) {
        return Some("no writing of RBAC, admission webhooks and policies, or APIServices");
    }
    let decides = kind == "signers" || matches!(sub, "approval" | "status" | "signers");
    if group == "certificates.k8s.io" && decides {
        return Some("no approving or signing of certificates");
    }
    None
}

/// Streams into containers.
fn exec(asked: &RequestInfo, resource: &Resource) -> Option<&'static str> {
    let sub = resource.subresource.as_str();
    let streams = matches!(sub, "exec" | "attach" | "portforward");
    // Whatever else is switched to another protocol, a console of a virtual machine for instance.
    let other = asked.upgrade && asked.verb != Verb::Watch && sub != "log";
    if streams || other || (sub == "ephemeralcontainers" && !asked.verb.reads()) {
        return Some("no exec, attach, port-forward, ephemeral container or other stream into a container");
    }
    None
}

fn beyond_view(asked: &RequestInfo, resource: &Resource) -> Option<(&'static str, &'static str)> {
    if let Some(why) = key(asked.verb, resource) {
        return Some((why, "set preset: admin"));
    }
    if let Some(why) = exec(asked, resource) {
        return Some((why, "set preset: edit"));
    }
    if !asked.verb.reads() {
        return Some(("reading alone: get, list and watch", "set preset: no-exec or edit"));
    }
    is_secret(resource).then_some(("no Secrets", "set preset: no-exec or edit"))
}

fn below_any(path: &str, prefixes: &[&str]) -> bool {
    prefixes
        .iter()
        .any(|prefix| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}
