//! Flags, environment and file to [`Settings`]. The only place that reads the environment. All mistakes are
//! reported at once, so that nobody has to find them one restart at a time. No secret is a flag: argv is
//! readable by every process of the node.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use api::secret::Secret;
use clap::{Args, Parser, Subcommand};
use http::{Method, Uri};
use runtime::config::{Effective, Source};
use runtime::logs::Format;
use runtime::traces;

use crate::limits::MAX_TUNNELS;
use crate::policy::check::{How, Question};
use crate::policy::request_info::Verb;

mod line;

pub use line::{PROGRAM, Task, USAGE, again, read};

const EXIT_CODES: &str = "Exit codes: 0 it was told to stop, or the check found nothing; 1 the agent failed, and may be started again; 64 the command line or the configuration is wrong.";

/// Keys whose change in the file takes effect while the agent runs. Policy, registration, token and CA are files or
/// objects of their own, and are read again anyway.
pub const LIVE: &[&str] = &["log-filter"];

/// What can stand on the command line.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "towline-agent",
    version,
    about = "Connects this cluster to the Towline hub of a parent cluster.",
    args_conflicts_with_subcommands = true,
    after_help = EXIT_CODES
)]
pub struct CommandLine {
    /// What to do instead of connecting.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Of the agent itself.
    #[command(flatten)]
    pub flags: Flags,
}

/// What is done without connecting to anything.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Checks the configuration and ends: takes the same flags, environment and file, and connects to nothing
    #[command(after_help = EXIT_CODES)]
    Check(Flags),
    /// Works with a policy: what the owner of this cluster admits out of the tunnel
    #[command(subcommand)]
    Policy(PolicyCommand),
}

/// What can be done with a policy.
#[derive(Debug, Clone, Subcommand)]
pub enum PolicyCommand {
    /// Tells what a policy means, or what is wrong with it, before it is applied; asks no cluster
    ///
    /// Exit codes: 0 the policy is good, and admits the request if there is one; 1 the policy is invalid, or cannot be
    /// read; 2 wrong usage; 3 the policy is good, and refuses the request.
    Check(CheckFlags),
}

/// What is to be checked.
#[derive(Debug, Clone, Args)]
pub struct CheckFlags {
    /// A policy, or a manifest of the ConfigMap clusternet-agent-policy; - for standard input
    pub file: PathBuf,
    /// Path and query of a request, such as /api/v1/namespaces/default/pods/web
    #[arg(requires = "user", requires = "how")]
    pub path: Option<String>,
    /// Who would ask, by the name that the child sees
    #[arg(long = "as", id = "user", value_name = "USER", requires = "path")]
    pub user: Option<String>,
    /// A group of theirs; clusternet:admin, clusternet:edit and clusternet:view are the hub's roles
    #[arg(long = "as-group", value_name = "GROUP", requires = "path")]
    pub groups: Vec<String>,
    /// get, list, watch, create, update, patch, delete or deletecollection; exec and port-forward are create
    #[arg(long, group = "how", requires = "path", value_parser = verb)]
    pub verb: Option<Verb>,
    /// A method of HTTP instead
    #[arg(long, group = "how", requires = "path", value_parser = method)]
    pub method: Option<Method>,
}

fn verb(text: &str) -> Result<Verb, String> {
    let known = || Verb::ALL.map(Verb::as_str).join(", ");
    Verb::ALL.into_iter().find(|verb| verb.as_str() == text).ok_or_else(|| format!("none of {}", known()))
}

fn method(text: &str) -> Result<Method, String> {
    text.to_ascii_uppercase().parse().map_err(|_| "no method of HTTP".to_owned())
}

impl CheckFlags {
    /// The request, if there is one.
    pub fn question(&self) -> Option<Question> {
        let how = match (self.verb, &self.method) {
            (Some(verb), _) => How::Verb(verb),
            (None, Some(method)) => How::Method(method.clone()),
            (None, None) => return None,
        };
        let (user, path) = (self.user.clone()?, self.path.clone()?);
        Some(Question { user, groups: self.groups.clone(), how, path })
    }
}

/// What an agent is started with; every flag has an environment variable.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// File with keys that are named like these flags, YAML. Flags and environment come before what it says
    #[arg(long, env = "TOWLINE_CONFIG")]
    config: Option<PathBuf>,
    /// Print what is in force and where each value came from, and end
    #[arg(long)]
    pub print_config: bool,
    /// Directory with the mounted Secret clusternet-agent-cluster-registration
    #[arg(long, env = "TOWLINE_REGISTRATION_DIR", default_value = "/etc/towline/registration")]
    pub registration_dir: PathBuf,
    /// Where /livez, /readyz and /metrics are served
    #[arg(long, env = "TOWLINE_ADMIN_LISTEN", default_value = "0.0.0.0:8080")]
    pub admin_listen: String,
    /// The child's kube-apiserver, https://host:port; the one of this pod's cluster if absent
    #[arg(long, env = "TOWLINE_KUBE_APISERVER")]
    pub kube_apiserver: Option<String>,
    /// CA of the child's kube-apiserver; read again for each new connection
    #[arg(
        long,
        env = "TOWLINE_KUBE_CA_FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    )]
    pub kube_ca_file: PathBuf,
    /// Token of the account clusternet-agent; read again for each use
    #[arg(
        long,
        env = "TOWLINE_TOKEN_FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    pub token_file: PathBuf,
    /// Name of this agent among those of its cluster; the pod's name
    #[arg(long, env = "HOSTNAME", default_value = "agent")]
    pub instance: String,
    /// Tunnels to the hub, each to another replica of it, if it has several; 1 or 2
    #[arg(long, env = "TOWLINE_TUNNELS", default_value_t = MAX_TUNNELS.to_string())]
    pub tunnels: String,
    /// Threads; 1 gives the shortest latency
    #[arg(long, env = "TOWLINE_THREADS", default_value = "1")]
    pub threads: String,
    /// Where traces go.
    #[command(flatten)]
    pub tracing: traces::Flags,
    /// text or json
    #[arg(long, env = "TOWLINE_LOG_FORMAT", default_value = "text")]
    pub log_format: String,
    /// What is logged: info, debug, agent=debug,h2=warn
    #[arg(long, env = "TOWLINE_LOG_FILTER", default_value = "info")]
    pub log_filter: String,
}

/// What is read from the environment and is no flag.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// KUBERNETES_SERVICE_HOST
    pub service_host: Option<String>,
    /// KUBERNETES_SERVICE_PORT
    pub service_port: Option<String>,
    /// HTTPS_PROXY or https_proxy; may hold a password
    pub https_proxy: Option<Secret>,
    /// NO_PROXY or no_proxy
    pub no_proxy: Option<String>,
}

impl Environment {
    /// Reads it. Empty is absent.
    #[expect(clippy::disallowed_methods, reason = "the environment is read here alone")]
    pub fn read() -> Self {
        let of = |names: &[&str]| {
            names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
        };
        Self {
            service_host: of(&["KUBERNETES_SERVICE_HOST"]),
            service_port: of(&["KUBERNETES_SERVICE_PORT_HTTPS", "KUBERNETES_SERVICE_PORT"]),
            https_proxy: of(&["HTTPS_PROXY", "https_proxy"]).map(Secret::from),
            no_proxy: of(&["NO_PROXY", "no_proxy"]),
        }
    }
}

/// An https address without anything but host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name, or an IP address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    /// Reads `https://host[:port]`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (address, path) = parse_https(text)?;
        if !path.is_empty() {
            return Err(format!("{text:?} has a path; host and port alone are wanted"));
        }
        Ok(address)
    }

    /// As it stands in a URL or a Host header.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Reads `https://host[:port][/path]`: the address, and the path without a slash at its end.
///
/// # Errors
/// What is wrong with it.
pub fn parse_https(text: &str) -> Result<(Address, String), String> {
    // Whoever writes a password into it shall not find it in a log.
    if text.contains('@') {
        return Err("a user or password in the URL is not allowed".to_owned());
    }
    let uri: Uri = text.trim().parse().map_err(|error| format!("{text:?} is no URL: {error}"))?;
    if uri.scheme_str() != Some("https") {
        return Err(format!("{text:?} has to begin with https://"));
    }
    let authority = uri.authority().ok_or_else(|| format!("{text:?} has no host"))?;
    if uri.query().is_some() {
        return Err(format!("{text:?} has a query"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() {
        return Err(format!("{text:?} has no host"));
    }
    let port = authority.port_u16().unwrap_or(443);
    Ok((Address { host, port }, uri.path().trim_end_matches('/').to_owned()))
}

/// Proxy for the way to the parent. `Debug` shows no password.
#[derive(Debug, Clone, Default)]
pub struct Proxy {
    /// `http://[user:password@]host:port`
    pub https: Option<Secret>,
    /// Names, domains and networks that are reached without it.
    pub no: String,
}

/// What the agent runs with. Everything in it is valid.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The mounted registration Secret.
    pub registration_dir: PathBuf,
    /// Probes and metrics.
    pub admin_listen: SocketAddr,
    /// The child's kube-apiserver: the only thing that a request from the tunnel can reach.
    pub apiserver: Address,
    /// Its CA.
    pub ca_file: PathBuf,
    /// The agent's own account.
    pub token_file: PathBuf,
    /// This process among others of the same cluster.
    pub instance: String,
    /// Tunnels at most.
    pub tunnels: usize,
    /// Threads of the runtime.
    pub threads: usize,
    /// How the parent is reached.
    pub proxy: Proxy,
    /// Where traces go, if anywhere.
    pub tracing: Option<traces::Settings>,
    /// Form of the log.
    pub log_format: Format,
    /// Content of the log.
    pub log_filter: String,
    /// All of it as it can be shown.
    pub effective: Effective,
    /// Where it comes from; `None` for one that was put together by hand.
    pub source: Option<Source>,
}

/// All that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "towline-agent cannot start, {} in its configuration:", count(self.0.len()))?;
        self.0.iter().try_for_each(|mistake| writeln!(f, "  - {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

fn count(mistakes: usize) -> String {
    if mistakes == 1 { "1 mistake".to_owned() } else { format!("{mistakes} mistakes") }
}

impl Settings {
    /// Checks flags and environment together.
    ///
    /// # Errors
    /// All mistakes that there are.
    pub fn new(flags: Flags, environment: &Environment) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let mut note = |what: &str, why: String| mistakes.push(format!("{what}: {why}"));

        let admin_listen = flags.admin_listen.parse::<SocketAddr>();
        if let Err(error) = &admin_listen {
            note(
                "--admin-listen",
                format!("{:?} is no address like 0.0.0.0:8080: {error}", flags.admin_listen),
            );
        }
        let apiserver = apiserver(flags.kube_apiserver.as_deref(), environment);
        if let Err(why) = &apiserver {
            note("--kube-apiserver", why.clone());
        }
        let log_format = flags.log_format.parse::<Format>();
        if let Err(why) = log_format {
            note("--log-format", format!("{why}, not {:?}", flags.log_format));
        }
        let threads = flags.threads.parse().ok().filter(|threads| (1..=64).contains(threads));
        if threads.is_none() {
            note("--threads", format!("{:?} is no number between 1 and 64", flags.threads));
        }
        if let Err(why) = runtime::logs::check_filter(&flags.log_filter) {
            note("--log-filter", why);
        }
        let tunnels = flags.tunnels.parse().ok().filter(|tunnels| (1..=MAX_TUNNELS).contains(tunnels));
        if tunnels.is_none() {
            note("--tunnels", format!("{:?} is no number between 1 and {MAX_TUNNELS}", flags.tunnels));
        }
        // One half of the limit in the hello: a random part is added.
        let printable = flags.instance.bytes().all(|byte| byte.is_ascii_graphic());
        if flags.instance.is_empty() || flags.instance.len() > 128 || !printable {
            note("--instance", "has to be 1 to 128 printable ASCII characters".to_owned());
        }
        if let Some(proxy) = &environment.https_proxy
            && let Err(why) = check_proxy(proxy.reveal())
        {
            note("HTTPS_PROXY", why.to_owned());
        }
        let tracing = flags.tracing.check(&mut mistakes);
        match (admin_listen, apiserver, log_format, threads.zip(tunnels), mistakes.is_empty()) {
            (Ok(admin_listen), Ok(apiserver), Ok(log_format), Some((threads, tunnels)), true) => Ok(Self {
                registration_dir: flags.registration_dir,
                admin_listen,
                apiserver,
                ca_file: flags.kube_ca_file,
                token_file: flags.token_file,
                // Random, so that a clone of the whole cluster is not taken for this process.
                instance: format!("{}-{:08x}", flags.instance, rand::random::<u32>()),
                tunnels,
                threads,
                proxy: Proxy {
                    https: environment.https_proxy.clone(),
                    no: environment.no_proxy.clone().unwrap_or_default(),
                },
                tracing,
                log_format,
                log_filter: flags.log_filter,
                effective: Effective::default(),
                source: None,
            }),
            _ => Err(Mistakes(mistakes)),
        }
    }
}

fn apiserver(flag: Option<&str>, environment: &Environment) -> Result<Address, String> {
    if let Some(flag) = flag {
        return Address::parse(flag);
    }
    let Some(host) = environment.service_host.clone() else {
        return Err("is needed outside of a cluster (KUBERNETES_SERVICE_HOST is not set)".to_owned());
    };
    let port = environment.service_port.as_deref().unwrap_or("443");
    let port = port.parse().map_err(|_| format!("KUBERNETES_SERVICE_PORT {port:?} is no port"))?;
    Ok(Address { host, port })
}

/// Never shows the value, which may hold a password.
fn check_proxy(text: &str) -> Result<(), &'static str> {
    let uri: Uri = text.trim().parse().map_err(|_| "is no URL like http://proxy.example.com:3128")?;
    match uri.scheme_str() {
        None | Some("http") if uri.authority().is_some() => Ok(()),
        None | Some("http") => Err("has no host"),
        Some("https") => {
            Err("a proxy is reached by http://; what passes through it is TLS between agent and parent")
        }
        Some(_) => Err("only http:// proxies (CONNECT) are supported"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(arguments: &[&str]) -> Flags {
        let line = CommandLine::try_parse_from([&["towline-agent"], arguments].concat()).unwrap();
        assert!(line.command.is_none());
        line.flags
    }

    #[test]
    fn a_policy_is_checked_with_a_whole_question_or_none() {
        let parse =
            |line: &str| CommandLine::try_parse_from(["towline-agent"].into_iter().chain(line.split(' ')));
        let question = |line: &str| match parse(line).unwrap().command {
            Some(Command::Policy(PolicyCommand::Check(flags))) => flags.question(),
            Some(Command::Check(_)) | None => panic!("{line} starts the agent"),
        };
        assert_eq!(question("policy check -"), None);
        assert_eq!(
            question(
                "policy check a.yaml --as eve --as-group dev --as-group ops --verb delete /api/v1/nodes/a"
            ),
            Some(Question {
                user: "eve".to_owned(),
                groups: vec!["dev".to_owned(), "ops".to_owned()],
                how: How::Verb(Verb::Delete),
                path: "/api/v1/nodes/a".to_owned(),
            })
        );
        let by_method = question("policy check - --as eve --method get /version").unwrap();
        assert_eq!(by_method.how, How::Method(Method::GET));
        for half in [
            "policy",
            "policy check",
            "policy check - /version",
            "policy check - --as eve",
            "policy check - --as eve /version",
            "policy check - --verb get /version",
            "policy check - --as eve --verb remove /version",
            "policy check - --as eve --verb get --method GET /version",
            "--threads=2 policy check -",
        ] {
            assert!(parse(half).is_err(), "{half}");
        }
    }

    #[test]
    fn help_of_the_command_tells_its_exit_codes() {
        let asked = CommandLine::try_parse_from(["towline-agent", "policy", "check", "--help"]).unwrap_err();
        assert!(asked.to_string().contains("3 the policy is good, and refuses"), "{asked}");
        let plain = CommandLine::try_parse_from(["towline-agent", "--help"]).unwrap_err().to_string();
        assert!(plain.starts_with("Connects this cluster to the Towline hub"), "{plain}");
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let flags = flags(&[
            "--admin-listen=nowhere",
            "--kube-apiserver=http://10.0.0.1",
            "--log-format=xml",
            "--threads=0",
            "--tunnels=3",
            "--instance=a b",
        ]);
        let environment = Environment {
            https_proxy: Some(Secret::from("https://user:hunter2@proxy:3128".to_owned())),
            ..Environment::default()
        };
        let mistakes = Settings::new(flags, &environment).unwrap_err();
        assert_eq!(mistakes.0.len(), 7, "{mistakes}");
        let text = mistakes.to_string();
        for name in [
            "--admin-listen",
            "--kube-apiserver",
            "--log-format",
            "--threads",
            "--tunnels",
            "--instance",
            "HTTPS_PROXY",
        ] {
            assert!(text.contains(name), "{text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_pod_needs_no_flag() {
        let environment = Environment {
            service_host: Some("fd00::1".to_owned()),
            service_port: Some("6443".to_owned()),
            ..Environment::default()
        };
        let settings = Settings::new(flags(&["--instance=pod"]), &environment).unwrap();
        assert_eq!(settings.apiserver.authority(), "[fd00::1]:6443");
        assert_eq!(settings.admin_listen.port(), 8080);
        assert!(settings.instance.starts_with("pod-"));
    }

    #[test]
    fn an_address_is_https_and_names_no_user() {
        assert_eq!(
            parse_https("https://hub.example.com/k8s/parent/").unwrap(),
            (Address { host: "hub.example.com".to_owned(), port: 443 }, "/k8s/parent".to_owned())
        );
        assert_eq!(Address::parse("https://[fd00::1]:6443").unwrap().host, "fd00::1");
        for bad in ["http://a", "a:443", "https://u:p@a", "https://a?x=1", "https:///x", "", "https://a b"] {
            assert!(parse_https(bad).is_err(), "{bad}");
        }
        assert!(Address::parse("https://a/b").is_err());
    }

    #[test]
    fn no_mistake_shows_a_password() {
        for bad in [
            "https://user:hunter2@a",
            "http://user:hunter2@a",
            "https://user:hunter2@a/b",
            "https://user:hunter2@a b",
            "user:hunter2@a",
        ] {
            let why = Address::parse(bad).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn settings_show_no_proxy_password() {
        let environment = Environment {
            service_host: Some("10.96.0.1".to_owned()),
            https_proxy: Some(Secret::from("http://user:hunter2@proxy:3128".to_owned())),
            ..Environment::default()
        };
        let settings = Settings::new(flags(&["--instance=pod"]), &environment).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
