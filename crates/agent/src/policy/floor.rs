//! What no policy lifts: the agent's own namespace. Who could write there could take the agent's accounts, its
//! credential, or the policy itself.
//!
//! It cannot hide what a list over all namespaces shows: a person with that right in the child's RBAC sees the
//! Secrets of this namespace too.

use api::names::SYSTEM_NAMESPACE;

use super::decision::{Refused, Rule};
use super::request_info::{RequestInfo, Resource, Target, Verb};

/// Subresources that only show.
const SHOWS: [&str; 4] = ["", "log", "status", "scale"];

/// # Errors
/// It touches the agent's namespace by more than a look.
pub(super) fn admit(asked: &RequestInfo) -> Result<(), Refused> {
    let Target::Resource(resource) = &asked.target else { return Ok(()) };
    if deletes_namespaces(asked.verb, resource) {
        return Err(Refused::fixed(
            Rule::Floor,
            format!("all namespaces would be deleted at once, {SYSTEM_NAMESPACE} among them"),
        ));
    }
    // The parent of this namespace is the Namespace object of that name, which kube-apiserver also reads so.
    if resource.namespace != SYSTEM_NAMESPACE {
        return Ok(());
    }
    if is_secret(resource) {
        return Err(Refused::fixed(
            Rule::Floor,
            format!("Secrets of {SYSTEM_NAMESPACE} hold the agent's credential"),
        ));
    }
    if asked.verb.reads() && SHOWS.contains(&resource.subresource.as_str()) {
        return Ok(());
    }
    Err(Refused::fixed(
        Rule::Floor,
        format!("namespace {SYSTEM_NAMESPACE} is the agent's own, where people may only look"),
    ))
}

/// Core Secrets, in whatever group a server might also serve them.
pub(super) fn is_secret(resource: &Resource) -> bool {
    resource.resource == "secrets"
}

fn deletes_namespaces(verb: Verb, resource: &Resource) -> bool {
    verb == Verb::DeleteCollection && resource.group.is_empty() && resource.resource == "namespaces"
}
