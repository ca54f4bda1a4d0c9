//! `kubectl --as` at the gateway: whoever may impersonate in the parent may do so here, and the identity that
//! comes of it goes the way of any other. The parent is asked what its own filter would ask (apiserver
//! `pkg/endpoints/filters/impersonation`).

use std::collections::BTreeMap;
use std::sync::Arc;

use api::identity::Identity;
use http::HeaderMap;

use crate::authz::Action;
use crate::handle::Hub;
use crate::refusal::Refusal;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
/// Most groups that can be asked for at once; each is a question to the parent.
const MAX_GROUPS: usize = 64;

/// As whom somebody asks, and what they need for it.
#[derive(Debug)]
pub struct Impersonation {
    /// As whom.
    pub whom: Arc<Identity>,
    needs: Vec<Action>,
}

impl Impersonation {
    /// Reads the headers; `None` when there are none.
    ///
    /// # Errors
    /// 400 when they do not make an identity.
    pub fn read(headers: &HeaderMap) -> Result<Option<Self>, Refusal> {
        let bad = |message: &str| Refusal::BadRequest(message.to_owned());
        let mut any = headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).peekable();
        if any.peek().is_none() {
            return Ok(None);
        }
        if let Some(name) = any.find(|name| ![USER, GROUP].contains(&name.as_str())) {
            return Err(bad(&format!(
                "header {name} is not accepted here: users and groups alone can be impersonated"
            )));
        }
        let text = |value: &http::HeaderValue| value.to_str().map(str::to_owned).ok();
        let users: Vec<_> = headers.get_all(USER).iter().map(text).collect();
        let [Some(user)] = &users[..] else {
            return Err(bad("Impersonate-User has to be there once when anything is impersonated"));
        };
        let groups: Option<Vec<String>> = headers.get_all(GROUP).iter().map(text).collect();
        let groups = groups
            .filter(|groups| groups.len() <= MAX_GROUPS && groups.iter().all(|group| !group.is_empty()));
        let groups =
            groups.ok_or_else(|| bad("Impersonate-Group has to be printable, and at most 64 times"))?;

        let mut needs: Vec<_> = groups.iter().map(|group| impersonate("groups", None, group)).collect();
        let mut whole = groups;
        match user.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':')) {
            Some((namespace, name)) => {
                needs.push(impersonate("serviceaccounts", Some(namespace), name));
                if whole.is_empty() {
                    whole = vec![
                        "system:serviceaccounts".to_owned(),
                        format!("system:serviceaccounts:{namespace}"),
                    ];
                }
            }
            None => needs.push(impersonate("users", None, user)),
        }
        // As the parent adds it (`impersonation.go`), for what is bound to it.
        if !whole.iter().any(|group| group == "system:authenticated") {
            whole.push("system:authenticated".to_owned());
        }
        let whom = Identity::new(user.clone(), None, whole, BTreeMap::new())
            .map_err(|error| bad(&format!("nobody can be impersonated so: {error}")))?;
        Ok(Some(Self { whom: Arc::new(whom), needs }))
    }

    /// What the parent does not allow `owner` of it; `None` when it allows all.
    ///
    /// # Errors
    /// The parent did not say.
    pub async fn refused(&self, hub: &Hub, owner: &Arc<Identity>) -> Result<Option<String>, Refusal> {
        for need in &self.needs {
            if !hub.authz.allowed(owner, need.clone()).await? {
                let Action::Impersonate { resource, name, .. } = need else { continue };
                return Ok(Some(format!(
                    "user {:?} may not impersonate {resource} {name:?} in the parent",
                    owner.user()
                )));
            }
        }
        Ok(None)
    }
}

fn impersonate(resource: &'static str, namespace: Option<&str>, name: &str) -> Action {
    Action::Impersonate { resource, namespace: namespace.map(str::to_owned), name: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[(&'static str, &'static str)]) -> Result<Option<Impersonation>, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, http::HeaderValue::from_static(value));
        }
        Impersonation::read(&headers)
    }

    #[test]
    fn each_name_is_a_question() {
        let bob = read(&[(USER, "bob"), (GROUP, "dev"), (GROUP, "ops")]).unwrap().unwrap();
        assert_eq!(bob.whom.groups(), ["dev", "ops", "system:authenticated"]);
        let needs = [
            impersonate("groups", None, "dev"),
            impersonate("groups", None, "ops"),
            impersonate("users", None, "bob"),
        ];
        assert_eq!(bob.needs, needs);
        let account = read(&[(USER, "system:serviceaccount:ci:deployer")]).unwrap().unwrap();
        assert_eq!(account.needs, [impersonate("serviceaccounts", Some("ci"), "deployer")]);
        assert_eq!(
            account.whom.groups(),
            ["system:serviceaccounts", "system:serviceaccounts:ci", "system:authenticated"]
        );
        assert!(read(&[("accept", "a")]).unwrap().is_none());
    }

    #[test]
    fn half_an_impersonation_is_refused() {
        for lines in [
            &[(GROUP, "dev")][..],
            &[(USER, "")],
            &[(USER, " ")],
            &[(USER, "a"), (USER, "b")],
            &[(USER, "a"), (GROUP, "")],
            &[(USER, "a"), ("impersonate-uid", "1")],
            &[(USER, "a"), ("impersonate-extra-x", "1")],
            &[("impersonate-zzz", "1")],
        ] {
            assert!(read(lines).is_err(), "{lines:?}");
        }
    }
}
