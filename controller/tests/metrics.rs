//! What `/metrics` tells. Alone in its file: the metrics of a process are one, and other tests would count in them.

mod common;

use common::{Controller, Worker};

#[tokio::test]
async fn metrics_are_described() {
    muster_shared::telemetry::init_metrics();
    let (controller, worker) = (Controller::start().await, Worker::start().await);
    controller.client.register(&worker.registration(1)).await.expect("it is reachable");
    controller.granted().await;
    let (_, metrics) = controller.get("/metrics").await;
    for line in [
        "# HELP muster_controller_workers",
        "muster_controller_workers{state=\"ready\"} 1",
        "muster_controller_tickets 1",
        "muster_controller_dispatches_total{outcome=\"granted\"} 1",
        "muster_controller_registrations_total{result=\"accepted\"} 1",
        "muster_controller_dispatch_wait_seconds_bucket",
    ] {
        assert!(metrics.contains(line), "{line} is missing in:\n{metrics}");
    }
}
