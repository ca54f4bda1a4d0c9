//! Who is there, and which version they speak: the one message each side sends before the byte stream.
//! Pure. Values that were parsed here are within their limits and printable; unknown fields are ignored,
//! so that a newer side may add some. Nothing here is trusted: the hub compares the cluster id with the
//! credential that opened the connection.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    limits::{HELLO_CAPABILITIES_MAX, HELLO_MAX, HELLO_STRING_MAX, PROTOCOL_MAX, PROTOCOL_MIN},
    names::CAPABILITY_EXTENDED_CONNECT,
};

/// What an agent says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// The versions of the tunnel protocol that the agent speaks.
    pub protocol: ProtocolRange,
    /// The cluster it says it serves.
    pub cluster_id: String,
    /// The agent process; another one with the same cluster id is another instance.
    pub instance: String,
    /// The release of the agent.
    pub agent_version: String,
    /// What the agent can do beyond plain requests.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// When its credential ends, so that the hub can renew it in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_expires: Option<Timestamp>,
}

/// Versions from `min` to `max`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolRange {
    /// The oldest.
    pub min: u32,
    /// The newest.
    pub max: u32,
}

/// How the hub answers a hello it accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    /// The version both sides speak from here on.
    pub protocol: u32,
    /// The hub's name for this tunnel, for the logs of both sides.
    pub tunnel_id: String,
    /// The hub replica.
    pub hub_id: String,
    /// The release of the hub.
    pub hub_version: String,
    /// What the hub can do beyond plain requests.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

/// How the hub answers a hello it does not accept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloRefusal {
    /// For the agent's program.
    pub reason: RefusalReason,
    /// For the agent's operator: what, why, what to do.
    pub message: String,
}

impl std::fmt::Display for HelloRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.reason, self.message)
    }
}

/// Why a hub refuses a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalReason {
    /// No version in common.
    ProtocolVersion,
    /// The hello cannot be read.
    InvalidHello,
    /// The credential belongs to another cluster.
    WrongCluster,
    /// Another instance serves this cluster already.
    Conflict,
    /// The hub is about to stop; try another replica.
    Draining,
    /// A reason that a newer hub has and this build does not know.
    #[serde(other)]
    Other,
}

/// Why a hello or welcome cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// Above the limit.
    #[error("the message has {0} bytes, more than the {HELLO_MAX} that are allowed")]
    TooLong(usize),
    /// Not JSON, or not the fields that are expected.
    #[error("the message is not what was expected: {0}")]
    Json(serde_json::Error),
    /// Empty, too long or not printable ASCII.
    #[error("{0} is not a printable ASCII string of 1 to {HELLO_STRING_MAX} characters")]
    Text(&'static str),
    /// Too many capabilities.
    #[error("{0} capabilities are named, more than the {HELLO_CAPABILITIES_MAX} that are allowed")]
    Capabilities(usize),
    /// An impossible range of versions.
    #[error("the protocol range {min} to {max} is empty or starts below 1")]
    Range {
        /// As sent.
        min: u32,
        /// As sent.
        max: u32,
    },
    /// The hub chose a version that the agent did not offer.
    #[error("the hub chose protocol version {0}, which was not offered")]
    NotOffered(u32),
}

impl Hello {
    /// The hello of this build.
    pub fn new(
        cluster_id: impl Into<String>,
        instance: impl Into<String>,
        agent_version: impl Into<String>,
    ) -> Self {
        Self {
            protocol: ProtocolRange { min: PROTOCOL_MIN, max: PROTOCOL_MAX },
            cluster_id: cluster_id.into(),
            instance: instance.into(),
            agent_version: agent_version.into(),
            capabilities: vec![CAPABILITY_EXTENDED_CONNECT.to_owned()],
            credential_expires: None,
        }
    }

    /// Whether the agent named this capability.
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|named| named == capability)
    }

    /// Reads a hello.
    ///
    /// # Errors
    /// When it is too long, not JSON, or a value is out of its limits.
    pub fn parse(message: &[u8]) -> Result<Self, HelloError> {
        let hello: Self = from_json(message)?;
        hello.validate()?;
        Ok(hello)
    }

    /// Writes a hello.
    ///
    /// # Errors
    /// When a value is out of its limits: the hub would refuse it.
    pub fn encode(&self) -> Result<Bytes, HelloError> {
        self.validate()?;
        to_json(self)
    }

    fn validate(&self) -> Result<(), HelloError> {
        let ProtocolRange { min, max } = self.protocol;
        if min == 0 || max < min {
            return Err(HelloError::Range { min, max });
        }
        check_text("clusterId", &self.cluster_id)?;
        check_text("instance", &self.instance)?;
        check_text("agentVersion", &self.agent_version)?;
        check_capabilities(&self.capabilities)
    }
}

impl Welcome {
    /// The welcome of this build to a hello, with the newest version that both speak.
    ///
    /// # Errors
    /// The refusal to send when there is no common version; its message lists those of the hub.
    pub fn answering(
        hello: &Hello,
        tunnel_id: impl Into<String>,
        hub_id: impl Into<String>,
        hub_version: impl Into<String>,
    ) -> Result<Self, HelloRefusal> {
        Ok(Self {
            protocol: newest_common(hello.protocol)?,
            tunnel_id: tunnel_id.into(),
            hub_id: hub_id.into(),
            hub_version: hub_version.into(),
            capabilities: vec![CAPABILITY_EXTENDED_CONNECT.to_owned()],
        })
    }

    /// Writes a welcome.
    ///
    /// # Errors
    /// When a value is out of its limits: the agent would not accept it.
    pub fn encode(&self) -> Result<Bytes, HelloError> {
        self.validate()?;
        to_json(self)
    }

    fn validate(&self) -> Result<(), HelloError> {
        check_text("tunnelId", &self.tunnel_id)?;
        check_text("hubId", &self.hub_id)?;
        check_text("hubVersion", &self.hub_version)?;
        check_capabilities(&self.capabilities)
    }
}

impl HelloRefusal {
    /// A refusal; the message is cut and made printable, so that it can always be sent.
    pub fn new(reason: RefusalReason, message: &str) -> Self {
        Self { reason, message: printable(message) }
    }

    /// The refusal of a hello that cannot be read.
    pub fn invalid(error: &HelloError) -> Self {
        Self::new(RefusalReason::InvalidHello, &error.to_string())
    }

    /// Writes a refusal.
    ///
    /// # Errors
    /// Never for one that [`HelloRefusal::new`] made.
    pub fn encode(&self) -> Result<Bytes, HelloError> {
        to_json(&RefusedMessage { refused: Some(self.clone()) })
    }
}

/// Reads what a hub answered to `hello`.
///
/// # Errors
/// When it is too long, not JSON, a value is out of its limits, or the version was not offered.
pub fn parse_answer(hello: &Hello, message: &[u8]) -> Result<Result<Welcome, HelloRefusal>, HelloError> {
    let refused: RefusedMessage = from_json(message)?;
    if let Some(HelloRefusal { reason, message }) = refused.refused {
        return Ok(Err(HelloRefusal::new(reason, &message)));
    }
    let welcome: Welcome = from_json(message)?;
    welcome.validate()?;
    let ProtocolRange { min, max } = hello.protocol;
    if !(min..=max).contains(&welcome.protocol) {
        return Err(HelloError::NotOffered(welcome.protocol));
    }
    Ok(Ok(welcome))
}

/// The newest version in `offered` that this build speaks.
fn newest_common(offered: ProtocolRange) -> Result<u32, HelloRefusal> {
    let newest = offered.max.min(PROTOCOL_MAX);
    if newest >= offered.min.max(PROTOCOL_MIN) {
        return Ok(newest);
    }
    let supported = (PROTOCOL_MIN..=PROTOCOL_MAX).map(|v| v.to_string()).collect::<Vec<_>>().join(", ");
    Err(HelloRefusal::new(
        RefusalReason::ProtocolVersion,
        &format!(
            "the agent speaks tunnel protocol {} to {}, this hub speaks {supported}; upgrade the older side",
            offered.min, offered.max
        ),
    ))
}

/// The form of a refusal on the wire. A welcome has no such field.
#[derive(Serialize, Deserialize)]
struct RefusedMessage {
    #[serde(default)]
    refused: Option<HelloRefusal>,
}

fn from_json<T: DeserializeOwned>(message: &[u8]) -> Result<T, HelloError> {
    if message.len() > HELLO_MAX {
        return Err(HelloError::TooLong(message.len()));
    }
    serde_json::from_slice(message).map_err(HelloError::Json)
}

fn to_json<T: Serialize>(message: &T) -> Result<Bytes, HelloError> {
    let bytes = serde_json::to_vec(message).map_err(HelloError::Json)?;
    if bytes.len() > HELLO_MAX {
        return Err(HelloError::TooLong(bytes.len()));
    }
    Ok(bytes.into())
}

fn check_capabilities(capabilities: &[String]) -> Result<(), HelloError> {
    if capabilities.len() > HELLO_CAPABILITIES_MAX {
        return Err(HelloError::Capabilities(capabilities.len()));
    }
    capabilities.iter().try_for_each(|capability| check_text("a capability", capability))
}

/// These strings end up in logs, metrics and conditions: no control character, no terminal escape.
fn check_text(name: &'static str, text: &str) -> Result<(), HelloError> {
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if text.is_empty() || text.len() > HELLO_STRING_MAX || !printable {
        return Err(HelloError::Text(name));
    }
    Ok(())
}

/// Text of a peer, fit for a log: control and other unusual characters become `?`, the rest is cut.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .take(HELLO_STRING_MAX)
        .map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};
    use serde_json::{Value, json};

    use super::*;

    const HELLO: &str = r#"{"protocol":{"min":1,"max":1},"clusterId":"c-1","instance":"i-1","agentVersion":"v0.1.0","capabilities":["extended-connect"]}"#;

    /// A valid hello with one field changed.
    fn hello_with(field: &str, value: Value) -> Vec<u8> {
        let mut hello: Value = serde_json::from_str(HELLO).unwrap();
        hello[field] = value;
        serde_json::to_vec(&hello).unwrap()
    }

    #[test]
    fn a_hello_is_these_bytes() {
        let mut hello = Hello::new("c-1", "i-1", "v0.1.0");
        assert_eq!(hello.encode().unwrap(), HELLO);
        hello.credential_expires = Some("2026-11-22T10:00:00Z".parse().unwrap());
        let expected = HELLO.replace("t\"]}", "t\"],\"credentialExpires\":\"2026-11-22T10:00:00Z\"}");
        assert_eq!(hello.encode().unwrap(), expected);
    }

    #[test]
    fn a_welcome_and_a_refusal_are_these_bytes() {
        let hello = Hello::new("c-1", "i-1", "v0.1.0");
        let welcome = Welcome::answering(&hello, "t-1", "hub-0", "v0.1.0").unwrap();
        assert_eq!(
            welcome.encode().unwrap(),
            r#"{"protocol":1,"tunnelId":"t-1","hubId":"hub-0","hubVersion":"v0.1.0","capabilities":["extended-connect"]}"#
        );
        let refusal = HelloRefusal::new(RefusalReason::Conflict, "no\u{1b}[31m");
        let bytes = refusal.encode().unwrap();
        assert_eq!(bytes, r#"{"refused":{"reason":"Conflict","message":"no?[31m"}}"#);
        assert_eq!(parse_answer(&hello, &bytes).unwrap(), Err(refusal));
        assert_eq!(parse_answer(&hello, &welcome.encode().unwrap()).unwrap(), Ok(welcome));
    }

    #[test]
    fn a_hello_out_of_its_limits_is_refused() {
        let long = "x".repeat(HELLO_STRING_MAX + 1);
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("empty", b"".to_vec()),
            ("garbage", b"\x00\xff\xfe".to_vec()),
            ("http again", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
            ("an array", b"[]".to_vec()),
            ("two values", format!("{HELLO}{HELLO}").into_bytes()),
            ("too long", format!("{HELLO}{}", " ".repeat(HELLO_MAX)).into_bytes()),
            ("deep", "[".repeat(10_000).into_bytes()),
            ("deep unknown", format!(r#"{{"x":{}"#, "[".repeat(10_000)).into_bytes()),
            ("duplicate key", HELLO.replacen('{', r#"{"clusterId":"c-2","#, 1).into_bytes()),
            ("no protocol", hello_with("protocol", Value::Null)),
            ("version 0", hello_with("protocol", json!({"min": 0, "max": 1}))),
            ("backwards", hello_with("protocol", json!({"min": 2, "max": 1}))),
            ("huge int", hello_with("protocol", json!({"min": 1, "max": 1_u64 << 40}))),
            ("negative", hello_with("protocol", json!({"min": -1, "max": 1}))),
            ("float", hello_with("protocol", json!({"min": 1.0, "max": 1}))),
            ("empty id", hello_with("clusterId", json!(""))),
            ("long id", hello_with("clusterId", json!(long))),
            ("escape in version", hello_with("agentVersion", json!("v1\u{1b}]0;x\u{7}"))),
            ("newline in instance", hello_with("instance", json!("a\nb"))),
            ("not ASCII", hello_with("instance", json!("ä"))),
            ("number for text", hello_with("instance", json!(1))),
            ("33 capabilities", hello_with("capabilities", json!(vec!["x"; 33]))),
            ("empty capability", hello_with("capabilities", json!([""]))),
            ("no time", hello_with("credentialExpires", json!("soon"))),
        ];
        for (name, message) in cases {
            assert!(Hello::parse(&message).is_err(), "{name}");
        }
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let hello = Hello::parse(&hello_with("later", json!({"a": [1]}))).unwrap();
        assert_eq!(hello, Hello::new("c-1", "i-1", "v0.1.0"));
        assert!(hello.can(CAPABILITY_EXTENDED_CONNECT) && !hello.can("fly"));
    }

    #[test]
    fn the_newest_common_version_is_chosen_or_the_list_is_told() {
        let cases = [((1, 1), Some(1)), ((1, 7), Some(1)), ((2, 7), None)];
        for ((min, max), expected) in cases {
            let chosen = newest_common(ProtocolRange { min, max });
            assert_eq!(chosen.as_ref().ok().copied(), expected, "{min}..{max}");
            if let Err(refusal) = chosen {
                assert_eq!(refusal.reason, RefusalReason::ProtocolVersion);
                assert!(refusal.message.contains("this hub speaks 1;"), "{}", refusal.message);
            }
        }
    }

    #[test]
    fn an_answer_that_does_not_fit_the_hello_is_an_error() {
        let hello = Hello::new("c-1", "i-1", "v0.1.0");
        let mut welcome = Welcome::answering(&hello, "t-1", "hub-0", "v0.1.0").unwrap();
        for protocol in [0, 2] {
            welcome.protocol = protocol;
            let answer = parse_answer(&hello, &welcome.encode().unwrap());
            assert!(matches!(answer, Err(HelloError::NotOffered(p)) if p == protocol));
        }
        assert!(parse_answer(&hello, b"{}").is_err());
        let unknown = br#"{"refused":{"reason":"Moon","message":"full"}}"#;
        let refusal = parse_answer(&hello, unknown).unwrap().unwrap_err();
        assert_eq!(refusal.reason, RefusalReason::Other);
    }

    #[test]
    fn a_long_refusal_is_cut() {
        let refusal = HelloRefusal::new(RefusalReason::Other, &"ü".repeat(100_000));
        assert_eq!(refusal.message, "?".repeat(HELLO_STRING_MAX));
        assert!(refusal.encode().is_ok());
    }

    fn text() -> impl Strategy<Value = String> {
        vec(b' '..=b'~', 1..=HELLO_STRING_MAX).prop_map(|bytes| String::from_utf8(bytes).unwrap())
    }

    proptest! {
        #[test]
        fn every_valid_hello_round_trips(
            (min, more) in (1_u32..100, 0_u32..100),
            (cluster_id, instance, agent_version) in (text(), text(), text()),
            capabilities in vec("[a-z-]{1,64}", 0..=HELLO_CAPABILITIES_MAX),
            expires in option::of(0_i64..4_000_000_000),
        ) {
            let hello = Hello {
                protocol: ProtocolRange { min, max: min + more },
                cluster_id, instance, agent_version, capabilities,
                credential_expires: expires.map(|second| Timestamp::from_second(second).unwrap()),
            };
            prop_assert_eq!(Hello::parse(&hello.encode().unwrap()).unwrap(), hello);
        }

        #[test]
        fn no_message_makes_the_parsers_panic(message in vec(any::<u8>(), 0..512)) {
            let _checked = Hello::parse(&message);
            let _checked = parse_answer(&Hello::new("c", "i", "v"), &message);
        }
    }
}
