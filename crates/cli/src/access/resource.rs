//! A resource as people write it (`pods/exec`, `deployments.apps`), and the path below which a cluster serves it, found
//! by discovery.

use std::time::Duration;

use kube::Client;
use serde_json::Value;

use crate::ask::{Answer, get};
use crate::failure::{Exit, Failure};

/// Where a resource without a group is looked for, after the core group.
const USUAL_GROUPS: [&str; 7] = [
    "apps",
    "batch",
    "networking.k8s.io",
    "rbac.authorization.k8s.io",
    "policy",
    "autoscaling",
    "storage.k8s.io",
];

/// `RESOURCE[.GROUP][/SUBRESOURCE]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) resource: String,
    pub(crate) group: Option<String>,
    pub(crate) subresource: String,
}

impl Wanted {
    /// Parses it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (resource, subresource) = text.split_once('/').unwrap_or((text, ""));
        let (resource, group) = match resource.split_once('.') {
            Some((resource, group)) => (resource, Some(group.to_owned())),
            None => (resource, None),
        };
        let plain =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
        let whole = [resource, subresource, group.as_deref().unwrap_or_default()];
        if resource.is_empty() || !whole.iter().all(|part| plain(part)) {
            return Err(
                "has to be RESOURCE, RESOURCE.GROUP or RESOURCE/SUBRESOURCE, such as pods/exec".to_owned()
            );
        }
        Ok(Self { resource: resource.to_owned(), group, subresource: subresource.to_owned() })
    }
}

/// Where it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) group: String,
    /// `/api/v1` or `/apis/GROUP/VERSION`.
    pub(crate) prefix: String,
    pub(crate) namespaced: bool,
}

/// Asks the cluster's discovery below `root`. The answer that stood in the way is given back if there is one.
pub(crate) async fn find(
    client: &Client,
    root: &str,
    wanted: &Wanted,
    limit: Duration,
) -> Result<Result<Place, Answer>, Failure> {
    let unreachable = |error: crate::ask::NoAnswer| {
        Failure::new(Exit::Unreachable, format!("could not ask the cluster what it serves: {error}"))
    };
    let groups: Vec<&str> = match &wanted.group {
        Some(group) => vec![group],
        None => std::iter::once("").chain(USUAL_GROUPS).collect(),
    };
    for group in groups {
        let prefix = if group.is_empty() {
            "/api/v1".to_owned()
        } else {
            let answer = get(client, &format!("{root}/apis/{group}"), limit).await.map_err(unreachable)?;
            let version = answer.body["preferredVersion"]["groupVersion"].as_str().map(str::to_owned);
            let Some(version) = version else { continue };
            format!("/apis/{version}")
        };
        let answer = get(client, &format!("{root}{prefix}"), limit).await.map_err(unreachable)?;
        if !answer.is_ok() {
            return Ok(Err(answer));
        }
        if let Some(namespaced) = namespaced(&answer.body, &wanted.resource) {
            return Ok(Ok(Place { group: group.to_owned(), prefix, namespaced }));
        }
    }
    Err(Failure::new(Exit::NotFound, format!("the cluster serves no resource {:?}", wanted.resource))
        .next("name its group too: RESOURCE.GROUP, as kubectl api-resources shows it"))
}

/// Whether a discovery document has the resource, and whether that is namespaced.
fn namespaced(document: &Value, resource: &str) -> Option<bool> {
    let mut all = document["resources"].as_array()?.iter();
    all.find(|one| one["name"] == resource).map(|one| one["namespaced"] == true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn resources_are_written_as_for_kubectl() {
        let parsed = |text: &str| {
            Wanted::parse(text)
                .map(|wanted| (wanted.resource, wanted.group.unwrap_or_default(), wanted.subresource))
        };
        let of = |a: &str, b: &str, c: &str| Ok((a.to_owned(), b.to_owned(), c.to_owned()));
        assert_eq!(parsed("pods"), of("pods", "", ""));
        assert_eq!(parsed("pods/exec"), of("pods", "", "exec"));
        assert_eq!(parsed("deployments.apps/scale"), of("deployments", "apps", "scale"));
        for wrong in ["", "/exec", "pods/../x", "a b", "pods?x", ".apps"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn discovery_says_whether_it_is_namespaced() {
        let document = json!({ "resources": [{ "name": "pods", "namespaced": true }, { "name": "nodes", "namespaced": false }] });
        assert_eq!(namespaced(&document, "pods"), Some(true));
        assert_eq!(namespaced(&document, "nodes"), Some(false));
        assert_eq!(namespaced(&document, "widgets"), None);
    }
}
