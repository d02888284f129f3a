//! Logs and metrics of a process.

use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use metrics::{describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

const BUILD_INFO: &str = "muster_build_info";

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Bucket edges of every histogram that ends in `_seconds`: 1 ms to 80 s, doubling.
const SECONDS: [f64; 18] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84,
];

/// Upper bounds of the buckets in which sizes of batches are counted.
const COUNTS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// Upper bounds of OpenTelemetry's buckets for tokens of a request: powers of 4.
const TOKENS: [f64; 14] = [
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0,
    67108864.0,
];
/// Those for the duration of a request, in seconds.
const DURATION: [f64; 14] = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// Those for the time to the first token.
const FIRST_TOKEN: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Those for each token after it.
const NEXT_TOKEN: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

/// Metrics whose buckets are others' choice, or that are not in seconds, and their buckets.
fn buckets() -> [(Matcher, &'static [f64]); 8] {
    let (full, suffix) = (|name: &str| Matcher::Full(name.to_owned()), |end: &str| Matcher::Suffix(end.to_owned()));
    [
        (suffix("_seconds"), &SECONDS),
        (suffix("_sequences"), &COUNTS),
        (suffix("_texts"), &COUNTS),
        (suffix("_rows"), &COUNTS),
        (full("gen_ai_client_token_usage"), &TOKENS),
        (full("gen_ai_server_request_duration_seconds"), &DURATION),
        (full("gen_ai_server_time_to_first_token_seconds"), &FIRST_TOKEN),
        (full("gen_ai_server_time_per_output_token_seconds"), &NEXT_TOKEN),
    ]
}

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();
/// What the system says of the process.
static PROCESS: LazyLock<metrics_process::Collector> = LazyLock::new(metrics_process::Collector::default);

/// Sends logs to standard error. `filter` is in `RUST_LOG`'s syntax.
///
/// # Errors
/// When the filter cannot be read.
pub fn init_logs(filter: &str, format: LogFormat, colour: bool) -> Result<(), tracing_subscriber::filter::ParseError> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_writer(std::io::stderr)
        .with_timer(SystemTime)
        .with_ansi(colour);
    // A second call, in a test say, keeps the first subscriber.
    let _ = match format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    Ok(())
}

/// Makes the process record metrics; further calls do nothing.
///
/// # Panics
/// When another recorder is installed already.
pub fn init_metrics() {
    METRICS.get_or_init(|| {
        let set = |builder: PrometheusBuilder, (which, bounds)| {
            builder.set_buckets_for_metric(which, bounds).expect("no list of buckets is empty")
        };
        let builder = buckets().into_iter().fold(PrometheusBuilder::new(), set);
        let handle = builder.install_recorder().expect("muster installs the only recorder");
        PROCESS.describe();
        describe_gauge!(BUILD_INFO, "Always 1; its label is the version that runs");
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1);
        handle
    });
}

/// Every metric of the process, in Prometheus' text format; empty before [`init_metrics`].
pub fn render_metrics() -> String {
    let Some(metrics) = METRICS.get() else { return String::new() };
    PROCESS.collect();
    metrics.render()
}

/// Folds recorded samples into their histograms now and then, for ever: unread samples would pile up otherwise.
pub(crate) async fn metrics_upkeep() {
    let mut beat = tokio::time::interval(Duration::from_secs(5));
    loop {
        beat.tick().await;
        if let Some(metrics) = METRICS.get() {
            metrics.run_upkeep();
        }
    }
}
