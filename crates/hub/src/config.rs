//! Flags and environment (`TOWLINE_*`) of the hub, checked once and all at once: whoever starts it learns of
//! every mistake in one go. Nothing else in this crate reads the environment.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use api::secret::Secret;
use clap::Parser;
use runtime::logs::Format;
use runtime::tls::ServingCert;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::audit;
use crate::limits::{self, Limits};

/// Longest time that any invitation may be valid; one that lives longer is forgotten in somebody's notes.
const MAX_INVITATION_TTL: Duration = Duration::from_hours(7 * 24);
/// Shortest: `TokenRequest` gives no token of less than ten minutes (apiserver `authentication/validation`).
const MIN_INVITATION_TTL: Duration = Duration::from_mins(10);
/// Largest file with a CA, a certificate or a key: a ConfigMap or Secret takes no more.
const MAX_PEM_FILE: u64 = 1024 * 1024;
/// Longest that anybody may set for tokens that the hub issues: a year, for tools that nobody can renew.
const MAX_CREDENTIAL_TTL: Duration = Duration::from_hours(366 * 24);
/// Longest name of a replica that has peers: what a pod's name can have, with room for what stands around it in a DNS
/// name (RFC 1035 section 2.3.4: 253 characters).
const MAX_INSTANCE: usize = 180;
/// Longest pause between SIGTERM and the first closed door, and longest grace after it. A pod's whole
/// grace period is 30 s unless somebody changed it.
const MAX_SHUTDOWN: Duration = Duration::from_mins(10);

/// The command line as it was typed.
#[derive(Debug, Clone, Parser)]
#[command(name = "towline-hub", version, about = "The hub of a multi-cluster access plane")]
pub struct Config {
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
    #[arg(long, env = "TOWLINE_AGENTS_USE_GATEWAY")]
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
    #[arg(long, env = "TOWLINE_MAP_SERVICE_ACCOUNTS")]
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
    /// How a log line looks.
    pub log_format: Format,
    /// What is logged.
    pub log_filter: String,
}

/// How other replicas reach this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddresses {
    /// Where to listen for them.
    pub listen: SocketAddr,
    /// Where they find that.
    pub address: SocketAddr,
}

/// How the gateway is set up.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Certificate chain and key; the hub makes its own if there are none.
    pub files: Option<(PathBuf, PathBuf)>,
    /// Below it, each cluster has a host of its own; lower-case.
    pub domain: Option<String>,
    /// How people and tools reach it.
    pub url: Option<String>,
    /// CA of its certificate, unless every tool trusts that anyway.
    pub ca_pem: Option<String>,
    /// Whether agents are told of it.
    pub for_agents: bool,
    /// The hash of the key that the hub has made for it; see [`Gateway::pin`].
    pub own_pin: Option<String>,
}

impl Gateway {
    /// Base64 of the SHA-256 of its certificate's key, for whoever does not know its CA; nothing if every tool trusts that.
    pub fn pin(&self) -> Option<String> {
        self.ca_pem.as_ref()?;
        match &self.files {
            // As it is now: whoever replaces it may have another key.
            Some((cert, _)) => crate::certificates::pin(&read_small(cert).ok()?),
            None => self.own_pin.clone(),
        }
    }

    /// The names that a certificate of the hub's own making has to be for.
    pub fn names(&self) -> Vec<String> {
        let host = self.url.as_deref().and_then(host_of);
        let below = self.domain.as_ref().map(|domain| format!("*.{domain}"));
        host.into_iter().chain(self.domain.clone()).chain(below).collect()
    }
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
            log_format: Format::Text,
            log_filter: "info".to_owned(),
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
            log_filter: self.log_filter,
            ..Settings::default()
        };
        match self.listen.parse() {
            Ok(address) => settings.listen = address,
            Err(_) => {
                wrong.push(format!("--listen {:?} is no address with a port, like 0.0.0.0:8443", self.listen))
            }
        }
        settings.gateway = gateway(
            self.gateway_listen.filter(|given| !given.is_empty()),
            (self.gateway_cert_file, self.gateway_key_file, self.gateway_ca_file),
            self.gateway_url.filter(|given| !given.is_empty()),
            self.gateway_domain.filter(|given| !given.is_empty()),
            self.agents_use_gateway,
            &mut wrong,
        );
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
        if let Some(path) = self.parent_ca_file {
            match read_certificates(&path) {
                Ok(_) => settings.parent_ca_file = Some(path),
                Err(why) => wrong.push(format!("--parent-ca-file {}: {why}", path.display())),
            }
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
        for (flag, given, range, place) in [
            (
                "--max-invitation-ttl",
                &self.max_invitation_ttl,
                (MIN_INVITATION_TTL, MAX_INVITATION_TTL),
                &mut settings.max_invitation_ttl,
            ),
            (
                "--max-credential-ttl",
                &self.max_credential_ttl,
                (MIN_INVITATION_TTL, MAX_CREDENTIAL_TTL),
                &mut settings.max_credential_ttl,
            ),
            (
                "--shutdown-delay",
                &self.shutdown_delay,
                (Duration::ZERO, MAX_SHUTDOWN),
                &mut settings.shutdown_delay,
            ),
            (
                "--shutdown-grace",
                &self.shutdown_grace,
                (Duration::ZERO, MAX_SHUTDOWN),
                &mut settings.shutdown_grace,
            ),
        ] {
            match duration(given).filter(|given| (range.0..=range.1).contains(given)) {
                Some(given) => *place = given,
                None => wrong.push(format!(
                    "{flag} {given:?} is no time between {:?} and {:?}, like 90s or 2h",
                    range.0, range.1
                )),
            }
        }
        if settings.agent_image.is_empty() || settings.agent_image.contains(char::is_whitespace) {
            wrong.push(format!("--agent-image {:?} is no image reference", settings.agent_image));
        }
        if wrong.is_empty() { Ok(settings) } else { Err(Mistakes(wrong)) }
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

fn gateway(
    listen: Option<String>,
    (cert_file, key_file, ca_file): (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>),
    url: Option<String>,
    domain: Option<String>,
    for_agents: bool,
    wrong: &mut Vec<String>,
) -> Option<Gateway> {
    let Some(listen) = listen else {
        let files = [cert_file, key_file, ca_file].iter().any(Option::is_some);
        if files || url.is_some() || domain.is_some() || for_agents {
            wrong.push(
                "--gateway-* or --agents-use-gateway are set, but there is no --gateway-listen".to_owned(),
            );
        }
        return None;
    };
    let address = listen.parse();
    if address.is_err() {
        wrong.push(format!("--gateway-listen {listen:?} is no address with a port, like 0.0.0.0:8444"));
    }
    let url = url.and_then(|url| match https_address(&url) {
        Ok(url) if url.matches('/').count() == 2 => {
            let host = host_of(&url).unwrap_or_default();
            if host.parse::<IpAddr>().is_err() && !is_domain(&host) {
                wrong.push(format!(
                    "--gateway-url {url:?}: {host:?} is no host that a certificate can be for"
                ));
            }
            Some(url)
        }
        Ok(url) => {
            wrong.push(format!("--gateway-url {url:?} has a path; paths below it are those of clusters"));
            None
        }
        Err(why) => {
            wrong.push(format!("--gateway-url {why}"));
            None
        }
    });
    let names_ca = ca_file.is_some();
    let ca_pem = ca_file.and_then(|path| match read_certificates(&path) {
        Ok(pem) => Some(pem),
        Err(why) => {
            wrong.push(format!("--gateway-ca-file {}: {why}", path.display()));
            None
        }
    });
    let domain = domain.map(|domain| domain.trim_end_matches('.').to_ascii_lowercase());
    if let Some(domain) = domain.as_ref().filter(|domain| !is_domain(domain)) {
        wrong.push(format!("--gateway-domain {domain:?} is no domain, like k8s.example.com"));
    }
    if let (Some(domain), Some(host)) = (&domain, url.as_deref().and_then(host_of))
        && host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.'))
    {
        wrong.push(format!(
            "--gateway-url: {host} is in --gateway-domain {domain}, where each host is a cluster's; take a host beside it"
        ));
    }
    let has_url = url.is_some();
    let files = match (cert_file, key_file) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => {
            wrong.push(
                "--gateway-cert-file and --gateway-key-file are needed both, or neither of them".to_owned(),
            );
            return None;
        }
    };
    let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
    let gateway = Gateway {
        listen: address.unwrap_or(unspecified),
        files,
        domain,
        url,
        ca_pem,
        for_agents,
        own_pin: None,
    };
    if for_agents && !has_url {
        wrong.push("--agents-use-gateway needs --gateway-url: that is where they go".to_owned());
    }
    if for_agents && gateway.files.is_some() && !names_ca {
        wrong.push("--agents-use-gateway needs --gateway-ca-file: an agent believes one CA alone".to_owned());
    }
    match &gateway.files {
        Some(files) => {
            let usable = read_pair(files).and_then(|(chain, key)| Ok(ServingCert::new(&chain, key.reveal())?));
            if let Err(error) = usable {
                wrong.push(format!("--gateway-cert-file, --gateway-key-file: {error:#}"));
            }
        }
        None if names_ca => wrong.push(
            "--gateway-ca-file is the CA of --gateway-cert-file; without that the hub makes both itself".to_owned(),
        ),
        None if gateway.names().is_empty() && !has_url => wrong.push(
            "--gateway-listen needs --gateway-cert-file and --gateway-key-file, or --gateway-url or --gateway-domain: the names for which the hub makes a certificate"
                .to_owned(),
        ),
        None => {}
    }
    Some(gateway)
}

/// The host of a URL, as it stands in a certificate.
fn host_of(url: &str) -> Option<String> {
    let url: http::Uri = url.parse().ok()?;
    let host = url.host()?.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    // An address has more than one spelling.
    Some(host.parse::<IpAddr>().map_or(host, |address| address.to_string()))
}

/// Labels with dots between them (RFC 1123 section 2.1), no longer than a name with 60 characters before it allows.
fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 190 && text.split('.').all(label)
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

/// Reads a regular file of at most [`MAX_PEM_FILE`]. A pipe would keep the hub from starting for ever.
fn read_small(path: &std::path::Path) -> std::io::Result<String> {
    let not = |why: &str| Err(std::io::Error::other(why.to_owned()));
    // Asked before it is opened, since opening a pipe waits for its other end.
    if !std::fs::metadata(path)?.is_file() {
        return not("it is no regular file");
    }
    let file = std::fs::File::open(path)?;
    // In one piece: a buffer that grows leaves copies behind, and this may be a key.
    let length = usize::try_from(file.metadata()?.len().min(MAX_PEM_FILE)).unwrap_or_default();
    let mut text = String::with_capacity(length + 1);
    file.take(MAX_PEM_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_PEM_FILE {
        return not("it is larger than 1 MiB; certificates and keys take a few KiB");
    }
    Ok(text)
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
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Config {
        Config::try_parse_from([&["towline-hub"], args].concat()).unwrap()
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let Mistakes(wrong) = config(&[
            "--listen=nowhere",
            "--public-url=http://example.com",
            "--intranet-url=https://user:pw@example.com",
            "--parent-ca-file=/does/not/exist",
            "--max-invitation-ttl=1s",
            "--log-format=xml",
        ])
        .check()
        .unwrap_err();
        assert_eq!(wrong.len(), 6, "{wrong:#?}");
    }

    #[test]
    fn what_cannot_be_listened_on_is_told() {
        for listen in ["0.0.0.0:99999", "[::]", "0.0.0.0", "/run/hub.sock", "", "localhost:8443"] {
            let Mistakes(wrong) = config(&[&format!("--listen={listen}")]).check().unwrap_err();
            assert!(wrong.len() == 1 && wrong[0].contains("--listen"), "{wrong:#?}");
        }
    }

    #[test]
    fn no_mistake_shows_a_password() {
        for url in [
            "https://user:hunter2@example.com",
            "http://user:hunter2@example.com",
            "https://user:hunter2@example.com?a=b",
            "https://user:hunter2@example.com:99999",
            "https://user:hunter2@exa mple.com",
            "user:hunter2@example.com",
            "https://user:hunter2@",
        ] {
            let Mistakes(wrong) = config(&[&format!("--public-url={url}")]).check().unwrap_err();
            assert!(wrong.len() == 1 && !wrong[0].contains("hunter2"), "{wrong:#?}");
        }
    }

    #[test]
    fn a_ca_file_that_is_none_is_named_at_once_and_not_shown() {
        let folder = std::env::temp_dir().join(format!("towline-hub-ca-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let pipe = folder.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let certificate = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        let file = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).unwrap();
            folder.join(name)
        };
        let large = certificate.repeat(1024 * 1024 / certificate.len() + 1);
        for path in [
            folder.clone(),
            pipe,
            "/dev/zero".into(),
            file("large", &large),
            file("empty", ""),
            file("text", "hunter2"),
            file("key", "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n"),
        ] {
            let Mistakes(wrong) =
                config(&[&format!("--parent-ca-file={}", path.display())]).check().unwrap_err();
            let named = wrong[0].contains(&path.display().to_string());
            assert!(wrong.len() == 1 && named && !wrong[0].contains("hunter2"), "{wrong:#?}");
        }
        assert_eq!(read_certificates(&file("good", &certificate)).unwrap(), certificate);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn defaults_are_right() {
        let settings = config(&["--public-url=https://k8s.example.com:6443/"]).check().unwrap();
        assert_eq!(settings.public_url.as_deref(), Some("https://k8s.example.com:6443"));
        assert_eq!(settings.listen.port(), 8443);
        assert!(!settings.hub_id.is_empty());
    }

    #[test]
    fn a_gateway_needs_a_certificate_that_can_serve_and_a_domain_that_is_one() {
        let wrong = |args: &[&str]| config(args).check().unwrap_err().0.join("; ");
        let files = ["--gateway-cert-file=/does/not/exist", "--gateway-key-file=/does/not/exist"];
        assert!(wrong(&files).contains("there is no --gateway-listen"));
        assert!(wrong(&["--gateway-listen=0.0.0.0:8444"]).contains("needs --gateway-cert-file"));
        assert!(wrong(&["--gateway-listen=0.0.0.0:8444", files[0]]).contains("are needed both"));
        let all = wrong(
            &[&files[..], &["--gateway-listen=x", "--gateway-domain=a..b", "--gateway-url=https://a_b"]]
                .concat(),
        );
        for told in
            ["--gateway-listen \"x\"", "--gateway-domain \"a..b\"", "/does/not/exist", "\"a_b\" is no host"]
        {
            assert!(all.contains(told), "{told}: {all}");
        }

        let directory = std::env::temp_dir().join(format!("towline-gateway-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (one, two) = (pair(), pair());
        let (cert, key) = (directory.join("tls.crt"), directory.join("tls.key"));
        std::fs::write(&cert, one.cert.pem()).unwrap();
        std::fs::write(&key, two.signing_key.serialize_pem()).unwrap();
        let args = [
            "--gateway-listen=127.0.0.1:0".to_owned(),
            format!("--gateway-cert-file={}", cert.display()),
            format!("--gateway-key-file={}", key.display()),
            "--gateway-domain=K8s.Example.com.".to_owned(),
        ];
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let mismatch = wrong(&args);
        std::fs::write(&key, one.signing_key.serialize_pem()).unwrap();
        let settings = config(&args).check();
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(
            mismatch.contains("does not fit the certificate") && !mismatch.contains("PRIVATE"),
            "{mismatch}"
        );
        assert_eq!(settings.unwrap().gateway.unwrap().domain.as_deref(), Some("k8s.example.com"));
    }

    #[test]
    fn without_files_the_hub_makes_a_certificate_for_the_names_that_it_is_told() {
        let names = |args: &[&str]| {
            let settings = config(&[&["--gateway-listen=0.0.0.0:8444"], args].concat()).check();
            settings.map(|settings| settings.gateway.unwrap().names()).map_err(|wrong| wrong.0.join("; "))
        };
        let named = |all: &[&str]| Ok(all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(&["--gateway-url=https://Hub.example.com:8444"]), named(&["hub.example.com"]));
        assert_eq!(names(&["--gateway-url=https://192.0.2.1"]), named(&["192.0.2.1"]));
        assert_eq!(names(&["--gateway-url=https://[2001:DB8:0::1]:8444"]), named(&["2001:db8::1"]));
        assert_eq!(
            names(&["--gateway-url=https://hub", "--gateway-domain=k8s.example.com"]),
            named(&["hub", "k8s.example.com", "*.k8s.example.com"])
        );
        let certificate = std::env::temp_dir().join(format!("towline-gateway-ca-{}", std::process::id()));
        std::fs::write(&certificate, pair().cert.pem()).unwrap();
        let ca = format!("--gateway-ca-file={}", certificate.display());
        let refused = names(&["--gateway-url=https://hub", &ca]);
        std::fs::remove_file(&certificate).unwrap();
        assert!(refused.unwrap_err().contains("makes both itself"));
        let among =
            names(&["--gateway-url=https://Hub.k8s.example.com:8444", "--gateway-domain=k8s.example.com"]);
        assert!(among.unwrap_err().contains("each host is a cluster's"));
        assert!(
            names(&["--gateway-url=https://k8s.example.com", "--gateway-domain=k8s.example.com"]).is_ok()
        );
        let lost = names(&["--gateway-domain=k8s.example.com", "--agents-use-gateway"]);
        assert!(lost.unwrap_err().contains("--agents-use-gateway needs --gateway-url"));
    }

    #[test]
    fn a_key_file_is_read_as_far_as_a_key_can_be_long() {
        let path = std::env::temp_dir().join(format!("towline-gateway-key-{}", std::process::id()));
        std::fs::write(&path, "x".repeat(2 << 20)).unwrap();
        let read = read_pair(&(path.clone(), path.clone())).map(drop);
        std::fs::remove_file(&path).unwrap();
        assert!(format!("{:#}", read.unwrap_err()).contains("larger than 1 MiB"));
        assert!(read_pair(&("/dev/zero".into(), "/dev/zero".into())).is_err());
    }

    fn pair() -> rcgen::CertifiedKey<rcgen::KeyPair> {
        rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap()
    }

    #[test]
    fn a_replica_with_peers_says_where_it_is_and_has_a_name_that_can_be_certified() {
        let peers = |args: &[&str]| {
            let settings = config(&[&["--hub-id=hub-1"], args].concat()).check();
            settings.map(|settings| settings.peers).map_err(|wrong| wrong.0.join("; "))
        };
        assert_eq!(peers(&[]), Ok(None));
        for address in ["10.0.0.7:9000", "10.0.0.7", "fd00::7", "[fd00::7]:9000"] {
            let there = peers(&["--peer-listen=0.0.0.0:9000", &format!("--peer-address={address}")])
                .unwrap()
                .unwrap();
            assert_eq!((there.listen.port(), there.address.port()), (9000, 9000), "{address}");
        }
        assert!(peers(&["--peer-listen=0.0.0.0:9000"]).unwrap_err().contains("both"));
        for address in ["0.0.0.0", "pod", "10.0.0.7:0", "[::]:9000"] {
            let wrong =
                peers(&["--peer-listen=0.0.0.0:9000", &format!("--peer-address={address}")]).unwrap_err();
            assert!(wrong.contains("--peer-address"), "{wrong}");
        }
        for id in ["controllers", "Hub", "a_b", "-a", &"a.".repeat(100)] {
            let all = ["--peer-listen=0.0.0.0:9000", "--peer-address=10.0.0.7", &format!("--hub-id={id}")];
            assert!(config(&all).check().unwrap_err().0.join("; ").contains("--hub-id"), "{id}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, seconds) in [
            ("90s", Some(90)),
            ("2h", Some(7200)),
            ("7d", Some(604_800)),
            ("5", None),
            ("", None),
            ("h", None),
            ("99999999999999999999d", None),
        ] {
            assert_eq!(duration(text).map(|d| d.as_secs()), seconds, "{text}");
        }
    }
}
