use clap::{Command, FromArgMatches as _};
use http::HeaderValue;

use super::collector::Collector;
use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn headers(flags: &str) -> HeaderMap {
    let parent = format!("00-{TRACE}-{CALLER}-{flags}");
    HeaderMap::from_iter([
        ("traceparent".parse().unwrap(), parent.parse().unwrap()),
        ("tracestate".parse().unwrap(), HeaderValue::from_static("a=1")),
    ])
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn check(line: &[&str]) -> (Option<Settings>, Vec<String>) {
    let matches = Flags::augment_args(Command::new("test")).get_matches_from([&["test"], line].concat());
    let mut wrong = Vec::new();
    (Flags::from_arg_matches(&matches).unwrap().check(&mut wrong), wrong)
}

#[test]
fn flags_are_checked_and_no_endpoint_is_no_trace() {
    assert_eq!(check(&[]), (None, vec![]));
    assert_eq!(check(&["--tracing-endpoint="]), (None, vec![]));
    let (settings, _) = check(&["--tracing-endpoint=http://[::1]:4318/"]);
    let wanted = Settings { endpoint: "http://[::1]:4318".to_owned(), sampling_rate_per_million: 10_000 };
    assert_eq!(settings, Some(wanted));
    let (_, wrong) = check(&["--tracing-endpoint=https://a", "--tracing-sampling-rate-per-million=1000001"]);
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    for (given, told) in [
        ("https://a:4318", "TLS is not spoken here"),
        ("a:4318", "has to begin with http://"),
        ("http://user:hunter2@a", "credentials"),
        ("http://a/v1/traces", "has a path"),
        ("/a", "names no host"),
    ] {
        let (settings, wrong) = check(&["--tracing-endpoint", given]);
        assert_eq!(settings, None);
        assert!(wrong[0].contains(told) && !wrong[0].contains("hunter2"), "{given}: {wrong:?}");
    }
}

#[test]
fn without_a_collector_nothing_happens_to_a_request() {
    let mut asked = headers("01");
    assert!(!Traces::default().begin("a", &mut asked).is_kept());
    assert_eq!(asked, headers("01"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_span_takes_its_callers_place_and_reaches_the_collector() {
    let collector = Collector::start().await;
    let settings = Settings::new(&collector.endpoint, 0).unwrap();
    let traces = Traces::start(Some(&settings), "towline-test", "pod-7").unwrap();

    let mut asked = headers("01");
    let mut span = traces.begin("a", &mut asked);
    span.name("GET proxy".to_owned());
    span.set("k8s.cluster.name", "edge-7");
    span.answered(StatusCode::BAD_GATEWAY);
    drop(span);
    let next = asked["traceparent"].to_str().unwrap().to_owned();
    let parts: Vec<&str> = next.split('-').collect();
    assert_eq!((parts[1], parts[3]), (TRACE, "01"), "{next}");
    assert_ne!(parts[2], CALLER);
    assert_eq!(asked["tracestate"], "a=1");

    // Those that a caller does not want, or nobody has asked for.
    for mut asked in [headers("00"), HeaderMap::new()] {
        let before = asked.clone();
        assert!(!traces.begin("b", &mut asked).is_kept());
        assert_eq!(asked, before);
    }
    traces.end().await;
    for told in ["towline-test", "pod-7", "GET proxy", "k8s.cluster.name", "edge-7", "answered"] {
        assert!(collector.has(told), "{told}");
    }
    for id in [TRACE, CALLER, parts[2]] {
        assert!(collector.has(bytes(id)), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_nobody_traced_begins_a_trace_as_often_as_was_said() {
    let collector = Collector::start().await;
    let settings = Settings::new(&collector.endpoint, MILLION).unwrap();
    let traces = Traces::start(Some(&settings), "towline-test", "pod-7").unwrap();
    let mut asked = HeaderMap::new();
    assert!(traces.begin("a", &mut asked).is_kept());
    assert!(asked["traceparent"].to_str().unwrap().ends_with("-01"));
    assert!(!asked.contains_key("tracestate"), "an empty one");
    let mut unwanted = headers("00");
    assert!(!traces.begin("a", &mut unwanted).is_kept(), "the caller's word counts");
    traces.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_not_there_holds_nobody_up() {
    let settings = Settings::new("http://127.0.0.1:1", MILLION).unwrap();
    let traces = Traces::start(Some(&settings), "towline-test", "pod-7").unwrap();
    for _ in 0..2 * QUEUE {
        assert!(traces.begin("a", &mut HeaderMap::new()).is_kept());
    }
    let ended = timeout(3 * LAST, traces.end()).await;
    assert!(ended.is_ok());
}
