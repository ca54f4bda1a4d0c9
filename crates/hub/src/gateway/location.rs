//! A child's redirect at the gateway. One that stays inside the child's own API is spelt as the caller has spelt the
//! address, so that a client that follows it comes back through this door to the same cluster; any other is none.
//! Pure.
//!
//! Threats: a hostile child that sends its callers, with their tokens, to another host or to another cluster. So what
//! goes out never names a host, and holds no path that this hub would not take as a request.

use api::names::ClusterName;
use http::header::LOCATION;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::address;
use crate::request_info::check_path;

/// How a caller at the gateway has named the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spelt {
    /// By the path, with this name.
    Path(ClusterName),
    /// By the host.
    Host,
    /// By the token alone.
    Root,
}

/// Takes `Location` out of a redirect, and gives what the caller shall get in its place.
///
/// # Errors
/// It leads out of the child's API, or can be read in more than one way; for the caller's eyes.
pub fn take(
    spelt: &Spelt,
    asked: &PathAndQuery,
    status: StatusCode,
    headers: &mut HeaderMap,
) -> Result<Option<HeaderValue>, String> {
    if !status.is_redirection() || !headers.contains_key(LOCATION) {
        return Ok(None);
    }
    let refuse = || format!("it redirects ({}) to an address that is not its own", status.as_u16());
    let mut lines = headers.get_all(LOCATION).iter();
    let only = lines.next().filter(|_| lines.next().is_none()).and_then(|line| line.to_str().ok());
    let respelt = only.and_then(|location| respell(spelt, asked, location)).ok_or_else(refuse)?;
    headers.remove(LOCATION);
    HeaderValue::try_from(respelt).map(Some).map_err(|_| refuse())
}

/// A reference (RFC 3986 section 4.2), resolved against what the child was asked for, in the caller's spelling.
fn respell(spelt: &Spelt, asked: &PathAndQuery, location: &str) -> Option<String> {
    // Browsers take a backslash for a slash, and drop tabs and line ends.
    if location.is_empty() || location.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'\\') {
        return None;
    }
    let (reference, fragment) = cut(location, '#');
    let (path, query) = cut(reference, '?');
    let has_scheme = path.split('/').next().is_some_and(|first| first.contains(':'));
    if has_scheme || path.starts_with("//") {
        return None;
    }
    let resolved = match path {
        "" => asked.path().to_owned(),
        absolute if absolute.starts_with('/') => without_dots(absolute)?,
        relative => {
            let (folder, _) = asked.path().rsplit_once('/')?;
            without_dots(&format!("{folder}/{relative}"))?
        }
    };
    let query = query.or_else(|| if path.is_empty() { asked.query() } else { None });
    if resolved.starts_with("//") || check_path(&resolved).is_err() {
        return None;
    }
    let mut out = match spelt {
        Spelt::Path(name) => format!("{}{name}{resolved}", address::PATH),
        // There it would be the address of another cluster.
        Spelt::Root if address::is_hubs(&resolved) => return None,
        Spelt::Host | Spelt::Root => resolved,
    };
    for (mark, part) in [('?', query), ('#', fragment)] {
        if let Some(part) = part {
            out.push(mark);
            out.push_str(part);
        }
    }
    Some(out)
}

fn cut(text: &str, mark: char) -> (&str, Option<&str>) {
    text.split_once(mark).map_or((text, None), |(before, after)| (before, Some(after)))
}

/// An absolute path without `.` and `..` (RFC 3986 section 5.2.4); nothing for one that climbs above its root.
fn without_dots(path: &str) -> Option<String> {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.strip_prefix('/')?.split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop()?;
                }
                // `a/..` is the folder, with its slash.
                if is_last {
                    kept.push("");
                }
            }
            plain => kept.push(plain),
        }
    }
    Some(format!("/{}", kept.join("/")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_path() -> Spelt {
        Spelt::Path("edge-1".parse().unwrap())
    }

    fn at(spelt: &Spelt, location: &str) -> Option<String> {
        respell(spelt, &"/api/v1/services/a/proxy/x?b=1".parse().unwrap(), location)
    }

    #[test]
    fn what_stays_inside_the_child_is_spelt_as_the_caller_spells_it() {
        for (location, inside) in [
            ("/api/v1/", "/api/v1/"),
            ("/", "/"),
            ("/api?watch=1&a=/b//c?d", "/api?watch=1&a=/b//c?d"),
            ("/ui#top", "/ui#top"),
            ("/a/./b/../c", "/a/c"),
            ("/a/b/..", "/a/"),
            ("login", "/api/v1/services/a/proxy/login"),
            ("login/?to=https://elsewhere", "/api/v1/services/a/proxy/login/?to=https://elsewhere"),
            ("./y", "/api/v1/services/a/proxy/y"),
            ("../../b/proxy/", "/api/v1/services/b/proxy/"),
            ("../../../../../", "/"),
            ("?c=2", "/api/v1/services/a/proxy/x?c=2"),
            ("#top", "/api/v1/services/a/proxy/x?b=1#top"),
            ("/a%20b/c:d", "/a%20b/c:d"),
            ("/k8s/clustersx", "/k8s/clustersx"),
        ] {
            let prefixed = format!("/k8s/clusters/edge-1{inside}");
            assert_eq!(at(&by_path(), location), Some(prefixed), "{location}");
            assert_eq!(at(&Spelt::Host, location).as_deref(), Some(inside), "{location}");
            assert_eq!(at(&Spelt::Root, location).as_deref(), Some(inside), "{location}");
        }
    }

    #[test]
    fn what_leads_elsewhere_or_can_be_read_in_two_ways_is_refused() {
        for location in [
            "",
            "//evil.example.com/",
            "///evil.example.com/",
            "/\\evil.example.com/",
            "\\\\evil.example.com",
            "/a/..//evil.example.com/",
            "..//../../../../..//evil.example.com",
            "https://evil.example.com/",
            "HTTPS://evil.example.com/",
            "http:/evil",
            "https:evil",
            "javascript:alert(1)",
            "data:text/html,x",
            "evil.example.com:443/x",
            "https://user:pw@kubernetes/",
            "https://kubernetes@evil.example.com/",
            "//user@evil.example.com",
            "../../../../../../",
            "/..",
            "/a/../../b",
            "/%2e%2e/b",
            "/a/.%2E/b",
            "/a%2f..%2fb",
            "/a%5cb",
            "/a;b",
            "/a\r\nSet-Cookie: b=c",
            "/a%0d%0ab",
            "/a%00",
            "/a b",
            "/\t/evil.example.com",
            " /a",
            "/\u{e4}",
            "/%zz",
        ] {
            for spelt in [by_path(), Spelt::Host, Spelt::Root] {
                assert_eq!(at(&spelt, location), None, "{location:?} {spelt:?}");
            }
        }
        // To a child these are paths like any other; with a token alone they are the hub's own.
        for location in ["/k8s/clusters/edge-2/api", "/k8s/clusters/", "/connect/c2"] {
            assert_eq!(at(&Spelt::Root, location), None, "{location}");
            assert_eq!(at(&Spelt::Host, location).as_deref(), Some(location));
        }
    }

    #[test]
    fn a_redirect_has_one_location_and_only_a_redirect_is_touched() {
        let asked = "/x".parse().unwrap();
        let take = |code: u16, lines: &[&str]| {
            let lines = lines.iter().map(|line| (LOCATION, HeaderValue::from_str(line).unwrap()));
            let mut headers: HeaderMap = HeaderMap::new();
            for (name, value) in lines {
                headers.append(name, value);
            }
            let taken = take(&by_path(), &asked, StatusCode::from_u16(code).unwrap(), &mut headers);
            (taken, headers.contains_key(LOCATION))
        };
        let moved = HeaderValue::from_static("/k8s/clusters/edge-1/y");
        assert_eq!(take(302, &["/y"]), (Ok(Some(moved)), false));
        assert_eq!(take(304, &[]), (Ok(None), false));
        assert_eq!(take(201, &["/y"]), (Ok(None), true));
        assert!(take(302, &["/y", "/y"]).0.unwrap_err().contains("302"));
        assert!(take(307, &["//evil"]).0.is_err());
    }

    proptest! {
        #[test]
        fn no_child_sends_anybody_out_of_its_cluster(location in "[ -~]{0,40}|[./a%2e\\\\:?#]{0,20}") {
            if let Some(sent) = at(&by_path(), &location) {
                let (path, _) = cut(&sent, '#');
                let (path, _) = cut(path, '?');
                prop_assert!(path.starts_with("/k8s/clusters/edge-1/"), "{}", sent);
                prop_assert!(check_path(path).is_ok(), "{}", sent);
            }
            for spelt in [Spelt::Host, Spelt::Root] {
                if let Some(sent) = at(&spelt, &location) {
                    prop_assert!(sent.starts_with('/') && !sent.starts_with("//"), "{}", sent);
                }
            }
        }
    }
}
