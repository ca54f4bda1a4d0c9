//! What stays open: watches, logs, exec, attach, cp, port-forward, big bodies.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams};
use serde_json::json;
use tests::kubectl::Kubectl;
use tests::process::wait_until;
use tests::world::{POD, World, spdy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Outcome;

const SOON: Duration = Duration::from_secs(20);

/// A watch through the hub that other tests run beside: six events, 30 s apart, three minutes in all.
const EVENTS: u32 = 6;
const APART: Duration = Duration::from_secs(30);
static LONG_WATCH: Mutex<Option<JoinSet<Outcome>>> = Mutex::new(None);

pub(crate) async fn a_long_watch_begins(world: &mut World) -> Outcome {
    let (through_hub, direct) = (world.admin_through_hub().await?, world.child().kubectl().clone());
    direct.apply(&ticking(0)).await?;
    let mut running = JoinSet::new();
    running.spawn(async move {
        let columns = "custom-columns=TICK:.data.tick";
        let mut watch =
            through_hub.spawn(&["get", "configmap", "ticking", "--watch", "--no-headers", "-o", columns])?;
        watch.line_with("0", SOON).await?;
        let mut clock = tokio::time::interval(APART);
        clock.tick().await;
        for event in 1..=EVENTS {
            clock.tick().await;
            direct.apply(&ticking(event)).await?;
            let written = Instant::now();
            watch.line_with(&event.to_string(), SOON).await?;
            ensure!(
                written.elapsed() < Duration::from_secs(1),
                "event {event} came after {:?}",
                written.elapsed()
            );
        }
        watch.kill().await
    });
    *LONG_WATCH.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
    Ok(())
}

fn ticking(tick: u32) -> String {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "ticking" },
            "data": { "tick": tick.to_string() } })
    .to_string()
}

pub(crate) async fn the_long_watch_has_seen_every_event(_: &mut World) -> Outcome {
    let mut running = LONG_WATCH
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
        .context("the long watch was not started")?;
    running.join_next().await.context("one task")??
}

pub(crate) async fn logs_follow(world: &mut World) -> Outcome {
    let mut logs = world.admin_through_hub().await?.spawn(&["logs", "-f", POD, "--tail=1"])?;
    // The pod writes a line a second; five of them cannot have been there before.
    for _ in 0..5 {
        logs.line(SOON).await?.context("the log ended")?;
    }
    logs.kill().await
}

async fn over_spdy(world: &World) -> Result<Kubectl> {
    let kubectl = world.admin_through_hub().await?;
    Ok(spdy().into_iter().fold(kubectl, |kubectl, (name, value)| kubectl.with_env(name, value)))
}

async fn exec_with_stdin(kubectl: &Kubectl) -> Outcome {
    let output = kubectl
        .run(&["exec", "-i", POD, "--", "sh", "-c", "cat; echo to stderr >&2; exit 7"], b"from stdin\n")
        .await?;
    ensure!(output.stdout == "from stdin\n", "{output:?}");
    ensure!(output.stderr.contains("to stderr") && output.code == 7, "{output:?}");
    Ok(())
}

pub(crate) async fn exec_carries_stdin_and_the_exit_code_over_spdy(world: &mut World) -> Outcome {
    exec_with_stdin(&over_spdy(world).await?).await
}

pub(crate) async fn exec_and_port_forward_work_with_kubectls_default_transport(world: &mut World) -> Outcome {
    // kubectl begins with WebSocket; an older child refuses its sub-protocol, and kubectl falls back to SPDY only
    // if that refusal arrives whole.
    let kubectl = world.admin_through_hub().await?;
    exec_with_stdin(&kubectl).await?;
    port_forward(&kubectl).await
}

async fn api(world: &World) -> Result<Api<Pod>> {
    let path = world.scratch().path().join("kubeconfigs/edge-1.kubeconfig");
    let kubeconfig = kube::config::Kubeconfig::read_from(&path)?;
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default()).await?;
    Ok(Api::default_namespaced(kube::Client::try_from(config)?))
}

pub(crate) async fn exec_attach_and_port_forward_work_over_websocket(world: &mut World) -> Outcome {
    let pods = api(world).await?;
    let parameters = AttachParams::default().stdin(true).stdout(true).stderr(false);
    let mut exec = pods.exec(POD, ["sh", "-c", "read line; echo got $line; exit 3"], &parameters).await?;
    exec.stdin().context("stdin")?.write_all(b"something\n").await?;
    let mut output = String::new();
    let status = exec.take_status().context("status")?;
    exec.stdout().context("stdout")?.read_to_string(&mut output).await?;
    ensure!(output == "got something\n", "{output:?}");
    let status = status.await.context("exec ended without a status")?;
    ensure!(format!("{status:?}").contains("\"3\""), "{status:?}");

    let mut attached = pods.attach(POD, &AttachParams::default().stdout(true).stderr(false)).await?;
    let mut line = [0; 5];
    attached.stdout().context("stdout")?.read_exact(&mut line).await?;

    let mut forwarded = pods.portforward(POD, &[8080]).await?;
    let mut stream = forwarded.take_stream(8080).context("stream")?;
    stream.write_all(b"GET /etc HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1."), "{answer:?}");
    Ok(())
}

pub(crate) async fn attach_works_over_spdy(world: &mut World) -> Outcome {
    let echo = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "echo" }, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{ "name": "main", "image": tests::images::BUSYBOX, "imagePullPolicy": "Never",
                         "stdin": true, "command": ["/bin/cat"] }] } });
    let kubectl = over_spdy(world).await?;
    kubectl.apply(&echo.to_string()).await?;
    kubectl.ok(&["wait", "--for=condition=Ready", "pod/echo", "--timeout=25s"]).await?;
    let mut attached = kubectl.spawn(&["attach", "-i", "echo"])?;
    attached.write(b"there and back\n").await?;
    attached.line_with("there and back", SOON).await?;
    attached.kill().await
}

pub(crate) async fn cp_works_both_ways(world: &mut World) -> Outcome {
    let kubectl = world.admin_through_hub().await?;
    let directory = world.scratch().directory("cp")?;
    let (up, down) = (directory.join("up"), directory.join("down"));
    let content = text_of(1 << 20);
    std::fs::write(&up, &content)?;
    kubectl.ok(&["cp", &up.display().to_string(), &format!("{POD}:/tmp/copied")]).await?;
    kubectl.ok(&["cp", &format!("{POD}:/tmp/copied"), &down.display().to_string()]).await?;
    ensure!(std::fs::read(&down)? == content.as_bytes(), "what came back differs");
    Ok(())
}

pub(crate) async fn port_forward_works_over_spdy(world: &mut World) -> Outcome {
    port_forward(&over_spdy(world).await?).await
}

async fn port_forward(kubectl: &Kubectl) -> Outcome {
    kubectl.ok(&["exec", POD, "--", "sh", "-c", "mkdir -p /www; echo a page > /www/index.html"]).await?;
    let mut forward = kubectl.spawn(&["port-forward", &format!("pod/{POD}"), ":8080"])?;
    let line = forward.line_with("Forwarding from 127.0.0.1:", SOON).await?;
    let port: u16 = line
        .split_once("127.0.0.1:")
        .and_then(|(_, rest)| rest.split(' ').next())
        .and_then(|port| port.parse().ok())
        .with_context(|| format!("no port in {line:?}"))?;
    wait_until("the page", SOON, async || {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        if answer.ends_with("a page\n") { Ok(()) } else { bail!("{answer:?}") }
    })
    .await?;
    forward.kill().await
}

/// Text that does not compress to nothing and does not repeat, of about so many bytes.
fn text_of(bytes: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut text = String::with_capacity(bytes + 17);
    while text.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(&format!("{state:016x}\n"));
    }
    text
}

fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) async fn fifty_megabytes_go_up_and_down_unharmed(world: &mut World) -> Outcome {
    let kubectl = world.admin_through_hub().await?.with_time_limit(Duration::from_secs(120));
    let content = text_of(50 << 20);
    let expected = sha256(content.as_bytes());
    let up = kubectl
        .ok_with(
            &["exec", "-i", POD, "--", "sh", "-c", "mkdir -p /www; cat > /www/big; sha256sum /www/big"],
            content.as_bytes(),
        )
        .await?;
    ensure!(up.starts_with(&expected), "up: {up}");
    let down = kubectl.ok(&["exec", POD, "--", "cat", "/www/big"]).await?;
    ensure!(sha256(down.as_bytes()) == expected, "down through exec: {} bytes", down.len());
    // The same as a plain response body, through the child apiserver's own pod proxy.
    let raw = format!("/api/v1/namespaces/default/pods/{POD}:8080/proxy/big");
    let down = kubectl.ok(&["get", "--raw", &raw]).await?;
    ensure!(sha256(down.as_bytes()) == expected, "down as a body: {} bytes", down.len());
    Ok(())
}
