//! `muster doctor`: what muster finds on this machine.

use std::net::TcpListener;
use std::path::Path;

use muster_worker::catalog;
use muster_worker::config::ModelSource;
use muster_worker::error::LoadError;
use muster_worker::hub::HubError;
use muster_worker::model::ModelError;
use muster_worker::model::onnx::runtime;

use crate::cli::DoctorArgs;
use crate::config::{File, WorkerSection};
use crate::services::say;

/// Ports that the services take when nothing else is said.
const PORTS: [(u16, &str); 3] = [(8000, "gateway"), (21001, "controller"), (21002, "worker")];

/// Looks at everything; an error at the end when something is missing.
pub(crate) fn run(args: Box<DoctorArgs>, file: File) -> anyhow::Result<()> {
    let section = args.worker.or(file.worker).or(WorkerSection::defaults());
    let mut config = section.config()?;
    let offline = std::mem::replace(&mut config.hub.offline, true); // to look is not to download
    let mut missing = Vec::new();

    say(&format!("muster        {}", env!("CARGO_PKG_VERSION")));
    match runtime::start(&config.library) {
        Ok(runtime) => {
            say(&format!("ONNX Runtime  {}", runtime.library.display()));
            say(&format!("              {}", runtime.build));
        }
        Err(error) => {
            say(&format!("ONNX Runtime  missing: {error}"));
            missing.push("ONNX Runtime".to_owned());
        }
    }
    say(&format!("threads       {} for one model; {}", config.threads_in_force(), quota()));
    say(&format!("GPUs          {}", gpus()));
    for (port, service) in PORTS {
        let state = if TcpListener::bind(("127.0.0.1", port)).is_ok() { "free" } else { "in use" };
        say(&format!("port {port:<8} {state} (usual for the {service})"));
    }
    for model in &config.models {
        let place = place(&model.source);
        match catalog::try_load(&config, model) {
            Ok(()) => say(&format!("model         {}: loads ({place})", model.name)),
            // Said above, once for all.
            Err(LoadError::Model(ModelError::Runtime(_))) => {
                say(&format!("model         {}: needs ONNX Runtime ({place})", model.name));
            }
            Err(LoadError::Hub(HubError::NotCached { file, .. })) if !offline => {
                say(&format!("model         {}: to be downloaded, {file} is not in the cache ({place})", model.name));
            }
            Err(error) => {
                say(&format!("model         {}: {}", model.name, muster_shared::problem::chain(&error)));
                missing.push(format!("model {}", model.name));
            }
        }
    }
    anyhow::ensure!(missing.is_empty(), "not usable: {}", missing.join(", "));
    say("everything is there");
    Ok(())
}

fn place(source: &ModelSource) -> String {
    match source {
        ModelSource::Folder(path) => path.display().to_string(),
        ModelSource::Hub(model) => format!("{model} of the hub"),
        ModelSource::Fake(_) => "no files".to_owned(),
        #[cfg(feature = "demo")]
        ModelSource::DemoChat | ModelSource::DemoEmbedding => "built in".to_owned(),
    }
}

/// The processor quota of the control group (cgroup v2, then v1), in words.
fn quota() -> String {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let v2 = read("/sys/fs/cgroup/cpu.max").and_then(|text| {
        let (quota, period) = text.trim().split_once(' ')?;
        Some((quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?))
    });
    let v1 = || {
        let number = |name: &str| read(&format!("/sys/fs/cgroup/cpu/cpu.cfs_{name}_us"))?.trim().parse::<f64>().ok();
        Some((number("quota")?, number("period")?)).filter(|(quota, _)| *quota > 0.0)
    };
    match v2.or_else(v1) {
        Some((quota, period)) if period > 0.0 => format!("cgroup quota of {:.1} processors", quota / period),
        _ => "no cgroup quota".to_owned(),
    }
}

/// NVIDIA's devices, by what its driver shows in /proc.
fn gpus() -> String {
    let names = |folder: &Path| -> Option<Vec<String>> {
        let entries = std::fs::read_dir(folder).ok()?;
        let information =
            entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path().join("information")).ok());
        let model = |text: String| text.lines().find_map(|line| Some(line.strip_prefix("Model:")?.trim().to_owned()));
        Some(information.filter_map(model).collect())
    };
    match names(Path::new("/proc/driver/nvidia/gpus")) {
        Some(found) if !found.is_empty() => format!("{} (this version computes on the processor)", found.join(", ")),
        _ => "none found".to_owned(),
    }
}
