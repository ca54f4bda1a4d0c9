//! The story of a cluster, as `kubectl describe` tells it: an Event of the parent for each transition that a person
//! would ask about. Controllers tell ([`Story::tell`], which never waits and never fails); one task writes. An Event is
//! a remark: one that cannot be written, or finds the queue full, is lost, and nothing depends on it.
//!
//! What happens again and again is one Event with a count, written once a minute at most (core/v1 `count`, which every
//! kubectl shows as `x12 over 10m`). How long Events are kept is the API server's to decide (`--event-ttl`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::cluster::{
    CONDITION_AGENT, CONDITION_CONFLICT, CONDITION_CREDENTIALS, CONDITION_READY, CONDITION_REGISTERED,
    CONDITION_TUNNEL, ManagedCluster,
};
use api::registration::{ClusterRegistrationRequest, RegistrationResult};
use api::status::printable;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::{Control, words};
use crate::join::{has_code, sha256_hex};

words! {
    /// What happened.
    pub(crate) enum Happened {
        Pending, Approved, Denied, SetUpFailed,
        Registered, ShutOut, LetIn,
        Connected, ConnectionLost, Ready, NotReady,
        Conflict, ConflictEnded,
        CredentialExpiring, CredentialExpired, CredentialRenewed,
        AgentVersionSkew,
        Renamed, RenameRefused,
    }
}

/// Remarks that wait to be written, about 1 KiB each: 4 MiB. Thousands come at once when a hub's network breaks.
const QUEUE: usize = 4096;
/// Writes at once; each is one small request.
const WRITES: usize = 32;
/// A write ends by then, whatever hangs.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// The count of an Event that happens again is written no sooner.
const COUNT_EVERY: SignedDuration = SignedDuration::from_secs(60);
/// What happens again after so long is another Event (client-go `tools/record`: 10 minutes).
const SAME_FOR: SignedDuration = SignedDuration::from_mins(10);
/// Events whose count is kept, about 1.5 KiB each with the note: 30 MiB at worst. More at once are not told.
const MAX_SERIES: usize = 20_000;
/// How often counts that wait are looked for: one pass over a table in memory.
const TICK: Duration = Duration::from_secs(1);
/// Longest note (core/v1 `Event.message`, validation/events.go).
const MAX_NOTE: usize = 1024;
/// A request that this hub sees for the first time is told about if it is no older: the story of older ones was told
/// by the hub that was there.
const NEWS: SignedDuration = SignedDuration::from_mins(10);
/// Namespace of Events about objects that have none.
const CLUSTER_WIDE: &str = "default";
/// Who tells.
const COMPONENT: &str = "towline-hub";

impl Happened {
    fn is_warning(self) -> bool {
        match self {
            Self::Denied
            | Self::SetUpFailed
            | Self::ShutOut
            | Self::ConnectionLost
            | Self::NotReady
            | Self::Conflict
            | Self::CredentialExpiring
            | Self::CredentialExpired
            | Self::AgentVersionSkew
            | Self::RenameRefused => true,
            Self::Pending
            | Self::Approved
            | Self::Registered
            | Self::LetIn
            | Self::Connected
            | Self::Ready
            | Self::ConflictEnded
            | Self::CredentialRenewed
            | Self::Renamed => false,
        }
    }
}

/// One remark.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    regarding: ObjectReference,
    happened: Happened,
    note: String,
    /// What makes it the same remark whichever replica makes it; such a one is never written twice.
    once: Option<String>,
}

/// Where controllers tell what happened.
#[derive(Debug, Clone)]
pub(super) struct Story(mpsc::Sender<Told>);

/// The remarks, for [`run`].
pub(super) type Remarks = mpsc::Receiver<Told>;

/// The two ends.
pub(super) fn story() -> (Story, Remarks) {
    let (tx, rx) = mpsc::channel(QUEUE);
    (Story(tx), rx)
}

impl Story {
    /// Tells; at once, or not at all.
    pub(super) fn tell(&self, told: Told) {
        if let Err(error) = self.0.try_send(told) {
            tracing::debug!(%error, "an Event is left out");
        }
    }

    /// Tells what a change of conditions means to a person.
    pub(super) fn tell_changes(&self, cluster: &ObjectReference, before: &[Condition], now: &[Condition]) {
        for (happened, note) in changes(before, now) {
            self.tell(Told { regarding: cluster.clone(), happened, note, once: None });
        }
    }

    /// Tells something about a cluster.
    pub(super) fn tell_of(&self, cluster: &ManagedCluster, happened: Happened, note: String) {
        self.tell(Told { regarding: reference(cluster), happened, note, once: None });
    }
}

/// What an Event is about.
pub(super) fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: Some(object.name_any()),
        namespace: object.namespace(),
        uid: object.uid(),
        ..ObjectReference::default()
    }
}

/// What is told of a change. A cluster that the hub sees for the first time has no conditions.
fn changes(before: &[Condition], now: &[Condition]) -> Vec<(Happened, String)> {
    let find = |all: &[Condition], type_: &str| all.iter().find(|one| one.type_ == type_).cloned();
    let mut all = Vec::new();
    for type_ in [
        CONDITION_REGISTERED,
        CONDITION_TUNNEL,
        CONDITION_READY,
        CONDITION_CONFLICT,
        CONDITION_CREDENTIALS,
        CONDITION_AGENT,
    ] {
        let Some(now) = find(now, type_) else { continue };
        let old = find(before, type_);
        let was = old.as_ref().map_or("", |old| old.status.as_str());
        let was_expiring = old.as_ref().is_some_and(|old| old.reason == "Expiring");
        let happened = match (type_, now.status.as_str()) {
            (CONDITION_REGISTERED, "True") if before.is_empty() => Happened::Registered,
            (CONDITION_REGISTERED, "True") if was == "False" => Happened::LetIn,
            (CONDITION_REGISTERED, "False") if was != "False" => Happened::ShutOut,
            (CONDITION_TUNNEL, "True") if was != "True" => Happened::Connected,
            (CONDITION_TUNNEL, "False") if was == "True" => Happened::ConnectionLost,
            (CONDITION_READY, "True") if was != "True" => Happened::Ready,
            (CONDITION_READY, status) if status != "True" && was == "True" => Happened::NotReady,
            (CONDITION_CONFLICT, "True") if was != "True" => Happened::Conflict,
            (CONDITION_CONFLICT, "False") if was == "True" => Happened::ConflictEnded,
            (CONDITION_CREDENTIALS, "False") if was != "False" => Happened::CredentialExpired,
            (CONDITION_CREDENTIALS, "True") if now.reason == "Expiring" && !was_expiring => {
                Happened::CredentialExpiring
            }
            (CONDITION_CREDENTIALS, "True") if now.reason == "Valid" && (was_expiring || was == "False") => {
                Happened::CredentialRenewed
            }
            (CONDITION_AGENT, "False") if was != "False" => Happened::AgentVersionSkew,
            _ => continue,
        };
        all.push((happened, now.message));
    }
    all
}

/// What was told of each registration request: about 200 bytes each.
#[derive(Debug, Default)]
pub(super) struct Requests(Mutex<HashMap<String, String>>);

impl Requests {
    /// What is to be told of a request as it is now, if it is news.
    pub(super) fn news(&self, request: &ClusterRegistrationRequest, now: Timestamp) -> Option<Told> {
        let status = request.status.clone().unwrap_or_default();
        let spec = &request.spec;
        let (name, key) = (printable(&spec.cluster_name, 64), printable(&spec.key_fingerprint, 64));
        let (happened, note) = match status.result.unwrap_or(RegistrationResult::Pending) {
            RegistrationResult::Pending => (
                Happened::Pending,
                format!(
                    "a cluster asks to join as {name} with key {key}; compare it with the agent's log, then: kubectl towline approve {name} --fingerprint {key}"
                ),
            ),
            RegistrationResult::Approved => {
                (Happened::Approved, format!("cluster {name} may join with key {key}"))
            }
            RegistrationResult::Denied => {
                let why = printable(&status.error_message, 256);
                (Happened::Denied, format!("cluster {name} with key {key} was turned away: {why}"))
            }
            RegistrationResult::Failed => (Happened::SetUpFailed, printable(&status.error_message, 512)),
        };
        let uid = request.uid().unwrap_or_default();
        let state = format!("{uid}/{}/{key}/{}", happened.as_str(), spec.invitation);
        let before = self.told().insert(request.name_any(), state.clone());
        let is_news = match before {
            Some(before) => before != state,
            None => {
                let created = request.creation_timestamp().map(|time| time.0);
                created.is_some_and(|created| now.duration_since(created) < NEWS)
            }
        };
        is_news.then(|| Told { regarding: reference(request), happened, note, once: Some(state) })
    }

    /// Forgets the requests that are gone.
    pub(super) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.told().retain(|name, _| is_there(name));
    }

    fn told(&self) -> MutexGuard<'_, HashMap<String, String>> {
        // Nothing under this lock can panic half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One Event that happens again and again.
#[derive(Debug, Clone, PartialEq)]
struct Series {
    told: Told,
    name: String,
    count: i32,
    first: Timestamp,
    last: Timestamp,
    written: Timestamp,
}

/// What is to be written.
#[derive(Debug, Clone, PartialEq)]
enum Write {
    New(Box<Series>),
    Count(Box<Series>),
}

/// All Events that may happen again, by object and what happened.
#[derive(Debug, Default)]
struct Book(HashMap<(String, Happened), Series>);

impl Book {
    fn take(&mut self, told: Told, now: Timestamp) -> Option<Write> {
        let uid = told.regarding.uid.clone().unwrap_or_default();
        let key = (uid.clone(), told.happened);
        if let Some(series) = self.0.get_mut(&key).filter(|series| now.duration_since(series.last) < SAME_FOR)
            && told.once.is_none()
        {
            series.count = series.count.saturating_add(1);
            series.last = now;
            series.told = told;
            if now.duration_since(series.written) < COUNT_EVERY {
                return None;
            }
            series.written = now;
            return Some(Write::Count(Box::new(series.clone())));
        }
        if self.0.len() >= MAX_SERIES {
            self.forget_old(now);
        }
        if self.0.len() >= MAX_SERIES {
            tracing::debug!("more Events than are kept count of; one is left out");
            return None;
        }
        let same = told.once.clone().unwrap_or_else(|| format!("{uid}/{}/{now}", told.happened.as_str()));
        let name = format!(
            "{}.{}",
            told.regarding.name.as_deref().unwrap_or_default(),
            &sha256_hex(same.as_bytes())[..16]
        );
        let series = Series { told, name, count: 1, first: now, last: now, written: now };
        self.0.insert(key, series.clone());
        Some(Write::New(Box::new(series)))
    }

    /// Counts that have waited long enough, at most so many: the others wait for the next look. What is over is forgotten.
    fn due(&mut self, now: Timestamp, most: usize) -> Vec<Write> {
        let waiting = self.0.values_mut().filter(|series| {
            series.last > series.written && now.duration_since(series.written) >= COUNT_EVERY
        });
        let all = waiting
            .take(most)
            .map(|series| {
                series.written = now;
                Write::Count(Box::new(series.clone()))
            })
            .collect();
        self.forget_old(now);
        all
    }

    fn forget_old(&mut self, now: Timestamp) {
        self.0.retain(|_, series| now.duration_since(series.last) < SAME_FOR || series.last > series.written);
    }
}

/// Writes until stop.
pub(super) async fn run(control: Arc<Control>, mut remarks: Remarks) -> anyhow::Result<()> {
    let mut book = Book::default();
    let mut writes: JoinSet<()> = JoinSet::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = tokio::select! {
            biased;
            () = control.stop.cancelled() => return Ok(()),
            Some(_) = writes.join_next() => continue,
            told = remarks.recv(), if writes.len() < WRITES => match told {
                Some(told) => Vec::from_iter(book.take(told, Timestamp::now())),
                None => anyhow::bail!("nobody is left to tell anything"),
            },
            _ = ticks.tick(), if writes.len() < WRITES => book.due(Timestamp::now(), WRITES - writes.len()),
        };
        for write in due {
            writes.spawn(in_time(control.client.clone(), control.settings.hub_id.clone(), write));
        }
    }
}

async fn in_time(client: Client, hub: String, write: Write) {
    match tokio::time::timeout(WRITE_TIMEOUT, carry_out(client, &hub, write)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an Event was not written"),
        Err(_) => tracing::debug!("an Event was not written in time"),
    }
}

async fn carry_out(client: Client, hub: &str, write: Write) -> Result<(), kube::Error> {
    let (Write::New(series) | Write::Count(series)) = &write;
    let space = series.told.regarding.namespace.as_deref().unwrap_or(CLUSTER_WIDE);
    let events: Api<Event> = Api::namespaced(client, space);
    if let Write::Count(series) = &write {
        let patch = json!({
            "count": series.count, "lastTimestamp": Time(whole_second(series.last)), "message": note(&series.told),
        });
        match events.patch(&series.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => return Ok(()),
            // The API server keeps Events for an hour or so.
            Err(error) if has_code(&error, 404) => {}
            Err(error) => return Err(error),
        }
    }
    match events.create(&PostParams::default(), &event(series, space, hub)).await {
        Ok(_) => Ok(()),
        // Another replica told the same.
        Err(error) if has_code(&error, 409) => Ok(()),
        Err(error) => Err(error),
    }
}

fn note(told: &Told) -> String {
    printable(&told.note, MAX_NOTE)
}

fn event(series: &Series, space: &str, hub: &str) -> Event {
    let told = &series.told;
    let mut event = Event {
        involved_object: told.regarding.clone(),
        reason: Some(told.happened.as_str().to_owned()),
        message: Some(note(told)),
        type_: Some(if told.happened.is_warning() { "Warning" } else { "Normal" }.to_owned()),
        count: Some(series.count),
        first_timestamp: Some(Time(whole_second(series.first))),
        last_timestamp: Some(Time(whole_second(series.last))),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(hub.to_owned()) }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(printable(hub, 128)),
        ..Event::default()
    };
    event.metadata.name = Some(series.name.clone());
    event.metadata.namespace = Some(space.to_owned());
    event
}

fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// The rows of the table below a heading of docs/objects.md, without backticks.
#[cfg(test)]
pub(crate) fn reference_rows(heading: &str) -> Vec<Vec<String>> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/objects.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once(&format!("\n{heading}\n")).unwrap();
    let level = heading.split(' ').next().unwrap();
    rest.lines()
        .take_while(|line| !line.starts_with(&format!("{level} ")))
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').skip(1).map(|cell| cell.trim().replace('`', "")).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use api::registration::{ClusterRegistrationRequestSpec, ClusterRegistrationRequestStatus};
    use runtime::stop::Stop;

    use super::super::fake_api::FakeApi;
    use super::*;
    use crate::catalog::Catalog;
    use crate::config::Settings;
    use crate::tunnels::Tunnels;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_900_000_000 + second).unwrap()
    }

    fn told(uid: &str, happened: Happened) -> Told {
        let regarding = ObjectReference {
            api_version: Some("clusters.clusternet.io/v1beta1".to_owned()),
            kind: Some("ManagedCluster".to_owned()),
            name: Some("edge".to_owned()),
            namespace: Some("clusternet-x".to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        Told { regarding, happened, note: "why".to_owned(), once: None }
    }

    #[test]
    fn a_tunnel_that_flaps_each_second_writes_twice_a_minute() {
        let mut book = Book::default();
        let mut writes = Vec::new();
        for second in 0..600 {
            let happened = if second % 2 == 0 { Happened::Connected } else { Happened::ConnectionLost };
            writes.extend(book.take(told("a", happened), at(second)));
            if second % 10 == 0 {
                writes.extend(book.due(at(second), WRITES));
            }
        }
        let new = writes.iter().filter(|write| matches!(write, Write::New(_))).count();
        assert_eq!(new, 2, "one Event each");
        assert!(writes.len() <= 2 + 2 * 10, "{} writes in ten minutes", writes.len());
        let most = |write: &Write| match write {
            Write::Count(series) => series.count,
            Write::New(_) => 1,
        };
        assert!(writes.iter().map(most).max().unwrap() > 250, "and all are counted");
        assert!(book.due(at(660), WRITES).len() <= 2, "what waited is written");
        book.due(at(10_000), WRITES);
        assert!(book.0.is_empty(), "and forgotten");
    }

    #[test]
    fn an_outage_of_thousands_is_counted_a_few_at_a_time() {
        let mut book = Book::default();
        for second in [0, 1] {
            for number in 0..1000 {
                book.take(told(&number.to_string(), Happened::ConnectionLost), at(second));
            }
        }
        let written: Vec<usize> = (0..40).map(|tick| book.due(at(120 + tick), WRITES).len()).collect();
        assert!(written.iter().all(|count| *count <= WRITES), "{written:?}");
        assert_eq!(written.iter().sum::<usize>(), 1000, "and all of them in the end");
    }

    #[test]
    fn what_happens_again_much_later_is_another_event() {
        let mut book = Book::default();
        let names: BTreeSet<String> = [0, 600, 1200]
            .into_iter()
            .map(|second| match book.take(told("a", Happened::Connected), at(second)) {
                Some(Write::New(series)) => series.name,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names.len(), 3);
        assert!(names.iter().all(|name| name.starts_with("edge.")));
    }

    #[test]
    fn the_book_has_an_end() {
        let mut book = Book::default();
        let taken = (0..MAX_SERIES + 10)
            .filter(|n| book.take(told(&n.to_string(), Happened::Ready), at(0)).is_some());
        assert_eq!(taken.count(), MAX_SERIES);
        assert!(book.take(told("later", Happened::Ready), at(700)).is_some(), "old ones make place");
        // The queue too: telling neither waits nor fails.
        let (story, _remarks) = story();
        (0..QUEUE + 10).for_each(|_| story.tell(told("a", Happened::Ready)));
    }

    fn condition(type_: &str, status: &str, reason: &str) -> Condition {
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: String::new(),
            last_transition_time: Time(at(0)),
            observed_generation: None,
        }
    }

    #[test]
    fn each_transition_is_told_as_what_it_means() {
        let other = condition("Other", "True", "x");
        for (type_, before, now, wanted) in [
            ("Registered", None, ("True", "Approved"), None),
            ("Registered", Some(("True", "Approved")), ("False", "ShutOut"), Some(Happened::ShutOut)),
            ("Registered", Some(("False", "ShutOut")), ("True", "Approved"), Some(Happened::LetIn)),
            ("TunnelConnected", None, ("True", "Connected"), Some(Happened::Connected)),
            ("TunnelConnected", None, ("False", "NeverConnected"), None),
            ("TunnelConnected", Some(("True", "")), ("False", ""), Some(Happened::ConnectionLost)),
            ("TunnelConnected", Some(("True", "")), ("True", ""), None),
            ("Ready", Some(("False", "")), ("True", ""), Some(Happened::Ready)),
            ("Ready", Some(("True", "")), ("Unknown", ""), Some(Happened::NotReady)),
            ("Ready", Some(("False", "")), ("Unknown", ""), None),
            ("Conflict", Some(("False", "")), ("True", ""), Some(Happened::Conflict)),
            ("Conflict", Some(("True", "")), ("False", ""), Some(Happened::ConflictEnded)),
            ("Conflict", Some(("Unknown", "")), ("False", ""), None),
            (
                "CredentialsValid",
                Some(("True", "Valid")),
                ("True", "Expiring"),
                Some(Happened::CredentialExpiring),
            ),
            ("CredentialsValid", Some(("True", "Expiring")), ("True", "Expiring"), None),
            (
                "CredentialsValid",
                Some(("True", "Expiring")),
                ("False", "Expired"),
                Some(Happened::CredentialExpired),
            ),
            (
                "CredentialsValid",
                Some(("False", "Expired")),
                ("True", "Valid"),
                Some(Happened::CredentialRenewed),
            ),
            ("CredentialsValid", None, ("True", "Valid"), None),
            ("AgentUpToDate", None, ("False", "AgentTooOld"), Some(Happened::AgentVersionSkew)),
            ("APIServerReachable", Some(("True", "")), ("False", ""), None),
        ] {
            let mut old = vec![other.clone()];
            old.extend(before.map(|(status, reason)| condition(type_, status, reason)));
            let told = changes(&old, &[condition(type_, now.0, now.1)]);
            let told: Vec<_> = told.into_iter().map(|(happened, _)| happened).collect();
            assert_eq!(told, Vec::from_iter(wanted), "{type_} {before:?} {now:?}");
        }
        let registered = changes(&[], &[condition("Registered", "True", "Approved")]);
        assert_eq!(registered[0].0, Happened::Registered, "a cluster without conditions is new");
    }

    fn request(result: Option<RegistrationResult>, key: &str) -> ClusterRegistrationRequest {
        let spec = ClusterRegistrationRequestSpec {
            cluster_name: "edge".to_owned(),
            key_fingerprint: key.to_owned(),
            ..ClusterRegistrationRequestSpec::default()
        };
        let mut request = ClusterRegistrationRequest::new("clusternet-c1", spec);
        request.metadata.uid = Some("u".to_owned());
        request.metadata.creation_timestamp = Some(Time(at(0)));
        request.status =
            Some(ClusterRegistrationRequestStatus { result, ..ClusterRegistrationRequestStatus::default() });
        request
    }

    #[test]
    fn a_request_is_told_once_for_each_thing_that_happens_to_it() {
        let requests = Requests::default();
        let news = |requests: &Requests, request: &ClusterRegistrationRequest, now| {
            requests.news(request, at(now)).map(|told| told.happened)
        };
        use RegistrationResult::{Approved, Denied, Failed, Pending};
        assert_eq!(news(&requests, &request(None, "k"), 1), Some(Happened::Pending));
        assert_eq!(news(&requests, &request(Some(Pending), "k"), 2), None, "the same");
        assert_eq!(news(&requests, &request(Some(Failed), "k"), 3), Some(Happened::SetUpFailed));
        assert_eq!(news(&requests, &request(Some(Approved), "k"), 3), Some(Happened::Approved));
        assert_eq!(news(&requests, &request(Some(Pending), "other"), 4), Some(Happened::Pending));
        assert_eq!(news(&requests, &request(Some(Denied), "other"), 5), Some(Happened::Denied));
        // A hub that has just started: what is old was told by another.
        let restarted = Requests::default();
        assert_eq!(news(&restarted, &request(Some(Approved), "k"), 10_000), None);
        assert_eq!(news(&restarted, &request(Some(Denied), "k"), 10_001), Some(Happened::Denied));
        // Two replicas give one remark one name.
        let same = |requests: &Requests| {
            let told = requests.news(&request(None, "k"), at(1)).unwrap();
            match Book::default().take(told, at(1)) {
                Some(Write::New(series)) => series.name,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(same(&Requests::default()), same(&Requests::default()));
        restarted.retain(|name| name != "clusternet-c1");
        assert!(restarted.told().is_empty());
    }

    #[tokio::test]
    async fn an_event_stands_beside_its_object_and_counts() {
        let api = FakeApi::start().await;
        let mut book = Book::default();
        let write = |write: Option<Write>| carry_out(api.client(), "hub-1", write.unwrap());
        write(book.take(told("a", Happened::ConnectionLost), at(0))).await.unwrap();
        assert_eq!(book.take(told("a", Happened::ConnectionLost), at(1)), None);
        write(book.take(told("a", Happened::ConnectionLost), at(61))).await.unwrap();
        let [path] = &api.paths()[..] else { panic!("{:?}", api.paths()) };
        assert!(path.starts_with("/api/v1/namespaces/clusternet-x/events/edge."), "{path}");
        let event = api.get(path).unwrap();
        assert_eq!((event["count"].as_i64(), event["type"].as_str()), (Some(3), Some("Warning")));
        assert_eq!(event["involvedObject"]["uid"], "a");
        assert_eq!(event["source"]["component"], "towline-hub");
        assert_eq!(event["lastTimestamp"], json!(Time(at(61))));
        // The API server has forgotten it meanwhile.
        api.delete(path);
        write(book.take(told("a", Happened::ConnectionLost), at(130))).await.unwrap();
        assert_eq!(api.get(path).unwrap()["count"], 4);
        // About something without a namespace; told by another replica before.
        let told = Requests::default().news(&request(None, "k"), at(1)).unwrap();
        for _ in 0..2 {
            write(Book::default().take(told.clone(), at(1))).await.unwrap();
        }
        assert!(api.paths().iter().any(|path| path.starts_with("/api/v1/namespaces/default/events/")));
        assert_eq!(api.paths().len(), 2);
    }

    #[tokio::test]
    async fn what_is_told_is_written_by_the_task() {
        let api = FakeApi::start().await;
        let control = Arc::new(Control {
            client: api.client(),
            catalog: Arc::new(Catalog::default()),
            tunnels: Arc::new(Tunnels::default()),
            peers: crate::control::fake_api::no_peers(),
            leading: crate::control::fake_api::always_leading(),
            settings: Arc::new(Settings::default()),
            stop: Stop::new(),
        });
        let (asked, mut noticed) = mpsc::unbounded_channel();
        api.hook(move |_, line| {
            asked.send(line.to_owned()).unwrap();
            super::super::fake_api::Reaction::Go
        });
        let (story, remarks) = story();
        let mut tasks = JoinSet::new();
        tasks.spawn(run(Arc::clone(&control), remarks));
        story.tell(told("a", Happened::Ready));
        let line = tokio::time::timeout(Duration::from_secs(20), noticed.recv()).await.unwrap().unwrap();
        assert_eq!(line, "POST /api/v1/namespaces/clusternet-x/events");
        control.stop.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
    }

    #[test]
    fn the_reference_lists_every_event_and_no_other() {
        let written: BTreeSet<_> =
            reference_rows("## Events").into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
        let type_ = |happened: &Happened| if happened.is_warning() { "Warning" } else { "Normal" };
        let found: BTreeSet<_> = Happened::ALL
            .iter()
            .map(|happened| (happened.as_str().to_owned(), type_(happened).to_owned()))
            .collect();
        assert_eq!(written, found, "docs/objects.md");
    }
}
