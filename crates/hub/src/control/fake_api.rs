//! A parent's API for tests: objects in memory behind a loopback listener, with resourceVersions, generations,
//! conflicts, preconditions, label selectors, status subresources and token requests. A test may look at each request
//! before it is answered, change the objects under it, refuse it or let it hang.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::metrics::Metrics;
use crate::peers::Peers;

/// What a replica that stands alone knows of others.
pub(crate) fn no_peers() -> Arc<Peers> {
    Arc::new(Peers::new("hub-1", Metrics::default()))
}

/// A replica that runs all controllers.
pub(crate) fn always_leading() -> watch::Receiver<bool> {
    watch::channel(true).1
}

/// What happens to a request.
pub(crate) enum Reaction {
    Go,
    Refuse(u16),
    Hang,
}

/// Objects by path, `/api/v1/namespaces/NS/secrets/NAME`.
pub(crate) type Objects = BTreeMap<String, Value>;
type Hook = Box<dyn FnMut(&mut Objects, &str) -> Reaction + Send>;

struct State {
    objects: Mutex<Objects>,
    asked: Mutex<Vec<String>>,
    hook: Mutex<Hook>,
    version: Mutex<u64>,
}

pub(crate) struct FakeApi {
    state: Arc<State>,
    url: String,
    _server: JoinSet<()>,
}

impl FakeApi {
    pub(crate) async fn start() -> Self {
        runtime::tls::provider();
        let state = Arc::new(State {
            objects: Mutex::default(),
            asked: Mutex::default(),
            hook: Mutex::new(Box::new(|_, _| Reaction::Go)),
            version: Mutex::new(100),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::clone(&state)));
        Self { state, url, _server: server }
    }

    pub(crate) fn client(&self) -> Client {
        let mut config = Config::new(self.url.parse().unwrap());
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }

    /// Looks at each request (`POST /path`) before it is answered.
    pub(crate) fn hook(&self, hook: impl FnMut(&mut Objects, &str) -> Reaction + Send + 'static) {
        *self.state.hook.lock().unwrap() = Box::new(hook);
    }

    /// Puts an object there, as somebody else would.
    pub(crate) fn put(&self, path: &str, object: &impl serde::Serialize) {
        let mut object = serde_json::to_value(object).unwrap();
        stamp(&self.state, path, &mut object);
        self.state.objects.lock().unwrap().insert(path.to_owned(), object);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.objects.lock().unwrap().get(path).cloned()
    }

    pub(crate) fn delete(&self, path: &str) {
        self.state.objects.lock().unwrap().remove(path);
    }

    /// The paths of all objects.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.state.objects.lock().unwrap().keys().cloned().collect()
    }

    /// All requests so far, `POST /path`.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state.asked.lock().unwrap().clone()
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(|request| {
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(answer(&state, request).await) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

async fn answer(state: &State, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let path = head.uri.path().to_owned();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let line = format!("{} {path}", head.method);
    state.asked.lock().unwrap().push(line.clone());
    let reaction = (state.hook.lock().unwrap())(&mut state.objects.lock().unwrap(), &line);
    let answered = match reaction {
        Reaction::Go if query.contains("watch=true") => return std::future::pending().await,
        Reaction::Go => {
            carry_out(state, &mut state.objects.lock().unwrap(), &head.method, &path, &query, body)
        }
        Reaction::Refuse(code) => Err(code),
        Reaction::Hang => return std::future::pending().await,
    };
    let (code, value) = match answered {
        Ok(value) if head.method == Method::POST => (201, value),
        Ok(value) => (200, value),
        Err(code) => (
            code,
            json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": format!("{line} answered {code}"), "code": code,
                    "reason": if code == 404 { "NotFound" } else { "Test" } }),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn carry_out(
    state: &State,
    objects: &mut Objects,
    method: &Method,
    path: &str,
    query: &str,
    body: Value,
) -> Result<Value, u16> {
    if let Some(account) = path.strip_suffix("/token") {
        let account = objects.get(account).ok_or(404_u16)?;
        let mut answer = body;
        let token = format!("token-of-{}", account["metadata"]["uid"].as_str().unwrap());
        answer["status"] = json!({ "token": token, "expirationTimestamp": "2100-01-01T00:00:00Z" });
        return Ok(answer);
    }
    let (path, status_only) = path.strip_suffix("/status").map_or((path, false), |path| (path, true));
    let there = objects.get(path).cloned();
    match method.as_str() {
        "POST" => {
            let path = format!("{path}/{}", body["metadata"]["name"].as_str().ok_or(422_u16)?);
            if objects.contains_key(&path) {
                return Err(409);
            }
            let mut object = body;
            stamp(state, &path, &mut object);
            objects.insert(path, object.clone());
            Ok(object)
        }
        "GET" if is_collection(path) => Ok(list(objects, path, query)),
        "GET" => there.ok_or(404),
        "PUT" | "PATCH" => {
            let there = there.ok_or(404_u16)?;
            fits(&there, &body["metadata"])?;
            // A real one takes an empty text for null (go-openapi/validate), and refuses it where a text has to be.
            if status_only && path.contains("managedclusters") && has_empty_text(&body["status"]) {
                return Err(422);
            }
            let mut object = there.clone();
            if method == Method::PUT {
                object = body;
                object["metadata"]["uid"] = there["metadata"]["uid"].clone();
                object["metadata"]["creationTimestamp"] = there["metadata"]["creationTimestamp"].clone();
            } else {
                merge(&mut object, &body);
            }
            if status_only {
                object = json!({ "status": object["status"] });
                let mut whole = there.clone();
                merge(&mut whole, &object);
                whole["status"] = object["status"].clone();
                object = whole;
            } else if path.contains("clusternet.io") {
                object["status"] = there["status"].clone();
            }
            // As for a CRD with a status of its own.
            let generation = there["metadata"]["generation"].as_u64().unwrap_or(1);
            let changed = object["spec"] != there["spec"];
            object["metadata"]["generation"] = (generation + u64::from(changed)).into();
            stamp(state, path, &mut object);
            objects.insert(path.to_owned(), object.clone());
            Ok(object)
        }
        "DELETE" => {
            fits(&there.ok_or(404_u16)?, &body["preconditions"])?;
            objects.remove(path);
            Ok(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }))
        }
        other => panic!("{other} {path}"),
    }
}

fn has_empty_text(value: &Value) -> bool {
    let fields = value.as_object().into_iter().flat_map(serde_json::Map::values);
    fields.into_iter().any(|field| field.as_str() == Some("") || has_empty_text(field))
}

/// What a write was based on has to be what is there.
fn fits(there: &Value, wanted: &Value) -> Result<(), u16> {
    let same = |field: &str| wanted[field].is_null() || wanted[field] == there["metadata"][field];
    if same("uid") && same("resourceVersion") { Ok(()) } else { Err(409) }
}

fn is_collection(path: &str) -> bool {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest = if parts[0] == "api" { &parts[2..] } else { &parts[3..] };
    rest.len() == 1 || (rest[0] == "namespaces" && rest.len() == 3)
}

fn list(objects: &Objects, path: &str, query: &str) -> Value {
    let query: BTreeMap<String, String> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), decoded(value)))
        .collect();
    let (prefix, resource) = path.rsplit_once('/').unwrap();
    let selected = |object: &Value| {
        let labels = &object["metadata"]["labels"];
        let by_label = query.get("labelSelector").is_none_or(|selector| {
            selector.split(',').all(|one| match one.split_once('=') {
                Some((key, value)) => labels[key] == value,
                None => !labels[one].is_null(),
            })
        });
        let by_field = query.get("fieldSelector").is_none_or(|selector| match selector.split_once('=') {
            Some(("type", value)) => object["type"] == value,
            Some(("metadata.name", value)) => object["metadata"]["name"] == value,
            other => panic!("{other:?}"),
        });
        by_label && by_field
    };
    let items: Vec<&Value> = objects
        .iter()
        .filter(|(key, _)| {
            let (collection, _) = key.rsplit_once('/').unwrap();
            let within = collection
                .strip_prefix(prefix)
                .and_then(|rest| rest.strip_suffix(resource))
                .is_some_and(|rest| rest == "/" || rest.starts_with("/namespaces/"));
            collection == path || within
        })
        .map(|(_, object)| object)
        .filter(|object| selected(object))
        .collect();
    json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": items })
}

/// Percent-decoded.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(if byte == b'+' { b' ' } else { byte });
            continue;
        }
        let hex = [rest.next().unwrap(), rest.next().unwrap()];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

fn stamp(state: &State, path: &str, object: &mut Value) {
    let mut version = state.version.lock().unwrap();
    *version += 1;
    let metadata = &mut object["metadata"];
    metadata["name"] = path.rsplit_once('/').unwrap().1.into();
    metadata["resourceVersion"] = version.to_string().into();
    if metadata["uid"].is_null() {
        metadata["uid"] = format!("uid-{version}").into();
    }
    if metadata["generation"].is_null() {
        metadata["generation"] = 1.into();
    }
    if metadata["creationTimestamp"].is_null() {
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    // What stands below a namespace is in it.
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    if let Some(at) = parts.iter().position(|part| *part == "namespaces").filter(|at| parts.len() > at + 2) {
        metadata["namespace"] = parts[at + 1].into();
    }
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}
