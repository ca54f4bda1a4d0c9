//! `kubeconfig` and `use`: gets what was asked for and puts it where it was asked to be: on stdout, in a file of its
//! own, or among the other entries of a kubeconfig. Says the next step on stderr.
//!
//! The place is made ready before anybody is asked: a token that cannot be written down must not be issued.

use std::path::{Path, PathBuf};

use api::kubeconfig::{Format, KubeconfigRequestSpec, KubeconfigRequestStatus, terraform_variable};
use api::yaml;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::args::{Global, Kubeconfig, Tool, shell_word};
use crate::duration;
use crate::failure::{Exit, Failure};
use crate::merge::{self, Merge};
use crate::out_file::OutFile;
use crate::output::{data, say, shown, stdout_is_terminal};
use crate::session::Session;
use crate::wanted::{Wanted, next, wanted};
use crate::{answer, config, issue, kubeconfig};

/// Runs either command; `switch` is that of `use`.
pub(crate) async fn run(global: &Global, args: &Kubeconfig, switch: bool) -> Result<(), Failure> {
    let wanted = wanted(args)?;
    if args.merge {
        return merged(global, args, &wanted, switch).await;
    }
    if args.dry_run {
        return rehearsed(args, &wanted);
    }
    match &wanted {
        Wanted::Own => own(global, args).await,
        Wanted::Issued(spec) => issued(global, args, spec).await,
    }
}

/// Made from the caller's own kubeconfig.
async fn own(global: &Global, args: &Kubeconfig) -> Result<(), Failure> {
    let (name, made) = kubeconfig::own(global, args).await?;
    let text = kubeconfig::text(&name, &made);
    let Some(path) = &args.out else { return data(&text) };
    OutFile::create(path, args.force)?.finish(&text)?;
    let file = word(path);
    say(&format!("Wrote {file}.\nnext:  {}", next(Some(Tool::Kubectl), &file, &name)));
    Ok(())
}

/// From the hub.
async fn issued(global: &Global, args: &Kubeconfig, spec: &KubeconfigRequestSpec) -> Result<(), Failure> {
    let beside = args.out.as_deref().and_then(|path| companion(spec.format, path));
    if spec.format == Format::Terraform && args.out.is_none() {
        return Err(Failure::new(
            Exit::Usage,
            "for Terraform there are two files, the second with the token",
        )
        .next(format!("add --out {}.tf", args.cluster)));
    }
    let create = |path: &Path| OutFile::create(path, args.force);
    let file = args.out.as_deref().map(create).transpose()?;
    let second = beside.as_deref().map(create).transpose()?;

    let session = Session::open(global).await?;
    let status = issue::issue(&session, spec).await?;
    // Before whatever may fail from here on: the token is good, and has to be ended by hand then.
    say(&ending(&session, &status, &spec.cluster));
    let (main, other) = texts(global, spec, &status)?;
    if file.is_none() && stdout_is_terminal() && status.token.is_some() {
        say("warning: what follows holds a token and is on your screen; --out FILE keeps it in a file.");
    }
    match file {
        Some(file) => file.finish(&main)?,
        None => data(if spec.format == Format::Tkestack { &other } else { &main })?,
    }
    if let (Some(second), Some(path)) = (second, &beside) {
        second.finish(&other)?;
        say(&format!("Wrote {} beside it.", word(path)));
    }
    let file = args.out.as_deref().map_or_else(|| "FILE".to_owned(), word);
    say(&format!("next:  {}", next(args.tool, &file, &spec.cluster)));
    Ok(())
}

/// The file that goes beside the first: Terraform's with the token, TKEStack's with what is not a kubeconfig.
fn companion(format: Format, path: &Path) -> Option<PathBuf> {
    match format {
        Format::Terraform => Some(path.with_extension("auto.tfvars")),
        Format::Tkestack => Some(path.with_extension("tkestack.txt")),
        Format::Kubeconfig
        | Format::Exec
        | Format::ArgocdSecret
        | Format::FluxSecret
        | Format::ClusterProfile
        | Format::Env => None,
    }
}

/// What stands in the first file and in the second.
fn texts(
    global: &Global,
    spec: &KubeconfigRequestSpec,
    status: &KubeconfigRequestStatus,
) -> Result<(String, String), Failure> {
    let content = answer::content(spec, status)?;
    Ok(match spec.format {
        Format::Exec => {
            (yaml::document(&with_parent(global, answer::kubeconfig(spec, status)?)?), String::new())
        }
        Format::Tkestack => (yaml::document(&answer::kubeconfig(spec, status)?), content),
        Format::Terraform => {
            let token = answer::token(status)?;
            (content, format!("{} = \"{token}\"\n", terraform_variable(&spec.cluster)))
        }
        Format::Kubeconfig
        | Format::ArgocdSecret
        | Format::FluxSecret
        | Format::ClusterProfile
        | Format::Env => (content, String::new()),
    })
}

/// Among the other entries of a kubeconfig.
async fn merged(global: &Global, args: &Kubeconfig, wanted: &Wanted, switch: bool) -> Result<(), Failure> {
    let path = match &args.out {
        Some(path) => path.clone(),
        None => config::files(global).into_iter().next().ok_or_else(|| {
            Failure::new(Exit::Error, "there is no place for a kubeconfig: no home directory")
                .next("name a file: --out FILE")
        })?,
    };
    // What the name will be, is known before anybody is asked, unless an id was given for a name.
    let mut merge = Merge::open(&path, &beside(global, &path), !args.dry_run)?;
    if !args.force {
        merge.check(args.cluster.as_str())?;
    }
    if args.dry_run {
        rehearsed(args, wanted)?;
        say(&format!("Would {} in {}.", merge.plan(args.cluster.as_str(), switch), word(&path)));
        return Ok(());
    }
    let (name, made) = match wanted {
        Wanted::Own => kubeconfig::own(global, args).await?,
        Wanted::Issued(spec) => {
            let session = Session::open(global).await?;
            let status = issue::issue(&session, spec).await?;
            // As above: before whatever may fail from here on.
            say(&ending(&session, &status, &spec.cluster));
            let mut made = answer::kubeconfig(spec, &status)?;
            if spec.format == Format::Exec {
                made = with_parent(global, made)?;
            }
            (spec.cluster.clone(), made)
        }
    };
    if !args.force {
        merge.check(&name)?;
    }
    let plan = merge.plan(&name, switch);
    merge.put(&name, &made, parent_context(global)?.as_deref(), switch)?;
    let backup = merge.finish()?;
    let kept =
        backup.map(|backup| format!("; what was there before is {}", word(&backup))).unwrap_or_default();
    say(&format!("Done: {plan} in {}{kept}.", word(&path)));
    say(&format!("next:  {}", after_merge(global, args, &path, &name, switch)));
    Ok(())
}

/// The files that kubectl reads together with this one.
fn beside(global: &Global, path: &Path) -> Vec<PathBuf> {
    let files = config::files(global);
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if files.contains(&path) { files } else { Vec::new() }
}

fn after_merge(global: &Global, args: &Kubeconfig, path: &Path, name: &str, switch: bool) -> String {
    let own = global.kubeconfig.is_none() && args.out.is_none();
    let file = if own { String::new() } else { format!(" --kubeconfig {}", word(path)) };
    let context = if switch { String::new() } else { format!(" --context {}", shell_word(name)) };
    format!("kubectl{file}{context} get nodes")
}

/// A dry run: what would be asked, on stdout.
fn rehearsed(args: &Kubeconfig, wanted: &Wanted) -> Result<(), Failure> {
    match wanted {
        Wanted::Own => say(&format!(
            "Would make a kubeconfig for cluster {} from your own; nothing would be asked for.",
            args.cluster
        )),
        Wanted::Issued(spec) => {
            say("Would ask the hub for this:");
            data(&yaml::document(&issue::question(spec)))?;
        }
    }
    if let (Some(path), false) = (&args.out, args.merge) {
        say(&format!("Would write it to {}.", word(path)));
    }
    Ok(())
}

/// What is said of a credential.
fn ending(session: &Session, status: &KubeconfigRequestStatus, cluster: &str) -> String {
    let (Some(id), Some(expires)) = (&status.credential, status.expires) else {
        return format!(
            "No token was issued; one is asked for whenever it is needed at cluster {}.",
            shown(cluster)
        );
    };
    let left = duration::human(expires.as_second() - Timestamp::now().as_second());
    let id = shown(id);
    format!(
        "Credential {id} for cluster {}, good for {left}. End it: {} credentials revoke {id}",
        shown(cluster),
        session.command()
    )
}

/// A kubeconfig with a command, and the parent that this is to ask: whoever uses the kubeconfig may have another current one, or
/// this one itself.
fn with_parent(global: &Global, mut kubeconfig: Value) -> Result<Value, Failure> {
    let Some(context) = parent_context(global)? else { return Ok(kubeconfig) };
    let files = std::env::join_paths(config::files(global)).ok().and_then(|files| files.into_string().ok());
    let Some(exec) = kubeconfig.pointer_mut("/users/0/user/exec").filter(|exec| exec.is_object()) else {
        return Ok(kubeconfig);
    };
    let mut more = vec![json!("--context"), json!(context)];
    for (flag, values) in
        [("--as", global.impersonate.as_slice()), ("--as-group", &global.impersonate_groups)]
    {
        more.extend(values.iter().flat_map(|value| [json!(flag), json!(value)]));
    }
    if let Some(arguments) = exec.get_mut("args").and_then(Value::as_array_mut) {
        arguments.extend(more);
    }
    if let Some(files) = files {
        exec["env"] = json!([{ "name": "KUBECONFIG", "value": files }]);
    }
    Ok(kubeconfig)
}

/// Name of the parent's context; none in a pod.
fn parent_context(global: &Global) -> Result<Option<String>, Failure> {
    let Some(source) = config::kubeconfig(global)? else { return Ok(None) };
    let (name, ..) = kubeconfig::selected(&source, global.context.as_deref())?;
    if merge::is_marked(&source, &name) {
        return Err(Failure::new(
            Exit::Usage,
            format!("context {name:?} leads to a cluster, not to its parent"),
        )
        .next("name the parent's: --context NAME"));
    }
    Ok(Some(name))
}

fn word(path: &Path) -> String {
    shell_word(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::tests::{honest, spec, status};

    #[test]
    fn the_token_of_terraform_goes_beside_the_file_that_is_committed() {
        let global = Global::default();
        let (main, other) =
            texts(&global, &spec(json!({ "format": "terraform" })), &status("k", "hcl", "twl-a_b-9"))
                .unwrap();
        assert_eq!((main.as_str(), other.as_str()), ("hcl", "towline_edge_1_token = \"twl-a_b-9\"\n"));
        for hostile in ["twl-\"\nx = 1", "${file}", ""] {
            assert!(
                texts(&global, &spec(json!({ "format": "terraform" })), &status("k", "hcl", hostile))
                    .is_err(),
                "{hostile}"
            );
        }
        let path =
            |format, name: &str| companion(format, Path::new(name)).map(|path| path.display().to_string());
        assert_eq!(path(Format::Terraform, "a/edge-1.tf").as_deref(), Some("a/edge-1.auto.tfvars"));
        assert_eq!(path(Format::Tkestack, "edge-1.yaml").as_deref(), Some("edge-1.tkestack.txt"));
        assert_eq!(path(Format::ArgocdSecret, "edge-1.yaml"), None);
    }

    #[test]
    fn tkestack_is_given_the_file_to_upload() {
        let made = yaml::document(&honest(&json!({ "token": "twl-a" })));
        let asked = spec(json!({ "format": "tkestack" }));
        let (main, other) = texts(&Global::default(), &asked, &status(&made, "the text", "twl-a")).unwrap();
        assert_eq!((main, other.as_str()), (made, "the text"));
        let evil = yaml::document(&honest(&json!({ "exec": { "command": "sh" } })));
        assert!(texts(&Global::default(), &asked, &status(&evil, "the text", "twl-a")).is_err());
    }

    #[test]
    fn a_command_in_a_kubeconfig_names_its_parent() {
        let folder = std::env::temp_dir().join(format!("towline-cli-parent-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("config");
        std::fs::write(
            &path,
            "current-context: par ent\nclusters: [{name: c, cluster: {server: 'https://p'}}]\nusers: []\n\
             contexts: [{name: par ent, context: {cluster: c, user: u}}]\n",
        )
        .unwrap();
        let global = Global {
            kubeconfig: Some(path.clone()),
            impersonate: Some("alice".to_owned()),
            impersonate_groups: vec!["dev".to_owned(), "ops".to_owned()],
            ..Global::default()
        };
        let made = json!({ "users": [{ "name": "edge-1", "user": { "exec": { "args": ["towline", "exec-credential", "edge-1"] } } }] });
        let made = with_parent(&global, made);
        std::fs::remove_dir_all(&folder).unwrap();
        let made = made.unwrap();
        let exec = &made["users"][0]["user"]["exec"];
        let words = [
            "towline",
            "exec-credential",
            "edge-1",
            "--context",
            "par ent",
            "--as",
            "alice",
            "--as-group",
            "dev",
            "--as-group",
            "ops",
        ];
        assert_eq!(exec["args"], json!(words));
        assert_eq!(exec["env"], json!([{ "name": "KUBECONFIG", "value": path }]));
    }
}
