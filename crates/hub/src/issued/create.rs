//! `POST kubeconfigrequests`: makes a token for one cluster, stores its hash, and answers with the kubeconfig, once, in
//! the form that a tool takes. Forms without a token cost none: nothing is stored for them.
//! Nobody can hand out more than they may do themselves: the cluster and the role are asked of the parent now, and
//! again whenever the token is used.

use std::sync::Arc;
use std::time::Duration;

use api::identity::Identity;
use api::kubeconfig::{
    Format, KUBECONFIG_REQUEST_KIND, KubeconfigRequestSpec, KubeconfigRequestStatus, Spelling, TOKEN_PREFIX,
};
use api::names::{ClusterId, ClusterName, SYSTEM_NAMESPACE};
use api::secret::Secret as Hidden;
use api::status::{Reason, Status, printable};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::stored::Stored;
use super::{Hash, MAX_KEPT_PER_OWNER, MAX_PER_OWNER, MAX_TOKENS, hash};
use crate::config::Gateway;
use crate::gateway::address;
use crate::generate::formats;
use crate::generate::kubeconfig::{Reached, Token, kubeconfig, with_command};
use crate::grant::Grant;
use crate::handle::Hub;
use crate::join::{answer, hex, in_time, invalid, parent_trouble, parse};
use crate::refusal::Refusal;

/// How long a token lives if nobody says: a working day.
const DEFAULT_TTL: Duration = Duration::from_hours(8);
/// Less is over before the file is where it shall be.
const MIN_TTL: Duration = Duration::from_mins(1);
/// To what an OpenShift token is limited, for its authorizer alone to read (`scopes.authorization.openshift.io`).
const SCOPES: &str = "scopes.authorization.openshift.io";
/// Longest name of a tool's service.
const MAX_SERVICE: usize = 63;
/// How long to wait for this hub's own watch to show a new token; usually milliseconds. The answer goes out in any case.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);
/// Longest part of an error that is shown of what could not be read.
const MAX_SHOWN: usize = 200;

/// Makes a kubeconfig.
///
/// # Errors
/// The body is not right, the caller may not do so much themselves, or the parent's API did not play along.
pub async fn create(hub: &Hub, who: &Arc<Identity>, body: &[u8]) -> Result<Value, Refusal> {
    in_time("making the kubeconfig", Box::pin(create_unhurried(hub, who, body))).await
}

async fn create_unhurried(hub: &Hub, who: &Arc<Identity>, body: &[u8]) -> Result<Value, Refusal> {
    let question = parse::<KubeconfigRequestSpec>(KUBECONFIG_REQUEST_KIND, body)
        .map_err(|refusal| blamed(body).map_or(refusal, Refusal::BadRequest))?;
    let spec = question.spec;
    let gateway = hub.settings.gateway.as_ref();
    let (gateway, url) = gateway.and_then(|gateway| Some((gateway, gateway.url.as_deref()?))).ok_or_else(|| {
        invalid("this hub has no gateway that tokens would be good at; start it with --gateway-listen and --gateway-url")
    })?;
    let ttl = checked_ttl(spec.ttl_seconds, hub.settings.max_credential_ttl)?;
    check_service(&spec)?;
    check_inventory(&spec)?;
    let named: ClusterName =
        spec.cluster.parse().map_err(|error| invalid(format!("spec.cluster {:?}: {error}", spec.cluster)))?;
    let spelling = spec.address.unwrap_or_else(|| formats::fitting(spec.format, gateway.domain.is_some()));
    let server = server(spelling, url, gateway, &named)?;

    // An unknown name is asked about like any other.
    let known = hub.catalog.named(&named);
    let cluster = known.clone().or_else(|| named.as_str().parse().ok());
    let cluster = cluster.ok_or_else(|| invalid(format!("there is no cluster {named}")))?;
    let reached = Reached {
        name: named.as_str(),
        id: cluster.as_str(),
        server: &server,
        ca_pem: gateway.ca_pem.as_deref(),
    };
    formats::check(spec.format, spelling, &reached).map_err(invalid)?;
    let grant = granted(hub, who, &spec, &named, &cluster).await?;
    if known.is_none() {
        return Err(Refusal::NotFound(format!("there is no cluster {named}")));
    }
    check_scope(who)?;
    // Whoever cannot be in a child would have a token that is good for nothing.
    let owner = who.without_details();
    let stored = new(&spec, cluster.clone(), owner, end(ttl), Hash::default())?;
    super::Issued::new(stored.clone()).child(&grant.roles, hub.settings.map_service_accounts)?;

    let status = if spec.format.has_token() {
        check_room(hub, who)?;
        let text = Hidden::from(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<32>()?)));
        let stored = Stored { hash: hash(&text), ..stored };
        store(hub, &stored).await?;
        tracing::info!(credential = stored.id, cluster = %named, owner = who.user(), role = ?stored.role, expires = %stored.expires, "issued a kubeconfig");
        let token = Token { text: &text, credential: &stored.id, expires: stored.expires };
        KubeconfigRequestStatus {
            kubeconfig: kubeconfig(&reached, &text),
            content: formats::with_token(spec.format, &reached, &token),
            credential: Some(stored.id),
            expires: Some(stored.expires),
            token: Some(text),
            server,
        }
    } else {
        let command = command(&spec);
        KubeconfigRequestStatus {
            kubeconfig: with_command(&reached, &command),
            content: formats::without_token(spec.format, &reached, &command),
            credential: None,
            expires: None,
            token: None,
            server,
        }
    };
    let name = question.name.unwrap_or_else(|| named.to_string());
    let to_value = |error: serde_json::Error| invalid(error.to_string());
    let spec = serde_json::to_value(&spec).map_err(to_value)?;
    let status = serde_json::to_value(&status).map_err(to_value)?;
    Ok(answer(KUBECONFIG_REQUEST_KIND, &name, spec, status, Timestamp::now()))
}

/// Which field of a body that cannot be read is to blame: the first that no request could have. serde says what is
/// wrong with a value, but not where.
fn blamed(body: &[u8]) -> Option<String> {
    let whole: Value = serde_json::from_slice(body).ok()?;
    let spec = whole.get("spec")?;
    let Some(spec) = spec.as_object() else {
        return Some(format!("the {KUBECONFIG_REQUEST_KIND} cannot be read: spec has to be an object"));
    };
    spec.iter().find_map(|(field, value)| {
        let mut alone = json!({ "cluster": "a" });
        alone[field] = value.clone();
        let error = serde_json::from_value::<KubeconfigRequestSpec>(alone).err()?;
        let field = printable(field, MAX_SHOWN);
        let why = printable(&error.to_string(), MAX_SHOWN);
        Some(format!("the {KUBECONFIG_REQUEST_KIND} cannot be read: spec.{field}: {why}"))
    })
}

/// What the caller may do on the cluster, if that is enough for what they want to hand out.
async fn granted(
    hub: &Hub,
    who: &Arc<Identity>,
    spec: &KubeconfigRequestSpec,
    named: &ClusterName,
    cluster: &ClusterId,
) -> Result<Grant, Refusal> {
    let grant = Grant::ask(&hub.authz, who, cluster, "get").await.map_err(|refusal| {
        // By the name that was asked for: the id would tell that the cluster exists.
        match named.as_str().parse() {
            Ok(asked) if matches!(refusal, Refusal::ClusterForbidden(..)) => {
                Refusal::ClusterForbidden(asked, "get")
            }
            _ => refusal,
        }
    })?;
    if let Some(role) = spec.role.filter(|role| !grant.roles.contains(role)) {
        return Err(Refusal::Forbidden(format!(
            "user {:?} does not hold the role {} on cluster {named} and cannot hand it out (verb assume on sockets/{})",
            who.user(),
            role.subresource(),
            role.subresource(),
        )));
    }
    Ok(grant)
}

/// To the second: people read it.
fn end(ttl: Duration) -> Timestamp {
    let end = Timestamp::now() + ttl;
    Timestamp::from_second(end.as_second()).unwrap_or(end)
}

fn new(
    spec: &KubeconfigRequestSpec,
    cluster: ClusterId,
    owner: Identity,
    expires: Timestamp,
    hash: Hash,
) -> Result<Stored, Refusal> {
    let id = hex(&random::<8>()?);
    let (role, service) = (spec.role, spec.service.clone());
    Ok(Stored { id, hash, cluster, owner, role, service, expires, last_used: None })
}

/// Writes the token down, and waits until this hub knows it, so that whoever uses it at once is let in.
async fn store(hub: &Hub, stored: &Stored) -> Result<(), Refusal> {
    let secrets: Api<Secret> = Api::namespaced(hub.join.client.clone(), SYSTEM_NAMESPACE);
    secrets
        .create(&PostParams::default(), &stored.to_secret())
        .await
        .map_err(|error| parent_trouble("storing the credential", &error))?;
    if timeout(KNOWN_WITHIN, hub.issued.until_known(&stored.hash)).await.is_err() {
        tracing::debug!(credential = stored.id, "the watch is slow to show a new credential");
    }
    Ok(())
}

/// What `kubectl towline` is to do whenever a token is needed.
fn command(spec: &KubeconfigRequestSpec) -> Vec<String> {
    let mut words = vec!["exec-credential".to_owned(), spec.cluster.clone()];
    words.extend(spec.role.map(|role| format!("--role={}", role.subresource())));
    words.extend(spec.service.as_ref().map(|service| format!("--service={service}")));
    words.extend(spec.ttl_seconds.map(|seconds| format!("--ttl={seconds}s")));
    words
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

/// Nobody is named in an inventory: whoever reads it brings an identity of their own.
fn check_inventory(spec: &KubeconfigRequestSpec) -> Result<(), Refusal> {
    let named = spec.role.is_some() || spec.service.is_some() || spec.ttl_seconds.is_some();
    if spec.format == Format::ClusterProfile && named {
        return Err(invalid(
            "spec.format clusterprofile holds no token; leave spec.role, spec.service and spec.ttlSeconds out, and give them to kubectl-towline exec-credential where the profile is read",
        ));
    }
    Ok(())
}

/// A token stands for its owner, and would outgrow a session that is kept to less than that.
fn check_scope(who: &Identity) -> Result<(), Refusal> {
    if who.extra().contains_key(SCOPES) {
        return Err(Refusal::Forbidden(
            "your own token is limited to scopes, and a kubeconfig would not be; ask with an unlimited one"
                .to_owned(),
        ));
    }
    Ok(())
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
    let now = Timestamp::now();
    // Those that are over are kept for a while, to say so; they are no reason to refuse new ones.
    let kept = all.iter().filter(|issued| issued.owner.user() == who.user());
    let own = kept.clone().filter(|issued| !issued.expired(now)).count();
    let full = if own >= MAX_PER_OWNER {
        format!("user {:?} has {own} credentials, which is the limit; revoke some", who.user())
    } else if kept.count() >= MAX_KEPT_PER_OWNER {
        format!(
            "user {:?} had {MAX_KEPT_PER_OWNER} credentials within minutes, which is the limit; ask for longer ones",
            who.user()
        )
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
