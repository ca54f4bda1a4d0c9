//! The caller's kubeconfig and environment, read as kubectl reads them. The only file that reads the
//! environment.

use std::path::{Path, PathBuf};

use hyper_util::client::proxy::matcher::Matcher;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};

use crate::args::Global;
use crate::failure::{Exit, Failure};

/// Where a kubeconfig comes from when no flag says so: the files of `$KUBECONFIG`, or the one in the home
/// directory.
#[expect(clippy::disallowed_methods, reason = "this is the file that reads the environment")]
fn default_files() -> Vec<PathBuf> {
    let listed: Vec<PathBuf> = std::env::var_os("KUBECONFIG")
        .map(|value| std::env::split_paths(&value).filter(|path| !path.as_os_str().is_empty()).collect())
        .unwrap_or_default();
    if !listed.is_empty() {
        return listed;
    }
    std::env::home_dir().map(|home| home.join(".kube").join("config")).into_iter().collect()
}

/// The files that the caller's kubeconfig is made of, as absolute paths.
pub(crate) fn files(global: &Global) -> Vec<PathBuf> {
    let files = global.kubeconfig.clone().map_or_else(default_files, |path| vec![path]);
    files.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())).collect()
}

/// What client-go says to a command that is to get a credential: a JSON text.
#[expect(clippy::disallowed_methods, reason = "this is the file that reads the environment")]
pub(crate) fn exec_info() -> Option<String> {
    std::env::var("KUBERNETES_EXEC_INFO").ok().filter(|text| !text.is_empty())
}

/// The folder for what can be got again (<https://specifications.freedesktop.org/basedir-spec>).
#[expect(clippy::disallowed_methods, reason = "this is the file that reads the environment")]
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let given = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = given.or_else(|| std::env::home_dir().map(|home| home.join(".cache")))?;
    Some(folder.join("towline"))
}

/// May stdout have colours? See <https://no-color.org>.
#[expect(clippy::disallowed_methods, reason = "this is the file that reads the environment")]
pub(crate) fn color(global: &Global) -> bool {
    let unwanted = global.no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !unwanted && !terminal_is_dumb() && crate::output::stdout_is_terminal()
}

/// Whether the terminal moves no cursor and knows no colours.
#[expect(clippy::disallowed_methods, reason = "this is the file that reads the environment")]
pub(crate) fn terminal_is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// The caller's kubeconfig with all file names absolute; `None` if there is none.
///
/// # Errors
/// A file that is named by a flag is missing, or a file cannot be read or understood.
pub(crate) fn kubeconfig(global: &Global) -> Result<Option<Kubeconfig>, Failure> {
    if let Some(path) = &global.kubeconfig {
        return read(path).map(at_the_parent).map(Some);
    }
    let mut merged: Option<Kubeconfig> = None;
    // Like kubectl, a file of the list that does not exist is left out.
    for path in default_files().iter().filter(|path| path.exists()) {
        let next = read(path)?;
        merged = Some(match merged {
            Some(first) => first.merge(next).map_err(|error| Failure::new(Exit::Error, error.to_string()))?,
            None => next,
        });
    }
    Ok(merged.map(at_the_parent))
}

/// After `use` the current context is that of a child, which knows no cluster: commands go on at its parent.
fn at_the_parent(mut kubeconfig: Kubeconfig) -> Kubeconfig {
    if let Some(parent) = crate::merge::parent_of_current(&kubeconfig) {
        kubeconfig.current_context = Some(parent);
    }
    kubeconfig
}

fn read(path: &Path) -> Result<Kubeconfig, Failure> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Error, format!("could not read the kubeconfig {}: {error}", path.display()))
            .next("name another: --kubeconfig FILE")
    };
    // kube joins relative names in the file with the file's folder, so the folder has to be absolute.
    let path = std::path::absolute(path).map_err(|error| unreadable(&error))?;
    #[cfg(unix)]
    warn_of_readers(&path);
    Kubeconfig::read_from(path).map_err(|error| {
        if let KubeconfigError::ReadConfig(error, _) = &error {
            return unreadable(error);
        }
        // What a parser says quotes the file, and the file holds a credential.
        unreadable(&format!("it is no kubeconfig{}", place(&error.to_string())))
    })
}

/// Where in a file a parser stopped, of all that it says.
pub(crate) fn place(said: &str) -> String {
    let number = |word: &str| {
        let rest = said.split_once(word)?.1;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse::<u64>().ok()
    };
    number(" line ").map_or_else(String::new, |line| format!(", see line {line}"))
}

/// Says it when others may read the file, which holds a credential; as helm does.
#[cfg(unix)]
fn warn_of_readers(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let Ok(there) = path.metadata() else { return };
    if there.is_file() && there.permissions().mode() & 0o044 != 0 {
        let file = crate::args::shell_word(&path.display().to_string());
        crate::output::say(&format!("warning: others may read the credential in {file}: chmod go= {file}"));
    }
}

/// What the client connects with.
///
/// # Errors
/// There is no usable kubeconfig and this is no pod either.
pub(crate) async fn client_config(global: &Global) -> Result<Config, Failure> {
    let mut config = match kubeconfig(global)? {
        Some(kubeconfig) => of_kubeconfig(kubeconfig, global).await?,
        None => Config::incluster().map_err(|_| {
            Failure::new(Exit::Error, "there is no kubeconfig: neither $KUBECONFIG nor ~/.kube/config exists")
                .next("name one: --kubeconfig FILE")
        })?,
    };
    impersonate(&mut config, global)?;
    // A list or a decision is small; an answer that does not come in time is none. Watches have their own.
    config.connect_timeout = Some(global.request_timeout);
    // What is asked is retried by the person, who sees why: a second invitation must not be made silently.
    config.default_retry = false;
    Ok(config)
}

async fn of_kubeconfig(kubeconfig: Kubeconfig, global: &Global) -> Result<Config, Failure> {
    let options = KubeConfigOptions { context: global.context.clone(), ..Default::default() };
    let (_, cluster, _) = crate::kubeconfig::selected(&kubeconfig, global.context.as_deref())?;
    let own_proxy = cluster.proxy_url.is_some();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| {
        Failure::new(Exit::Error, format!("the kubeconfig cannot be used: {error}"))
            .next("look at it: kubectl config view --minify")
    })?;
    // kube 5.0 matches NO_PROXY against the proxy's own address (file_loader.rs, `proxy_url`); it has to be
    // matched against the parent's, as kubectl does.
    if !own_proxy
        && config.proxy_url.is_some()
        && Matcher::from_env().intercept(&config.cluster_url).is_none()
    {
        config.proxy_url = None;
    }
    Ok(config)
}

/// A group alone is nobody; left out silently, a file or a request would be that of the caller.
pub(crate) fn check_impersonation(global: &Global) -> Result<(), Failure> {
    if global.impersonate.is_some() || global.impersonate_groups.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, "--as-group needs --as").next("add --as USER"))
}

fn impersonate(config: &mut Config, global: &Global) -> Result<(), Failure> {
    check_impersonation(global)?;
    let Some(user) = &global.impersonate else { return Ok(()) };
    config.auth_info.impersonate = Some(user.clone());
    config.auth_info.impersonate_groups = Some(global.impersonate_groups.clone());
    config.auth_info.impersonate_uid = None;
    config.auth_info.impersonate_user_extra = None;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_without_a_user_is_a_usage_error() {
        let mut config = Config::new("https://h".parse().unwrap());
        let global = Global { impersonate_groups: vec!["dev".to_owned()], ..Global::default() };
        assert_eq!(impersonate(&mut config, &global).unwrap_err().exit(), Exit::Usage);
    }

    #[test]
    fn the_flag_replaces_whatever_the_kubeconfig_impersonates() {
        let mut config = Config::new("https://h".parse().unwrap());
        config.auth_info.impersonate_groups = Some(vec!["old".to_owned()]);
        config.auth_info.impersonate_uid = Some("u".to_owned());
        let global = Global { impersonate: Some("alice".to_owned()), ..Global::default() };
        impersonate(&mut config, &global).unwrap();
        assert_eq!(config.auth_info.impersonate.as_deref(), Some("alice"));
        assert_eq!(config.auth_info.impersonate_groups, Some(vec![]));
        assert_eq!(config.auth_info.impersonate_uid, None);
    }

    #[test]
    fn a_missing_file_is_named_in_the_error() {
        let global =
            Global { kubeconfig: Some(PathBuf::from("/nonexistent/kubeconfig")), ..Global::default() };
        let failure = kubeconfig(&global).unwrap_err();
        assert!(failure.to_string().contains("/nonexistent/kubeconfig"), "{failure}");
    }
}
