//! Manifests at an address of their own: fetched once, by whoever has the address, and readable nowhere else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::control::fake_api::FakeApi;

const SECRETS: &str = "/api/v1/namespaces/clusternet-system/secrets/";

impl World {
    /// A hub whose parent keeps objects, and an invitation: its status.
    async fn inviting() -> (Self, FakeApi, Value) {
        let api = FakeApi::start().await;
        let account = "/api/v1/namespaces/clusternet-system/serviceaccounts/cluster-bootstrap-use";
        api.put(account, &json!({ "metadata": { "name": "cluster-bootstrap-use", "uid": "u" } }));
        let world = Self::start_with(Setup { objects: Some(api.client()), ..Setup::default() }).await;
        let body = json!({ "apiVersion": "access.towline.io/v1alpha1", "kind": "ClusterInvitation", "metadata": {},
                           "spec": { "clusterName": "edge-2", "oneTimeAddress": true } });
        let who = Identity::of("alice", &[]).unwrap();
        let invited = world.hub.join.invite(&who, body.to_string().as_bytes()).await.unwrap();
        (world, api, invited["status"].clone())
    }

    async fn fetch_at(&mut self, method: &str, path: &str) -> Response<Incoming> {
        self.send_to_gateway(Wire::H1, ask(method, path, &[])).await
    }
}

fn path(status: &Value) -> String {
    let address = status["oneTimeAddress"].as_str().unwrap();
    address.strip_prefix("https://hub.example.com:8444").unwrap().to_owned()
}

fn secret(status: &Value) -> String {
    format!("{SECRETS}invitation-{}", status["invitation"].as_str().unwrap())
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_manifest_is_fetched_once_without_a_credential_and_looking_at_its_head_is_free() {
    let (mut world, api, status) = World::inviting().await;
    let path = path(&status);
    for _ in 0..2 {
        let looked = world.fetch_at("HEAD", &path).await;
        assert_eq!(looked.status(), 200);
        assert_eq!(text(looked).await, "");
    }
    assert_eq!(world.fetch_at("POST", &path).await.status(), 405);
    let fetched = world.fetch_at("GET", &path).await;
    assert_eq!(
        (fetched.status().as_u16(), &fetched.headers()["cache-control"]),
        (200, &"no-store".parse().unwrap())
    );
    assert_eq!(fetched.headers()["content-type"], "application/yaml");
    assert_eq!(text(fetched).await, status["manifest"].as_str().unwrap());
    for method in ["GET", "HEAD"] {
        assert_eq!(world.fetch_at(method, &path).await.status(), 410, "{method}");
    }
    let gone = object(world.fetch_at("GET", &path).await).await;
    assert_eq!((&gone["kind"], &gone["reason"]), (&json!("Status"), &json!("Expired")));
    assert!(gone["message"].as_str().unwrap().contains("kubectl towline register"), "{gone}");
    // The invitation itself is as good as before.
    let kept = api.get(&secret(&status)).unwrap();
    assert!(kept["data"]["hash"].is_string() && kept["data"]["manifest"].is_null(), "{kept}");
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn of_two_that_fetch_a_manifest_at_once_one_gets_it() {
    let (world, _api, status) = World::inviting().await;
    let token = api::secret::Secret::from(path(&status).strip_prefix("/register/").unwrap().to_owned());
    let all = futures::future::join_all((0..8).map(|_| world.hub.join.fetch(&token, false, || Ok(())))).await;
    assert_eq!(all.iter().filter(|fetched| fetched.is_ok()).count(), 1);
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn nothing_that_is_kept_or_written_down_shows_the_manifest_or_its_address() {
    let (mut world, api, status) = World::inviting().await;
    let path = path(&status);
    let token = path.strip_prefix("/register/").unwrap().strip_suffix(".yaml").unwrap();
    let manifest = status["manifest"].as_str().unwrap();
    let kept = api.get(&secret(&status)).unwrap();
    let read = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
    let data = kept["data"].as_object().unwrap();
    assert!(data.contains_key("manifest"), "it is there, and has not been fetched");
    let mut kept = kept.to_string();
    // As whoever may read Secrets reads them.
    kept.extend(data.values().map(|value| String::from_utf8_lossy(&read(value)).into_owned()));
    let inside = manifest.lines().find(|line| line.contains("invitationSecret")).unwrap().trim();
    let inside = inside.rsplit(' ').next().unwrap().trim_matches('"').to_owned();
    for hidden in [token, &token[20..], &inside] {
        assert!(!kept.contains(hidden), "{hidden} in {kept}");
    }
    // Neither is what a stranger is told.
    let wrong = format!("{}AAAA.yaml", &path[..path.len() - 9]);
    for path in [&wrong, &path] {
        let answer = world.fetch_at("GET", path).await;
        let (head, body) = (format!("{:?}", answer.headers()), text(answer).await);
        assert!(!head.contains(&token[20..]) && (!body.contains(&token[20..])), "{path}");
    }
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_address_that_is_none_or_over_tells_nothing_and_counts_as_a_failed_token() {
    let (mut world, api, status) = World::inviting().await;
    let good = path(&status);
    let wrong = format!("{}AAAA.yaml", &good[..good.len() - 9]);
    let unknown = format!("/register/twm-0123456789abcdef-{}.yaml", "A".repeat(43));
    let mut said = Vec::new();
    for path in [wrong.as_str(), &unknown, "/register/x.yaml", "/register/"] {
        let answer = world.fetch_at("GET", path).await;
        assert_eq!(answer.status(), 404, "{path}");
        said.push(text(answer).await);
    }
    assert!(said.iter().all(|text| *text == said[0]), "{said:?}");

    let name = secret(&status);
    let mut old = api.get(&name).unwrap();
    old["data"]["manifest-expires"] = json!("MjAyMC0wMS0wMVQwMDowMDowMFo=");
    api.put(&name, &old);
    let late = world.fetch_at("GET", &good).await;
    assert_eq!(late.status(), 410);
    assert!(text(late).await.contains("good until 2020-01-01"));
    api.delete(&name);
    assert_eq!(world.fetch_at("GET", &good).await.status(), 404, "the invitation was taken back");

    let mut tries = 0;
    while world.fetch_at("GET", &unknown).await.status() == 404 {
        tries += 1;
        assert!(tries < 1000, "nobody counts");
    }
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_used_invitation_has_no_address_any_more() {
    let (mut world, api, status) = World::inviting().await;
    let name = secret(&status);
    let kept: k8s_openapi::api::core::v1::Secret = serde_json::from_value(api.get(&name).unwrap()).unwrap();
    let mut stored = crate::join::stored::Stored::from_secret(&kept).unwrap();
    let user = crate::join::stored::User { cluster: "c9".parse().unwrap(), fingerprint: "k".to_owned() };
    stored.used_by = Some(user);
    api.put(&name, &stored.to_secret("alice", None));
    assert_eq!(world.fetch_at("GET", &path(&status)).await.status(), 404);
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn without_a_gateway_there_is_no_address_and_no_invitation_is_left() {
    let api = FakeApi::start().await;
    let settings = Settings { public_url: Some("https://parent".to_owned()), ..Settings::default() };
    let join = Join::new(api.client(), Arc::new(settings), Arc::default());
    let body = json!({ "apiVersion": "access.towline.io/v1alpha1", "kind": "ClusterInvitation",
                       "spec": { "clusterName": "edge-2", "oneTimeAddress": true } });
    let refused = join.invite(&Identity::of("alice", &[]).unwrap(), body.to_string().as_bytes()).await;
    let refused = refused.unwrap_err().to_status();
    assert!(refused.code == 422 && refused.message.contains("--gateway-url"), "{refused:?}");
}
