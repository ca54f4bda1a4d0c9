//! Where a redirect of the child leads. An address of the child's own kube-apiserver becomes a path: nobody beyond the
//! tunnel can use that address, and no header in it names a host of this network. Whatever else it is goes on as it
//! is; the hub decides what becomes of it. Pure.

use http::header::LOCATION;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue};

const HTTPS_PORT: &str = ":443";

/// Makes `https://<own>/path` a path.
pub(super) fn shorten(own: &Authority, headers: &mut HeaderMap) {
    let Some(path) = headers.get(LOCATION).and_then(|value| inside(own, value.to_str().ok()?)) else {
        return;
    };
    if let Ok(path) = HeaderValue::try_from(path) {
        // Whoever sent two of them has not said which one is meant, and the hub has to see that.
        if headers.get_all(LOCATION).iter().count() == 1 {
            headers.insert(LOCATION, path);
        }
    }
}

fn inside(own: &Authority, location: &str) -> Option<String> {
    let (scheme, rest) = location.split_once("://")?;
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = |text: &str| text.strip_suffix(HTTPS_PORT).unwrap_or(text).to_ascii_lowercase();
    // Compared whole, so that a user before the host makes it another one.
    let is_own = scheme.eq_ignore_ascii_case("https") && host(authority) == host(own.as_str());
    // With two slashes what follows would be a host.
    (is_own && !path.starts_with("//"))
        .then(|| if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_child_itself_becomes_a_path_and_no_other_does() {
        for (own, location, path) in [
            ("kubernetes:443", "https://kubernetes/api/v1/?a=b#c", Some("/api/v1/?a=b#c")),
            ("kubernetes:443", "HTTPS://Kubernetes:443/api", Some("/api")),
            ("kubernetes:443", "https://kubernetes", Some("/")),
            ("kubernetes:443", "https://kubernetes?a=b", Some("/?a=b")),
            ("10.0.0.1:6443", "https://10.0.0.1:6443/api", Some("/api")),
            ("[::1]:6443", "https://[::1]:6443/api", Some("/api")),
            ("10.0.0.1:6443", "https://10.0.0.1/api", None),
            ("kubernetes:443", "http://kubernetes/api", None),
            ("kubernetes:443", "https://kubernetes.evil.example.com/", None),
            ("kubernetes:443", "https://kubernetes@evil.example.com/", None),
            ("kubernetes:443", "https://user:pw@kubernetes/", None),
            ("kubernetes:443", "https://kubernetes//evil.example.com/", None),
            ("kubernetes:443", "//kubernetes/api", None),
            ("kubernetes:443", "/api?to=https://kubernetes/x", None),
            ("kubernetes:443", "/api", None),
        ] {
            let found = inside(&own.parse().unwrap(), location);
            assert_eq!(found.as_deref(), path, "{own} {location}");
        }
        // A backslash stays one, for the hub to refuse.
        let odd = inside(&"kubernetes:443".parse().unwrap(), "https://kubernetes\\evil").unwrap();
        assert_eq!(odd, "/\\evil");
    }

    #[test]
    fn two_addresses_are_left_as_they_are() {
        let value = HeaderValue::from_static("https://kubernetes/api");
        let mut headers: HeaderMap = [(LOCATION, value.clone())].into_iter().collect();
        headers.append(LOCATION, value.clone());
        shorten(&"kubernetes:443".parse().unwrap(), &mut headers);
        assert_eq!(headers.get_all(LOCATION).iter().collect::<Vec<_>>(), [&value, &value]);
    }
}
