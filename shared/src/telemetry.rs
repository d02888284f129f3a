//! Logs and metrics of a process.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

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

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

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
        PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_sequences".to_owned()), &COUNTS))
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_texts".to_owned()), &COUNTS))
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_rows".to_owned()), &COUNTS))
            .expect("no list of buckets is empty")
            .install_recorder()
            .expect("muster installs the only recorder")
    });
}

/// Every metric of the process, in Prometheus' text format; empty before [`init_metrics`].
pub fn render_metrics() -> String {
    METRICS.get().map(PrometheusHandle::render).unwrap_or_default()
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
