//! `make demo`: two real clusters, the second behind NAT, joined; then kubectl against the second through the
//! hub, each command with its output. Stays up until Ctrl-C; `--once` ends by itself.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tests::clusters::busybox_pod;
use tests::kubectl::Kubectl;
use tests::process::wait_until;
use tests::say;
use tests::scratch::Scratch;
use tests::world::{CHILD, POD, World};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match demo().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("the demo failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<()> {
    let once = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [argument] if argument == "--once" => true,
        other => bail!("make demo knows ARGS=--once and nothing else, not {other:?}"),
    };
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let scratch = Scratch::create_with_signals()?;
    let world = World::start(scratch).await?;
    show(&world).await?;
    if once {
        say("taking both clusters down");
        return Ok(());
    }
    leave_up(&world)?;
    // Ctrl-C is handled by the scratch directory's clean-up, which ends the process.
    std::future::pending().await
}

/// Prints a line of results.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

fn print_command(command: &str, output: &str) -> Result<()> {
    print(&format!("\n$ {command}"))?;
    for line in output.trim_end().lines() {
        print(&format!("  {line}"))?;
    }
    Ok(())
}

async fn show(world: &World) -> Result<()> {
    let (parent, child) = (world.parent().kubectl(), world.child().kubectl());
    let child_address = world.child().plane.address();
    let direct = tokio::time::timeout(
        Duration::from_secs(2),
        tokio::net::TcpStream::connect((child_address, world.child().plane.port())),
    )
    .await;
    if matches!(direct, Ok(Ok(_))) {
        bail!("the parent can dial the child at {child_address}: it is not behind NAT");
    }
    print(&format!("\nThe parent cannot dial the child at {child_address}: no connection within 2 s."))?;

    print("\n# 1. The child joins.")?;
    let manifest = world.cli(&["register", CHILD]).await?;
    print_command(
        &format!("kubectl towline register {CHILD} > agent.yaml      # in the parent"),
        &format!("({} lines)", manifest.lines().count()),
    )?;
    print_command(
        "kubectl apply -f agent.yaml                    # in the child",
        &child.apply(&manifest).await?,
    )?;
    world.wait_for_request().await?;
    print_command(
        "kubectl get clsrr                              # in the parent",
        &parent.ok(&["get", "clsrr"]).await?,
    )?;
    let approved = world.cli(&["approve", CHILD, "--yes"]).await?;
    print_command(&format!("kubectl towline approve {CHILD} --yes"), &approved)?;
    world.wait_ready(Duration::from_secs(90)).await?;
    print_command("kubectl get mcls -A", &parent.ok(&["get", "mcls", "-A"]).await?)?;
    print_command("kubectl towline clusters", &world.cli(&["clusters"]).await?)?;

    print("\n# 2. kubectl reaches it, as the person who asks.")?;
    let kubectl = world.admin_through_hub().await?;
    print_command(
        &format!(
            "kubectl towline kubeconfig {CHILD} > {CHILD}.kubeconfig; export KUBECONFIG={CHILD}.kubeconfig"
        ),
        "",
    )?;
    ran(&kubectl, &["get", "nodes"]).await?;
    let pod = busybox_pod(POD);
    print_command("kubectl apply -f web.json", &kubectl.apply(&pod).await?)?;
    ran(&kubectl, &["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]).await?;
    ran(&kubectl, &["get", "pods", "-A", "-o", "wide"]).await?;
    ran(&kubectl, &["exec", POD, "--", "sh", "-c", "echo hello from $(hostname); id -u"]).await?;
    followed(&kubectl).await?;
    forwarded(&kubectl).await?;
    Ok(())
}

async fn ran(kubectl: &Kubectl, arguments: &[&str]) -> Result<()> {
    let output = kubectl.ok(arguments).await?;
    let shown: Vec<String> = arguments
        .iter()
        .map(|argument| if argument.contains(' ') { format!("'{argument}'") } else { (*argument).to_owned() })
        .collect();
    print_command(&format!("kubectl {}", shown.join(" ")), &output)
}

async fn followed(kubectl: &Kubectl) -> Result<()> {
    let mut logs = kubectl.spawn(&["logs", "-f", POD, "--tail=1"])?;
    let mut lines = Vec::new();
    while lines.len() < 3 {
        lines.push(logs.line(Duration::from_secs(15)).await?.context("the log ended")?);
    }
    logs.kill().await?;
    print_command(&format!("kubectl logs -f {POD} --tail=1     # three seconds of it"), &lines.join("\n"))
}

async fn forwarded(kubectl: &Kubectl) -> Result<()> {
    kubectl
        .ok(&[
            "exec",
            POD,
            "--",
            "sh",
            "-c",
            "mkdir -p /www; echo '<h1>from behind NAT</h1>' > /www/index.html",
        ])
        .await?;
    let mut forward = kubectl.spawn(&["port-forward", &format!("pod/{POD}"), ":8080"])?;
    let line = forward.line_with("Forwarding from", Duration::from_secs(15)).await?;
    let port: u16 = line
        .split_once("127.0.0.1:")
        .and_then(|(_, rest)| rest.split(' ').next())
        .and_then(|port| port.parse().ok())
        .with_context(|| format!("no port in {line:?}"))?;
    let page =
        wait_until("the page through port-forward", Duration::from_secs(15), async || fetch(port).await)
            .await?;
    forward.kill().await?;
    print_command(
        &format!("kubectl port-forward pod/{POD} {port}:8080 & curl http://127.0.0.1:{port}/"),
        &page,
    )
}

async fn fetch(port: u16) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    socket.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    if !head.contains(" 200 ") {
        bail!("{head}");
    }
    Ok(body.to_owned())
}

fn leave_up(world: &World) -> Result<()> {
    let kubectl = world.binaries().kubectl.display().to_string();
    let parent = world.parent().plane.admin_kubeconfig().display().to_string();
    let child = world.scratch().path().join(format!("kubeconfigs/{CHILD}.kubeconfig")).display().to_string();
    print(&format!(
        "\nBoth clusters stay up until Ctrl-C. In another terminal:\n\n  \
         {kubectl} --kubeconfig {parent} get mcls -A        # the parent\n  \
         {kubectl} --kubeconfig {child} get pods -A    # the child, through the hub\n"
    ))
}
