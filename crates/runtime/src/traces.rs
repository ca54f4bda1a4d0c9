//! Traces of requests, sent to an OpenTelemetry collector; off unless one is named. A program begins one span for each
//! request ([`Traces::begin`]), which takes the place of the caller's in `traceparent`: whoever is asked next goes on from there.
//!
//! A span says how long something took and how it ended. What may stand in it is said where it is set, and is never a path,
//! a query, a header or the name of a person: who asked what is the audit log's subject.

use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// Spans that wait for the collector, about 1 KiB each; those beyond it are dropped, and no request waits.
const QUEUE: usize = 2_048;
/// Of them in one message.
const BATCH: usize = 512;
/// How often they are sent.
const EVERY: Duration = Duration::from_secs(5);
/// For one message, connecting included.
const SEND: Duration = Duration::from_secs(10);
/// For the last ones when the program ends.
const LAST: Duration = Duration::from_secs(2);
/// Longest answer of a collector that is read; the honest one is empty.
const ANSWER: usize = 64 * 1024;
/// Every request.
const MILLION: u32 = 1_000_000;
/// Where OTLP over HTTP takes spans (opentelemetry-proto, docs/specification.md, "OTLP/HTTP Request").
const PATH: &str = "/v1/traces";
/// `traceparent`'s companion (W3C Trace Context section 3.3).
const TRACESTATE: &str = "tracestate";

/// What can stand on the command line.
// clap names a group after the type, and programs have `Flags` of their own.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct Flags {
    /// OpenTelemetry collector that takes traces by OTLP over HTTP, like http://collector:4318; no traces if absent
    #[arg(long, env = "TOWLINE_TRACING_ENDPOINT")]
    tracing_endpoint: Option<String>,
    /// Of a million requests whose caller has not decided it, so many are traced
    #[arg(long, env = "TOWLINE_TRACING_SAMPLING_RATE_PER_MILLION", default_value = "10000")]
    tracing_sampling_rate_per_million: String,
}

/// What to trace, and for whom. The names are those of Kubernetes' `TracingConfiguration`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    endpoint: String,
    sampling_rate_per_million: u32,
}

impl Flags {
    /// `None` if there shall be no traces; what is wrong is added to `wrong`.
    pub fn check(self, wrong: &mut Vec<String>) -> Option<Settings> {
        let rate = self.tracing_sampling_rate_per_million;
        let per_million = rate.parse().ok().filter(|rate| *rate <= MILLION);
        if per_million.is_none() {
            wrong.push(format!(
                "--tracing-sampling-rate-per-million {rate:?} is no number between 0 and {MILLION}"
            ));
        }
        let endpoint = self.tracing_endpoint.filter(|given| !given.is_empty())?;
        Settings::new(&endpoint, per_million.unwrap_or_default())
            .map_err(|why| wrong.push(format!("--tracing-endpoint {why}")))
            .ok()
    }
}

impl Settings {
    /// A collector, and how many of a million requests are traced of those whose caller has not decided it.
    ///
    /// # Errors
    /// What is wrong with the collector's address.
    pub fn new(endpoint: &str, sampling_rate_per_million: u32) -> Result<Self, String> {
        Ok(Self { endpoint: origin(endpoint)?, sampling_rate_per_million })
    }
}

/// `http://HOST:PORT`, without a slash at its end.
fn origin(text: &str) -> Result<String, String> {
    // Whoever writes a password into it shall not find it in a log.
    let shown = if text.contains('@') { "a URL with credentials".to_owned() } else { format!("{text:?}") };
    let refuse = |why: &str| Err(format!("{shown} {why}, like http://collector:4318"));
    let Ok(url) = text.parse::<Uri>() else { return refuse("is no URL") };
    let Some(authority) = url.authority() else { return refuse("names no host") };
    if url.scheme_str() == Some("https") {
        return refuse(
            "begins with https://, and TLS is not spoken here: name a collector in the same cluster, which passes it on",
        );
    }
    if url.scheme_str() != Some("http") {
        return refuse("has to begin with http://");
    }
    if authority.as_str().contains('@') {
        return refuse("must not contain credentials");
    }
    if url.path() != "/" || url.query().is_some() {
        return refuse("has a path or a query; host and port alone are wanted");
    }
    Ok(format!("http://{authority}"))
}

/// Where spans begin. Cheap when there shall be none.
#[derive(Debug, Default)]
pub struct Traces(Option<On>);

#[derive(Debug)]
struct On {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    context: TraceContextPropagator,
}

impl Traces {
    /// Begins to send to the collector of these settings, if there are any, on a thread of its own. Called within a
    /// runtime.
    ///
    /// # Errors
    /// The exporter cannot be made, from these settings or from what OpenTelemetry reads of the environment itself.
    pub fn start(settings: Option<&Settings>, service: &'static str, instance: &str) -> anyhow::Result<Self> {
        let Some(settings) = settings else { return Ok(Self::default()) };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector { client: client(), runtime: Handle::current() })
            .with_endpoint(format!("{}{PATH}", settings.endpoint))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(SEND)
            .build()
            .context("--tracing-endpoint")?;
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(EVERY);
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(config.build()).build();
        let rate = f64::from(settings.sampling_rate_per_million) / f64::from(MILLION);
        let resource = Resource::builder_empty().with_service_name(service).with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance.to_owned()),
        ]);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(rate))))
            .with_resource(resource.build())
            .build();
        tracing::info!(endpoint = settings.endpoint, "traces are sent");
        let tracer = provider.tracer(service);
        Ok(Self(Some(On { provider, tracer, context: TraceContextPropagator::new() })))
    }

    /// Begins the span of a request with these headers, and tells the next one of it in them. A request that is not
    /// traced keeps what its caller sent.
    pub fn begin(&self, name: &'static str, headers: &mut HeaderMap) -> Span {
        let Some(On { tracer, context, .. }) = &self.0 else { return Span(None) };
        let parent = context.extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let span =
            tracer.build_with_context(SpanBuilder::from_name(name).with_kind(SpanKind::Server), &parent);
        if !span.is_recording() {
            return Span(None);
        }
        let here = Context::new().with_remote_span_context(span.span_context().clone());
        context.inject_context(&here, &mut HeaderInjector(headers));
        if headers.get(TRACESTATE).is_some_and(http::HeaderValue::is_empty) {
            headers.remove(TRACESTATE);
        }
        Span(Some(Box::new(span)))
    }

    /// Sends what has ended; no more is sent after that.
    pub async fn end(&self) {
        let Some(On { provider, .. }) = &self.0 else { return };
        let provider = provider.clone();
        let last = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST));
        if !matches!(timeout(2 * LAST, last).await, Ok(Ok(Ok(())))) {
            tracing::warn!("the last traces may not have been sent");
        }
    }
}

/// Of one request. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span(Option<Box<opentelemetry_sdk::trace::Span>>);

impl Span {
    /// Whether anything that is said of it is kept.
    pub fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Gives it another name: few are wanted, and what it is about is known only later.
    pub fn name(&mut self, name: String) {
        if let Some(span) = &mut self.0 {
            span.update_name(name);
        }
    }

    /// Says something of it.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// The head of the answer is there. A span has failed when its server has (OpenTelemetry semantic conventions, "HTTP
    /// server": 5xx).
    pub fn answered(&mut self, status: StatusCode) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
            span.add_event("answered", Vec::new());
            if status.is_server_error() {
                span.set_status(Status::error(""));
            }
        }
    }
}

fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

/// What carries spans to the collector: the exporter's thread has no runtime.
#[derive(Debug)]
struct Collector {
    client: Client<HttpConnector, Full<Bytes>>,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sent = async move {
            let (parts, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
            Ok::<_, HttpError>((parts, body))
        };
        let (mut parts, body) = self.runtime.spawn(async { timeout(SEND, sent).await }).await???;
        // As long as it was read.
        parts.headers.remove(header::TRANSFER_ENCODING);
        Ok(Response::from_parts(parts, body))
    }
}

#[cfg(test)]
mod collector;
#[cfg(test)]
mod tests;
