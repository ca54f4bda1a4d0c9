//! A parent for tests: an HTTP server on loopback that answers access reviews by a rule and records them,
//! and serves the one ConfigMap that the hub watches.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Yes, no, or an error of the server.
type Rule = Box<dyn Fn(&Value) -> Option<bool> + Send>;
type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

struct State {
    rule: Mutex<Rule>,
    asked: Mutex<Vec<Value>>,
    /// Whose each token is.
    tokens: Mutex<BTreeMap<String, Value>>,
    token_reviews: AtomicUsize,
    /// Of these, how many are not answered yet, and the most that there were.
    reviewing: (AtomicUsize, AtomicUsize),
    config_map: watch::Sender<Option<Value>>,
}

pub(crate) struct FakeParent {
    state: Arc<State>,
    url: String,
    _server: JoinSet<()>,
}

impl FakeParent {
    pub(crate) async fn start(rule: impl Fn(&Value) -> Option<bool> + Send + 'static) -> Self {
        runtime::tls::provider();
        let state = Arc::new(State {
            rule: Mutex::new(Box::new(rule)),
            asked: Mutex::default(),
            tokens: Mutex::default(),
            token_reviews: AtomicUsize::new(0),
            reviewing: Default::default(),
            config_map: watch::Sender::new(None),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::clone(&state)));
        Self { state, url, _server: server }
    }

    pub(crate) fn client(&self) -> Client {
        Client::try_from(Config::new(self.url.parse().unwrap())).unwrap()
    }

    pub(crate) fn rule(&self, rule: impl Fn(&Value) -> Option<bool> + Send + 'static) {
        *self.state.rule.lock().unwrap() = Box::new(rule);
    }

    /// The specs of all reviews so far.
    pub(crate) fn asked(&self) -> Vec<Value> {
        self.state.asked.lock().unwrap().clone()
    }

    /// Makes a token this person's, or nobody's any more; `"never"` for one of which nothing is ever said.
    pub(crate) fn token(&self, token: &str, user: Option<Value>) {
        let mut tokens = self.state.tokens.lock().unwrap();
        match user {
            Some(user) => tokens.insert(token.to_owned(), user),
            None => tokens.remove(token),
        };
    }

    /// How often somebody asked whose a token is.
    pub(crate) fn token_reviews(&self) -> usize {
        self.state.token_reviews.load(Ordering::Relaxed)
    }

    /// How many such questions waited for their answer at once, at most.
    pub(crate) fn token_reviews_at_once(&self) -> usize {
        self.state.reviewing.1.load(Ordering::Relaxed)
    }

    /// Sets the data of the ConfigMap; `None` deletes it.
    pub(crate) fn config_map(&self, data: Option<&BTreeMap<String, String>>) {
        self.state.config_map.send_replace(data.map(|data| {
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "data": data,
                "metadata": { "name": "extension-apiserver-authentication", "namespace": "kube-system", "resourceVersion": "1" },
            })
        }));
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

fn reply(code: StatusCode, value: &Value) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    *response.status_mut() = code;
    response
}

async fn answer(state: &State, request: Request<Incoming>) -> Answer {
    let watching = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    match request.uri().path() {
        "/apis/authorization.k8s.io/v1/subjectaccessreviews" => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut review: Value = serde_json::from_slice(&body).unwrap();
            state.asked.lock().unwrap().push(review["spec"].clone());
            let verdict = (state.rule.lock().unwrap())(&review["spec"]);
            match verdict {
                Some(allowed) => {
                    review["status"] = json!({ "allowed": allowed });
                    reply(StatusCode::CREATED, &review)
                }
                None => reply(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": 500 }),
                ),
            }
        }
        "/apis/authentication.k8s.io/v1/tokenreviews" => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut review: Value = serde_json::from_slice(&body).unwrap();
            state.token_reviews.fetch_add(1, Ordering::Relaxed);
            let now = state.reviewing.0.fetch_add(1, Ordering::Relaxed) + 1;
            state.reviewing.1.fetch_max(now, Ordering::Relaxed);
            // Others get their turn, as they do while a real one looks the account up.
            tokio::task::yield_now().await;
            state.reviewing.0.fetch_sub(1, Ordering::Relaxed);
            let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
            let user = state.tokens.lock().unwrap().get(&token).cloned();
            let audiences = review["spec"]["audiences"].clone();
            if user.as_ref().is_some_and(|user| user == "never") {
                return std::future::pending().await;
            }
            review["status"] = match user {
                // As Kubernetes does: a token for an audience of its own is not good for the API server.
                Some(user)
                    if user["audiences"]
                        .as_array()
                        .map_or_else(|| audiences.is_null(), |own| Some(own) == audiences.as_array()) =>
                {
                    json!({ "authenticated": true, "user": user["user"], "audiences": audiences })
                }
                _ => json!({ "authenticated": false, "error": "no such token" }),
            };
            reply(StatusCode::CREATED, &review)
        }
        "/api/v1/namespaces/kube-system/configmaps" if watching => watch_config_map(state),
        "/api/v1/namespaces/kube-system/configmaps" => {
            let items: Vec<_> = state.config_map.borrow().iter().cloned().collect();
            let list = json!({ "kind": "ConfigMapList", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": items });
            reply(StatusCode::OK, &list)
        }
        _ => reply(
            StatusCode::NOT_FOUND,
            &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "none", "reason": "NotFound", "code": 404 }),
        ),
    }
}

/// Every change from now on, as a watch event.
fn watch_config_map(state: &State) -> Answer {
    let mut changes = state.config_map.subscribe();
    // What happened between the list and this watch.
    if changes.borrow().is_some() {
        changes.mark_changed();
    }
    let events = futures::stream::unfold((changes, None::<Value>), |(mut changes, last)| async move {
        changes.changed().await.ok()?;
        let current = changes.borrow_and_update().clone();
        let event = match (&current, &last) {
            (Some(map), _) => json!({ "type": "MODIFIED", "object": map }),
            (None, _) => json!({ "type": "DELETED", "object": last.clone().unwrap_or_else(|| json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": "extension-apiserver-authentication", "namespace": "kube-system", "resourceVersion": "1" },
            })) }),
        };
        let frame = Frame::data(Bytes::from(format!("{event}\n")));
        Some((Ok::<_, Infallible>(frame), (changes, current)))
    });
    Response::new(BodyExt::boxed_unsync(StreamBody::new(events)))
}
