//! What must not leave with a support bundle. [`Clean`] is the only text that a bundle takes, and there are two ways to
//! make one, both through the same pass: from text, and from an object, of which the parts that hold other people's
//! words are cut first. Pure.
//!
//! It rather cuts too much: a bundle without a value is a nuisance, a secret in a ticket is an incident.

use api::kubeconfig::TOKEN_PREFIX;
use serde_json::{Map, Value};

/// What stands where something was cut.
const CUT: &str = "[cut]";
/// A run of letters and digits, both cases, that is so long is no word: 32 characters of base64 are 192 bits.
const SECRET_RUN: usize = 32;
/// 256 bits in hexadecimal: a hash of a secret, if not one itself. A digest of an image says so before it.
const HEX_RUN: usize = 64;
/// Words after which a value is one that nobody should see.
const TELLING: [&str; 9] = [
    "token",
    "password",
    "passwd",
    "secret",
    "authorization",
    "api-key",
    "apikey",
    "client-key-data",
    "cookie",
];

/// Text that was looked through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clean(String);

impl Clean {
    /// Text of any kind.
    pub(crate) fn text(text: &str) -> Self {
        let text = without_pem(text);
        let mut out = String::with_capacity(text.len());
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                out.push('\n');
            }
            out.push_str(&line_of(line));
        }
        Self(out)
    }

    /// An object or a list of objects.
    pub(crate) fn object(value: &Value) -> Self {
        let mut value = value.clone();
        cut(&mut value);
        // String by string: a value that is no string is none of a secret, and the whole stays JSON.
        look_through(&mut value);
        Self(serde_json::to_string_pretty(&value).unwrap_or_default())
    }

    /// At most so many bytes of it, with a word about the rest.
    pub(crate) fn at_most(&self, bytes: usize) -> Self {
        if self.0.len() <= bytes {
            return self.clone();
        }
        let mut end = bytes;
        while !self.0.is_char_boundary(end) {
            end -= 1;
        }
        Self(format!("{}\n[the rest is cut]\n", &self.0[..end]))
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Cuts what holds other people's words: Secrets as a whole, values of environment variables and arguments, annotations
/// that repeat the object, managed fields.
fn cut(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.get("kind").is_some_and(|kind| kind == "Secret" || kind == "SecretList") {
                *value = Value::String(CUT.to_owned());
                return;
            }
            object.remove("managedFields");
            if let Some(Value::Object(annotations)) = object.get_mut("annotations") {
                annotations.retain(|key, _| !key.ends_with("/last-applied-configuration"));
            }
            for list in ["env", "args", "command"] {
                if let Some(Value::Array(items)) = object.get_mut(list) {
                    cut_words(items);
                }
            }
            for inner in object.values_mut() {
                cut(inner);
            }
            cut_telling(object);
            cut_pair(object);
        }
        Value::Array(items) => items.iter_mut().for_each(cut),
        Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Null => {}
    }
}

fn look_through(value: &mut Value) {
    match value {
        Value::String(text) => *text = Clean::text(text).0,
        Value::Array(items) => items.iter_mut().for_each(look_through),
        Value::Object(object) => object.values_mut().for_each(look_through),
        Value::Number(_) | Value::Bool(_) | Value::Null => {}
    }
}

/// Of `--client-secret=x` as of `--client-secret`, `x`.
fn cut_words(items: &mut [Value]) {
    let mut telling = false;
    for item in items {
        let word = item.as_str().unwrap_or_default();
        let value_follows = word.starts_with('-') && !word.contains('=') && is_telling(word);
        if telling && !word.starts_with('-') && item.is_string() {
            *item = Value::String(CUT.to_owned());
        } else {
            cut_word(item);
        }
        telling = value_follows;
    }
}

/// A header of a probe, or whatever else has a name and a value.
fn cut_pair(object: &mut Map<String, Value>) {
    let telling = object.get("name").and_then(Value::as_str).is_some_and(is_telling);
    if let Some(value) = object.get_mut("value").filter(|value| telling && value.is_string()) {
        *value = Value::String(CUT.to_owned());
    }
}

fn is_telling(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('_', "-");
    TELLING.iter().any(|word| name.contains(word))
}

/// An environment variable keeps its name, an argument what stands before its `=`.
fn cut_word(item: &mut Value) {
    match item {
        Value::Object(variable) => {
            if let Some(value) = variable.get_mut("value") {
                *value = Value::String(CUT.to_owned());
            }
        }
        Value::String(word) => {
            if let Some((name, _)) = word.split_once('=') {
                *word = format!("{name}={CUT}");
            }
        }
        Value::Array(_) | Value::Number(_) | Value::Bool(_) | Value::Null => {}
    }
}

/// A field whose very name says what it holds.
fn cut_telling(object: &mut Map<String, Value>) {
    for (key, value) in object.iter_mut() {
        let key = key.to_ascii_lowercase();
        if value.is_string() && TELLING.iter().any(|word| key.ends_with(word)) {
            *value = Value::String(CUT.to_owned());
        }
    }
}

/// PEM blocks of any kind, also those whose line ends are escaped, and those that have no end.
fn without_pem(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    const END: &str = "-----END ";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(BEGIN) {
        out.push_str(&rest[..start]);
        out.push_str(CUT);
        let block = &rest[start + BEGIN.len()..];
        rest = match block.find(END) {
            // Behind the end line: "-----END X-----".
            Some(end) => {
                let tail = &block[end + END.len()..];
                tail.find("-----").map_or("", |dashes| &tail[dashes + 5..])
            }
            None => "",
        };
    }
    out.push_str(rest);
    out
}

fn line_of(line: &str) -> String {
    let line = without_userinfo(line);
    let line = without_runs(&line);
    let line = after(&line, "bearer ");
    let line = after(&line, "basic ");
    TELLING.iter().fold(line, |line, word| assigned(&line, word))
}

/// `https://user:password@host`: a password, or a token in the place of a name.
fn without_userinfo(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, behind)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        let end =
            behind.find(|c: char| c.is_whitespace() || "/?#\"'\\<>".contains(c)).unwrap_or(behind.len());
        rest = match behind[..end].rfind('@') {
            Some(at) => {
                out.push_str(CUT);
                &behind[at..]
            }
            None => behind,
        };
    }
    out.push_str(rest);
    out
}

fn is_run(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_+/".contains(&byte)
}

/// How many bytes at the beginning are one run: the characters of base64, and its padding, which is at the end alone;
/// elsewhere `=` stands between a name and a value.
fn run_length(bytes: &[u8]) -> usize {
    let body = bytes.iter().take_while(|byte| is_run(**byte)).count();
    body + bytes[body..].iter().take_while(|byte| **byte == b'=').count()
}

/// JWTs, tokens of the hub, and whatever is too random for a word. A fingerprint is none: it is there to be compared.
fn without_runs(line: &str) -> String {
    let bytes = line.as_bytes();
    let mut out = String::with_capacity(line.len());
    let mut at = 0;
    while at < bytes.len() {
        let length = run_length(&bytes[at..]);
        if length == 0 {
            // Not ASCII, or a separator: whole characters, so that none is torn.
            let next = line[at..].chars().next().map_or(1, char::len_utf8);
            out.push_str(&line[at..at + next]);
            at += next;
            continue;
        }
        let run = &line[at..at + length];
        let fingerprint = out.ends_with("SHA256:") || out.ends_with("sha256:");
        if !fingerprint && is_secret(run) {
            out.push_str(CUT);
            at += length;
            // The other parts of a JWT.
            while is_jwt(run) && bytes.get(at) == Some(&b'.') {
                at += 1 + run_length(&bytes[at + 1..]);
            }
        } else {
            out.push_str(run);
            at += length;
        }
    }
    out
}

/// Base64 of `{"`, at the beginning or behind a slash.
fn is_jwt(run: &str) -> bool {
    run.split('/').any(|part| part.starts_with("eyJ") && part.len() > 10)
}

fn is_secret(run: &str) -> bool {
    if run.contains(TOKEN_PREFIX) && run.len() > TOKEN_PREFIX.len() + 8 {
        return true;
    }
    if is_jwt(run) {
        return true;
    }
    if run.len() >= HEX_RUN && run.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return true;
    }
    run.len() >= SECRET_RUN
        && run.bytes().any(|byte| byte.is_ascii_uppercase())
        && run.bytes().any(|byte| byte.is_ascii_lowercase())
        && run.bytes().any(|byte| byte.is_ascii_digit())
}

/// The word behind `marker`, whatever the case of that.
fn after(line: &str, marker: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let mut out = String::with_capacity(line.len());
    let mut at = 0;
    while let Some(found) = lower[at..].find(marker) {
        let start = at + found + marker.len();
        out.push_str(&line[at..start]);
        let end = line[start..].find(|c: char| c.is_whitespace() || "\"',;".contains(c));
        let end = end.map_or(line.len(), |end| start + end);
        // Prose goes on after the word: "bearer token" loses a word, which is no loss.
        if end > start {
            out.push_str(CUT);
        }
        at = end;
    }
    out.push_str(&line[at..]);
    out
}

/// Where a quoted text ends, with what escapes its quote at the end: blanks are part of it. One without an end goes on to
/// the end of the line.
fn closing(text: &str, quote: char, escaped: bool) -> usize {
    for (at, _) in text.match_indices(quote) {
        if escaped || !text[..at].ends_with('\\') {
            return text[..at].trim_end_matches('\\').len();
        }
    }
    text.len()
}

/// The value behind `word=`, `word: ` or `"word": `.
fn assigned(line: &str, word: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let mut out = String::with_capacity(line.len());
    let mut at = 0;
    while let Some(found) = lower[at..].find(word) {
        let end_of_word = at + found + word.len();
        out.push_str(&line[at..end_of_word]);
        at = end_of_word;
        let rest = line[at..].trim_start_matches(['"', '\\', ' ']);
        if !rest.starts_with([':', '=']) {
            continue;
        }
        let value = rest[1..].trim_start_matches(' ');
        let unescaped = value.trim_start_matches('\\');
        let (value, end) = match unescaped.chars().next().filter(|first| "\"'".contains(*first)) {
            Some(quote) => {
                let inside = &unescaped[1..];
                (inside, closing(inside, quote, unescaped.len() < value.len()))
            }
            None => {
                let end = value.find(|c: char| c.is_whitespace() || "\"',;&".contains(c));
                (value, end.unwrap_or(value.len()))
            }
        };
        let start = line.len() - value.len();
        if end > 0 && !value.starts_with(['{', '[']) {
            out.push_str(&line[at..start]);
            out.push_str(CUT);
            at = start + end;
        }
    }
    out.push_str(&line[at..]);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// In no bundle.
    const CANARY: &str = "c4N4ryC4n4ry";

    fn clean(text: &str) -> String {
        Clean::text(text).as_str().to_owned()
    }

    #[test]
    fn no_canary_comes_through_in_a_log() {
        let long = format!("{CANARY}AbCdEfGhIjKlMnOpQrStUvWxYz0123456789");
        for line in [
            format!("Authorization: Bearer {CANARY}"),
            format!("authorization=Basic {CANARY}"),
            format!("got bearer {CANARY}, and went on"),
            format!("token=eyJhbGciOi.{CANARY}.{CANARY} next=word"),
            format!("a JWT eyJhbGciOiJ{CANARY}.eyJzdWIiOi{CANARY}.{CANARY}-_x of somebody"),
            format!("jwt=eyJhbGciOiJ.{CANARY}.x"),
            format!("GET /login/eyJhbGciOiJ{CANARY}.{CANARY}.{CANARY} HTTP/1.1"),
            format!("issued twl-{CANARY} to alice"),
            format!("GET /x?access_token={CANARY}&watch=true"),
            format!(r#"{{"token":"{CANARY}","client_secret": "{CANARY}"}}"#),
            format!(r#"escaped {{\"password\":\"{CANARY}\"}}"#),
            format!("invitation {long} was used"),
            format!("base64 {long}=="),
            format!("-----BEGIN EC PRIVATE KEY-----\n{CANARY}\n-----END EC PRIVATE KEY-----"),
            format!("-----BEGIN PRIVATE KEY-----\\n{CANARY}\\n-----END PRIVATE KEY-----"),
            format!("-----BEGIN PRIVATE KEY-----\n{CANARY}\nand the log was cut here"),
            format!("password: {CANARY}"),
            format!("PASSWORD = '{CANARY}'").replace('\'', ""),
            format!("PASSWORD = '{CANARY}'"),
            format!("password=\"correct {CANARY} horse\" next=word"),
            format!("password='correct {CANARY} horse'"),
            format!(r#"{{"password": "correct \"horse\" {CANARY}"}}"#),
            format!(r#"escaped {{\"password\":\"correct {CANARY}\"}}"#),
            format!("password=\"correct {CANARY} and the log was cut here"),
            format!("proxy http://alice:{CANARY}@proxy:3128/ is used"),
            format!("clone https://{CANARY}@git.example.com/a and https://bob:{CANARY}@git.example.com"),
            format!("cookie: session={CANARY}"),
        ] {
            assert!(!clean(&line).contains(CANARY), "{line} became {}", clean(&line));
        }
    }

    #[test]
    fn a_hash_in_hexadecimal_is_cut() {
        assert_eq!(clean(&format!("hash={}", "c4".repeat(32))), "hash=[cut]");
        assert_eq!(clean(&format!("revision {}", "c4".repeat(20))), format!("revision {}", "c4".repeat(20)));
    }

    #[test]
    fn what_helps_stays() {
        for line in [
            "2026-01-01T00:00:00Z  INFO agent::dial: connected tunnel=\"t-1\" hub=\"hub-7c9d8f-xyz\" version=\"0.1.0\"",
            "key=SHA256:AbCdEfGhIjKlMnOpQrStUvWxYz0123456789AbCdEfG",
            "cluster 6f0a1b1e-0000-4000-8000-000000000000 is Ready",
            "code=TWL-A003 reason=the parent shows another certificate",
            "secretName is clusternet-agent-cluster-registration",
            "/apis/proxies.clusternet.io/v1alpha1/sockets/6f0a1b1e-0000-4000-8000-000000000000/proxy/direct",
            "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "https://hub.example.com:8444/k8s/clusters/edge-1 mail alice@example.com",
            "äöü 北京 😀",
        ] {
            assert_eq!(clean(line), line);
        }
        assert_eq!(
            clean("before\n-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\nbehind"),
            "before\n[cut]\nbehind"
        );
    }

    #[test]
    fn no_canary_comes_through_in_an_object() {
        let object = json!({
            "kind": "Deployment",
            "metadata": { "name": "clusternet-hub", "managedFields": [{ "x": CANARY }], "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": CANARY, "kept": "yes" } },
            "spec": { "template": { "spec": { "containers": [{
                "name": "hub", "env": [{ "name": "TOWLINE_X", "value": CANARY }], "args": [format!("--x={CANARY}")],
                "command": ["/towline-hub", "--client-secret", CANARY, "--verbose", "kept"],
                "livenessProbe": { "httpGet": { "path": "/livez", "httpHeaders": [
                    { "name": "X-Api-Key", "value": CANARY }, { "name": "X_AUTH_TOKEN", "value": CANARY },
                    { "name": "Accept", "value": "text/kept" }] } } },
                { "name": "x", "args": ["--token", CANARY, "--password", "--kept-flag"] }] } } },
            "items": [{ "kind": "Secret", "data": { "a": CANARY } }],
            "token": CANARY, "bearerToken": CANARY, "automountServiceAccountToken": true,
            "message": format!("it said token={CANARY} and twl-{CANARY}"), "password": CANARY,
        });
        let text = Clean::object(&object).as_str().to_owned();
        assert!(!text.contains(CANARY), "{text}");
        for kept in [
            "clusternet-hub",
            "TOWLINE_X",
            "/towline-hub",
            "\"kept\": \"yes\"",
            "\"kept\"\n",
            "text/kept",
            "--kept-flag",
            "--client-secret",
        ] {
            assert!(text.contains(kept), "no {kept}: {text}");
        }
        assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_a_token_never_comes_through(before in "\\PC{0,40}", behind in "\\PC{0,40}") {
            let text = clean(&format!("{before} twl-0123456789abcdefCANARY {behind}"));
            prop_assert!(!text.contains("CANARY"));
        }
    }
}
