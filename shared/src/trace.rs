//! Traces of requests: spans that OpenTelemetry's collectors join by W3C's trace context, sent over OTLP.
//!
//! Nothing is traced unless [`open`] was called, and then a request that is not costs one look at [`is_on`]. Spans end when
//! they are dropped, and wait in memory (as many as OpenTelemetry's `OTEL_BSP_*` variables say) for a thread that sends
//! them. Whoever is asked joins the trace of whoever asks.
//!
//! * `sender`: how they leave the process.
//! * [`served`] (feature `serve`): a service whose calls have spans.

mod sender;
#[cfg(feature = "serve")]
pub mod served;

use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use hyper::HeaderMap;
use hyper::http::HeaderValue;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::Span as _;
use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context as Joined, KeyValue, Value};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider};

use crate::secret::Secret;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// Longest `tracestate` that is told on, in bytes: W3C asks for no more, and whoever is called bounds its headers.
const STATE: usize = 512;
/// Longest time that sending the last spans may take.
const LAST: Duration = Duration::from_secs(5);
/// Longest time that one batch may take.
const SEND: Duration = Duration::from_secs(10);

static TRACES: OnceLock<Traces> = OnceLock::new();

#[derive(Debug)]
struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// Where traces go, and how many.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where batches are posted.
    pub endpoint: String,
    /// Headers that go along, such as a key.
    pub headers: Vec<(String, Secret)>,
    /// What the process is called.
    pub service: String,
    /// The part of the requests that is traced, from 0 to 1.
    pub ratio: f64,
    /// Whether it is for those alone whose asker does not say whether it is traced.
    pub heeds_parents: bool,
}

/// Begins to trace; a second call does nothing.
///
/// # Errors
/// Why these settings cannot be used.
pub fn open(settings: Settings) -> Result<(), String> {
    let sender = sender::Sender::new(SEND, &settings.headers)?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&settings.endpoint)
        .with_timeout(SEND)
        .with_http_client(sender)
        .build()
        .map_err(|error| error.to_string())?;
    let resource = Resource::builder()
        .with_service_name(settings.service.clone())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_sampler(sampler(&settings))
        .with_resource(resource)
        .with_span_processor(BatchSpanProcessor::builder(exporter).build())
        .build();
    let tracer = provider.tracer("muster");
    let _ = TRACES.set(Traces { provider, tracer });
    Ok(())
}

fn sampler(settings: &Settings) -> Sampler {
    let ratio = Sampler::TraceIdRatioBased(settings.ratio);
    if settings.heeds_parents { Sampler::ParentBased(Box::new(ratio)) } else { ratio }
}

/// Sends what has not been sent. Blocks, for some seconds at most.
pub fn close() {
    if let Some(traces) = TRACES.get() {
        // An endpoint that is away has been told of already.
        let _ = traces.provider.shutdown_with_timeout(LAST);
    }
}

/// Whether anything is traced.
pub fn is_on() -> bool {
    TRACES.get().is_some()
}

/// What a span is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A call that is answered here.
    Server,
    /// A call that is made from here.
    Client,
    /// A piece of work.
    Work,
}

/// A span under way; it ends when it is dropped.
#[derive(Debug)]
pub struct Span(opentelemetry_sdk::trace::Span);

/// The place of a span in its trace, for those that follow from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Context(SpanContext);

/// Begins a span, in the trace of `parent` or in one of its own; `None` where nothing is traced.
pub fn begin(name: impl Into<Cow<'static, str>>, side: Side, parent: Option<&Context>) -> Option<Span> {
    Some(TRACES.get()?.begin(SpanBuilder::from_name(name), side, parent))
}

/// Begins the span of a call with these headers, in the trace that they name. What they say wrongly does not count.
pub fn serve(name: impl Into<Cow<'static, str>>, headers: &HeaderMap) -> Option<Span> {
    let traces = TRACES.get()?;
    Some(traces.begin(SpanBuilder::from_name(name), Side::Server, Context::of(headers).as_ref()))
}

/// A moment by both clocks. What follows upon each other must be told by one: two of them differ by what passes between
/// looking at the one clock and at the other.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    now: Instant,
    told: SystemTime,
}

impl Clock {
    /// This moment.
    pub fn now() -> Self {
        Self { now: Instant::now(), told: SystemTime::now() }
    }

    /// Tells of a piece of work that is over.
    pub fn past(
        self,
        name: &'static str,
        parent: &Context,
        (begun, ended): (Instant, Instant),
        attributes: &[(&'static str, i64)],
    ) {
        let Some(traces) = TRACES.get() else { return };
        let attributes = attributes.iter().map(|&(name, value)| KeyValue::new(name, value));
        let builder = SpanBuilder::from_name(name).with_start_time(self.tell(begun)).with_attributes(attributes);
        traces.begin(builder, Side::Work, Some(parent)).0.end_with_timestamp(self.tell(ended));
    }

    /// What a clock on the wall showed then.
    fn tell(self, then: Instant) -> SystemTime {
        match self.now.checked_duration_since(then) {
            Some(before) => self.told - before,
            None => self.told + (then - self.now),
        }
    }
}

impl Traces {
    fn begin(&self, builder: SpanBuilder, side: Side, parent: Option<&Context>) -> Span {
        let kind = match side {
            Side::Server => SpanKind::Server,
            Side::Client => SpanKind::Client,
            Side::Work => SpanKind::Internal,
        };
        let joined = match parent {
            Some(Context(context)) => Joined::new().with_remote_span_context(context.clone()),
            None => Joined::new(),
        };
        Span(self.tracer.build_with_context(builder.with_kind(kind), &joined))
    }
}

impl Span {
    /// For what follows from it.
    pub fn context(&self) -> Context {
        Context(self.0.span_context().clone())
    }

    /// Whether anybody will read it.
    pub fn is_recorded(&self) -> bool {
        self.0.is_recording()
    }

    /// Says something about it.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(name, value));
    }

    /// Calls it something else.
    pub fn rename(&mut self, name: String) {
        self.0.update_name(name);
    }

    /// It failed; `kind` is one of a known few.
    pub fn fail(&mut self, kind: &'static str) {
        self.set("error.type", kind);
        self.0.set_status(Status::error(kind));
    }
}

impl Context {
    /// What a call's headers name, if they do.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        headers.contains_key(TRACEPARENT).then(|| Self::read(&Headers(headers))).flatten()
    }

    /// What [`Context::parent`] has told.
    pub fn parse(traceparent: &str) -> Option<Self> {
        Self::read(&Alone(traceparent))
    }

    fn read(from: &dyn Extractor) -> Option<Self> {
        if !from.get(TRACEPARENT).is_some_and(is_well_formed) {
            return None; // OpenTelemetry's reader takes numbers of any length
        }
        let joined = TraceContextPropagator::new().extract_with_context(&Joined::new(), from);
        let context = joined.span().span_context().clone();
        context.is_valid().then_some(Self(context))
    }

    /// As a `traceparent` header.
    pub fn parent(&self) -> String {
        let Self(context) = self;
        format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8() & 1)
    }

    /// The id of the trace.
    pub fn trace_id(&self) -> String {
        self.0.trace_id().to_string()
    }

    /// Puts it into the headers of a call, in the place of another.
    pub fn write(&self, headers: &mut HeaderMap) {
        if let Ok(parent) = HeaderValue::try_from(self.parent()) {
            headers.insert(TRACEPARENT, parent);
        }
        match HeaderValue::try_from(short(&self.0.trace_state().header())) {
            Ok(state) if !state.is_empty() => drop(headers.insert(TRACESTATE, state)),
            _ => drop(headers.remove(TRACESTATE)),
        }
    }
}

/// As many whole members of a `tracestate` as are told on, the latest ones, which stand first.
fn short(state: &str) -> &str {
    let Some(bytes) = state.as_bytes().get(..=STATE) else { return state };
    let end = bytes.iter().rposition(|&byte| byte == b',').unwrap_or(0);
    &state[..end]
}

/// Whether a `traceparent` has the parts that W3C wants, each of its length, in lower case.
fn is_well_formed(text: &str) -> bool {
    const LENGTHS: [usize; 4] = [2, 32, 16, 2];
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let mut parts = text.split('-');
    LENGTHS.iter().all(|&length| parts.next().is_some_and(|part| part.len() == length && part.bytes().all(is_hex)))
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

struct Alone<'a>(&'a str);

impl Extractor for Alone<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_context_is_told_on_as_it_came() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(PARENT));
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1,other=2"));
        let context = Context::of(&headers).expect("a context");
        assert_eq!((context.parent().as_str(), context.trace_id().as_str()), (PARENT, &PARENT[3..35]));
        let mut sent = HeaderMap::new();
        context.write(&mut sent);
        assert_eq!(sent, headers);
        assert_eq!(Context::parse(PARENT).expect("a context").parent(), PARENT);
    }

    #[test]
    fn of_a_long_state_whole_members_are_told_on_and_others_do_without() {
        let told = |state: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_static(PARENT));
            headers.insert(TRACESTATE, HeaderValue::try_from(state).expect("a header"));
            let mut sent = HeaderMap::new();
            Context::of(&headers).expect("a context").write(&mut sent);
            sent.get(TRACESTATE).map(|state| state.to_str().expect("text").to_owned())
        };
        let members = |count: usize| (0..count).map(|n| format!("m{n:03}={}", "v".repeat(250))).collect::<Vec<_>>();
        assert_eq!(told(&members(2).join(",")), Some(members(2).join(",")), "511 bytes");
        assert_eq!(told(&members(32).join(",")), Some(members(2).join(",")));
        let exact = format!("a={},b=1", "v".repeat(STATE - 2));
        assert_eq!(short(&exact), &exact[..STATE]);
        assert_eq!(short(&format!("a={}", "v".repeat(STATE - 1))), "");
    }

    #[test]
    fn times_of_one_clock_are_as_far_apart_as_they_were() {
        let (clock, gap) = (Clock::now(), Duration::from_nanos(1_234_567));
        for begun in [clock.now - gap * 3, clock.now - gap / 2, clock.now + gap] {
            assert_eq!(clock.tell(begun + gap).duration_since(clock.tell(begun)).ok(), Some(gap));
        }
        assert_eq!(clock.tell(clock.now), clock.told);
    }

    #[test]
    fn what_is_no_context_counts_as_none() {
        for text in [
            "",
            "00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert_eq!(Context::parse(text), None, "{text}");
        }
    }

    #[test]
    fn nothing_is_traced_unless_asked_for() {
        assert!(!is_on() && begin("a", Side::Work, None).is_none() && serve("a", &HeaderMap::new()).is_none());
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(parent: Vec<u8>, state: Vec<u8>) {
            let mut headers = HeaderMap::new();
            for (name, value) in [(TRACEPARENT, parent), (TRACESTATE, state)] {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    headers.insert(name, value);
                }
            }
            if let Some(context) = Context::of(&headers) {
                context.write(&mut headers);
            }
        }

        #[test]
        fn whatever_is_taken_is_well_formed_when_it_is_told_on(text in "00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}") {
            if let Some(context) = Context::parse(&text) {
                let told = context.parent();
                prop_assert_eq!(&told[..53], &text[..53]);
                prop_assert_eq!(Context::parse(&told).map(|context| context.parent()), Some(told));
            }
        }
    }
}
