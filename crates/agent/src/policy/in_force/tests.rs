//! What is in force after each kind of reading, what ends an open request, and what is told of refusals.

use std::time::Duration;

use http::Method;

use super::*;

fn text(version: &str, rest: &str) -> Reading {
    let text = format!("apiVersion: access.towline.io/v1alpha1\nkind: AgentPolicy\n{rest}\n");
    Reading::Text { version: version.to_owned(), text: Ok(text) }
}

fn preset(held: &Held) -> &'static str {
    match held {
        Held::Policy(policy) => policy.preset().as_str(),
        Held::Unread | Held::Unreadable(_) => "unread",
        Held::Nobody(_) => "nobody",
    }
}

#[test]
fn what_goes_wrong_only_takes_away() {
    let gone = || Reading::Unreadable("the child's kube-apiserver cannot be reached".to_owned());
    let wrong = || text("9", "preset: edti");
    let view = || text("1", "preset: view");
    // Readings with the seconds at which they are made, and what is in force then.
    let grace = POLICY_LOST.as_secs();
    for (name, readings) in [
        ("absent", vec![(0, Reading::Absent, "edit"), (9, Reading::Absent, "edit")]),
        ("written later", vec![(0, Reading::Absent, "edit"), (4, view(), "view")]),
        ("unread", vec![(0, gone(), "unread"), (9999, gone(), "unread"), (10_000, view(), "view")]),
        ("invalid at start", vec![(0, wrong(), "nobody"), (4, wrong(), "nobody"), (8, view(), "view")]),
        ("invalid at start, then removed", vec![(0, wrong(), "nobody"), (4, Reading::Absent, "nobody")]),
        ("invalid later", vec![(0, view(), "view"), (4, wrong(), "view"), (grace + 9, wrong(), "view")]),
        (
            "removed",
            vec![
                (0, view(), "view"),
                (4, Reading::Absent, "view"),
                (3 + grace, Reading::Absent, "view"),
                (4 + grace, Reading::Absent, "nobody"),
                (8 + grace, view(), "view"),
            ],
        ),
        (
            "unreadable now and then",
            vec![
                (0, view(), "view"),
                (4, gone(), "view"),
                (grace, view(), "view"),
                (grace + 5, gone(), "view"),
            ],
        ),
        (
            "unreadable for long",
            vec![(0, Reading::Absent, "edit"), (4, gone(), "edit"), (4 + grace, gone(), "nobody")],
        ),
    ] {
        let start = Instant::now();
        let mut keeper = Keeper::default();
        for (at, reading, expected) in readings {
            let held = keeper.next(reading, start + Duration::from_secs(at));
            assert_eq!(preset(&held), expected, "{name} at {at} s");
        }
    }
}

#[tokio::test]
async fn what_is_open_ends_when_a_later_version_does_not_admit_it() {
    let policy = |rest: &str| Keeper::default().next(text("1", rest), Instant::now());
    let in_force = Arc::new(InForce::holding(policy("preset: edit")));
    let alice = Identity::of("alice", &[]).unwrap();
    let asked = RequestInfo::parse(&Method::POST, "/api/v1/namespaces/a/pods/b/exec", None, true).unwrap();
    let (version, believed) = in_force.admit(&alice, &asked).unwrap();
    let mut open = std::pin::pin!(Arc::clone(&in_force).until_refused(version, alice, believed, asked));
    in_force.replace(policy("preset: admin"));
    assert!(futures::poll!(open.as_mut()).is_pending(), "still admitted");
    in_force.replace(policy("preset: edit\nclosed: true"));
    let refused = open.await;
    assert!(matches!(refused, NotAdmitted::Refused(Refused { rule: Rule::Closed, .. })), "{refused}");
}

#[tokio::test]
async fn what_was_opened_by_a_role_ends_when_the_role_is_no_longer_believed() {
    let policy = |rest: &str| Keeper::default().next(text("1", rest), Instant::now());
    let in_force = Arc::new(InForce::holding(policy("preset: edit")));
    let alice = Identity::of("alice", &["clusternet:admin"]).unwrap();
    let asked = RequestInfo::parse(&Method::GET, "/api/v1/pods", Some("watch=1"), false).unwrap();
    let (version, believed) = in_force.admit(&alice, &asked).unwrap();
    let open = Arc::clone(&in_force).until_refused(version, alice, believed, asked);
    in_force.replace(policy("preset: edit\nroles: [view]"));
    assert!(matches!(open.await, NotAdmitted::Refused(Refused { rule: Rule::Users, .. })));
}

#[test]
fn the_last_refusals_are_told_and_there_are_never_many() {
    let in_force = InForce::fixed(Policy::of(crate::policy::Preset::View));
    for number in 0..1000 {
        let who = Identity::of(&format!("user-{number}"), &[]).unwrap();
        let asked = RequestInfo::parse(&Method::DELETE, "/api/v1/namespaces/a/pods/b", None, false).unwrap();
        in_force.admit(&who, &asked).unwrap_err();
    }
    let status = in_force.status();
    assert_eq!((status.last_refusals.len(), status.preset.as_str()), (MAX_REFUSALS, "view"));
    let latest = &status.last_refusals[0];
    assert_eq!((latest.user.as_str(), latest.rule.as_str()), ("user-999", "preset"));
    assert!(latest.asked.contains("delete pods"), "{latest:?}");
}

#[test]
fn what_is_told_says_where_the_policy_is_from_and_what_is_wrong() {
    let gone = Reading::Unreadable("403".to_owned());
    assert_eq!(Told::of(&Reading::Absent, false), Told::default());
    let good = Told::of(&text("7", "preset: view"), false);
    assert_eq!((good.configured, good.resource_version.as_str(), good.error.as_str()), (true, "7", ""));
    for (reading, seen, says) in [
        (text("7", "preset: edti"), false, "invalid"),
        (Reading::Absent, true, "was removed"),
        (gone.clone(), false, "cannot be read"),
        (gone, true, "cannot be read"),
    ] {
        let told = Told::of(&reading, seen);
        assert!(told.error.contains(says), "{told:?}");
    }
}

#[test]
fn nobody_is_admitted_before_the_first_reading() {
    let alice = Identity::of("alice", &[]).unwrap();
    let asked = RequestInfo::parse(&Method::GET, "/version", None, false).unwrap();
    let refused = InForce::unread().admit(&alice, &asked).unwrap_err();
    assert!(matches!(refused, NotAdmitted::Unread));
}
