//! From what a hub saw to the status of a `ManagedCluster`. Pure; time is an argument.
//!
//! The rule for times: `lastTransitionTime` moves only when a condition's status does, as Kubernetes demands
//! (api-conventions, "Typical status properties"). What is not known is `Unknown`, never the last good news; what
//! the agent said last stays where it describes the cluster, and says as of when it is.
//!
//! docs/objects.md lists every condition with all its reasons; a test keeps it so.

use std::time::Duration;

use api::cluster::{
    CONDITION_AGENT, CONDITION_API_SERVER, CONDITION_CONFLICT, CONDITION_CREDENTIALS, CONDITION_POLICY,
    CONDITION_READY, CONDITION_REGISTERED, CONDITION_TUNNEL, ManagedClusterStatus, PolicyStatus,
    TunnelStatus,
};
use api::report::AgentReport;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use self::Reason::{
    APIServerNotReady, APIServerUnreachable, AgentTooNew, AgentTooOld, Approved, Closed, Configured,
    Connected, Default as DefaultPolicy, Expired, Expiring, ImpersonationFailed, Invalid, NeverConnected,
    NoReport, NotConnected, NotReported, OneAgent, OneMinorApart, Reachable, Ready, SameVersion, SecondAgent,
    ShutOut, UnknownVersion, Unreachable, Valid,
};
use super::super::words;

words! {
    /// Why a condition is as it is.
    pub enum Reason {
        Approved, ShutOut,
        Connected, NotConnected, NeverConnected,
        Reachable, Unreachable, NoReport,
        Valid, Expiring, Expired, NotReported,
        SameVersion, OneMinorApart, AgentTooOld, AgentTooNew, UnknownVersion,
        Default, Configured, Closed, Invalid,
        OneAgent, SecondAgent,
        Ready, APIServerUnreachable, APIServerNotReady, ImpersonationFailed,
    }
}

/// The conditions that the hub writes, in their order.
const OURS: [&str; 8] = [
    CONDITION_READY,
    CONDITION_REGISTERED,
    CONDITION_TUNNEL,
    CONDITION_API_SERVER,
    CONDITION_CREDENTIALS,
    CONDITION_AGENT,
    CONDITION_POLICY,
    CONDITION_CONFLICT,
];

/// Two agents with one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflicting {
    /// The one that serves the cluster.
    pub serving: String,
    /// The one that was turned away.
    pub refused: String,
}

/// An agent's credential, as far as the hub knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CredentialLife {
    /// When it ends.
    pub expires: Timestamp,
    /// From when on it should have been renewed.
    pub warn_from: Timestamp,
}

/// What is known of a cluster, tunnel or not.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    /// Of the object that is judged.
    pub generation: Option<i64>,
    /// Its name.
    pub name: &'a str,
    /// The key that a person let in.
    pub key: &'a str,
    /// A person has shut it out.
    pub denied: bool,
    /// Its agent's credential.
    pub credential: Option<CredentialLife>,
    /// This replica.
    pub hub: &'a str,
    /// The release of this replica.
    pub hub_version: &'a str,
}

/// What a replica of the hub saw of a cluster.
#[derive(Debug, Clone)]
pub enum Facts<'a> {
    /// A tunnel is open here.
    Live {
        /// Its name in the logs of both sides.
        tunnel: &'a str,
        /// Since when.
        since: Timestamp,
        /// How long an empty request takes, if it was measured.
        rtt: Option<Duration>,
        /// As the agent said at the beginning.
        agent_version: &'a str,
        /// What it says of its cluster, or why it does not.
        report: Result<&'a AgentReport, &'a str>,
        /// Another agent with the same identity tries to connect.
        conflict: Option<Conflicting>,
    },
    /// No replica has a tunnel, as far as this one can tell.
    Lost {
        /// Since when; `None` if there never was one.
        since: Option<Timestamp>,
    },
}

/// The status that follows from the one before and from the facts.
pub fn status_of(
    previous: &ManagedClusterStatus,
    known: &Known<'_>,
    facts: &Facts<'_>,
    now: Timestamp,
) -> ManagedClusterStatus {
    let mut status = previous.clone();
    let time = |at: Timestamp| Time(whole_second(at));
    status.use_socket = true;
    if let Some(credential) = known.credential {
        status.credential_expiration_time = Some(time(credential.expires));
    }
    match facts {
        Facts::Live { tunnel, since, rtt, agent_version, report, .. } => {
            status.last_observed_time = Some(time(now));
            (*agent_version).clone_into(&mut status.agent_version);
            status.tunnel = Some(TunnelStatus {
                id: (*tunnel).to_owned(),
                hub: known.hub.to_owned(),
                since: Some(time(*since)),
                rtt: rtt.map(milliseconds).unwrap_or_default(),
            });
            match report {
                Ok(report) => take_report(&mut status, report, time(now)),
                Err(_) => forget_how_it_does(&mut status),
            }
        }
        Facts::Lost { .. } => {
            status.tunnel = None;
            forget_how_it_does(&mut status);
        }
    }
    status.conditions = conditions(&previous.conditions, known, facts, now);
    status
}

/// What the cluster is stays; how it does is not known any more. What its owner and its agent decide may have changed
/// meanwhile: it is as of when they last said so.
fn forget_how_it_does(status: &mut ManagedClusterStatus) {
    (status.healthz, status.livez, status.readyz) = (false, false, false);
    status.api_server_rtt.clear();
    let said = status.last_report_time.as_ref().or(status.last_observed_time.as_ref());
    let said = said.map_or_else(|| "unknown".to_owned(), |time| rfc3339(time.0));
    let old = status.policy.as_mut().map(|policy| &mut policy.as_of);
    let old = old.into_iter().chain(status.impersonation.as_mut().map(|how| &mut how.as_of));
    old.filter(|as_of| as_of.is_empty()).for_each(|as_of| as_of.clone_from(&said));
}

fn take_report(status: &mut ManagedClusterStatus, report: &AgentReport, now: Time) {
    status.last_report_time = Some(now);
    (status.healthz, status.livez, status.readyz) = (report.healthz, report.livez, report.readyz);
    let rtt = report.api_server_rtt_milliseconds;
    status.api_server_rtt = rtt.map(|rtt| format!("{rtt}ms")).unwrap_or_default();
    status.policy.clone_from(&report.policy);
    status.impersonation.clone_from(&report.impersonation);
    if !report.kubernetes_version.is_empty() {
        status.k8s_version.clone_from(&report.kubernetes_version);
        status.platform.clone_from(&report.platform);
        status.provider.clone_from(&report.provider);
        let nodes = &report.nodes;
        // The numbers are the child's: they may be absurd, they may not overflow.
        let all = nodes.ready_nodes.saturating_add(nodes.not_ready_nodes).saturating_add(nodes.unknown_nodes);
        status.nodes = format!("{}/{all}", nodes.ready_nodes);
        status.node_statistics = nodes.clone();
        status.pod_statistics = report.pods;
        status.capacity.clone_from(&report.capacity);
        status.allocatable.clone_from(&report.allocatable);
    }
}

/// Whether nothing changed but what is another number each time: that is written with the next heartbeat.
pub fn same_but_measured(old: &ManagedClusterStatus, new: &ManagedClusterStatus) -> bool {
    let mut old = old.clone();
    old.last_observed_time.clone_from(&new.last_observed_time);
    old.last_report_time.clone_from(&new.last_report_time);
    old.api_server_rtt.clone_from(&new.api_server_rtt);
    old.pod_statistics = new.pod_statistics;
    if let (Some(old), Some(new)) = (&mut old.tunnel, &new.tunnel) {
        old.rtt.clone_from(&new.rtt);
    }
    old == *new
}

/// What is found about one type of condition.
#[derive(Debug, Clone)]
struct Finding {
    type_: &'static str,
    status: &'static str,
    reason: Reason,
    message: String,
}

impl Finding {
    fn new(type_: &'static str, status: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self { type_, status, reason, message: message.into() }
    }
}

/// The conditions, in a fixed order; those that others wrote are kept.
fn conditions(
    previous: &[Condition],
    known: &Known<'_>,
    facts: &Facts<'_>,
    now: Timestamp,
) -> Vec<Condition> {
    let findings = findings(known, facts, now);
    let mut all: Vec<Condition> = Vec::with_capacity(findings.len());
    for Finding { type_, status, reason, message } in findings {
        let before = previous.iter().find(|condition| condition.type_ == type_);
        let since = match before {
            Some(before) if before.status == status => before.last_transition_time.clone(),
            _ => Time(whole_second(now)),
        };
        all.push(Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.as_str().to_owned(),
            message,
            last_transition_time: since,
            observed_generation: known.generation,
        });
    }
    all.extend(previous.iter().filter(|condition| !OURS.contains(&condition.type_.as_str())).cloned());
    all
}

fn findings(known: &Known<'_>, facts: &Facts<'_>, now: Timestamp) -> Vec<Finding> {
    let registered = registered(known);
    let credentials = credentials(known, facts, now);
    let (tunnel, api_server, agent, policy, conflict, trouble) = match facts {
        Facts::Live { tunnel, since, report, conflict, agent_version, .. } => {
            let connected = Finding::new(
                CONDITION_TUNNEL,
                "True",
                Connected,
                format!("tunnel {tunnel} to hub {} since {}", known.hub, rfc3339(*since)),
            );
            let (api_server, trouble) = judge(*report);
            let policy = policy_in_force(report.ok().map(|report| report.policy.as_ref()));
            let agent = agent_up_to_date(agent_version, known);
            (connected, api_server, agent, policy, one_agent(conflict.as_ref()), trouble)
        }
        Facts::Lost { since } => {
            let (reason, message) = lost(*since, known);
            let unknown = |type_, message: &str| Finding::new(type_, "Unknown", NotConnected, message);
            let without = "no agent is connected; see TunnelConnected";
            (
                Finding::new(CONDITION_TUNNEL, "False", reason, message.clone()),
                unknown(CONDITION_API_SERVER, "cannot be asked without a tunnel; see TunnelConnected"),
                unknown(CONDITION_AGENT, without),
                unknown(CONDITION_POLICY, without),
                unknown(CONDITION_CONFLICT, without),
                Some(("False", reason, message)),
            )
        }
    };
    let ready = match trouble {
        _ if known.denied => Finding::new(CONDITION_READY, "False", ShutOut, registered.message.clone()),
        Some((status, reason, message)) => Finding::new(CONDITION_READY, status, reason, message),
        None => {
            let concerns = concerns(facts, &[&credentials, &agent, &policy, &conflict]);
            let message = format!("the tunnel is up and the cluster's API server answers{concerns}");
            Finding::new(CONDITION_READY, "True", Ready, message)
        }
    };
    vec![ready, registered, tunnel, api_server, credentials, agent, policy, conflict]
}

/// What a person should see to although requests get through.
fn concerns(facts: &Facts<'_>, parts: &[&Finding]) -> String {
    let concern = |part: &&&Finding| {
        let bad = if part.type_ == CONDITION_CONFLICT { "True" } else { "False" };
        part.status == bad || matches!(part.reason, Expiring | Closed)
    };
    let mut all: Vec<String> = parts
        .iter()
        .filter(concern)
        .map(|part| format!("{} ({})", part.type_, part.reason.as_str()))
        .collect();
    if let Facts::Live { report: Ok(report), .. } = facts
        && let Some(how) = report.impersonation.as_ref().filter(|how| !how.warnings.is_empty())
    {
        let count = how.warnings.len();
        all.push(format!("{count} warning(s) about its agent's rights in status.impersonation"));
    }
    if all.is_empty() { String::new() } else { format!("; look at {}", all.join(", ")) }
}

fn registered(known: &Known<'_>) -> Finding {
    if known.denied {
        let message = format!(
            "a person has shut the cluster out (spec.denied); to let it in: kubectl towline approve {}",
            known.name
        );
        return Finding::new(CONDITION_REGISTERED, "False", ShutOut, message);
    }
    let message = match known.key {
        "" => "a person let it in".to_owned(),
        key => format!("a person let the agent with key {key} in"),
    };
    Finding::new(CONDITION_REGISTERED, "True", Approved, message)
}

fn lost(since: Option<Timestamp>, known: &Known<'_>) -> (Reason, String) {
    match since {
        _ if known.denied => (ShutOut, registered(known).message),
        Some(since) => (
            NotConnected,
            format!(
                "no tunnel since {}, says hub {}; look at its agent: kubectl -n clusternet-system logs deploy/clusternet-agent",
                rfc3339(since),
                known.hub
            ),
        ),
        None => (
            NeverConnected,
            "waiting for the agent's first connection; if it does not come: kubectl -n clusternet-system logs deploy/clusternet-agent"
                .to_owned(),
        ),
    }
}

/// False means that the agent cannot come back by itself once its tunnel ends.
fn credentials(known: &Known<'_>, facts: &Facts<'_>, now: Timestamp) -> Finding {
    let (status, reason, message) = match known.credential {
        Some(credential) => {
            let until = rfc3339(credential.expires);
            let invite = format!("kubectl towline register {}", known.name);
            if credential.expires <= now {
                let message = format!(
                    "the agent's credential ended at {until}: once it is not connected it cannot come back by itself; invite it again under the same name: {invite}"
                );
                ("False", Expired, message)
            } else if credential.warn_from <= now {
                let what = match facts {
                    Facts::Live { .. } => {
                        "it should have been renewed by now; the hub's log says why it was not".to_owned()
                    }
                    Facts::Lost { .. } => {
                        format!("if the agent does not connect before, invite it again: {invite}")
                    }
                };
                ("True", Expiring, format!("the agent's credential ends at {until}; {what}"))
            } else {
                ("True", Valid, format!("until {until}; it is renewed through the tunnel long before"))
            }
        }
        None if matches!(facts, Facts::Lost { since: None }) => {
            ("Unknown", NeverConnected, "the agent gets its credential when it comes".to_owned())
        }
        None => (
            "Unknown",
            NotReported,
            "this agent does not say when its credential ends; the hub renews it at the next chance"
                .to_owned(),
        ),
    };
    Finding::new(CONDITION_CREDENTIALS, status, reason, message)
}

/// The rule for versions: the same major version, and minor versions at most one apart, in either direction.
fn agent_up_to_date(agent: &str, known: &Known<'_>) -> Finding {
    let hub = known.hub_version;
    let both = format!("agent {agent}, hub {hub}");
    let again = format!("apply a new manifest in the cluster: kubectl towline register {}", known.name);
    let (status, reason, message) = match (version(agent), version(hub)) {
        (Some(theirs), Some(ours)) if theirs == ours => ("True", SameVersion, both),
        (Some(theirs), Some(ours)) if theirs.0 == ours.0 && theirs.1.abs_diff(ours.1) == 1 => {
            ("True", OneMinorApart, both)
        }
        (Some(theirs), Some(ours)) if theirs < ours => {
            ("False", AgentTooOld, format!("{both}: more than one minor version apart; {again}"))
        }
        (Some(_), Some(_)) => {
            ("False", AgentTooNew, format!("{both}: more than one minor version apart; update the hub"))
        }
        _ => ("Unknown", UnknownVersion, format!("{both}: no version that can be compared; {again}")),
    };
    Finding::new(CONDITION_AGENT, status, reason, message)
}

/// Major and minor.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn one_agent(conflict: Option<&Conflicting>) -> Finding {
    let Some(conflict) = conflict else {
        return Finding::new(
            CONDITION_CONFLICT,
            "False",
            OneAgent,
            "one agent serves this cluster".to_owned(),
        );
    };
    let message = format!(
        "agent {} serves this cluster and agent {} was turned away: was the cluster cloned? re-register one of them",
        conflict.serving, conflict.refused
    );
    Finding::new(CONDITION_CONFLICT, "True", SecondAgent, message)
}

/// What the agent says of its owner's policy. False means that what the owner wrote last does not hold.
fn policy_in_force(policy: Option<Option<&PolicyStatus>>) -> Finding {
    let (status, reason, message) = match policy {
        None => ("Unknown", NoReport, "the agent does not say how its cluster is".to_owned()),
        Some(None) => ("Unknown", NotReported, "this agent knows no policy; update it".to_owned()),
        Some(Some(policy)) if !policy.error.is_empty() => {
            ("False", Invalid, format!("{}; in force: {}", policy.error, policy.summary))
        }
        Some(Some(policy)) if policy.closed => ("True", Closed, policy.summary.clone()),
        Some(Some(policy)) if policy.source == "default" => ("True", DefaultPolicy, policy.summary.clone()),
        Some(Some(policy)) => ("True", Configured, policy.summary.clone()),
    };
    Finding::new(CONDITION_POLICY, status, reason, message)
}

/// What a report says of the child's API server, and what keeps requests from getting through, if something does.
fn judge(report: Result<&AgentReport, &str>) -> (Finding, Option<(&'static str, Reason, String)>) {
    match report {
        Err(error) => {
            let message = format!("the agent does not say how its cluster is: {error}");
            let unknown = Finding::new(CONDITION_API_SERVER, "Unknown", NoReport, message.clone());
            (unknown, Some(("Unknown", NoReport, message)))
        }
        Ok(report) if !report.api_server_error.is_empty() || report.kubernetes_version.is_empty() => {
            let message = format!("the agent does not reach its API server: {}", report.api_server_error);
            let down = Finding::new(CONDITION_API_SERVER, "False", Unreachable, message.clone());
            (down, Some(("False", APIServerUnreachable, message)))
        }
        Ok(report) => {
            let message = format!("Kubernetes {}", report.kubernetes_version);
            let trouble = if !report.impersonation_error.is_empty() {
                let message = format!("the agent cannot act as callers: {}", report.impersonation_error);
                Some(("False", ImpersonationFailed, message))
            } else if !report.readyz {
                let message = "the cluster's API server says that it is not ready; where it is: kubectl get --raw '/readyz?verbose'";
                Some(("False", APIServerNotReady, message.to_owned()))
            } else {
                None
            };
            (Finding::new(CONDITION_API_SERVER, "True", Reachable, message), trouble)
        }
    }
}

/// As Kubernetes writes durations, rounded up to a millisecond.
fn milliseconds(took: Duration) -> String {
    format!("{}ms", took.as_micros().div_ceil(1000).max(1))
}

fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The API's times have no fractions; with them, what is written would never equal what is read.
fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

#[cfg(test)]
mod tests;
