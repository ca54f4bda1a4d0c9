//! What a request asks of the child, in Kubernetes' words: verb, group, resource, subresource, namespace, name, or a
//! path that is no resource. Pure.
//!
//! Promise: the reading is kube-apiserver's own (apiserver `pkg/endpoints/request/requestinfo.go`), for a policy that
//! reads a path otherwise than the server that answers it guards nothing. Where two readers could differ (`//`, dot
//! segments, encoded separators, `;`), and where kube-apiserver knows no verb, there is no reading and the request is
//! refused. In two places it is stricter than kube-apiserver, see [`RequestInfo::parse`].

use std::fmt;

use http::Method;

/// Longest path that is read. kube-apiserver's own names are at most 253 bytes each; what is longer is a proxied URL.
const MAX_PATH: usize = 16 * 1024;

/// Kubernetes' verbs. A method on a path that is no resource is counted as the verb that it has on resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// One object.
    Get,
    /// All objects of a kind.
    List,
    /// Changes of objects.
    Watch,
    /// A new object, and what people do with a POST besides: exec, token, review.
    Create,
    /// PUT.
    Update,
    /// PATCH, apply included.
    Patch,
    /// One object.
    Delete,
    /// All objects of a kind in a namespace.
    DeleteCollection,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Get,
        Self::List,
        Self::Watch,
        Self::Create,
        Self::Update,
        Self::Patch,
        Self::Delete,
        Self::DeleteCollection,
    ];

    /// Kubernetes' spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    /// Whether it changes nothing.
    pub fn reads(self) -> bool {
        matches!(self, Self::Get | Self::List | Self::Watch)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestInfo {
    /// What is to be done.
    pub verb: Verb,
    /// With what.
    pub target: Target,
    /// The connection is to be switched to another protocol.
    pub upgrade: bool,
}

/// What is acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An API resource.
    Resource(Resource),
    /// Any other path, decoded, without a slash at its end.
    NonResource(String),
}

/// An API resource. A part that is not in the path is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource {
    /// Empty for the core group.
    pub group: String,
    /// The plural.
    pub resource: String,
    /// `exec`, `status`, `proxy`, …
    pub subresource: String,
    /// Of a Namespace object, its own name.
    pub namespace: String,
    /// The object's.
    pub name: String,
}

/// Why a request has no reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// See [`RequestInfo::parse`].
    #[error("its path {0}")]
    Path(&'static str),
    /// kube-apiserver has no verb for it.
    #[error("its method has no verb in Kubernetes")]
    Method,
    /// `/api/v1/watch` and nothing behind it.
    #[error("its path names no resource")]
    NoResource,
    /// `;` separates pairs for servers built with Go before 1.17, and hides them from later ones.
    #[error("its query contains a raw semicolon")]
    Query,
}

impl RequestInfo {
    /// Reads a request. Of an upgrade, `method` is the original one.
    ///
    /// Stricter than kube-apiserver: a GET of `pods/exec`, `attach` or `portforward`, and any upgrade that is neither
    /// a watch nor a log, is a `create` (a WebSocket can only begin with GET, and older servers ask for no more than
    /// `get` then: kubernetes/kubernetes 78741); and the old prefix `proxy` is read as the subresource of that name.
    ///
    /// # Errors
    /// The path, the query or the method could be read in two ways, or in none.
    pub fn parse(
        method: &Method,
        path: &str,
        query: Option<&str>,
        upgrade: bool,
    ) -> Result<Self, Unreadable> {
        let segments = segments(path)?;
        let query = query.unwrap_or_default();
        if query.contains(';') {
            return Err(Unreadable::Query);
        }
        let verb = verb_of(method)?;
        let Some((group, parts)) = beyond_version(&segments) else {
            return Ok(Self {
                verb,
                target: Target::NonResource(format!("/{}", segments.join("/"))),
                upgrade,
            });
        };
        let (verb, resource) = resource(verb, group, parts, query)?;
        let streams = group.is_empty()
            && resource.resource == "pods"
            && matches!(resource.subresource.as_str(), "exec" | "attach" | "portforward");
        let upgrades = upgrade && resource.subresource != "log";
        let looks = matches!(verb, Verb::Get | Verb::List);
        let verb = if looks && (streams || upgrades) { Verb::Create } else { verb };
        Ok(Self { verb, target: Target::Resource(resource), upgrade })
    }
}

fn verb_of(method: &Method) -> Result<Verb, Unreadable> {
    Ok(match *method {
        Method::GET | Method::HEAD => Verb::Get,
        Method::POST => Verb::Create,
        Method::PUT => Verb::Update,
        Method::PATCH => Verb::Patch,
        Method::DELETE => Verb::Delete,
        _ => return Err(Unreadable::Method),
    })
}

/// The group, and what follows the version; `None` for a path that is no resource.
fn beyond_version(segments: &[String]) -> Option<(&str, &[String])> {
    match segments {
        [api, _version, parts @ ..] if api == "api" && !parts.is_empty() => Some(("", parts)),
        [apis, group, _version, parts @ ..] if apis == "apis" && !parts.is_empty() => Some((group, parts)),
        _ => None,
    }
}

fn resource(
    verb: Verb,
    group: &str,
    mut parts: &[String],
    query: &str,
) -> Result<(Verb, Resource), Unreadable> {
    let mut verb = verb;
    let mut proxied = false;
    if let [prefix, rest @ ..] = parts
        && matches!(prefix.as_str(), "watch" | "proxy")
    {
        proxied = prefix == "proxy";
        if !proxied {
            // Only GET is served there; kube-apiserver would authorize any method as a watch.
            verb = if verb == Verb::Get { Verb::Watch } else { return Err(Unreadable::Method) };
        }
        parts = rest;
    }
    let mut namespace = String::new();
    if let [namespaces, named, rest @ ..] = parts
        && namespaces == "namespaces"
    {
        namespace.clone_from(named);
        // These two belong to the Namespace itself; any other word is a resource in it.
        if rest.first().is_some_and(|next| !matches!(next.as_str(), "status" | "finalize")) {
            parts = rest;
        }
    }
    let part = |at: usize| parts.get(at).cloned().unwrap_or_default();
    let resource = Resource {
        group: group.to_owned(),
        resource: part(0),
        name: part(1),
        subresource: if proxied { "proxy".to_owned() } else { part(2) },
        namespace,
    };
    if resource.resource.is_empty() {
        return Err(Unreadable::NoResource);
    }
    if resource.name.is_empty() {
        verb = of_collection(verb, query);
    }
    Ok((verb, resource))
}

/// The verb where no object is named.
fn of_collection(verb: Verb, query: &str) -> Verb {
    if verb == Verb::Get {
        return if watches(query) { Verb::Watch } else { Verb::List };
    }
    if verb == Verb::Delete { Verb::DeleteCollection } else { verb }
}

/// The first `watch` counts, and everything is true but `false` and `0` (apimachinery `pkg/runtime/conversion.go`).
fn watches(query: &str) -> bool {
    let first = query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // A pair that does not decode is skipped by Go (net/url `ParseQuery`).
        (unescape_query(key)? == b"watch").then(|| unescape_query(value)).flatten()
    });
    first.is_some_and(|value| !value.eq_ignore_ascii_case(b"false") && value != b"0")
}

fn unescape_query(text: &str) -> Option<Vec<u8>> {
    unescape(text.as_bytes(), true).ok()
}

/// The decoded segments of a path.
fn segments(path: &str) -> Result<Vec<String>, Unreadable> {
    if path.len() > MAX_PATH {
        return Err(Unreadable::Path("is longer than 16 KiB"));
    }
    let Some(path) = path.strip_prefix('/') else {
        return Err(Unreadable::Path("does not begin with a slash"));
    };
    // One slash at the end is nothing to kube-apiserver.
    let inner = path.strip_suffix('/').unwrap_or(path);
    if inner.is_empty() {
        return if path.is_empty() { Ok(Vec::new()) } else { Err(EMPTY_SEGMENT) };
    }
    inner.split('/').map(segment).collect()
}

const EMPTY_SEGMENT: Unreadable = Unreadable::Path("contains an empty segment (//)");

fn segment(raw: &str) -> Result<String, Unreadable> {
    if raw.is_empty() {
        return Err(EMPTY_SEGMENT);
    }
    if !raw.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Unreadable::Path("contains a space, a control character or a raw byte beyond ASCII"));
    }
    let decoded = unescape(raw.as_bytes(), false)?;
    if decoded.iter().any(|byte| matches!(byte, b'/' | b'\\' | b';')) {
        return Err(Unreadable::Path("contains an encoded slash, a backslash or a semicolon"));
    }
    if decoded.iter().any(u8::is_ascii_control) {
        return Err(Unreadable::Path("contains an encoded control character"));
    }
    match String::from_utf8(decoded) {
        Ok(text) if text == "." || text == ".." => Err(Unreadable::Path("contains a dot segment")),
        Ok(text) => Ok(text),
        Err(_) => Err(Unreadable::Path("is not UTF-8 once it is decoded")),
    }
}

fn unescape(raw: &[u8], plus_is_space: bool) -> Result<Vec<u8>, Unreadable> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter().copied();
    while let Some(byte) = bytes.next() {
        let next = match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err(Unreadable::Path("contains a malformed percent escape"));
                };
                u8::try_from(high * 16 + low).unwrap_or(u8::MAX)
            }
            b'+' if plus_is_space => b' ',
            other => other,
        };
        decoded.push(next);
    }
    Ok(decoded)
}

impl fmt::Display for RequestInfo {
    /// `delete pods "web" in namespace "default"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.verb)?;
        match &self.target {
            Target::NonResource(path) => write!(f, "path {path:?}")?,
            Target::Resource(resource) => {
                write!(f, "{resource}")?;
                if !resource.name.is_empty() {
                    write!(f, " {:?}", resource.name)?;
                }
                if !resource.namespace.is_empty() && resource.resource != "namespaces" {
                    write!(f, " in namespace {:?}", resource.namespace)?;
                }
            }
        }
        if self.upgrade { f.write_str(" (upgraded)") } else { Ok(()) }
    }
}

impl fmt::Display for Resource {
    /// As kubectl takes it: `pods/exec`, `deployments.apps`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if !self.subresource.is_empty() {
            write!(f, "/{}", self.subresource)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
