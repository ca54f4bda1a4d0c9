//! What somebody who holds the bootstrap token, or has read a manifest, could send instead of a registration: rows R-*
//! of `tests/abuse-cases.tsv`. Judged by the answer, and by what was written in the parent: nothing.

use super::against_the_api::{NOW, REQUEST, SECRETS, cluster, invitation, world};
use super::tests::proof;
use super::*;

const BOOTSTRAP: &str = "system:serviceaccount:clusternet-system:cluster-bootstrap-use";

fn who(name: &str) -> Identity {
    Identity::new(name.to_owned(), None, vec![], [].into()).unwrap()
}

/// A good registration with these changes, in the spec or (`/…`) beside it.
fn body(changes: &[(&str, Value)]) -> Vec<u8> {
    let spec = serde_json::to_value(proof(NOW, "c1")).unwrap();
    let mut body = json!({ "apiVersion": "access.towline.io/v1alpha1", "kind": "ClusterRegistration",
                           "metadata": {}, "spec": spec });
    for (field, value) in changes {
        match field.strip_prefix('/') {
            Some(field) => body[field] = value.clone(),
            None => body["spec"][field] = value.clone(),
        }
    }
    body.to_string().into_bytes()
}

#[tokio::test]
async fn whatever_is_no_registration_is_refused_and_nothing_is_written() {
    let (api, join) = world().await;
    let secret = |id: &str| format!("{SECRETS}/invitation-{id}");
    let expired = Stored { expires: Timestamp::UNIX_EPOCH, ..invitation("5555555555555555", true, None) };
    api.put(&secret(NOW), &invitation(NOW, true, None).to_secret("alice", None));
    api.put(&secret(&expired.id), &expired.to_secret("alice", None));
    let taken = invitation("6666666666666666", true, Some("c9"));
    api.put(&secret(&taken.id), &taken.to_secret("alice", None));
    let proven = |id: &str, changes: &[(&str, Value)]| {
        let spec = serde_json::to_value(proof(id, "c1")).unwrap();
        let fields = ["invitation", "publicKey", "signature"].map(|field| (field, spec[field].clone()));
        body(&[&fields[..], changes].concat())
    };
    let text = |body: Vec<u8>| String::from_utf8(body).unwrap();
    let good = text(body(&[]));
    let nested = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let yaml = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
    let cases: Vec<(&str, &str, Vec<u8>, u16)> = vec![
        ("R-01", "unknown invitation", proven("7777777777777777", &[]), 401),
        ("R-01", "wrong secret", proven(NOW, &[("secret", json!("Secret"))]), 401),
        ("R-01", "no secret", proven(NOW, &[("secret", json!(""))]), 401),
        ("R-01", "expired", proven("5555555555555555", &[]), 401),
        ("R-01", "used up", proven("6666666666666666", &[]), 409),
        ("R-01", "the hash for the secret", proven(NOW, &[("secret", json!(sha256_hex(b"secret")))]), 401),
        ("R-05", "a secret of 1 MiB", proven(NOW, &[("secret", json!("s".repeat(1 << 20)))]), 401),
        ("R-05", "a secret with NUL", proven(NOW, &[("secret", json!("secret\0"))]), 401),
        ("R-05", "another Unicode form", proven(NOW, &[("secret", json!("ｓecret"))]), 401),
        ("R-05", "an id that is a path", proven("../../secrets/x", &[]), 401),
        ("R-05", "an id with NUL", proven("111111111111111\0", &[]), 401),
        ("R-13", "no signature", body(&[("signature", json!(""))]), 400),
        ("R-13", "a signature for another cluster", body(&[("clusterId", json!("c2"))]), 400),
        ("R-13", "one for another invitation", body(&[("invitation", json!("5555555555555555"))]), 400),
        ("R-13", "one by another key", body(&[("publicKey", json!(proof(NOW, "c1").public_key))]), 400),
        ("R-13", "a signature that is missing", text(body(&[])).replace("signature", "sign").into(), 400),
        ("R-30", "an unknown field", body(&[("denied", json!(false))]), 400),
        ("R-30", "labels of its own", body(&[("clusterLabels", json!({ "tenant": "x" }))]), 400),
        ("R-30", "approval of its own", body(&[("autoApprove", json!(true))]), 400),
        ("R-30", "a name of its own", body(&[("clusterName", json!("prod"))]), 400),
        ("R-30", "a field beside the spec", body(&[("/approved", json!(true))]), 400),
        (
            "R-30",
            "a doubled field",
            good.replacen("\"secret\":", "\"secret\":\"x\",\"secret\":", 1).into(),
            400,
        ),
        ("R-30", "a doubled spec", good.replacen("\"spec\":", "\"spec\":{},\"spec\":", 1).into(), 400),
        ("R-33", "an id with an escape", body(&[("clusterId", json!("c\u{1b}[2K"))]), 400),
        ("R-33", "an id from right to left", body(&[("clusterId", json!("c\u{202e}1"))]), 400),
        ("R-33", "an id of 10 KiB", body(&[("clusterId", json!("c".repeat(10_240)))]), 400),
        ("R-36", "an alias bomb in YAML", yaml.as_bytes().to_vec(), 400),
        ("R-36", "an id 10,000 deep", good.replace("\"c1\"", &nested).into(), 400),
        (
            "R-36",
            "metadata 10,000 deep",
            good.replace("\"metadata\":{}", &format!("\"metadata\":{{\"a\":{nested}}}")).into(),
            400,
        ),
        ("R-36", "protobuf", b"k8s\0\n\x0b".to_vec(), 400),
        ("R-36", "nothing", Vec::new(), 400),
        ("R-36", "NaN", good.replace("\"c1\"", "NaN").into(), 400),
    ];
    let before: Vec<_> = api.paths().iter().map(|path| api.get(path)).collect();
    let mut failures = Vec::new();
    for (row, what, body, wanted) in cases {
        let code = match join.register(&who(BOOTSTRAP), &body).await {
            Ok(answer) => answer["status"]["result"].to_string(),
            Err(refusal) => refusal.to_status().code.as_u16().to_string(),
        };
        if code != wanted.to_string() {
            failures.push(format!("{row}, {what}: {code}, not {wanted}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let after: Vec<_> = api.paths().iter().map(|path| api.get(path)).collect();
    assert_eq!(before, after, "nothing was written");
    // And the honest one is let in.
    let answer = join.register(&who(BOOTSTRAP), &body(&[])).await.unwrap();
    assert_eq!(answer["status"]["result"], "Pending", "approved; the hub is setting it up");
    assert_eq!(api.get(REQUEST).unwrap()["status"]["result"], "Approved");
}

#[tokio::test]
async fn nobody_but_the_holder_of_an_invitations_token_registers() {
    let (api, join) = world().await;
    api.put(&format!("{SECRETS}/invitation-{NOW}"), &invitation(NOW, true, None).to_secret("alice", None));
    for other in [
        "alice",
        "system:admin",
        "system:serviceaccount:clusternet-system:clusternet-hub",
        "system:serviceaccount:clusternet-x:clusternet-agent",
        "system:serviceaccount:default:cluster-bootstrap-use",
        "system:bootstrap:abcdef",
    ] {
        let refused = join.register(&who(other), &body(&[])).await.unwrap_err().to_status();
        assert_eq!(refused.code, 403, "{other}");
    }
    assert!(api.asked().is_empty(), "the parent was asked nothing");
}

#[tokio::test]
async fn nothing_of_an_agents_metadata_is_believed_or_answered() {
    let (api, join) = world().await;
    api.put(&format!("{SECRETS}/invitation-{NOW}"), &invitation(NOW, false, None).to_secret("alice", None));
    let metadata = json!({
        "name": "mine", "generateName": "mine-", "namespace": "kube-system", "uid": "u", "finalizers": ["a/b"],
        "labels": { "clusters.clusternet.io/cluster-id": "victim", "tenant": "x" },
        "annotations": { INVITED_AT: "2100-01-01T00:00:00Z" },
        "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u" }],
        "managedFields": [{ "manager": "kubectl" }],
    });
    let answer = join.register(&who(BOOTSTRAP), &body(&[("/metadata", metadata)])).await.unwrap();
    let request = api.get(REQUEST).unwrap();
    let labels = request["metadata"]["labels"].as_object().unwrap();
    assert_eq!((labels[LABEL_CLUSTER_ID].as_str(), labels.get("tenant")), (Some("c1"), None));
    assert_ne!(request["metadata"]["annotations"][INVITED_AT], "2100-01-01T00:00:00Z");
    for field in ["finalizers", "ownerReferences", "managedFields", "generateName", "namespace"] {
        assert!(request["metadata"][field].is_null(), "{field}");
    }
    let answer = answer.to_string();
    assert!(
        !answer.contains("mine") && !answer.contains("victim") && !answer.contains("\"secret\""),
        "{answer}"
    );
}

#[tokio::test]
async fn the_id_of_a_registered_cluster_gets_a_stranger_nothing_and_tells_nothing() {
    let (api, join) = world().await;
    let theirs = Cluster { name: "theirs".parse().unwrap(), ..cluster("their-key") };
    join.catalog.replace([theirs]);
    api.put(&format!("{SECRETS}/invitation-{NOW}"), &invitation(NOW, true, None).to_secret("alice", None));
    // Another name: refused. The name is told, for whoever invited has to unregister it.
    let body = body(&[]);
    let answer = join.register(&who(BOOTSTRAP), &body).await.unwrap();
    assert_eq!(answer["status"]["result"], "Denied");
    assert!(!answer.to_string().contains("their-key") && api.get(REQUEST).is_none());
    // The same name, with an invitation that approves: a person decides.
    join.catalog.replace([cluster("their-key")]);
    let answer = join.register(&who(BOOTSTRAP), &body).await.unwrap();
    assert_eq!(
        (&answer["status"]["result"], &answer["status"]["credential"]),
        (&json!("Pending"), &json!(null))
    );
    assert!(!answer.to_string().contains("their-key"), "{answer}");
}

#[tokio::test]
async fn invitations_that_stand_open_are_bounded() {
    let (api, join) = world().await;
    let body = json!({ "apiVersion": "access.towline.io/v1alpha1", "kind": "ClusterInvitation",
                       "metadata": {}, "spec": { "clusterName": "edge" } })
    .to_string();
    for number in 0..2_000 {
        let id = format!("{number:016x}");
        api.put(
            &format!("{SECRETS}/invitation-{id}"),
            &invitation(&id, false, None).to_secret("alice", None),
        );
    }
    let refused = join.invite(&who("alice"), body.as_bytes()).await.unwrap_err().to_status();
    assert_eq!(refused.code, 429);
    assert!(refused.message.contains("delete some"), "{}", refused.message);
}
