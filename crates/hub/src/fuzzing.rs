//! Openings for the fuzz targets (`fuzz/`): what the request path does with bytes from outside, without the parent's
//! API around it. Each function is one call of what the product calls; nothing here decides anything.

use api::names::ClusterId;
use api::registration::{ClusterInvitationSpec, ClusterRegistrationSpec, INVITATION_KIND, REGISTRATION_KIND};
use serde_json::Value;

use crate::config::Settings;
use crate::generate::agent_manifest::{self, AgentManifest};
use crate::join::{invitation, parse, registration};
use crate::refusal::Refusal;

/// An invitation's body, as far as it is checked before anything is written.
///
/// # Errors
/// What the caller would be told.
pub fn invitation(body: &[u8]) -> Result<ClusterInvitationSpec, Refusal> {
    let spec = parse::<ClusterInvitationSpec>(INVITATION_KIND, body)?.spec;
    invitation::check(&spec, &Settings::default())?;
    Ok(spec)
}

/// Who a registration's body comes from (invitation, cluster, fingerprint of the key), once the proof was checked.
///
/// # Errors
/// What the agent would be told.
pub fn registration(body: &[u8]) -> Result<(String, ClusterId, String), Refusal> {
    let spec = parse::<ClusterRegistrationSpec>(REGISTRATION_KIND, body)?.spec;
    let applicant = registration::check_proof(&spec)?;
    Ok((applicant.invitation, applicant.cluster, applicant.fingerprint))
}

/// The objects of an agent.yaml before they become text.
pub fn manifest_objects(values: &AgentManifest, url: &str, ca: &str) -> Vec<Value> {
    agent_manifest::objects(values, url, ca)
}
