//! From what a hub saw to the status of a `ManagedCluster`. Pure; time is an argument.
//!
//! The rule for times: `lastTransitionTime` moves only when a condition's status does, as Kubernetes demands
//! (api-conventions, "Typical status properties"). What is not known is `Unknown`, never the last good news.

use api::cluster::{
    CONDITION_API_SERVER, CONDITION_CONFLICT, CONDITION_POLICY, CONDITION_READY, CONDITION_TUNNEL,
    ManagedClusterStatus, PolicyStatus,
};
use api::report::AgentReport;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Two agents with one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflicting {
    /// The one that serves the cluster.
    pub serving: String,
    /// The one that was turned away.
    pub refused: String,
}

/// What a replica of the hub saw of a cluster.
#[derive(Debug, Clone)]
pub enum Facts<'a> {
    /// A tunnel is open here.
    Live {
        /// Its name in the logs of both sides.
        tunnel: &'a str,
        /// This replica.
        hub: &'a str,
        /// Since when.
        since: Timestamp,
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
        /// Because a person shut it out.
        denied: bool,
        /// This replica.
        hub: &'a str,
    },
}

/// The status that follows from the one before and from the facts.
pub fn status_of(previous: &ManagedClusterStatus, facts: &Facts<'_>, now: Timestamp) -> ManagedClusterStatus {
    let mut status = previous.clone();
    status.use_socket = true;
    match facts {
        Facts::Live { agent_version, report, .. } => {
            status.last_observed_time = Some(Time(whole_second(now)));
            (*agent_version).clone_into(&mut status.agent_version);
            match report {
                Ok(report) => take_report(&mut status, report),
                Err(_) => (status.healthz, status.livez, status.readyz) = (false, false, false),
            }
        }
        // What the cluster is stays; how it does is not known any more.
        Facts::Lost { .. } => (status.healthz, status.livez, status.readyz) = (false, false, false),
    }
    status.conditions = conditions(&previous.conditions, facts, now);
    status
}

fn take_report(status: &mut ManagedClusterStatus, report: &AgentReport) {
    (status.healthz, status.livez, status.readyz) = (report.healthz, report.livez, report.readyz);
    status.policy.clone_from(&report.policy);
    status.impersonation.clone_from(&report.impersonation);
    if !report.kubernetes_version.is_empty() {
        status.k8s_version.clone_from(&report.kubernetes_version);
        status.platform.clone_from(&report.platform);
        let nodes = &report.nodes;
        // The numbers are the child's: they may be absurd, they may not overflow.
        let all = nodes.ready_nodes.saturating_add(nodes.not_ready_nodes).saturating_add(nodes.unknown_nodes);
        status.nodes = format!("{}/{all}", nodes.ready_nodes);
        status.node_statistics = nodes.clone();
        status.capacity.clone_from(&report.capacity);
        status.allocatable.clone_from(&report.allocatable);
    }
}

/// One finding: type, status, reason, message.
type Finding = (&'static str, &'static str, &'static str, String);

/// The conditions, in a fixed order; those that others wrote are kept.
pub fn conditions(previous: &[Condition], facts: &Facts<'_>, now: Timestamp) -> Vec<Condition> {
    let findings = findings(facts);
    let mut all: Vec<Condition> = Vec::with_capacity(findings.len());
    for (type_, status, reason, message) in findings {
        let before = previous.iter().find(|condition| condition.type_ == type_);
        let since = match before {
            Some(before) if before.status == status => before.last_transition_time.clone(),
            _ => Time(whole_second(now)),
        };
        all.push(Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: since,
            observed_generation: None,
        });
    }
    let ours =
        [CONDITION_READY, CONDITION_TUNNEL, CONDITION_API_SERVER, CONDITION_POLICY, CONDITION_CONFLICT];
    all.extend(previous.iter().filter(|condition| !ours.contains(&condition.type_.as_str())).cloned());
    all
}

fn findings(facts: &Facts<'_>) -> Vec<Finding> {
    match facts {
        Facts::Live { tunnel, hub, since, report, conflict, .. } => {
            let connected = (
                CONDITION_TUNNEL,
                "True",
                "Connected",
                format!("tunnel {tunnel} to hub {hub} since {}", rfc3339(*since)),
            );
            let (api_server, ready) = judge(*report);
            let conflict = match conflict {
                None => (CONDITION_CONFLICT, "False", "OneAgent", "one agent serves this cluster".to_owned()),
                Some(conflict) => (
                    CONDITION_CONFLICT,
                    "True",
                    "SecondAgent",
                    format!(
                        "agent {} serves this cluster and agent {} was turned away: was the cluster cloned? re-register one of them",
                        conflict.serving, conflict.refused
                    ),
                ),
            };
            let policy = report.ok().map(|report| report.policy.as_ref());
            vec![ready, connected, api_server, policy_in_force(policy), conflict]
        }
        Facts::Lost { since, denied, hub } => {
            let (reason, message) = match since {
                _ if *denied => ("ShutOut", "shut out by a person: spec.denied is true".to_owned()),
                Some(since) => (
                    "NotConnected",
                    format!(
                        "no tunnel since {}, says hub {hub}; look at its agent: kubectl -n clusternet-system logs deploy/clusternet-agent",
                        rfc3339(*since)
                    ),
                ),
                None => ("NeverConnected", "waiting for the agent's first connection".to_owned()),
            };
            vec![
                (CONDITION_READY, "False", reason, message.clone()),
                (CONDITION_TUNNEL, "False", reason, message),
                (
                    CONDITION_API_SERVER,
                    "Unknown",
                    "NotConnected",
                    "cannot be asked without a tunnel".to_owned(),
                ),
                (CONDITION_POLICY, "Unknown", "NotConnected", "no agent is connected".to_owned()),
                (CONDITION_CONFLICT, "Unknown", "NotConnected", "no agent is connected".to_owned()),
            ]
        }
    }
}

/// What the agent says of its owner's policy. False means that what the owner wrote last does not hold.
fn policy_in_force(policy: Option<Option<&PolicyStatus>>) -> Finding {
    let (status, reason, message) = match policy {
        None => ("Unknown", "NoReport", "the agent does not say how its cluster is".to_owned()),
        Some(None) => ("Unknown", "NotReported", "this agent knows no policy; update it".to_owned()),
        Some(Some(policy)) if !policy.error.is_empty() => {
            ("False", "Invalid", format!("{}; in force: {}", policy.error, policy.summary))
        }
        Some(Some(policy)) if policy.closed => ("True", "Closed", policy.summary.clone()),
        Some(Some(policy)) if policy.source == "default" => ("True", "Default", policy.summary.clone()),
        Some(Some(policy)) => ("True", "Configured", policy.summary.clone()),
    };
    (CONDITION_POLICY, status, reason, message)
}

/// What a report says of the child's API server and of the cluster as a whole.
fn judge(report: Result<&AgentReport, &str>) -> (Finding, Finding) {
    match report {
        Err(error) => {
            let message = format!("the agent does not say how its cluster is: {error}");
            (
                (CONDITION_API_SERVER, "Unknown", "NoReport", message.clone()),
                (CONDITION_READY, "Unknown", "NoReport", message),
            )
        }
        Ok(report) if !report.api_server_error.is_empty() || report.kubernetes_version.is_empty() => {
            let message = format!("the agent does not reach its API server: {}", report.api_server_error);
            (
                (CONDITION_API_SERVER, "False", "Unreachable", message.clone()),
                (CONDITION_READY, "False", "APIServerUnreachable", message),
            )
        }
        Ok(report) => {
            let api_server = (
                CONDITION_API_SERVER,
                "True",
                "Reachable",
                format!("Kubernetes {}", report.kubernetes_version),
            );
            let ready = if !report.impersonation_error.is_empty() {
                (
                    "False",
                    "ImpersonationFailed",
                    format!("the agent cannot act as callers: {}", report.impersonation_error),
                )
            } else if !report.readyz {
                (
                    "False",
                    "APIServerNotReady",
                    "the cluster's API server says that it is not ready".to_owned(),
                )
            } else {
                let warnings = report.impersonation.as_ref().map_or(0, |how| how.warnings.len());
                let look = match warnings {
                    0 => String::new(),
                    count => format!("; {count} warning(s) about its agent's rights in status.impersonation"),
                };
                ("True", "Ready", format!("the tunnel is up and the cluster's API server answers{look}"))
            };
            (api_server, (CONDITION_READY, ready.0, ready.1, ready.2))
        }
    }
}

fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The API's times have no fractions; with them, what is written would never equal what is read.
fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use api::cluster::{ImpersonationStatus, NodeStatistics};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_900_000_000 + second).unwrap()
    }

    fn good() -> AgentReport {
        AgentReport {
            kubernetes_version: "v1.36.0".to_owned(),
            healthz: true,
            livez: true,
            readyz: true,
            nodes: NodeStatistics { ready_nodes: 3, not_ready_nodes: 1, unknown_nodes: 0 },
            capacity: [("cpu".to_owned(), "8".to_owned())].into(),
            ..AgentReport::default()
        }
    }

    fn live<'a>(report: Result<&'a AgentReport, &'a str>) -> Facts<'a> {
        Facts::Live { tunnel: "t1", hub: "h1", since: at(0), agent_version: "0.1.0", report, conflict: None }
    }

    fn seen<'a>(status: &'a ManagedClusterStatus, type_: &str) -> (&'a str, &'a str, Timestamp) {
        let condition = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
        (&condition.status, &condition.reason, condition.last_transition_time.0)
    }

    #[test]
    fn ready_is_the_truth_about_tunnel_and_cluster() {
        let down =
            AgentReport { api_server_error: "connection refused".to_owned(), ..AgentReport::default() };
        let not_ready = AgentReport { readyz: false, ..good() };
        let no_rights = AgentReport { impersonation_error: "may not impersonate users".to_owned(), ..good() };
        let good = good();
        let lost = Facts::Lost { since: Some(at(0)), denied: false, hub: "h1" };
        let never = Facts::Lost { since: None, denied: false, hub: "h1" };
        let shut_out = Facts::Lost { since: Some(at(0)), denied: true, hub: "h1" };
        for (facts, ready, tunnel, api_server) in [
            (live(Ok(&good)), ("True", "Ready"), "True", "True"),
            (live(Ok(&not_ready)), ("False", "APIServerNotReady"), "True", "True"),
            (live(Ok(&no_rights)), ("False", "ImpersonationFailed"), "True", "True"),
            (live(Ok(&down)), ("False", "APIServerUnreachable"), "True", "False"),
            (live(Err("timeout")), ("Unknown", "NoReport"), "True", "Unknown"),
            (lost, ("False", "NotConnected"), "False", "Unknown"),
            (never, ("False", "NeverConnected"), "False", "Unknown"),
            (shut_out, ("False", "ShutOut"), "False", "Unknown"),
        ] {
            let status = status_of(&ManagedClusterStatus::default(), &facts, at(9));
            assert_eq!((seen(&status, "Ready").0, seen(&status, "Ready").1), ready);
            assert_eq!(seen(&status, "TunnelConnected").0, tunnel);
            assert_eq!(seen(&status, "APIServerReachable").0, api_server);
        }
    }

    #[test]
    fn a_transition_time_moves_only_with_the_status() {
        let good = good();
        let first = status_of(&ManagedClusterStatus::default(), &live(Ok(&good)), at(10));
        let second = status_of(&first, &live(Ok(&good)), at(20));
        assert_eq!(seen(&second, "Ready").2, at(10));
        assert_eq!(second.last_observed_time.as_ref().unwrap().0, at(20));
        let lost = status_of(&second, &Facts::Lost { since: Some(at(25)), denied: false, hub: "h1" }, at(30));
        assert_eq!(seen(&lost, "Ready").2, at(30));
        assert_eq!(lost.last_observed_time, second.last_observed_time, "nobody heard from it");
    }

    #[test]
    fn a_lost_cluster_keeps_what_it_is_and_loses_how_it_does() {
        let good = good();
        let before = status_of(&ManagedClusterStatus::default(), &live(Ok(&good)), at(10));
        assert_eq!((before.nodes.as_str(), before.k8s_version.as_str()), ("3/4", "v1.36.0"));
        let lost = status_of(&before, &Facts::Lost { since: None, denied: false, hub: "h1" }, at(30));
        assert_eq!((lost.nodes.as_str(), lost.k8s_version.as_str()), ("3/4", "v1.36.0"));
        assert!(!lost.healthz && !lost.livez && !lost.readyz);
    }

    #[test]
    fn how_the_agent_acts_as_callers_is_shown_with_what_to_look_at() {
        let how = |warnings: &[&str]| {
            let warnings = warnings.iter().map(|&warning| warning.to_owned()).collect();
            let how = ImpersonationStatus { mode: "constrained (KEP-5284)".to_owned(), warnings };
            let report = AgentReport { impersonation: Some(how), ..good() };
            let status = status_of(&ManagedClusterStatus::default(), &live(Ok(&report)), at(1));
            assert_eq!(status.impersonation, report.impersonation);
            let ready = status.conditions.into_iter().find(|one| one.type_ == CONDITION_READY).unwrap();
            assert_eq!(ready.status, "True");
            ready.message
        };
        assert!(!how(&[]).contains("warning"));
        assert!(how(&["it may read Secrets"]).contains("1 warning(s)"));
        let gone = status_of(
            &ManagedClusterStatus {
                impersonation: Some(ImpersonationStatus::default()),
                ..ManagedClusterStatus::default()
            },
            &live(Ok(&good())),
            at(1),
        );
        assert_eq!(gone.impersonation, None);
    }

    #[test]
    fn the_owners_policy_is_shown_with_what_is_wrong_about_it() {
        let said = |policy: Option<PolicyStatus>| {
            let report = AgentReport { policy, ..good() };
            let status = status_of(&ManagedClusterStatus::default(), &live(Ok(&report)), at(2));
            assert_eq!(status.policy, report.policy);
            let (status, reason, _) = seen(&status, CONDITION_POLICY);
            (status.to_owned(), reason.to_owned())
        };
        let found = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
        let policy = PolicyStatus { source: "configmap".to_owned(), ..PolicyStatus::default() };
        assert_eq!(said(None), found("Unknown", "NotReported"));
        assert_eq!(said(Some(policy.clone())), found("True", "Configured"));
        let default = PolicyStatus { source: "default".to_owned(), ..policy.clone() };
        assert_eq!(said(Some(default)), found("True", "Default"));
        assert_eq!(said(Some(PolicyStatus { closed: true, ..policy.clone() })), found("True", "Closed"));
        let invalid = PolicyStatus { error: "line 3: preset".to_owned(), closed: true, ..policy };
        assert_eq!(said(Some(invalid)), found("False", "Invalid"));
        let lost = Facts::Lost { since: None, denied: false, hub: "h1" };
        assert_eq!(
            seen(&status_of(&ManagedClusterStatus::default(), &lost, at(3)), CONDITION_POLICY).0,
            "Unknown"
        );
    }

    #[test]
    fn conditions_of_others_are_kept() {
        let other = Condition {
            type_: "Backup".to_owned(),
            status: "True".to_owned(),
            reason: "Done".to_owned(),
            message: String::new(),
            last_transition_time: Time(at(1)),
            observed_generation: None,
        };
        let good = good();
        let all = conditions(std::slice::from_ref(&other), &live(Ok(&good)), at(2));
        assert_eq!((all.len(), all.last()), (6, Some(&other)));
    }

    #[test]
    fn absurd_numbers_do_no_harm() {
        let nodes = NodeStatistics { ready_nodes: u32::MAX, not_ready_nodes: u32::MAX, unknown_nodes: 1 };
        let report = AgentReport { nodes, ..good() };
        let status = status_of(&ManagedClusterStatus::default(), &live(Ok(&report)), at(2));
        assert_eq!(status.nodes, format!("{0}/{0}", u32::MAX));
    }
}
