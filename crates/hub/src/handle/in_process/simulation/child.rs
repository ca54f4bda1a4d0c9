//! The clusters of a simulation: what reaches them, and whether it may have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use super::plan::{CLUSTERS, Kind};
use super::*;

/// After a cluster is shut out at all replicas, a request that was under way may still arrive for so long: the longest
/// delay of a link, twice, for two hops.
const STRAGGLERS: Duration = Duration::from_millis(400);

/// After a tunnel has opened for its agent, the hub has it too, and what it replaces has been told.
const SETTLED: Duration = Duration::from_secs(1);

/// One request in one child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) cluster: usize,
    pub(super) user: String,
    pub(super) groups: Vec<String>,
    /// The replica whose tunnel it came through.
    pub(super) replica: usize,
    pub(super) body: Option<usize>,
}

/// What the children have seen of all requests.
#[derive(Debug)]
pub(super) struct Children {
    began: Instant,
    pub(super) seen: Mutex<BTreeMap<usize, Vec<Delivery>>>,
    pub(super) wrong: Mutex<Vec<String>>,
    /// Since when a cluster is shut out everywhere.
    pub(super) denied: Mutex<[Option<Instant>; CLUSTERS]>,
    /// Whom the agent of each cluster calls its successor.
    pub(super) successors: Mutex<[Option<String>; CLUSTERS]>,
    /// Processes that have called another one their successor.
    done: Mutex<BTreeSet<String>>,
    /// Since when each is open, and whether it is on a link that lasts.
    open: Mutex<BTreeMap<TunnelKey, (Instant, bool)>>,
}

/// A tunnel by replica, cluster and process.
type TunnelKey = (usize, usize, String);

/// Which process of the agent of which cluster, behind which replica's tunnel.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) cluster: usize,
    pub(super) instance: String,
    pub(super) replica: usize,
}

impl Place {
    fn is_copy(&self) -> bool {
        self.instance.starts_with("copy")
    }
}

/// A tunnel, while its agent has it.
pub(super) struct Open<'a> {
    children: &'a Children,
    key: TunnelKey,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.children.open.lock().unwrap().remove(&self.key);
    }
}

impl Children {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            seen: Mutex::default(),
            wrong: Mutex::default(),
            denied: Mutex::default(),
            successors: Mutex::default(),
            done: Mutex::default(),
            open: Mutex::default(),
        }
    }

    /// Of this run.
    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.duration_since(self.began).as_millis()).unwrap()
    }

    /// What a request asks a child for; when it was asked stands in it.
    pub(super) fn path(&self, id: usize, kind: Kind) -> String {
        let query = if kind == Kind::Watch { "?watch=true" } else { "" };
        format!("{id}/{kind:?}/{}{query}", self.millis(Instant::now()))
    }

    pub(super) fn complain(&self, wrong: String) {
        self.wrong.lock().unwrap().push(wrong);
    }

    /// What the agent at this place answers.
    pub(super) async fn answer(self: Arc<Self>, place: Place, request: Request<Incoming>) -> Response<Body> {
        if request.uri().authority().map(http::uri::Authority::as_str) == Some(names::AUTHORITY_AGENT) {
            return self.of_itself(&place, request).await;
        }
        let path = request.uri().path().to_owned();
        let mut parts = path.split('/').skip(1);
        let (id, kind) = (parts.next().unwrap().parse::<usize>().unwrap(), parts.next().unwrap().to_owned());
        let asked = parts.next().unwrap().parse::<u64>().unwrap();
        let who = Identity::from_header(&request.headers()[IDENTITY_HEADER]).unwrap();
        self.arrived(&place, id, asked, &who);
        let line = format!("{} {id} {}\n", place.cluster, who.user());
        match kind.as_str() {
            "Post" => {
                let Ok(body) = request.into_body().collect().await else {
                    return Response::new(whole("cut".to_owned()));
                };
                let bytes = body.to_bytes();
                if bytes.iter().any(|byte| usize::from(*byte) != id % 251) {
                    self.complain(format!("P4: the body of request {id} has a byte of another one"));
                }
                if let Some(last) = self.seen.lock().unwrap().get_mut(&id).and_then(|all| all.last_mut()) {
                    last.body = Some(bytes.len());
                }
                Response::new(whole(line))
            }
            "Slow" => {
                sleep(Duration::from_secs(3)).await;
                Response::new(whole(line))
            }
            "Watch" => {
                let lines = futures::stream::unfold(0, move |number| {
                    let text = format!("{} {id} {number}\n", place.cluster);
                    async move {
                        if number == WATCHED {
                            return None;
                        }
                        sleep(Duration::from_millis(300)).await;
                        Some((Ok::<_, BoxError>(Frame::data(Bytes::from(text))), number + 1))
                    }
                });
                Response::new(BodyExt::boxed_unsync(StreamBody::new(lines)))
            }
            _ => Response::new(whole(line)),
        }
    }

    /// What the agent says of itself.
    async fn of_itself(&self, place: &Place, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() != names::PATH_SUCCESSOR {
            return Response::new(whole("{}".to_owned()));
        }
        let asked = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        // A copy has a Secret of its own.
        let named = self.successors.lock().unwrap()[place.cluster].clone().filter(|_| !place.is_copy());
        match named.filter(|named| named.as_bytes() == asked && *named != place.instance) {
            Some(named) => {
                self.done.lock().unwrap().insert(place.instance.clone());
                Response::new(whole(named))
            }
            None => {
                let mut answer = Response::new(whole("{}".to_owned()));
                *answer.status_mut() = StatusCode::CONFLICT;
                answer
            }
        }
    }

    /// Whether this process dials no more.
    pub(super) fn is_done(&self, instance: &str) -> bool {
        self.done.lock().unwrap().contains(instance)
    }

    /// A process was let in.
    pub(super) fn opened(&self, place: &Place, lasts: bool) -> Open<'_> {
        let key = (place.replica, place.cluster, place.instance.clone());
        let others = self.others(place);
        if let Some((other, _)) = others.into_iter().find(|(other, _)| !self.is_done(other)) {
            self.complain(format!("P10: {place:?} was let in beside {other}"));
        }
        self.open.lock().unwrap().insert(key.clone(), (Instant::now(), lasts));
        Open { children: self, key }
    }

    /// Other processes with a tunnel of this cluster at this replica, on a link that lasts, for longer than a message takes; and since when.
    fn others(&self, place: &Place) -> Vec<(String, Instant)> {
        let open = self.open.lock().unwrap();
        let here = open.iter().filter(|((replica, cluster, instance), _)| {
            (*replica, *cluster) == (place.replica, place.cluster) && *instance != place.instance
        });
        here.filter(|(_, (since, lasts))| *lasts && since.elapsed() > SETTLED)
            .map(|((_, _, instance), (since, _))| (instance.clone(), *since))
            .collect()
    }

    fn arrived(&self, place: &Place, id: usize, asked: u64, who: &Identity) {
        let now = Instant::now();
        let delivery = Delivery {
            cluster: place.cluster,
            user: who.user().to_owned(),
            groups: who.groups().to_vec(),
            replica: place.replica,
            body: None,
        };
        self.seen.lock().unwrap().entry(id).or_default().push(delivery);
        let denied = self.denied.lock().unwrap()[place.cluster];
        if denied.is_some_and(|since| now > since + STRAGGLERS) {
            self.complain(format!(
                "P6: request {id} reached cluster {} after it was shut out",
                place.cluster
            ));
        }
        let key = (place.replica, place.cluster, place.instance.clone());
        let ours = self.open.lock().unwrap().get(&key).copied();
        let later = |since: Instant| ours.is_none_or(|(ours, _)| ours < since);
        let newer = |(_, since): &(String, Instant)| later(*since) && self.millis(*since + SETTLED) < asked;
        if let Some((other, _)) = self.others(place).into_iter().find(newer) {
            self.complain(format!("P10: request {id} went to {place:?}, {other} had come"));
        }
    }
}

/// Lines of a whole watch.
pub(super) const WATCHED: usize = 12;
