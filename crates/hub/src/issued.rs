//! Tokens that the hub has issued: each good for one cluster, one identity, until a given time. Known here by hash
//! alone; the watch on their Secrets fills this, and the request path only reads it.
//!
//! A token never has more rights than its owner at the moment of use: the parent is asked about the owner, for the
//! verb and for the role, as if they had come themselves. Deleting the Secret revokes it, with all that it opened.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use api::identity::Identity;
use api::mapping;
use api::names::{ClusterId, Role};
use api::secret::Secret;
use arc_swap::ArcSwapOption;
use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use runtime::stop::Stop;

use crate::refusal::Refusal;

pub mod create;
pub mod manage;
pub mod stored;
pub mod watch;

use stored::Stored;

/// Most tokens at once. About 1 KiB each here and 2 KiB in the parent's etcd.
pub const MAX_TOKENS: usize = 20_000;
/// Most tokens of one owner: a loop that asks for them ends itself, not everybody's.
pub const MAX_PER_OWNER: usize = 500;
/// The same with those that are over and not yet deleted, which the next round of the keeper does: a quarter of all is as
/// much as one owner shall keep others from having.
pub const MAX_KEPT_PER_OWNER: usize = MAX_TOKENS / 4;

/// SHA-256 of a token.
pub type Hash = [u8; 32];

/// The hash by which a token is known.
pub fn hash(token: &Secret) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.reveal().as_bytes()).as_ref());
    hash
}

/// One token, without the token.
#[derive(Debug)]
pub struct Issued {
    /// What its Secret says.
    pub stored: Stored,
    /// Whose rights it has.
    pub owner: Arc<Identity>,
    /// Cancelled when it is revoked.
    pub revoked: Stop,
    /// Seconds since 1970; 0 for never since this hub knows it.
    used: AtomicI64,
    /// The last use that stands in the Secret.
    written: AtomicI64,
}

impl Issued {
    fn new(stored: Stored) -> Self {
        Self {
            owner: Arc::new(stored.owner.clone()),
            stored,
            revoked: Stop::new(),
            used: AtomicI64::new(0),
            written: AtomicI64::new(0),
        }
    }

    /// Where it is good.
    pub fn cluster(&self) -> &ClusterId {
        &self.stored.cluster
    }

    /// Whether its time is over.
    pub fn expired(&self, now: Timestamp) -> bool {
        self.stored.expires <= now
    }

    /// Notes that somebody showed it.
    pub fn note_use(&self, now: Timestamp) {
        self.used.fetch_max(now.as_second(), Ordering::Relaxed);
    }

    /// When it was last used, as far as this hub knows.
    pub fn last_used(&self) -> Option<Timestamp> {
        let own = Timestamp::from_second(self.used.load(Ordering::Relaxed)).ok();
        own.filter(|own| own.as_second() > 0).max(self.stored.last_used)
    }

    /// A use that its Secret does not tell yet.
    fn unwritten_use(&self) -> Option<Timestamp> {
        let used = self.used.load(Ordering::Relaxed);
        let used = (used > self.written.load(Ordering::Relaxed)).then_some(used)?;
        Timestamp::from_second(used).ok()
    }

    fn wrote_use(&self, used: Timestamp) {
        self.written.fetch_max(used.as_second(), Ordering::Relaxed);
    }

    /// As whom the child shall know whoever shows it, with these roles of the owner.
    ///
    /// # Errors
    /// The owner has lost the role, or has no meaning in a child.
    pub fn child(&self, roles: &[Role], map_service_accounts: bool) -> Result<Identity, Refusal> {
        let Some(role) = self.stored.role else {
            return Ok(mapping::to_child(&self.owner, roles, map_service_accounts)?);
        };
        if !roles.contains(&role) {
            return Err(Refusal::Forbidden(format!(
                "this token has the role {} of {:?}, who no longer holds it on this cluster",
                role.subresource(),
                self.owner.user()
            )));
        }
        Ok(mapping::in_role(&self.owner, role, self.stored.service.as_deref(), map_service_accounts)?)
    }
}

/// All of them, by hash; nothing until the first list has arrived.
#[derive(Debug, Default)]
pub struct IssuedTokens {
    known: ArcSwapOption<HashMap<Hash, Arc<Issued>>>,
    /// Told whenever the above changes.
    changes: tokio::sync::watch::Sender<()>,
}

impl IssuedTokens {
    /// The token that somebody shows.
    ///
    /// # Errors
    /// 401 with which of the reasons it is; 503 while the tokens are not known yet.
    pub fn find(&self, token: &Secret, now: Timestamp) -> Result<Arc<Issued>, Refusal> {
        let known = self.known.load();
        let known = known.as_ref().ok_or(Refusal::Starting)?;
        let issued = known
            .get(&hash(token))
            .ok_or(Refusal::Unauthenticated("this token was revoked, or was never issued by this hub"))?;
        if issued.expired(now) {
            return Err(Refusal::Unauthenticated("this token has expired; ask for another kubeconfig"));
        }
        issued.note_use(now);
        Ok(Arc::clone(issued))
    }

    /// All that are known.
    pub fn all(&self) -> Vec<Arc<Issued>> {
        self.known.load().iter().flat_map(|known| known.values().cloned()).collect()
    }

    /// Waits until the watch has shown a token, or returns at once if nothing is known at all: then there is no watch
    /// yet that could show it.
    pub async fn until_known(&self, hash: &Hash) {
        let mut changes = self.changes.subscribe();
        while self.known.load().as_ref().is_some_and(|known| !known.contains_key(hash)) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes the place of what was known; what is gone, is revoked.
    pub fn replace(&self, all: impl IntoIterator<Item = Stored>) {
        let old = self.known.load_full().unwrap_or_default();
        let mut new = HashMap::new();
        let mut all: Vec<Stored> = all.into_iter().collect();
        if all.len() > MAX_TOKENS {
            // Several were made at once at the limit. What is over is the first to go.
            let now = Timestamp::now();
            all.sort_by_key(|stored| stored.expires <= now);
            all.truncate(MAX_TOKENS);
        }
        for stored in all {
            let issued = match old.get(&stored.hash).filter(|old| old.stored.same_but_used(&stored)) {
                Some(old) => Arc::clone(old),
                None => Arc::new(Issued::new(stored)),
            };
            new.insert(issued.stored.hash, issued);
        }
        let gone: Vec<_> = old
            .iter()
            .filter(|(hash, old)| new.get(*hash).is_none_or(|new| !Arc::ptr_eq(new, old)))
            .collect();
        self.known.store(Some(Arc::new(new)));
        self.changes.send_replace(());
        for (_, old) in gone {
            old.revoked.cancel();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    pub(crate) fn stored(token: &str, role: Option<Role>) -> Stored {
        Stored {
            id: "0123456789abcdef".to_owned(),
            hash: hash(&Secret::from(token.to_owned())),
            cluster: "c1".parse().unwrap(),
            owner: Identity::of("alice", &["dev"]).unwrap(),
            role,
            service: None,
            expires: "2030-01-02T03:04:05Z".parse().unwrap(),
            last_used: None,
        }
    }

    fn find(tokens: &IssuedTokens, token: &str, now: &str) -> Result<Arc<Issued>, String> {
        tokens
            .find(&Secret::from(token.to_owned()), now.parse().unwrap_or_default())
            .map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn of_more_than_there_may_be_those_that_are_over_go_first() {
        let now = Timestamp::now();
        let numbered = |number: usize, expires| Stored {
            id: format!("{number:016x}"),
            expires,
            ..stored(&number.to_string(), None)
        };
        let (over, good) = (now - Duration::from_secs(1), now + Duration::from_secs(3600));
        let all = (0..MAX_TOKENS).map(|number| numbered(number, over)).chain([numbered(MAX_TOKENS, good)]);
        let tokens = IssuedTokens::default();
        tokens.replace(all);
        assert_eq!(tokens.all().len(), MAX_TOKENS);
        assert!(tokens.find(&Secret::from(MAX_TOKENS.to_string()), now).is_ok());
    }

    #[test]
    fn a_token_is_good_until_it_expires_or_is_revoked() {
        let tokens = IssuedTokens::default();
        assert!(find(&tokens, "a", "2029-01-01T00:00:00Z").unwrap_err().contains("starting"));
        tokens.replace([stored("a", None)]);
        let issued = find(&tokens, "a", "2029-01-01T00:00:00Z").unwrap();
        assert!(issued.last_used().is_some());
        assert!(find(&tokens, "b", "2029-01-01T00:00:00Z").unwrap_err().contains("revoked"));
        assert!(find(&tokens, "a", "2030-01-02T03:04:05Z").unwrap_err().contains("expired"));
        // The same again changes nothing; another owner under the same hash is another token.
        tokens.replace([stored("a", None)]);
        assert!(!issued.revoked.is_cancelled());
        tokens.replace([]);
        assert!(issued.revoked.is_cancelled());
        assert!(find(&tokens, "a", "2029-01-01T00:00:00Z").is_err());
    }

    #[tokio::test]
    async fn whoever_issues_waits_until_the_watch_shows_the_token() {
        use futures::FutureExt as _;
        let tokens = IssuedTokens::default();
        let wanted = stored("a", None).hash;
        assert!(tokens.until_known(&wanted).now_or_never().is_some(), "there is no watch to wait for");
        tokens.replace([]);
        let mut waiting = Box::pin(tokens.until_known(&wanted));
        assert!(waiting.as_mut().now_or_never().is_none());
        tokens.replace([stored("b", None)]);
        assert!(waiting.as_mut().now_or_never().is_none(), "that was another one");
        tokens.replace([stored("b", None), stored("a", None)]);
        assert!(waiting.now_or_never().is_some());
    }

    #[test]
    fn a_token_has_what_its_owner_has_and_no_more() {
        let own = Issued::new(stored("a", None)).child(&[Role::View], false).unwrap();
        assert_eq!(
            (own.user(), own.groups()),
            ("alice", &["dev".to_owned(), "clusternet:view".to_owned()][..])
        );
        let view = Issued::new(stored("a", Some(Role::View)));
        let narrowed = view.child(&[Role::Admin, Role::View], false).unwrap();
        assert_eq!((narrowed.user(), narrowed.groups()), ("alice", &["clusternet:view".to_owned()][..]));
        assert!(view.child(&[Role::Admin], false).is_err(), "the role was taken away");
        let tool = Stored { service: Some("argo".to_owned()), ..stored("a", Some(Role::Edit)) };
        let tool = Issued::new(tool).child(&[Role::Edit], false).unwrap();
        assert_eq!(
            (tool.user(), tool.groups()),
            ("clusternet:service:argo", &["clusternet:edit".to_owned()][..])
        );
        assert!(mapping::refuse_in_child(&tool).is_ok());
    }
}
