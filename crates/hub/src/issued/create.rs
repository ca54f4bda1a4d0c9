//! `POST kubeconfigrequests`: makes a token for one cluster, stores its hash, and answers with the kubeconfig, once.
//! Nobody can hand out more than they may do themselves: the cluster and the role are asked of the parent now, and
//! again whenever the token is used.

use std::sync::Arc;
use std::time::Duration;

use api::identity::Identity;
use api::kubeconfig::{
    KUBECONFIG_REQUEST_KIND, KubeconfigRequestSpec, KubeconfigRequestStatus, Spelling, TOKEN_PREFIX,
};
use api::names::{ClusterName, SYSTEM_NAMESPACE};
use api::secret::Secret as Hidden;
use api::status::{Reason, Status};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use serde_json::Value;

use super::stored::Stored;
use super::{MAX_PER_OWNER, MAX_TOKENS, hash};
use crate::config::Gateway;
use crate::gateway::address;
use crate::generate::kubeconfig::kubeconfig;
use crate::grant::Grant;
use crate::handle::Hub;
use crate::join::{answer, hex, in_time, invalid, parent_trouble, parse};
use crate::refusal::Refusal;

/// How long a token lives if nobody says: a working day.
const DEFAULT_TTL: Duration = Duration::from_hours(8);
/// Less is over before the file is where it shall be.
const MIN_TTL: Duration = Duration::from_mins(1);
/// Longest name of a tool's service.
const MAX_SERVICE: usize = 63;

/// Makes a kubeconfig.
///
/// # Errors
/// The body is not right, the caller may not do so much themselves, or the parent's API did not play along.
pub async fn create(hub: &Hub, who: &Arc<Identity>, body: &[u8]) -> Result<Value, Refusal> {
    in_time("making the kubeconfig", Box::pin(create_unhurried(hub, who, body))).await
}

async fn create_unhurried(hub: &Hub, who: &Arc<Identity>, body: &[u8]) -> Result<Value, Refusal> {
    let question = parse::<KubeconfigRequestSpec>(KUBECONFIG_REQUEST_KIND, body)?;
    let spec = question.spec;
    let gateway = hub.settings.gateway.as_ref();
    let (gateway, url) = gateway.and_then(|gateway| Some((gateway, gateway.url.as_deref()?))).ok_or_else(|| {
        invalid("this hub has no gateway that tokens would be good at; start it with --gateway-listen and --gateway-url")
    })?;
    let ttl = checked_ttl(spec.ttl_seconds, hub.settings.max_credential_ttl)?;
    check_service(&spec)?;
    let named: ClusterName =
        spec.cluster.parse().map_err(|error| invalid(format!("spec.cluster {:?}: {error}", spec.cluster)))?;
    let server = server(spec.address, url, gateway, &named)?;

    // An unknown name is asked about like any other.
    let known = hub.catalog.named(&named);
    let cluster = known.clone().or_else(|| named.as_str().parse().ok());
    let cluster = cluster.ok_or_else(|| invalid(format!("there is no cluster {named}")))?;
    let grant = Grant::ask(&hub.authz, who, &cluster, "get").await.map_err(|refusal| {
        match named.as_str().parse() {
            Ok(asked) if matches!(refusal, Refusal::ClusterForbidden(..)) => {
                Refusal::ClusterForbidden(asked, "get")
            }
            _ => refusal,
        }
    })?;
    if known.is_none() {
        return Err(Refusal::NotFound(format!("there is no cluster {named}")));
    }
    if let Some(role) = spec.role.filter(|role| !grant.roles.contains(role)) {
        return Err(Refusal::Forbidden(format!(
            "user {:?} does not hold the role {} on cluster {named} and cannot hand it out (verb assume on sockets/{})",
            who.user(),
            role.subresource(),
            role.subresource(),
        )));
    }
    check_room(hub, who)?;

    let now = Timestamp::now();
    let token = Hidden::from(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<32>()?)));
    let stored = Stored {
        id: hex(&random::<8>()?),
        hash: hash(&token),
        cluster,
        owner: who.without_details(),
        role: spec.role,
        service: spec.service.clone(),
        expires: now + ttl,
        last_used: None,
    };
    // Whoever cannot be in a child would have a token that is good for nothing.
    super::Issued::new(stored.clone()).child(&grant.roles, hub.settings.map_service_accounts)?;
    let secrets: Api<Secret> = Api::namespaced(hub.join.client.clone(), SYSTEM_NAMESPACE);
    secrets
        .create(&PostParams::default(), &stored.to_secret())
        .await
        .map_err(|error| parent_trouble("storing the credential", &error))?;
    tracing::info!(credential = stored.id, cluster = %named, owner = who.user(), role = ?stored.role, expires = %stored.expires, "issued a kubeconfig");
    let status = KubeconfigRequestStatus {
        credential: stored.id,
        expires: stored.expires,
        kubeconfig: kubeconfig(&named, &server, gateway.ca_pem.as_deref(), &token),
        server,
        token,
    };
    let name = question.name.unwrap_or_else(|| named.to_string());
    let to_value = |error: serde_json::Error| invalid(error.to_string());
    let spec = serde_json::to_value(&spec).map_err(to_value)?;
    Ok(answer(KUBECONFIG_REQUEST_KIND, &name, spec, serde_json::to_value(&status).map_err(to_value)?, now))
}

fn server(spelling: Spelling, url: &str, gateway: &Gateway, name: &ClusterName) -> Result<String, Refusal> {
    match (spelling, &gateway.domain) {
        (Spelling::Path, _) => Ok(format!("{url}{}{name}", address::PATH)),
        (Spelling::Root, _) => Ok(url.to_owned()),
        (Spelling::Host, Some(domain)) => {
            // The port is the gateway's own.
            let port = url.rsplit_once(':').map(|(_, port)| port).filter(|port| port.parse::<u16>().is_ok());
            Ok(port.map_or_else(
                || format!("https://{name}.{domain}"),
                |port| format!("https://{name}.{domain}:{port}"),
            ))
        }
        (Spelling::Host, None) => {
            Err(invalid("spec.address host: this hub has no --gateway-domain; use path or root"))
        }
    }
}

fn checked_ttl(asked: Option<u64>, most: Duration) -> Result<Duration, Refusal> {
    let ttl = asked.map_or_else(|| DEFAULT_TTL.min(most), Duration::from_secs);
    if (MIN_TTL..=most).contains(&ttl) {
        return Ok(ttl);
    }
    Err(invalid(format!("spec.ttlSeconds has to be between {} and {}", MIN_TTL.as_secs(), most.as_secs())))
}

fn check_service(spec: &KubeconfigRequestSpec) -> Result<(), Refusal> {
    let Some(service) = &spec.service else { return Ok(()) };
    if spec.role.is_none() {
        return Err(invalid("spec.service needs spec.role: a service has no rights of its own"));
    }
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if service.is_empty() || service.len() > MAX_SERVICE || !service.bytes().all(plain) {
        return Err(invalid(format!("spec.service has to be 1 to {MAX_SERVICE} of a-z, 0-9 and '-'")));
    }
    Ok(())
}

/// Nothing is unbounded.
fn check_room(hub: &Hub, who: &Identity) -> Result<(), Refusal> {
    let all = hub.issued.all();
    let own = all.iter().filter(|issued| issued.owner.user() == who.user()).count();
    let full = if own >= MAX_PER_OWNER {
        format!("user {:?} has {own} credentials, which is the limit; revoke some", who.user())
    } else if all.len() >= MAX_TOKENS {
        format!("this hub has {} credentials, which is the limit; revoke some", all.len())
    } else {
        return Ok(());
    };
    Err(Status::new(StatusCode::TOO_MANY_REQUESTS, Reason::TooManyRequests, full).into())
}

fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], Refusal> {
    let mut bytes = [0; LENGTH];
    SystemRandom::new().fill(&mut bytes).map_err(|_| {
        Status::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Reason::InternalError,
            "the system gives no random numbers",
        )
    })?;
    Ok(bytes)
}
