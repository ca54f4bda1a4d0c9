//! Who a person of the parent is in a child. The same rules stand at both ends: the hub maps with
//! [`to_child`], and the agent refuses with [`refuse_in_child`] whatever a hub that lies might send.
//!
//! `system:` and `kubeadm:` names mean something else in every cluster: a service account of the parent
//! would become the child's account of the same name, and `system:masters` would pass all authorization.

use crate::identity::{Identity, InvalidIdentity};
use crate::names::{Role, role_group};

/// Prefixes of names that never cross from one cluster to another.
pub const RESERVED_PREFIXES: [&str; 2] = ["system:", "kubeadm:"];
/// Prefix of a parent's service account in a child, where policy admits it at all.
pub const SERVICE_ACCOUNT_PREFIX: &str = "clusternet:serviceaccount:";
/// Prefix of a tool's service, which has a token of the hub.
pub const SERVICE_PREFIX: &str = "clusternet:service:";
const PARENT_SERVICE_ACCOUNT: &str = "system:serviceaccount:";
/// Prefix of the groups that only the hub hands out.
const OWN_PREFIX: &str = "clusternet:";

/// Why a person of the parent is nobody in a child.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MappingRefusal {
    /// A `system:` or `kubeadm:` user.
    #[error(
        "user {0:?} is internal to the parent cluster and does not exist in its children; use a person's or tool's own account"
    )]
    ReservedUser(String),
    /// A parent service account, without the policy that admits them.
    #[error(
        "service account {0:?} of the parent may not enter child clusters; start the hub with --map-service-accounts to admit service accounts"
    )]
    ServiceAccount(String),
    /// A user name that is the hub's to give.
    #[error("user {0:?} begins with \"clusternet:\", which is reserved for the hub")]
    OwnUser(String),
    /// A group that must not reach a child; seen by the agent only, since the hub drops them.
    #[error("group {0:?} must not be sent to a child cluster")]
    ReservedGroup(String),
    /// What [`to_child`] leaves behind; seen by the agent only.
    #[error("{0} must not be sent to a child cluster: it describes the parent's users, nodes and pods")]
    LeftBehind(&'static str),
    /// The result is no identity.
    #[error(transparent)]
    Invalid(#[from] InvalidIdentity),
}

fn reserved(name: &str) -> bool {
    // Compared without case: RBAC is case-sensitive, but whoever reads a log is not.
    RESERVED_PREFIXES.iter().any(|prefix| {
        name.len() >= prefix.len() && name.as_bytes()[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes())
    })
}

/// The identity that a caller of the parent has in a child: plain users and groups as they are, reserved
/// groups dropped, plus one group for each role that the parent's RBAC grants on this cluster.
///
/// # Errors
/// The user is one that has no meaning in a child.
pub fn to_child(
    who: &Identity,
    roles: &[Role],
    map_service_accounts: bool,
) -> Result<Identity, MappingRefusal> {
    let user = match who.user().strip_prefix(PARENT_SERVICE_ACCOUNT) {
        Some(account) if map_service_accounts => format!("{SERVICE_ACCOUNT_PREFIX}{account}"),
        Some(_) => return Err(MappingRefusal::ServiceAccount(who.user().to_owned())),
        None if reserved(who.user()) => return Err(MappingRefusal::ReservedUser(who.user().to_owned())),
        None if who.user().starts_with(OWN_PREFIX) => {
            return Err(MappingRefusal::OwnUser(who.user().to_owned()));
        }
        None => who.user().to_owned(),
    };
    let mut groups: Vec<String> = who
        .groups()
        .iter()
        .filter(|group| !reserved(group) && !group.starts_with(OWN_PREFIX))
        .cloned()
        .collect();
    groups.extend(roles.iter().map(|&role| role_group(role).to_owned()));
    // UID and extras stay behind: they describe the parent's users, nodes and pods.
    Ok(Identity::new(user, None, groups, std::collections::BTreeMap::new())?)
}

/// The identity that somebody has in a child by one role alone: under their own name, or under that of a tool's
/// service, and in no group but the role's.
///
/// # Errors
/// As [`to_child`].
pub fn in_role(
    who: &Identity,
    role: Role,
    service: Option<&str>,
    map_service_accounts: bool,
) -> Result<Identity, MappingRefusal> {
    let own = to_child(who, &[], map_service_accounts)?;
    let user = service.map_or_else(|| own.user().to_owned(), |name| format!("{SERVICE_PREFIX}{name}"));
    let groups = vec![role_group(role).to_owned()];
    Ok(Identity::new(user, None, groups, std::collections::BTreeMap::new())?)
}

/// The agent's own check of what the hub sent: no reserved user, no reserved group, no group of ours but
/// the three roles, no uid and no extra.
///
/// # Errors
/// Anything that [`to_child`] would never have produced.
pub fn refuse_in_child(who: &Identity) -> Result<(), MappingRefusal> {
    if reserved(who.user()) {
        return Err(MappingRefusal::ReservedUser(who.user().to_owned()));
    }
    let given = [SERVICE_ACCOUNT_PREFIX, SERVICE_PREFIX].iter().any(|prefix| who.user().starts_with(prefix));
    if who.user().starts_with(OWN_PREFIX) && !given {
        return Err(MappingRefusal::OwnUser(who.user().to_owned()));
    }
    if who.uid().is_some() {
        return Err(MappingRefusal::LeftBehind("a uid"));
    }
    if !who.extra().is_empty() {
        return Err(MappingRefusal::LeftBehind("an extra field"));
    }
    let ours = |group: &str| Role::ALL.iter().any(|&role| role_group(role) == group);
    match who.groups().iter().find(|group| reserved(group) || (group.starts_with(OWN_PREFIX) && !ours(group)))
    {
        Some(group) => Err(MappingRefusal::ReservedGroup(group.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_users_and_groups_stay_as_they_are() {
        let alice =
            Identity::of("alice", &["dev", "system:authenticated", "kubeadm:cluster-admins"]).unwrap();
        let child = to_child(&alice, &[], false).unwrap();
        assert_eq!((child.user(), child.groups()), ("alice", &["dev".to_owned()][..]));
    }

    #[test]
    fn roles_become_groups_and_cannot_be_brought_along() {
        let alice = Identity::of("alice", &["clusternet:admin", "system:masters"]).unwrap();
        assert_eq!(to_child(&alice, &[], false).unwrap().groups().len(), 0);
        assert_eq!(to_child(&alice, &[Role::View], false).unwrap().groups(), ["clusternet:view"]);
    }

    #[test]
    fn internal_users_are_refused_at_both_ends() {
        for user in [
            "system:admin",
            "system:anonymous",
            "system:node:n1",
            "system:kube-controller-manager",
            "system:serviceaccount:kube-system:x",
            "System:Masters",
            "kubeadm:x",
            "clusternet:admin",
        ] {
            let who = Identity::of(user, &[]).unwrap();
            assert!(to_child(&who, &[], false).is_err(), "{user}");
            assert!(refuse_in_child(&who).is_err(), "{user}");
        }
    }

    #[test]
    fn a_service_account_enters_by_policy_only_and_under_a_plain_name() {
        let account = Identity::of("system:serviceaccount:ci:deployer", &["system:serviceaccounts"]).unwrap();
        assert!(to_child(&account, &[], false).is_err());
        let child = to_child(&account, &[], true).unwrap();
        assert_eq!(child.user(), "clusternet:serviceaccount:ci:deployer");
        assert!(child.groups().is_empty());
        assert!(refuse_in_child(&child).is_ok());
    }

    #[test]
    fn the_agent_refuses_groups_that_no_honest_hub_sends() {
        for group in [
            "system:masters",
            "system:nodes",
            "system:authenticated",
            "kubeadm:cluster-admins",
            "clusternet:root",
        ] {
            assert!(refuse_in_child(&Identity::of("alice", &["dev", group]).unwrap()).is_err(), "{group}");
        }
    }

    #[test]
    fn a_uid_or_an_extra_field_stays_behind_at_both_ends() {
        let extra = std::collections::BTreeMap::from([("scopes".to_owned(), vec!["all".to_owned()])]);
        for (uid, extra) in [(Some("7".to_owned()), Default::default()), (None, extra)] {
            let who = Identity::new("alice".to_owned(), uid, vec![], extra).unwrap();
            assert!(matches!(refuse_in_child(&who), Err(MappingRefusal::LeftBehind(_))));
            assert!(refuse_in_child(&to_child(&who, &[], false).unwrap()).is_ok());
        }
    }

    proptest! {
        #[test]
        fn whatever_the_hub_maps_the_agent_admits(
            user in "\\PC{1,30}",
            groups in proptest::collection::vec("(system:|kubeadm:|clusternet:)?\\PC{0,12}", 0..6),
            services in any::<bool>(),
        ) {
            if let Ok(who) = Identity::new(user, None, groups, std::collections::BTreeMap::new())
                && let Ok(child) = to_child(&who, &Role::ALL, services)
            {
                prop_assert!(refuse_in_child(&child).is_ok());
            }
        }
    }
}
