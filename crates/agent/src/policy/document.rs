//! YAML as a tree in which each value knows its place, so that all mistakes of a policy can be told at once with
//! their lines. Pure. Anchors, aliases, merge keys, several documents and deep nesting are refused: a policy needs
//! none of them, and each is a way to make few bytes into many or to hide what is meant.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy, Spanned};

/// Deepest nesting: a ConfigMap, its data, a policy in it needs three.
const MAX_DEPTH: usize = 16;
/// Most values in one document: the largest policy that fits has about so many.
const MAX_NODES: usize = 20_000;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    /// Its text is not kept: nothing in a policy is a number.
    Number,
    Text(String),
    List(Vec<Place<Self>>),
    /// In the order of the file, duplicates included.
    Map(Vec<(Place<String>, Place<Self>)>),
}

/// Something and its line and column, both from 1; 0 where they are not known.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place<T> {
    pub(super) value: T,
    pub(super) line: u64,
    pub(super) column: u64,
}

/// Reads one document.
///
/// # Errors
/// Where and why it is none, in one line.
pub(super) fn read(text: &str) -> Result<Place<Node>, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
            max_aliases: 0,
            max_anchors: 0,
            max_documents: 1,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
    };
    let node: Spanned<Node> = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| api::status::printable(&error.to_string(), 512))?;
    Ok(node.into())
}

impl<T> From<Spanned<T>> for Place<T> {
    fn from(spanned: Spanned<T>) -> Self {
        let (line, column) = (spanned.referenced.line(), spanned.referenced.column());
        Self { value: spanned.value, line, column }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Number)
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Node>>()? {
            list.push(item.into());
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some((key, value)) = entries.next_entry::<Spanned<String>, Spanned<Node>>()? {
            map.push((key.into(), value.into()));
        }
        Ok(Node::Map(map))
    }
}
