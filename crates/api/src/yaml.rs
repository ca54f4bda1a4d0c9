//! JSON values as block-style YAML that a person can read. Pure.
//!
//! Promise: what a YAML 1.1 or 1.2 parser reads is the value that was given, whatever stands in its strings.
//! A string is written plain only if it is on a short allow-list of shapes; every other one is double-quoted
//! ASCII with escapes, so no text can end a scalar, start a document, a tag, an anchor or a comment.

use std::fmt::Write as _;

use serde_json::Value;

/// Longest key that needs no mark of its own (YAML 1.2 section 7.4.2).
const LONGEST_KEY: usize = 1024;

/// One document, without `---`, ending in a newline.
pub fn document(value: &Value) -> String {
    let mut out = String::new();
    if is_block(value) {
        block(&mut out, value, 0);
    } else {
        scalar(&mut out, value);
        out.push('\n');
    }
    out
}

/// A comment line. Control characters would end it, so none is let through.
pub fn comment(text: &str) -> String {
    let text: String = text.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect();
    format!("# {text}\n")
}

fn block(out: &mut String, value: &Value, indent: usize) {
    if let Value::Object(map) = value {
        for (position, (key, value)) in map.iter().enumerate() {
            // The first key of a map inside a list stands right behind the dash.
            if position > 0 || !out.ends_with("- ") {
                pad(out, indent);
            }
            let begin = out.len();
            string(out, key);
            if out.len() - begin > LONGEST_KEY {
                out.insert_str(begin, "? ");
                out.push('\n');
                pad(out, indent);
            }
            out.push(':');
            nested(out, value, indent);
        }
    } else if let Value::Array(list) = value {
        for item in list {
            pad(out, indent);
            out.push_str("- ");
            if item.is_object() && is_block(item) {
                block(out, item, indent + 2);
            } else {
                // A list in a list: rare enough to be written in flow style, which is JSON.
                scalar(out, item);
                out.push('\n');
            }
        }
    }
}

fn nested(out: &mut String, value: &Value, indent: usize) {
    if is_block(value) {
        out.push('\n');
        // Lists stand at the same depth as their key, as kubectl writes them.
        block(out, value, if value.is_object() { indent + 2 } else { indent });
    } else {
        out.push(' ');
        scalar(out, value);
        out.push('\n');
    }
}

/// Whether this takes lines of its own.
fn is_block(value: &Value) -> bool {
    value.as_object().is_some_and(|map| !map.is_empty())
        || value.as_array().is_some_and(|list| !list.is_empty())
}

fn scalar(out: &mut String, value: &Value) {
    match value {
        Value::String(text) => string(out, text),
        Value::Array(list) => {
            out.push('[');
            for (position, item) in list.iter().enumerate() {
                if position > 0 {
                    out.push_str(", ");
                }
                scalar(out, item);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (position, (key, item)) in map.iter().enumerate() {
                if position > 0 {
                    out.push_str(", ");
                }
                let begin = out.len();
                quoted(out, key);
                if out.len() - begin > LONGEST_KEY {
                    out.insert_str(begin, "? ");
                }
                out.push_str(": ");
                scalar(out, item);
            }
            out.push('}');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
    }
}

fn string(out: &mut String, text: &str) {
    if is_plain(text) { out.push_str(text) } else { quoted(out, text) }
}

/// Whether every parser reads this as a string without quotes: it starts with a letter, or a slash (a path);
/// has no character with a meaning in YAML; and is none of YAML 1.1's other spellings of booleans and null
/// (<https://yaml.org/type/bool.html>, <https://yaml.org/type/null.html>).
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'/');
    first
        && text.len() <= 256
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
        // `e1`, `inf` and their like are strings only because they do not start with a digit or dot.
        && !["inf", "nan", "infinity"].contains(&text.to_ascii_lowercase().as_str())
}

/// Double-quoted with the escapes of YAML 1.1 and 1.2. ASCII only: NEL, LS and PS are line breaks to some
/// parsers, and DEL and C1 are refused by others.
fn quoted(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(character),
            // Writing to a String cannot fail.
            other if u32::from(other) <= 0xffff => drop(write!(out, "\\u{:04X}", u32::from(other))),
            other => drop(write!(out, "\\U{:08X}", u32::from(other))),
        }
    }
    out.push('"');
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// With the reader that kube itself uses.
    fn read(text: &str) -> Value {
        serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
            "[-?:,\\[\\]{}#&*!|>'\"%@`~ \\n\\t\u{85}\u{2028}\u{feff}\u{7f}a-z0-9.]{0,12}"
                .prop_map(Value::from),
            prop_oneof![
                Just("yes"),
                Just("No"),
                Just("1e3"),
                Just("0x1f"),
                Just(".inf"),
                Just("---"),
                Just("<<")
            ]
            .prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map(".{1,10}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(value in any_json()) {
            let value = json!({ "value": value });
            prop_assert_eq!(read(&document(&value)), value);
        }

        #[test]
        fn a_comment_stays_one_line_of_ascii(text in ".{0,40}") {
            let comment = comment(&text);
            prop_assert!(comment.is_ascii() && comment.lines().count() == 1);
        }
    }

    #[test]
    fn a_key_that_is_too_long_for_one_line_is_marked_as_a_key() {
        for length in [1000, 1022, 1023, 1024, 1025, 4000] {
            for key in ["k".repeat(length), "é".repeat(length)] {
                for value in [
                    json!(1),
                    json!({ "a": [{ &key: { "b": 1 } }] }),
                    json!([[{ &key: 1, "c": [] }]]),
                    json!(["x"]),
                ] {
                    let value = json!({ "a": 1, &key: value, "z": 2 });
                    assert_eq!(read(&document(&value)), value, "{length}");
                }
            }
        }
    }

    #[test]
    fn the_form_is_the_usual_one() {
        let value = json!({"a": [{"b": 1, "c": ["x", "yes"]}, "z: 1"], "e": {}, "f": {"g": null}});
        let text = "a:\n- b: 1\n  c:\n  - x\n  - \"yes\"\n- \"z: 1\"\ne: {}\nf:\n  g: null\n";
        assert_eq!(document(&value), text);
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
            "inf",
            "=",
            "<<",
            "---",
            "...",
        ] {
            let text = document(&json!({ "v": string }));
            assert!(text.starts_with("v: \"") && text.is_ascii(), "{text:?}");
            assert_eq!(read(&text)["v"], *string, "{string:?}");
        }
        for string in ["abc", "/pki/ca.crt", "v1.33.1", "SHA256/abc-def_g"] {
            assert_eq!(document(&json!(string)), format!("{string}\n"));
        }
    }
}
