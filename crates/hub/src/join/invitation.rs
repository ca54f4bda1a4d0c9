//! `POST clusterinvitations`: checks what is wanted, stores the hash, has the parent make the token that
//! lets the agent through its front door, and answers with the agent.yaml, once. The token is bound to the
//! invitation's Secret (TokenRequest `boundObjectRef`), so deleting that Secret revokes both.

use std::collections::BTreeMap;
use std::time::Duration;

use api::identity::Identity;
use api::labels;
use api::mapping::RESERVED_PREFIXES;
use api::names::{BOOTSTRAP_ACCOUNT, SYSTEM_NAMESPACE};
use api::registration::{AddressKind, ClusterInvitationSpec, ClusterInvitationStatus, INVITATION_KIND};
use api::secret::Secret as Hidden;
use api::status::{Reason, Status, printable};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::Value;

use super::stored::{SECRET_TYPE, Stored, secret_name};
use super::{Join, answer, hex, in_time, invalid, one_time, parent_trouble, parse, sha256_hex};
use crate::app::ca_for_agents;
use crate::config::{Gateway, Settings};
use crate::generate::agent_manifest::{AgentManifest, generate};
use crate::refusal::Refusal;

/// How long an invitation lives if nobody says: overnight, but not over a weekend.
const DEFAULT_TTL: Duration = Duration::from_hours(24);
/// TokenRequest gives no token of less than ten minutes (kube-apiserver `pkg/apis/authentication/validation`).
const MIN_TTL: Duration = Duration::from_mins(10);
/// Most invitations that stand open at once. About 1.5 KiB each in etcd; more is a loop, not a roll-out.
const MAX_OPEN: u32 = 2_000;
/// Most labels and groups in one invitation; they fit into its Secret with ease.
const MAX_LABELS: usize = 64;
const MAX_GROUPS: usize = 64;
/// Longest group in an invitation; a distinguished name fits.
const MAX_GROUP: usize = 256;
/// Longest image reference (distribution/reference: 255 for the name, 128 for the tag, a digest).
const MAX_IMAGE: usize = 512;

impl Join {
    /// Makes an invitation.
    ///
    /// # Errors
    /// The body is not right, the hub has no such address, or the parent's API did not play along.
    pub async fn invite(&self, who: &Identity, body: &[u8]) -> Result<Value, Refusal> {
        in_time("making the invitation", Box::pin(self.invite_unhurried(who, body))).await
    }

    async fn invite_unhurried(&self, who: &Identity, body: &[u8]) -> Result<Value, Refusal> {
        let question = parse::<ClusterInvitationSpec>(INVITATION_KIND, body)?;
        let spec = question.spec;
        let now = Timestamp::now();
        let (ttl, image) = check(&spec, &self.settings)?;
        let parent_url = self.address(spec.address)?;
        if spec.one_time_address && self.settings.gateway.as_ref().is_none_or(|gateway| gateway.url.is_none())
        {
            return Err(one_time::no_gateway());
        }
        let parent_ca_pem = ca_for_agents(&self.settings).await.map_err(|error| {
            tracing::warn!(error = %format!("{error:#}"), "the parent's CA cannot be read");
            Status::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                Reason::InternalError,
                "the hub cannot read the CA of its own connection to the parent; see its log",
            )
        })?;

        let secret = Hidden::from(URL_SAFE_NO_PAD.encode(random::<32>()?));
        let stored = Stored {
            id: hex(&random::<8>()?),
            hash: sha256_hex(secret.reveal().as_bytes()),
            cluster_name: spec.cluster_name.clone(),
            expires: now + ttl,
            auto_approve: spec.auto_approve,
            labels: spec.cluster_labels.clone(),
            groups: spec.groups.clone(),
            used_by: None,
            made: None,
        };
        let (token, expires) = self.store(&stored, who, ttl).await?;
        let manifest = generate(&AgentManifest {
            cluster_name: spec.cluster_name.clone(),
            parent_url,
            parent_ca_pem,
            invitation: stored.id.clone(),
            invitation_secret: secret,
            token,
            expires,
            groups: spec.groups.clone(),
            image: image.to_owned(),
            gateway: self.gateway_for_agents(),
        });
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(error) => {
                self.forget(&stored.id).await;
                return Err(Status::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    Reason::InternalError,
                    format!("no manifest can be made: {error}"),
                )
                .into());
            }
        };
        let one_time = match spec.one_time_address {
            true => Some(self.offer(&stored.id, &manifest, expires, now).await),
            false => None,
        };
        let one_time = match one_time.transpose() {
            Ok(one_time) => one_time,
            Err(refusal) => {
                self.forget(&stored.id).await;
                return Err(refusal);
            }
        };
        let pinned = self.settings.gateway.as_ref().filter(|_| one_time.is_some());
        tracing::info!(invitation = stored.id, cluster = %stored.cluster_name, by = who.user(), %expires, "invited a cluster");
        let status = ClusterInvitationStatus {
            invitation: stored.id,
            expires,
            manifest,
            command: "kubectl apply -f agent.yaml".to_owned(),
            one_time_address: one_time,
            pin: pinned.and_then(Gateway::pin),
        };
        let name = question.name.unwrap_or_else(|| spec.cluster_name.to_string());
        let to_value = |error: serde_json::Error| invalid(error.to_string());
        let spec = serde_json::to_value(&spec).map_err(to_value)?;
        Ok(answer(INVITATION_KIND, &name, spec, serde_json::to_value(&status).map_err(to_value)?, now))
    }

    /// Where agents open their tunnels, if not at the parent.
    fn gateway_for_agents(&self) -> Option<(String, String)> {
        let gateway = self.settings.gateway.as_ref().filter(|gateway| gateway.for_agents)?;
        Some((gateway.url.clone()?, gateway.ca_pem.clone()?))
    }

    fn address(&self, kind: AddressKind) -> Result<String, Refusal> {
        let (address, flag) = match kind {
            AddressKind::Public => (&self.settings.public_url, "--public-url"),
            AddressKind::Intranet => (&self.settings.intranet_url, "--intranet-url"),
        };
        address.clone().ok_or_else(|| {
            invalid(format!(
                "spec.address: this hub has no such address of the parent; start it with {flag} or choose the other"
            ))
        })
    }

    /// Writes the Secret and has the token made. Gives the token and the earlier of both ends: the parent may
    /// cut a token's life (`--service-account-max-token-expiration`).
    async fn store(
        &self,
        stored: &Stored,
        who: &Identity,
        ttl: Duration,
    ) -> Result<(Hidden, Timestamp), Refusal> {
        let doing = "making the invitation";
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let open = ListParams::default().fields(&format!("type={SECRET_TYPE}")).limit(MAX_OPEN);
        let open = secrets.list_metadata(&open).await.map_err(|error| parent_trouble(doing, &error))?;
        if open.items.len() >= MAX_OPEN as usize {
            return Err(Status::new(
                StatusCode::TOO_MANY_REQUESTS,
                Reason::TooManyRequests,
                format!("{MAX_OPEN} invitations stand open; delete some: kubectl -n {SYSTEM_NAMESPACE} delete secret --field-selector type={SECRET_TYPE}"),
            )
            .into());
        }
        let invited_by = printable(who.user(), 256);
        let made = secrets
            .create(&PostParams::default(), &stored.to_secret(&invited_by, None))
            .await
            .map_err(|error| parent_trouble(doing, &error))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: i64::try_from(ttl.as_secs()).ok(),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Secret".to_owned()),
                    name: made.metadata.name,
                    uid: made.metadata.uid,
                }),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        match accounts.create_token_request(BOOTSTRAP_ACCOUNT, &PostParams::default(), &request).await {
            Ok(TokenRequest { status: Some(status), .. }) => {
                Ok((Hidden::from(status.token), stored.expires.min(status.expiration_timestamp.0)))
            }
            Ok(_) => {
                self.forget(&stored.id).await;
                Err(invalid("the parent answered the token request without a token"))
            }
            Err(error) => {
                self.forget(&stored.id).await;
                Err(parent_trouble("making the invitation's token", &error))
            }
        }
    }

    /// Takes an invitation back. One that cannot be deleted now is useless (its secret was never told) and
    /// falls to the garbage collector when it expires.
    pub(crate) async fn forget(&self, id: &str) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        if let Err(error) = secrets.delete(&secret_name(id), &DeleteParams::default()).await
            && !super::has_code(&error, 404)
        {
            tracing::warn!(invitation = id, %error, "an invitation could not be taken back; it ends by itself");
        }
    }
}

/// Random bytes from the system.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| {
        Status::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Reason::InternalError,
            "the system has no random numbers",
        )
    })?;
    Ok(bytes)
}

/// Refuses what may not stand in an invitation. Gives how long it lives, and the agent's image.
pub(crate) fn check<'a>(
    spec: &'a ClusterInvitationSpec,
    settings: &'a Settings,
) -> Result<(Duration, &'a str), Refusal> {
    let ttl = checked_ttl(spec.ttl_seconds, settings.max_invitation_ttl)?;
    check_labels(&spec.cluster_labels)?;
    check_groups(&spec.groups)?;
    let image = spec.image.as_deref().unwrap_or(&settings.agent_image);
    check_image(image)?;
    Ok((ttl, image))
}

fn checked_ttl(asked: Option<u64>, max: Duration) -> Result<Duration, Refusal> {
    let ttl = asked.map_or_else(|| DEFAULT_TTL.min(max), Duration::from_secs);
    if ttl < MIN_TTL || ttl > max {
        return Err(invalid(format!(
            "spec.ttlSeconds: {} is not between {} and {}",
            ttl.as_secs(),
            MIN_TTL.as_secs(),
            max.as_secs()
        )));
    }
    Ok(ttl)
}

/// Few enough, and none of the hub's own.
fn check_labels(wanted: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if wanted.len() > MAX_LABELS {
        return Err(invalid(format!("spec.clusterLabels: more than {MAX_LABELS} labels")));
    }
    for (key, value) in wanted {
        labels::check(key, value).map_err(|bad| invalid(format!("spec.clusterLabels: {bad}")))?;
    }
    Ok(())
}

fn check_groups(groups: &[String]) -> Result<(), Refusal> {
    if groups.len() > MAX_GROUPS {
        return Err(invalid(format!("spec.groups: more than {MAX_GROUPS} groups")));
    }
    for group in groups {
        let shown = printable(group, 100);
        let lower = group.to_ascii_lowercase();
        if group.trim().is_empty()
            || group.len() > MAX_GROUP
            || group.chars().any(char::is_control)
            || group == "*"
        {
            return Err(invalid(format!("spec.groups: {shown:?} is not the name of a group")));
        }
        // Without case: whoever reads the manifest does not look at it.
        if RESERVED_PREFIXES.iter().chain(&["clusternet:"]).any(|prefix| lower.starts_with(prefix)) {
            return Err(invalid(format!(
                "spec.groups: {shown:?} is reserved and never crosses from one cluster to another"
            )));
        }
    }
    Ok(())
}

/// `[host[:port]/]path[:tag][@digest]` as in distribution/reference.
fn check_image(image: &str) -> Result<(), Refusal> {
    let good = || {
        let (name, digest) =
            image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
        let digest_good = digest.is_none_or(|digest| {
            digest.strip_prefix("sha256:").is_some_and(|hex| {
                hex.len() == 64
                    && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
            })
        });
        let (path, tag) = match name.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (name, None),
        };
        let tag_good = tag.is_none_or(|tag| {
            (1..=128).contains(&tag.len())
                && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
                && !tag.starts_with(['.', '-'])
        });
        let mut parts = path.split('/').peekable();
        let first = parts.peek().copied().unwrap_or_default();
        let host = path.contains('/') && (first.contains(['.', ':']) || first == "localhost");
        if host {
            parts.next();
        }
        digest_good && tag_good && (!host || is_host(first)) && path.len() <= 255 && parts.all(is_path_part)
    };
    if image.len() <= MAX_IMAGE && good() {
        return Ok(());
    }
    Err(invalid(format!(
        "spec.image: {:?} is not an image reference such as registry.example.com/towline-agent:1.0",
        printable(image, 100)
    )))
}

fn is_host(text: &str) -> bool {
    let (name, port) = text.rsplit_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    port.is_none_or(|port| port.parse::<u16>().is_ok())
        && name.split('.').all(|part| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
}

fn is_path_part(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    plain(first) && plain(last) && bytes.iter().all(|&byte| plain(byte) || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_life_of_an_invitation_is_bounded() {
        let week = Duration::from_hours(7 * 24);
        assert_eq!(checked_ttl(None, week).unwrap(), DEFAULT_TTL);
        assert_eq!(checked_ttl(None, Duration::from_hours(1)).unwrap(), Duration::from_hours(1));
        assert_eq!(checked_ttl(Some(600), week).unwrap(), MIN_TTL);
        for bad in [0, 599, 7 * 24 * 3600 + 1, u64::MAX] {
            assert!(checked_ttl(Some(bad), week).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_that_are_none_or_the_hubs_are_refused() {
        let check = |key: &str, value: &str| check_labels(&[(key.to_owned(), value.to_owned())].into());
        assert!(check("example.com/site", "ulm").is_ok());
        for (key, value) in [("clusters.clusternet.io/cluster-id", "x"), ("a b", "x"), ("a", "x y")] {
            let refused = check(key, value).unwrap_err().to_status();
            assert_eq!(refused.code.as_u16(), 422, "{key}={value}");
            assert!(refused.message.starts_with("spec.clusterLabels: "), "{}", refused.message);
        }
        let many = (0..=MAX_LABELS).map(|n| (format!("a{n}"), String::new())).collect();
        assert!(check_labels(&many).is_err());
    }

    #[test]
    fn groups_that_mean_something_else_in_a_child_are_refused() {
        for bad in [
            "system:masters",
            "System:Masters",
            "kubeadm:cluster-admins",
            "clusternet:admin",
            "",
            " ",
            "*",
            "a\nb",
        ] {
            assert!(check_groups(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(
            check_groups(&["developers".to_owned(), "CN=dev,OU=x".to_owned(), "oidc:dev team".to_owned()])
                .is_ok()
        );
    }

    #[test]
    fn images_are_references() {
        let digest = format!("@sha256:{}", "a1".repeat(32));
        for good in [
            "towline:0.1.0",
            "towline-agent",
            "registry.example.com:5000/a/b-c.d_e:v1.2",
            "localhost/a",
            "127.0.0.1:5000/a:1",
            &format!("a/b{digest}"),
            &format!("a/b:1{digest}"),
        ] {
            assert!(check_image(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "A/b",
            "a b",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a@sha256:zz",
            "a@md5:00",
            "--privileged",
            "a:1\nb",
            "https://a/b",
            "a.b:99999/c",
            &"a".repeat(600),
        ] {
            assert!(check_image(bad).is_err(), "{bad}");
        }
    }
}
