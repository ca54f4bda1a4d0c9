//! Who gets a token of the hub, for what, and what becomes of it: nobody hands out more than they may do, what is
//! refused leaves nothing behind, and everybody sees their own.

use api::names::SYSTEM_NAMESPACE;
use api::secret::Secret as Hidden;
use k8s_openapi::api::core::v1::Secret;

use super::*;
use crate::control::fake_api::FakeApi;
use crate::issued::stored::Stored;
use crate::issued::{MAX_KEPT_PER_OWNER, MAX_PER_OWNER, hash};

const REQUESTS: &str = "/apis/access.towline.io/v1alpha1/kubeconfigrequests";
const CREDENTIALS: &str = "/apis/access.towline.io/v1alpha1/issuedcredentials";

struct Issuing {
    world: World,
    api: FakeApi,
}

impl Issuing {
    /// alice and bob may ask for kubeconfigs; alice may use c1 and view it.
    async fn start() -> Self {
        let api = FakeApi::start().await;
        let memory = Duration::from_millis(1);
        let setup = Setup { objects: Some(api.client()), memory, ..Setup::default() };
        let world = World::start_with(setup).await;
        let issuing = Self { world, api };
        issuing.allow(|_, _| false);
        issuing
    }

    /// What else the parent allows, by user and `verb resource/subresource`.
    fn allow(&self, more: impl Fn(&str, &str) -> bool + Send + 'static) {
        self.world.parent.rule(move |spec| {
            let asked = &spec["resourceAttributes"];
            let text = |field: &str| asked[field].as_str().unwrap_or_default();
            let user = spec["user"].as_str().unwrap_or_default();
            let whole = format!("{} {}/{}", text("verb"), text("resource"), text("subresource"));
            let person = user == "alice" && text("name") == "c1" && whole.starts_with("get sockets/proxy")
                || user == "alice" && text("name") == "c1" && whole == "assume sockets/view";
            let may_ask = ["alice", "bob"].contains(&user) && whole == "create kubeconfigrequests/";
            let agent = user == AGENT && whole.ends_with("sockets/attach");
            Some(person || may_ask || agent || more(user, &whole))
        });
    }

    async fn call(&mut self, user: &str, method: &str, path: &str, body: String) -> (u16, Value) {
        let headers =
            [("x-remote-user", user), ("x-remote-group", "dev"), ("content-type", "application/json")];
        let mut request = ask(method, path, &headers);
        *request.body_mut() = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
        let answer = self.world.send(Wire::H1, request).await;
        let code = answer.status().as_u16();
        (code, object(answer).await)
    }

    async fn ask_for(&mut self, user: &str, spec: Value) -> (u16, Value) {
        self.call(user, "POST", REQUESTS, wanted(&spec).to_string()).await
    }

    /// The Secrets that were written.
    fn stored(&self) -> Vec<Stored> {
        let secret = |path: &String| serde_json::from_value::<Secret>(self.api.get(path)?).ok();
        self.api.paths().iter().filter_map(secret).filter_map(|secret| Stored::from_secret(&secret)).collect()
    }

    /// What the watch would do.
    fn follow(&self) {
        self.world.hub.issued.replace(self.stored());
    }
}

fn wanted(spec: &Value) -> Value {
    json!({ "apiVersion": "access.towline.io/v1alpha1", "kind": "KubeconfigRequest", "spec": spec })
}

fn message(answer: &Value) -> &str {
    assert_eq!((&answer["kind"], &answer["status"]), (&json!("Status"), &json!("Failure")), "{answer}");
    answer["message"].as_str().unwrap()
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_token_is_shown_once_and_kept_as_a_hash() {
    let mut issuing = Issuing::start().await;
    let (code, answer) = issuing.ask_for("alice", json!({ "cluster": "edge-1" })).await;
    assert_eq!(code, 201, "{answer}");
    let status = &answer["status"];
    let token = status["token"].as_str().unwrap();
    assert!(token.starts_with("twl-") && token.len() > 40, "{token}");
    assert_eq!(status["server"], "https://hub.example.com:8444/k8s/clusters/edge-1");
    assert_eq!(status["content"], status["kubeconfig"]);
    assert!(status["kubeconfig"].as_str().unwrap().contains(token));
    let [stored] = &issuing.stored()[..] else { panic!("one Secret") };
    assert_eq!(stored.hash, hash(&Hidden::from(token.to_owned())));
    let groups = ["dev".to_owned(), "system:authenticated".to_owned()];
    assert_eq!((stored.owner.user(), stored.owner.groups()), ("alice", &groups[..]));
    assert_eq!((stored.cluster.as_str(), stored.role, stored.service.as_deref()), ("c1", None, None));
    assert_eq!(status["credential"], stored.id);
    let left = stored.expires.as_second() - Timestamp::now().as_second();
    assert!((8 * 3600 - 60..=8 * 3600).contains(&left), "{left}");
    let paths = issuing.api.paths();
    let all: String = paths.iter().map(|path| issuing.api.get(path).unwrap().to_string()).collect();
    assert!(!all.contains(token), "an object of the parent holds the token");
    issuing.world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn nobody_hands_out_more_than_they_may_do_and_what_is_refused_leaves_nothing() {
    let mut issuing = Issuing::start().await;
    let long = 30 * 24 * 3600;
    for (user, spec, code, names) in [
        ("alice", json!({ "cluster": "edge-1", "role": "admin" }), 403, "cannot hand it out"),
        (
            "alice",
            json!({ "cluster": "edge-1", "role": "edit", "service": "argo" }),
            403,
            "cannot hand it out",
        ),
        ("alice", json!({ "cluster": "edge-2" }), 403, "edge-2"),
        ("alice", json!({ "cluster": "c2" }), 403, "c2"),
        ("bob", json!({ "cluster": "edge-1", "role": "view" }), 403, "edge-1"),
        ("carol", json!({ "cluster": "edge-1" }), 403, "kubeconfigrequests"),
        ("alice", json!({ "cluster": "edge-1", "service": "argo" }), 422, "spec.role"),
        ("alice", json!({ "cluster": "edge-1", "role": "view", "service": "" }), 422, "spec.service"),
        ("alice", json!({ "cluster": "edge-1", "role": "view", "service": "a:b" }), 422, "spec.service"),
        (
            "alice",
            json!({ "cluster": "edge-1", "role": "view", "service": "a".repeat(64) }),
            422,
            "spec.service",
        ),
        ("alice", json!({ "cluster": "edge-1", "ttlSeconds": 59 }), 422, "spec.ttlSeconds"),
        ("alice", json!({ "cluster": "edge-1", "ttlSeconds": long + 1 }), 422, "spec.ttlSeconds"),
        ("alice", json!({ "cluster": "edge-1", "ttlSeconds": u64::MAX }), 422, "spec.ttlSeconds"),
        ("alice", json!({ "cluster": "Edge/../1" }), 422, "spec.cluster"),
        ("alice", json!({ "cluster": "edge-1\n" }), 422, "spec.cluster"),
    ] {
        let (got, answer) = issuing.ask_for(user, spec.clone()).await;
        assert_eq!(got, code, "{user} {spec}: {answer}");
        assert!(message(&answer).contains(names), "{user} {spec}: {answer}");
    }
    assert_eq!(issuing.api.asked(), [""; 0], "the parent was asked to write something");
    for spec in [
        json!({ "cluster": "edge-1", "ttlSeconds": 60 }),
        json!({ "cluster": "edge-1", "ttlSeconds": long }),
        json!({ "cluster": "c1", "role": "view", "service": "a".repeat(63) }),
    ] {
        let (code, answer) = issuing.ask_for("alice", spec.clone()).await;
        assert_eq!(code, 201, "{spec}: {answer}");
    }
    assert_eq!(issuing.stored().len(), 3);
    issuing.world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_unknown_cluster_answers_as_one_that_is_somebody_elses() {
    let mut issuing = Issuing::start().await;
    let mut told = Vec::new();
    for name in ["edge-1", "edge-2", "c1", "c2"] {
        let (code, answer) = issuing.ask_for("bob", json!({ "cluster": name })).await;
        assert_eq!(code, 403);
        told.push(answer.to_string().replace(name, "NAME"));
    }
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
    issuing.world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn whoever_is_nobody_in_a_child_gets_no_token() {
    let mut issuing = Issuing::start().await;
    issuing.allow(|_, _| true);
    for user in
        ["system:kube-controller-manager", "system:serviceaccount:ci:robot", "clusternet:service:argo"]
    {
        for spec in
            [json!({ "cluster": "edge-1" }), json!({ "cluster": "edge-1", "role": "view", "service": "x" })]
        {
            let (code, answer) = issuing.ask_for(user, spec).await;
            assert_eq!(code, 403, "{user}: {answer}");
        }
    }
    assert_eq!(issuing.stored(), []);
    issuing.world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn the_owner_is_whom_the_parent_names_and_no_header_of_the_client_changes_that() {
    let mut issuing = Issuing::start().await;
    let parents =
        [("x-remote-user", "alice"), ("x-remote-group", "dev"), ("x-remote-group", "system:masters")];
    for (more, code) in [
        (&[("impersonate-user", "root")][..], 400),
        (&[("impersonate-group", "system:masters")], 400),
        (&[], 201),
    ] {
        let headers = [&parents[..], &[("content-type", "application/json")], more].concat();
        let mut request = ask("POST", REQUESTS, &headers);
        let body = wanted(&json!({ "cluster": "edge-1" })).to_string();
        *request.body_mut() = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
        assert_eq!(issuing.world.send(Wire::H1, request).await.status().as_u16(), code, "{more:?}");
    }
    let [stored] = &issuing.stored()[..] else { panic!("one Secret") };
    assert_eq!(stored.owner.user(), "alice");
    issuing.follow();
    let issued = issuing.world.hub.issued.all().remove(0);
    let child = issued.child(&[], false).unwrap();
    assert_eq!((child.user(), child.groups()), ("alice", &["dev".to_owned()][..]));
    issuing.world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_issued_token_issues_nothing() {
    let mut issuing = Issuing::start().await;
    let (_, answer) = issuing.ask_for("alice", json!({ "cluster": "edge-1" })).await;
    let bearer = format!("Bearer {}", answer["status"]["token"].as_str().unwrap());
    issuing.follow();
    let Issuing { world, api } = issuing;
    let mut world = world.connect().await;
    let before = api.asked().len();
    for path in [
        REQUESTS.to_owned(),
        format!("/k8s/clusters/edge-1{REQUESTS}"),
        format!("/k8s/clusters/c1{CREDENTIALS}"),
    ] {
        let mut request =
            ask("POST", &path, &[("authorization", &bearer), ("content-type", "application/json")]);
        let body = wanted(&json!({ "cluster": "edge-1" })).to_string();
        *request.body_mut() = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
        let stream = TokioIo::new(world.dial_at(world.gateway, None, Wire::H1).await);
        let answer = world.send_on(Wire::H1, stream, request).await;
        let said = text(answer).await;
        assert!(!said.contains("twl-"), "{path}: {said}");
    }
    // Nor is it anybody at the first door.
    let stream = TokioIo::new(world.dial(None, Wire::H1).await);
    let answer = world.send_on(Wire::H1, stream, ask("POST", REQUESTS, &[("authorization", &bearer)])).await;
    assert_eq!(answer.status().as_u16(), 401);
    assert_eq!(api.asked().len(), before, "{:?}", api.asked());
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn everybody_lists_their_own_and_all_needs_a_right() {
    let mut issuing = Issuing::start().await;
    issuing.allow(|user, asked| user == "bob" && asked.contains("sockets/"));
    for user in ["alice", "bob"] {
        let (code, answer) = issuing.ask_for(user, json!({ "cluster": "edge-1", "role": "view" })).await;
        assert_eq!(code, 201, "{answer}");
    }
    issuing.follow();
    let owners = |list: &Value| {
        let items = list["items"].as_array().unwrap();
        items.iter().map(|item| item["spec"]["owner"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (user, expected) in [("alice", &["alice"][..]), ("bob", &["bob"]), ("carol", &[])] {
        let (code, list) = issuing.call(user, "GET", CREDENTIALS, String::new()).await;
        assert_eq!(
            (code, owners(&list)),
            (200, expected.iter().map(|&one| one.to_owned()).collect()),
            "{user}"
        );
        assert!(!list.to_string().contains("twl-") && !list.to_string().contains("hash"), "{list}");
    }
    issuing.allow(|user, asked| user == "carol" && asked == "list issuedcredentials/all");
    let (_, list) = issuing.call("carol", "GET", CREDENTIALS, String::new()).await;
    assert_eq!(owners(&list).len(), 2, "{list}");
    issuing.world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_foreign_credential_is_as_unknown_as_one_that_is_not_there() {
    let mut issuing = Issuing::start().await;
    let (_, answer) = issuing.ask_for("alice", json!({ "cluster": "edge-1" })).await;
    let id = answer["status"]["credential"].as_str().unwrap().to_owned();
    let path = |id: &str| format!("{CREDENTIALS}/{id}");
    let mut told = Vec::new();
    for id in [id.as_str(), "0123456789abcdef"] {
        let (code, answer) = issuing.call("bob", "DELETE", &path(id), String::new()).await;
        assert_eq!(code, 404);
        told.push(answer.to_string().replace(id, "ID"));
    }
    assert_eq!(told[0], told[1]);
    // The right to list all is none to end all.
    issuing.allow(|user, asked| user == "bob" && asked == "list issuedcredentials/all");
    assert_eq!(issuing.call("bob", "DELETE", &path(&id), String::new()).await.0, 404);
    assert_eq!(issuing.stored().len(), 1);
    // Any other Secret is out of reach, whatever it is called.
    let other = json!({ "type": "Opaque", "metadata": {}, "data": {} });
    let place = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets/credential-00000000000000ff");
    issuing.api.put(&place, &other);
    assert_eq!(issuing.call("alice", "DELETE", &path("00000000000000ff"), String::new()).await.0, 404);
    assert!(issuing.api.get(&place).is_some());

    issuing.allow(|user, asked| user == "bob" && asked == "delete issuedcredentials/all");
    assert_eq!(issuing.call("bob", "DELETE", &path(&id), String::new()).await.0, 200);
    assert_eq!(issuing.stored(), []);
    let (_, answer) = issuing.ask_for("alice", json!({ "cluster": "edge-1" })).await;
    let own = path(answer["status"]["credential"].as_str().unwrap());
    assert_eq!(issuing.call("alice", "DELETE", &own, String::new()).await.0, 200);
    assert_eq!(issuing.stored(), []);
    issuing.world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_malformed_body_is_answered_with_400_that_names_the_field() {
    let mut issuing = Issuing::start().await;
    for (spec, names) in [
        (json!({ "cluster": "edge-1", "role": "root" }), "spec.role"),
        (json!({ "cluster": "edge-1", "role": ["view"] }), "spec.role"),
        (json!({ "cluster": "edge-1", "format": "argocd" }), "spec.format"),
        (json!({ "cluster": "edge-1", "address": "Root" }), "spec.address"),
        (json!({ "cluster": "edge-1", "ttlSeconds": "8h" }), "spec.ttlSeconds"),
        (json!({ "cluster": "edge-1", "ttlSeconds": -1 }), "spec.ttlSeconds"),
        (json!({ "cluster": "edge-1", "ttlSeconds": 1.5 }), "spec.ttlSeconds"),
        (json!({ "cluster": 7 }), "spec.cluster"),
        (json!({ "cluster": "edge-1", "service": {} }), "spec.service"),
        (json!({ "cluster": "edge-1", "ttl": 60 }), "spec.ttl"),
        (json!({ "cluster": "edge-1", "user": "root" }), "spec.user"),
        (json!({}), "cluster"),
        (json!(null), "spec"),
    ] {
        let (code, answer) = issuing.ask_for("alice", spec.clone()).await;
        assert_eq!(code, 400, "{spec}: {answer}");
        assert!(message(&answer).contains(names), "{spec}: {answer}");
    }
    for body in ["", "{", "[]", "null", "{\"kind\":\"KubeconfigRequest\"}", "\u{0}"] {
        let (code, answer) = issuing.call("alice", "POST", REQUESTS, body.to_owned()).await;
        assert_eq!(code, 400, "{body:?}: {answer}");
        message(&answer);
    }
    let doubled = r#"{"apiVersion":"access.towline.io/v1alpha1","kind":"KubeconfigRequest","spec":{"cluster":"edge-1","role":"view","role":"admin"}}"#;
    let (code, answer) = issuing.call("alice", "POST", REQUESTS, doubled.to_owned()).await;
    assert_eq!((code, message(&answer).contains("role")), (400, true), "{answer}");
    assert_eq!(issuing.api.asked(), [""; 0]);
    issuing.world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_format_without_a_token_issues_none_and_the_others_hold_what_was_issued() {
    let mut issuing = Issuing::start().await;
    let mut issued = 0;
    for format in ["kubeconfig", "exec", "argocd-secret", "flux-secret", "clusterprofile", "terraform", "env"]
    {
        let (code, answer) = issuing.ask_for("alice", json!({ "cluster": "edge-1", "format": format })).await;
        assert_eq!(code, 201, "{format}: {answer}");
        assert_eq!(
            answer["spec"]["format"],
            if format == "kubeconfig" { json!(null) } else { json!(format) }
        );
        let status = &answer["status"];
        let content = status["content"].as_str().unwrap();
        if ["exec", "clusterprofile"].contains(&format) {
            assert!(status.get("token").is_none() && status.get("credential").is_none(), "{format}");
            assert!(!answer.to_string().contains("twl-"), "{format}");
            assert!(status["kubeconfig"].as_str().unwrap().contains("exec-credential"), "{format}");
        } else {
            issued += 1;
            let token = status["token"].as_str().unwrap();
            assert!(status["kubeconfig"].as_str().unwrap().contains(token), "{format}");
            assert_eq!(content.contains(token), format != "terraform", "{format}");
        }
        assert_eq!(issuing.stored().len(), issued, "{format}");
    }
    // The rights are asked about all the same.
    for format in ["exec", "clusterprofile"] {
        assert_eq!(issuing.ask_for("bob", json!({ "cluster": "edge-1", "format": format })).await.0, 403);
    }
    let spec = json!({ "cluster": "edge-1", "format": "exec", "role": "admin" });
    assert_eq!(issuing.ask_for("alice", spec).await.0, 403);
    for (spec, names) in [
        (json!({ "cluster": "edge-1", "format": "argocd-secret", "address": "root" }), "use path or host"),
        (json!({ "cluster": "edge-1", "format": "tkestack", "address": "path" }), "use host, or root"),
        // This hub has no CA to give.
        (json!({ "cluster": "edge-1", "format": "tkestack" }), "--gateway-ca-file"),
        (json!({ "cluster": "edge-1", "format": "clusterprofile", "role": "view" }), "leave spec.role"),
    ] {
        let (code, answer) = issuing.ask_for("alice", spec.clone()).await;
        assert_eq!(code, 422, "{spec}: {answer}");
        assert!(message(&answer).contains(names), "{spec}: {answer}");
    }
    assert_eq!(issuing.stored().len(), issued);
    issuing.world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn short_tokens_in_a_loop_do_not_fill_the_hub() {
    let mut issuing = Issuing::start().await;
    let over = (0..MAX_KEPT_PER_OWNER).map(|number| Stored {
        id: format!("{number:016x}"),
        expires: Timestamp::now() - Duration::from_secs(60),
        ..issued::tests::stored(&number.to_string(), None)
    });
    issuing.world.hub.issued.replace(over);
    let (code, answer) = issuing.ask_for("alice", json!({ "cluster": "edge-1" })).await;
    assert_eq!((code, message(&answer).contains("ask for longer ones")), (429, true), "{answer}");
    issuing.world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_loop_that_asks_for_tokens_ends_itself_and_what_is_over_does_not_count() {
    let mut issuing = Issuing::start().await;
    let many = |expires: Timestamp| {
        (0..MAX_PER_OWNER).map(move |number| Stored {
            id: format!("{number:016x}"),
            expires,
            ..issued::tests::stored(&number.to_string(), None)
        })
    };
    issuing.world.hub.issued.replace(many(Timestamp::now() + Duration::from_secs(600)));
    let (code, answer) = issuing.ask_for("alice", json!({ "cluster": "edge-1" })).await;
    assert_eq!((code, message(&answer).contains("revoke some")), (429, true), "{answer}");
    assert_eq!(issuing.ask_for("alice", json!({ "cluster": "edge-1", "format": "exec" })).await.0, 201);
    assert_eq!(issuing.api.asked(), [""; 0]);
    // The watch is not followed here, so the answer comes when waiting for it ends.
    issuing.world.hub.issued.replace(many(Timestamp::now() - Duration::from_secs(1)));
    assert_eq!(issuing.ask_for("alice", json!({ "cluster": "edge-1" })).await.0, 201);
    issuing.world.close().await;
}
