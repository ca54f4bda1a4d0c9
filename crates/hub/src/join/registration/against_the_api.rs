//! Registrations against a parent's API: what is written, which invitations end, and who has to wait.

use std::sync::Arc;
use std::time::Duration;

use api::registration::ClusterRegistrationRequestStatus;

use super::*;
use crate::catalog::{Catalog, KEY_HOLD};
use crate::config::Settings;
use crate::control::DEADLINE;
use crate::control::fake_api::{FakeApi, Reaction};
use crate::control::objects::dedicated_namespace;

pub(super) const REQUEST: &str =
    "/apis/clusters.clusternet.io/v1beta1/clusterregistrationrequests/clusternet-c1";
pub(super) const SECRETS: &str = "/api/v1/namespaces/clusternet-system/secrets";
pub(super) const NOW: &str = "1111111111111111";
const BEFORE: &str = "2222222222222222";
const UNUSED: &str = "3333333333333333";
const OTHERS: &str = "4444444444444444";

pub(super) async fn world() -> (FakeApi, Join) {
    let api = FakeApi::start().await;
    let settings = Settings {
        public_url: Some("https://parent".to_owned()),
        parent_ca_file: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/src/generate/testdata/ca.pem").into()),
        ..Settings::default()
    };
    let catalog = Arc::new(Catalog::default());
    catalog.replace([]);
    let join = Join::new(api.client(), Arc::new(settings), catalog);
    (api, join)
}

fn applicant(key: &str) -> Applicant {
    Applicant { invitation: NOW.to_owned(), cluster: "c1".parse().unwrap(), fingerprint: key.to_owned() }
}

pub(super) fn invitation(id: &str, auto_approve: bool, used_by: Option<&str>) -> Stored {
    Stored {
        id: id.to_owned(),
        hash: sha256_hex(b"secret"),
        cluster_name: "edge".parse().unwrap(),
        expires: "2100-01-02T03:04:05Z".parse().unwrap(),
        auto_approve,
        labels: [].into(),
        groups: vec![],
        used_by: used_by
            .map(|cluster| User { cluster: cluster.parse().unwrap(), fingerprint: "k".to_owned() }),
        made: Some("2026-01-01T00:00:00Z".parse().unwrap()),
    }
}

pub(super) fn cluster(key: &str) -> Cluster {
    let id: ClusterId = "c1".parse().unwrap();
    Cluster {
        namespace: dedicated_namespace(&id),
        id,
        name: "edge".parse().unwrap(),
        key_fingerprint: key.to_owned(),
        denied: false,
        last_seen: None,
    }
}

/// A request that was approved for this key.
fn approved(api: &FakeApi, key: &str) {
    let spec = ClusterRegistrationRequestSpec {
        cluster_id: "c1".to_owned(),
        cluster_name: "edge".to_owned(),
        key_fingerprint: key.to_owned(),
        ..ClusterRegistrationRequestSpec::default()
    };
    let mut request = ClusterRegistrationRequest::new("clusternet-c1", spec);
    request.status = Some(ClusterRegistrationRequestStatus {
        result: Some(RegistrationResult::Approved),
        managed_cluster_name: "edge".to_owned(),
        ..ClusterRegistrationRequestStatus::default()
    });
    api.put(REQUEST, &request);
}

/// The cluster's objects in the parent, as set up for this key.
fn set_up(api: &FakeApi, key: &str) {
    let space = dedicated_namespace(&"c1".parse().unwrap());
    api.put(
        &format!("/api/v1/namespaces/{space}/serviceaccounts/clusternet-agent"),
        &json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "annotations": { KEY_FINGERPRINT: key } } }),
    );
    api.put(
        &format!("/apis/clusters.clusternet.io/v1beta1/namespaces/{space}/managedclusters/edge"),
        &json!({ "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster", "metadata": {},
                 "spec": { "clusterId": "c1", "keyFingerprint": key } }),
    );
}

fn put_invitations(api: &FakeApi) {
    for (id, used_by) in [(NOW, Some("c1")), (BEFORE, Some("c1")), (UNUSED, None), (OTHERS, Some("c2"))] {
        let secret = invitation(id, false, used_by).to_secret("alice", None);
        api.put(&format!("{SECRETS}/invitation-{id}"), &secret);
    }
}

fn invitations(api: &FakeApi) -> Vec<String> {
    api.paths()
        .iter()
        .filter_map(|path| path.strip_prefix(&format!("{SECRETS}/invitation-")).map(ToOwned::to_owned))
        .collect()
}

#[tokio::test]
async fn a_written_request_ends_all_other_invitations_that_the_cluster_used() {
    let (api, join) = world().await;
    put_invitations(&api);
    let status = join.proceed(&applicant("k"), &invitation(NOW, false, Some("c1"))).await.unwrap();
    assert_eq!(status.result, RegistrationResult::Pending);
    assert_eq!(invitations(&api), [NOW, UNUSED, OTHERS]);
    assert_eq!(
        api.get(REQUEST).unwrap()["metadata"]["annotations"][INVITED_AT],
        "2026-01-01T00:00:00Z",
        "the request tells the age of its invitation"
    );
}

#[tokio::test]
async fn a_request_that_could_not_be_written_ends_no_invitation() {
    let (api, join) = world().await;
    put_invitations(&api);
    approved(&api, "old");
    let line = format!("PUT {REQUEST}");
    api.hook(move |_, asked| if asked == line { Reaction::Refuse(500) } else { Reaction::Go });
    join.proceed(&applicant("k"), &invitation(NOW, false, Some("c1"))).await.unwrap_err();
    assert_eq!(invitations(&api).len(), 4);
}

#[tokio::test]
async fn a_registered_cluster_is_not_taken_over_by_an_approving_invitation() {
    let (api, join) = world().await;
    approved(&api, "old");
    set_up(&api, "old");
    join.catalog.replace([cluster("old")]);
    let status = join.proceed(&applicant("k"), &invitation(NOW, true, Some("c1"))).await.unwrap();
    assert_eq!((status.result, status.credential), (RegistrationResult::Pending, None));
    assert_eq!(api.get(REQUEST).unwrap()["status"]["result"], "Pending");
    // And not by asking again.
    let status = join.proceed(&applicant("k"), &invitation(NOW, true, Some("c1"))).await.unwrap();
    assert_eq!(status.result, RegistrationResult::Pending);
}

#[tokio::test]
async fn a_new_key_gets_its_credential_when_it_can_be_used() {
    let (api, join) = world().await;
    approved(&api, "k");
    set_up(&api, "k");
    join.catalog.replace([cluster("old")]);
    join.catalog.replace([cluster("k")]);
    let invitation = invitation(NOW, false, Some("c1"));
    let status = join.proceed(&applicant("k"), &invitation).await.unwrap();
    assert_eq!((status.result, status.retry_after_seconds), (RegistrationResult::Pending, 1));
    tokio::time::pause();
    tokio::time::advance(KEY_HOLD).await;
    tokio::time::resume();
    let status = join.proceed(&applicant("k"), &invitation).await.unwrap();
    assert_eq!(status.result, RegistrationResult::Approved);
    assert!(status.credential.is_some());
}

#[tokio::test]
async fn a_key_that_was_replaced_while_its_credential_was_made_gets_none() {
    let (api, join) = world().await;
    approved(&api, "k");
    set_up(&api, "another");
    join.catalog.replace([cluster("k")]);
    let status = join.proceed(&applicant("k"), &invitation(NOW, false, Some("c1"))).await.unwrap();
    assert_eq!((status.result, status.credential), (RegistrationResult::Pending, None));
}

#[tokio::test]
async fn a_parent_that_does_not_answer_keeps_nobody_waiting_for_ever() {
    let (api, join) = world().await;
    join.proceed(&applicant("k"), &invitation(NOW, false, None)).await.unwrap();
    api.hook(|_, _| Reaction::Hang);
    // Over the connection that there is, so that it is not the connecting that ends.
    tokio::time::pause();
    let person = Identity::new("alice".to_owned(), None, vec![], [].into()).unwrap();
    let body = json!({ "apiVersion": "access.towline.io/v1alpha1", "kind": "ClusterInvitation",
                       "metadata": {}, "spec": { "clusterName": "edge" } });
    let refused =
        tokio::time::timeout(DEADLINE * 2, join.invite(&person, body.to_string().as_bytes())).await.unwrap();
    assert_eq!(refused.unwrap_err().to_status().code, 503);

    let bootstrap = "system:serviceaccount:clusternet-system:cluster-bootstrap-use".to_owned();
    let agent = Identity::new(bootstrap, None, vec![], [].into()).unwrap();
    let spec = tests::proof(NOW, "c1");
    let body = json!({ "apiVersion": "access.towline.io/v1alpha1", "kind": "ClusterRegistration",
                       "metadata": {}, "spec": spec })
    .to_string();
    let asked = tokio::time::Instant::now();
    let refused = join.register(&agent, body.as_bytes());
    let refused = tokio::time::timeout(DEADLINE * 2, refused).await.unwrap();
    assert_eq!(refused.unwrap_err().to_status().code, 503);
    assert!(asked.elapsed() < DEADLINE + Duration::from_secs(1));
}

#[tokio::test]
async fn an_agent_whose_account_was_deleted_waits_and_is_told_what_helps() {
    let (api, join) = world().await;
    approved(&api, "k");
    join.catalog.replace([cluster("k")]);
    let status = join.proceed(&applicant("k"), &invitation(NOW, false, Some("c1"))).await.unwrap();
    assert_eq!((status.result, status.credential), (RegistrationResult::Pending, None));
    assert!(status.message.contains("kubectl towline unregister edge"), "{}", status.message);
}

#[tokio::test]
async fn an_invitation_that_approves_names_the_key_that_used_it() {
    let (api, join) = world().await;
    join.proceed(&applicant("k"), &invitation(NOW, true, Some("c1"))).await.unwrap();
    assert_eq!(api.get(REQUEST).unwrap()["status"]["result"], "Approved");
    assert_eq!(api.get(REQUEST).unwrap()["status"]["approvedKey"], "k");
    // Another key asks: what was said of the first is taken back before the request is written anew.
    let newer = Stored { id: BEFORE.to_owned(), ..invitation(NOW, false, Some("c1")) };
    join.proceed(&applicant("other"), &newer).await.unwrap();
    let status = &api.get(REQUEST).unwrap()["status"];
    assert_eq!((&status["result"], &status["approvedKey"]), (&json!("Pending"), &json!(null)));
}

#[tokio::test]
async fn one_of_two_that_use_an_invitation_at_once_gets_it() {
    let (api, join) = world().await;
    let secret = Hidden::from("secret".to_owned());
    api.put(&format!("{SECRETS}/invitation-{NOW}"), &invitation(NOW, false, None).to_secret("alice", None));
    let other = Applicant { cluster: "c2".parse().unwrap(), ..applicant("other") };
    let first = applicant("k");
    let (one, two) = tokio::join!(join.admit(&first, &secret), join.admit(&other, &secret));
    let refused = match (one, two) {
        (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
        both => panic!("{both:?}"),
    };
    assert_eq!(refused.to_status().code, 409);
}

#[tokio::test]
async fn an_invitation_that_was_deleted_is_as_unknown_as_one_that_never_was() {
    let (api, join) = world().await;
    put_invitations(&api);
    let secret = Hidden::from("secret".to_owned());
    join.admit(&applicant("k"), &secret).await.unwrap();
    api.delete(&format!("{SECRETS}/invitation-{NOW}"));
    let gone = join.admit(&applicant("k"), &secret).await.unwrap_err().to_status();
    let never = Applicant { invitation: "5555555555555555".to_owned(), ..applicant("k") };
    let never = join.admit(&never, &secret).await.unwrap_err().to_status();
    assert_eq!((gone.code, &gone.message), (never.code, &never.message));
    assert_eq!(gone.code, 401);
}
