//! Flags, environment (`TOWLINE_*`) and file of the hub, checked at once: whoever starts it learns of every mistake in
//! one go. Which of the three comes first is said in [`runtime::config`]. Nothing else in this crate reads the environment.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use api::secret::Secret;
use clap::{ArgAction, Parser};
use runtime::config::{Effective, Source, switch};
use runtime::files::read_small;
use runtime::logs::{self, Format};
use runtime::traces;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

pub use self::gateway::Gateway;
use self::gateway::is_domain;
use crate::audit;
use crate::limits::{self, Limits};

mod gateway;
pub mod line;

/// Longest time that any invitation may be valid; one that lives longer is forgotten in somebody's notes.
const MAX_INVITATION_TTL: Duration = Duration::from_hours(7 * 24);
/// Shortest: `TokenRequest` gives no token of less than ten minutes (apiserver `authentication/validation`).
const MIN_INVITATION_TTL: Duration = Duration::from_mins(10);
/// Longest that anybody may set for tokens that the hub issues: a year, for tools that nobody can renew.
const MAX_CREDENTIAL_TTL: Duration = Duration::from_hours(366 * 24);
/// Longest name of a replica that has peers: what a pod's name can have, with room for what stands around it in a DNS
/// name (RFC 1035 section 2.3.4: 253 characters).
const MAX_INSTANCE: usize = 180;
/// Longest pause between SIGTERM and the first closed door, and longest grace after it. A pod's whole
/// grace period is 30 s unless somebody changed it.
const MAX_SHUTDOWN: Duration = Duration::from_mins(10);

/// Keys whose change in the file takes effect while the hub runs. Certificates and the parent's CA are files of their own,
/// and are read again anyway.
pub const LIVE: &[&str] = &[
    "max-in-flight-per-user",
    "max-in-flight-per-cluster",
    "max-rate-per-user",
    "max-rate-per-cluster",
    "max-header-bytes",
    "max-header-lines",
    "request-head-timeout",
    "answer-timeout",
    "stream-idle-timeout",
    "recheck-interval",
    "max-tunnel-age",
    "log-filter",
];

/// What was said, by whomever; nothing of it is checked yet.
#[derive(Debug, Clone, Parser)]
pub struct Config {
    /// File with keys that are named like these flags, YAML. Flags and environment come before what it says.
    #[arg(long, env = "TOWLINE_CONFIG")]
    config: Option<PathBuf>,
    /// Print what is in force and where each value came from, and end.
    #[arg(long)]
    pub print_config: bool,
    /// Address of the aggregated API server.
    #[arg(long, env = "TOWLINE_LISTEN", default_value = "0.0.0.0:8443")]
    listen: String,
    /// Address of the gateway, for people and tools with a token of the parent; no gateway if absent.
    #[arg(long, env = "TOWLINE_GATEWAY_LISTEN")]
    gateway_listen: Option<String>,
    /// Certificate of the gateway, PEM, with its chain; read again when it changes. Without it the hub makes one, for the
    /// host of --gateway-url and for --gateway-domain.
    #[arg(long, env = "TOWLINE_GATEWAY_CERT_FILE")]
    gateway_cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, env = "TOWLINE_GATEWAY_KEY_FILE")]
    gateway_key_file: Option<PathBuf>,
    /// Address at which people and tools reach the gateway, https only; needed to issue kubeconfigs.
    #[arg(long, env = "TOWLINE_GATEWAY_URL")]
    gateway_url: Option<String>,
    /// CA of the certificate in --gateway-cert-file, PEM, for kubeconfigs; none if it is one that every tool trusts.
    #[arg(long, env = "TOWLINE_GATEWAY_CA_FILE")]
    gateway_ca_file: Option<PathBuf>,
    /// Let agents that are invited from now on open their tunnels at the gateway instead of through the parent's API server.
    #[arg(long, env = "TOWLINE_AGENTS_USE_GATEWAY", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_parser = switch, value_name = "BOOL")]
    agents_use_gateway: bool,
    /// Longest life of a token that the hub issues: a number with s, m, h or d.
    #[arg(long, env = "TOWLINE_MAX_CREDENTIAL_TTL", default_value = "30d")]
    max_credential_ttl: String,
    /// Domain below which each cluster has a host of its own: NAME.DOMAIN. Needs DNS and a certificate for *.DOMAIN.
    #[arg(long, env = "TOWLINE_GATEWAY_DOMAIN")]
    gateway_domain: Option<String>,
    /// Kubeconfig of the parent; in a pod there is no need for one.
    #[arg(long, env = "TOWLINE_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Address of the parent's API server for agents anywhere, https only.
    #[arg(long, env = "TOWLINE_PUBLIC_URL")]
    public_url: Option<String>,
    /// Address of the parent's API server for agents inside the company's networks, https only.
    #[arg(long, env = "TOWLINE_INTRANET_URL")]
    intranet_url: Option<String>,
    /// PEM file with the CA of those addresses, read again for each invitation; the CA of the hub's own connection if
    /// absent.
    #[arg(long, env = "TOWLINE_PARENT_CA_FILE")]
    parent_ca_file: Option<PathBuf>,
    /// Image of the agent, as it stands in the manifests of invitations.
    #[arg(long, env = "TOWLINE_AGENT_IMAGE", default_value = concat!("towline:", env!("CARGO_PKG_VERSION")))]
    agent_image: String,
    /// Name of this replica in logs and in agents' logs; the host name if absent.
    #[arg(long, env = "TOWLINE_HUB_ID")]
    hub_id: Option<String>,
    /// The host name, as the kernel or Kubernetes sets it.
    #[arg(long, env = "HOSTNAME", hide = true)]
    hostname: Option<String>,
    /// Address at which other replicas of the hub reach this one; needs --peer-address. Without it this replica stands alone.
    #[arg(long, env = "TOWLINE_PEER_LISTEN")]
    peer_listen: Option<String>,
    /// Where the other replicas find that: IP:PORT, or an IP for the port of --peer-listen, as that of the pod.
    #[arg(long, env = "TOWLINE_PEER_ADDRESS")]
    peer_address: Option<String>,
    /// Let service accounts of the parent enter children, as clusternet:serviceaccount:NAMESPACE:NAME.
    #[arg(long, env = "TOWLINE_MAP_SERVICE_ACCOUNTS", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_parser = switch, value_name = "BOOL")]
    map_service_accounts: bool,
    /// Longest validity of an invitation: a number with s, m, h or d.
    #[arg(long, env = "TOWLINE_MAX_INVITATION_TTL", default_value = "7d")]
    max_invitation_ttl: String,
    /// After SIGTERM, how long to keep all doors open while the parent learns that this replica goes.
    #[arg(long, env = "TOWLINE_SHUTDOWN_DELAY", default_value = "3s")]
    shutdown_delay: String,
    /// After that, how long open requests may take to finish.
    #[arg(long, env = "TOWLINE_SHUTDOWN_GRACE", default_value = "15s")]
    shutdown_grace: String,
    /// Where each request to a child is written down, one JSON line each: a file, - for standard output, or off.
    #[arg(long, env = "TOWLINE_AUDIT_LOG", default_value = "-")]
    audit_log: String,
    #[command(flatten)]
    limits: limits::Flags,
    #[command(flatten)]
    tracing: traces::Flags,
    /// text or json.
    #[arg(long, env = "TOWLINE_LOG_FORMAT", default_value = "text")]
    log_format: String,
    /// What to log: info, or directives like info,hub=debug.
    #[arg(long, env = "TOWLINE_LOG_FILTER", default_value = "info")]
    log_filter: String,
}

/// What the rest of the hub works with: values that are right.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The gateway, if there shall be one.
    pub gateway: Option<Gateway>,
    /// The parent's kubeconfig; `None` for what `kube` finds by itself.
    pub kubeconfig: Option<PathBuf>,
    /// Address for agents anywhere.
    pub public_url: Option<String>,
    /// Address for agents inside.
    pub intranet_url: Option<String>,
    /// File with the CA of these addresses, if it is not that of the hub's own connection.
    pub parent_ca_file: Option<PathBuf>,
    /// Image of the agent.
    pub agent_image: String,
    /// Name of this replica.
    pub hub_id: String,
    /// How other replicas reach this one; `None` for one that stands alone.
    pub peers: Option<PeerAddresses>,
    /// Whether parent service accounts may enter children.
    pub map_service_accounts: bool,
    /// Longest validity of an invitation.
    pub max_invitation_ttl: Duration,
    /// Longest life of a token that the hub issues.
    pub max_credential_ttl: Duration,
    /// See the flag.
    pub shutdown_delay: Duration,
    /// See the flag.
    pub shutdown_grace: Duration,
    /// See the flag.
    pub audit_log: audit::Target,
    /// What bounds a caller.
    pub limits: Limits,
    /// Where traces go, if anywhere.
    pub tracing: Option<traces::Settings>,
    /// How a log line looks.
    pub log_format: Format,
    /// What is logged.
    pub log_filter: String,
    /// All of it as it can be shown.
    pub effective: Effective,
    /// Where it comes from; `None` for one that was put together by hand.
    pub source: Option<Source>,
}

/// How other replicas reach this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddresses {
    /// Where to listen for them.
    pub listen: SocketAddr,
    /// Where they find that.
    pub address: SocketAddr,
}

/// Certificate chain and key as they are in these files now, as PEM.
///
/// # Errors
/// A file cannot be read; the error names it.
pub fn read_pair((cert, key): &(PathBuf, PathBuf)) -> anyhow::Result<(String, Secret)> {
    let read = |path: &PathBuf| read_small(path).with_context(|| path.display().to_string());
    Ok((read(cert)?, Secret::from(read(key)?)))
}

/// All that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has {} mistake(s):\n  {}", .0.len(), .0.join("\n  "))]
pub struct Mistakes(pub Vec<String>);

impl Default for Settings {
    /// What no flag at all gives; a start for tests.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8443)),
            gateway: None,
            kubeconfig: None,
            public_url: None,
            intranet_url: None,
            parent_ca_file: None,
            agent_image: concat!("towline:", env!("CARGO_PKG_VERSION")).to_owned(),
            hub_id: "towline-hub".to_owned(),
            peers: None,
            map_service_accounts: false,
            max_invitation_ttl: MAX_INVITATION_TTL,
            max_credential_ttl: Duration::from_hours(30 * 24),
            shutdown_delay: Duration::from_secs(3),
            shutdown_grace: Duration::from_secs(15),
            audit_log: audit::Target::Stdout,
            limits: Limits::default(),
            tracing: None,
            log_format: Format::Text,
            log_filter: "info".to_owned(),
            effective: Effective::default(),
            source: None,
        }
    }
}

impl Config {
    /// Checks everything and reads the files that are named.
    ///
    /// # Errors
    /// The list of all mistakes.
    pub fn check(self) -> Result<Settings, Mistakes> {
        let mut wrong = Vec::new();
        let mut settings = Settings {
            kubeconfig: self.kubeconfig,
            agent_image: self.agent_image,
            map_service_accounts: self.map_service_accounts,
            audit_log: match self.audit_log.as_str() {
                "off" => audit::Target::Off,
                "-" => audit::Target::Stdout,
                path => audit::Target::File(path.into()),
            },
            limits: self.limits.check(&mut wrong),
            tracing: self.tracing.check(&mut wrong),
            log_filter: self.log_filter,
            ..Settings::default()
        };
        match self.listen.parse() {
            Ok(address) => settings.listen = address,
            Err(_) => {
                wrong.push(format!("--listen {:?} is no address with a port, like 0.0.0.0:8443", self.listen))
            }
        }
        settings.gateway = gateway::check(
            self.gateway_listen.filter(|given| !given.is_empty()),
            (self.gateway_cert_file, self.gateway_key_file, self.gateway_ca_file),
            self.gateway_url.filter(|given| !given.is_empty()),
            self.gateway_domain.filter(|given| !given.is_empty()),
            self.agents_use_gateway,
            &mut wrong,
        );
        let wrong_urls = wrong.len();
        for (flag, given, place) in [
            ("--public-url", self.public_url, &mut settings.public_url),
            ("--intranet-url", self.intranet_url, &mut settings.intranet_url),
        ] {
            match given.as_deref().filter(|url| !url.is_empty()).map(https_address) {
                None => {}
                Some(Ok(url)) => *place = Some(url),
                Some(Err(why)) => wrong.push(format!("{flag} {why}")),
            }
        }
        if settings.public_url.is_none() && settings.intranet_url.is_none() && wrong_urls == wrong.len() {
            wrong.push(
                "--public-url is missing: the address at which agents reach the parent's kube-apiserver, like https://kubernetes.example.com:6443; or --intranet-url, if all of them are inside"
                    .to_owned(),
            );
        }
        if let Some(path) = self.parent_ca_file {
            match read_certificates(&path) {
                Ok(_) => settings.parent_ca_file = Some(path),
                Err(why) => wrong.push(format!("--parent-ca-file {}: {why}", path.display())),
            }
        }
        if let Err(why) = logs::check_filter(&settings.log_filter) {
            wrong.push(format!("--log-filter: {why}"));
        }
        match self.log_format.parse() {
            Ok(format) => settings.log_format = format,
            Err(why) => wrong.push(format!("--log-format {:?}: {why}", self.log_format)),
        }
        if let Some(id) = self.hub_id.or(self.hostname).filter(|id| !id.is_empty()) {
            match printable_id(&id) {
                true => settings.hub_id = id,
                false => wrong.push(format!("--hub-id {id:?} has to be 1 to 256 printable ASCII characters")),
            }
        }
        settings.peers = peers(
            self.peer_listen.filter(|given| !given.is_empty()),
            self.peer_address.filter(|given| !given.is_empty()),
            &settings.hub_id,
            &mut wrong,
        );
        let given =
            [self.max_invitation_ttl, self.max_credential_ttl, self.shutdown_delay, self.shutdown_grace];
        times(&given, &mut settings, &mut wrong);
        if settings.agent_image.is_empty() || settings.agent_image.contains(char::is_whitespace) {
            wrong.push(format!("--agent-image {:?} is no image reference", settings.agent_image));
        }
        if wrong.is_empty() { Ok(settings) } else { Err(Mistakes(wrong)) }
    }
}

/// Times, each within its bounds.
fn times(
    [max_invitation_ttl, max_credential_ttl, shutdown_delay, shutdown_grace]: &[String; 4],
    settings: &mut Settings,
    wrong: &mut Vec<String>,
) {
    for (flag, given, range, place) in [
        (
            "--max-invitation-ttl",
            max_invitation_ttl,
            (MIN_INVITATION_TTL, MAX_INVITATION_TTL),
            &mut settings.max_invitation_ttl,
        ),
        (
            "--max-credential-ttl",
            max_credential_ttl,
            (MIN_INVITATION_TTL, MAX_CREDENTIAL_TTL),
            &mut settings.max_credential_ttl,
        ),
        ("--shutdown-delay", shutdown_delay, (Duration::ZERO, MAX_SHUTDOWN), &mut settings.shutdown_delay),
        ("--shutdown-grace", shutdown_grace, (Duration::ZERO, MAX_SHUTDOWN), &mut settings.shutdown_grace),
    ] {
        match duration(given).filter(|given| (range.0..=range.1).contains(given)) {
            Some(given) => *place = given,
            None => wrong.push(format!(
                "{flag} {given:?} is no time between {:?} and {:?}, like 90s or 2h",
                range.0, range.1
            )),
        }
    }
}

/// How other replicas reach this one, if it has any.
fn peers(
    listen: Option<String>,
    address: Option<String>,
    hub_id: &str,
    wrong: &mut Vec<String>,
) -> Option<PeerAddresses> {
    let (listen, address) = match (listen, address) {
        (None, None) => return None,
        (Some(listen), Some(address)) => (listen, address),
        _ => {
            wrong.push("--peer-listen and --peer-address are needed both, or neither of them".to_owned());
            return None;
        }
    };
    if !names_a_replica(hub_id) {
        wrong.push(format!(
            "--hub-id {hub_id:?} names a Lease and a certificate: lower-case letters, digits, - and . only, at most {MAX_INSTANCE}, and not \"controllers\""
        ));
    }
    let Ok(listen) = listen.parse::<SocketAddr>() else {
        wrong.push(format!("--peer-listen {listen:?} is no address with a port, like 0.0.0.0:8445"));
        return None;
    };
    let alone = address.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, listen.port()));
    match address
        .parse::<SocketAddr>()
        .or(alone)
        .ok()
        .filter(|at| !at.ip().is_unspecified() && at.port() != 0)
    {
        Some(address) => Some(PeerAddresses { listen, address }),
        None => {
            wrong.push(format!(
                "--peer-address {address:?} is no address at which others reach this replica, like 10.0.0.7:8445"
            ));
            None
        }
    }
}

/// Whether it can stand in the name of a Lease and in a certificate (RFC 1123 section 2.1).
pub(crate) fn names_a_replica(id: &str) -> bool {
    let small = id.bytes().all(|byte| !byte.is_ascii_uppercase());
    id.len() <= MAX_INSTANCE && id != "controllers" && small && is_domain(id)
}

/// An https origin without credentials, query or fragment; a trailing slash is dropped.
fn https_address(text: &str) -> Result<String, String> {
    // Whoever writes a password into it shall not find it in a log.
    let shown = if text.contains('@') { "a URL with credentials".to_owned() } else { format!("{text:?}") };
    let refuse = |why: &str| Err(format!("{shown} {why}, like https://kubernetes.example.com:6443"));
    let Ok(url) = text.parse::<http::Uri>() else { return refuse("is no URL") };
    if url.scheme_str() != Some("https") {
        return refuse("has to begin with https://");
    }
    let Some(authority) = url.authority() else { return refuse("names no host") };
    if authority.as_str().contains('@') {
        return refuse("must not contain credentials");
    }
    if url.query().is_some() || text.contains('#') {
        return refuse("must not have a query or fragment");
    }
    Ok(text.trim_end_matches('/').to_owned())
}

pub(crate) fn read_certificates(path: &std::path::Path) -> Result<String, String> {
    let pem = read_small(path).map_err(|error| error.to_string())?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    if certificates.map_or(0, |found| found.len()) == 0 {
        return Err("no certificate in it".to_owned());
    }
    if pem.contains("PRIVATE KEY") {
        return Err("it holds a private key, and its content goes into manifests".to_owned());
    }
    Ok(pem)
}

fn printable_id(id: &str) -> bool {
    (1..=256).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// `90s`, `15m`, `24h`, `7d`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return None,
    };
    Some(Duration::from_secs(number.checked_mul(seconds)?))
}

#[cfg(test)]
mod tests;
