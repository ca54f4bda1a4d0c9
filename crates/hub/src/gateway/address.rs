//! Which cluster a request at the gateway is for, by host or by path. Pure.
//!
//! A tool is lenient with slashes where it joins a server's address with a path of its own (pykube-ng doubles
//! one, kr8s ends `/version/` in one), so between the cluster and its path any number of them is one. Nothing
//! else is collapsed or decoded, and nothing is ever redirected: a redirect would take the caller's token along.

use std::borrow::Cow;

use api::names::{ClusterId, ClusterName};
use api::registration::CONNECT_PATH;
use api::secret::Secret;
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri, Version, header};

use crate::join::one_time;
use crate::refusal::Refusal;

/// Below it, each cluster by its name.
pub const PATH: &str = "/k8s/clusters/";

/// How a request spells its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// By host; what is asked there.
    Host(ClusterName, PathAndQuery),
    /// By path; the same.
    Path(ClusterName, PathAndQuery),
    /// An agent opens the tunnel of this one.
    Connect(ClusterId),
    /// The manifest of an invitation; what stands for it in the path is secret.
    Manifest(Secret),
    /// It names none.
    Bare,
}

/// Reads host and path. `domain` is that of [`crate::config::Settings::gateway_domain`].
///
/// # Errors
/// 400 for an address that can be read in two ways, 404 for a host or path below which no cluster can be.
pub fn read(
    uri: &Uri,
    headers: &HeaderMap,
    version: Version,
    domain: Option<&str>,
) -> Result<Address, Refusal> {
    let host = host(uri, headers, version)?;
    if let Some(name) = domain.and_then(|domain| below(&host, domain)) {
        let target = target(uri.path(), uri.query())?;
        return Ok(Address::Host(name.parse().map_err(|_| no_cluster(name))?, target));
    }
    if let Some(id) = uri.path().strip_prefix(CONNECT_PATH) {
        return Ok(Address::Connect(id.parse().map_err(|_| no_cluster(id))?));
    }
    if let Some(token) = uri.path().strip_prefix(one_time::PATH) {
        return Ok(Address::Manifest(Secret::from(token.to_owned())));
    }
    let Some(rest) = uri.path().strip_prefix(PATH) else { return Ok(Address::Bare) };
    let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let name = name.parse().map_err(|_| no_cluster(name))?;
    Ok(Address::Path(name, target(rest, uri.query())?))
}

/// Whether a path is the hub's own where no host names a cluster.
pub(super) fn is_hubs(path: &str) -> bool {
    [PATH, CONNECT_PATH, one_time::PATH].iter().any(|own| path.starts_with(own))
}

fn no_cluster(name: &str) -> Refusal {
    Refusal::NotFound(format!("{:?} is no name of a cluster", api::status::printable(name, 63)))
}

/// The host that is asked for, lower-case, without port.
fn host(uri: &Uri, headers: &HeaderMap, version: Version) -> Result<String, Refusal> {
    let authority = match uri.authority() {
        Some(authority) if version == Version::HTTP_2 => authority.as_str(),
        _ => headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    };
    let authority: http::uri::Authority =
        authority.parse().map_err(|_| Refusal::BadRequest("the request names no host".to_owned()))?;
    if authority.as_str().contains('@') {
        return Err(Refusal::BadRequest("the host contains a user".to_owned()));
    }
    Ok(authority.host().trim_end_matches('.').to_ascii_lowercase())
}

/// What stands before `.domain`.
fn below<'a>(host: &'a str, domain: &str) -> Option<&'a str> {
    host.strip_suffix(domain)?.strip_suffix('.')
}

/// Path and query of a request that names no cluster, for the child that its token names.
///
/// # Errors
/// The path or query is malformed.
pub fn whole(uri: &Uri) -> Result<PathAndQuery, Refusal> {
    target(uri.path(), uri.query())
}

/// Path and query for the child, with one slash at the beginning.
fn target(path: &str, query: Option<&str>) -> Result<PathAndQuery, Refusal> {
    let path = path.trim_start_matches('/');
    let target: Cow<'_, str> = match query {
        Some(query) => format!("/{path}?{query}").into(),
        None => format!("/{path}").into(),
    };
    target.parse().map_err(|_| Refusal::BadRequest("the path or query is malformed".to_owned()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read_at(host: &str, path: &str) -> Result<Address, u16> {
        let (uri, headers) = request(host, path);
        read(&uri, &headers, Version::HTTP_11, Some("k8s.example.com"))
            .map_err(|refusal| refusal.to_status().code.as_u16())
    }

    fn request(host: &str, path: &str) -> (Uri, HeaderMap) {
        let host = (header::HOST, HeaderValue::from_str(host).unwrap());
        (path.parse().unwrap(), [host].into_iter().collect())
    }

    fn by_path(name: &str, target: &str) -> Address {
        Address::Path(name.parse().unwrap(), target.parse().unwrap())
    }

    fn by_host(name: &str, target: &str) -> Address {
        Address::Host(name.parse().unwrap(), target.parse().unwrap())
    }

    #[test]
    fn a_cluster_is_spelt_by_host_or_by_path_with_any_slashes_between() {
        let hub = "hub.example.com:8443";
        for (host, path, expected) in [
            (hub, "/k8s/clusters/edge-1", Ok(by_path("edge-1", "/"))),
            (hub, "/k8s/clusters/edge-1/", Ok(by_path("edge-1", "/"))),
            (hub, "/k8s/clusters/edge-1/api/v1?limit=5", Ok(by_path("edge-1", "/api/v1?limit=5"))),
            (hub, "/k8s/clusters/edge-1//version", Ok(by_path("edge-1", "/version"))),
            (hub, "/k8s/clusters/edge-1/version/", Ok(by_path("edge-1", "/version/"))),
            (hub, "/k8s/clusters/edge-1?a=b", Ok(by_path("edge-1", "/?a=b"))),
            ("edge-1.k8s.example.com", "/api", Ok(by_host("edge-1", "/api"))),
            ("EDGE-1.K8S.Example.Com.:443", "/", Ok(by_host("edge-1", "/"))),
            ("edge-1.k8s.example.com", "//api", Ok(by_host("edge-1", "/api"))),
            // A host that names a cluster decides alone: its child knows no such path.
            ("edge-1.k8s.example.com", "/k8s/clusters/b/api", Ok(by_host("edge-1", "/k8s/clusters/b/api"))),
            (hub, "/connect/c1", Ok(Address::Connect("c1".parse().unwrap()))),
            ("edge-1.k8s.example.com", "/connect/c1", Ok(by_host("edge-1", "/connect/c1"))),
            (hub, "/register/t.yaml", Ok(Address::Manifest(Secret::from("t.yaml".to_owned())))),
            (hub, "/connect", Ok(Address::Bare)),
            (hub, "/api/v1/namespaces", Ok(Address::Bare)),
            (hub, "/", Ok(Address::Bare)),
            (hub, "/k8s/clusters", Ok(Address::Bare)),
            ("k8s.example.com", "/api", Ok(Address::Bare)),
            ("xk8s.example.com", "/api", Ok(Address::Bare)),
            ("[::1]:8443", "/api", Ok(Address::Bare)),
        ] {
            assert_eq!(read_at(host, path), expected, "{host} {path}");
        }
    }

    #[test]
    fn what_can_be_no_cluster_is_none() {
        for (host, path, code) in [
            ("hub", "/k8s/clusters/", 404),
            ("hub", "/k8s/clusters//api", 404),
            ("hub", "/k8s/clusters/A/api", 404),
            ("hub", "/k8s/clusters/a.b/api", 404),
            ("hub", "/k8s/clusters/%61/api", 404),
            ("hub", "/connect/", 404),
            ("hub", "/connect/c1/", 404),
            ("hub", "/connect/A", 404),
            ("a.b.k8s.example.com", "/api", 404),
            ("-.k8s.example.com", "/api", 404),
            ("u@edge-1.k8s.example.com", "/api", 400),
            ("", "/api", 400),
        ] {
            assert_eq!(read_at(host, path), Err(code), "{host} {path}");
        }
    }

    proptest! {
        #[test]
        fn the_child_is_asked_for_what_stands_after_the_cluster(
            name in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
            rest in "[a-zA-Z0-9._~%-][a-zA-Z0-9/._~%-]{0,40}",
            query in proptest::option::of("[a-z=&%0-9/]{1,20}"),
        ) {
            let query = query.map(|query| format!("?{query}")).unwrap_or_default();
            let inside = format!("/{rest}{query}");
            prop_assert_eq!(read_at("hub", &format!("{PATH}{name}{inside}")), Ok(by_path(&name, &inside)));
            prop_assert_eq!(read_at(&format!("{name}.k8s.example.com"), &inside), Ok(by_host(&name, &inside)));
        }
    }
}
