//! One cluster among the other entries of a kubeconfig: its cluster, user and context are put in or replaced by name,
//! and all else stays as it is. Comments and the order of keys are lost, as with `kubectl config`; what was there before
//! is kept beside it.
//!
//! Never: an entry that somebody else made is replaced without --force; a file that is broken, or that has changed
//! meanwhile, is written; a half-written file is seen by anybody; others may read it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use api::yaml;
use kube::config::{Kubeconfig, NamedExtension};
use serde_json::{Map, Value, json};

use crate::args::shell_word;
use crate::config;
use crate::failure::{Exit, Failure};
use crate::out_file::OutFile;

/// Name of the extension by which entries from here are known. Kubernetes' clients keep extensions and ignore what
/// they do not know; minikube marks its own in this way.
const MARK: &str = "towline.io";
/// Largest kubeconfig that is read. The largest in the field, with a thousand clusters, have 5 MiB.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The three lists and what an entry of each holds.
const LISTS: [(&str, &str); 3] = [("clusters", "cluster"), ("users", "user"), ("contexts", "context")];

/// The parent of the current context, if that is one from here.
pub(crate) fn parent_of_current(kubeconfig: &Kubeconfig) -> Option<String> {
    let current = kubeconfig.current_context.as_deref()?;
    let parent = mark_of(kubeconfig, current)?.extension.get("parent")?.as_str()?.to_owned();
    let there = kubeconfig.contexts.iter().any(|context| context.name == parent);
    (there && !is_marked(kubeconfig, &parent)).then_some(parent)
}

/// Whether this context is from here, and so leads to a child.
pub(crate) fn is_marked(kubeconfig: &Kubeconfig, context: &str) -> bool {
    mark_of(kubeconfig, context).is_some()
}

fn mark_of<'a>(kubeconfig: &'a Kubeconfig, context: &str) -> Option<&'a NamedExtension> {
    let context = kubeconfig.contexts.iter().find(|named| named.name == context)?.context.as_ref()?;
    context.extensions.iter().flatten().find(|extension| extension.name == MARK)
}

/// A kubeconfig that is about to get entries.
#[derive(Debug)]
pub(crate) struct Merge {
    /// As it was named.
    named: PathBuf,
    /// Behind links.
    path: PathBuf,
    before: Option<String>,
    /// Whether the caller's kubeconfig is this file and no other.
    alone: bool,
    config: Map<String, Value>,
    _lock: Option<Lock>,
}

impl Merge {
    /// Reads the file, if there is one; with `write`, nobody who locks it writes it meanwhile. `others` are those that
    /// kubectl reads beside it.
    pub(crate) fn open(named: &Path, others: &[PathBuf], write: bool) -> Result<Self, Failure> {
        let lock = write.then(|| Lock::take(named)).transpose()?;
        // The file itself, not the link to it: people keep theirs in a repository.
        let path = fs::canonicalize(named).unwrap_or_else(|_| named.to_owned());
        let before = read(&path)?;
        let config = match before.as_deref().filter(|text| !is_empty(text)) {
            Some(text) => parsed(text).map_err(|what| broken(&path, &what))?,
            None => {
                Map::from_iter([("apiVersion".to_owned(), json!("v1")), ("kind".to_owned(), json!("Config"))])
            }
        };
        let alone = !others
            .iter()
            .any(|other| other.exists() && fs::canonicalize(other).ok().as_ref() != Some(&path));
        let merge = Self { named: named.to_owned(), path, before, alone, config, _lock: lock };
        for (list, _) in LISTS {
            let there = merge.config.get(list);
            if there.is_some_and(|there| !there.is_null() && !there.is_array()) {
                return Err(broken(&merge.path, &format!("{list} is no list")));
            }
        }
        Ok(merge)
    }

    fn entry(&self, list: &str, name: &str) -> Option<&Value> {
        self.config.get(list)?.as_array()?.iter().find(|entry| entry["name"] == name)
    }

    /// Whether nothing of this name is somebody else's.
    pub(crate) fn check(&self, name: &str) -> Result<(), Failure> {
        for (list, kind) in LISTS {
            let Some(entry) = self.entry(list, name) else { continue };
            if !extensions(&entry[kind]).any(|extension| extension["name"] == MARK) {
                let what = format!("{} has a {kind} {name:?} that is not from here", self.named.display());
                return Err(Failure::new(Exit::Error, what)
                    .next("add --force to replace it, or name another file: --out FILE"));
            }
        }
        Ok(())
    }

    /// What would be done, in words.
    pub(crate) fn plan(&self, name: &str, switch: bool) -> String {
        let there = LISTS.iter().any(|(list, _)| self.entry(list, name).is_some());
        let mut plan = format!(
            "{} cluster, user and context {}",
            if there { "replace" } else { "add" },
            shell_word(name)
        );
        if self.switches(switch) {
            let old =
                self.config.get("current-context").and_then(Value::as_str).filter(|old| !old.is_empty());
            plan.push_str(", and make it the current context");
            plan.push_str(
                &old.filter(|old| *old != name)
                    .map(|old| format!(" instead of {}", shell_word(old)))
                    .unwrap_or_default(),
            );
        }
        plan
    }

    /// Whether the entry becomes the current one. A kubeconfig that this has made shall be good for something; but the
    /// first file of several that names a current context names it for all of them.
    fn switches(&self, switch: bool) -> bool {
        switch || (self.alone && self.before.is_none() && !self.config.contains_key("current-context"))
    }

    /// Puts in the one cluster, user and context of a kubeconfig, under one name.
    pub(crate) fn put(
        &mut self,
        name: &str,
        made: &Value,
        parent: Option<&str>,
        switch: bool,
    ) -> Result<(), Failure> {
        let mark = json!({ "name": MARK, "extension": { "cluster": name, "parent": parent } });
        for (list, kind) in LISTS {
            let mut content = match kind {
                "context" => json!({ "cluster": name, "user": name }),
                _ => made[list][0][kind].clone(),
            };
            if !content.is_object() {
                return Err(Failure::new(Exit::Error, format!("what was made holds no {kind}")));
            }
            // The namespace that somebody has chosen for their own work.
            let namespace = self.entry(list, name).map(|entry| entry[kind]["namespace"].clone());
            if let Some(namespace) = namespace.filter(Value::is_string) {
                content["namespace"] = namespace;
            }
            let others = extensions(&content).filter(|extension| extension["name"] != MARK).cloned();
            content["extensions"] = others.chain([mark.clone()]).collect();
            self.replace(list, json!({ "name": name, kind: content }));
        }
        if self.switches(switch) {
            self.config.insert("current-context".to_owned(), json!(name));
        }
        Ok(())
    }

    fn replace(&mut self, list: &str, entry: Value) {
        let entries = self.config.entry(list).or_insert_with(|| json!([]));
        if entries.is_null() {
            *entries = json!([]);
        }
        let Some(entries) = entries.as_array_mut() else { return };
        match entries.iter_mut().find(|there| there["name"] == entry["name"]) {
            Some(there) => *there = entry,
            None => entries.push(entry),
        }
    }

    /// Writes the file in one go, and returns where that is kept which was there before.
    pub(crate) fn finish(self) -> Result<Option<PathBuf>, Failure> {
        let text = yaml::document(&Value::Object(self.config.clone()));
        self.check_written(&text)?;
        if read(&self.path)? != self.before {
            return Err(Failure::new(Exit::Error, format!("{} was changed meanwhile", self.named.display()))
                .next("repeat the command"));
        }
        if self.before.as_deref() == Some(&text) {
            return Ok(None);
        }
        let mut backup = None;
        if let Some(before) = self.before.as_deref().filter(|before| !is_empty(before)) {
            let path = suffixed(&self.path, ".towline-backup");
            OutFile::create(&path, true)?.finish(before)?;
            backup = Some(path);
        }
        OutFile::create(&self.path, true)?.finish(&text)?;
        Ok(backup)
    }

    /// Whether a client reads from the new text what it read from the old one, but for what was put in. YAML has
    /// scalars that one version reads as a text and another does not.
    fn check_written(&self, text: &str) -> Result<(), Failure> {
        let lost = || broken(&self.path, "it is written in a way that would not survive");
        if parsed(text).ok().as_ref() != Some(&self.config) {
            return Err(lost());
        }
        let read =
            |text: &str| -> Option<Value> { serde_json::to_value(Kubeconfig::from_yaml(text).ok()?).ok() };
        let new = read(text).ok_or_else(lost)?;
        let Some(before) = self.before.as_deref().filter(|before| !is_empty(before)) else { return Ok(()) };
        let old = read(before).ok_or_else(|| broken(&self.path, "it is no kubeconfig"))?;
        for (list, _) in LISTS {
            for entry in old[list].as_array().into_iter().flatten() {
                let kept = new[list].as_array().into_iter().flatten().any(|new| new == entry);
                let ours = self.entry(list, entry["name"].as_str().unwrap_or_default());
                let ours = ours.is_some_and(|ours| ours.to_string().contains(MARK));
                if !kept && !ours {
                    return Err(lost());
                }
            }
        }
        Ok(())
    }
}

fn extensions(content: &Value) -> impl Iterator<Item = &Value> {
    content["extensions"].as_array().into_iter().flatten()
}

fn parsed(text: &str) -> Result<Map<String, Value>, String> {
    let value: Value = serde_saphyr::from_str(text)
        // What a parser says quotes the file, and the file holds credentials.
        .map_err(|error| format!("it is no YAML of one document{}", config::place(&error.to_string())))?;
    if let Value::Object(map) = value { Ok(map) } else { Err("it is no kubeconfig".to_owned()) }
}

fn is_empty(text: &str) -> bool {
    text.lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#') || line.trim() == "---")
}

fn read(path: &Path) -> Result<Option<String>, Failure> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Error, format!("could not read {}: {error}", path.display()))
            .next("name another file: --out FILE")
    };
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&error)),
        Ok(there) if !there.is_file() => return Err(unreadable(&"it is no plain file")),
        Ok(there) if there.len() > MAX_FILE => {
            return Err(unreadable(&format!("it is over {MAX_FILE} bytes")));
        }
        Ok(_) => {}
    }
    fs::read_to_string(path).map(Some).map_err(|error| unreadable(&error))
}

fn broken(path: &Path, what: &str) -> Failure {
    Failure::new(Exit::Error, format!("nothing was changed in {}: {what}", path.display()))
        .next("mend it, or name another file: --out FILE")
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The lock that client-go takes before it writes a kubeconfig (clientcmd `lockFile`): a file beside it.
#[derive(Debug)]
struct Lock(PathBuf);

impl Lock {
    fn take(kubeconfig: &Path) -> Result<Self, Failure> {
        let path = suffixed(kubeconfig, ".lock");
        if let Some(folder) = kubeconfig.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true);
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.create(folder).map_err(|error| Self::not_taken(kubeconfig, &error.to_string()))?;
        }
        match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => Ok(Self(path)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let next = format!(
                    "wait for it, or, if nothing else runs: rm {}",
                    shell_word(&path.display().to_string())
                );
                Err(Self::not_taken(kubeconfig, "another program is writing it").next(next))
            }
            Err(error) => Err(Self::not_taken(kubeconfig, &error.to_string())),
        }
    }

    fn not_taken(path: &Path, why: &str) -> Failure {
        Failure::new(Exit::Error, format!("could not lock {}: {why}", path.display()))
            .next("name another file: --out FILE")
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Whoever comes next is told which file to remove.
        drop(fs::remove_file(&self.0));
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("towline-cli-merge-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn with(name: &str, text: &str) -> (Self, PathBuf) {
            let folder = Self::new(name);
            let path = folder.0.join("config");
            fs::write(&path, text).unwrap();
            (folder, path)
        }

        fn names(&self) -> Vec<String> {
            let name =
                |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
            let mut names: Vec<_> = fs::read_dir(&self.0).unwrap().map(name).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    const OLD: &str = r#"# mine
apiVersion: v1
kind: Config
preferences: {colors: true}
current-context: work
x-unknown: {a: [1, 2.5, null, "1e3"]}
clusters:
- name: work
  cluster: {server: "https://work:6443", certificate-authority-data: Q0E=, extensions: [{name: m, extension: {a: 1}}]}
users:
- {name: me, user: {token: "0123", x-other: "yes"}}
- name: exec
  user:
    exec: {apiVersion: client.authentication.k8s.io/v1, command: login, args: [--a, "b: c"], env: [{name: A, value: "1"}]}
contexts:
- {name: work, context: {cluster: work, user: me, namespace: team}}
"#;

    fn made(token: &str) -> Value {
        json!({
            "clusters": [{ "name": "edge-1", "cluster": { "server": "https://hub/k8s/clusters/edge-1" } }],
            "users": [{ "name": "edge-1", "user": { "token": token } }],
            "contexts": [{ "name": "edge-1", "context": { "cluster": "edge-1", "user": "edge-1" } }],
        })
    }

    fn put(path: &Path, token: &str, switch: bool) -> Result<Option<PathBuf>, Failure> {
        let mut merge = Merge::open(path, &[], true)?;
        merge.check("edge-1")?;
        merge.put("edge-1", &made(token), Some("work"), switch)?;
        merge.finish()
    }

    fn value(path: &Path) -> Value {
        serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Without what was put in.
    fn without(mut config: Value, name: &str) -> Value {
        for (list, _) in LISTS {
            config[list].as_array_mut().unwrap().retain(|entry| entry["name"] != name);
        }
        config
    }

    #[test]
    fn all_else_in_the_file_stays_and_what_was_there_is_kept_beside_it() {
        let (folder, path) = Folder::with("stays", OLD);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let backup = put(&path, "t1", false).unwrap().unwrap();
        let old: Value = serde_saphyr::from_str(OLD).unwrap();
        assert_eq!(without(value(&path), "edge-1"), old);
        assert_eq!(fs::read_to_string(&backup).unwrap(), OLD);
        for file in [&path, &backup] {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        }
        let read = Kubeconfig::read_from(&path).unwrap();
        let (_, cluster, user) = crate::kubeconfig::selected(&read, Some("edge-1")).unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://hub/k8s/clusters/edge-1"));
        assert_eq!(serde_json::to_value(user).unwrap()["token"], "t1");
        assert_eq!(folder.names(), ["config", "config.towline-backup"], "the lock is gone");

        // Again, with another token, and a namespace that somebody has set: replaced, not doubled.
        let mut text = value(&path);
        text["contexts"][1]["context"]["namespace"] = json!("mine");
        fs::write(&path, yaml::document(&text)).unwrap();
        put(&path, "t2", true).unwrap();
        let new = value(&path);
        assert_eq!(new["users"].as_array().unwrap().len(), 3);
        assert_eq!(new["users"][2]["user"]["token"], "t2");
        assert_eq!(new["contexts"][1]["context"]["namespace"], "mine");
        assert_eq!(new["current-context"], "edge-1");
        // And once more with nothing new: not even written.
        assert_eq!(put(&path, "t2", true).unwrap(), None);
    }

    #[test]
    fn an_entry_of_somebody_else_is_replaced_by_force_alone() {
        for list in ["clusters", "users", "contexts"] {
            let kind = list.trim_end_matches('s');
            let text =
                format!("{list}: [{{name: edge-1, {kind}: {{cluster: a, user: b, server: 'https://a'}}}}]\n");
            let (_folder, path) = Folder::with(list, &text);
            let failure = put(&path, "t", false).unwrap_err();
            assert!(failure.to_string().contains(&format!("a {kind} \"edge-1\"")), "{failure}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            let mut merge = Merge::open(&path, &[], true).unwrap();
            merge.put("edge-1", &made("t"), None, false).unwrap();
            merge.finish().unwrap();
            assert_eq!(value(&path)[list].as_array().unwrap().len(), 1);
            assert!(put(&path, "t2", false).is_ok(), "now it is from here");
        }
    }

    #[test]
    fn a_broken_file_is_left_untouched_and_nothing_of_it_is_shown() {
        for (number, text) in [
            "clusters: {a: b}\nusers: [{name: u, user: {token: secret}}]\n",
            "users: [{name: u, user: {token: secret}\n",
            "- secret\n",
            "secret",
            "a: secret\na: secret\n",
            "kind: Config\n---\nusers: [{name: u, user: {token: secret}}]\n",
            "users: [secret]\n",
            "current-context: [secret]\n",
            "clusters: [{name: c, cluster: {server: 'https://a', insecure-skip-tls-verify: secret}}]\n",
        ]
        .into_iter()
        .enumerate()
        {
            let (folder, path) = Folder::with(&format!("broken-{number}"), text);
            let failure = put(&path, "t", true).unwrap_err();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert!(!format!("{failure:?}").contains("secret"), "{failure:?}");
            assert_eq!(folder.names(), ["config"], "{text}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_made_and_can_be_used() {
        let folder = Folder::new("new");
        let path = folder.0.join("deep").join("config");
        assert_eq!(put(&path, "t", false).unwrap(), None);
        assert_eq!(value(&path)["current-context"], "edge-1");
        assert_eq!((&value(&path)["apiVersion"], &value(&path)["kind"]), (&json!("v1"), &json!("Config")));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn the_current_context_of_another_file_stays_and_a_switch_is_said() {
        let (folder, old) = Folder::with("list", OLD);
        let new = folder.0.join("new");
        let plan = |others: &[PathBuf], switch: bool| {
            Merge::open(&new, others, false).unwrap().plan("edge-1", switch).contains("current context")
        };
        assert!(plan(std::slice::from_ref(&new), false), "it is the only one");
        assert!(!plan(&[new.clone(), old.clone()], false));
        assert!(plan(&[new.clone(), old.clone()], true));
        assert!(plan(&[new.clone(), folder.0.join("nowhere")], false));
        let mut merge = Merge::open(&new, &[new.clone(), old], true).unwrap();
        merge.put("edge-1", &made("t"), Some("work"), false).unwrap();
        merge.finish().unwrap();
        assert_eq!(value(&new)["current-context"], Value::Null);
    }

    #[test]
    fn a_link_stays_a_link() {
        let (folder, path) = Folder::with("link", OLD);
        let link = folder.0.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        put(&link, "t", false).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(value(&path)["users"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn whoever_else_writes_the_file_is_not_overwritten() {
        let (_folder, path) = Folder::with("locked", OLD);
        let first = Merge::open(&path, &[], true).unwrap();
        let second = Merge::open(&path, &[], true).unwrap_err();
        assert!(second.to_string().contains("another program"), "{second}");
        assert!(Merge::open(&path, &[], false).is_ok(), "a dry run locks nothing");
        drop(first);

        let mut merge = Merge::open(&path, &[], true).unwrap();
        merge.put("edge-1", &made("t"), None, false).unwrap();
        fs::write(&path, "kind: Config\n").unwrap();
        assert!(merge.finish().unwrap_err().to_string().contains("changed meanwhile"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "kind: Config\n");
    }

    #[test]
    fn commands_find_back_to_the_parent_after_a_switch() {
        let (_folder, path) = Folder::with("parent", OLD);
        put(&path, "t", true).unwrap();
        let read = Kubeconfig::read_from(&path).unwrap();
        assert_eq!(read.current_context.as_deref(), Some("edge-1"));
        assert_eq!(parent_of_current(&read).as_deref(), Some("work"));
        assert!(is_marked(&read, "edge-1") && !is_marked(&read, "work"));
        let mut gone = read;
        gone.contexts.retain(|one| one.name != "work");
        assert_eq!(parent_of_current(&gone), None);
    }

    proptest! {
        #[test]
        fn no_text_of_others_is_changed(
            texts in proptest::collection::vec("\\PC{0,20}|[-#:{}\\[\\]&*!|>%@`\"'$()\n ]{1,12}|yes|No|1e3|0x1f|~", 5),
        ) {
            let old = json!({
                "current-context": texts[0],
                "clusters": [{ "name": texts[1], "cluster": { "server": texts[2], "x": texts[3] } }],
                "users": [{ "name": texts[4], "user": { "token": texts[0], "username": texts[1] } }],
                "contexts": [{ "name": texts[3], "context": { "cluster": texts[1], "user": texts[4] } }],
            });
            let (_folder, path) = Folder::with("texts", &yaml::document(&old));
            prop_assert!(put(&path, "t", false).is_ok());
            prop_assert_eq!(without(value(&path), "edge-1"), old);
        }
    }
}
