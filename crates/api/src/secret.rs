//! Text that must never be printed: tokens, invitation secrets, private keys.
//!
//! What keeps it from being printed is its type: there is no `Display` and no `Serialize`, `Debug` shows no content,
//! and comparing takes the same time wherever two texts differ. The memory is wiped on drop. Copies that a library
//! makes on the way to a socket are not: against those the processes forbid core dumps.

use std::fmt;
use std::hint::black_box;

use serde::{Deserialize, Serializer};
use zeroize::Zeroizing;

/// A secret text. It goes into a message only where a field says so with
/// `#[serde(serialize_with = "secret::revealed")]`.
#[derive(Clone, Default, Deserialize)]
#[serde(from = "String")]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text itself. Whoever calls this answers for where it goes.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Writes the text into a message whose very purpose is to carry it.
///
/// # Errors
/// The serializer's own.
pub fn revealed<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.reveal())
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

/// In a time that depends on the lengths alone: nobody learns from an answer how far a guess was right.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        let (one, two) = (self.0.as_bytes(), other.0.as_bytes());
        // Each step is hidden from the optimizer, which would otherwise leave at the first difference.
        let differ = one.iter().zip(two).fold(0, |differ, (one, two)| black_box(differ | (one ^ two)));
        one.len() == two.len() && differ == 0
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::from(text.to_owned())
    }

    #[test]
    fn debug_shows_nothing() {
        let secret = secret("hunter2");
        assert!(!format!("{secret:?} {:?}", Some(&secret)).contains("hunter2"));
    }

    #[test]
    fn only_the_same_text_is_equal() {
        assert_eq!(secret("hunter2"), secret("hunter2"));
        assert_eq!(secret(""), Secret::default());
        for other in ["", "hunter", "hunter22", "hunter3", "Hunter2", "hunter2\0"] {
            assert_ne!(secret("hunter2"), secret(other), "{other:?}");
            assert_ne!(secret(other), secret("hunter2"), "{other:?}");
        }
    }

    #[test]
    fn a_message_carries_it_only_where_its_field_says_so() {
        #[derive(serde::Serialize)]
        struct Message {
            #[serde(serialize_with = "revealed")]
            token: Secret,
        }
        let text = serde_json::to_string(&Message { token: secret("hunter2") }).unwrap();
        assert_eq!(text, r#"{"token":"hunter2"}"#);
        assert_eq!(serde_json::from_str::<Secret>(r#""hunter2""#).unwrap(), secret("hunter2"));
    }
}
