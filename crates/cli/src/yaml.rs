//! JSON values as YAML text, in block style, for kubeconfigs and `-o yaml`. Any string that could mean
//! anything else to some YAML reader is double-quoted, so that what is read is what was written. Pure.

use serde_json::{Map, Value};

/// The value as one YAML document, with a line end.
pub(crate) fn document(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => object(&mut out, map, 0),
        Value::Array(items) if !items.is_empty() => array(&mut out, items, 0),
        Value::Object(_)
        | Value::Array(_)
        | Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_) => {
            out.push_str(&scalar(value));
            out.push('\n');
        }
    }
    out
}

fn object(out: &mut String, map: &Map<String, Value>, indent: usize) {
    for (index, (key, value)) in map.iter().enumerate() {
        // The first key of an object inside a list stands on the line of the dash.
        if index > 0 || out.is_empty() || out.ends_with('\n') {
            pad(out, indent);
        }
        out.push_str(&text(key));
        out.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                object(out, inner, indent + 2);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                array(out, items, indent);
            }
            Value::Object(_)
            | Value::Array(_)
            | Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_) => {
                out.push(' ');
                out.push_str(&scalar(value));
                out.push('\n');
            }
        }
    }
}

fn array(out: &mut String, items: &[Value], indent: usize) {
    for (index, item) in items.iter().enumerate() {
        if index > 0 || out.is_empty() || out.ends_with('\n') {
            pad(out, indent);
        }
        out.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => object(out, map, indent + 2),
            Value::Array(inner) if !inner.is_empty() => array(out, inner, indent + 2),
            Value::Object(_)
            | Value::Array(_)
            | Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_) => {
                out.push_str(&scalar(item));
                out.push('\n');
            }
        }
    }
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(string) => text(string),
        // What is left is the same in YAML: null, true, 12, {} and [].
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) | Value::Array(_) => {
            value.to_string()
        }
    }
}

fn text(string: &str) -> String {
    if is_plain(string) { string.to_owned() } else { quoted(string) }
}

/// May the string stand without quotes? A letter or slash first, a narrow set of characters after, and none of
/// the words that YAML 1.1 readers (Go's included) take for something else.
fn is_plain(string: &str) -> bool {
    const WORDS: [&str; 9] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=+@".contains(&byte);
    string.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && !string.ends_with(':')
        && string.bytes().all(inside)
        && !WORDS.iter().any(|word| string.eq_ignore_ascii_case(word))
}

fn quoted(string: &str) -> String {
    let mut out = String::with_capacity(string.len() + 2);
    out.push('"');
    for character in string.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' | '\u{a1}'..='\u{2027}' | '\u{2070}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' => {
                out.push(character);
            }
            // Controls, line separators, bidirectional overrides, the byte order mark: never raw.
            other if u32::from(other) <= 0xffff => out.push_str(&format!("\\u{:04X}", u32::from(other))),
            other => out.push_str(&format!("\\U{:08X}", u32::from(other))),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use kube::config::Kubeconfig;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Reads YAML through kube's own reader: what it does not know of a kubeconfig it keeps as it is.
    fn read(text: &str) -> Value {
        let indented: String = text.lines().map(|line| format!("  {line}\n")).collect();
        Kubeconfig::from_yaml(&format!("probe:\n{indented}")).unwrap().other["probe"].clone()
    }

    #[test]
    fn a_kubeconfig_looks_as_people_expect() {
        let value = json!({
            "kind": "Config",
            "clusters": [{ "name": "edge-1", "cluster": { "server": "https://h:6443/apis/x" } }],
            "list": [["a", 1], [], {}],
            "empty": {}, "none": null, "flag": true,
        });
        assert_eq!(
            document(&value),
            "clusters:\n- cluster:\n    server: https://h:6443/apis/x\n  name: edge-1\nempty: {}\nflag: true\n\
             kind: Config\nlist:\n- - a\n  - 1\n- []\n- {}\nnone: null\n"
        );
        assert_eq!(read(&document(&value)), value);
    }

    #[test]
    fn what_could_be_misread_is_quoted() {
        for string in [
            "",
            "yes",
            "No",
            "NULL",
            "~",
            "12",
            "1e3",
            "0x1f",
            "1_000",
            "2024-01-01",
            "a: b",
            "a #b",
            "- a",
            "a:",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a",
            "a\nb",
            " a",
            "a ",
            "\u{0}",
            "\u{2028}",
            "\u{feff}",
            "\u{202e}",
            "\u{85}",
            "😀",
            "{}",
            "[]",
            ".inf",
            "=",
            "<<",
            "---",
            "...",
        ] {
            assert!(text(string).starts_with('"'), "{string:?}");
            assert_eq!(read(&document(&json!({ "v": string })))["v"], *string, "{string:?}");
        }
        for string in
            ["abc", "/pki/ca.crt", "https://a.b:6443/x", "c2VjcmV0==", "v1.33.1+k3s1", "SHA256:abc/def"]
        {
            assert_eq!(text(string), string);
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[a-zA-Z0-9:#=. -]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-z]{1,3}|\\PC{1,4}", inner, 0..4)
                    .prop_map(|map| Value::from(map.into_iter().collect::<Map<String, Value>>())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(value in any_value()) {
            prop_assert_eq!(read(&document(&value)), value);
        }
    }
}
