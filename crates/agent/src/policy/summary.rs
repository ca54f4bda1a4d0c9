//! A policy in plain words, for the owner's terminal, the agent's log and the status of the cluster in the parent.

use std::fmt::Display;

use super::{Lists, Policy, Preset};

/// Entries of a list that are written out.
const SHOWN: usize = 8;

impl Policy {
    /// What holds, one sentence a line, the widest first.
    pub fn sentences(&self) -> Vec<String> {
        if self.closed {
            return vec!["closed: nobody is admitted".to_owned()];
        }
        let mut all = vec![format!("preset {}: {}", self.preset, meaning(self.preset))];
        match (&self.users, &self.groups) {
            (None, None) => {}
            (Some(users), None) => all.push(format!("only users {}", list(users))),
            (None, Some(groups)) => {
                all.push(format!("only members of groups {}; other groups are left out", list(groups)));
            }
            (Some(users), Some(groups)) => all.push(format!(
                "only users {} and members of groups {}; other groups are left out",
                list(users),
                list(groups)
            )),
        }
        if let Some(roles) = &self.roles {
            let names: Vec<&str> = roles.iter().map(|role| role.subresource()).collect();
            all.push(format!("of the hub's roles only {} are believed", list(&names)));
        }
        if let Some(namespaces) = &self.namespaces {
            lists(&mut all, "namespaces", &namespaces.names);
            all.push(format!("without a namespace only {}", list(&namespaces.cluster_scoped)));
        }
        lists(&mut all, "verbs", &self.verbs);
        lists(&mut all, "resources", &self.resources);
        if !self.non_resource_urls.is_empty() {
            all.push(format!("also the paths {}", list(&self.non_resource_urls)));
        }
        if let Some(hours) = &self.hours {
            all.push(format!("open {hours}"));
        }
        all
    }
}

fn meaning(preset: Preset) -> &'static str {
    match preset {
        Preset::Admin => "everything but the agent's own namespace",
        Preset::Edit => "everything but RBAC, webhooks, APIServices, tokens, certificates and proxying",
        Preset::NoExec => "as edit, without exec, attach, port-forward and ephemeral containers",
        Preset::View => "reading alone, without Secrets",
    }
}

fn lists<T: Display>(all: &mut Vec<String>, what: &str, lists: &Lists<T>) {
    if let Some(allow) = &lists.allow {
        all.push(format!("only {what} {}", list(allow)));
    }
    if !lists.deny.is_empty() {
        all.push(format!("no {what} {}", list(&lists.deny)));
    }
}

fn list<T: Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "(none)".to_owned();
    }
    let shown: Vec<String> = items.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = items.len().saturating_sub(SHOWN);
    let end = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{end}", shown.join(", "))
}
