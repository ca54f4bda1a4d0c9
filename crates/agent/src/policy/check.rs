//! `towline-agent policy check`: what a policy means, before anybody applies it. Pure: text and time come in, text
//! and an exit code go out. It goes by the very engine that the agent goes by, and talks to no cluster.

use api::identity::Identity;
use api::names::SYSTEM_NAMESPACE;
use api::status::printable;
use http::Method;
use jiff::Timestamp;

use super::document::{self, Node, Place};
use super::request_info::{RequestInfo, Verb};
use super::{Checked, POLICY_CONFIGMAP, POLICY_KEY, Policy};

/// Most bytes that are read: a ConfigMap holds 1 MiB, and as JSON its text may be half as long again.
pub const MAX_INPUT: usize = 2 * 1024 * 1024;
/// Longest user and request in what is printed.
const SHOWN: usize = 256;

/// How it ended; the number is the exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The policy is good, and admits what was asked, if something was.
    Good = 0,
    /// The policy is invalid: an agent would not take it.
    Invalid = 1,
    /// The question is none.
    Usage = 2,
    /// The policy is good, and refuses what was asked.
    Refused = 3,
}

/// May this person ask this?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Who.
    pub user: String,
    /// The groups, `clusternet:admin|edit|view` for the hub's roles.
    pub groups: Vec<String>,
    /// How.
    pub how: How,
    /// Path and query, as on the wire.
    pub path: String,
}

/// A verb of Kubernetes, or a method of HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// `delete`
    Verb(Verb),
    /// `DELETE`
    Method(Method),
}

/// Reads a policy, or a manifest of its ConfigMap, and tells what holds, or everything that is wrong. A question is
/// answered as of `now`, which matters to `hours`.
pub fn check(text: &str, question: Option<&Question>, now: Timestamp) -> (String, Exit) {
    let (checked, notes) = match read(text) {
        Ok(read) => read,
        Err(mistakes) => {
            let count = if mistakes.len() == 1 {
                "1 mistake".to_owned()
            } else {
                format!("{} mistakes", mistakes.len())
            };
            return (format!("the policy is invalid, {count}:\n{}", listed(&mistakes)), Exit::Invalid);
        }
    };
    let mut told = format!(
        "the policy is good; of what the child's RBAC grants, it admits:\n{}",
        listed(&checked.policy.sentences())
    );
    let odd = [notes, checked.warnings].concat();
    if !odd.is_empty() {
        told.push_str(&format!("probably not meant:\n{}", listed(&odd)));
    }
    let Some(question) = question else { return (told, Exit::Good) };
    let (answer, exit) = match answer(&checked.policy, question, now) {
        Ok(admitted) => (admitted, Exit::Good),
        Err((why, exit)) => (why, exit),
    };
    (format!("{told}{answer}\n"), exit)
}

fn listed(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  - {line}\n")).collect()
}

/// The policy, and what is odd about the manifest around it.
fn read(text: &str) -> Result<(Checked, Vec<String>), Vec<String>> {
    if text.len() > MAX_INPUT {
        return Err(vec![format!("the file is larger than {MAX_INPUT} bytes")]);
    }
    let of_text = |text: &str| Policy::read(text).map_err(|mistakes| mistakes.0);
    let Some(manifest) = config_map(text) else { return Ok((of_text(text)?, Vec::new())) };
    let (inner, notes) = unwrap(&manifest)?;
    match of_text(inner) {
        Ok(checked) => Ok((checked, notes)),
        Err(mistakes) => Err(mistakes.iter().map(|mistake| format!("in {POLICY_KEY}, {mistake}")).collect()),
    }
}

/// The fields, if this is a ConfigMap.
fn config_map(text: &str) -> Option<Vec<(Place<String>, Place<Node>)>> {
    let Node::Map(map) = document::read(text).ok()?.value else { return None };
    (text_at(&map, "kind") == Some("ConfigMap")).then_some(map)
}

type Fields = [(Place<String>, Place<Node>)];

/// The policy's text. An agent reads this name in this namespace and this key, and nothing else.
fn unwrap(manifest: &Fields) -> Result<(&str, Vec<String>), Vec<String>> {
    let (mut mistakes, mut notes) = (Vec::new(), Vec::new());
    let metadata = fields_at(manifest, "metadata").unwrap_or_default();
    if text_at(metadata, "name") != Some(POLICY_CONFIGMAP) {
        mistakes.push(format!("agents read the ConfigMap {POLICY_CONFIGMAP}; metadata.name is another name"));
    }
    match node_at(metadata, "namespace") {
        None => notes.push(format!("metadata.namespace is missing: apply it with -n {SYSTEM_NAMESPACE}")),
        Some(Node::Text(namespace)) if namespace == SYSTEM_NAMESPACE => {}
        Some(_) => mistakes
            .push(format!("agents read the namespace {SYSTEM_NAMESPACE}; metadata.namespace is another one")),
    }
    let data = fields_at(manifest, "data").unwrap_or_default();
    for (key, _) in data.iter().filter(|(key, _)| key.value != POLICY_KEY) {
        notes.push(format!("data has the key {:?}, which no agent reads", printable(&key.value, SHOWN)));
    }
    match text_at(data, POLICY_KEY) {
        Some(text) if mistakes.is_empty() => Ok((text, notes)),
        Some(_) => Err(mistakes),
        None => {
            mistakes.push(format!("data has no text under the key {POLICY_KEY}"));
            Err(mistakes)
        }
    }
}

fn node_at<'a>(fields: &'a Fields, key: &str) -> Option<&'a Node> {
    fields.iter().find(|(found, _)| found.value == key).map(|(_, place)| &place.value)
}

fn text_at<'a>(fields: &'a Fields, key: &str) -> Option<&'a str> {
    match node_at(fields, key)? {
        Node::Text(text) => Some(text),
        Node::Null | Node::Bool(_) | Node::Number | Node::List(_) | Node::Map(_) => None,
    }
}

fn fields_at<'a>(fields: &'a Fields, key: &str) -> Option<&'a Fields> {
    match node_at(fields, key)? {
        Node::Map(map) => Some(map),
        Node::Null | Node::Bool(_) | Node::Number | Node::List(_) | Node::Text(_) => None,
    }
}

fn answer(policy: &Policy, question: &Question, now: Timestamp) -> Result<String, (String, Exit)> {
    let groups: Vec<&str> = question.groups.iter().map(String::as_str).collect();
    let who = Identity::of(&question.user, &groups)
        .map_err(|error| (format!("--as and --as-group name nobody: {error}"), Exit::Usage))?;
    let asked = asked(question)?;
    let refused = |why: String| {
        let user = printable(who.user(), SHOWN);
        (
            format!("REFUSED: user {user:?} may not {}: {why}", printable(&asked.to_string(), SHOWN)),
            Exit::Refused,
        )
    };
    api::mapping::refuse_in_child(&who)
        .map_err(|error| refused(format!("{error}; no policy can allow it")))?;
    policy.admit(&who, &asked, now).map_err(|why| refused(why.to_string()))?;
    let believed = policy.believed(who.clone()).map_err(|error| refused(error.to_string()))?;
    let dropped: Vec<&String> =
        who.groups().iter().filter(|group| !believed.groups().contains(group)).collect();
    let without =
        if dropped.is_empty() { String::new() } else { format!(", without the groups {dropped:?}") };
    Ok(format!(
        "ADMITTED: user {:?} may {} as far as the child's RBAC lets them{without}",
        printable(who.user(), SHOWN),
        printable(&asked.to_string(), SHOWN)
    ))
}

fn asked(question: &Question) -> Result<RequestInfo, (String, Exit)> {
    let (path, query) = match question.path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (question.path.as_str(), None),
    };
    let (method, query) = match &question.how {
        How::Method(method) => (method.clone(), query),
        How::Verb(verb) => {
            (method_of(*verb), if *verb == Verb::Watch { query.or(Some("watch=1")) } else { query })
        }
    };
    let asked = RequestInfo::parse(&method, path, query, false).map_err(|error| {
        (format!("REFUSED: an agent does not send on what it cannot judge: {error}"), Exit::Refused)
    })?;
    match question.how {
        How::Verb(verb) if verb != asked.verb => Err((
            format!("--verb {verb} does not go with this path, on which {method} means {}", asked.verb),
            Exit::Usage,
        )),
        How::Verb(_) | How::Method(_) => Ok(asked),
    }
}

fn method_of(verb: Verb) -> Method {
    match verb {
        Verb::Get | Verb::List | Verb::Watch => Method::GET,
        Verb::Create => Method::POST,
        Verb::Update => Method::PUT,
        Verb::Patch => Method::PATCH,
        Verb::Delete | Verb::DeleteCollection => Method::DELETE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: access.towline.io/v1alpha1\nkind: AgentPolicy\n";
    const PODS: &str = "/api/v1/namespaces/default/pods";

    fn policy(rest: &str) -> String {
        format!("{HEAD}{rest}\n")
    }

    fn manifest(name: &str, namespace: &str, key: &str, rest: &str) -> String {
        serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": name, "namespace": namespace, "creationTimestamp": null, "generation": 1 },
            "data": { key: policy(rest) },
        })
        .to_string()
    }

    fn ask(user: &str, groups: &[&str], how: How, path: &str) -> Option<Question> {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        Some(Question { user: user.to_owned(), groups, how, path: path.to_owned() })
    }

    fn verb(user: &str, verb: Verb, path: &str) -> Option<Question> {
        ask(user, &["dev"], How::Verb(verb), path)
    }

    #[test]
    fn a_policy_is_checked_and_a_question_is_answered_as_an_agent_would() {
        let own = |rest| manifest(POLICY_CONFIGMAP, SYSTEM_NAMESPACE, POLICY_KEY, rest);
        let edit = || policy("preset: edit");
        let exec = format!("{PODS}/web/exec?command=sh");
        let web = &format!("{PODS}/web");
        for (text, question, exit, says) in [
            (edit(), None, Exit::Good, &["the policy is good", "preset edit: everything but RBAC"][..]),
            (policy("preset: view\nclosed: true"), None, Exit::Good, &["closed: nobody"]),
            (own("preset: view"), None, Exit::Good, &["reading alone"]),
            (
                policy("preset: edit\nnamespaces: {deny: [kube-systme]}"),
                None,
                Exit::Good,
                &["probably not meant", "kube-system"],
            ),
            // All mistakes at once, with their lines.
            (
                policy("preset: edti\nverbs: {deny: [remove]}"),
                None,
                Exit::Invalid,
                &["2 mistakes", "line 3", "line 4", "did you mean edit?"],
            ),
            (own("preset: edti"), None, Exit::Invalid, &["1 mistake", "in policy.yaml, line 3"]),
            (String::new(), None, Exit::Invalid, &["invalid"]),
            ("{".to_owned(), None, Exit::Invalid, &["invalid"]),
            // What an agent would never read.
            (
                manifest("agent-policy", "default", POLICY_KEY, "preset: edit"),
                None,
                Exit::Invalid,
                &["2 mistakes", "metadata.name", "metadata.namespace"],
            ),
            (
                manifest(POLICY_CONFIGMAP, SYSTEM_NAMESPACE, "policy.yml", "preset: edit"),
                None,
                Exit::Invalid,
                &["no text under the key policy.yaml"],
            ),
            // Questions.
            (edit(), verb("alice", Verb::Delete, web), Exit::Good, &["ADMITTED", r#"delete pods "web""#]),
            (
                policy("preset: view"),
                verb("alice", Verb::Delete, web),
                Exit::Refused,
                &["REFUSED", "rule preset"],
            ),
            (own("preset: view"), verb("alice", Verb::Watch, PODS), Exit::Good, &["ADMITTED", "watch pods"]),
            (
                policy("preset: no-exec"),
                ask("alice", &[], How::Method(Method::GET), &exec),
                Exit::Refused,
                &["create pods/exec"],
            ),
            (edit(), verb("alice", Verb::DeleteCollection, web), Exit::Usage, &["DELETE means delete"]),
            (
                edit(),
                ask("alice", &[], How::Method(Method::GET), "/api/v1//pods"),
                Exit::Refused,
                &["empty segment"],
            ),
            (
                edit(),
                ask("", &[], How::Method(Method::GET), "/version"),
                Exit::Usage,
                &["the user name is empty"],
            ),
            (
                policy("preset: admin"),
                verb("system:admin", Verb::Get, web),
                Exit::Refused,
                &["no policy can allow it"],
            ),
            (
                policy("preset: edit\ngroups: [ops]"),
                verb("alice", Verb::Get, web),
                Exit::Refused,
                &["rule users"],
            ),
            (
                policy("preset: edit\nusers: [alice]\ngroups: []"),
                verb("alice", Verb::Get, web),
                Exit::Good,
                &["ADMITTED", r#"without the groups ["dev"]"#],
            ),
            (
                policy("preset: edit\nclosed: true"),
                verb("alice", Verb::Get, web),
                Exit::Refused,
                &["rule closed"],
            ),
        ] {
            let (told, ended) = check(&text, question.as_ref(), Timestamp::UNIX_EPOCH);
            assert_eq!(ended, exit, "{text}\n{told}");
            for part in says {
                assert!(told.contains(part), "no {part:?} in:\n{told}");
            }
            assert!(told.ends_with('\n') && !told.contains('\u{1b}'), "{told}");
        }
    }

    #[test]
    fn the_policy_that_the_documentation_begins_with_is_good() {
        let documentation = include_str!("../../../../docs/policy.md");
        let example = documentation.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
        let (told, exit) = check(example, None, Timestamp::UNIX_EPOCH);
        assert!(exit == Exit::Good && !told.contains("probably not meant"), "{told}");
        assert!(told.contains("preset no-exec"), "{told}");
    }

    #[test]
    fn the_time_of_a_question_is_an_argument() {
        let text = policy("preset: edit\nhours: {timeZone: UTC, from: \"08:00\", to: \"18:00\"}");
        for (hour, exit) in [(7, Exit::Refused), (8, Exit::Good), (18, Exit::Refused)] {
            let now = Timestamp::from_second(hour * 3600).unwrap();
            assert_eq!(check(&text, verb("alice", Verb::Get, "/version").as_ref(), now).1, exit, "{hour}");
        }
    }
}
