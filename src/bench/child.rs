//! A controller in a process of its own, so that its processor time is its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

/// The controller; it is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Controller {
    child: Child,
    /// Its base URL.
    pub(super) url: String,
}

impl Controller {
    /// Starts this very binary as a controller on a free port, and waits until it says where it is.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn start(flags: &[&str]) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("cannot find this binary")?;
        let mut command = Command::new(binary);
        // Without an environment: what is set for the user's own controller is not meant for this one.
        command.env_clear().args(["controller", "--host", "127.0.0.1", "--port", "0", "--log", "error"]).args(flags);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut controller = Self { child: child.context("cannot start a controller")?, url: String::new() };
        let mut line = String::new();
        if let Some(output) = controller.child.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        controller.url = url.context("the controller ended at once; its reason stands above")?.to_owned();
        Ok(controller)
    }

    /// Its number in the system.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
