//! What the lists of a policy hold: patterns of names, kinds of resources, paths. Pure.

use std::fmt;

use super::request_info::Resource;

/// A name, or one with a single `*` for any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    /// What stands before and after the star.
    parts: Option<(String, String)>,
}

impl Pattern {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("is empty");
        }
        if text.trim() != text || text.chars().any(char::is_control) {
            return Err("begins or ends with a space, or holds a control character");
        }
        let parts = text.split_once('*').map(|(before, after)| (before.to_owned(), after.to_owned()));
        if parts.as_ref().is_some_and(|(_, after)| after.contains('*')) {
            return Err("has more than one \"*\"");
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// Whether it means this name.
    pub fn matches(&self, name: &str) -> bool {
        match &self.parts {
            None => self.text == name,
            Some((before, after)) => {
                name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A kind of resource in kubectl's spelling: `pods`, `pods/exec`, `deployments.apps`, `*.apps`, `*/status`, `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    resource: String,
    group: Option<String>,
    subresource: Option<String>,
}

const ANY: &str = "*";

impl Kind {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (kind, subresource) = match text.split_once('/') {
            Some((kind, subresource)) => (kind, Some(subresource)),
            None => (text, None),
        };
        let (resource, group) = match kind.split_once('.') {
            Some((resource, group)) => (resource, Some(group)),
            None => (kind, None),
        };
        let word =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
        let good = |part: &str| part == ANY || (!part.is_empty() && part.bytes().all(word));
        if ![Some(resource), group, subresource].into_iter().flatten().all(good) {
            return Err(
                "is no resource in kubectl's spelling: pods, pods/exec, deployments.apps, *.apps or *",
            );
        }
        let owned = |part: Option<&str>| part.map(str::to_owned);
        Ok(Self { resource: resource.to_owned(), group: owned(group), subresource: owned(subresource) })
    }

    /// As an entry that allows it is narrow, as in RBAC: without a group it means the core group, without a
    /// subresource none. `*` alone means everything.
    pub fn allows(&self, asked: &Resource) -> bool {
        if self.is_everything() {
            return true;
        }
        one(&self.resource, &asked.resource)
            && one(self.group.as_deref().unwrap_or_default(), &asked.group)
            && one(self.subresource.as_deref().unwrap_or_default(), &asked.subresource)
    }

    /// As an entry that denies it is wide: without a group it means any, without a subresource the whole object.
    pub fn denies(&self, asked: &Resource) -> bool {
        one(&self.resource, &asked.resource)
            && self.group.as_deref().is_none_or(|group| one(group, &asked.group))
            && self.subresource.as_deref().is_none_or(|subresource| one(subresource, &asked.subresource))
    }

    /// `*`
    pub fn is_everything(&self) -> bool {
        self.resource == ANY && self.group.is_none() && self.subresource.is_none()
    }

    /// The plural, without group and subresource.
    pub fn resource(&self) -> &str {
        &self.resource
    }
}

fn one(pattern: &str, name: &str) -> bool {
    pattern == ANY || pattern == name
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.resource)?;
        if let Some(group) = &self.group {
            write!(f, ".{group}")?;
        }
        if let Some(subresource) = &self.subresource {
            write!(f, "/{subresource}")?;
        }
        Ok(())
    }
}

/// A path that is no resource, or all below one: `/metrics`, `/debug/*`, as in RBAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlPattern(String);

impl UrlPattern {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let bare = text.strip_suffix("/*").unwrap_or(text);
        if !text.starts_with('/') || bare.is_empty() || bare.ends_with('/') {
            return Err("is no path like /metrics or /debug/*");
        }
        if bare.contains('*') || bare.contains("//") || !bare.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "may have a \"*\" after the last slash only, and no empty part, space or special character",
            );
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether it means this path, which has no slash at its end.
    pub fn matches(&self, path: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(below) => path.starts_with(below),
            None => self.0 == path,
        }
    }
}

impl fmt::Display for UrlPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(group: &str, resource: &str, subresource: &str) -> Resource {
        let [group, resource, subresource] = [group, resource, subresource].map(str::to_owned);
        Resource { group, resource, subresource, ..Resource::default() }
    }

    #[test]
    fn a_star_stands_for_any_text_and_nothing_else_does() {
        for (pattern, name, matches) in [
            ("alice", "alice", true),
            ("alice", "Alice", false),
            ("alice", "alice2", false),
            ("team-*", "team-a", true),
            ("team-*", "team-", true),
            ("team-*", "ateam-a", false),
            ("*@example.com", "a@example.com", true),
            ("*@example.com", "a@example.com.evil", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*", "", true),
            ("a.c", "abc", false),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(name), matches, "{pattern} {name}");
        }
        for bad in ["", " a", "a ", "a**", "*a*", "a\nb"] {
            assert!(Pattern::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_allowed_kind_is_narrow_and_a_denied_one_is_wide() {
        for (kind, asked, allows, denies) in [
            ("pods", ("", "pods", ""), true, true),
            ("pods", ("", "pods", "exec"), false, true),
            ("pods", ("metrics.k8s.io", "pods", ""), false, true),
            ("pods/exec", ("", "pods", "exec"), true, true),
            ("pods/exec", ("", "pods", ""), false, false),
            ("pods/*", ("", "pods", "exec"), true, true),
            ("deployments", ("apps", "deployments", ""), false, true),
            ("deployments.apps", ("apps", "deployments", ""), true, true),
            ("deployments.apps", ("extensions", "deployments", ""), false, false),
            ("deployments.apps/scale", ("apps", "deployments", "scale"), true, true),
            ("*.apps", ("apps", "daemonsets", ""), true, true),
            ("*.apps", ("apps", "daemonsets", "status"), false, true),
            ("*/proxy", ("", "nodes", "proxy"), true, true),
            ("*.*/proxy", ("a", "b", "proxy"), true, true),
            ("*", ("a", "b", "c"), true, true),
        ] {
            let asked = resource(asked.0, asked.1, asked.2);
            let kind = Kind::parse(kind).unwrap();
            assert_eq!((kind.allows(&asked), kind.denies(&asked)), (allows, denies), "{kind} {asked}");
            assert_eq!(Kind::parse(&kind.to_string()), Ok(kind));
        }
        for bad in ["", "Pod", "pods/", "/exec", "pods.", ".apps", "po ds", "pods/a/b", "p*"] {
            assert!(Kind::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_is_exact_or_all_below_it() {
        let matches = |pattern: &str, path: &str| UrlPattern::parse(pattern).unwrap().matches(path);
        assert!(matches("/metrics", "/metrics") && !matches("/metrics", "/metrics/x"));
        assert!(matches("/debug/*", "/debug/pprof") && !matches("/debug/*", "/debugger"));
        for bad in ["", "metrics", "/", "/*", "/a/", "/a*", "/*/a", "//a", "/a b"] {
            assert!(UrlPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
