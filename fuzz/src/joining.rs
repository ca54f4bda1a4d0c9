//! How a cluster joins: a registration is believed if, and only if, the key in it has signed this very invitation and
//! cluster.

use std::sync::OnceLock;

use agent::key::Key;
use api::registration::{ClusterRegistration, signed_message};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

fn key() -> &'static Key {
    static KEY: OnceLock<Key> = OnceLock::new();
    KEY.get_or_init(|| Key::generate().expect("a key"))
}

/// A body of `POST clusterregistrations`: as it is, and signed by a key of ours.
pub(crate) fn registration(data: &[u8]) {
    let taken = hub::fuzzing::registration(data);
    let Ok(mut body) = serde_json::from_slice::<ClusterRegistration>(data) else {
        assert!(taken.is_err(), "a body that is none was taken");
        return;
    };
    if let Ok((invitation, cluster, _)) = taken {
        assert_eq!((invitation.as_str(), cluster.as_str()), (&*body.spec.invitation, &*body.spec.cluster_id));
        let public = STANDARD.decode(&body.spec.public_key).expect("a key that was used");
        let signature = STANDARD.decode(&body.spec.signature).expect("a signature that was checked");
        let message = signed_message(&body.spec.invitation, &body.spec.cluster_id, &body.spec.public_key);
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &public).expect("a key");
        assert!(key.verify_sig(&message, &signature).is_ok(), "a signature of something else was taken");
    }

    let (invitation, cluster) = (body.spec.invitation.clone(), body.spec.cluster_id.clone());
    let well_formed = body.api_version == "access.towline.io/v1alpha1"
        && body.kind == "ClusterRegistration"
        && is_label(&cluster)
        && invitation.len() == 16
        && invitation.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    body.spec.public_key = key().public();
    for (signed, good) in [(invitation.clone(), true), (format!("{invitation}0"), false)] {
        body.spec.signature = key().prove(&signed, &cluster).expect("a signature");
        let written = serde_json::to_vec(&body).expect("what was read can be written");
        let taken = hub::fuzzing::registration(&written);
        assert_eq!(taken.is_ok(), good && well_formed, "signed for {signed:?}");
        if let Ok((_, _, fingerprint)) = taken {
            assert_eq!(fingerprint, key().fingerprint(), "people compare these two");
        }
    }
}

/// A DNS label (RFC 1123), which a cluster's id is.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| inner(byte) || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}
