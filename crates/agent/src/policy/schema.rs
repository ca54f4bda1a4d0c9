//! The text of a policy to a [`Policy`]. Strict, because a policy that is half understood guards half: an unknown or
//! repeated key, a value of another type, an unknown word is a mistake. All mistakes are told at once with their
//! lines.

use std::fmt;

use api::names::Role;
use jiff::tz::TimeZone;

use super::document::{self, Node, Place};
use super::hours::{self, Hours};
use super::names::{Kind, Pattern, UrlPattern};
use super::request_info::Verb;
use super::{Lists, MAX_ENTRIES, MAX_POLICY, Namespaces, Policy, Preset, lint};

const API_VERSION: &str = "access.towline.io/v1alpha1";
const KIND: &str = "AgentPolicy";
/// Most mistakes that are told.
const MAX_MISTAKES: usize = 50;
/// Longest entry of a list. User names of directories stay below.
const MAX_TEXT: usize = 1024;

/// A policy, and what is odd about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The policy.
    pub policy: Policy,
    /// What its owner probably did not mean.
    pub warnings: Vec<String>,
}

/// All that is wrong with the text of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Mistakes {}

type Entry<T> = Place<T>;
type Map = Vec<(Place<String>, Place<Node>)>;

/// # Errors
/// All mistakes.
pub(super) fn read(text: &str) -> Result<Checked, Mistakes> {
    if text.len() > MAX_POLICY {
        let size = text.len();
        return Err(Mistakes(vec![format!("the policy has {size} bytes; at most {MAX_POLICY} are read")]));
    }
    let root = document::read(text).map_err(|error| Mistakes(vec![error]))?;
    let mut reader = Reader::default();
    let policy = reader.policy(&root);
    match policy {
        Some(policy) if reader.mistakes.is_empty() => Ok(Checked { policy, warnings: reader.warnings }),
        _ => Err(Mistakes(reader.mistakes)),
    }
}

/// Collects what is wrong and what is odd.
#[derive(Default)]
struct Reader {
    mistakes: Vec<String>,
    warnings: Vec<String>,
}

impl Reader {
    fn wrong<T>(&mut self, at: &Place<T>, what: impl fmt::Display) {
        if self.mistakes.len() < MAX_MISTAKES {
            let what = api::status::printable(&what.to_string(), 512);
            self.mistakes.push(format!("line {}, column {}: {what}", at.line, at.column));
        }
    }

    fn odd<T>(&mut self, at: &Place<T>, what: impl fmt::Display) {
        if self.warnings.len() < MAX_MISTAKES {
            let what = api::status::printable(&what.to_string(), 512);
            self.warnings.push(format!("line {}: {what}", at.line));
        }
    }

    fn policy(&mut self, root: &Place<Node>) -> Option<Policy> {
        const KEYS: [&str; 12] = [
            "apiVersion",
            "kind",
            "preset",
            "closed",
            "users",
            "groups",
            "roles",
            "namespaces",
            "verbs",
            "resources",
            "nonResourceURLs",
            "hours",
        ];
        let map = self.map(root, "the policy", &KEYS)?;
        for (key, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            let found = self.needed(root, &map, key).and_then(|node| self.text(node, key));
            if let Some(found) = found
                && found.value != wanted
            {
                self.wrong(&found, format_args!("{key} has to be {wanted}, not {:?}", found.value));
            }
        }
        let preset = self.preset(root, &map);
        let closed = find(&map, "closed").is_some_and(|node| self.flag(node, "closed"));
        let users = find(&map, "users").map(|node| self.subjects(node, "users"));
        let groups = find(&map, "groups").map(|node| self.subjects(node, "groups"));
        let roles = find(&map, "roles").map(|node| self.words(node, "roles", &ROLES, role));
        let namespaces = find(&map, "namespaces").and_then(|node| self.namespaces(node));
        let verbs = find(&map, "verbs").map(|node| self.verbs(node)).unwrap_or_default();
        let resources = find(&map, "resources").map(|node| self.resources(node)).unwrap_or_default();
        let non_resource_urls = find(&map, "nonResourceURLs")
            .map(|node| self.parsed(node, "nonResourceURLs", UrlPattern::parse))
            .unwrap_or_default();
        let hours = find(&map, "hours").and_then(|node| self.hours(node));
        Some(Policy {
            preset: preset?,
            closed,
            users,
            groups,
            roles,
            namespaces,
            verbs,
            resources,
            non_resource_urls,
            hours,
        })
    }

    fn preset(&mut self, root: &Place<Node>, map: &Map) -> Option<Preset> {
        let node = self.needed(root, map, "preset")?;
        let text = self.text(node, "preset")?;
        let preset = Preset::parse(&text.value);
        if preset.is_none() {
            let all = Preset::ALL.map(Preset::as_str);
            self.wrong(
                &text,
                format_args!(
                    "preset {:?} is none of {}{}",
                    text.value,
                    all.join(", "),
                    did_you_mean(&text.value, &all)
                ),
            );
        }
        preset
    }

    fn subjects(&mut self, node: &Place<Node>, what: &str) -> Vec<Pattern> {
        let texts = self.texts(node, what);
        for text in &texts {
            if let Some(warning) = lint::subject(&text.value) {
                self.odd(text, format_args!("{what}: {warning}"));
            }
        }
        self.each(texts, what, Pattern::parse)
    }

    fn namespaces(&mut self, node: &Place<Node>) -> Option<Namespaces> {
        let map = self.map(node, "namespaces", &["allow", "deny", "clusterScoped"])?;
        let names = Lists {
            allow: find(&map, "allow").map(|node| self.namespace_names(node, "namespaces.allow")),
            deny: find(&map, "deny")
                .map(|node| self.namespace_names(node, "namespaces.deny"))
                .unwrap_or_default(),
        };
        let cluster_scoped =
            find(&map, "clusterScoped").map(|node| self.kinds(node, "namespaces.clusterScoped"));
        let cluster_scoped = cluster_scoped.unwrap_or_default();
        for kind in cluster_scoped.iter().filter(|kind| lint::spans_namespaces(kind)) {
            self.odd(
                node,
                format_args!("namespaces.clusterScoped has {kind}: lists over all namespaces then show what the other lists keep apart"),
            );
        }
        Some(Namespaces { names, cluster_scoped })
    }

    fn namespace_names(&mut self, node: &Place<Node>, what: &str) -> Vec<Pattern> {
        let texts = self.texts(node, what);
        for text in &texts {
            if let Some(meant) = lint::namespace(&text.value) {
                self.odd(text, format_args!("{what}: {:?} looks like {meant:?}", text.value));
            }
        }
        self.each(texts, what, Pattern::parse)
    }

    fn verbs(&mut self, node: &Place<Node>) -> Lists<Verb> {
        let Some(map) = self.map(node, "verbs", &["allow", "deny"]) else { return Lists::default() };
        let names = Verb::ALL.map(Verb::as_str);
        let mut list = |key: &str, what: &str| {
            find(&map, key).map(|node| {
                self.words(node, what, &names, |text| {
                    Verb::ALL.into_iter().find(|verb| verb.as_str() == text)
                })
            })
        };
        Lists { allow: list("allow", "verbs.allow"), deny: list("deny", "verbs.deny").unwrap_or_default() }
    }

    fn resources(&mut self, node: &Place<Node>) -> Lists<Kind> {
        let Some(map) = self.map(node, "resources", &["allow", "deny"]) else { return Lists::default() };
        Lists {
            allow: find(&map, "allow").map(|node| self.kinds(node, "resources.allow")),
            deny: find(&map, "deny").map(|node| self.kinds(node, "resources.deny")).unwrap_or_default(),
        }
    }

    fn kinds(&mut self, node: &Place<Node>, what: &str) -> Vec<Kind> {
        let texts = self.texts(node, what);
        for text in &texts {
            if let Some(meant) = lint::resource(&text.value) {
                self.odd(text, format_args!("{what}: {:?} looks like {meant:?}", text.value));
            }
        }
        self.each(texts, what, Kind::parse)
    }

    fn hours(&mut self, node: &Place<Node>) -> Option<Hours> {
        let map = self.map(node, "hours", &["timeZone", "days", "from", "to"])?;
        let zone = self.needed(node, &map, "timeZone").and_then(|node| self.time_zone(node));
        let days = find(&map, "days").map(|node| {
            let names = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
            self.words(node, "hours.days", &names, hours::day)
        });
        let from = self.needed(node, &map, "from").and_then(|node| self.minute(node, "hours.from"));
        let to = self.needed(node, &map, "to").and_then(|node| self.minute(node, "hours.to"));
        let (zone, from, to) = (zone?, from?, to?);
        if from == to || from == 24 * 60 {
            self.wrong(node, "hours: from and to have to differ, and from is before 24:00; for a whole day write from: \"00:00\", to: \"24:00\"");
            return None;
        }
        Some(Hours::new(zone, days.unwrap_or_else(hours::every_day), from, to))
    }

    fn time_zone(&mut self, node: &Place<Node>) -> Option<(String, TimeZone)> {
        let text = self.text(node, "hours.timeZone")?;
        // An offset or a POSIX rule would be found too; only names change with the law of the place.
        match TimeZone::get(&text.value) {
            Ok(zone) => Some((text.value, zone)),
            Err(_) => {
                self.wrong(
                    &text,
                    format_args!("hours.timeZone {:?} is not in the IANA time zone database; Europe/Berlin and UTC are", text.value),
                );
                None
            }
        }
    }

    fn minute(&mut self, node: &Place<Node>, what: &str) -> Option<u16> {
        let text = self.text(node, what)?;
        let minute = hours::minute(&text.value);
        if minute.is_none() {
            self.wrong(&text, format_args!("{what} {:?} is no time of day like \"08:00\"", text.value));
        }
        minute
    }

    fn words<T>(
        &mut self,
        node: &Place<Node>,
        what: &str,
        known: &[&str],
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let texts = self.texts(node, what);
        let mut words = Vec::with_capacity(texts.len());
        for text in texts {
            match parse(&text.value) {
                Some(word) => words.push(word),
                None => self.wrong(
                    &text,
                    format_args!(
                        "{what}: {:?} is none of {}{}",
                        text.value,
                        known.join(", "),
                        did_you_mean(&text.value, known)
                    ),
                ),
            }
        }
        words
    }

    fn parsed<T>(
        &mut self,
        node: &Place<Node>,
        what: &str,
        parse: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Vec<T> {
        let texts = self.texts(node, what);
        self.each(texts, what, parse)
    }

    fn each<T>(
        &mut self,
        texts: Vec<Entry<String>>,
        what: &str,
        parse: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Vec<T> {
        let mut all = Vec::with_capacity(texts.len());
        for text in texts {
            match parse(&text.value) {
                Ok(one) => all.push(one),
                Err(why) => self.wrong(&text, format_args!("{what}: {:?} {why}", text.value)),
            }
        }
        all
    }

    fn texts(&mut self, node: &Place<Node>, what: &str) -> Vec<Entry<String>> {
        let Node::List(items) = &node.value else {
            self.wrong(node, format_args!("{what} has to be a list like [a, b], or be left out"));
            return Vec::new();
        };
        if items.len() > MAX_ENTRIES {
            self.wrong(
                node,
                format_args!("{what} has {} entries; at most {MAX_ENTRIES} are read", items.len()),
            );
            return Vec::new();
        }
        items.iter().filter_map(|item| self.text(item, what)).collect()
    }

    fn text(&mut self, node: &Place<Node>, what: &str) -> Option<Entry<String>> {
        match &node.value {
            Node::Text(text) if text.len() <= MAX_TEXT => {
                Some(Place { value: text.clone(), line: node.line, column: node.column })
            }
            Node::Text(_) => {
                self.wrong(node, format_args!("{what}: a text is longer than {MAX_TEXT} bytes"));
                None
            }
            Node::Null | Node::Bool(_) | Node::Number | Node::List(_) | Node::Map(_) => {
                self.wrong(
                    node,
                    format_args!("{what}: this is no text; write it in quotes if it is meant as one"),
                );
                None
            }
        }
    }

    fn flag(&mut self, node: &Place<Node>, what: &str) -> bool {
        if let Node::Bool(flag) = node.value {
            return flag;
        }
        self.wrong(node, format_args!("{what} has to be true or false"));
        false
    }

    fn map(&mut self, node: &Place<Node>, what: &str, known: &[&str]) -> Option<Map> {
        let Node::Map(map) = &node.value else {
            self.wrong(node, format_args!("{what} has to be a map with the keys {}", known.join(", ")));
            return None;
        };
        for (at, (key, _)) in map.iter().enumerate() {
            if !known.contains(&key.value.as_str()) {
                let near = did_you_mean(&key.value, known);
                self.wrong(key, format_args!("{what} has no key {:?}{near}", key.value));
            } else if map.iter().take(at).any(|(before, _)| before.value == key.value) {
                self.wrong(key, format_args!("the key {} is there twice", key.value));
            }
        }
        Some(map.clone())
    }

    fn needed<'a>(&mut self, at: &Place<Node>, map: &'a Map, key: &str) -> Option<&'a Place<Node>> {
        let found = find(map, key);
        if found.is_none() {
            self.wrong(at, format_args!("the key {key} is missing"));
        }
        found
    }
}

fn find<'a>(map: &'a Map, key: &str) -> Option<&'a Place<Node>> {
    map.iter().find(|(found, _)| found.value == key).map(|(_, value)| value)
}

const ROLES: [&str; 3] = ["admin", "edit", "view"];

fn role(text: &str) -> Option<Role> {
    Role::ALL.into_iter().find(|role| role.subresource() == text)
}

fn did_you_mean(text: &str, known: &[&str]) -> String {
    lint::nearest(text, known).map(|near| format!("; did you mean {near}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests;
