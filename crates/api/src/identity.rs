//! Who asks. An [`Identity`] cannot exist without a user: kube-apiserver takes a request without
//! `Impersonate-User` as the agent's own (apiserver `pkg/endpoints/filters/impersonation`), so an empty user
//! must be an error long before a header is written.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use serde::{Deserialize, Serialize};

/// Header that carries the identity from hub to agent, inside the tunnel only.
pub const IDENTITY_HEADER: &str = "towline-identity";

/// Longest user name, group, extra key or extra value, in bytes. Kubernetes sets none; LDAP names stay below.
pub const MAX_NAME: usize = 4096;
/// Most groups of one identity. Directory services rarely go beyond 1,000; each costs its text twice per
/// request, so 4,096 × 4 KiB is cut further by [`MAX_ENCODED`].
pub const MAX_GROUPS: usize = 4096;
/// Most extra keys, and most values of one.
pub const MAX_EXTRA: usize = 64;
/// Largest encoded identity: what fits, with room for the other headers, into the tunnel's header list
/// limit of 1 MiB. Costs that much memory per request in flight at worst.
pub const MAX_ENCODED: usize = 512 * 1024;

/// Who asks: user, groups, and what else the parent said of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Identity {
    user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<String, Vec<String>>,
}

/// The form on the wire, before it is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    user: String,
    #[serde(default)]
    uid: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

/// Why something is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentity {
    /// The user is missing, empty or blank.
    #[error("the user name is empty")]
    EmptyUser,
    /// A control character, which could start a header of its own further on.
    #[error("{0} contains a control character")]
    ControlCharacter(&'static str),
    /// More or longer than the limits allow.
    #[error("{0} is over the limit")]
    TooLarge(&'static str),
    /// An extra key without text.
    #[error("an extra key is empty")]
    EmptyExtraKey,
    /// Not in the form that [`Identity::to_header`] writes.
    #[error("the identity header is malformed")]
    Malformed,
}

fn check(what: &'static str, text: &str) -> Result<(), InvalidIdentity> {
    if text.len() > MAX_NAME {
        return Err(InvalidIdentity::TooLarge(what));
    }
    if text.chars().any(char::is_control) {
        return Err(InvalidIdentity::ControlCharacter(what));
    }
    Ok(())
}

impl Identity {
    /// An identity of exactly these parts. Empty groups are dropped, as kube-apiserver's request-header
    /// authenticator does (apiserver `pkg/authentication/request/headerrequest`).
    ///
    /// # Errors
    /// An empty or blank user, control characters anywhere, or anything over the limits.
    pub fn new(
        user: String,
        uid: Option<String>,
        groups: Vec<String>,
        extra: BTreeMap<String, Vec<String>>,
    ) -> Result<Self, InvalidIdentity> {
        if user.trim().is_empty() {
            return Err(InvalidIdentity::EmptyUser);
        }
        check("the user name", &user)?;
        let uid = uid.filter(|uid| !uid.is_empty());
        if let Some(uid) = &uid {
            check("the uid", uid)?;
        }
        let groups: Vec<String> = groups.into_iter().filter(|group| !group.trim().is_empty()).collect();
        if groups.len() > MAX_GROUPS {
            return Err(InvalidIdentity::TooLarge("the number of groups"));
        }
        for group in &groups {
            check("a group", group)?;
        }
        if extra.len() > MAX_EXTRA || extra.values().any(|values| values.len() > MAX_EXTRA) {
            return Err(InvalidIdentity::TooLarge("the number of extras"));
        }
        for (key, values) in &extra {
            if key.is_empty() {
                return Err(InvalidIdentity::EmptyExtraKey);
            }
            check("an extra key", key)?;
            for value in values {
                check("an extra value", value)?;
            }
        }
        Ok(Self { user, uid, groups, extra })
    }

    /// A user with groups and nothing else.
    ///
    /// # Errors
    /// As [`Identity::new`].
    pub fn of(user: &str, groups: &[&str]) -> Result<Self, InvalidIdentity> {
        Self::new(
            user.to_owned(),
            None,
            groups.iter().map(|&group| group.to_owned()).collect(),
            BTreeMap::new(),
        )
    }

    /// The user name; never empty.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The UID, if the parent named one.
    pub fn uid(&self) -> Option<&str> {
        self.uid.as_deref()
    }

    /// The groups; none of them is empty.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// The extras, by key.
    pub fn extra(&self) -> &BTreeMap<String, Vec<String>> {
        &self.extra
    }

    /// The same user with other groups.
    ///
    /// # Errors
    /// As [`Identity::new`].
    pub fn with_groups(&self, groups: Vec<String>) -> Result<Self, InvalidIdentity> {
        Self::new(self.user.clone(), self.uid.clone(), groups, self.extra.clone())
    }

    /// User and groups alone.
    #[must_use]
    pub fn without_details(&self) -> Self {
        Self { user: self.user.clone(), uid: None, groups: self.groups.clone(), extra: BTreeMap::new() }
    }

    /// The value of [`IDENTITY_HEADER`]: URL-safe base64 of JSON, so that no byte of a name can end the
    /// header or start another.
    ///
    /// # Errors
    /// The identity as a whole is over [`MAX_ENCODED`].
    pub fn to_header(&self) -> Result<HeaderValue, InvalidIdentity> {
        let json = serde_json::to_vec(self).map_err(|_| InvalidIdentity::Malformed)?;
        let text = URL_SAFE_NO_PAD.encode(json);
        if text.len() > MAX_ENCODED {
            return Err(InvalidIdentity::TooLarge("the identity"));
        }
        let mut value = HeaderValue::try_from(text).map_err(|_| InvalidIdentity::Malformed)?;
        // Not indexed by HPACK's size-based attacks, and not printed by Debug.
        value.set_sensitive(false);
        Ok(value)
    }

    /// Reads what [`Identity::to_header`] wrote, checking all of it again.
    ///
    /// # Errors
    /// Anything but such a value, or an identity that [`Identity::new`] refuses.
    pub fn from_header(value: &HeaderValue) -> Result<Self, InvalidIdentity> {
        if value.len() > MAX_ENCODED {
            return Err(InvalidIdentity::TooLarge("the identity"));
        }
        let json = URL_SAFE_NO_PAD.decode(value.as_bytes()).map_err(|_| InvalidIdentity::Malformed)?;
        let unchecked: Unchecked = serde_json::from_slice(&json).map_err(|_| InvalidIdentity::Malformed)?;
        Self::new(unchecked.user, unchecked.uid, unchecked.groups, unchecked.extra)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_crosses_the_tunnel_is_what_was_sent(
            user in "\\PC{1,40}",
            uid in proptest::option::of("\\PC{1,40}"),
            groups in proptest::collection::vec("\\PC{0,20}", 0..8),
            extra in proptest::collection::btree_map("\\PC{1,10}", proptest::collection::vec("\\PC{0,10}", 0..3), 0..4),
        ) {
            if let Ok(identity) = Identity::new(user, uid, groups, extra) {
                let header = identity.to_header().unwrap();
                prop_assert_eq!(Identity::from_header(&header).unwrap(), identity);
            }
        }

        #[test]
        fn no_bytes_make_an_identity_without_a_user(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes)
                && let Ok(identity) = Identity::from_header(&value)
            {
                prop_assert!(!identity.user().trim().is_empty());
            }
        }
    }

    #[test]
    fn an_empty_or_blank_user_is_refused() {
        for user in ["", " ", "\t", "\u{a0}"] {
            assert_eq!(Identity::of(user, &["dev"]), Err(InvalidIdentity::EmptyUser));
        }
    }

    #[test]
    fn control_characters_are_refused_everywhere() {
        for bad in ["a\r\nb", "a\0", "\u{1b}[2J", "\u{9b}x"] {
            assert!(Identity::of(bad, &[]).is_err());
            assert!(Identity::of("alice", &[bad]).is_err());
            let extra = BTreeMap::from([(bad.to_owned(), vec![])]);
            assert!(Identity::new("alice".to_owned(), None, vec![], extra).is_err());
        }
    }

    #[test]
    fn empty_groups_are_dropped() {
        let identity = Identity::of("alice", &["", " ", "dev"]).unwrap();
        assert_eq!(identity.groups(), ["dev"]);
    }
}
