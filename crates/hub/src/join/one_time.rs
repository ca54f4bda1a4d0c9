//! A manifest at an address of its own, once: `https://<gateway>/register/<token>.yaml`, so that one command is all that
//! has to be carried to the cluster that shall join.
//!
//! An agent.yaml holds secrets, and objects of the parent may hold none that others can read. So it waits in the
//! invitation's Secret encrypted (AES-256-GCM), under a key that comes from the token in the address, and the token is
//! nowhere but in the answer to whoever invited. Making the manifest anew for whoever comes would need no cipher, but
//! would have to make new secrets for a stranger and keep all that the person had asked for; this keeps one text.
//!
//! Promises: whoever reads the Secret, or a backup of the parent, learns nothing of the manifest; it is given away once,
//! decided by the Secret's resourceVersion; using the invitation or deleting it ends the address, for the text is in
//! that Secret (registration writes it anew, without). The token is in no log, metric, audit line or error.
//!
//! What it does not promise: that the right one fetches it. Programs that look at links for people (chats, mail filters)
//! use the address up; then the agent.yaml has been seen, and the invitation is to be deleted.

use std::collections::BTreeMap;
use std::time::Duration;

use api::names::SYSTEM_NAMESPACE;
use api::secret::Secret as Hidden;
use api::status::{Reason, Status};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::Semaphore;

use super::invitation::random;
use super::stored::{SECRET_TYPE, is_id, secret_name};
use super::{Join, has_code, hex, in_time, parent_trouble};
use crate::refusal::Refusal;

/// Below it, manifests.
pub const PATH: &str = "/register/";
/// Begins each token, so that leaks are found by whoever scans for them.
const PREFIX: &str = "twm-";
/// What follows the token, for people and for kubectl.
const SUFFIX: &str = ".yaml";
/// How long an address is good, at most as long as the invitation: what is not fetched now is fetched by nobody.
const TTL: Duration = Duration::from_hours(1);
/// Largest manifest that is kept; a Secret holds 1 MiB. One with two large CA bundles has to be carried as a file.
const MAX_SEALED: usize = 512 * 1024;
/// Questions to the parent at once, each for a Secret and perhaps a write; strangers wait here instead of there.
static FETCHING: Semaphore = Semaphore::const_new(16);
/// How often whoever loses a race reads again.
const RACE_TRIES: usize = 3;

const SEALED: &str = "manifest";
const HASH: &str = "manifest-hash";
const EXPIRES: &str = "manifest-expires";
const FETCHED: &str = "manifest-fetched";

/// What somebody shows, or is given: the invitation's id and 256 random bits.
#[derive(Debug)]
struct Token {
    id: String,
    whole: Hidden,
}

impl Token {
    fn new(id: &str) -> Result<Self, Refusal> {
        let whole = format!("{PREFIX}{id}-{}", URL_SAFE_NO_PAD.encode(random::<32>()?));
        Ok(Self { id: id.to_owned(), whole: Hidden::from(whole) })
    }

    /// Reads the last part of an address.
    fn read(shown: &Hidden) -> Option<Self> {
        let whole = shown.reveal().strip_suffix(SUFFIX)?;
        let (id, random) = whole.strip_prefix(PREFIX)?.split_once('-')?;
        let is_random = URL_SAFE_NO_PAD.decode(random).is_ok_and(|bytes| bytes.len() == 32);
        (is_id(id) && is_random).then(|| Self { id: id.to_owned(), whole: Hidden::from(whole.to_owned()) })
    }

    /// Two values that tell nothing of each other: by the one the token is known, with the other the text is sealed.
    /// 256 random bits need no slower function than a hash.
    fn derived(&self, purpose: &str) -> [u8; 32] {
        let mut out = [0; 32];
        let text = Hidden::from(format!("towline one-time manifest v1: {purpose}\n{}", self.whole.reveal()));
        out.copy_from_slice(digest(&SHA256, text.reveal().as_bytes()).as_ref());
        out
    }

    fn hash(&self) -> String {
        hex(&self.derived("hash"))
    }

    /// There is one text for each key, ever: so the nonce may be the same each time.
    fn cipher(&self) -> Option<(LessSafeKey, Nonce)> {
        let key = UnboundKey::new(&AES_256_GCM, &self.derived("key")).ok()?;
        Some((LessSafeKey::new(key), Nonce::assume_unique_for_key([0; 12])))
    }

    fn seal(&self, manifest: &Hidden) -> Option<Vec<u8>> {
        let (key, nonce) = self.cipher()?;
        let mut bytes = manifest.reveal().as_bytes().to_vec();
        key.seal_in_place_append_tag(nonce, Aad::from(self.id.as_bytes()), &mut bytes).ok()?;
        Some(bytes)
    }

    fn open(&self, mut sealed: Vec<u8>) -> Option<Hidden> {
        let (key, nonce) = self.cipher()?;
        let opened = key.open_in_place(nonce, Aad::from(self.id.as_bytes()), &mut sealed).ok()?;
        String::from_utf8(opened.to_vec()).ok().map(Hidden::from)
    }
}

/// What somebody who shows a token meets.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// The sealed text.
    Waiting(Vec<u8>),
    /// It was given away then.
    Fetched(String),
    /// It was good until then.
    Expired(Timestamp),
    /// No such address, or it is not told.
    Nothing,
}

fn look(secret: Option<&Secret>, token: &Token, now: Timestamp) -> Found {
    let Some(secret) = secret.filter(|secret| secret.type_.as_deref() == Some(SECRET_TYPE)) else {
        return Found::Nothing;
    };
    let bytes = |key: &str| secret.data.as_ref()?.get(key).map(|value| &value.0);
    let text = |key: &str| std::str::from_utf8(bytes(key)?).ok();
    // In constant time: the hash is what stands between a stranger and the text.
    let known = text(HASH).is_some_and(|hash| Hidden::from(hash.to_owned()) == Hidden::from(token.hash()));
    let expires: Option<Timestamp> = text(EXPIRES).and_then(|text| text.parse().ok());
    match (known, text(FETCHED), expires, bytes(SEALED)) {
        (true, Some(at), _, _) => Found::Fetched(at.to_owned()),
        (true, None, Some(expires), _) if expires <= now => Found::Expired(expires),
        (true, None, Some(_), Some(sealed)) => Found::Waiting(sealed.clone()),
        _ => Found::Nothing,
    }
}

impl Join {
    /// Leaves the manifest of an invitation that was just made at an address of its own, and gives that address.
    ///
    /// # Errors
    /// There is no gateway with an address, or the parent's API did not play along.
    pub(super) async fn offer(
        &self,
        id: &str,
        manifest: &Hidden,
        expires: Timestamp,
        now: Timestamp,
    ) -> Result<Hidden, Refusal> {
        let doing = "keeping the manifest";
        let url = self
            .settings
            .gateway
            .as_ref()
            .and_then(|gateway| gateway.url.as_deref())
            .ok_or_else(no_gateway)?;
        let token = Token::new(id)?;
        let failed = |why: &str| {
            Status::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                Reason::InternalError,
                format!("{doing} failed: {why}"),
            )
        };
        let sealed = token.seal(manifest).ok_or_else(|| failed("it cannot be encrypted"))?;
        if sealed.len() > MAX_SEALED {
            return Err(super::invalid(
                "spec.oneTimeAddress: the manifest is too large for it; take it as a file",
            ));
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let name = secret_name(id);
        let mut secret = secrets.get(&name).await.map_err(|error| parent_trouble(doing, &error))?;
        let more = [
            (SEALED, sealed),
            (HASH, token.hash().into_bytes()),
            (EXPIRES, expires.min(now + TTL).to_string().into_bytes()),
        ];
        let more = more.map(|(key, bytes)| (key.to_owned(), ByteString(bytes)));
        secret.data.get_or_insert_default().extend(more);
        secrets
            .replace(&name, &PostParams::default(), &secret)
            .await
            .map_err(|error| parent_trouble(doing, &error))?;
        Ok(Hidden::from(format!("{url}{PATH}{}{SUFFIX}", token.whole.reveal())))
    }

    /// The manifest at this address; the second one who comes gets none, unless the first has only looked (HEAD). `may` is
    /// asked when it is this one's turn: those before it may have used up what strangers have.
    ///
    /// # Errors
    /// What `may` says; 404 for an address that is none, 410 for one that was used or has expired.
    pub async fn fetch(
        &self,
        shown: &Hidden,
        only_look: bool,
        may: impl Fn() -> Result<(), Refusal>,
    ) -> Result<Hidden, Refusal> {
        let token = Token::read(shown).ok_or_else(nothing)?;
        in_time("fetching the manifest", Box::pin(self.fetch_unhurried(&token, only_look, may))).await
    }

    async fn fetch_unhurried(
        &self,
        token: &Token,
        only_look: bool,
        may: impl Fn() -> Result<(), Refusal>,
    ) -> Result<Hidden, Refusal> {
        let doing = "fetching the manifest";
        // Never closed, so an error cannot happen; no permit would still be no harm.
        let _turn = FETCHING.acquire().await.ok();
        may()?;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let name = secret_name(&token.id);
        for _ in 0..RACE_TRIES {
            let found = secrets.get_opt(&name).await.map_err(|error| parent_trouble(doing, &error))?;
            let sealed = match look(found.as_ref(), token, Timestamp::now()) {
                Found::Waiting(sealed) => sealed,
                Found::Fetched(at) => {
                    return Err(gone(&format!("it was fetched at {at}, and is given away once")));
                }
                Found::Expired(at) => return Err(gone(&format!("it was good until {at}"))),
                Found::Nothing => return Err(nothing()),
            };
            // Before it is used up.
            let (Some(manifest), Some(secret)) = (token.open(sealed), found) else { return Err(nothing()) };
            if only_look {
                return Ok(manifest);
            }
            match secrets.replace(&name, &PostParams::default(), &used_up(secret)).await {
                Ok(_) => {
                    tracing::info!(invitation = token.id, "the manifest of an invitation was fetched");
                    return Ok(manifest);
                }
                // Somebody was faster: what they did is seen in the next round.
                Err(error) if has_code(&error, 409) || has_code(&error, 404) => {}
                Err(error) => return Err(parent_trouble(doing, &error)),
            }
        }
        let busy = "the invitation is being changed by somebody else; try again";
        Err(Status::new(StatusCode::SERVICE_UNAVAILABLE, Reason::ServiceUnavailable, busy)
            .retry_after(1)
            .into())
    }
}

/// The public part of what somebody shows, for the audit log.
pub fn public(shown: &Hidden) -> Option<String> {
    Token::read(shown).map(|token| format!("{PATH}{}", token.id))
}

/// The Secret without the text, and with when that was.
fn used_up(mut secret: Secret) -> Secret {
    let data: &mut BTreeMap<String, ByteString> = secret.data.get_or_insert_default();
    data.remove(SEALED);
    data.insert(
        FETCHED.to_owned(),
        ByteString(Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()),
    );
    secret
}

/// There is no address to offer.
pub(super) fn no_gateway() -> Refusal {
    super::invalid(
        "spec.oneTimeAddress: this hub has no gateway with an address; start it with --gateway-listen and --gateway-url",
    )
}

/// The same for all that may not be told apart.
fn nothing() -> Refusal {
    Refusal::NotFound(
        "there is no manifest at this address: its invitation was used or taken back, or there never was one; make another: kubectl towline register NAME"
            .to_owned(),
    )
}

fn gone(why: &str) -> Refusal {
    let message = format!(
        "the manifest at this address is gone: {why}; if that was not you, delete the invitation; make another: kubectl towline register NAME"
    );
    Status::new(StatusCode::GONE, Reason::Expired, message).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef";

    fn shown(text: &str) -> Hidden {
        Hidden::from(text.to_owned())
    }

    fn address(token: &Token) -> Hidden {
        shown(&format!("{}{SUFFIX}", token.whole.reveal()))
    }

    #[test]
    fn a_token_is_read_as_it_was_made_and_nothing_else_is_one() {
        let token = Token::new(ID).unwrap();
        let text = address(&token);
        let read = Token::read(&text).unwrap();
        assert_eq!((&read.id, &read.whole), (&token.id, &token.whole));
        assert_eq!(public(&text).unwrap(), "/register/0123456789abcdef");
        let random = "A".repeat(43);
        for bad in [
            String::new(),
            format!("twm-{ID}-{random}"),
            format!("twl-{ID}-{random}.yaml"),
            format!("twm-../../x-{random}.yaml"),
            format!("twm-{ID}-{}.yaml", "A".repeat(42)),
            format!("twm-{ID}-{random}A.yaml"),
            format!("twm-{ID}-{}.yaml", "%".repeat(43)),
            format!("twm-{ID}{random}.yaml"),
        ] {
            assert!(Token::read(&shown(&bad)).is_none(), "{bad}");
        }
    }

    #[test]
    fn what_is_sealed_is_opened_by_its_token_alone_and_the_hash_is_no_key() {
        let (token, other) = (Token::new(ID).unwrap(), Token::new(ID).unwrap());
        let sealed = token.seal(&shown("apiVersion: v1")).unwrap();
        assert!(!sealed.windows(10).any(|part| part == b"apiVersion"));
        assert_eq!(token.open(sealed.clone()), Some(shown("apiVersion: v1")));
        assert_eq!(other.open(sealed.clone()), None);
        let moved = Token { id: "fedcba9876543210".to_owned(), whole: token.whole.clone() };
        assert_eq!(moved.open(sealed.clone()), None, "for another invitation");
        let mut changed = sealed;
        changed[0] ^= 1;
        assert_eq!(token.open(changed), None);
        assert_ne!(token.derived("hash"), token.derived("key"));
        assert!(!format!("{token:?}").contains(&token.whole.reveal()[25..]));
    }
}
