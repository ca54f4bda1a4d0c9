//! The program as a shell sees it: exit codes, what it prints and where, with files, environments and a parent that
//! are not as they should be.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests stand outside of them")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// Longest that one command may take, in seconds; KILL shows as no exit code at all.
const DEADLINE: &str = "20";

/// A folder of one test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("towline-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A kubeconfig for a parent, readable by its owner alone.
    fn kubeconfig(&self, parent: SocketAddr) -> PathBuf {
        let path = self.0.join("config");
        let text = format!(
            "current-context: a\nclusters: [{{name: a, cluster: {{server: 'http://{parent}'}}}}]\n\
             contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\nusers: [{{name: a, user: {{token: hunter2}}}}]\n"
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A parent that answers everything with this status and body, for as long as the tests run.
fn parent(answer: impl Fn(&str) -> (u16, Value) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = serve(stream, &answer);
        }
    });
    address
}

fn serve(mut stream: TcpStream, answer: &impl Fn(&str) -> (u16, Value)) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    stream.read_exact(&mut vec![0; length.unwrap_or(0)])?;
    let (code, body) = answer(&head);
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// Lists of one cluster, or of no request.
fn one_cluster(cluster: Value) -> impl Fn(&str) -> (u16, Value) {
    move |head| {
        let (kind, items) = if head.contains("/managedclusters") {
            ("ManagedClusterList", json!([cluster.clone()]))
        } else {
            ("ClusterRegistrationRequestList", json!([]))
        };
        (
            200,
            json!({ "apiVersion": "clusters.clusternet.io/v1beta1", "kind": kind, "metadata": {}, "items": items }),
        )
    }
}

fn cluster(text: &str) -> Value {
    let condition = |kind: &str| {
        json!({ "type": kind, "status": text, "reason": text, "message": text,
                "lastTransitionTime": "2026-01-01T00:00:00Z" })
    };
    json!({
        "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster",
        "metadata": { "name": "edge-1", "namespace": "clusternet-0a0a0a0a", "uid": "u", "resourceVersion": "1",
                      "labels": { "a": text } },
        "spec": { "clusterId": "id-1", "keyFingerprint": text },
        "status": { "k8sVersion": text, "agentVersion": text, "platform": text, "nodes": text,
                    "conditions": [condition("Ready"), condition("TunnelConnected"), condition(text)] },
    })
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", DEADLINE, env!("CARGO_BIN_EXE_kubectl-towline")]).args(arguments);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

fn run(kubeconfig: &Path, arguments: &[&str]) -> Output {
    program(&[&["--kubeconfig", kubeconfig.to_str().unwrap()], arguments].concat()).output().unwrap()
}

/// The exit code, and both outputs in one.
fn told(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8([&output.stdout[..], &output.stderr[..]].concat()).unwrap())
}

#[test]
fn nothing_that_a_cluster_says_acts_on_a_terminal() {
    let hostile =
        "\u{1b}]0;x\u{7}\u{1b}[2J\r\n\u{9b}31m\u{8}\u{202e}\u{1b}]8;;https://evil\u{1b}\\\u{2028}\u{7f}";
    let folder = Folder::new();
    let kubeconfig = folder.kubeconfig(parent(one_cluster(cluster(hostile))));
    for arguments in [
        &["clusters"][..],
        &["clusters", "-o", "wide"],
        &["clusters", "-o", "name"],
        &["clusters", "-o", "json"],
        &["clusters", "-o", "yaml"],
        &["status", "edge-1"],
        &["doctor", "edge-1", "--request-timeout", "3s"],
        &["label", "edge-1", "x=y", "--dry-run"],
        &["unregister", "edge-1", "--dry-run"],
        &["unregister", "edge-1"],
        &["kubeconfig", "edge-1"],
    ] {
        let (code, text) = told(&run(&kubeconfig, arguments));
        assert!(code.is_some(), "{arguments:?}");
        let acts = |c: char| (c != '\n' && c.is_control()) || ('\u{2028}'..='\u{202e}').contains(&c);
        assert!(!text.contains(acts), "{arguments:?}: {text:?}");
    }
}

#[test]
fn a_cell_of_ten_megabytes_is_a_short_cell() {
    let folder = Folder::new();
    let long = "x".repeat(10 * 1024 * 1024);
    let mut cluster = cluster("x");
    cluster["status"]["k8sVersion"] = long.into();
    let kubeconfig = folder.kubeconfig(parent(one_cluster(cluster)));
    for arguments in [&["clusters"][..], &["clusters", "-o", "wide"], &["status", "edge-1"]] {
        let (code, text) = told(&run(&kubeconfig, arguments));
        assert_eq!(code, Some(0), "{arguments:?}");
        assert!(text.contains('…') && text.len() < 20_000, "{arguments:?}: {}", text.len());
    }
}

#[test]
fn what_could_not_be_printed_is_no_success() {
    let folder = Folder::new();
    let kubeconfig = folder.kubeconfig(parent(one_cluster(cluster("x"))));
    let flag = ["--kubeconfig", kubeconfig.to_str().unwrap()];
    for arguments in [&["version"][..], &["clusters"], &["clusters", "-o", "json"], &["status", "edge-1"]] {
        let arguments = [&flag[..], arguments].concat();
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = program(&arguments).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("could not write"), "{arguments:?}");

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = program(&arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(141), "{arguments:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{arguments:?}: a pipe closes quietly");
    }
}

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    let folder = Folder::new();
    for (code, exit) in [(401, 4), (403, 4), (404, 3), (409, 1), (500, 1), (503, 5), (504, 124)] {
        let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "\u{1b}no",
                             "reason": "x", "code": code, "metadata": {} });
        let kubeconfig = folder.kubeconfig(parent(move |_| (code, status.clone())));
        let (told, text) = told(&run(&kubeconfig, &["clusters"]));
        assert_eq!(told, Some(exit), "{code}: {text}");
        assert!(!text.contains('\u{1b}') && !text.contains("hunter2"), "{text:?}");
    }
    // Bound and closed again: nobody listens there.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(run(&folder.kubeconfig(nobody), &["clusters"]).status.code(), Some(5));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let kubeconfig = folder.kubeconfig(silent.local_addr().unwrap());
    assert_eq!(run(&kubeconfig, &["clusters", "--request-timeout", "1s"]).status.code(), Some(124));
    assert_eq!(run(&kubeconfig, &["clusters", "--token=hunter2"]).status.code(), Some(2));
}

#[test]
fn a_kubeconfig_that_is_none_is_named_and_not_shown() {
    let folder = Folder::new();
    let path = |name: &str| folder.0.join(name);
    fs::create_dir(path("directory")).unwrap();
    std::os::unix::fs::symlink(path("loop"), path("loop")).unwrap();
    fs::write(path("empty"), "").unwrap();
    fs::write(path("binary"), [0xff, 0xfe, 0x00, 0x01]).unwrap();
    fs::write(path("torn"), "users:\n- name: a\n  user:\n    token: hunter2\n   bad: [\n").unwrap();
    fs::write(path("tabs"), "users:\n\t- name: a\n\t  user: {token: hunter2}\n").unwrap();
    fs::write(path("type"), "users: [{name: a, user: {token: [hunter2]}}]\nclusters: hunter2\n").unwrap();
    fs::write(path("twice"), "users: [{name: a, user: {token: hunter2, token: hunter2}}]\n").unwrap();
    let mut bomb = "a0: &a0 [hunter2]\n".to_owned();
    for level in 1..40 {
        let before = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![before; 9].join(", ")));
    }
    fs::write(path("bomb"), bomb).unwrap();
    for name in ["missing", "directory", "loop", "empty", "binary", "torn", "tabs", "type", "twice", "bomb"] {
        let (code, text) = told(&run(&path(name), &["clusters"]));
        assert_eq!(code, Some(1), "{name}: {text}");
        assert!(text.contains("kubeconfig"), "{name}: {text}");
        assert!(!text.contains("hunter2"), "{name}: {text}");
    }
}

/// A hub that answers each request for a kubeconfig with one that holds this user.
fn hub(user: &Value) -> SocketAddr {
    let kubeconfig = json!({
        "clusters": [{ "name": "edge-1", "cluster": { "server": "https://hub" } }],
        "users": [{ "name": "edge-1", "user": user }],
        "contexts": [{ "name": "edge-1", "context": { "cluster": "edge-1", "user": "edge-1" } }],
    });
    let status = json!({
        "credential": "0123456789abcdef", "expires": "2099-01-01T00:00:00Z", "server": "https://hub",
        "token": "twl-abc", "kubeconfig": kubeconfig.to_string(), "content": "touch owned",
    });
    parent(move |_| (201, json!({ "status": status })))
}

#[test]
fn a_hub_that_lies_gets_no_command_into_a_kubeconfig_or_a_shell() {
    let folder = Folder::new();
    let run = |kubeconfig: &Path, line: &str| {
        let output = run(kubeconfig, &line.split(' ').collect::<Vec<_>>());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let evil = json!({ "exec": { "apiVersion": "client.authentication.k8s.io/v1", "command": "sh",
                                 "args": ["-c", "id"], "interactiveMode": "Never" } });
    let kubeconfig = folder.kubeconfig(hub(&evil));
    let before = fs::read_to_string(&kubeconfig).unwrap();
    for line in [
        "use edge-1 --role view",
        "use edge-1 --exec",
        "kubeconfig edge-1 --role view",
        "kubeconfig edge-1 --for exec",
        "kubeconfig edge-1 --for tkestack --role view",
        "kubeconfig edge-1 --for env --role view",
    ] {
        let (code, stdout, stderr) = run(&kubeconfig, line);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{line}: {stderr}");
        assert!(stderr.contains("the hub's answer is not used"), "{line}: {stderr}");
        assert!(stderr.contains("credentials revoke 0123456789abcdef"), "{line}: {stderr}");
    }
    assert_eq!(fs::read_to_string(&kubeconfig).unwrap(), before);

    let kubeconfig = folder.kubeconfig(hub(&json!({ "token": "twl-abc" })));
    let (code, stdout, stderr) = run(&kubeconfig, "kubeconfig edge-1 --for env --role view");
    let exports =
        "export KUBE_HOST='https://hub'\nexport KUBE_TOKEN='twl-abc'\nunset KUBE_CLUSTER_CA_CERT_DATA\n";
    assert_eq!((code, stdout.as_str()), (Some(0), exports), "{stderr}");
    assert_eq!(run(&kubeconfig, "use edge-1 --role view").0, Some(0));
}

/// Where files can be made and nothing be written into them: a full disk.
fn without_space(kubeconfig: &Path, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .args(["-s", "KILL", DEADLINE, "sh", "-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""])
        .args([env!("CARGO_BIN_EXE_kubectl-towline"), "--kubeconfig", kubeconfig.to_str().unwrap()])
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .output()
        .unwrap()
}

#[test]
fn what_a_full_disk_has_no_place_for_is_named_and_leaves_no_file() {
    let folder = Folder::new();
    let kubeconfig = folder.kubeconfig(hub(&json!({ "token": "twl-abc" })));
    let out = folder.0.join("out");
    let file = out.to_str().unwrap();
    for arguments in [
        &["kubeconfig", "edge-1", "--role", "view", "--out", file][..],
        &["kubeconfig", "edge-1", "--role", "view", "--merge", "--out", file],
        &["use", "edge-1", "--role", "view"],
    ] {
        let (code, text) = told(&without_space(&kubeconfig, arguments));
        assert_eq!(code, Some(1), "{arguments:?}: {text}");
        assert!(text.contains("could not write"), "{arguments:?}: {text}");
        let id = text.find("Credential 0123456789abcdef").unwrap_or_else(|| panic!("{arguments:?}: {text}"));
        assert!(Some(id) < text.find("error:"), "{arguments:?}: {text}");
    }
    let arguments = ["support-bundle", "--request-timeout", "3s", "--out", file];
    let (code, text) = told(&without_space(&kubeconfig, &arguments));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("could not write"), "{text}");
    assert!(!out.exists(), "half a file is worse than none");
}

#[test]
fn a_pod_with_a_hostile_name_takes_no_bundle_to_another_path() {
    let folder = Folder::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let kubeconfig = folder.kubeconfig(parent(move |head| {
        seen.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
        let pods =
            ["../../../../secrets", "a/../b", "good"].map(|name| json!({ "metadata": { "name": name } }));
        (200, json!({ "items": pods }))
    }));
    let out = folder.0.join("out.tar.gz");
    let arguments = ["support-bundle", "--request-timeout", "3s", "--out", out.to_str().unwrap()];
    let (code, text) = told(&run(&kubeconfig, &arguments));
    assert_eq!(code, Some(0), "{text}");
    assert!(out.exists());
    let asked = asked.lock().unwrap();
    assert!(asked.iter().any(|line| line.contains("/pods/good/log?")), "{asked:?}");
    assert!(!asked.iter().any(|line| line.contains("..") || line.contains("%2e")), "{asked:?}");
}

#[test]
fn a_revoked_token_is_not_handed_out_again() {
    let folder = Folder::new();
    let kubeconfig = folder.kubeconfig(hub(&json!({ "token": "twl-abc" })));
    let cache = folder.0.join("cache");
    let run = |arguments: &[&str]| {
        let flag = ["--kubeconfig", kubeconfig.to_str().unwrap()];
        let arguments = [&flag[..], arguments].concat();
        told(&program(&arguments).env("XDG_CACHE_HOME", &cache).output().unwrap())
    };
    let kept = || fs::read_dir(cache.join("towline")).unwrap().count();
    let (code, text) = run(&["exec-credential", "edge-1", "--ttl", "30d"]);
    assert_eq!((code, kept()), (Some(0), 1), "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let until = answer["status"]["expirationTimestamp"].as_str().unwrap();
    assert!(until < "2040", "ten minutes at most, not two thirds of its life: {until}");
    assert_eq!((run(&["credentials", "revoke", "fedcba9876543210"]).0, kept()), (Some(0), 1));
    assert_eq!((run(&["credentials", "revoke", "0123456789abcdef"]).0, kept()), (Some(0), 0));
}

#[test]
fn a_readable_credential_is_warned_of() {
    let folder = Folder::new();
    let kubeconfig = folder.kubeconfig(parent(one_cluster(cluster("x"))));
    for (mode, warned) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o644, true)] {
        fs::set_permissions(&kubeconfig, fs::Permissions::from_mode(mode)).unwrap();
        let (code, text) = told(&run(&kubeconfig, &["clusters"]));
        assert_eq!((code, text.contains("warning: others may read")), (Some(0), warned), "{mode:o}: {text}");
    }
}

#[test]
fn home_and_locale_may_be_anything() {
    let folder = Folder::new();
    let kubeconfig = folder.kubeconfig(parent(one_cluster(cluster("x"))));
    let arguments = ["--kubeconfig", kubeconfig.to_str().unwrap(), "clusters", "-o", "name"];
    for (name, value) in
        [("HOME", ""), ("HOME", "/proc"), ("LC_ALL", "tr_TR.UTF-8"), ("XDG_CACHE_HOME", "\u{1}")]
    {
        let output = program(&arguments).env(name, value).output().unwrap();
        assert_eq!(told(&output), (Some(0), "edge-1\n".to_owned()), "{name}={value:?}");
    }
    let output = program(&arguments).env_remove("HOME").output().unwrap();
    assert_eq!(told(&output), (Some(0), "edge-1\n".to_owned()));
    // Neither a flag nor a file: it says where it has looked.
    let (code, text) = told(&program(&["clusters"]).output().unwrap());
    assert!(code == Some(1) && text.contains("$KUBECONFIG"), "{text}");
}

/// A shell with the program on its PATH and no parent to ask.
fn in_shell(shell: &str, script: &str) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_kubectl-towline"));
    let path = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
    Command::new(shell)
        .args(["-c", script])
        .env_clear()
        .env("PATH", path)
        .env("KUBECONFIG", "/nonexistent")
        .output()
        .unwrap()
}

#[test]
fn bash_completes_commands_flags_and_values_and_is_silent_without_a_parent() {
    let complete = |words: &str| {
        let script = format!(
            "source <(kubectl-towline completion bash)\nCOMP_WORDS=(kubectl-towline {words})\n\
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n_kubectl_towline\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let output = in_shell("bash", &script);
        assert!(output.status.success() && output.stderr.is_empty(), "{words}: {output:?}");
        String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(complete("sup"), "support-bundle");
    assert_eq!(complete("clusters -o ya"), "yaml");
    assert_eq!(complete("clusters --no"), "--no-headers --no-color");
    assert_eq!(complete("access c"), "can-i");
    assert_eq!(complete("status ''"), "");
}

#[test]
fn the_executable_that_kubectl_asks_answers_as_cobra_does() {
    let output =
        in_shell("sh", "kubectl-towline completion kubectl > /dev/null && kubectl-towline __complete -- doc");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("doctor\t") && lines[1] == ":4", "{text}");
    let script = in_shell("sh", "kubectl-towline completion kubectl | sh -s -- status ''");
    assert_eq!(String::from_utf8(script.stdout).unwrap(), ":4\n");
}

#[test]
fn a_doctor_without_a_parent_says_so_and_fails() {
    let folder = Folder::new();
    let path = folder.0.join("config");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let text = format!(
        "current-context: a\nclusters: [{{name: a, cluster: {{server: 'https://{closed}'}}}}]\n\
         contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\nusers: [{{name: a, user: {{token: hunter2}}}}]\n"
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let run = |arguments: &[&str]| {
        Command::new("timeout")
            .args([
                "-s",
                "KILL",
                DEADLINE,
                env!("CARGO_BIN_EXE_kubectl-towline"),
                "doctor",
                "--request-timeout",
                "3s",
            ])
            .args(arguments)
            .env_clear()
            .env("KUBECONFIG", &path)
            .output()
            .unwrap()
    };
    let output = run(&["-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let codes: Vec<&str> =
        found["findings"].as_array().unwrap().iter().filter_map(|one| one["code"].as_str()).collect();
    assert_eq!((found["healthy"].as_bool(), codes[0]), (Some(false), "TWL-D006"), "{found:#}");
    let output = run(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("fail  tcp                TWL-D006"), "{text}");
    assert!(!text.contains("hunter2") && !text.contains('\u{1b}'), "{text}");
}
