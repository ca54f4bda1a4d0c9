//! The whole agent against a scripted parent and child.

use std::sync::atomic::Ordering::Relaxed;

use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::json;
use tunnel_proto::hub_side::Tunnel;
use tunnel_proto::names::{AUTHORITY_AGENT, HEADER_HUB_REPLICAS, PATH_GOAWAY, PATH_STATUS, PATH_SUCCESSOR};
use tunnel_proto::upgrade::tunnel_uri;

use super::*;
use crate::serve::full;
use crate::testing::CLUSTER;

mod world;

use world::*;

#[tokio::test]
async fn a_new_cluster_registers_waits_for_approval_and_connects() {
    let mut world = World::start(&["Pending", "Approved"]).await;
    let (tunnel, hello) = world.tunnel().await;
    assert_eq!(hello.cluster_id, CLUSTER);
    assert!(hello.instance.starts_with("pod-1-"));
    assert_eq!(hello.credential_expires, "2100-01-01T00:00:00Z".parse().ok());
    assert_eq!(status_of(&tunnel, http::Method::GET, "/v1/status").await, 200);
    assert_eq!(*world.hub.registered.lock().unwrap(), ["Bearer invitation-token"; 2]);
    let stored = world.child.stored.lock().unwrap()["data"].clone();
    assert_eq!(stored["token"], "Y3JlZGVudGlhbC0x");
    assert!(stored["agent.key"].is_string());
    world.end().await;
}

#[tokio::test]
async fn a_lost_tunnel_comes_back_without_registering_again() {
    let mut world = World::start(&[]).await;
    let (first, _) = world.tunnel().await;
    first.close();
    let (second, _) = world.tunnel().await;
    assert_eq!(status_of(&second, http::Method::GET, "/v1/status").await, 200);
    assert_eq!(world.hub.registered.lock().unwrap().len(), 1);
    world.end().await;
}

#[tokio::test]
async fn when_the_hub_goes_the_next_tunnel_stands_before_the_old_one_ends() {
    let mut world = World::start(&[]).await;
    let (old, _) = world.tunnel().await;
    assert_eq!(status_of(&old, http::Method::POST, PATH_GOAWAY).await, 204);
    let (new, _) = world.tunnel().await;
    for tunnel in [&old, &new] {
        assert_eq!(status_of(tunnel, http::Method::GET, "/v1/status").await, 200);
    }
    world.end().await;
}

/// H-31
#[tokio::test]
async fn a_hub_that_sends_the_agent_away_for_ever_gets_a_bounded_number_of_tunnels() {
    let mut world = World::start(&[]).await;
    let mut all = Vec::new();
    for _ in 0..=OLD_TUNNELS {
        let (tunnel, _) = world.tunnel().await;
        for _ in 0..3 {
            assert_eq!(status_of(&tunnel, http::Method::POST, PATH_GOAWAY).await, 204);
        }
        all.push(tunnel);
    }
    let another = timeout(Duration::from_secs(3), world.tunnels.recv()).await;
    assert!(another.is_err(), "no tunnel beyond the present one and the old ones");
    for tunnel in &all {
        assert_eq!(status_of(tunnel, http::Method::GET, "/v1/status").await, 200);
    }
    world.end().await;
}

#[tokio::test]
async fn two_replicas_of_the_hub_get_a_tunnel_each() {
    let (mut world, a, b) = World::with_two_tunnels().await;
    for tunnel in [&a, &b] {
        assert_eq!(status_of(tunnel, http::Method::GET, PATH_STATUS).await, 200);
    }
    assert!(world.is_ready(CHECK_TUNNEL).await);
    assert_eq!(world.hub.registered.lock().unwrap().len(), 1);
    let third = timeout(Duration::from_secs(2), world.tunnels.recv()).await;
    assert!(third.is_err(), "no more than two");
    world.end().await;
}

#[tokio::test]
async fn a_hub_that_does_not_speak_of_replicas_gets_one_tunnel() {
    for (places, replicas) in [(&["hub-a", "hub-b"], 0), (&["hub-a", "hub-b"], 1)] {
        let mut world = World::start_at(places, replicas).await;
        let _tunnel = world.tunnel().await;
        let second = timeout(Duration::from_secs(2), world.tunnels.recv()).await;
        assert!(second.is_err(), "{replicas}");
        assert_eq!(world.hub.doors.lock().unwrap().len(), 1, "{replicas}: it dialled again");
        world.end().await;
    }
}

#[tokio::test]
async fn a_second_tunnel_to_the_same_replica_is_given_up_in_order_and_tried_again() {
    let mut world = World::start_at(&["hub-a", "hub-a", "hub-a", "hub-b"], 2).await;
    let (first, a) = world.tunnel_at().await;
    let (second, _b) = world.tunnel_at().await;
    assert_eq!((first, second), ("hub-a", "hub-b"));
    assert_eq!(world.hub.declined.load(Relaxed), 2, "each was closed before its hello");
    assert_eq!(status_of(&a, http::Method::GET, PATH_STATUS).await, 200);
    world.end().await;
}

#[tokio::test]
async fn an_agent_that_meets_one_replica_all_the_time_dials_less_and_less_often() {
    let mut world = World::start_at(&[], 2).await;
    let (_, a) = world.tunnel_at().await;
    let tried = || world.hub.doors.lock().unwrap().len() - 1;
    // Slowly, so that the PINGs of the tunnel that stands are answered in time.
    let pass = |seconds| pass_in_steps_of(REAL_STEP * 5, Duration::from_secs(seconds));
    pass(60).await;
    let first = tried();
    // Six in the first seconds, then one every half a minute or a little less. A slow machine makes them fewer: its real
    // time does not count here.
    assert!((1..=10).contains(&first), "{first} in the first minute");
    pass(300).await;
    let then = tried() - first;
    assert!((1..=20).contains(&then), "{then} in five minutes");
    assert_eq!(status_of(&a, http::Method::GET, PATH_STATUS).await, 200);
    assert!(world.is_ready(CHECK_TUNNEL).await);
    world.end().await;
}

#[tokio::test]
async fn the_loss_of_one_of_two_tunnels_is_no_loss_and_it_comes_back() {
    for lost_first in [true, false] {
        let (mut world, a, b) = World::with_two_tunnels().await;
        let (lost, stays, place) = if lost_first { (a, b, "hub-a") } else { (b, a, "hub-b") };
        // Once to the one that it still has, then to the other one.
        let other = if lost_first { "hub-b" } else { "hub-a" };
        world.hub.places.lock().unwrap().extend([other, place]);
        lost.close();
        let mut back = Box::pin(world.tunnels.recv());
        // Until it is back, the agent is reached and calls itself so.
        let again = loop {
            let asked = async { status_of(&stays, http::Method::GET, PATH_STATUS).await };
            tokio::select! {
                again = &mut back => break again.unwrap(),
                code = asked => assert_eq!(code, 200),
            }
        };
        drop(back);
        assert_eq!(again.2, place);
        assert!(world.is_ready(CHECK_TUNNEL).await);
        assert_eq!(world.hub.registered.lock().unwrap().len(), 1);
        world.end().await;
    }
}

#[tokio::test]
async fn an_agent_is_ready_with_one_of_two_tunnels_and_not_without_any() {
    let (mut world, a, b) = World::with_two_tunnels().await;
    // Nobody is let in until the end of this test.
    *world.hub.token.lock().unwrap() = "another".to_owned();
    world.hub.results.lock().unwrap().extend(["401"; 100]);
    a.close();
    let tries = async {
        while world.hub.doors.lock().unwrap().len() < 4 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, tries).await.unwrap();
    assert!(world.is_ready(CHECK_TUNNEL).await && world.is_ready(CHECK_CREDENTIALS).await);
    b.close();
    let unready = async {
        while world.is_ready(CHECK_TUNNEL).await {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, unready).await.unwrap();
    *world.hub.token.lock().unwrap() = "credential-1".to_owned();
    let _tunnel = world.tunnel().await;
    let ready = async {
        while !world.is_ready(CHECK_TUNNEL).await {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, ready).await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_hub_that_grows_gets_a_second_tunnel_without_a_restart() {
    let mut world = World::start_at(&["hub-a", "hub-b"], 1).await;
    let (first, a) = world.tunnel_at().await;
    world.hub.replicas.store(2, Relaxed);
    let mut request = Request::new(full(bytes::Bytes::new()));
    *request.uri_mut() =
        tunnel_uri(AUTHORITY_AGENT, http::uri::PathAndQuery::from_static(PATH_STATUS)).unwrap();
    request.headers_mut().insert(HEADER_HUB_REPLICAS, 2_u16.into());
    assert_eq!(a.send(request).await.unwrap().status(), 200);
    let (second, _b) = world.tunnel_at().await;
    assert_eq!((first, second), ("hub-a", "hub-b"));
    world.end().await;
}

#[tokio::test]
async fn a_replica_that_leaves_is_replaced_and_the_other_tunnel_stays() {
    let (mut world, a, b) = World::with_two_tunnels().await;
    world.hub.places.lock().unwrap().extend(["hub-b", "hub-c"]);
    assert_eq!(status_of(&a, http::Method::POST, PATH_GOAWAY).await, 204);
    let (third, c) = world.tunnel_at().await;
    assert_eq!(third, "hub-c");
    for tunnel in [&a, &b, &c] {
        assert_eq!(status_of(tunnel, http::Method::GET, PATH_STATUS).await, 200);
    }
    world.end().await;
}

#[tokio::test]
async fn a_credential_that_came_through_one_tunnel_opens_the_other_one() {
    let (mut world, a, b) = World::with_two_tunnels().await;
    let renewed = json!({ "token": "credential-2", "expires": "2100-01-01T00:00:00Z" });
    let mut request = Request::new(full(renewed.to_string().into()));
    *request.method_mut() = http::Method::PUT;
    *request.uri_mut() =
        tunnel_uri(AUTHORITY_AGENT, http::uri::PathAndQuery::from_static("/v1/credential")).unwrap();
    assert_eq!(a.send(request).await.unwrap().status(), 204);
    *world.hub.token.lock().unwrap() = "credential-2".to_owned();
    world.hub.places.lock().unwrap().extend(["hub-b"]);
    b.close();
    assert_eq!(world.tunnel_at().await.0, "hub-b");
    assert_eq!(world.hub.registered.lock().unwrap().len(), 1);
    assert_eq!(world.child.stored.lock().unwrap()["data"]["token"], "Y3JlZGVudGlhbC0y");
    world.end().await;
}

/// Asks the agent whether this process is its successor.
async fn names(tunnel: &Tunnel, successor: &str) -> (StatusCode, bytes::Bytes) {
    let mut request = Request::new(full(bytes::Bytes::copy_from_slice(successor.as_bytes())));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() =
        tunnel_uri(AUTHORITY_AGENT, http::uri::PathAndQuery::from_static(PATH_SUCCESSOR)).unwrap();
    let answer = tunnel.send(request).await.unwrap();
    (answer.status(), answer.into_body().collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn an_agent_names_as_its_successor_only_what_started_later_in_its_own_cluster() {
    let mut world = World::start(&[]).await;
    let (tunnel, hello) = world.tunnel().await;
    let said =
        || world.child.stored.lock().unwrap()["metadata"]["annotations"]["access.towline.io/agent"].clone();
    assert_eq!(said(), hello.instance.as_str(), "it says that it has started");
    for other in ["pod-2", &hello.instance, ""] {
        assert_eq!(names(&tunnel, other).await.0, 409, "{other}");
    }
    // It was not taken in: a lost tunnel comes back.
    tunnel.close();
    let (tunnel, _) = world.tunnel().await;
    world.child.stored.lock().unwrap()["metadata"]["annotations"]["access.towline.io/agent"] = "pod-2".into();
    assert_eq!(names(&tunnel, "pod-3").await.0, 409);
    assert_eq!(names(&tunnel, "pod-2").await, (StatusCode::OK, "pod-2".into()));
    assert_eq!(status_of(&tunnel, http::Method::GET, PATH_STATUS).await, 200, "it serves on");
    world.end().await;
}

#[tokio::test]
async fn an_agent_whose_successor_has_taken_over_does_not_take_the_place_back() {
    let mut world = World::start(&[]).await;
    let (tunnel, _) = world.tunnel().await;
    world.child.stored.lock().unwrap()["metadata"]["annotations"]["access.towline.io/agent"] = "pod-2".into();
    assert_eq!(names(&tunnel, "pod-2").await.0, 200);
    tunnel.close();
    let unready = async {
        while world.is_ready(CHECK_TUNNEL).await {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, unready).await.unwrap();
    pass(SUCCEEDED_REST.saturating_sub(Duration::from_secs(20))).await;
    assert_eq!(world.hub.doors.lock().unwrap().len(), 1, "it dialled");
    // Nobody has stopped it: it is there if it is needed after all.
    pass(Duration::from_secs(60)).await;
    world.tunnel().await;
    world.end().await;
}

#[tokio::test]
async fn a_refused_credential_is_replaced_through_the_invitation() {
    let mut world = World::start(&["Approved", "401", "Approved"]).await;
    let (first, _) = world.tunnel().await;
    *world.hub.token.lock().unwrap() = "credential-2".to_owned();
    first.close();
    world.tunnel().await;
    assert_eq!(world.child.stored.lock().unwrap()["data"]["token"], "Y3JlZGVudGlhbC0y");
    // The refused invitation was followed by another try of the credential, then by the invitation.
    assert_eq!(world.hub.registered.lock().unwrap().len(), 3);
    world.end().await;
}

#[tokio::test]
async fn an_agent_that_was_told_of_a_gateway_opens_its_tunnel_there() {
    let mut world = World::start_with(&[], Some(SERVES), (&[], 0)).await;
    let (first, _) = world.tunnel().await;
    assert_eq!(status_of(&first, http::Method::GET, "/v1/status").await, 200);
    first.close();
    world.tunnel().await;
    assert_eq!(*world.hub.doors.lock().unwrap(), [SERVES, SERVES]);
    assert_eq!(world.hub.registered.lock().unwrap().len(), 1, "that goes through the parent");
    world.end().await;
}

#[tokio::test]
async fn a_gateway_that_cannot_be_reached_is_left_for_the_parent() {
    let mut world = World::start_with(&[], Some(GONE), (&[], 0)).await;
    let (tunnel, _) = world.tunnel().await;
    assert_eq!(status_of(&tunnel, http::Method::GET, "/v1/status").await, 200);
    assert_eq!(*world.hub.doors.lock().unwrap(), [PARENT]);
    world.end().await;
}

/// Of 12 failures of the gateway one second apart, those after which the parent's API server is asked, which leads
/// nowhere either.
fn detours(course: &mut Course, from: Instant) -> Vec<u64> {
    let asks = |second: &u64| {
        let asks = course.tries_parent(from + Duration::from_secs(*second));
        course.parent_failed += u32::from(asks);
        asks
    };
    (1..=12).filter(asks).collect()
}

#[test]
fn a_gateway_that_was_good_is_waited_for_and_then_every_third_try_asks_both() {
    let start = Instant::now();
    let mut course = Course::new(0);
    assert_eq!(detours(&mut course, start), [3, 6, 9, 12], "an agent that was never in");
    course.is_open(true);
    course.is_lost(RETURN_LIVED, start);
    assert_eq!(detours(&mut course, start), [0; 0], "a hub that is restarted");
    assert_eq!(detours(&mut course, start + RETURN_WINDOW), [1, 3, 6, 9, 12], "a gateway that is gone");
    course.is_open(false);
    course.is_lost(RETURN_LIVED, start);
    assert_eq!(detours(&mut course, start)[..2], [1, 3], "a tunnel that did not go through it");
    course.is_open(true);
    course.is_lost(Duration::ZERO, start);
    assert_eq!(detours(&mut course, start), [3, 6, 9, 12], "a tunnel that was never good");
}

#[tokio::test]
async fn a_gateway_that_refuses_makes_no_agent_register_again() {
    let mut world = World::start_with(&[], Some(REFUSES), (&[], 0)).await;
    world.tunnel().await;
    assert_eq!(*world.hub.doors.lock().unwrap(), [REFUSES, PARENT]);
    assert_eq!(world.hub.registered.lock().unwrap().len(), 1);
    world.end().await;
}

/// In which the agent can register once, over loopback.
const REAL_STEP: Duration = Duration::from_millis(5);

/// Lets the agent's clock run for so long, and the real one meanwhile for as long as its sockets need.
async fn pass(duration: Duration) {
    pass_in_steps_of(REAL_STEP, duration).await;
}

async fn pass_in_steps_of(step: Duration, duration: Duration) {
    for _ in 0..duration.as_secs() {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
        let _ = timeout(step, std::future::pending::<()>()).await;
    }
}

/// A second in which the agent can dial, too: its own deadline of 20 s for that takes half a real one.
async fn pass_slowly() {
    pass_in_steps_of(REAL_STEP * 5, Duration::from_secs(1)).await;
}

/// Loses the tunnel, lets the hub tell the agent to wait so long, and counts the seconds until it comes again.
async fn seconds_until_the_next_try(world: &mut World, tunnel: Tunnel, later: u64) -> u64 {
    let tried = |world: &World| world.hub.doors.lock().unwrap().len();
    let before = tried(world);
    world.hub.later.lock().unwrap().push_back(later);
    tunnel.close();
    let refused = async {
        while tried(world) == before {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, refused).await.unwrap();
    let mut seconds = 0;
    while tried(world) == before + 1 {
        pass_slowly().await;
        seconds += 1;
        assert!(seconds < 200, "it does not come again");
    }
    seconds
}

#[tokio::test]
async fn a_hub_that_says_when_to_come_again_is_left_alone_until_then_and_no_longer_than_a_minute() {
    let mut world = World::start(&[]).await;
    // Its own delay comes on top, and the real time of each step.
    for (said, obeyed) in [(20, 18), (1_000_000, 57)] {
        let (tunnel, _) = world.tunnel().await;
        let seconds = seconds_until_the_next_try(&mut world, tunnel, said).await;
        assert!(seconds >= obeyed, "it came again after {seconds} s, told {said} s");
    }
    world.tunnel().await;
    world.end().await;
}

#[tokio::test]
async fn a_gateway_that_is_busy_sends_nobody_to_the_parents_api_server() {
    let mut world = World::start_with(&[], Some(SERVES), (&[], 0)).await;
    let (tunnel, _) = world.tunnel().await;
    let busy = usize::try_from(GATEWAY_TRIES + 2).unwrap();
    world.hub.later.lock().unwrap().extend(vec![0; busy]);
    tunnel.close();
    for _ in 0..120 {
        if !world.tunnels.is_empty() {
            break;
        }
        pass_slowly().await;
    }
    world.tunnel().await;
    assert_eq!(*world.hub.doors.lock().unwrap(), vec![SERVES; busy + 2]);
    world.end().await;
}

async fn asked(world: &World, times: usize) {
    let asked = async {
        while world.hub.registered.lock().unwrap().len() < times {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, asked).await.unwrap();
}

#[tokio::test]
async fn a_denied_agent_asks_once_a_minute_and_comes_in_when_the_denial_is_taken_back() {
    let mut world = World::start(&["Denied", "Denied", "Approved"]).await;
    for times in 1..=2 {
        asked(&world, times).await;
        let mut seconds = 0;
        while world.hub.registered.lock().unwrap().len() == times {
            pass(Duration::from_secs(1)).await;
            seconds += 1;
            assert!(seconds < 120, "it does not ask again");
        }
        // A pause is between three quarters of a minute and a whole one; the real time of each step counts too.
        assert!(seconds > 30, "it asked again after {seconds} s");
    }
    world.tunnel().await;
    world.end().await;
}

#[tokio::test]
async fn an_agent_that_could_not_be_set_up_asks_less_and_less_often() {
    let world = World::start(&["Failed"; 500]).await;
    asked(&world, 1).await;
    pass(Duration::from_secs(300)).await;
    let times = world.hub.registered.lock().unwrap().len();
    // Pauses are drawn below 1, 2, 4 … 60 s: fifteen times or so, where a first pause each time makes hundreds.
    assert!((3..=60).contains(&times), "{times} times in 300 s");
    world.end().await;
}

#[test]
fn a_credential_of_another_parent_or_an_expired_one_is_not_dialled_with() {
    let key = Arc::new(crate::key::Key::generate().unwrap());
    let state = |parent: &str, expires: &str| State {
        key: Arc::clone(&key),
        cluster: CLUSTER.parse().unwrap(),
        credential: Some(crate::credentials::Held {
            credential: Credential { token: crate::testing::secret("t"), expires: expires.parse().unwrap() },
            parent: parent.to_owned(),
        }),
    };
    let registration = Registration {
        parent_url: "https://here".to_owned(),
        ca: Vec::new(),
        token: crate::testing::secret("t"),
        invitation: String::new(),
        secret: crate::testing::secret("s"),
        expires: None,
        cluster_name: String::new(),
        gateway: None,
    };
    let (past, future) = ("2000-01-01T00:00:00Z", "2100-01-01T00:00:00Z");
    for (parent, expires, way, used) in [
        ("https://here", future, Way::Usual, true),
        ("https://here", past, Way::Usual, false),
        ("https://here", past, Way::Credential, true),
        ("https://here", future, Way::Register, false),
        ("https://there", future, Way::Usual, false),
        ("https://there", future, Way::Credential, false),
    ] {
        let usable = usable(&state(parent, expires), &registration, way);
        assert_eq!(usable.is_some(), used, "{parent} {expires} {way:?}");
    }
}
