//! The word of the child's owner: what this cluster admits out of a tunnel, whatever the hub says.
//! Pure but for [`in_force`]; who asks, what for and when are arguments.
//!
//! A [`Policy`] is read from the ConfigMap `clusternet-agent-policy`, which nothing that comes out of a tunnel can
//! write ([`floor`]). It takes away from what RBAC would grant and never adds to it: all of its restrictions have to
//! admit a request, and RBAC decides afterwards. What has no clear reading is refused ([`request_info`]).
//! [`in_force`] reads it, and keeps the one that holds now.

pub mod check;
mod decision;
mod document;
mod floor;
pub mod hours;
pub mod in_force;
mod lint;
pub mod names;
mod preset;
pub mod request_info;
mod schema;
mod summary;

use api::identity::Identity;
pub use api::names::POLICY_CONFIGMAP;
use api::names::{Role, role_group};
use jiff::Timestamp;

pub use self::decision::{Refused, Rule};
pub use self::preset::Preset;
pub use self::schema::{Checked, Mistakes};

use self::hours::Hours;
use self::names::{Kind, Pattern, UrlPattern};
use self::request_info::{RequestInfo, Target, Verb};

/// Largest text of a policy. A ConfigMap holds 1 MiB at most; it is read every few seconds, and walked for each
/// request, list by list.
pub const MAX_POLICY: usize = 256 * 1024;
/// Most entries of one list: each request is compared with all of them, at about 10 ns each.
pub const MAX_ENTRIES: usize = 1000;
/// The key in the ConfigMap [`POLICY_CONFIGMAP`], in the agent's own namespace.
pub const POLICY_KEY: &str = "policy.yaml";

/// What the owner admits. Everything in it is valid; each part has to admit a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub(super) preset: Preset,
    pub(super) closed: bool,
    /// `None` with `groups` is `None`: anybody.
    pub(super) users: Option<Vec<Pattern>>,
    pub(super) groups: Option<Vec<Pattern>>,
    /// `None`: all.
    pub(super) roles: Option<Vec<Role>>,
    pub(super) namespaces: Option<Namespaces>,
    pub(super) verbs: Lists<Verb>,
    pub(super) resources: Lists<Kind>,
    pub(super) non_resource_urls: Vec<UrlPattern>,
    pub(super) hours: Option<Hours>,
}

/// What is allowed, `None` being everything, and what is denied of that.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lists<T> {
    pub(super) allow: Option<Vec<T>>,
    pub(super) deny: Vec<T>,
}

/// Where.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Namespaces {
    pub(super) names: Lists<Pattern>,
    /// What is admitted without a namespace: cluster-scoped kinds, and lists over all namespaces.
    pub(super) cluster_scoped: Vec<Kind>,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Self { allow: None, deny: Vec::new() }
    }
}

impl Policy {
    /// What holds where the owner has written nothing.
    pub const DEFAULT: Self = Self::of(Preset::Edit);

    /// A preset and nothing else.
    pub const fn of(preset: Preset) -> Self {
        Self {
            preset,
            closed: false,
            users: None,
            groups: None,
            roles: None,
            namespaces: None,
            verbs: Lists { allow: None, deny: Vec::new() },
            resources: Lists { allow: None, deny: Vec::new() },
            non_resource_urls: Vec::new(),
            hours: None,
        }
    }

    /// Reads the text of a policy, strictly.
    ///
    /// # Errors
    /// All mistakes that there are, with their lines.
    pub fn read(text: &str) -> Result<Checked, Mistakes> {
        schema::read(text)
    }

    /// Its preset.
    pub fn preset(&self) -> Preset {
        self.preset
    }

    /// The kill switch.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the clock lets anybody in.
    pub fn is_open_at(&self, now: Timestamp) -> bool {
        self.hours.as_ref().is_none_or(|hours| hours.open_at(now))
    }

    /// Whether this person may ask this now.
    ///
    /// # Errors
    /// The first rule that refuses it.
    pub fn admit(&self, who: &Identity, asked: &RequestInfo, now: Timestamp) -> Result<(), Refused> {
        if self.closed {
            return Err(Refused::new(
                Rule::Closed,
                "the owner has closed the cluster to the hub",
                "set closed: false",
            ));
        }
        self.admit_person(who)?;
        if let Some(hours) = &self.hours
            && !hours.open_at(now)
        {
            return Err(Refused::new(Rule::Hours, format!("it is open {hours}"), "widen hours"));
        }
        floor::admit(asked)?;
        // Without these no client gets as far as to ask for anything.
        if preset::is_basic(asked) {
            return Ok(());
        }
        preset::admit(self.preset, asked, &self.non_resource_urls)?;
        self.admit_verb(asked.verb)?;
        match &asked.target {
            Target::NonResource(_) => Ok(()),
            Target::Resource(_) => self.admit_resource(asked),
        }
    }

    /// The person with those groups only in which the owner believes. Groups only ever add rights in RBAC.
    ///
    /// # Errors
    /// Never for an identity that was one before; the type of [`Identity::with_groups`].
    pub fn believed(&self, who: Identity) -> Result<Identity, api::identity::InvalidIdentity> {
        if self.groups.is_none() && self.roles.is_none() {
            return Ok(who);
        }
        let groups = who.groups().iter().filter(|group| self.believes(group)).cloned().collect();
        who.with_groups(groups)
    }

    fn believes(&self, group: &str) -> bool {
        match role_of(group) {
            Some(role) => self.roles.as_ref().is_none_or(|roles| roles.contains(&role)),
            None => self.groups.as_ref().is_none_or(|groups| matches_any(groups, group)),
        }
    }

    fn admit_person(&self, who: &Identity) -> Result<(), Refused> {
        if self.users.is_none() && self.groups.is_none() {
            return Ok(());
        }
        let by_name = self.users.as_ref().is_some_and(|users| matches_any(users, who.user()));
        let by_group = self.groups.as_ref().is_some_and(|groups| {
            who.groups().iter().any(|group| role_of(group).is_none() && matches_any(groups, group))
        });
        if by_name || by_group {
            return Ok(());
        }
        Err(Refused::new(
            Rule::Users,
            format!("user {:?} is neither among users nor in one of groups", who.user()),
            format!("add {:?} to users, or one of the user's groups to groups", who.user()),
        ))
    }

    fn admit_verb(&self, verb: Verb) -> Result<(), Refused> {
        if self.verbs.deny.contains(&verb) {
            return Err(Refused::new(
                Rule::Verbs,
                format!("verbs.deny has {verb}"),
                format!("remove {verb} from verbs.deny"),
            ));
        }
        match &self.verbs.allow {
            Some(allowed) if !allowed.contains(&verb) => Err(Refused::new(
                Rule::Verbs,
                format!("verbs.allow does not have {verb}"),
                format!("add {verb} to verbs.allow"),
            )),
            _ => Ok(()),
        }
    }

    fn admit_resource(&self, asked: &RequestInfo) -> Result<(), Refused> {
        let Target::Resource(resource) = &asked.target else { return Ok(()) };
        if let Some(namespaces) = &self.namespaces {
            namespaces.admit(resource)?;
        }
        if let Some(denied) = self.resources.deny.iter().find(|kind| kind.denies(resource)) {
            return Err(Refused::new(
                Rule::Resources,
                format!("resources.deny has {denied}"),
                format!("remove {denied} from resources.deny"),
            ));
        }
        match &self.resources.allow {
            Some(allowed) if !allowed.iter().any(|kind| kind.allows(resource)) => Err(Refused::new(
                Rule::Resources,
                format!("resources.allow does not have {resource}"),
                format!("add {resource} to resources.allow"),
            )),
            _ => Ok(()),
        }
    }
}

impl Namespaces {
    fn admit(&self, resource: &request_info::Resource) -> Result<(), Refused> {
        let refused = |why: String, remedy: String| Err(Refused::new(Rule::Namespaces, why, remedy));
        let namespace = resource.namespace.as_str();
        if namespace.is_empty() {
            if self.cluster_scoped.iter().any(|kind| kind.allows(resource)) {
                return Ok(());
            }
            return refused(
                format!(
                    "the request names no namespace, and namespaces.clusterScoped does not have {resource}"
                ),
                format!(
                    "ask in one namespace (kubectl -n), or its owner adds {resource} to namespaces.clusterScoped"
                ),
            );
        }
        if let Some(denied) = self.names.deny.iter().find(|pattern| pattern.matches(namespace)) {
            return refused(
                format!("namespaces.deny has {denied}"),
                format!("remove {denied} from namespaces.deny"),
            );
        }
        match &self.names.allow {
            Some(allowed) if !matches_any(allowed, namespace) => refused(
                format!("namespaces.allow does not have {namespace:?}"),
                format!("add {namespace} to namespaces.allow"),
            ),
            _ => Ok(()),
        }
    }
}

fn matches_any(patterns: &[Pattern], name: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

fn role_of(group: &str) -> Option<Role> {
    Role::ALL.into_iter().find(|&role| role_group(role) == group)
}

#[cfg(test)]
mod tests;
