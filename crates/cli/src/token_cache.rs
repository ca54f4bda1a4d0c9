//! Tokens that `exec-credential` has got, until they are to be renewed: one file each, mode 0600, in a folder that is
//! its owner's alone. What is not as it should be counts as not there.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use api::secret::{Secret, revealed};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::out_file::OutFile;

/// Most files that are looked at when old ones are cleared away.
const MAX_CLEARED: usize = 1000;
/// Largest file that is read: a token, its id and two times, with room.
const MAX_FILE: u64 = 64 * 1024;
/// Longest time in seconds for which a token is handed out without asking the hub, however long it is good. Somebody
/// may have revoked it, or be somebody else by now: a kubeconfig with a command of its own says not who.
const MOST_KEPT: i64 = 600;

/// A token with its times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Kept {
    /// The token.
    #[serde(serialize_with = "revealed")]
    pub(crate) token: Secret,
    /// Its id, to revoke it by; empty if the hub named none.
    pub(crate) credential: String,
    /// Its end.
    pub(crate) expires: Timestamp,
    /// When to get another: after two thirds of its life, and [`MOST_KEPT`] at most.
    pub(crate) renew: Timestamp,
}

impl Kept {
    /// A token that was issued now.
    pub(crate) fn new(token: Secret, credential: String, now: Timestamp, expires: Timestamp) -> Self {
        let life = expires.as_second() - now.as_second();
        let kept = (life * 2 / 3).min(MOST_KEPT);
        let renew = Timestamp::from_second(now.as_second() + kept).unwrap_or(expires);
        Self { token, credential, expires, renew }
    }
}

/// The place of one token.
#[derive(Debug)]
pub(crate) struct TokenCache {
    file: Option<PathBuf>,
}

impl TokenCache {
    /// For what these words name: parent, caller, cluster and identity. Whatever differs in one of them has a file of
    /// its own. The hash may be another after an update; then the tokens are got again.
    pub(crate) fn new(folder: Option<PathBuf>, words: &[&str]) -> Self {
        let mut hasher = DefaultHasher::new();
        words.hash(&mut hasher);
        let file = folder.map(|folder| folder.join(format!("{:016x}.json", hasher.finish())));
        Self { file }
    }

    /// What is kept, if it is good at all.
    pub(crate) fn read(&self, now: Timestamp) -> Option<Kept> {
        let kept = read(self.file.as_deref()?)?;
        (now < kept.expires).then_some(kept)
    }

    /// Keeps it, and clears away what has expired.
    pub(crate) fn write(&self, kept: &Kept, now: Timestamp) -> Result<(), Failure> {
        let Some(file) = &self.file else { return Ok(()) };
        let Some(folder) = file.parent() else { return Ok(()) };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        // What fails here, fails again when the file is made.
        drop(builder.create(folder));
        clear(folder, now);
        let text = serde_json::to_string(kept).unwrap_or_default();
        OutFile::create(file, true)?.finish(&text)
    }
}

/// Takes away what is kept of a credential that was revoked.
pub(crate) fn forget(folder: &Path, credential: &str) {
    remove(folder, |kept| kept.is_some_and(|kept| kept.credential == credential));
}

fn read(file: &Path) -> Option<Kept> {
    let there = fs::symlink_metadata(file).ok()?;
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&there.permissions()) & 0o077 != 0 {
        return None;
    }
    if !there.is_file() || there.len() > MAX_FILE {
        return None;
    }
    serde_json::from_str(&fs::read_to_string(file).ok()?).ok()
}

fn clear(folder: &Path, now: Timestamp) {
    remove(folder, |kept| kept.is_none_or(|kept| kept.expires <= now));
}

fn remove(folder: &Path, unwanted: impl Fn(Option<Kept>) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_CLEARED) {
        let path = entry.path();
        let is_ours = path.extension().is_some_and(|extension| extension == "json");
        if is_ours && unwanted(read(&path)) {
            drop(fs::remove_file(path));
        }
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("towline-cli-cache-{name}-{}", std::process::id())))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn token(text: &str) -> Kept {
        Kept::new(Secret::from(text.to_owned()), format!("id-{text}"), at(0), at(3600))
    }

    #[test]
    fn a_token_is_kept_for_its_owner_alone() {
        let folder = Folder::new("kept");
        let cache = TokenCache::new(Some(folder.0.join("towline")), &["parent", "edge-1"]);
        assert_eq!(cache.read(at(0)), None);
        let kept = token("twl-a");
        cache.write(&kept, at(0)).unwrap();
        let file = cache.file.as_ref().unwrap();
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(cache.read(at(3599)), Some(kept));
        assert_eq!(cache.read(at(3600)), None);
        assert!(!file.display().to_string().contains("edge-1"));
        let other = TokenCache::new(Some(folder.0.join("towline")), &["parentedge", "-1"]);
        assert_eq!(other.read(at(0)), None, "another cluster");
        assert_eq!(TokenCache::new(None, &["a"]).read(at(0)), None);
        assert!(TokenCache::new(None, &["a"]).write(&token("t"), at(0)).is_ok());
    }

    #[test]
    fn what_others_could_read_or_have_put_there_counts_as_not_there() {
        let folder = Folder::new("mode");
        let cache = TokenCache::new(Some(folder.0.clone()), &["a"]);
        cache.write(&token("twl-a"), at(0)).unwrap();
        let file = cache.file.clone().unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(cache.read(at(0)), None);
        fs::remove_file(&file).unwrap();
        let elsewhere = folder.0.join("elsewhere");
        fs::write(&elsewhere, serde_json::to_string(&token("twl-b")).unwrap()).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert_eq!(cache.read(at(0)), None);
        fs::remove_file(&file).unwrap();
        fs::write(&file, "{\"token\":").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(cache.read(at(0)), None);
        cache.write(&token("twl-c"), at(0)).unwrap();
        assert_eq!(cache.read(at(0)).unwrap().token.reveal(), "twl-c");
    }

    #[test]
    fn a_token_is_handed_out_for_two_thirds_of_its_life_and_for_ten_minutes_at_most() {
        for (life, kept) in [(60, 40), (600, 400), (900, 600), (3600, 600), (30 * 86_400, 600)] {
            let made = Kept::new(Secret::from("t".to_owned()), "id".to_owned(), at(0), at(life));
            assert_eq!((made.renew, made.expires), (at(kept), at(life)));
        }
    }

    #[test]
    fn what_was_revoked_is_forgotten_and_what_an_older_version_kept_too() {
        let folder = Folder::new("revoked");
        let cache = |name: &str| TokenCache::new(Some(folder.0.clone()), &[name]);
        for name in ["a", "b"] {
            cache(name).write(&token(name), at(0)).unwrap();
        }
        forget(&folder.0, "id-a");
        assert_eq!(cache("a").read(at(0)), None);
        assert!(cache("b").read(at(0)).is_some());
        forget(&folder.0.join("nowhere"), "id-b");
        // Without its id, and to be renewed after weeks.
        let mut older = serde_json::to_value(token("b")).unwrap();
        older.as_object_mut().unwrap().remove("credential");
        fs::write(cache("b").file.unwrap(), older.to_string()).unwrap();
        assert_eq!(cache("b").read(at(0)), None);
    }

    #[test]
    fn what_has_expired_is_cleared_away() {
        let folder = Folder::new("clear");
        let old = TokenCache::new(Some(folder.0.clone()), &["old"]);
        old.write(&token("twl-a"), at(0)).unwrap();
        let new = TokenCache::new(Some(folder.0.clone()), &["new"]);
        let kept = Kept::new(Secret::from("b".to_owned()), "id".to_owned(), at(4000), at(8000));
        new.write(&kept, at(4000)).unwrap();
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
        assert!(new.read(at(4000)).is_some());
    }
}
