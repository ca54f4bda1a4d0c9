//! How a hub goes: its agents are told first, its callers next, and its tunnels close last.

use std::sync::Mutex;

use futures::channel::mpsc::{self, UnboundedSender};

use super::*;

const WATCH: &str = "/c1/proxy/direct/api/v1/pods?watch=true";

type Events = UnboundedSender<Result<Frame<Bytes>, BoxError>>;

/// A hub whose child has one watch, and what the agent was asked about itself.
async fn watched(content_type: &'static str) -> (World, Events, Arc<Mutex<Vec<String>>>) {
    let (events, body) = mpsc::unbounded();
    let (body, asked) = (Arc::new(Mutex::new(Some(body))), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&asked);
    let world = World::connected_to(move |request| {
        let (body, seen) = (Arc::clone(&body), Arc::clone(&seen));
        async move {
            if request.uri().authority().unwrap() == names::AUTHORITY_AGENT {
                let replicas = request.headers().get(names::HEADER_HUB_REPLICAS).cloned();
                let replicas = replicas.map(|count| format!(" of {}", count.to_str().unwrap()));
                let asked = format!("{} {}", request.method(), request.uri().path());
                seen.lock().unwrap().push(asked + &replicas.unwrap_or_default());
                return Response::new(whole(String::new()));
            }
            let watch = body.lock().unwrap().take_if(|_| request.uri().query().is_some());
            let Some(watch) = watch else { return child(request).await };
            let mut answer = Response::new(BodyExt::boxed_unsync(StreamBody::new(watch)));
            answer.headers_mut().insert("content-type", content_type.parse().unwrap());
            answer
        }
    })
    .await;
    (world, events, asked)
}

fn send(events: &Events, text: &'static str) {
    events.unbounded_send(Ok(Frame::data(Bytes::from_static(text.as_bytes())))).unwrap();
}

/// Whether nothing comes for longer than a watch is given once the hub drains.
async fn waits(watch: &mut Response<Incoming>) -> bool {
    tokio::time::pause();
    let waited = tokio::time::timeout(Duration::from_secs(10), watch.frame()).await;
    tokio::time::resume();
    waited.is_err()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), reached).await.is_ok(), "{what}");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_watch_ends_between_two_events_when_the_hub_drains() {
    for wire in [Wire::H1, Wire::H2] {
        let (mut world, events, _) = watched("application/json").await;
        let mut watch = world.get(wire, "alice", &format!("{BASE}{WATCH}")).await;
        send(&events, "{\"type\":");
        assert!(watch.frame().await.unwrap().is_ok());
        world.hub.phases.stopping.cancel();
        world.hub.phases.draining.cancel();
        assert!(waits(&mut watch).await, "it ended within an event");
        send(&events, "1}\n");
        let rest = tokio::time::timeout(Duration::from_secs(20), watch.collect()).await.unwrap();
        assert_eq!(rest.unwrap().to_bytes(), "1}\n");
        // The child has nobody to tell any more.
        until("the child to learn of it", || events.is_closed()).await;
        world.close().await;
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn what_is_not_known_to_be_between_two_events_is_cut_at_the_end() {
    let (mut world, events, _) = watched("application/cbor-seq").await;
    let mut watch = world.get(Wire::H2, "alice", &format!("{BASE}{WATCH}")).await;
    send(&events, "a\n");
    assert!(watch.frame().await.unwrap().is_ok());
    world.hub.phases.stopping.cancel();
    world.hub.phases.draining.cancel();
    assert!(waits(&mut watch).await, "it ended where nobody knows");
    world.hub.phases.cut.cancel();
    let end = tokio::time::timeout(Duration::from_secs(20), watch.frame()).await.unwrap();
    assert!(end.unwrap().is_err(), "it looks complete");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn agents_are_told_first_and_tunnels_serve_until_nobody_is_left_at_the_doors() {
    let (mut world, _events, asked) = watched("application/json").await;
    let id = "c1".parse().unwrap();
    let path = format!("{BASE}/c1/proxy/direct/api");
    let live = world.hub.tunnels.get(&id).unwrap();
    world.hub.phases.stopping.cancel();
    until("the agent to be told", || *asked.lock().unwrap() == ["POST /v1/goaway"]).await;
    for wire in [Wire::H1, Wire::H2] {
        assert_eq!(world.get(wire, "alice", &path).await.status(), 200);
    }
    world.hub.phases.draining.cancel();
    assert!(!live.is_closed(), "a request that is on its way finds no tunnel");
    world.hub.phases.closing.cancel();
    until("the tunnel to end in order", || world.hub.tunnels.get(&id).is_none()).await;
    assert_eq!(asked.lock().unwrap().len(), 1, "told once");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_successor_that_the_agent_names_gets_in_and_an_unknown_one_does_not() {
    let mut world = World::start()
        .await
        .connect_to(|request| async move {
            let named = request.into_body().collect().await.unwrap().to_bytes();
            let mut answer = Response::new(whole(String::new()));
            if named == "agent-2" {
                answer = answer.map(|_| whole("agent-2".to_owned()));
            }
            answer
        })
        .await;
    let id = "c1".parse().unwrap();
    let first = world.hub.tunnels.get(&id).unwrap();
    for instance in ["agent-3", "agent-2", "agent-3"] {
        let tunnel = world.attach(AGENT, "c1").await.unwrap();
        let refused = agent_side::connect(tunnel, &Hello::new("c1", instance, "1")).await.unwrap_err();
        assert!(refused.to_string().contains("Conflict"), "{refused}");
        assert!(Arc::ptr_eq(&world.hub.tunnels.get(&id).unwrap(), &first));
    }
    // The question about it is on its way when the refusal is.
    let admitted = async {
        loop {
            let tunnel = world.attach(AGENT, "c1").await.unwrap();
            if let Ok(opened) = agent_side::connect(tunnel, &Hello::new("c1", "agent-2", "1")).await {
                return opened;
            }
        }
    };
    let _opened = tokio::time::timeout(Duration::from_secs(20), admitted).await.unwrap();
    assert!(first.is_closed());
    assert_eq!(world.hub.tunnels.get(&id).unwrap().hello.instance, "agent-2");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn agents_hear_how_many_replicas_there_are_beside_the_next_question() {
    let (world, _events, asked) = watched("application/json").await;
    let live = world.hub.tunnels.get(&"c1".parse().unwrap()).unwrap();
    for count in [1, 2] {
        world.hub.tunnels.agent_status(&live, count).await.unwrap();
    }
    assert_eq!(*asked.lock().unwrap(), [1, 2].map(|count| format!("GET /v1/status of {count}")));
}
