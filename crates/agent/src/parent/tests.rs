//! The way to a parent: through a proxy or not, and what can stand in it.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::testing::{Pki, Server, secret, text};

async fn hub(code: u16) -> Server {
    Server::start(&["http/1.1"], 1, move |_, request| {
        let token = request.headers()[header::AUTHORIZATION].to_str().unwrap().to_owned();
        let path = request.uri().path().to_owned();
        Box::pin(async move {
            let mut answer =
                text(code, serde_json::json!({ "message": format!("{token} {path}") }).to_string());
            answer.headers_mut().insert(header::LOCATION, "https://127.0.0.1:1/".parse().unwrap());
            answer
        })
    })
    .await
}

fn parent(server: &Server, proxy: &Proxy) -> Parent {
    Parent::new(&server.url(), server.pki.ca_pem.as_bytes(), proxy).unwrap()
}

/// A proxy that wants this Proxy-Authorization and records what it was asked.
async fn proxy(wanted: &'static str) -> (u16, Arc<Mutex<Vec<String>>>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let seen = Arc::clone(&seen);
            connections.spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let first = head.lines().next().unwrap().to_owned();
                let target = first.split(' ').nth(1).unwrap().to_owned();
                seen.lock().unwrap().push(first);
                if !head.to_ascii_lowercase().contains(&wanted.to_ascii_lowercase()) {
                    let _ = client.write_all(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n").await;
                    return;
                }
                let mut server = TcpStream::connect(target).await.unwrap();
                client.write_all(b"HTTP/1.1 200 Established\r\n\r\n").await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (port, asked, tasks)
}

fn through(port: u16, user: &str, no: &str) -> Proxy {
    Proxy { https: Some(secret(&format!("http://{user}127.0.0.1:{port}"))), no: no.to_owned() }
}

async fn register(parent: &Parent) -> Result<Answer, Trouble> {
    parent.register(b"{}".to_vec(), &secret("t"), &Tasks::default()).await
}

async fn dial(parent: &Parent) -> Trouble {
    parent.websocket("/attach", &secret("t"), &Tasks::default()).await.err().unwrap()
}

#[tokio::test]
async fn a_proxy_is_used_with_its_password_unless_no_proxy_excepts_the_parent() {
    let hub = hub(201).await;
    let (port, asked, _tasks) = proxy("proxy-authorization: basic dXNlcjpwYXNz").await;
    let answer = register(&parent(&hub, &through(port, "user:pass@", "example.com"))).await.unwrap();
    assert_eq!(answer.code, 201);
    assert_eq!(*asked.lock().unwrap(), [format!("CONNECT localhost:{} HTTP/1.1", hub.port)]);

    for excepted in ["localhost", "*", "a, localhost"] {
        register(&parent(&hub, &through(port, "user:pass@", excepted))).await.unwrap();
    }
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn each_obstacle_has_its_code() {
    let hub = hub(201).await;
    let (port, _, _tasks) = proxy("proxy-authorization: basic dXNlcjpwYXNz").await;
    let refused = register(&parent(&hub, &through(port, "user:wrong@", ""))).await.unwrap_err();
    assert_eq!(refused.code, Code::Proxy);
    assert!(refused.message.contains("407") && !refused.message.contains("wrong"), "{refused}");
    assert_eq!(register(&parent(&hub, &through(1, "", ""))).await.unwrap_err().code, Code::Proxy);

    let other_ca = Parent::new(&hub.url(), Pki::new().ca_pem.as_bytes(), &Proxy::default()).unwrap();
    assert_eq!(register(&other_ca).await.unwrap_err().code, Code::Tls);
    let closed = Parent::new("https://127.0.0.1:1", hub.pki.ca_pem.as_bytes(), &Proxy::default()).unwrap();
    assert_eq!(register(&closed).await.unwrap_err().code, Code::Tcp);
    let nowhere = "https://does-not-exist.invalid";
    let nowhere = Parent::new(nowhere, hub.pki.ca_pem.as_bytes(), &Proxy::default()).unwrap();
    assert_eq!(register(&nowhere).await.unwrap_err().code, Code::Dns);
    for (url, ca) in [("http://a", hub.pki.ca_pem.as_str()), ("https://a", "no pem")] {
        let broken = Parent::new(url, ca.as_bytes(), &Proxy::default()).unwrap_err();
        assert_eq!(broken.code, Code::Registration);
    }
}

#[tokio::test]
async fn an_answer_other_than_101_tells_what_is_wrong_and_a_redirect_is_not_followed() {
    for (code, expected) in [
        (401, Code::Refused),
        (403, Code::Refused),
        (404, Code::NotFound),
        (503, Code::HubDown),
        (429, Code::HubDown),
        (200, Code::Upgrade),
        (307, Code::Upgrade),
        (400, Code::Upgrade),
    ] {
        let trouble = dial(&parent(&hub(code).await, &Proxy::default())).await;
        assert_eq!(trouble.code, expected, "{code}: {trouble}");
        assert!(trouble.message.contains("/attach"), "{trouble}");
    }
}

#[tokio::test]
async fn a_path_in_the_parents_url_stands_before_every_path() {
    let hub = hub(200).await;
    let url = format!("{}/k8s/parent/", hub.url());
    let parent = Parent::new(&url, hub.pki.ca_pem.as_bytes(), &Proxy::default()).unwrap();
    let answer = register(&parent).await.unwrap();
    assert!(String::from_utf8_lossy(&answer.body).contains("/k8s/parent/apis/access.towline.io/"));
}

#[tokio::test]
async fn when_to_come_again_is_read_from_an_answer_that_says_later_and_from_no_other() {
    let day = (24 * 3600).to_string();
    for (code, line, expected) in [
        (503, Some("7"), Some(7)),
        (429, Some(" 2 "), Some(2)),
        (500, Some("0"), Some(0)),
        // Nobody sends an agent away for a day.
        (503, Some(day.as_str()), Some(60)),
        (503, Some("-1"), None),
        (503, Some("soon"), None),
        (503, Some("Sun, 06 Nov 1994 08:49:37 GMT"), None),
        (503, None, None),
        (401, Some("7"), None),
    ] {
        let line: Option<HeaderValue> = line.map(|line| line.parse().unwrap());
        let server = Server::start(&["http/1.1"], 1, move |_, _| {
            let mut answer = text(code, "{}");
            if let Some(line) = line.clone() {
                answer.headers_mut().insert(header::RETRY_AFTER, line);
            }
            Box::pin(async { answer })
        })
        .await;
        let trouble = dial(&parent(&server, &Proxy::default())).await;
        assert_eq!(trouble.after.map(|after| after.as_secs()), expected, "{trouble}");
    }
}
