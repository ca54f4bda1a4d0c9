//! From what a person typed (a name or an id) to one cluster or one registration request, or a sentence that
//! says why not.

use api::cluster::ManagedCluster;
use api::names::{ClusterId, LABEL_CLUSTER_ID};
use api::registration::{ClusterRegistrationRequest, RegistrationResult};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};

use crate::failure::{Exit, Failure};
use crate::output::shown;
use crate::session::Session;

/// The registered cluster of that name or id, if there is one.
pub(crate) async fn cluster(
    session: &Session,
    wanted: &ClusterId,
) -> Result<Option<ManagedCluster>, Failure> {
    let api: Api<ManagedCluster> = Api::all(session.client.clone());
    let doing = format!("look up cluster {wanted}");
    let named = ListParams::default().fields(&format!("metadata.name={wanted}"));
    let with_id = ListParams::default().labels(&format!("{LABEL_CLUSTER_ID}={wanted}"));
    for params in [&named, &with_id] {
        let found = session.list_cached(&doing, &api, params.clone()).await?;
        if !found.is_empty() {
            return one_cluster(wanted, found);
        }
    }
    // It may be there since a moment ago.
    for params in [named, with_id] {
        let found = session.list(&doing, &api, params).await?;
        if !found.is_empty() {
            return one_cluster(wanted, found);
        }
    }
    Ok(None)
}

/// The same, where its absence is an error.
pub(crate) async fn registered(session: &Session, wanted: &ClusterId) -> Result<ManagedCluster, Failure> {
    match cluster(session, wanted).await? {
        Some(cluster) => Ok(cluster),
        None => Err(unknown(session, wanted).await),
    }
}

/// The id of a cluster. Whoever may use a cluster need not be able to look it up; then what was typed is taken for it.
pub(crate) async fn id(session: &Session, wanted: &ClusterId) -> Result<ClusterId, Failure> {
    match registered(session, wanted).await {
        Ok(cluster) => {
            cluster.spec.cluster_id.parse().map_err(|error| {
                Failure::new(Exit::Error, format!("cluster {wanted} has a broken id: {error}"))
            })
        }
        Err(failure) if failure.exit() == Exit::Denied => Ok(wanted.clone()),
        Err(failure) => Err(failure),
    }
}

/// The sentence for a name that no registered cluster has: unknown, or waiting for approval.
async fn unknown(session: &Session, wanted: &ClusterId) -> Failure {
    let command = session.command();
    // Whoever may not see requests gets the plain answer.
    let waiting = request(session, wanted).await.ok().flatten().filter(is_open);
    if waiting.is_some() {
        return Failure::new(
            Exit::NotFound,
            format!("cluster {wanted} has asked to join but is not approved"),
        )
        .next(format!("{command} approve {wanted}"));
    }
    Failure::new(Exit::NotFound, format!("there is no cluster {wanted}")).next(format!("{command} clusters"))
}

/// The registration request of that cluster name or id, if there is one.
pub(crate) async fn request(
    session: &Session,
    wanted: &ClusterId,
) -> Result<Option<ClusterRegistrationRequest>, Failure> {
    one_request(wanted, requests(session).await?)
}

/// All registration requests, as of moments ago.
pub(crate) async fn requests_lately(session: &Session) -> Result<Vec<ClusterRegistrationRequest>, Failure> {
    let api: Api<ClusterRegistrationRequest> = Api::all(session.client.clone());
    session.list_cached("list registration requests", &api, ListParams::default()).await
}

/// All registration requests, as they are now.
pub(crate) async fn requests(session: &Session) -> Result<Vec<ClusterRegistrationRequest>, Failure> {
    let api: Api<ClusterRegistrationRequest> = Api::all(session.client.clone());
    session.list("list registration requests", &api, ListParams::default()).await
}

/// Is the request still without a decision?
pub(crate) fn is_open(request: &ClusterRegistrationRequest) -> bool {
    matches!(decision(request), None | Some(RegistrationResult::Pending))
}

/// What has been decided so far.
pub(crate) fn decision(request: &ClusterRegistrationRequest) -> Option<RegistrationResult> {
    request.status.as_ref().and_then(|status| status.result)
}

fn one_cluster(
    wanted: &ClusterId,
    mut found: Vec<ManagedCluster>,
) -> Result<Option<ManagedCluster>, Failure> {
    if found.len() < 2 {
        return Ok(found.pop());
    }
    let ids: Vec<String> = found.iter().map(|cluster| shown(&cluster.spec.cluster_id)).collect();
    Err(ambiguous(&format!("{} clusters are called {wanted}", found.len()), &ids))
}

fn one_request(
    wanted: &ClusterId,
    all: Vec<ClusterRegistrationRequest>,
) -> Result<Option<ClusterRegistrationRequest>, Failure> {
    let matches = |request: &ClusterRegistrationRequest| {
        let wanted = wanted.as_str();
        request.spec.cluster_id == wanted
            || request.spec.cluster_name == wanted
            || request.name_any() == wanted
    };
    let mut found: Vec<ClusterRegistrationRequest> = all.into_iter().filter(matches).collect();
    if found.len() > 1 {
        // A name may have been tried before; what nobody has decided on is what is meant.
        let open: Vec<ClusterRegistrationRequest> =
            found.iter().filter(|request| is_open(request)).cloned().collect();
        if !open.is_empty() {
            found = open;
        }
    }
    if found.len() < 2 {
        return Ok(found.pop());
    }
    let lines: Vec<String> = found
        .iter()
        .map(|request| {
            format!("{} ({})", shown(&request.spec.cluster_id), shown(&request.spec.key_fingerprint))
        })
        .collect();
    Err(ambiguous(&format!("{} clusters ask to be called {wanted}", found.len()), &lines))
}

fn ambiguous(what: &str, choices: &[String]) -> Failure {
    Failure::new(Exit::Error, format!("{what}: {}", choices.join(", "))).next("name one of them by its id")
}

#[cfg(test)]
pub(crate) mod tests {
    use api::registration::{ClusterRegistrationRequestSpec, ClusterRegistrationRequestStatus};

    use super::*;

    pub(crate) fn asking(
        id: &str,
        name: &str,
        result: Option<RegistrationResult>,
    ) -> ClusterRegistrationRequest {
        let spec = ClusterRegistrationRequestSpec {
            cluster_id: id.to_owned(),
            cluster_name: name.to_owned(),
            key_fingerprint: format!("SHA256:{id}"),
            ..Default::default()
        };
        let mut request = ClusterRegistrationRequest::new(&format!("clusternet-{id}"), spec);
        request.status = Some(ClusterRegistrationRequestStatus { result, ..Default::default() });
        request
    }

    fn id(text: &str) -> ClusterId {
        text.parse().unwrap()
    }

    fn find(wanted: &str, all: &[ClusterRegistrationRequest]) -> Result<Option<String>, Failure> {
        one_request(&id(wanted), all.to_vec()).map(|found| found.map(|request| request.spec.cluster_id))
    }

    #[test]
    fn a_request_is_found_by_name_id_or_object_name() {
        let all = [asking("id-1", "edge-1", None), asking("id-2", "edge-2", None)];
        for wanted in ["edge-2", "id-2", "clusternet-id-2"] {
            assert_eq!(find(wanted, &all).unwrap().as_deref(), Some("id-2"), "{wanted}");
        }
        assert_eq!(find("edge-3", &all).unwrap(), None);
    }

    #[test]
    fn two_children_that_ask_for_one_name_are_told_apart_by_a_person() {
        let all = [asking("id-1", "edge", None), asking("id-2", "edge", Some(RegistrationResult::Pending))];
        let failure = find("edge", &all).unwrap_err();
        assert_eq!(failure.exit(), Exit::Error);
        assert!(
            failure.to_string().contains("SHA256:id-1") && failure.to_string().contains("id-2"),
            "{failure}"
        );
    }

    #[test]
    fn the_open_request_is_meant_when_older_ones_are_decided() {
        let all = [asking("id-1", "edge", Some(RegistrationResult::Denied)), asking("id-2", "edge", None)];
        assert_eq!(find("edge", &all).unwrap().as_deref(), Some("id-2"));
    }
}
