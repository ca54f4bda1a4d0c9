//! Whoever the hub says asks, by whatever headers beside it: the child sees exactly that person once, or nobody.

use api::mapping::refuse_in_child;
use futures::stream::{self, StreamExt as _};
use http_body::Frame;
use http_body_util::StreamBody;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// Groups that the child grants.
const GRANTED: [&str; 3] = ["dev", "ops", "clusternet:view"];

/// Names that carry an identity or a credential, or look as if they did.
fn name() -> impl Strategy<Value = String> {
    let dangerous = "(impersonate|x-remote|x_remote|towline|authorization|proxy|cookie|connection|te|trailer|x-forwarded)([-_](user|group|uid|extra|extra-a|identity|USER|Group|authorization))?";
    prop_oneof![1 => dangerous, 2 => "(kubectl-command|user-agent|accept|audit-id)", 1 => "[a-z_-]{1,12}"]
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    let value = prop_oneof!["root", "system:masters", "impersonate-user, impersonate-group", "[ -~]{0,20}"];
    proptest::collection::vec((name(), value), 0..5)
}

fn who() -> impl Strategy<Value = Vec<u8>> {
    let user = prop_oneof![4 => "[a-z]{1,6}", 1 => "(system|kubeadm|clusternet):[a-z]{0,4}", 1 => "[ a-z]{1,4}", 1 => "\\PC{0,8}"];
    let group = prop_oneof![
        6 => "(dev|ops|clusternet:view|hr|sales)",
        1 => "(system|kubeadm|clusternet|System):[a-z]{0,7}",
        1 => "\\PC{0,6}",
    ];
    let json = (user, proptest::collection::vec(group, 0..5))
        .prop_map(|(user, groups)| json!({ "user": user, "groups": groups }).to_string().into_bytes());
    prop_oneof![9 => json, 1 => proptest::collection::vec(any::<u8>(), 0..40)]
}

/// Who this is in the child, if anybody.
fn expected(identity: &HeaderValue, headers: &HeaderMap) -> Option<(String, Vec<String>)> {
    let who = Identity::from_header(identity).ok()?;
    refuse_in_child(&who).ok()?;
    let brings = headers.keys().any(|name| name.as_str().replace('_', "-").starts_with("impersonate"));
    let groups: Vec<_> =
        who.groups().iter().filter(|group| GRANTED.contains(&group.as_str())).cloned().collect();
    let trimmed = std::iter::once(who.user())
        .chain(groups.iter().map(String::as_str))
        .all(|name| name.trim_matches([' ', '\t']) == name);
    (!brings && trimmed && headers.get_all(IDENTITY_HEADER).iter().count() == 1)
        .then(|| (who.user().to_owned(), groups))
}

#[test]
fn the_child_sees_exactly_the_person_once_or_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = runtime.block_on(World::start(&GRANTED));
    let given = (who(), headers(), headers(), any::<bool>());
    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let (mut admitted, mut refused) = (0, 0);
    let outcomes = std::cell::RefCell::new((&mut admitted, &mut refused));
    let ran = runner.run(&given, |(who, headers, trailers, upgrading)| {
        use base64::Engine as _;
        let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&who);
        let identity = HeaderValue::try_from(encoded).unwrap();
        let map = |pairs: &[(String, String)]| {
            let mut map = HeaderMap::new();
            for (name, value) in pairs {
                if let (Ok(name), Ok(value)) =
                    (HeaderName::try_from(name.as_str()), HeaderValue::from_str(value))
                {
                    map.append(name, value);
                }
            }
            map
        };
        let mut asked = if upgrading {
            connect_request(UpgradeProtocol::Spdy31, &Method::POST, uri("/a"), full(Bytes::new()))
        } else {
            let mut trailing = map(&trailers);
            // The HTTP library of the hub's own side sends none of these.
            for name in ["connection", "te", "proxy-connection", "trailer"] {
                trailing.remove(name);
            }
            let frames = [Frame::data(Bytes::from_static(b"x")), Frame::trailers(trailing)];
            let mut asked = request(Method::POST, "/a", None);
            *asked.body_mut() =
                Body::new(StreamBody::new(stream::iter(frames.map(Ok::<_, tunnel_proto::BoxError>))));
            asked
        };
        let mut sent = map(&headers);
        // Nor this one, nor what it names.
        sent.remove("connection");
        asked.headers_mut().extend(sent);
        asked.headers_mut().append(IDENTITY_HEADER, identity.clone());
        let expected = expected(&identity, asked.headers());
        let status = runtime.block_on(async {
            // The HTTP library resets what is malformed, `te: root` for one.
            let answer = timeout(Duration::from_secs(10), world.tunnel.send(asked)).await;
            let Ok(answer) = answer.expect("an answer") else { return 0 };
            let status = answer.status().as_u16();
            if !(upgrading && status == 200) {
                body(answer).await;
            }
            status
        });
        let expected = expected.filter(|_| status != 0);
        let seen = std::mem::take(&mut *world.child.seen.lock().unwrap());
        let saw: Vec<_> = seen
            .iter()
            .map(|seen| {
                let own = |text: &&str| (*text).to_owned();
                let other = seen.headers.keys().find(|name| {
                    let name = name.as_str().replace('_', "-");
                    (name.starts_with("impersonate")
                        && name != "impersonate-user"
                        && name != "impersonate-group")
                        || name.starts_with("x-remote")
                        || name.starts_with("towline")
                });
                assert_eq!((other, seen.all("authorization")), (None, vec!["Bearer deployer-token"]));
                let users = seen
                    .headers
                    .get_all("impersonate-user")
                    .iter()
                    .map(HeaderValue::as_bytes)
                    .collect::<Vec<_>>();
                assert_eq!(users.len(), 1);
                let user = String::from_utf8(users[0].to_vec()).unwrap();
                (user, seen.all("impersonate-group").iter().map(own).collect::<Vec<_>>())
            })
            .collect();
        let mut outcomes = outcomes.borrow_mut();
        match &expected {
            Some(_) => {
                *outcomes.0 += 1;
                prop_assert_eq!(status, 200);
            }
            None => {
                *outcomes.1 += 1;
                prop_assert!(matches!(status, 0 | 400 | 403), "{}", status);
            }
        }
        prop_assert_eq!(saw, expected.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(world.child.trailers.load(std::sync::atomic::Ordering::SeqCst), 0);
        Ok(())
    });
    ran.unwrap();
    assert!(admitted > 50 && refused > 50, "{admitted} admitted, {refused} refused");
}

/// Headlamp CVE-2025-14269: the connection of one used for another.
#[tokio::test]
async fn two_people_who_share_connections_are_never_taken_for_each_other() {
    const TIMES: usize = 5_000;
    let world = World::start(&["dev", "ops"]).await;
    let people = [alice(&["dev"]), Identity::of("bob", &["ops"]).unwrap()];
    let (world, people) = (&world, &people);
    let asked = stream::iter(0..TIMES).map(|number| async move {
        let who = &people[number % 2];
        let answer = world.send(request(Method::GET, &format!("/{}/{number}", who.user()), Some(who))).await;
        assert_eq!(answer.status(), 200);
        body(answer).await;
    });
    asked.buffer_unordered(40).collect::<Vec<()>>().await;
    let seen = world.child.seen.lock().unwrap();
    assert_eq!(seen.len(), TIMES);
    for seen in seen.iter() {
        let user = seen.uri.path().split('/').nth(1).unwrap();
        let group = if user == "alice" { "dev" } else { "ops" };
        assert_eq!((seen.all("impersonate-user"), seen.all("impersonate-group")), (vec![user], vec![group]));
    }
    assert_eq!(world.server.accepted.load(std::sync::atomic::Ordering::SeqCst), 1, "all on one connection");
}

#[tokio::test]
async fn when_the_child_does_not_say_which_groups_it_grants_nobody_becomes_less_than_they_are() {
    let world = World::start(&["dev", "ops"]).await;
    let known = request(Method::GET, "/a", Some(&alice(&["dev"])));
    assert_eq!(world.send(known).await.status(), 200);
    world.child.odd("reviews fail");
    let answer = world.send(request(Method::GET, "/b", Some(&alice(&["dev", "ops"])))).await;
    assert_eq!(answer.status(), 503);
    assert!(body(answer).await.contains("does not say whom the agent may impersonate"));
    assert_eq!(world.asked(), 1, "the child saw no request of a lesser person");
    let known = request(Method::GET, "/c", Some(&alice(&["dev"])));
    assert_eq!(world.send(known).await.status(), 200, "what is known goes on");
    world.child.odd.lock().unwrap().clear();
    let whole = request(Method::GET, "/d", Some(&alice(&["dev", "ops"])));
    assert_eq!(world.send(whole).await.status(), 200);
    assert_eq!(world.child.seen.lock().unwrap().last().unwrap().all("impersonate-group"), ["dev", "ops"]);
}
