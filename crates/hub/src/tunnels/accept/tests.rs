//! What happens at the door when a cluster has got another key: a hub behind a pipe, an agent that dials it.

use api::status::CONTENT_TYPE;
use bytes::Bytes;
use http::header::RETRY_AFTER;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use runtime::readiness::Readiness;
use tokio::task::JoinSet;
use tunnel_proto::agent_side;

use super::*;
use crate::audit::Audit;
use crate::authz::fake_parent::FakeParent;
use crate::catalog::KEY_HOLD;
use crate::config::Settings;
use crate::metrics::Metrics;

const AGENT: &str = "system:serviceaccount:clusternet-ns:clusternet-agent";
/// How long anything may take here.
const SOON: Duration = Duration::from_secs(20);

struct World {
    hub: Arc<Hub>,
    _parent: FakeParent,
    tasks: JoinSet<()>,
}

fn cluster(key: &str) -> Cluster {
    Cluster {
        id: "c1".parse().unwrap(),
        name: "edge-1".parse().unwrap(),
        namespace: "clusternet-ns".to_owned(),
        key_fingerprint: key.to_owned(),
        denied: false,
        last_seen: None,
    }
}

impl World {
    async fn start() -> Self {
        let parent = FakeParent::start(|_| Some(true)).await;
        let settings = Arc::new(Settings::default());
        let hub = Hub::new(parent.client(), settings, Readiness::new(&[]), Metrics::new(), Audit::default());
        let hub = Arc::new(hub);
        hub.catalog.replace([cluster("old")]);
        Self { hub, _parent: parent, tasks: JoinSet::new() }
    }

    /// Dials as the cluster's agent: the open WebSocket, or what the hub answered instead.
    async fn dial(&mut self) -> Result<TokioIo<Upgraded>, Response<Incoming>> {
        self.dial_after(None).await
    }

    /// The same, where its token was asked about while the cluster was held.
    async fn dial_after(&mut self, held: Option<Duration>) -> Result<TokioIo<Upgraded>, Response<Incoming>> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let hub = Arc::clone(&self.hub);
        let service = service_fn(move |request| {
            let hub = Arc::clone(&hub);
            async move {
                let who = Arc::new(Identity::new(AGENT.to_owned(), None, vec![], [].into()).unwrap());
                let answer = attach(&hub, &who, "c1".parse().unwrap(), held, request).await;
                Ok::<_, std::convert::Infallible>(
                    answer.unwrap_or_else(|refusal| handle::respond(&refusal.to_status())),
                )
            }
        });
        let served =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
        self.tasks.spawn(async move { drop(served.with_upgrades().await) });
        let (mut sender, connection) = http1::handshake(TokioIo::new(ours)).await.unwrap();
        self.tasks.spawn(async move { drop(connection.with_upgrades().await) });
        let key = agent_side::new_key();
        let mut request = Request::new(Empty::<Bytes>::new());
        request.headers_mut().extend(agent_side::upgrade_headers(&key).unwrap());
        request.headers_mut().insert("host", "hub".parse().unwrap());
        let response = sender.send_request(request).await.unwrap();
        if agent_side::check_upgrade_answer(&key, response.status(), response.headers()).is_err() {
            return Err(response);
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await.unwrap()))
    }
}

#[tokio::test]
async fn nobody_attaches_while_tokens_of_the_former_key_may_be_believed() {
    let mut world = World::start().await;
    assert!(world.dial().await.is_ok());
    world.hub.catalog.replace([cluster("new")]);
    let refused = world.dial().await.unwrap_err();
    assert_eq!(refused.status(), 503);
    let wait: u64 = refused.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=KEY_HOLD.as_secs() + 1).contains(&wait), "{wait}");
    assert_eq!(refused.headers()["content-type"], CONTENT_TYPE);
}

#[tokio::test]
async fn an_answer_that_was_asked_for_during_the_hold_is_too_old_after_it() {
    let mut world = World::start().await;
    let refused = world.dial_after(Some(Duration::from_secs(1))).await.unwrap_err();
    assert_eq!(
        (refused.status(), &refused.headers()[RETRY_AFTER]),
        (503.try_into().unwrap(), &"2".parse().unwrap())
    );
    assert!(world.dial().await.is_ok());
}

#[tokio::test]
async fn a_tunnel_whose_key_was_replaced_while_it_opened_is_not_kept() {
    let mut world = World::start().await;
    let io = world.dial().await.unwrap();
    // Nobody cuts what is not in the registry yet.
    world.hub.catalog.replace([cluster("new")]);
    world.hub.tunnels.enforce(&world.hub.catalog);
    let opened = async {
        let Ok((_, connection)) = agent_side::connect(io, &Hello::new("c1", "agent-1", "1")).await else {
            return;
        };
        let answer = async |_| Response::new(tunnel_proto::Body::default());
        drop(connection.serve(answer, std::future::pending()).await);
    };
    timeout(SOON, opened).await.unwrap();
    assert!(world.hub.tunnels.get(&"c1".parse().unwrap()).is_none());
}

#[tokio::test]
async fn a_tunnel_bears_the_key_that_it_was_let_in_with() {
    let mut world = World::start().await;
    let mut changes = world.hub.tunnels.changes();
    let io = world.dial().await.unwrap();
    let (_, _connection) = agent_side::connect(io, &Hello::new("c1", "agent-1", "1")).await.unwrap();
    timeout(SOON, changes.changed()).await.unwrap().unwrap();
    assert_eq!(world.hub.tunnels.get(&"c1".parse().unwrap()).unwrap().key, "old");
    assert_eq!(revoked(&world.hub, &"c1".parse().unwrap(), "old"), None);
    world.hub.catalog.replace([Cluster { denied: true, ..cluster("old") }]);
    assert_eq!(revoked(&world.hub, &"c1".parse().unwrap(), "old"), Some(End::ShutOut));
}

#[tokio::test]
async fn a_tunnel_that_nobody_cut_is_found_by_the_recheck() {
    let mut world = World::start().await;
    let id: ClusterId = "c1".parse().unwrap();
    let mut changes = world.hub.tunnels.changes();
    let io = world.dial().await.unwrap();
    let (_, connection) = agent_side::connect(io, &Hello::new("c1", "agent-1", "1")).await.unwrap();
    let answer = async |_| Response::new(tunnel_proto::Body::default());
    world.tasks.spawn(async move { drop(connection.serve(answer, std::future::pending()).await) });
    timeout(SOON, changes.changed()).await.unwrap().unwrap();
    world.hub.catalog.replace([cluster("new")]);
    tokio::time::pause();
    tokio::time::advance(crate::limits::RECHECK).await;
    timeout(SOON, changes.changed()).await.unwrap().unwrap();
    assert!(world.hub.tunnels.get(&id).is_none());
}
