//! Request lines: what the hub routes by is what the parent's kube-apiserver authorised, however the path is read.

use http::{Method, Uri, Version};
use hub::request_info::RequestInfo;

use crate::head::{first_line, headers};

const SOCKETS: &str = "/apis/proxies.clusternet.io/v1alpha1/sockets/";

/// `METHOD TARGET [h2]`, then headers.
pub(crate) fn path(data: &[u8]) {
    let (line, rest) = first_line(data);
    let mut words = line.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return };
    let version = if words.next() == Some("h2") { Version::HTTP_2 } else { Version::HTTP_11 };
    let (Ok(method), Ok(uri)) = (Method::from_bytes(method.as_bytes()), target.parse::<Uri>()) else {
        return;
    };
    let headers = headers(rest);
    let Ok(info) = RequestInfo::parse(&method, &uri, &headers, version) else { return };
    assert!(version == Version::HTTP_2 || (uri.scheme().is_none() && uri.authority().is_none()));
    let path = uri.path();
    match &info {
        RequestInfo::Proxy(proxied) => {
            let id = proxied.cluster.as_str();
            let rest =
                path.strip_prefix(&format!("{SOCKETS}{id}/proxy/direct")).expect("the shape of a proxy path");
            assert_eq!(proxied.target.path(), if rest.is_empty() { "/" } else { rest });
            assert_eq!(proxied.target.query(), uri.query());
            assert_eq!(as_the_parent_reads_it(path), Some(id.to_owned()));
            assert_eq!(
                cleaned(&decoded(path)).get(..5),
                Some(&own(id)[..]),
                "another path once it is cleaned"
            );
            let verb = [("GET", "get"), ("HEAD", "get"), ("POST", "create"), ("PUT", "update")];
            let verb = verb.into_iter().chain([("PATCH", "patch"), ("DELETE", "delete")]);
            let verb = verb.into_iter().find(|(name, _)| *name == method.as_str());
            assert_eq!(verb.map(|(_, verb)| verb), Some(proxied.verb));
        }
        RequestInfo::Attach(cluster) => {
            assert_eq!(path, format!("{SOCKETS}{cluster}/attach"));
            assert_eq!(method, Method::GET);
        }
        RequestInfo::Invite | RequestInfo::Register => {
            let kind = if info == RequestInfo::Invite { "invitations" } else { "registrations" };
            assert_eq!(path, format!("/apis/access.towline.io/v1alpha1/cluster{kind}"));
            assert_eq!(method, Method::POST);
        }
        RequestInfo::RequestKubeconfig => {
            assert_eq!(path, "/apis/access.towline.io/v1alpha1/kubeconfigrequests");
            assert_eq!(method, Method::POST);
        }
        RequestInfo::ListCredentials => {
            assert_eq!(path, "/apis/access.towline.io/v1alpha1/issuedcredentials");
            assert!(method == Method::GET || method == Method::HEAD);
        }
        RequestInfo::RevokeCredential(id) => {
            assert_eq!(path, format!("/apis/access.towline.io/v1alpha1/issuedcredentials/{id}"));
            assert_eq!(method, Method::DELETE);
            assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        }
        RequestInfo::Health
        | RequestInfo::HealthDetail
        | RequestInfo::Metrics
        | RequestInfo::Configz
        | RequestInfo::Document(_) => {
            assert!(method == Method::GET || method == Method::HEAD);
            assert!(!path.starts_with(SOCKETS), "a socket is no document: {path}");
        }
    }
}

/// The segments before the target, without `direct`.
fn own(id: &str) -> [String; 5] {
    ["apis", "proxies.clusternet.io", "v1alpha1", "sockets", id].map(str::to_owned)
}

/// The name that the parent's RBAC is asked about: kube-apiserver decodes the path, then splits it
/// (apiserver `pkg/endpoints/request/requestinfo.go`).
fn as_the_parent_reads_it(path: &str) -> Option<String> {
    let decoded = decoded(path);
    let parts: Vec<&str> = decoded.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["apis", "proxies.clusternet.io", "v1alpha1", "sockets", id, "proxy", ..] => Some((*id).to_owned()),
        _ => None,
    }
}

/// Percent-decoded once, as Go's `url.Parse` does.
pub(crate) fn decoded(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(plain) if byte == b'%' => {
                bytes.push(plain);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The segments after Go's `path.Clean`.
fn cleaned(path: &str) -> Vec<String> {
    let mut segments: Vec<String> = Vec::new();
    for segment in path.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            other => segments.push(other.to_owned()),
        }
    }
    segments
}
