//! `POST clusterregistrations`: an agent asks to be let in, again and again until the answer is final. Each
//! call takes the same steps, and each step finds what an earlier call did: read and check the body, check
//! the proof of the private key, find the invitation, bind it to this cluster and key, compare with what is
//! known of the cluster, and give a credential if it is approved.
//!
//! | known of this cluster | the question | outcome |
//! |---|---|---|
//! | nothing | | a new request, pending (approved if the invitation says so) |
//! | request, same name, same key | | what a person decided; a credential once approved |
//! | request denied | another invitation | pending again: whoever invites anew has thought again |
//! | request that nobody has approved, other key | another invitation | the new key's request, pending (approved if the invitation says so) |
//! | cluster or approved request, other key | another invitation, whatever it says | pending with the new key: a person compares it; meanwhile the cluster goes on with its own |
//! | request, other key | an older invitation than the request's | denied: invite again |
//! | cluster, no request | its own key | approved: the agent came back |
//! | cluster or open request, other name | | denied: already registered as that |
//! | | a name that another cluster has | denied: the name is taken |
//! | cluster with `spec.denied` | | denied, whoever asks |
//!
//! Once a request was written for an invitation, all others that this cluster has used are deleted, or two agents
//! with one invitation each would take the request from each other for ever.
//!
//! A wrong invitation is a 401 and a used one a 409, and nothing is written. Whoever does not know an
//! invitation's secret learns neither that it exists nor when it ended.

use api::cluster::ManagedCluster;
use api::identity::Identity;
use api::names::{
    AGENT_ACCOUNT, BOOTSTRAP_ACCOUNT, CREATED_BY_HUB, ClusterId, ClusterName, LABEL_CLUSTER_ID,
    LABEL_CLUSTER_NAME, LABEL_CREATED_BY, LABEL_REGISTERED_BY, SYSTEM_NAMESPACE, registration_request_name,
};
use api::registration::{
    ClusterRegistrationRequest, ClusterRegistrationRequestSpec, ClusterRegistrationSpec,
    ClusterRegistrationStatus, Credential, REGISTRATION_KIND, RegistrationResult, signed_message,
};
use api::secret::Secret as Hidden;
use api::status::{Reason, Status, printable};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use super::stored::{INVITED_BY, Stored, User, is_id, secret_name};
use super::{Join, answer, has_code, in_time, parent_trouble, parse, sha256_hex};
use crate::catalog::Cluster;
use crate::control::belongings::used_invitations;
use crate::control::objects::KEY_FINGERPRINT;
use crate::refusal::Refusal;

/// Life of an agent's credential. Renewed in the tunnel at two thirds, so a day outlives a night's outage.
pub const CREDENTIAL_SECONDS: i64 = 24 * 3600;
/// When an agent whose request is pending asks again: people who approve are watching.
const ASK_PENDING: u32 = 5;
/// When one that was denied asks again: a person who takes the denial back should not have to wait for it.
const ASK_DENIED: u32 = 60;
/// Annotation of a request: when its invitation was made, which the invitation itself may not live to tell.
const INVITED_AT: &str = "access.towline.io/invited-at";
/// How often a lost race for the same object is run again.
const RACE_TRIES: usize = 5;
/// DER of a SubjectPublicKeyInfo up to the point: id-ecPublicKey, prime256v1, BIT STRING, uncompressed
/// (RFC 5480 section 2). Every P-256 key starts with exactly these bytes, so nothing needs to be parsed.
const P256_PREFIX: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
/// Length of that DER: the prefix and two coordinates.
const P256_LENGTH: usize = P256_PREFIX.len() + 64;

/// A question whose proof was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Applicant {
    pub(crate) invitation: String,
    pub(crate) cluster: ClusterId,
    pub(crate) fingerprint: String,
}

/// What an invitation says to an applicant.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Admission {
    /// Bind it first.
    Bind,
    /// It is bound to this applicant already.
    Bound,
}

/// What is to be done about a registration; see the table in the head of this file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// Write a new request, or write the one that there is anew, with this decision.
    Write(RegistrationResult),
    /// The request is as it should be; only the decision is missing in it.
    Decide(RegistrationResult),
    /// Approved: give a credential.
    Issue,
    /// Nobody has decided yet, or the hub is still at it.
    Wait(RegistrationResult, String),
    /// No.
    Deny(String),
}

impl Join {
    /// Takes a registration one step further.
    ///
    /// # Errors
    /// The caller is not the bootstrap account, the body or proof is wrong, the invitation is unknown, over or
    /// used, or the parent's API did not play along.
    pub async fn register(&self, who: &Identity, body: &[u8]) -> Result<Value, Refusal> {
        let bootstrap = format!("system:serviceaccount:{SYSTEM_NAMESPACE}:{BOOTSTRAP_ACCOUNT}");
        if who.user() != bootstrap {
            return Err(Refusal::Forbidden(format!(
                "registrations are made by agents, with the token of their invitation ({bootstrap}); to invite a cluster, create a clusterinvitation"
            )));
        }
        let spec = parse::<ClusterRegistrationSpec>(REGISTRATION_KIND, body)?.spec;
        let applicant = check_proof(&spec)?;
        let status = in_time(
            "the registration",
            Box::pin(async {
                let invitation = self.admit(&applicant, &spec.secret).await?;
                self.proceed(&applicant, &invitation).await
            }),
        )
        .await?;
        let status = serde_json::to_value(&status).map_err(|error| super::invalid(error.to_string()))?;
        // The spec holds the secret: it is not echoed.
        let echo = json!({ "invitation": applicant.invitation, "clusterId": applicant.cluster });
        Ok(answer(REGISTRATION_KIND, applicant.cluster.as_str(), echo, status, Timestamp::now()))
    }

    /// Finds the invitation and binds it to this applicant. The Secret's resourceVersion decides between two
    /// that come at once: the loser reads again and finds it used.
    async fn admit(&self, applicant: &Applicant, secret: &Hidden) -> Result<Stored, Refusal> {
        let doing = "reading the invitation";
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let name = secret_name(&applicant.invitation);
        for _ in 0..RACE_TRIES {
            let found = secrets.get_opt(&name).await.map_err(|error| parent_trouble(doing, &error))?;
            let stored = found.as_ref().and_then(Stored::from_secret);
            let admission = admission(stored.as_ref(), secret, applicant, Timestamp::now())?;
            let (Some(found), Some(mut stored)) = (found, stored) else { return Err(unknown()) };
            if admission == Admission::Bound {
                return Ok(stored);
            }
            stored.used_by =
                Some(User { cluster: applicant.cluster.clone(), fingerprint: applicant.fingerprint.clone() });
            let invited_by = found
                .metadata
                .annotations
                .as_ref()
                .and_then(|all| all.get(INVITED_BY))
                .cloned()
                .unwrap_or_default();
            let bound = stored.to_secret(&invited_by, found.metadata.resource_version);
            match secrets.replace(&name, &PostParams::default(), &bound).await {
                Ok(_) => {
                    tracing::info!(invitation = stored.id, cluster = %applicant.cluster, name = %stored.cluster_name, key = applicant.fingerprint, "an invitation was used");
                    return Ok(stored);
                }
                Err(error) if has_code(&error, 409) || has_code(&error, 404) => {}
                Err(error) => return Err(parent_trouble("binding the invitation", &error)),
            }
        }
        Err(busy())
    }

    /// Compares with what is known and does what follows.
    async fn proceed(
        &self,
        applicant: &Applicant,
        invitation: &Stored,
    ) -> Result<ClusterRegistrationStatus, Refusal> {
        let requests: Api<ClusterRegistrationRequest> = Api::all(self.client.clone());
        let name = registration_request_name(&applicant.cluster);
        for _ in 0..RACE_TRIES {
            let doing = "reading the registration request";
            let existing = requests.get_opt(&name).await.map_err(|error| parent_trouble(doing, &error))?;
            let known = self.catalog.all();
            let clusters = known.values().map(AsRef::as_ref);
            let outcome = outcome(existing.as_ref(), clusters, applicant, invitation);
            tracing::debug!(cluster = %applicant.cluster, ?outcome, "a registration");
            let (request, decision) = match outcome {
                Outcome::Issue => return self.issue(applicant).await,
                Outcome::Wait(result, message) => return Ok(status(result, message, ASK_PENDING)),
                Outcome::Deny(message) => return Ok(status(RegistrationResult::Denied, message, ASK_DENIED)),
                Outcome::Write(decision) => {
                    let written = write(&requests, existing.as_ref(), applicant, invitation).await;
                    if written.is_ok() {
                        self.supersede(&applicant.cluster, invitation).await;
                    }
                    (written, decision)
                }
                Outcome::Decide(decision) => match existing {
                    Some(existing) => (Ok(existing), decision),
                    None => continue,
                },
            };
            let decided = match request {
                // An invitation that approves means whichever key has used it.
                Ok(request) => {
                    let key = (decision == RegistrationResult::Approved).then_some(&applicant.fingerprint);
                    decide(&requests, &request, decision, key).await
                }
                Err(error) => Err(error),
            };
            match decided {
                // Read again: the answer is what stands there now.
                Ok(_) => {}
                Err(error) if has_code(&error, 409) || has_code(&error, 404) => {}
                Err(error) => return Err(parent_trouble("writing the registration request", &error)),
            }
        }
        Err(busy())
    }

    /// Ends all invitations that this cluster has used but the one that counts now. One that cannot be deleted
    /// is older than the request and gets nothing any more.
    async fn supersede(&self, cluster: &ClusterId, by: &Stored) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        match used_invitations(&secrets, cluster).await {
            Ok(used) => {
                let others = used.iter().filter_map(|name| name.strip_prefix("invitation-"));
                for other in others.filter(|id| is_id(id) && *id != by.id) {
                    self.forget(other).await;
                }
            }
            Err(error) => {
                tracing::warn!(%cluster, %error, "the invitations that this cluster used before could not be listed");
            }
        }
    }

    async fn issue(&self, applicant: &Applicant) -> Result<ClusterRegistrationStatus, Refusal> {
        let cluster = &applicant.cluster;
        let Some(known) = self.catalog.get(cluster) else { return Ok(setting_up()) };
        // It could not open its tunnel yet; told to wait here, it comes as soon as it can.
        if self.catalog.held(&known).is_some() {
            return Ok(setting_up());
        }
        match issue_credential(&self.client, &known, &applicant.fingerprint).await {
            Ok(Some(credential)) => {
                tracing::info!(%cluster, expires = %credential.expires, "gave a credential");
                let mut status = status(RegistrationResult::Approved, "approved".to_owned(), 0);
                status.credential = Some(credential);
                Ok(status)
            }
            Ok(None) => Ok(setting_up()),
            Err(error) if has_code(&error, 404) => Ok(without_account(&known)),
            Err(error) => Err(parent_trouble("making the credential", &error)),
        }
    }
}

/// A token of the cluster's own account, from the parent, for the agent with this key; it is stored nowhere in
/// the parent. `None` if the cluster has another key by now, is shut out or gone: asked of the API after the
/// token was made, and of the account itself, so that no token of an account that was made for another key is
/// given away. One that was made for an older account ended with it.
///
/// # Errors
/// The account is not there (404), or the parent refuses.
pub async fn issue_credential(
    client: &Client,
    cluster: &Cluster,
    key: &str,
) -> Result<Option<Credential>, kube::Error> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &cluster.namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(CREDENTIAL_SECONDS),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let made = accounts.create_token_request(AGENT_ACCOUNT, &PostParams::default(), &request).await?;
    let clusters: Api<ManagedCluster> = Api::namespaced(client.clone(), &cluster.namespace);
    let now = clusters.get_opt(cluster.name.as_str()).await?.map(|now| now.spec);
    if !now
        .is_some_and(|now| now.cluster_id == cluster.id.as_str() && now.key_fingerprint == key && !now.denied)
    {
        return Ok(None);
    }
    let account = accounts.get_metadata(AGENT_ACCOUNT).await?;
    // An account without it is older than the first change of a key.
    if account.annotations().get(KEY_FINGERPRINT).is_some_and(|made_for| made_for != key) {
        return Ok(None);
    }
    Ok(made.status.map(|status| Credential {
        token: Hidden::from(status.token),
        expires: status.expiration_timestamp.0,
    }))
}

fn status(result: RegistrationResult, message: String, retry: u32) -> ClusterRegistrationStatus {
    ClusterRegistrationStatus { result, message, credential: None, retry_after_seconds: retry }
}

fn setting_up() -> ClusterRegistrationStatus {
    status(RegistrationResult::Pending, "approved; the hub is setting the cluster up".to_owned(), 1)
}

/// It is being made at this moment, or somebody took the credential back by deleting it.
fn without_account(cluster: &Cluster) -> ClusterRegistrationStatus {
    let message = format!(
        "approved, but the cluster's account {}/{AGENT_ACCOUNT} is not there; if somebody deleted it in the parent: kubectl towline unregister {}, then register it again",
        cluster.namespace, cluster.name
    );
    status(RegistrationResult::Pending, message, ASK_PENDING)
}

fn unknown() -> Refusal {
    Refusal::Unauthenticated("unknown invitation")
}

/// Not a 409: that is a used invitation to an agent, and no reason to come again.
fn busy() -> Refusal {
    Status::new(
        StatusCode::SERVICE_UNAVAILABLE,
        Reason::ServiceUnavailable,
        "this registration is being changed by somebody else; try again",
    )
    .retry_after(1)
    .into()
}

/// Who applies, once the signature shows that it holds the key.
pub(crate) fn check_proof(spec: &ClusterRegistrationSpec) -> Result<Applicant, Refusal> {
    let cluster: ClusterId =
        spec.cluster_id.parse().map_err(|error| Refusal::BadRequest(format!("spec.clusterId: {error}")))?;
    if !is_id(&spec.invitation) {
        return Err(unknown());
    }
    let bad_key = || {
        Refusal::BadRequest(
            "spec.publicKey: not the base64 of an ECDSA P-256 SubjectPublicKeyInfo in DER".to_owned(),
        )
    };
    let key = STANDARD.decode(&spec.public_key).map_err(|_| bad_key())?;
    if key.len() != P256_LENGTH || !key.starts_with(&P256_PREFIX) {
        return Err(bad_key());
    }
    let bad_signature = || {
        Refusal::BadRequest(
            "spec.signature: does not prove possession of spec.publicKey for this invitation and cluster"
                .to_owned(),
        )
    };
    let signature = STANDARD.decode(&spec.signature).map_err(|_| bad_signature())?;
    let message = signed_message(&spec.invitation, &spec.cluster_id, &spec.public_key);
    // The point starts with the last byte of the prefix, 4 for "uncompressed".
    let point = &key[P256_PREFIX.len() - 1..];
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        .verify(&message, &signature)
        .map_err(|_| bad_signature())?;
    Ok(Applicant { invitation: spec.invitation.clone(), cluster, fingerprint: fingerprint(&key) })
}

/// The fingerprint of a key as people compare it: as `ssh-keygen -l` writes them, over the DER.
pub fn fingerprint(spki: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(digest::digest(&digest::SHA256, spki)))
}

/// Whether the invitation lets this applicant in.
fn admission(
    stored: Option<&Stored>,
    secret: &Hidden,
    applicant: &Applicant,
    now: Timestamp,
) -> Result<Admission, Refusal> {
    let hash = sha256_hex(secret.reveal().as_bytes());
    // Compared in any case, so that an unknown id takes as long as a wrong secret.
    let wanted = stored.map_or("", |stored| stored.hash.as_str());
    let right = verify_slices_are_equal(hash.as_bytes(), wanted.as_bytes()).is_ok();
    let Some(stored) = stored.filter(|_| right) else { return Err(unknown()) };
    if stored.expires <= now {
        return Err(Status::new(
            StatusCode::UNAUTHORIZED,
            Reason::Unauthorized,
            format!(
                "this invitation expired at {}; make a new one with: kubectl towline register {}",
                stored.expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
                stored.cluster_name
            ),
        )
        .into());
    }
    match &stored.used_by {
        None => Ok(Admission::Bind),
        Some(user) if user.cluster == applicant.cluster && user.fingerprint == applicant.fingerprint => {
            Ok(Admission::Bound)
        }
        Some(_) => Err(Status::new(
            StatusCode::CONFLICT,
            Reason::Conflict,
            format!(
                "this invitation was used by another cluster, or by this one with another key; make a new one with: kubectl towline register {}",
                stored.cluster_name
            ),
        )
        .into()),
    }
}

/// The table in the head of this file.
fn outcome<'a>(
    existing: Option<&ClusterRegistrationRequest>,
    clusters: impl Iterator<Item = &'a Cluster>,
    applicant: &Applicant,
    invitation: &Stored,
) -> Outcome {
    let name: &ClusterName = &invitation.cluster_name;
    let mut own = None;
    for cluster in clusters {
        if cluster.id == applicant.cluster {
            own = Some(cluster);
        } else if cluster.name == *name {
            return Outcome::Deny(format!(
                "the name {name} is taken by another cluster; unregister that one first (kubectl towline unregister {name}) or choose another name"
            ));
        }
    }
    if let Some(own) = own {
        if own.name != *name {
            return Outcome::Deny(format!(
                "this cluster is already registered as {0}; invite it as {0} again",
                own.name
            ));
        }
        if own.denied {
            return Outcome::Deny(format!(
                "cluster {name} is shut out; to let it in: kubectl towline approve {name}"
            ));
        }
    }
    let own_key = own.is_some_and(|own| own.key_fingerprint == applicant.fingerprint);
    // An invitation lets a new cluster in. A cluster that is registered is taken over by another key only if a
    // person says so, whatever the invitation promises.
    let registered = own.is_some() || existing.is_some_and(|existing| was_approved(existing, applicant));
    let decision = if own_key || (invitation.auto_approve && !registered) {
        RegistrationResult::Approved
    } else {
        RegistrationResult::Pending
    };
    let Some(existing) = existing else { return Outcome::Write(decision) };
    let result = existing.status.as_ref().and_then(|status| status.result);
    let denied = result == Some(RegistrationResult::Denied);
    if existing.spec.cluster_name != name.as_str() && !denied {
        return Outcome::Deny(format!(
            "this cluster has asked to join as {}; deny or delete that request first: kubectl delete clsrr {}",
            existing.spec.cluster_name,
            registration_request_name(&applicant.cluster)
        ));
    }
    let same_invitation = existing.spec.invitation == invitation.id;
    let same_key = existing.spec.key_fingerprint == applicant.fingerprint;
    if !same_key || (!same_invitation && (denied || existing.spec.cluster_name != name.as_str())) {
        if is_older(invitation, existing) {
            return Outcome::Deny(format!(
                "this invitation is older than the one that cluster {name} asked with last; make a new one with: kubectl towline register {name}"
            ));
        }
        return Outcome::Write(decision);
    }
    let message =
        existing.status.as_ref().map(|status| printable(&status.error_message, 512)).unwrap_or_default();
    match result {
        None => Outcome::Decide(decision),
        Some(RegistrationResult::Pending) if decision == RegistrationResult::Approved => {
            Outcome::Decide(decision)
        }
        Some(RegistrationResult::Pending) => Outcome::Wait(
            RegistrationResult::Pending,
            format!(
                "waiting for approval; compare the key's fingerprint {}, then: kubectl towline approve {name}",
                applicant.fingerprint
            ),
        ),
        Some(RegistrationResult::Approved) if own_key => Outcome::Issue,
        Some(RegistrationResult::Approved) => Outcome::Wait(
            RegistrationResult::Pending,
            "approved; the hub is setting the cluster up".to_owned(),
        ),
        Some(RegistrationResult::Failed) => Outcome::Wait(RegistrationResult::Failed, message),
        Some(RegistrationResult::Denied) if message.is_empty() => {
            Outcome::Deny(format!("the registration of {name} was denied"))
        }
        Some(RegistrationResult::Denied) => Outcome::Deny(message),
    }
}

/// Whether the hub has set up this cluster for another key, or was told to.
fn was_approved(existing: &ClusterRegistrationRequest, applicant: &Applicant) -> bool {
    let Some(status) = &existing.status else { return false };
    let approved = matches!(status.result, Some(RegistrationResult::Approved | RegistrationResult::Failed));
    // The key in the request may be one that was never approved; the cluster has another then.
    let set_up = !status.managed_cluster_name.is_empty();
    set_up || (approved && existing.spec.key_fingerprint != applicant.fingerprint)
}

/// Whether the invitation was made before the one that the request was written for.
fn is_older(invitation: &Stored, existing: &ClusterRegistrationRequest) -> bool {
    let before: Option<Timestamp> = existing.annotations().get(INVITED_AT).and_then(|at| at.parse().ok());
    invitation.made.zip(before).is_some_and(|(made, before)| made < before)
}

/// Writes the request as the applicant and the invitation have it. A decision that was made for another key is
/// taken back first: between these two writes nobody may take it for a decision on the new key.
async fn write(
    requests: &Api<ClusterRegistrationRequest>,
    existing: Option<&ClusterRegistrationRequest>,
    applicant: &Applicant,
    invitation: &Stored,
) -> Result<ClusterRegistrationRequest, kube::Error> {
    let name = registration_request_name(&applicant.cluster);
    let spec = ClusterRegistrationRequestSpec {
        cluster_id: applicant.cluster.to_string(),
        cluster_name: invitation.cluster_name.to_string(),
        cluster_type: "StandardCluster".to_owned(),
        sync_mode: "Pull".to_owned(),
        cluster_labels: invitation.labels.clone(),
        key_fingerprint: applicant.fingerprint.clone(),
        invitation: invitation.id.clone(),
    };
    let mut request = ClusterRegistrationRequest::new(&name, spec);
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    request.metadata.labels = Some(
        [
            label(LABEL_CREATED_BY, CREATED_BY_HUB),
            label(LABEL_REGISTERED_BY, CREATED_BY_HUB),
            label(LABEL_CLUSTER_ID, applicant.cluster.as_str()),
            label(LABEL_CLUSTER_NAME, invitation.cluster_name.as_str()),
        ]
        .into(),
    );
    request.metadata.annotations =
        invitation.made.map(|made| [(INVITED_AT.to_owned(), made.to_string())].into());
    let Some(existing) = existing else { return requests.create(&PostParams::default(), &request).await };
    let undecided = decide(requests, existing, RegistrationResult::Pending, None).await?;
    // Against the version that was read: a person's decision in between is a conflict, not lost.
    request.metadata.resource_version = undecided.metadata.resource_version;
    requests.replace(&name, &PostParams::default(), &request).await
}

/// Writes a decision, against the version of the request that it was made for.
async fn decide(
    requests: &Api<ClusterRegistrationRequest>,
    request: &ClusterRegistrationRequest,
    decision: RegistrationResult,
    approved_key: Option<&String>,
) -> Result<ClusterRegistrationRequest, kube::Error> {
    let name = request.metadata.name.as_deref().unwrap_or_default();
    let patch = json!({
        "metadata": { "resourceVersion": request.metadata.resource_version },
        "status": { "result": decision, "approvedKey": approved_key, "errorMessage": null },
    });
    let written = requests.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    tracing::info!(
        request = name,
        ?decision,
        key = request.spec.key_fingerprint,
        "a registration request was written"
    );
    Ok(written)
}

#[cfg(test)]
mod abuse;
#[cfg(test)]
mod against_the_api;

#[cfg(test)]
mod tests {
    use api::registration::ClusterRegistrationRequestStatus;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
    use proptest::prelude::*;

    use super::*;

    const INVITATION: &str = "0123456789abcdef";
    const NEWER: &str = "fedcba9876543210";

    pub(super) fn proof(invitation: &str, cluster: &str) -> ClusterRegistrationSpec {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let mut spki = P256_PREFIX.to_vec();
        spki.extend_from_slice(&key.public_key().as_ref()[1..]);
        let public_key = STANDARD.encode(&spki);
        let message = signed_message(invitation, cluster, &public_key);
        let signature = STANDARD.encode(key.sign(&SystemRandom::new(), &message).unwrap());
        ClusterRegistrationSpec {
            invitation: invitation.to_owned(),
            secret: Hidden::from("secret".to_owned()),
            cluster_id: cluster.to_owned(),
            public_key,
            signature,
            agent_version: "0.1.0".to_owned(),
        }
    }

    fn applicant(key: &str) -> Applicant {
        Applicant {
            invitation: INVITATION.to_owned(),
            cluster: "c1".parse().unwrap(),
            fingerprint: key.to_owned(),
        }
    }

    fn invitation(name: &str) -> Stored {
        Stored {
            id: INVITATION.to_owned(),
            hash: sha256_hex(b"secret"),
            cluster_name: name.parse().unwrap(),
            expires: "2030-01-02T03:04:05Z".parse().unwrap(),
            auto_approve: false,
            labels: [("site".to_owned(), "ulm".to_owned())].into(),
            groups: vec![],
            used_by: None,
            made: None,
        }
    }

    fn request(
        name: &str,
        key: &str,
        invitation: &str,
        result: Option<RegistrationResult>,
    ) -> ClusterRegistrationRequest {
        let spec = ClusterRegistrationRequestSpec {
            cluster_id: "c1".to_owned(),
            cluster_name: name.to_owned(),
            key_fingerprint: key.to_owned(),
            invitation: invitation.to_owned(),
            ..ClusterRegistrationRequestSpec::default()
        };
        let mut request = ClusterRegistrationRequest::new("clusternet-c1", spec);
        request.status = Some(ClusterRegistrationRequestStatus { result, ..Default::default() });
        request
    }

    fn cluster(id: &str, name: &str, key: &str) -> Cluster {
        Cluster {
            id: id.parse().unwrap(),
            name: name.parse().unwrap(),
            namespace: "clusternet-x".to_owned(),
            key_fingerprint: key.to_owned(),
            denied: false,
            last_seen: None,
        }
    }

    fn kind(outcome: &Outcome) -> &'static str {
        match outcome {
            Outcome::Write(RegistrationResult::Approved) => "write approved",
            Outcome::Write(_) => "write pending",
            Outcome::Decide(RegistrationResult::Approved) => "approve",
            Outcome::Decide(_) => "set pending",
            Outcome::Issue => "issue",
            Outcome::Wait(..) => "wait",
            Outcome::Deny(_) => "deny",
        }
    }

    #[test]
    fn the_table_in_the_head_holds() {
        use RegistrationResult::{Approved, Denied, Failed, Pending};
        let denied = Cluster { denied: true, ..cluster("c1", "edge", "k") };
        let cases = [
            ("new", None, Vec::new(), false, "write pending"),
            ("new, approved by the invitation", None, vec![], true, "write approved"),
            ("undecided", Some(request("edge", "k", INVITATION, None)), vec![], false, "set pending"),
            ("undecided, approving", Some(request("edge", "k", INVITATION, None)), vec![], true, "approve"),
            ("pending", Some(request("edge", "k", INVITATION, Some(Pending))), vec![], false, "wait"),
            (
                "pending, newer invitation",
                Some(request("edge", "k", NEWER, Some(Pending))),
                vec![],
                false,
                "wait",
            ),
            ("pending, approving", Some(request("edge", "k", NEWER, Some(Pending))), vec![], true, "approve"),
            (
                "approved, not set up",
                Some(request("edge", "k", INVITATION, Some(Approved))),
                vec![],
                false,
                "wait",
            ),
            (
                "approved",
                Some(request("edge", "k", INVITATION, Some(Approved))),
                vec![cluster("c1", "edge", "k")],
                false,
                "issue",
            ),
            (
                "approved, newer invitation",
                Some(request("edge", "k", NEWER, Some(Approved))),
                vec![cluster("c1", "edge", "k")],
                false,
                "issue",
            ),
            ("failed", Some(request("edge", "k", INVITATION, Some(Failed))), vec![], false, "wait"),
            ("denied", Some(request("edge", "k", INVITATION, Some(Denied))), vec![], false, "deny"),
            (
                "denied, approving, same invitation",
                Some(request("edge", "k", INVITATION, Some(Denied))),
                vec![],
                true,
                "deny",
            ),
            (
                "denied, newer invitation",
                Some(request("edge", "k", NEWER, Some(Denied))),
                vec![],
                false,
                "write pending",
            ),
            (
                "denied under another name",
                Some(request("old", "k", NEWER, Some(Denied))),
                vec![],
                false,
                "write pending",
            ),
            (
                "other key",
                Some(request("edge", "old", NEWER, Some(Approved))),
                vec![cluster("c1", "edge", "old")],
                false,
                "write pending",
            ),
            ("request gone, own key", None, vec![cluster("c1", "edge", "k")], false, "write approved"),
            ("request gone, other key", None, vec![cluster("c1", "edge", "old")], false, "write pending"),
            ("registered under another name", None, vec![cluster("c1", "other", "k")], true, "deny"),
            (
                "asked under another name",
                Some(request("other", "k", NEWER, Some(Pending))),
                vec![],
                true,
                "deny",
            ),
            ("name taken", None, vec![cluster("c2", "edge", "k2")], true, "deny"),
            ("shut out", Some(request("edge", "k", INVITATION, Some(Approved))), vec![denied], true, "deny"),
        ];
        for (what, existing, clusters, auto_approve, wanted) in cases {
            let invitation = Stored { auto_approve, ..invitation("edge") };
            let outcome = outcome(existing.as_ref(), clusters.iter(), &applicant("k"), &invitation);
            assert_eq!(kind(&outcome), wanted, "{what}: {outcome:?}");
        }
    }

    #[test]
    fn an_approving_invitation_lets_in_what_is_new_and_takes_nothing_over() {
        use RegistrationResult::{Approved, Denied, Failed, Pending};
        let invitation = Stored { auto_approve: true, ..invitation("edge") };
        for (what, existing, clusters, wanted) in [
            (
                "other key approved",
                Some(request("edge", "old", NEWER, Some(Approved))),
                vec![cluster("c1", "edge", "old")],
                "write pending",
            ),
            ("other key, request gone", None, vec![cluster("c1", "edge", "old")], "write pending"),
            (
                "other key, set up but not yet in the catalog",
                Some(request("edge", "old", NEWER, Some(Approved))),
                vec![],
                "write pending",
            ),
            (
                "other key, the approved one failed",
                Some(request("edge", "old", NEWER, Some(Failed))),
                vec![],
                "write pending",
            ),
            (
                "this key pending beside the cluster's",
                Some(request("edge", "k", INVITATION, Some(Pending))),
                vec![cluster("c1", "edge", "old")],
                "wait",
            ),
            (
                "this key undecided beside the cluster's",
                Some(request("edge", "k", INVITATION, None)),
                vec![cluster("c1", "edge", "old")],
                "set pending",
            ),
            ("other key denied", Some(request("edge", "old", NEWER, Some(Denied))), vec![], "write approved"),
            (
                "other key pending",
                Some(request("edge", "old", NEWER, Some(Pending))),
                vec![],
                "write approved",
            ),
        ] {
            let outcome = outcome(existing.as_ref(), clusters.iter(), &applicant("k"), &invitation);
            assert_eq!(kind(&outcome), wanted, "{what}: {outcome:?}");
        }
    }

    #[test]
    fn a_cluster_that_was_set_up_is_taken_over_by_nobody_even_before_it_is_known_here() {
        let mut pending = request("edge", "k", INVITATION, Some(RegistrationResult::Pending));
        pending.status.as_mut().unwrap().managed_cluster_name = "edge".to_owned();
        let invitation = Stored { auto_approve: true, ..invitation("edge") };
        let outcome = outcome(Some(&pending), [].iter(), &applicant("k"), &invitation);
        assert_eq!(kind(&outcome), "wait");
    }

    #[test]
    fn an_older_invitation_takes_no_request_over() {
        let mut existing = request("edge", "old", NEWER, Some(RegistrationResult::Pending));
        existing.metadata.annotations =
            Some([(INVITED_AT.to_owned(), "2029-01-02T00:00:00Z".to_owned())].into());
        let outcome = |existing: &ClusterRegistrationRequest, made: Option<&str>| {
            let made = made.map(|made| made.parse().unwrap());
            let invitation = Stored { made, ..invitation("edge") };
            kind(&outcome(Some(existing), [].iter(), &applicant("k"), &invitation))
        };
        assert_eq!(outcome(&existing, Some("2029-01-01T23:59:59Z")), "deny");
        for newer in [Some("2029-01-02T00:00:00Z"), Some("2029-01-03T00:00:00Z"), None] {
            assert_eq!(outcome(&existing, newer), "write pending");
        }
        existing.spec.key_fingerprint = "k".to_owned();
        assert_eq!(
            outcome(&existing, Some("2029-01-01T00:00:00Z")),
            "wait",
            "the same agent may come with it"
        );
    }

    #[test]
    fn what_is_to_be_done_is_a_command_that_helps() {
        let shut_out = Cluster { denied: true, ..cluster("c1", "edge", "k") };
        let Outcome::Deny(message) =
            outcome(None, [&shut_out].into_iter(), &applicant("k"), &invitation("edge"))
        else {
            panic!("not denied")
        };
        // The controller takes a change of spec.denied by hand back while the request is denied.
        assert!(message.contains("kubectl towline approve edge") && !message.contains("patch"), "{message}");
    }

    #[test]
    fn a_busy_registration_is_no_used_invitation() {
        let status = busy().to_status();
        assert_eq!((status.code.as_u16(), status.retry_after), (503, Some(1)));
    }

    #[test]
    fn only_the_secret_tells_that_an_invitation_exists() {
        let before = "2030-01-01T00:00:00Z".parse().unwrap();
        let after = "2030-02-01T00:00:00Z".parse().unwrap();
        let secret = |text: &str| Hidden::from(text.to_owned());
        let code = |stored: Option<&Stored>, text: &str, now| {
            admission(stored, &secret(text), &applicant("k"), now).map_err(|refusal| refusal.to_status())
        };
        let stored = invitation("edge");
        for (stored, text, now) in
            [(None, "secret", before), (Some(&stored), "wrong", before), (Some(&stored), "", after)]
        {
            let refused = code(stored, text, now).unwrap_err();
            assert_eq!((refused.code.as_u16(), refused.message.as_str()), (401, "unknown invitation"));
        }
        let expired = code(Some(&stored), "secret", after).unwrap_err();
        assert_eq!(expired.code.as_u16(), 401);
        assert!(
            expired.message.contains("2030-01-02T03:04:05Z") && expired.message.contains("register edge")
        );
    }

    #[test]
    fn an_invitation_serves_one_cluster_and_one_key() {
        let now = "2030-01-01T00:00:00Z".parse().unwrap();
        let secret = Hidden::from("secret".to_owned());
        let mut stored = invitation("edge");
        assert_eq!(admission(Some(&stored), &secret, &applicant("k"), now), Ok(Admission::Bind));
        stored.used_by = Some(User { cluster: "c1".parse().unwrap(), fingerprint: "k".to_owned() });
        assert_eq!(admission(Some(&stored), &secret, &applicant("k"), now), Ok(Admission::Bound));
        let other_cluster = Applicant { cluster: "c2".parse().unwrap(), ..applicant("k") };
        for other in [other_cluster, applicant("other")] {
            let refused = admission(Some(&stored), &secret, &other, now).unwrap_err().to_status();
            assert_eq!(refused.code.as_u16(), 409);
            assert!(refused.message.contains("was used by another cluster"));
        }
    }

    #[test]
    fn the_proof_binds_key_invitation_and_cluster() {
        let good = proof(INVITATION, "c1");
        let applicant = check_proof(&good).unwrap();
        assert_eq!((applicant.cluster.as_str(), applicant.fingerprint.len()), ("c1", 7 + 43));
        let other = proof(INVITATION, "c1");
        for bad in [
            ClusterRegistrationSpec { invitation: NEWER.to_owned(), ..good.clone() },
            ClusterRegistrationSpec { cluster_id: "c2".to_owned(), ..good.clone() },
            ClusterRegistrationSpec { public_key: other.public_key, ..good.clone() },
            ClusterRegistrationSpec { signature: other.signature, ..good.clone() },
            ClusterRegistrationSpec { signature: String::new(), ..good.clone() },
            ClusterRegistrationSpec { public_key: String::new(), ..good.clone() },
            ClusterRegistrationSpec { public_key: STANDARD.encode([0; P256_LENGTH]), ..good.clone() },
            ClusterRegistrationSpec { cluster_id: "../x".to_owned(), ..good },
        ] {
            assert_eq!(check_proof(&bad).unwrap_err().to_status().code.as_u16(), 400);
        }
    }

    #[test]
    fn a_key_that_openssl_made_is_understood() {
        // rcgen writes the same DER that openssl does.
        let key = rcgen::KeyPair::generate().unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        assert!(spki.len() == P256_LENGTH && spki.starts_with(&P256_PREFIX));
    }

    proptest! {
        #[test]
        fn no_bytes_pass_for_a_proof(key in proptest::collection::vec(any::<u8>(), 64), signature in proptest::collection::vec(any::<u8>(), 0..80)) {
            let spki = [&P256_PREFIX[..], &key].concat();
            let spec = ClusterRegistrationSpec {
                public_key: STANDARD.encode(spki), signature: STANDARD.encode(signature), ..proof(INVITATION, "c1")
            };
            prop_assert!(check_proof(&spec).is_err());
        }
    }
}
