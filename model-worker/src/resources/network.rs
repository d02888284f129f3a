//! How busy the network is.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use super::text::number;
use super::{Root, ratio};

/// Where the kernel shows interfaces.
const INTERFACES: &str = "/sys/class/net";
/// The type of an interface that leads back to the machine itself.
const LOOPBACK: u64 = 772;

/// What an interface can do, and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Interface {
    /// Megabits a second, where it is known.
    speed: Option<u64>,
    /// Bytes that came in, and that went out.
    bytes: [u64; 2],
}

/// Looks at the network, again and again.
#[derive(Debug)]
pub(super) struct NetworkMeter {
    /// Megabits a second that somebody has told us, which is then the speed of every interface.
    told: Option<NonZeroU32>,
    before: BTreeMap<String, Interface>,
}

impl NetworkMeter {
    pub(super) fn new(root: &Root, told: Option<NonZeroU32>) -> Self {
        Self { told, before: interfaces(root) }
    }

    /// How busy the fastest interface was since the last look, that long ago, in its busier direction; of several alike,
    /// the busiest.
    pub(super) fn look(&mut self, root: &Root, elapsed: Duration) -> Option<f64> {
        let before = std::mem::replace(&mut self.before, interfaces(root));
        let speed = |interface: &Interface| self.told.map(|told| u64::from(told.get())).or(interface.speed);
        let fastest = self.before.values().filter_map(speed).max()?;
        let capacity = fastest as f64 * 1e6 / 8.0 * elapsed.as_secs_f64();
        let busy = self.before.iter().filter(|(_, interface)| speed(interface) == Some(fastest));
        let busy = busy.filter_map(|(name, now)| {
            let before = before.get(name)?;
            let bytes = [0, 1].map(|way| now.bytes[way].saturating_sub(before.bytes[way]));
            Some(ratio(bytes[0].max(bytes[1]) as f64, capacity))
        });
        busy.reduce(f64::max)
    }
}

fn interfaces(root: &Root) -> BTreeMap<String, Interface> {
    root.names(INTERFACES).into_iter().filter_map(|name| Some((name.clone(), interface(root, &name)?))).collect()
}

fn interface(root: &Root, name: &str) -> Option<Interface> {
    let file = |file: &str| root.read(format!("{INTERFACES}/{name}/{file}")).and_then(|text| number(&text));
    if file("type") == Some(LOOPBACK) {
        return None;
    }
    // Interfaces without a device say a speed that means nothing: those of containers are always ten gigabits.
    let is_real = root.exists(format!("{INTERFACES}/{name}/device"));
    let speed = file("speed").filter(|&speed| is_real && speed > 0 && speed < u64::from(u32::MAX));
    Some(Interface { speed, bytes: [file("statistics/rx_bytes")?, file("statistics/tx_bytes")?] })
}
