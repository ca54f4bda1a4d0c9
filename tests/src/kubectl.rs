//! The real kubectl, as people use it: run to the end with a time limit, or kept running while a test reads its
//! lines. Most assertions of the tests go through here.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::binaries::Binaries;
use crate::network::Network;
use crate::process::{Program, own_timeout};
use crate::scratch::Scratch;

/// How long one command may take unless told otherwise.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// How much standard error of a kept-running command an error shows.
const STDERR_SHOWN: u64 = 16 * 1024;

/// kubectl with one kubeconfig, from one place in the network.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: Program,
    run: String,
    time_limit: Duration,
}

/// What a finished command left.
#[derive(Debug)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The exit code; -1 after a signal.
    pub code: i32,
}

impl Kubectl {
    /// kubectl as the user of a kubeconfig, run on this side.
    pub fn new(binaries: &Binaries, scratch: &Scratch, kubeconfig: &Path) -> Self {
        // Discovery is cached beside the run's files: neither old answers from the person's own cache, nor new
        // files in their home.
        let program = Program::new("kubectl", &binaries.kubectl)
            .env("KUBECONFIG", kubeconfig)
            .env("HOME", scratch.path())
            .env("KUBECACHEDIR", scratch.path().join("kubectl-cache"));
        Self { program, run: scratch.name().to_owned(), time_limit: TIME_LIMIT }
    }

    /// The same, run inside a network namespace.
    #[must_use]
    pub fn within(mut self, network: &Network) -> Self {
        self.program = self.program.within(network);
        self
    }

    /// The same with another time limit per command.
    #[must_use]
    pub fn with_time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// The same as another user: with another kubeconfig.
    #[must_use]
    pub fn with_kubeconfig(mut self, path: &Path) -> Self {
        self.program = self.program.env("KUBECONFIG", path);
        self
    }

    /// The same with another kubectl, for a test matrix of client versions.
    #[must_use]
    pub fn with_binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = self.program.with_path(path);
        self
    }

    /// The same with one more environment variable.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.program = self.program.env(name, value);
        self
    }

    /// Runs a command to its end, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be started or exceeds the time limit.
    pub async fn run(&self, arguments: &[&str], stdin: &[u8]) -> Result<Output> {
        let shown = arguments.join(" ");
        let mut child = self.start(arguments, Stdio::piped()).with_context(|| format!("kubectl {shown}"))?;
        let mut input = child.stdin.take().context("standard input is piped")?;
        let work = async {
            let write = async {
                // A command that reads no input closes it early; that is not an error.
                let _ = input.write_all(stdin).await;
                drop(input);
            };
            let ((), output) = tokio::join!(write, child.wait_with_output());
            output
        };
        let Some(output) = own_timeout(self.time_limit, work).await else {
            bail!("`kubectl {shown}` did not end within {:?}", self.time_limit);
        };
        let output = output?;
        Ok(Output {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        })
    }

    /// Runs a command that must succeed, and returns its standard output.
    ///
    /// # Errors
    /// When it fails; the error holds its standard error.
    pub async fn ok(&self, arguments: &[&str]) -> Result<String> {
        self.ok_with(arguments, b"").await
    }

    /// The same with something on standard input.
    ///
    /// # Errors
    /// When it fails; the error holds its standard error.
    pub async fn ok_with(&self, arguments: &[&str], stdin: &[u8]) -> Result<String> {
        let Output { stdout, stderr, code } = self.run(arguments, stdin).await?;
        if code != 0 {
            bail!("`kubectl {}` ended with {code}: {}", arguments.join(" "), stderr.trim());
        }
        Ok(stdout)
    }

    /// Applies a manifest (YAML or JSON).
    ///
    /// # Errors
    /// When the apiserver refuses it.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        self.ok_with(&["apply", "-f", "-"], manifest.as_bytes()).await
    }

    /// Starts a command that keeps running (`logs -f`, `get -w`, `port-forward`, `exec -i`); killed on drop.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Running> {
        let mut child = self.start(arguments, Stdio::piped())?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        let stdin = child.stdin.take();
        Ok(Running { shown: arguments.join(" "), child, stdin, lines: BufReader::new(stdout).lines() })
    }

    /// The command itself, for code that is not asynchronous.
    pub(crate) fn command(&self, arguments: &[&str]) -> std::process::Command {
        self.program.clone().args(arguments).command(&self.run)
    }

    fn start(&self, arguments: &[&str], stderr: Stdio) -> Result<Child> {
        Ok(Command::from(self.command(arguments))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()?)
    }
}

/// A kubectl that keeps running.
#[derive(Debug)]
pub struct Running {
    shown: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// The next line of standard output; `None` at its end.
    ///
    /// # Errors
    /// When none comes within the limit.
    pub async fn line(&mut self, limit: Duration) -> Result<Option<String>> {
        match own_timeout(limit, self.lines.next_line()).await {
            Some(line) => Ok(line?),
            None => bail!("`kubectl {}` printed no line within {limit:?}", self.shown),
        }
    }

    /// Reads on to a line that contains a text, and returns it.
    ///
    /// # Errors
    /// When the output ends, or no such line comes within the limit.
    pub async fn line_with(&mut self, text: &str, limit: Duration) -> Result<String> {
        let read = async {
            while let Some(line) = self.lines.next_line().await? {
                if line.contains(text) {
                    return Ok(line);
                }
            }
            let mut stderr = String::new();
            if let Some(pipe) = self.child.stderr.take() {
                pipe.take(STDERR_SHOWN).read_to_string(&mut stderr).await?;
            }
            bail!("`kubectl {}` ended before it printed {text:?}: {}", self.shown, stderr.trim())
        };
        match own_timeout(limit, read).await {
            Some(line) => line,
            None => bail!("`kubectl {}` did not print {text:?} within {limit:?}", self.shown),
        }
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// When it reads no more.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().context("standard input is closed")?;
        stdin.write_all(bytes).await?;
        Ok(stdin.flush().await?)
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until it ends by itself, and returns its exit code.
    ///
    /// # Errors
    /// When it does not end within the limit.
    pub async fn end(mut self, limit: Duration) -> Result<i32> {
        match own_timeout(limit, self.child.wait()).await {
            Some(status) => Ok(status?.code().unwrap_or(-1)),
            None => bail!("`kubectl {}` did not end within {limit:?}", self.shown),
        }
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}
