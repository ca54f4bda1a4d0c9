//! The syntax of Kubernetes labels (apimachinery `pkg/util/validation`), and which of them are the hub's alone.

use crate::names::RESERVED_LABEL_DOMAINS;

/// What is wrong with a label that somebody wants for a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLabel {
    /// The part after the slash, or the whole.
    #[error(
        "{0:?} is no label name: at most 63 of A-Z, a-z, 0-9, '-', '_' and '.', with a letter or digit at both ends"
    )]
    Name(String),
    /// The part before the slash.
    #[error("{0:?} is no DNS name, which is what stands before the slash")]
    Domain(String),
    /// The value.
    #[error(
        "{0:?} is no label value: at most 63 of A-Z, a-z, 0-9, '-', '_' and '.', with a letter or digit at both ends"
    )]
    Value(String),
    /// One that only the hub sets.
    #[error("{0:?} belongs to the hub; choose another domain")]
    Reserved(String),
}

/// Checks a label that is to be given to a cluster.
///
/// # Errors
/// What is wrong with it.
pub fn check(key: &str, value: &str) -> Result<(), BadLabel> {
    let (domain, name) = key.split_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    if !is_qualified(name) {
        return Err(BadLabel::Name(name.to_owned()));
    }
    if let Some(domain) = domain.filter(|domain| !is_subdomain(domain)) {
        return Err(BadLabel::Domain(domain.to_owned()));
    }
    if is_reserved(key) {
        return Err(BadLabel::Reserved(key.to_owned()));
    }
    if !value.is_empty() && !is_qualified(value) {
        return Err(BadLabel::Value(value.to_owned()));
    }
    Ok(())
}

/// Whether a label is one that only the hub sets.
pub fn is_reserved(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return false };
    RESERVED_LABEL_DOMAINS.iter().any(|reserved| {
        domain.strip_suffix(reserved).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    })
}

fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    bytes.len() <= 63
        && first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

fn is_subdomain(text: &str) -> bool {
    let label = |part: &str| {
        is_qualified(part) && part.bytes().all(|byte| !byte.is_ascii_uppercase() && byte != b'_')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_kubernetes_labels_and_not_the_hubs() {
        let long = "a".repeat(64);
        for (key, value) in [
            ("site", "ulm"),
            ("example.com/Site", ""),
            ("a.b-c/d_e.f", "X-1_y.z"),
            ("notclusternet.io/a", "x"),
        ] {
            assert_eq!(check(key, value), Ok(()), "{key}={value}");
        }
        let kind = |key: &str, value: &str| match check(key, value) {
            Ok(()) => "good",
            Err(BadLabel::Name(_)) => "name",
            Err(BadLabel::Domain(_)) => "domain",
            Err(BadLabel::Value(_)) => "value",
            Err(BadLabel::Reserved(_)) => "reserved",
        };
        for (key, value, wanted) in [
            ("clusternet.io/created-by", "me", "reserved"),
            ("clusters.clusternet.io/cluster-id", "x", "reserved"),
            ("access.towline.io/x", "x", "reserved"),
            ("", "x", "name"),
            ("a/", "x", "name"),
            ("a/b/c", "x", "name"),
            ("a b", "x", "name"),
            ("-a", "x", "name"),
            (&long, "x", "name"),
            ("/a", "x", "domain"),
            ("Example.com/a", "x", "domain"),
            ("a..b/c", "x", "domain"),
            ("a_b/c", "x", "domain"),
            ("a", "x y", "value"),
            ("a", "-x", "value"),
            ("a", "ä", "value"),
            ("a", &long, "value"),
        ] {
            assert_eq!(kind(key, value), wanted, "{key}={value}");
        }
    }
}
