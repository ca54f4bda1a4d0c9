//! `clusters`: the list, and with `--watch` every change after it.

use std::collections::BTreeMap;
use std::pin::pin;

use api::cluster::{CONDITION_READY, CONDITION_TUNNEL, ManagedCluster};
use api::registration::ClusterRegistrationRequest;
use api::yaml;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, TypeMeta};
use kube::runtime::{WatchStreamExt as _, watcher};

use crate::args::{Clusters, ListOutput, shell_word};
use crate::duration::age;
use crate::failure::{Exit, Failure};
use crate::output::{Mood, data, json, line_with, say, shown, widths};
use crate::session::Session;
use crate::{config, find};

/// Runs the command.
pub(crate) async fn run(session: &Session, args: &Clusters) -> Result<(), Failure> {
    if args.watch && matches!(args.output, ListOutput::Json | ListOutput::Yaml) {
        return Err(Failure::new(Exit::Usage, "--watch goes with -o table, wide or name")
            .next(format!("{} clusters --watch", session.command())));
    }
    // Whole objects as the parent has them: what this version does not know is printed all the same, and one
    // odd object does not hide the others.
    let api: Api<DynamicObject> =
        Api::all_with(session.client.clone(), &ApiResource::erase::<ManagedCluster>(&()));
    let mut params = ListParams::default();
    params.label_selector.clone_from(&args.selector);
    let waiting = async {
        match args.output {
            ListOutput::Table | ListOutput::Wide => find::requests_lately(session).await.unwrap_or_default(),
            ListOutput::Name | ListOutput::Json | ListOutput::Yaml => Vec::new(),
        }
    };
    let (objects, waiting) = tokio::join!(session.list_cached("list clusters", &api, params), waiting);
    let mut objects = objects?;
    objects.sort_by_key(|object| (object.name_any(), object.namespace()));
    match args.output {
        ListOutput::Json | ListOutput::Yaml => data(&whole(objects, args.output)?),
        ListOutput::Table | ListOutput::Wide | ListOutput::Name => {
            print_rows(session, args, api, &objects, &waiting).await
        }
    }
}

async fn print_rows(
    session: &Session,
    args: &Clusters,
    api: Api<DynamicObject>,
    objects: &[DynamicObject],
    waiting: &[ClusterRegistrationRequest],
) -> Result<(), Failure> {
    let rows: Vec<Row> = objects.iter().map(Row::of).collect();
    let (now, color) = (Timestamp::now(), config::color(&session.global));
    if !rows.is_empty() {
        data(&rendered(&rows, args, now, color))?;
    }
    if args.watch {
        return follow(args, api, rows, color).await;
    }
    if args.output == ListOutput::Name {
        return Ok(());
    }
    if rows.is_empty() {
        say(if args.selector.is_some() { "No cluster matches." } else { "No clusters yet." });
    }
    hints(session, waiting, rows.is_empty() && args.selector.is_none());
    Ok(())
}

/// Says what waits for the person. Whoever may not see requests is told nothing of them.
fn hints(session: &Session, requests: &[ClusterRegistrationRequest], none_yet: bool) {
    let command = session.command();
    let open: Vec<String> = requests
        .iter()
        .filter(|request| find::is_open(request))
        .map(|open| shown(&open.spec.cluster_name))
        .collect();
    if let Some(first) = open.first() {
        // A request holds what its writer put there, and this line is there to be copied into a shell.
        let word = shell_word(first);
        say(&format!("Waiting for approval: {}.\nnext:  {command} approve {word}", open.join(", ")));
        return;
    }
    if none_yet {
        say(&format!("next:  {command} register NAME --out agent.yaml"));
    }
}

fn whole(objects: Vec<DynamicObject>, output: ListOutput) -> Result<String, Failure> {
    let items: Vec<DynamicObject> = objects
        .into_iter()
        .map(|mut object| {
            object.types.get_or_insert_with(TypeMeta::resource::<ManagedCluster>);
            object
        })
        .collect();
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items });
    if output == ListOutput::Yaml {
        return Ok(yaml::document(&list));
    }
    serde_json::to_string_pretty(&list)
        .map(|text| json(&text) + "\n")
        .map_err(|error| Failure::new(Exit::Error, format!("could not write the list: {error}")))
}

/// Prints a line for each cluster whose line has changed, until the reader or the person ends it or the parent
/// says no.
async fn follow(
    args: &Clusters,
    api: Api<DynamicObject>,
    rows: Vec<Row>,
    color: bool,
) -> Result<(), Failure> {
    let mut all = vec![Row::head(true)];
    all.extend(rows.iter().map(|row| row.cells(true, Timestamp::now())));
    let widths = widths(&all);
    let mut seen = Seen::new(rows);
    let mut config = watcher::Config::default();
    config.label_selector.clone_from(&args.selector);
    let mut changes = pin!(watcher(api, config).default_backoff());
    let mut lost = false;
    while let Some(change) = changes.next().await {
        match change {
            Ok(event) => {
                lost = false;
                for row in seen.take(event) {
                    data(&changed_line(&row, args, &widths, color))?;
                }
            }
            Err(error) => {
                if let Some(refused) = refused(&error) {
                    return Err(refused);
                }
                if !lost {
                    say(&format!("The connection is lost ({}); trying again.", shown(&error.to_string())));
                }
                lost = true;
            }
        }
    }
    Ok(())
}

/// The end of a watch that the parent does not allow (any more): to try again would be to wait for ever.
fn refused(error: &watcher::Error) -> Option<Failure> {
    let cause = match error {
        watcher::Error::InitialListFailed(cause)
        | watcher::Error::WatchStartFailed(cause)
        | watcher::Error::WatchFailed(cause) => Failure::of_kube("watch clusters", cause),
        watcher::Error::WatchError(status) => {
            Failure::of_kube("watch clusters", &kube::Error::Api(status.clone()))
        }
        watcher::Error::NoResourceVersion => return None,
    };
    (cause.exit() == Exit::Denied).then_some(cause)
}

/// What was printed of each cluster.
struct Seen {
    last: BTreeMap<String, Row>,
    /// While a new list arrives after a gap: the clusters that are not in it so far.
    missing: BTreeMap<String, Row>,
}

impl Seen {
    fn new(rows: Vec<Row>) -> Self {
        let last = rows.into_iter().map(|row| (row.key.clone(), row)).collect();
        Self { last, missing: BTreeMap::new() }
    }

    /// The rows to print.
    fn take(&mut self, event: watcher::Event<DynamicObject>) -> Vec<Row> {
        let gone = |row: Row| Row { ready: "Gone".to_owned(), ..row };
        match event {
            watcher::Event::Init => {
                self.missing = self.last.clone();
                Vec::new()
            }
            watcher::Event::InitDone => {
                let missing = std::mem::take(&mut self.missing);
                self.last.retain(|key, _| !missing.contains_key(key));
                missing.into_values().map(gone).collect()
            }
            watcher::Event::Delete(object) => {
                let row = Row::of(&object);
                self.last.remove(&row.key);
                vec![gone(row)]
            }
            watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
                let row = Row::of(&object);
                self.missing.remove(&row.key);
                let before = self.last.insert(row.key.clone(), row.clone());
                if before.is_none_or(|before| before.differs(&row)) { vec![row] } else { Vec::new() }
            }
        }
    }
}

fn changed_line(row: &Row, args: &Clusters, widths: &[usize], color: bool) -> String {
    if args.output == ListOutput::Name {
        return format!("{}\n", row.name);
    }
    let cells = row.cells(args.output == ListOutput::Wide, Timestamp::now());
    line_with(&cells, widths, READY_COLUMN, row.mood(), color)
}

fn rendered(rows: &[Row], args: &Clusters, now: Timestamp, color: bool) -> String {
    if args.output == ListOutput::Name {
        return rows.iter().map(|row| format!("{}\n", row.name)).collect();
    }
    let wide = args.output == ListOutput::Wide;
    let head = (!args.no_headers).then(|| (Row::head(wide), None));
    let lines: Vec<(Vec<String>, Option<Mood>)> =
        head.into_iter().chain(rows.iter().map(|row| (row.cells(wide, now), row.mood()))).collect();
    let widths = widths(&lines.iter().map(|(cells, _)| cells.clone()).collect::<Vec<_>>());
    lines.iter().map(|(cells, mood)| line_with(cells, &widths, READY_COLUMN, *mood, color)).collect()
}

/// Where the word is that has a colour.
const READY_COLUMN: usize = 1;

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    key: String,
    name: String,
    ready: String,
    tunnel: String,
    kubernetes: String,
    nodes: String,
    seen: Option<Timestamp>,
    created: Option<Timestamp>,
    id: String,
    agent: String,
    reason: String,
}

impl Row {
    fn of(object: &DynamicObject) -> Self {
        let name = shown(&object.name_any());
        let key = format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
        let created = object.creation_timestamp().map(|time| time.0);
        match object.clone().try_parse::<ManagedCluster>() {
            Ok(cluster) => Self::of_cluster(key, name, created, &cluster),
            Err(error) => Self {
                key,
                name,
                ready: "Invalid".to_owned(),
                tunnel: shown(""),
                kubernetes: shown(""),
                nodes: shown(""),
                seen: None,
                created,
                id: shown(""),
                agent: shown(""),
                reason: shown(&error.to_string()),
            },
        }
    }

    fn of_cluster(key: String, name: String, created: Option<Timestamp>, cluster: &ManagedCluster) -> Self {
        let status = cluster.status.clone().unwrap_or_default();
        let ready = condition(&status.conditions, CONDITION_READY);
        let tunnel = condition(&status.conditions, CONDITION_TUNNEL);
        let summary = if cluster.metadata.deletion_timestamp.is_some() {
            "Leaving".to_owned()
        } else if cluster.spec.denied {
            "Denied".to_owned()
        } else {
            ready.map_or_else(|| "Unknown".to_owned(), |ready| shown(&ready.status))
        };
        Self {
            key,
            name,
            ready: summary,
            tunnel: shown(tunnel.map_or("", |tunnel| &tunnel.reason)),
            kubernetes: shown(&status.k8s_version),
            nodes: shown(&status.nodes),
            seen: status.last_observed_time.map(|time| time.0),
            created,
            id: shown(&cluster.spec.cluster_id),
            agent: shown(&status.agent_version),
            reason: shown(ready.map_or("", |ready| &ready.message)),
        }
    }

    fn head(wide: bool) -> Vec<String> {
        let more: &[&str] = if wide { &["CLUSTER ID", "AGENT", "REASON"] } else { &[] };
        ["NAME", "READY", "TUNNEL", "KUBERNETES", "NODES", "LAST SEEN", "AGE"]
            .iter()
            .chain(more)
            .map(|head| (*head).to_owned())
            .collect()
    }

    fn cells(&self, wide: bool, now: Timestamp) -> Vec<String> {
        let mut cells = vec![
            self.name.clone(),
            self.ready.clone(),
            self.tunnel.clone(),
            self.kubernetes.clone(),
            self.nodes.clone(),
            self.seen.map_or_else(|| "never".to_owned(), |seen| age(Some(seen), now)),
            age(self.created, now),
        ];
        if wide {
            cells.extend([self.id.clone(), self.agent.clone(), self.reason.clone()]);
        }
        cells
    }

    /// How the word of the READY column is meant.
    fn mood(&self) -> Option<Mood> {
        match self.ready.as_str() {
            "True" => Some(Mood::Good),
            "False" | "Denied" | "Invalid" | "Gone" => Some(Mood::Bad),
            _ => Some(Mood::Unclear),
        }
    }

    /// Has anything but the passing of time changed?
    fn differs(&self, other: &Self) -> bool {
        Self { seen: None, ..self.clone() } != Self { seen: None, ..other.clone() }
    }
}

/// The condition of that type.
pub(crate) fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    fn cluster(name: &str, ready: &str, reason: &str) -> Value {
        json!({
            "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster",
            "metadata": { "name": name, "namespace": "clusternet-0a0a0a0a", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "clusterId": format!("id-{name}") },
            "status": {
                "k8sVersion": "v1.33.1", "agentVersion": "0.1.0", "nodes": "3/4",
                "lastObservedTime": "2026-01-01T02:59:30Z",
                "conditions": [
                    { "type": "Ready", "status": ready, "reason": "x", "message": "all is well", "lastTransitionTime": "2026-01-01T00:00:00Z" },
                    { "type": "TunnelConnected", "status": "True", "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" },
                ],
            },
        })
    }

    fn args(line: &str) -> Clusters {
        use clap::Parser as _;
        let words = ["kubectl-towline", "clusters"].into_iter().chain(line.split_whitespace());
        let crate::args::Command::Clusters(args) = crate::args::Cli::try_parse_from(words).unwrap().command
        else {
            panic!("{line}")
        };
        args
    }

    fn now() -> Timestamp {
        "2026-01-01T03:00:00Z".parse().unwrap()
    }

    #[test]
    fn the_table_is_kubectls() {
        let bare = json!({ "metadata": { "name": "new" }, "spec": { "clusterId": "i" } });
        let rows = [Row::of(&object(cluster("edge-1", "True", "Connected"))), Row::of(&object(bare))];
        assert_eq!(
            rendered(&rows, &args(""), now(), false),
            "NAME     READY     TUNNEL      KUBERNETES   NODES   LAST SEEN   AGE\n\
             edge-1   True      Connected   v1.33.1      3/4     30s         3h\n\
             new      Unknown   -           -            -       never       <unknown>\n"
        );
        let wide = rendered(&rows[..1], &args("-o wide --no-headers"), now(), false);
        assert!(wide.ends_with("id-edge-1   0.1.0   all is well\n") && wide.lines().count() == 1, "{wide}");
        assert_eq!(rendered(&rows, &args("-o name"), now(), false), "edge-1\nnew\n");
    }

    #[test]
    fn the_ready_word_has_a_colour_on_a_terminal_alone() {
        let rows =
            [Row::of(&object(cluster("a", "True", "x"))), Row::of(&object(cluster("b", "False", "x")))];
        let text = rendered(&rows, &args(""), now(), true);
        assert!(
            text.contains("\u{1b}[32mTrue\u{1b}[0m") && text.contains("\u{1b}[31mFalse\u{1b}[0m"),
            "{text:?}"
        );
        assert!(text.starts_with("NAME   READY   "), "{text:?}");
        assert!(!rendered(&rows, &args("-o name"), now(), true).contains('\u{1b}'));
    }

    #[test]
    fn shut_out_leaving_and_odd_clusters_say_so() {
        let mut denied = cluster("a", "True", "x");
        denied["spec"]["denied"] = json!(true);
        let mut leaving = cluster("a", "True", "x");
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut odd = cluster("a", "True", "x");
        odd["spec"] = json!({});
        for (value, ready) in [(denied, "Denied"), (leaving, "Leaving"), (odd, "Invalid")] {
            assert_eq!(Row::of(&object(value)).ready, ready);
        }
    }

    #[test]
    fn what_a_child_says_of_itself_cannot_touch_the_terminal() {
        let mut hostile = cluster("a", "True", "x");
        hostile["status"]["k8sVersion"] = json!("\u{1b}[2J\nroot   True");
        let text = rendered(&[Row::of(&object(hostile))], &args("--no-headers"), now(), false);
        assert!(!text.contains('\u{1b}') && text.lines().count() == 1, "{text:?}");
    }

    #[test]
    fn a_heartbeat_is_no_change() {
        let before = Row::of(&object(cluster("a", "True", "Connected")));
        let mut beat = cluster("a", "True", "Connected");
        beat["status"]["lastObservedTime"] = json!("2026-01-01T03:00:00Z");
        assert!(!before.differs(&Row::of(&object(beat))));
        assert!(before.differs(&Row::of(&object(cluster("a", "False", "Lost")))));
    }

    #[test]
    fn what_was_deleted_during_a_gap_is_reported_gone() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let named = |name: &str| object(cluster(name, "True", "Connected"));
        let mut seen = Seen::new(vec![Row::of(&named("a")), Row::of(&named("b"))]);
        let mut take = |event| -> Vec<String> {
            seen.take(event).into_iter().map(|row| format!("{} {}", row.name, row.ready)).collect()
        };
        let none = Vec::<String>::new();
        assert_eq!(take(Init), none);
        assert_eq!(take(InitApply(named("b"))), none);
        assert_eq!(take(InitApply(named("c"))), ["c True"]);
        assert_eq!(take(InitDone), ["a Gone"]);
        assert_eq!(take(Init), none);
        assert_eq!(take(InitApply(named("b"))), none);
        assert_eq!(take(InitApply(named("c"))), none);
        assert_eq!(take(InitDone), none, "told once");
        assert_eq!(take(Delete(named("b"))), ["b Gone"]);
        assert_eq!(take(Apply(named("a"))), ["a True"], "one that is back is new");
    }

    #[test]
    fn a_watch_that_is_not_allowed_ends_and_one_that_broke_does_not() {
        let answer = |code: u16| kube::core::Status::failure("no", "Reason").with_code(code).boxed();
        let api = |code| kube::Error::Api(answer(code));
        for code in [401, 403] {
            for error in [
                watcher::Error::InitialListFailed(api(code)),
                watcher::Error::WatchStartFailed(api(code)),
                watcher::Error::WatchFailed(api(code)),
                watcher::Error::WatchError(answer(code)),
            ] {
                assert_eq!(refused(&error).unwrap().exit(), Exit::Denied, "{error}");
            }
        }
        for error in [
            watcher::Error::WatchError(answer(410)),
            watcher::Error::WatchStartFailed(api(503)),
            watcher::Error::NoResourceVersion,
        ] {
            assert!(refused(&error).is_none(), "{error}");
        }
    }

    #[test]
    fn unknown_fields_survive_in_whole_objects() {
        let mut value = cluster("a", "True", "x");
        value["spec"]["fromTheFuture"] = json!(7);
        let text = whole(vec![object(value)], ListOutput::Json).unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(list["items"][0]["spec"]["fromTheFuture"], 7);
        assert_eq!(list["kind"], "List");
    }
}
