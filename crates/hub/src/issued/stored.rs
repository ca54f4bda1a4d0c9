//! An issued token as it stands in the parent: a Secret of its own type in `clusternet-system`, with the hash and
//! not the token, so whoever reads it cannot use it. Pure.

use std::collections::BTreeMap;

use api::identity::Identity;
use api::names::{CREATED_BY_HUB, ClusterId, LABEL_CLUSTER_ID, LABEL_CREATED_BY, Role, SYSTEM_NAMESPACE};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;

use super::Hash;
/// Ids are as those of invitations: 64 random bits in hex.
pub use crate::join::stored::is_id;

/// Type of the Secrets, by which they are watched.
pub const SECRET_TYPE: &str = "access.towline.io/credential";
/// Annotation with the time of the last use, to the minute.
pub const LAST_USED: &str = "access.towline.io/last-used";
const NAME_PREFIX: &str = "credential-";

/// Name of a credential's Secret.
pub fn secret_name(id: &str) -> String {
    format!("{NAME_PREFIX}{id}")
}

/// What stands in the Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Public id.
    pub id: String,
    /// SHA-256 of the token.
    pub hash: Hash,
    /// Where it is good.
    pub cluster: ClusterId,
    /// Whose rights it has: user and groups as they were when it was issued.
    pub owner: Identity,
    /// The one role, if it is not the owner's identity.
    pub role: Option<Role>,
    /// The tool that it is for.
    pub service: Option<String>,
    /// The end.
    pub expires: Timestamp,
    /// To the minute.
    pub last_used: Option<Timestamp>,
}

impl Stored {
    /// Whether nothing but the time of the last use is another.
    pub fn same_but_used(&self, other: &Self) -> bool {
        *self == Self { last_used: self.last_used, ..other.clone() }
    }

    /// The Secret.
    pub fn to_secret(&self) -> Secret {
        let mut data = BTreeMap::from([
            ("hash", crate::join::hex(&self.hash)),
            ("cluster-id", self.cluster.to_string()),
            (
                "owner",
                serde_json::json!({ "user": self.owner.user(), "groups": self.owner.groups() }).to_string(),
            ),
            ("expires", self.expires.to_string()),
        ]);
        if let Some(role) = self.role {
            data.insert("role", role.subresource().to_owned());
        }
        if let Some(service) = &self.service {
            data.insert("service", service.clone());
        }
        let labels = [
            (LABEL_CREATED_BY.to_owned(), CREATED_BY_HUB.to_owned()),
            // So that unregistering a cluster finds what leads to it.
            (LABEL_CLUSTER_ID.to_owned(), self.cluster.to_string()),
        ];
        Secret {
            metadata: ObjectMeta {
                name: Some(secret_name(&self.id)),
                namespace: Some(SYSTEM_NAMESPACE.to_owned()),
                labels: Some(labels.into()),
                ..ObjectMeta::default()
            },
            type_: Some(SECRET_TYPE.to_owned()),
            // Nobody edits a hash; a changed one would make another token good.
            immutable: Some(true),
            data: Some(
                data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect(),
            ),
            ..Secret::default()
        }
    }

    /// Reads a Secret; `None` if it is none that the hub wrote.
    pub fn from_secret(secret: &Secret) -> Option<Self> {
        if secret.type_.as_deref() != Some(SECRET_TYPE) {
            return None;
        }
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Owner {
            user: String,
            groups: Vec<String>,
        }
        let text = |key: &str| std::str::from_utf8(&secret.data.as_ref()?.get(key)?.0).ok();
        let owner: Owner = serde_json::from_str(text("owner")?).ok()?;
        let role = match text("role") {
            None => None,
            Some(name) => Some(*Role::ALL.iter().find(|role| role.subresource() == name)?),
        };
        let last_used = secret.metadata.annotations.as_ref().and_then(|all| all.get(LAST_USED));
        Some(Self {
            id: secret.metadata.name.as_deref()?.strip_prefix(NAME_PREFIX).filter(|id| is_id(id))?.to_owned(),
            hash: unhex(text("hash")?)?,
            cluster: text("cluster-id")?.parse().ok()?,
            owner: Identity::new(owner.user, None, owner.groups, BTreeMap::new()).ok()?,
            role,
            // A service without a role would be a stranger with its owner's groups.
            service: text("service").map(str::to_owned).filter(|_| role.is_some()),
            expires: text("expires")?.parse().ok()?,
            last_used: last_used.and_then(|text| text.parse().ok()),
        })
    }
}

fn unhex(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (place, pair) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *place = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_what_is_read() {
        let mut stored = super::super::tests::stored("token", None);
        assert_eq!(Stored::from_secret(&stored.to_secret()), Some(stored.clone()));
        (stored.role, stored.service) = (Some(Role::Edit), Some("argo".to_owned()));
        let secret = stored.to_secret();
        assert_eq!(Stored::from_secret(&secret), Some(stored));
        let shown = serde_json::to_string(&secret).unwrap();
        assert!(!shown.contains("token"), "{shown}");

        let broken = |change: &dyn Fn(&mut Secret)| {
            let mut secret = secret.clone();
            change(&mut secret);
            Stored::from_secret(&secret)
        };
        let data = |secret: &mut Secret, key: &str, text: &str| {
            secret.data.as_mut().unwrap().insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
        };
        assert_eq!(broken(&|secret| secret.type_ = Some("Opaque".to_owned())), None);
        assert_eq!(broken(&|secret| secret.metadata.name = Some("credential-../x".to_owned())), None);
        for (key, text) in [
            ("hash", "00"),
            ("owner", "{}"),
            ("owner", r#"{"user":"","groups":[]}"#),
            ("role", "root"),
            ("expires", "soon"),
            ("cluster-id", "A/b"),
        ] {
            assert_eq!(broken(&|secret| data(secret, key, text)), None, "{key}={text}");
        }
    }
}
