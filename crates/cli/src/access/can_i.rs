//! `access can-i CLUSTER VERB RESOURCE`: may I, and if not, who says no: the parent, the cluster's RBAC, or the policy of
//! its owner. The first two are asked (SelfSubjectAccessReview there and there); the policy answers no question, so a
//! request is tried that can change nothing: a dry run on an object that does not exist.

use std::time::Duration;

use api::names::{ClusterId, proxy_path};
use http::Method;
use kube::Client;
use serde_json::json;

use super::resource::{Place, Wanted, find as find_place};
use crate::args::CanI;
use crate::ask::{Answer, NoAnswer, send};
use crate::doctor::{may, socket};
use crate::failure::{Exit, Failure};
use crate::find;
use crate::output::{data, table};
use crate::session::Session;

/// Longest time for one question.
const MOST: Duration = Duration::from_secs(10);
/// A name that nothing has.
const NOBODY: &str = "towline-can-i-probe";

/// One step and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    who: &'static str,
    /// None if it could not be found out.
    yes: Option<bool>,
    /// Whether that is because it did not answer; else there is no way to ask.
    failed: bool,
    why: String,
}

impl Step {
    /// What was asked: without a yes or a no, the question has failed.
    fn asked(who: &'static str, yes: Option<bool>, why: String) -> Self {
        Self { who, yes, failed: yes.is_none(), why }
    }
}

/// Runs the command.
pub(crate) async fn run(session: &Session, args: &CanI) -> Result<(), Failure> {
    let wanted = Wanted::parse(&args.resource)
        .map_err(|why| Failure::new(Exit::Usage, format!("{:?} {why}", args.resource)))?;
    let id = find::id(session, &args.cluster).await?;
    let limit = session.global.request_timeout.min(MOST);
    let steps = ask(session, &args.verb, &wanted, &id, limit).await?;
    let rows: Vec<Vec<String>> = steps
        .iter()
        .map(|step| {
            let word = match step.yes {
                Some(true) => "yes",
                Some(false) => "no",
                None => "unknown",
            };
            vec![step.who.to_owned(), word.to_owned(), crate::output::shown(&step.why)]
        })
        .collect();
    let (word, ended) = verdict(&steps);
    data(&format!("{}{word}\n", table(&rows)))?;
    ended
}

/// The word, and how the command ends: a script that asks before it acts may go on after a yes and after nothing else.
fn verdict(steps: &[Step]) -> (&'static str, Result<(), Failure>) {
    if let Some(no) = steps.iter().find(|step| step.yes == Some(false)) {
        return ("no", Err(Failure::new(Exit::Denied, format!("{} says no: {}", no.who, no.why))));
    }
    let mut unclear = steps.iter().filter(|step| step.yes.is_none());
    let Some(first) = unclear.next() else { return ("yes", Ok(())) };
    let failed = steps.iter().find(|step| step.failed);
    let exit = if failed.is_some() { Exit::Unreachable } else { Exit::Error };
    let step = failed.unwrap_or(first);
    ("unknown", Err(Failure::new(exit, format!("{} gives no answer: {}", step.who, step.why))))
}

async fn ask(
    session: &Session,
    verb: &str,
    wanted: &Wanted,
    id: &ClusterId,
    limit: Duration,
) -> Result<Vec<Step>, Failure> {
    let client = &session.client;
    let in_parent = parent_verb(verb);
    let parent = of_parent(in_parent, may(client, "", socket(id, in_parent, "proxy"), limit).await);
    if parent.yes == Some(false) {
        return Ok(vec![parent]);
    }
    let root = proxy_path(id);
    let place = match find_place(client, &root, wanted, limit).await? {
        Ok(place) => place,
        Err(answer) => return Ok(vec![parent, closed(&answer)]),
    };
    let namespace =
        place.namespaced.then(|| session.global.namespace.clone().unwrap_or_else(|| "default".to_owned()));
    let attributes = json!({
        "group": place.group, "resource": wanted.resource, "subresource": wanted.subresource,
        "verb": verb, "namespace": namespace,
    });
    let rbac = of_rbac(may(client, &root, attributes, limit).await);
    if rbac.yes != Some(true) {
        return Ok(vec![parent, rbac]);
    }
    let policy = match probe(verb, wanted, &place, namespace.as_deref()) {
        None => Step {
            who: "the cluster's policy",
            yes: None,
            failed: false,
            why: "it cannot be tried with this verb without changing anything".to_owned(),
        },
        Some(probe) => of_policy(probe.ask(client, &root, limit).await),
    };
    Ok(vec![parent, rbac, policy])
}

/// The verb that the hub asks the parent for: that of the HTTP method.
fn parent_verb(verb: &str) -> &'static str {
    match verb {
        "get" | "list" | "watch" => "get",
        "update" => "update",
        "patch" => "patch",
        "delete" | "deletecollection" => "delete",
        _ => "create",
    }
}

fn of_parent(verb: &str, answer: Result<bool, NoAnswer>) -> Step {
    let (yes, why) = match answer {
        Ok(true) => (Some(true), format!("you may {verb} sockets/proxy of this cluster")),
        Ok(false) => {
            (Some(false), format!("you may not {verb} sockets/proxy of this cluster, or there is none"))
        }
        Err(error) => (None, error.to_string()),
    };
    Step::asked("the parent", yes, why)
}

/// Not even discovery is answered: the hub or the policy refuses everything.
fn closed(answer: &Answer) -> Step {
    let yes = matches!(answer.status.as_u16(), 401 | 403).then_some(false);
    Step::asked("the way to the cluster", yes, answer.said())
}

fn of_rbac(answer: Result<bool, NoAnswer>) -> Step {
    let (yes, why) = match answer {
        Ok(true) => (Some(true), "allowed".to_owned()),
        Ok(false) => (
            Some(false),
            "no role or binding there allows it to you, with the groups that the policy lets through"
                .to_owned(),
        ),
        Err(error) => (None, error.to_string()),
    };
    Step::asked("the cluster's RBAC", yes, why)
}

/// After a yes of the parent and of RBAC only the policy is left to refuse.
fn of_policy(answer: Result<Answer, NoAnswer>) -> Step {
    let (yes, why) = match answer {
        Ok(answer) if answer.status.as_u16() == 403 => (Some(false), answer.said()),
        Ok(answer) if matches!(answer.status.as_u16(), 401 | 429 | 502..=504) => (None, answer.said()),
        Ok(_) => (Some(true), "admitted".to_owned()),
        Err(error) => (None, error.to_string()),
    };
    Step::asked("the cluster's policy", yes, why)
}

/// A request that changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Probe {
    method: Method,
    path: String,
    body: bool,
}

impl Probe {
    async fn ask(self, client: &Client, root: &str, limit: Duration) -> Result<Answer, NoAnswer> {
        let empty = json!({});
        let body = self.body.then_some(&empty);
        send(client, self.method, &format!("{root}{}", self.path), body, limit).await
    }
}

/// Each writes nothing for two reasons: `dryRun=All`, and a name that nothing has or a body that is no object.
fn probe(verb: &str, wanted: &Wanted, place: &Place, namespace: Option<&str>) -> Option<Probe> {
    let inside = namespace.map(|namespace| format!("/namespaces/{namespace}")).unwrap_or_default();
    let all = format!("{}{inside}/{}", place.prefix, wanted.resource);
    let sub = if wanted.subresource.is_empty() { String::new() } else { format!("/{}", wanted.subresource) };
    let one = format!("{all}/{NOBODY}{sub}");
    let of = |method: Method, path: String, body: bool| Some(Probe { method, path, body });
    match verb {
        "get" => of(Method::GET, one, false),
        "list" if sub.is_empty() => of(Method::GET, format!("{all}?limit=1"), false),
        "watch" if sub.is_empty() => {
            let query = "watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3D";
            of(Method::GET, format!("{all}?{query}{NOBODY}"), false)
        }
        "create" if sub.is_empty() => of(Method::POST, format!("{all}?dryRun=All"), true),
        "create" => of(Method::POST, format!("{one}?dryRun=All"), true),
        "update" => of(Method::PUT, format!("{one}?dryRun=All"), true),
        "patch" => of(Method::PATCH, format!("{one}?dryRun=All"), true),
        "delete" => of(Method::DELETE, format!("{one}?dryRun=All"), false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::tests::answer;

    fn place(namespaced: bool) -> Place {
        Place { group: String::new(), prefix: "/api/v1".to_owned(), namespaced }
    }

    #[test]
    fn whoever_does_not_say_yes_is_named_and_only_a_yes_is_a_success() {
        let yes = || of_rbac(Ok(true));
        let policy = of_policy(Ok(answer(403, json!({ "message": "rule preset: no exec" }))));
        assert_eq!(policy.why, "rule preset: no exec");
        let late = || NoAnswer::Late(MOST);
        let way = |code: u16| closed(&answer(code, json!({})));
        let policy_says = |code: u16| of_policy(Ok(answer(code, json!({}))));
        let untried =
            || Step { who: "the cluster's policy", yes: None, failed: false, why: "no way".to_owned() };
        let parent = || of_parent("get", Ok(true));
        let (denied, unreachable) = (Exit::Denied, Exit::Unreachable);
        for (steps, word, ended) in [
            (vec![of_parent("get", Ok(false))], "no", Some(("the parent says no", denied))),
            (vec![parent(), of_rbac(Ok(false))], "no", Some(("the cluster's RBAC says no", denied))),
            (vec![parent(), yes(), policy], "no", Some(("the cluster's policy says no", denied))),
            (vec![parent(), way(403)], "no", Some(("the way to the cluster says no", denied))),
            (
                vec![parent(), way(503)],
                "unknown",
                Some(("the way to the cluster gives no answer", unreachable)),
            ),
            (vec![parent(), yes(), policy_says(404)], "yes", None),
            (
                vec![parent(), yes(), policy_says(503)],
                "unknown",
                Some(("the cluster's policy gives no answer", unreachable)),
            ),
            (
                vec![of_parent("get", Err(late())), yes()],
                "unknown",
                Some(("the parent gives no answer", unreachable)),
            ),
            (
                vec![parent(), yes(), untried()],
                "unknown",
                Some(("the cluster's policy gives no answer", Exit::Error)),
            ),
            (
                vec![of_parent("get", Err(late())), yes(), untried()],
                "unknown",
                Some(("the parent gives no answer", unreachable)),
            ),
        ] {
            let (said, end) = verdict(&steps);
            assert_eq!(said, word, "{steps:?}");
            let end = end.err().map(|failure| (failure.to_string(), failure.exit()));
            let end = end.as_ref().map(|(text, exit)| (text.split(": ").next().unwrap(), *exit));
            assert_eq!(end, ended, "{steps:?}");
        }
    }

    #[test]
    fn what_is_tried_changes_nothing() {
        let wanted = Wanted::parse("pods").unwrap();
        for verb in ["create", "update", "patch", "delete"] {
            let probe = probe(verb, &wanted, &place(true), Some("default")).unwrap();
            assert!(probe.path.ends_with("?dryRun=All"), "{probe:?}");
            assert!(verb == "create" || probe.path.contains(NOBODY), "{probe:?}");
        }
        // Of these no request is known that changes nothing for sure.
        for verb in ["deletecollection", "impersonate", "escalate", "*"] {
            assert_eq!(probe(verb, &wanted, &place(true), None), None, "{verb}");
        }
    }

    #[test]
    fn paths_are_those_of_kubernetes() {
        let path = |verb: &str, resource: &str, namespace: Option<&str>| {
            probe(verb, &Wanted::parse(resource).unwrap(), &place(true), namespace).unwrap().path
        };
        assert_eq!(path("list", "pods", Some("a")), "/api/v1/namespaces/a/pods?limit=1");
        assert_eq!(path("get", "nodes", None), "/api/v1/nodes/towline-can-i-probe");
        assert_eq!(
            path("create", "pods/exec", Some("a")),
            "/api/v1/namespaces/a/pods/towline-can-i-probe/exec?dryRun=All"
        );
    }

    #[test]
    fn verbs_become_those_that_the_parent_is_asked() {
        for (verb, parents) in [
            ("list", "get"),
            ("watch", "get"),
            ("create", "create"),
            ("deletecollection", "delete"),
            ("patch", "patch"),
        ] {
            assert_eq!(parent_verb(verb), parents);
        }
    }
}
