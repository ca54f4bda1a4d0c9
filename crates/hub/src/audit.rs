//! The hub's audit log: who asked what of which cluster, and what came of it. One JSON line an event in the shape of
//! `audit.k8s.io/v1`, so that the tools that read kube-apiserver's log read this one, and with the same `auditID` as
//! the lines of parent and child.
//!
//! An event is opened before a request is sent on and closed exactly once, when its answer has ended or was dropped:
//! it holds its place in the queue from the start, so that closing can neither fail nor wait. When the log cannot be
//! written as fast as requests come, new ones are refused. Headers and bodies never get in; of a query, what is
//! named like a secret is left out.

use std::borrow::Cow;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use api::identity::Identity;
use api::names::{ClusterId, PROXIES_GROUP, PROXIES_VERSION};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::catalog::Cluster;
use crate::refusal::Refusal;

/// Lines that may wait to be written beyond one for each open event, which has its place already. About 1 KiB each.
const SPARE: usize = 8192;
/// Groups of a user that are written; how many there are is always written.
const GROUPS: usize = 100;
/// Bytes of a user agent that are written.
const USER_AGENT: usize = 512;
/// Pause between two writes: waking the writer for each line costs a request more than its line does. A crash of the
/// process loses what came in so long.
const PAUSE: Duration = Duration::from_millis(5);
/// Room for an ordinary line.
const LINE: usize = 1024;
/// What a query key contains whose value is a secret.
const SECRET_KEYS: [&str; 4] = ["token", "password", "secret", "credential"];

/// Where the log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Nowhere.
    Off,
    /// Standard output; the process's own log is on standard error.
    Stdout,
    /// The end of a file.
    File(PathBuf),
}

/// The log. Clones write to the same one.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    queue: Option<mpsc::Sender<Vec<u8>>>,
}

/// The thread that writes; it ends when the last event and the last [`Audit`] are gone.
pub type Writer = JoinHandle<()>;

impl Audit {
    /// Starts the log with places for so many open events. `lost` counts lines that could not be written.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn start(target: &Target, open: usize, lost: Counter) -> anyhow::Result<(Self, Option<Writer>)> {
        let sink: Box<dyn Write + Send> = match target {
            Target::Off => return Ok((Self::default(), None)),
            Target::Stdout => Box::new(std::io::stdout()),
            Target::File(path) => Box::new(
                std::fs::File::options()
                    .create(true)
                    .append(true)
                    .open(path)
                    .with_context(|| format!("--audit-log {}", path.display()))?,
            ),
        };
        let (queue, lines) = mpsc::channel(open + SPARE);
        let writer = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write(lines, sink, &lost))
            .context("the thread of the audit log")?;
        Ok((Self { queue: Some(queue) }, Some(writer)))
    }

    /// Opens an event.
    ///
    /// # Errors
    /// The log is too far behind.
    pub fn open(&self, asked: Asked<'_>) -> Result<Event, Refusal> {
        let Some(queue) = &self.queue else { return Ok(Event(None)) };
        let place = queue.clone().try_reserve_owned().map_err(|_| Refusal::AuditBehind)?;
        Ok(Event(Some(Box::new(Open {
            place: Some(place),
            queue: queue.clone(),
            id: asked.id.clone(),
            verb: asked.verb,
            uri: asked.uri.clone(),
            resource: asked.resource,
            source: asked.source,
            user_agent: asked.headers.get(header::USER_AGENT).cloned(),
            received: now(),
            cluster: asked.cluster.cloned(),
            who: None,
            whom: None,
            known: None,
            child_user: None,
            credential: None,
            code: None,
            end: None,
        }))))
    }
}

/// What is asked, as far as it is known before anybody is asked who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The audit id.
    pub id: &'a HeaderValue,
    /// Kubernetes' verb for the method.
    pub verb: &'static str,
    /// As it came.
    pub uri: &'a Uri,
    /// Of these only the user agent is written.
    pub headers: &'a HeaderMap,
    /// What it is about.
    pub resource: Resource,
    /// Whose socket, if it is about one.
    pub cluster: Option<&'a ClusterId>,
    /// Where the person or tool is.
    pub source: IpAddr,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// A subresource of a socket.
    Socket(&'static str),
    /// Something of access.towline.io.
    Access(&'static str),
}

/// An open event; it is closed on drop. Empty when there is no audit log.
#[derive(Debug, Default)]
pub struct Event(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    place: Option<mpsc::OwnedPermit<Vec<u8>>>,
    queue: mpsc::Sender<Vec<u8>>,
    // As they came, and shared with the request: only the line itself is written out.
    id: HeaderValue,
    verb: &'static str,
    uri: Uri,
    resource: Resource,
    source: IpAddr,
    user_agent: Option<HeaderValue>,
    received: Timestamp,
    cluster: Option<ClusterId>,
    who: Option<Arc<Identity>>,
    whom: Option<Arc<Identity>>,
    known: Option<Arc<Cluster>>,
    child_user: Option<String>,
    credential: Option<String>,
    code: Option<StatusCode>,
    end: Option<&'static str>,
}

impl Event {
    /// Who asks.
    pub fn who(&mut self, who: &Arc<Identity>) {
        if let Some(open) = &mut self.0 {
            open.who = Some(Arc::clone(who));
        }
    }

    /// As whom they ask, if not as themselves.
    pub fn impersonates(&mut self, whom: &Arc<Identity>) {
        if let Some(open) = &mut self.0 {
            open.whom = Some(Arc::clone(whom));
        }
    }

    /// By which of the hub's own tokens.
    pub fn credential(&mut self, id: &str) {
        if let Some(open) = &mut self.0 {
            open.credential = Some(id.to_owned());
        }
    }

    /// Which cluster that is, and as whom it is asked.
    pub fn child(&mut self, cluster: &Arc<Cluster>, user: &str) {
        let Some(open) = &mut self.0 else { return };
        open.known = Some(Arc::clone(cluster));
        open.child_user = open
            .whom
            .as_ref()
            .or(open.who.as_ref())
            .filter(|who| who.user() != user)
            .map(|_| user.to_owned());
    }

    /// Writes that the request has come, before it is sent on: for what changes something or stays open, which may
    /// outlive this hub.
    pub fn received(&self) {
        if let Some(open) = &self.0 {
            let _ = open.queue.try_send(open.line("RequestReceived"));
        }
    }

    /// The answer's status.
    pub fn answered(&mut self, code: StatusCode) {
        if let Some(open) = &mut self.0 {
            open.code = Some(code);
        }
    }

    /// How it ended, if not simply so.
    pub fn ended(&mut self, how: &'static str) {
        if let Some(open) = &mut self.0 {
            open.end = Some(how);
        }
    }

    /// This event, to be closed by somebody else; what stays behind closes nothing.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self(self.0.take())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Some(open) = &mut self.0 else { return };
        if let Some(place) = open.place.take() {
            drop(place.send(open.line("ResponseComplete")));
        }
    }
}

impl Open {
    fn line(&self, stage: &'static str) -> Vec<u8> {
        let name = self.cluster.as_ref().map(ClusterId::as_str);
        let (group, version, resource, subresource) = match self.resource {
            Resource::Socket(subresource) => (PROXIES_GROUP, PROXIES_VERSION, "sockets", Some(subresource)),
            Resource::Access(resource) => {
                (api::names::ACCESS_GROUP, api::names::ACCESS_VERSION, resource, None)
            }
        };
        let complete = stage == "ResponseComplete";
        let end = match (self.end, self.code) {
            (Some(end), _) => Some(end),
            (None, None) if complete => Some("the caller went away before the answer"),
            _ => None,
        };
        let line = Line {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: "Metadata",
            audit_id: self.id.to_str().unwrap_or_default(),
            stage,
            request_uri: &without_secrets(&self.uri),
            verb: self.verb,
            user: self.who.as_deref().map(User::of).unwrap_or_default(),
            impersonated_user: self.whom.as_deref().map(User::of),
            source_ips: [self.source],
            user_agent: &self.user_agent.as_ref().map(user_agent).unwrap_or_default(),
            object_ref: ObjectRef { resource, name, api_group: group, api_version: version, subresource },
            response_status: self.code.map(|code| ResponseStatus { metadata: Empty {}, code: code.as_u16() }),
            request_received_timestamp: self.received,
            stage_timestamp: if complete { now() } else { self.received },
            annotations: Annotations {
                cluster: self.known.as_ref().map(|cluster| cluster.name.as_str()),
                child_user: self.child_user.as_deref(),
                credential: self.credential.as_deref(),
                groups: self.who.as_ref().map(|who| who.groups().len()).filter(|count| *count > GROUPS),
                end,
            },
        };
        let mut text = Vec::with_capacity(LINE);
        // Nothing in it can fail to be JSON; what there is would still keep the count right.
        let _ = serde_json::to_writer(&mut text, &line);
        text.push(b'\n');
        text
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    kind: &'static str,
    api_version: &'static str,
    level: &'static str,
    #[serde(rename = "auditID")]
    audit_id: &'a str,
    stage: &'static str,
    #[serde(rename = "requestURI")]
    request_uri: &'a str,
    verb: &'static str,
    user: User<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    impersonated_user: Option<User<'a>>,
    #[serde(rename = "sourceIPs")]
    source_ips: [IpAddr; 1],
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
    object_ref: ObjectRef<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<ResponseStatus>,
    request_received_timestamp: Timestamp,
    stage_timestamp: Timestamp,
    annotations: Annotations<'a>,
}

#[derive(Serialize, Default)]
struct User<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    groups: &'a [String],
}

impl<'a> User<'a> {
    fn of(who: &'a Identity) -> Self {
        let groups = who.groups();
        Self { username: Some(who.user()), groups: groups.get(..GROUPS).unwrap_or(groups) }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectRef<'a> {
    resource: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    api_group: &'static str,
    api_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subresource: Option<&'static str>,
}

#[derive(Serialize)]
struct ResponseStatus {
    metadata: Empty,
    code: u16,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Annotations<'a> {
    #[serde(rename = "towline.io/cluster", skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
    #[serde(rename = "towline.io/child-user", skip_serializing_if = "Option::is_none")]
    child_user: Option<&'a str>,
    #[serde(rename = "towline.io/credential", skip_serializing_if = "Option::is_none")]
    credential: Option<&'a str>,
    #[serde(
        rename = "towline.io/groups",
        skip_serializing_if = "Option::is_none",
        serialize_with = "as_text"
    )]
    groups: Option<usize>,
    #[serde(rename = "towline.io/end", skip_serializing_if = "Option::is_none")]
    end: Option<&'static str>,
}

/// Annotations are strings.
fn as_text<S: serde::Serializer>(count: &Option<usize>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&count.unwrap_or_default())
}

/// Kubernetes' `MicroTime`.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

fn user_agent(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes().get(..USER_AGENT).unwrap_or(value.as_bytes()))
}

/// Path and query; the values of keys that are named like secrets are replaced.
fn without_secrets(uri: &Uri) -> Cow<'_, str> {
    let (path, query) = (uri.path(), uri.query().unwrap_or_default());
    let secret = |pair: &str| {
        let key = pair.split_once('=').map(|(key, _)| key.to_ascii_lowercase());
        key.is_some_and(|key| SECRET_KEYS.iter().any(|word| key.contains(word)) || key.contains('%'))
    };
    if !query.split('&').any(secret) {
        return uri.path_and_query().map_or(path, |whole| whole.as_str()).into();
    }
    let pairs: Vec<Cow<'_, str>> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((key, _)) if secret(pair) => format!("{key}=REDACTED").into(),
            _ => pair.into(),
        })
        .collect();
    format!("{path}?{}", pairs.join("&")).into()
}

/// Writes what comes until nobody can send any more.
fn write(mut lines: mpsc::Receiver<Vec<u8>>, sink: Box<dyn Write + Send>, lost: &Counter) {
    let mut sink = std::io::BufWriter::with_capacity(64 * 1024, sink);
    let mut told = false;
    while let Some(line) = lines.blocking_recv() {
        let mut waiting = vec![line];
        while let Ok(line) = lines.try_recv() {
            waiting.push(line);
            if waiting.len() == SPARE {
                break;
            }
        }
        let written = waiting.iter().try_for_each(|line| sink.write_all(line));
        if let Err(error) = written.and_then(|()| sink.flush()) {
            lost.inc_by(waiting.len() as u64);
            if !told {
                tracing::error!(%error, "the audit log cannot be written; towline_hub_audit_lost_total counts what is missing");
            }
            told = true;
        } else {
            told = false;
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    static ID: HeaderValue = HeaderValue::from_static("id-1");

    fn asked<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Asked<'a> {
        Asked {
            id: &ID,
            verb: "get",
            uri,
            headers,
            resource: Resource::Socket("proxy"),
            cluster: None,
            source: [10, 0, 0, 1].into(),
        }
    }

    fn log(places: usize) -> (Audit, mpsc::Receiver<Vec<u8>>) {
        let (queue, lines) = mpsc::channel(places);
        (Audit { queue: Some(queue) }, lines)
    }

    fn next(lines: &mut mpsc::Receiver<Vec<u8>>) -> Value {
        serde_json::from_slice(&lines.try_recv().unwrap()).unwrap()
    }

    #[test]
    fn an_event_has_the_shape_that_audit_tools_read() {
        let (audit, mut lines) = log(2);
        let uri = "/apis/x/sockets/c1/proxy/direct/api?limit=5".parse().unwrap();
        let headers = [(header::USER_AGENT, "kubectl/v1.37".parse().unwrap())].into_iter().collect();
        let cluster = Cluster {
            id: "c1".parse().unwrap(),
            name: "edge-1".parse().unwrap(),
            namespace: String::new(),
            key_fingerprint: String::new(),
            denied: false,
            last_seen: None,
        };
        let asked = Asked { cluster: Some(&cluster.id), ..asked(&uri, &headers) };
        let mut event = audit.open(asked).unwrap();
        event.who(&Arc::new(Identity::of("alice", &["dev"]).unwrap()));
        event.child(&Arc::new(cluster.clone()), "clusternet:alice");
        event.received();
        event.answered(StatusCode::OK);
        let first = next(&mut lines);
        assert_eq!((&first["stage"], &first["responseStatus"]), (&"RequestReceived".into(), &Value::Null));
        drop(event);
        let line = next(&mut lines);
        for (path, expected) in [
            ("/kind", "Event"),
            ("/apiVersion", "audit.k8s.io/v1"),
            ("/level", "Metadata"),
            ("/auditID", "id-1"),
            ("/stage", "ResponseComplete"),
            ("/requestURI", "/apis/x/sockets/c1/proxy/direct/api?limit=5"),
            ("/verb", "get"),
            ("/user/username", "alice"),
            ("/user/groups/0", "dev"),
            ("/sourceIPs/0", "10.0.0.1"),
            ("/userAgent", "kubectl/v1.37"),
            ("/objectRef/resource", "sockets"),
            ("/objectRef/subresource", "proxy"),
            ("/objectRef/name", "c1"),
            ("/annotations/towline.io~1cluster", "edge-1"),
            ("/annotations/towline.io~1child-user", "clusternet:alice"),
        ] {
            assert_eq!(line.pointer(path).and_then(Value::as_str), Some(expected), "{path} in {line}");
        }
        assert_eq!(line["responseStatus"]["code"], 200);
        assert!(lines.try_recv().is_err(), "closed once");
    }

    #[test]
    fn an_event_that_is_handed_over_is_closed_once_and_one_without_answer_says_so() {
        let (audit, mut lines) = log(1);
        let (uri, headers) = ("/x".parse().unwrap(), HeaderMap::new());
        let mut event = audit.open(asked(&uri, &headers)).unwrap();
        let taken = event.take();
        drop(event);
        assert!(lines.try_recv().is_err());
        drop(taken);
        assert_eq!(
            next(&mut lines)["annotations"]["towline.io/end"],
            "the caller went away before the answer"
        );
    }

    #[test]
    fn a_log_that_cannot_follow_refuses_and_never_loses_an_open_event() {
        let (audit, mut lines) = log(1);
        let (uri, headers) = ("/x".parse().unwrap(), HeaderMap::new());
        let event = audit.open(asked(&uri, &headers)).unwrap();
        assert_eq!(audit.open(asked(&uri, &headers)).unwrap_err(), Refusal::AuditBehind);
        drop(event);
        assert_eq!(next(&mut lines)["auditID"], "id-1");
        assert!(audit.open(asked(&uri, &headers)).is_ok());
    }

    #[test]
    fn no_secret_of_a_query_gets_in() {
        for (uri, shown) in [
            ("/a?watch=1&x=2", "/a?watch=1&x=2"),
            ("/a", "/a"),
            ("/a?access_token=abc&x=2", "/a?access_token=REDACTED&x=2"),
            ("/a?X=2&Client-Secret=abc", "/a?X=2&Client-Secret=REDACTED"),
            ("/a?%74oken=abc", "/a?%74oken=REDACTED"),
        ] {
            assert_eq!(without_secrets(&uri.parse().unwrap()), shown);
        }
    }

    #[test]
    fn a_file_grows_by_whole_lines_and_the_writer_ends_with_the_last_sender() {
        let directory = std::env::temp_dir().join(format!("towline-audit-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("audit.log");
        let (audit, writer) = Audit::start(&Target::File(path.clone()), 10, Counter::default()).unwrap();
        let (uri, headers) = ("/x".parse().unwrap(), HeaderMap::new());
        for _ in 0..3 {
            drop(audit.open(asked(&uri, &headers)).unwrap());
        }
        drop(audit);
        writer.unwrap().join().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count(), 3);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
