//! The file: YAML, one level, keys with one value each. Pure.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy, Spanned};

/// A file has a few dozen keys; one that has more than this is another file.
const MAX_NODES: usize = 4096;

/// One key of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: u64,
    /// As it is written, without quotes; or what is wrong with it.
    pub(super) value: Result<String, &'static str>,
}

/// Reads it; keys in the order of their lines.
///
/// # Errors
/// It is not YAML, or not keys with values. Quotes nothing from it but keys.
pub(super) fn read(text: &str) -> Result<Vec<Entry>, String> {
    let values = match parse(text)? {
        Value::Null => return Ok(Vec::new()),
        Value::Object(values) => values,
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            return Err("the file holds no keys with values, like \"log-filter: debug\"".to_owned());
        }
    };
    let lines: BTreeMap<String, Spanned<Value>> = parse(text)?;
    // Each as the text that it is in the file: 007 is the name of somebody, not a number.
    let texts: BTreeMap<String, String> = parse(text).unwrap_or_default();
    let mut entries: Vec<Entry> = values
        .into_iter()
        .map(|(key, value)| Entry {
            line: lines.get(&key).map_or(0, |at| at.referenced.line()),
            value: scalar(&value, texts.get(&key)),
            key,
        })
        .collect();
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

fn scalar(value: &Value, text: Option<&String>) -> Result<String, &'static str> {
    let text = match (value, text) {
        (Value::Array(_) | Value::Object(_), _) => return Err("it is one value, no list and no map"),
        (Value::Null, _) => String::new(),
        (_, Some(text)) => text.clone(),
        (Value::String(text), None) => text.clone(),
        (Value::Bool(_) | Value::Number(_), None) => value.to_string(),
    };
    if text.is_empty() {
        return Err("it is empty; leave the line out, or give it a value");
    }
    if text.chars().any(char::is_control) {
        return Err("it holds a line break or another control character");
    }
    Ok(text)
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 8,
            flow_nesting_limit: 8,
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
            max_aliases: 0,
            max_anchors: 0,
            max_documents: 1,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let why: String = error.to_string().chars().filter(|c| !c.is_control()).take(256).collect();
        format!("the file is not YAML: {why}")
    })
}
