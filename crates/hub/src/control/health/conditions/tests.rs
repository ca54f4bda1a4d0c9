//! Each fact has its condition, and each condition its place in docs/objects.md.

use std::collections::BTreeSet;

use api::cluster::{ImpersonationStatus, NodeStatistics, PodStatistics};

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
    let rtt = Some(Duration::from_micros(11_200));
    Facts::Live { tunnel: "t1", since: at(0), rtt, agent_version: "0.1.0", report, conflict: None }
}

const LOST: Facts<'static> = Facts::Lost { since: Some(Timestamp::UNIX_EPOCH) };
const NEVER: Facts<'static> = Facts::Lost { since: None };

fn known() -> Known<'static> {
    Known {
        generation: Some(3),
        name: "edge",
        key: "SHA256:k",
        denied: false,
        credential: Some(CredentialLife { expires: at(86_400), warn_from: at(64_800) }),
        hub: "h1",
        hub_version: "0.1.7",
    }
}

fn fresh(facts: &Facts<'_>, now: Timestamp) -> ManagedClusterStatus {
    status_of(&ManagedClusterStatus::default(), &known(), facts, now)
}

fn seen<'a>(status: &'a ManagedClusterStatus, type_: &str) -> (&'a str, &'a str, Timestamp) {
    let condition = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    (&condition.status, &condition.reason, condition.last_transition_time.0)
}

#[test]
fn ready_is_the_truth_about_tunnel_and_cluster() {
    let down = AgentReport { api_server_error: "connection refused".to_owned(), ..AgentReport::default() };
    let not_ready = AgentReport { readyz: false, ..good() };
    let no_rights = AgentReport { impersonation_error: "may not impersonate users".to_owned(), ..good() };
    let good = good();
    for (facts, denied, ready, tunnel, api_server) in [
        (live(Ok(&good)), false, ("True", "Ready"), "True", "True"),
        (live(Ok(&not_ready)), false, ("False", "APIServerNotReady"), "True", "True"),
        (live(Ok(&no_rights)), false, ("False", "ImpersonationFailed"), "True", "True"),
        (live(Ok(&down)), false, ("False", "APIServerUnreachable"), "True", "False"),
        (live(Err("timeout")), false, ("Unknown", "NoReport"), "True", "Unknown"),
        (LOST, false, ("False", "NotConnected"), "False", "Unknown"),
        (NEVER, false, ("False", "NeverConnected"), "False", "Unknown"),
        (LOST, true, ("False", "ShutOut"), "False", "Unknown"),
        (live(Ok(&good)), true, ("False", "ShutOut"), "True", "True"),
    ] {
        let known = Known { denied, ..known() };
        let status = status_of(&ManagedClusterStatus::default(), &known, &facts, at(9));
        assert_eq!((seen(&status, "Ready").0, seen(&status, "Ready").1), ready);
        assert_eq!(seen(&status, "TunnelConnected").0, tunnel);
        assert_eq!(seen(&status, "APIServerReachable").0, api_server);
    }
}

#[test]
fn a_transition_time_moves_only_with_the_status() {
    let good = good();
    let first = fresh(&live(Ok(&good)), at(10));
    let second = status_of(&first, &known(), &live(Ok(&good)), at(20));
    assert_eq!(seen(&second, "Ready").2, at(10));
    assert_eq!(second.last_observed_time.as_ref().unwrap().0, at(20));
    let lost = status_of(&second, &known(), &LOST, at(30));
    assert_eq!(seen(&lost, "Ready").2, at(30));
    assert_eq!(lost.last_observed_time, second.last_observed_time, "nobody heard from it");
}

#[test]
fn a_lost_cluster_keeps_what_it_is_and_loses_how_it_does() {
    let good = good();
    let before = fresh(&live(Ok(&good)), at(10));
    assert_eq!((before.nodes.as_str(), before.k8s_version.as_str()), ("3/4", "v1.36.0"));
    let lost = status_of(&before, &known(), &LOST, at(30));
    assert_eq!((lost.nodes.as_str(), lost.k8s_version.as_str()), ("3/4", "v1.36.0"));
    assert!(!lost.healthz && !lost.livez && !lost.readyz);
}

#[test]
fn how_the_agent_acts_as_callers_is_shown_with_what_to_look_at() {
    let how = |warnings: &[&str]| {
        let warnings = warnings.iter().map(|&warning| warning.to_owned()).collect();
        let how =
            ImpersonationStatus { mode: "constrained (KEP-5284)".to_owned(), warnings, as_of: String::new() };
        let report = AgentReport { impersonation: Some(how), ..good() };
        let status = fresh(&live(Ok(&report)), at(1));
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
        &known(),
        &live(Ok(&good())),
        at(1),
    );
    assert_eq!(gone.impersonation, None);
}

#[test]
fn the_owners_policy_is_shown_with_what_is_wrong_about_it() {
    let said = |policy: Option<PolicyStatus>| {
        let report = AgentReport { policy, ..good() };
        let status = fresh(&live(Ok(&report)), at(2));
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
    assert_eq!(seen(&fresh(&LOST, at(3)), CONDITION_POLICY).0, "Unknown");
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
    let all = conditions(std::slice::from_ref(&other), &known(), &live(Ok(&good)), at(2));
    assert_eq!((all.len(), all.last()), (9, Some(&other)));
}

#[test]
fn absurd_numbers_do_no_harm() {
    let nodes = NodeStatistics { ready_nodes: u32::MAX, not_ready_nodes: u32::MAX, unknown_nodes: 1 };
    let report = AgentReport { nodes, ..good() };
    let status = fresh(&live(Ok(&report)), at(2));
    assert_eq!(status.nodes, format!("{0}/{0}", u32::MAX));
}

fn condition(status: &ManagedClusterStatus, type_: &str) -> Condition {
    status.conditions.iter().find(|condition| condition.type_ == type_).unwrap().clone()
}

#[test]
fn every_condition_says_for_which_generation_and_what_to_do() {
    let down = AgentReport { api_server_error: "refused".to_owned(), ..AgentReport::default() };
    for facts in [live(Ok(&good())), live(Ok(&down)), live(Err("timeout")), LOST, NEVER] {
        for condition in fresh(&facts, at(5)).conditions {
            assert_eq!(condition.observed_generation, Some(3), "{condition:?}");
            assert!(!condition.message.is_empty() || condition.type_ == CONDITION_POLICY, "{condition:?}");
            assert!(condition.reason.chars().all(|letter| letter.is_ascii_alphanumeric()), "{condition:?}");
        }
    }
}

#[test]
fn a_credential_warns_before_it_ends_and_is_told_when_it_ended() {
    let found = |facts: &Facts<'_>, credential, now| {
        let known = Known { credential, ..known() };
        let condition = condition(
            &status_of(&ManagedClusterStatus::default(), &known, facts, now),
            CONDITION_CREDENTIALS,
        );
        (condition.status, condition.reason, condition.message)
    };
    let life = known().credential;
    for (facts, credential, now, status, reason, says) in [
        (live(Err("")), life, at(64_799), "True", "Valid", "renewed"),
        (live(Err("")), life, at(64_800), "True", "Expiring", "hub's log"),
        (LOST, life, at(64_800), "True", "Expiring", "kubectl towline register edge"),
        (LOST, life, at(86_399), "True", "Expiring", "2030"),
        (LOST, life, at(86_400), "False", "Expired", "kubectl towline register edge"),
        (live(Err("")), life, at(86_400), "False", "Expired", "cannot come back"),
        (live(Err("")), None, at(0), "Unknown", "NotReported", "next chance"),
        (NEVER, None, at(0), "Unknown", "NeverConnected", "when it comes"),
    ] {
        let found = found(&facts, credential, now);
        assert_eq!((found.0.as_str(), found.1.as_str()), (status, reason));
        assert!(found.2.contains(says), "{}", found.2);
    }
    let status = fresh(&live(Ok(&good())), at(1));
    assert_eq!(status.credential_expiration_time.unwrap().0, at(86_400));
}

#[test]
fn versions_may_be_one_minor_apart() {
    for (agent, hub, status, reason) in [
        ("0.1.0", "0.1.9", "True", "SameVersion"),
        ("v1.4.0-rc.1", "1.4.0", "True", "SameVersion"),
        ("1.3.9", "1.4.0", "True", "OneMinorApart"),
        ("1.5.0", "1.4.0", "True", "OneMinorApart"),
        ("1.2.9", "1.4.0", "False", "AgentTooOld"),
        ("1.9.0", "2.0.0", "False", "AgentTooOld"),
        ("1.6.0", "1.4.0", "False", "AgentTooNew"),
        ("2.0.0", "1.9.0", "False", "AgentTooNew"),
        ("dev", "1.4.0", "Unknown", "UnknownVersion"),
        ("", "1.4.0", "Unknown", "UnknownVersion"),
        ("1", "1.4.0", "Unknown", "UnknownVersion"),
    ] {
        let known = Known { hub_version: hub, ..known() };
        let found = agent_up_to_date(agent, &known);
        assert_eq!((found.status, found.reason.as_str()), (status, reason), "{agent} {hub}");
    }
}

#[test]
fn what_does_not_stop_requests_stands_in_readys_message() {
    let (good, conflict) = (good(), Conflicting { serving: "a".to_owned(), refused: "b".to_owned() });
    let closed = PolicyStatus { closed: true, ..PolicyStatus::default() };
    let closed = AgentReport { policy: Some(closed), ..good.clone() };
    let facts = Facts::Live {
        tunnel: "t1",
        since: at(0),
        rtt: None,
        agent_version: "0.9.0",
        report: Ok(&closed),
        conflict: Some(conflict),
    };
    let ready = condition(&fresh(&facts, at(64_800)), CONDITION_READY);
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("True", "Ready"));
    for concern in
        ["CredentialsValid (Expiring)", "AgentUpToDate (AgentTooNew)", "PolicyInForce (Closed)", "Conflict ("]
    {
        assert!(ready.message.contains(concern), "{concern}: {}", ready.message);
    }
    assert!(!condition(&fresh(&live(Ok(&good)), at(1)), CONDITION_READY).message.contains("look at"));
}

#[test]
fn what_an_agent_said_is_as_of_when_it_said_it() {
    let policy = PolicyStatus { source: "default".to_owned(), ..PolicyStatus::default() };
    let how = ImpersonationStatus { mode: "legacy".to_owned(), ..ImpersonationStatus::default() };
    let pods = Some(PodStatistics { running_pods: Some(3), total_pods: 4 });
    let rtt = Some(2);
    let report = AgentReport {
        policy: Some(policy),
        impersonation: Some(how),
        pods,
        api_server_rtt_milliseconds: rtt,
        provider: "kind".to_owned(),
        ..good()
    };
    let now = fresh(&live(Ok(&report)), at(10));
    assert_eq!((now.tunnel.as_ref().unwrap().rtt.as_str(), now.api_server_rtt.as_str()), ("12ms", "2ms"));
    assert_eq!((now.pod_statistics, now.provider.as_str()), (pods, "kind"));
    assert_eq!(now.policy.as_ref().unwrap().as_of, "");
    let said = rfc3339(at(10));
    for facts in [live(Err("timeout")), LOST] {
        let old = status_of(&now, &known(), &facts, at(20));
        assert_eq!(old.policy.as_ref().unwrap().as_of, said);
        assert_eq!(old.impersonation.as_ref().unwrap().as_of, said);
        assert_eq!(old.last_report_time.as_ref().unwrap().0, at(10));
        assert_eq!((old.api_server_rtt.as_str(), old.pod_statistics), ("", pods));
        let later = status_of(&old, &known(), &facts, at(90));
        assert_eq!(later.policy.as_ref().unwrap().as_of, said, "it grows no younger");
        let again = status_of(&old, &known(), &live(Ok(&report)), at(100));
        assert_eq!(again.policy.unwrap().as_of, "");
    }
    assert_eq!(status_of(&now, &known(), &LOST, at(20)).tunnel, None);
}

#[test]
fn what_is_measured_anew_each_time_is_no_change() {
    let report = |pods: u32, took| AgentReport {
        pods: Some(PodStatistics { running_pods: None, total_pods: pods }),
        api_server_rtt_milliseconds: Some(took),
        ..good()
    };
    let first = fresh(&live(Ok(&report(7, 1))), at(10));
    let (other, more) = (report(8, 2), AgentReport { capacity: [].into(), ..report(7, 1) });
    assert!(same_but_measured(&first, &status_of(&first, &known(), &live(Ok(&other)), at(25))));
    assert!(!same_but_measured(&first, &status_of(&first, &known(), &live(Ok(&more)), at(25))));
    assert!(!same_but_measured(&first, &status_of(&first, &known(), &LOST, at(25))));
}

/// Every condition, status and reason that can come about.
fn all_findings() -> BTreeSet<(String, String, String)> {
    let mut reports: Vec<Result<AgentReport, &str>> = vec![Err("timeout"), Ok(AgentReport::default())];
    let policy = |source: &str, closed, error: &str| PolicyStatus {
        source: source.to_owned(),
        closed,
        error: error.to_owned(),
        ..PolicyStatus::default()
    };
    for policy in [
        None,
        Some(policy("default", false, "")),
        Some(policy("configmap", false, "")),
        Some(policy("configmap", true, "")),
        Some(policy("configmap", true, "line 3")),
    ] {
        reports.push(Ok(AgentReport { policy, ..good() }));
    }
    reports.push(Ok(AgentReport { readyz: false, ..good() }));
    reports.push(Ok(AgentReport { impersonation_error: "no".to_owned(), ..good() }));
    let mut all_facts = vec![LOST, NEVER];
    for report in &reports {
        for agent_version in ["0.1.0", "0.2.0", "0.3.0", "dev"] {
            for conflict in [None, Some(Conflicting { serving: String::new(), refused: String::new() })] {
                let report = report.as_ref().map_err(|error| *error);
                all_facts.push(Facts::Live {
                    tunnel: "t",
                    since: at(0),
                    rtt: None,
                    agent_version,
                    report,
                    conflict,
                });
            }
        }
    }
    let mut found = BTreeSet::new();
    for facts in &all_facts {
        for (denied, credential, now, hub_version) in [
            (false, known().credential, at(0), "0.1.0"),
            (false, known().credential, at(70_000), "0.3.0"),
            (true, known().credential, at(90_000), "0.1.0"),
            (false, None, at(0), "0.1.0"),
        ] {
            let known = Known { denied, credential, hub_version, ..known() };
            let findings = findings(&known, facts, now);
            assert_eq!(findings.iter().map(|finding| finding.type_).collect::<Vec<_>>(), OURS);
            let text = |Finding { type_, status, reason, .. }: Finding| {
                (type_.to_owned(), status.to_owned(), reason.as_str().to_owned())
            };
            found.extend(findings.into_iter().map(text));
        }
    }
    found
}

#[test]
fn the_reference_lists_every_condition_with_every_reason_and_no_other() {
    let found = all_findings();
    let produced: BTreeSet<&str> = found.iter().map(|(_, _, reason)| reason.as_str()).collect();
    let defined: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(produced, defined, "the facts above bring about every reason");
    let rows = crate::control::events::reference_rows("## Conditions");
    let written: BTreeSet<_> =
        rows.into_iter().map(|row| (row[0].clone(), row[1].clone(), row[2].clone())).collect();
    let missing: Vec<_> = found.difference(&written).collect();
    let stale: Vec<_> = written.difference(&found).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "not in docs/objects.md: {missing:#?}; only there: {stale:#?}"
    );
}
