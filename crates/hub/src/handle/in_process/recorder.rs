//! A child that writes down what reached it, behind a real tunnel: the second half of every promise about
//! what does *not* cross.

use std::fmt::Write as _;
use std::sync::Mutex;

use super::*;

/// What a child may see of a caller's request: what the tunnel needs, and the allow-list of
/// `forward::headers`. Written out here, so that a header added there has to be thought of twice.
const KNOWN: [&str; 25] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "audit-id",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-type",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "range",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "towline-identity",
    "towline-method",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-forwarded-for",
    "x-stream-protocol-version",
];
/// Values that the tests put where nothing may carry them on.
const FORBIDDEN: [&str; 3] = ["root", "secret", "evil"];

/// One request, as the child saw it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) who: Identity,
    pub(super) headers: HeaderMap,
    /// How many bytes, or that it broke; `None` while it is on its way.
    pub(super) body: Option<Result<usize, ()>>,
}

impl Seen {
    /// `GET /api`, and whatever is not what alice of the group dev sends: ` +5`, ` +cut`, ` as bob:ops`; with
    /// `!` before whatever should never have come this far.
    pub(super) fn short(&self) -> String {
        let mut text = format!("{} {}", self.method, self.target);
        let groups = self.who.groups().join(",");
        if (self.who.user(), groups.as_str()) != ("alice", "dev,clusternet:view") {
            let _ = write!(text, " as {}:{groups}", self.who.user());
        }
        match self.body {
            Some(Ok(0)) => {}
            Some(Ok(bytes)) => {
                let _ = write!(text, " +{bytes}");
            }
            Some(Err(())) => text.push_str(" +cut"),
            None => text.push_str(" +?"),
        }
        for smuggled in self.smuggled() {
            let _ = write!(text, " !{smuggled}");
        }
        text
    }

    /// What no request of any kind may bring along, and this one did.
    fn smuggled(&self) -> Vec<String> {
        let unknown = self.headers.keys().filter(|name| !KNOWN.contains(&name.as_str()));
        let mut found: Vec<_> = unknown.map(|name| name.to_string()).collect();
        if self.headers.get_all(IDENTITY_HEADER).iter().count() != 1 {
            found.push("identities".to_owned());
        }
        let mut shown = format!("{:?}", self.who);
        for (name, value) in &self.headers {
            if name != IDENTITY_HEADER {
                shown.push_str(&String::from_utf8_lossy(value.as_bytes()));
            }
        }
        found.extend(FORBIDDEN.iter().filter(|word| shown.contains(**word)).map(ToString::to_string));
        found
    }
}

/// What has reached the child so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Recorder(Arc<Mutex<Vec<Seen>>>);

impl Recorder {
    /// Writes the request down before anything else happens, then answers it.
    pub(super) fn answer(
        &self,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + Send + use<> {
        let upgrade = connect_target(&request).unwrap();
        let method = upgrade.as_ref().map_or_else(|| request.method().clone(), |(_, method)| method.clone());
        let seen = Seen {
            method: method.to_string(),
            target: request.uri().path_and_query().unwrap().to_string(),
            who: Identity::from_header(&request.headers()[IDENTITY_HEADER]).unwrap(),
            headers: request.headers().clone(),
            body: upgrade.is_some().then_some(Ok(0)),
        };
        let mut all = self.0.lock().unwrap();
        let at = all.len();
        all.push(seen);
        drop(all);
        let record = Arc::clone(&self.0);
        async move {
            if let Some((protocol, _)) = upgrade {
                return echo(&mut request, protocol, HeaderMap::new());
            }
            let answer = if request.method() == Method::HEAD { "" } else { "seen" };
            let body = request.into_body().collect().await.map(|body| body.to_bytes().len()).map_err(drop);
            if let Some(seen) = record.lock().unwrap().get_mut(at) {
                seen.body = Some(body);
            }
            Response::new(whole(answer.to_owned()))
        }
    }

    /// All requests since the last time. Waits for their bodies.
    pub(super) async fn take(&self) -> Vec<Seen> {
        let whole = async {
            while self.0.lock().unwrap().iter().any(|seen| seen.body.is_none()) {
                tokio::task::yield_now().await;
            }
        };
        let whole = tokio::time::timeout(Duration::from_secs(20), whole).await;
        let seen = std::mem::take(&mut *self.0.lock().unwrap());
        assert!(whole.is_ok(), "a body neither ends nor breaks: {seen:?}");
        seen
    }
}

impl World {
    /// With an agent whose child is a recorder.
    pub(super) async fn recorded() -> (Self, Recorder) {
        Self::recorded_with(Setup::default()).await
    }

    /// The same with a hub that is set up otherwise.
    pub(super) async fn recorded_with(setup: Setup) -> (Self, Recorder) {
        let recorder = Recorder::default();
        let child = recorder.clone();
        let world = Self::start_with(setup).await.connect_to(move |request| child.answer(request)).await;
        (world, recorder)
    }

    /// What the child has seen since the last time. A request of our own comes after all others in the same
    /// tunnel, so whatever was on its way has arrived when that one has.
    pub(super) async fn seen(&mut self, recorder: &Recorder) -> Vec<Seen> {
        let fence = self.get(Wire::H2, "alice", &format!("{BASE}/c1/proxy/direct/fence")).await;
        assert_eq!(fence.status(), 200, "the tunnel works");
        assert_eq!(text(fence).await, "seen");
        let mut seen = recorder.take().await;
        seen.retain(|seen| seen.target != "/fence");
        seen
    }
}
