//! What this machine is: the facts others choose by, in the words of the HTTP API.

use serde::{Deserialize, Serialize};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// What was read from the operating system and the GPU driver.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// The host's name.
    pub hostname: String,
    /// Logical processors that we may use.
    pub cpu_cores: usize,
    /// Main memory that we may use.
    pub ram_bytes: u64,
    /// GPUs, in the driver's order.
    pub gpus: Vec<Gpu>,
    /// Version of the GPU driver.
    pub gpu_driver: Option<String>,
}

/// One GPU.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Gpu {
    /// Position in the driver's list.
    pub index: u32,
    /// Product name, "NVIDIA A10G".
    pub name: String,
    /// Identifier that survives reboots.
    pub uuid: String,
    /// All of its memory, in MiB.
    pub memory_mib: u64,
    /// Memory in use, in MiB.
    pub memory_used_mib: u64,
    /// How much of the last moment some kernel was running, in percent.
    pub utilization_percent: u32,
    /// Degrees Celsius; absent where the driver does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<u32>,
    /// Programs that use it, ours and others'; absent where the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
}

/// What a node says about its machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Capabilities {
    /// The host's name.
    pub hostname: String,
    /// Logical processors.
    pub cpu_cores: usize,
    /// Whether there is a GPU we can see.
    pub has_gpu: bool,
    /// Name of the first GPU; null without.
    pub gpu_type: Option<String>,
    /// Memory of the first GPU, "24576 MiB"; null without.
    pub gpu_memory: Option<String>,
    /// "gpu" or "cpu", unless the operator calls it otherwise.
    pub worker_type: String,
    /// Main memory, "62GB".
    pub ram: String,
    /// How many GPUs.
    pub gpu_count: usize,
    /// Every GPU.
    pub gpus: Vec<Gpu>,
    /// Version of the GPU driver; null without.
    pub gpu_driver: Option<String>,
}

impl Capabilities {
    /// Says what `machine` is; `worker_type` is the operator's word for it, if there is one.
    pub fn of(machine: Machine, worker_type: Option<&str>) -> Capabilities {
        let first = machine.gpus.first();
        Capabilities {
            hostname: machine.hostname,
            cpu_cores: machine.cpu_cores,
            has_gpu: first.is_some(),
            gpu_type: first.map(|gpu| gpu.name.clone()),
            gpu_memory: first.map(|gpu| format!("{} MiB", gpu.memory_mib)),
            worker_type: worker_type.unwrap_or(if first.is_some() { "gpu" } else { "cpu" }).to_owned(),
            ram: format!("{}GB", (machine.ram_bytes + GIB / 2) / GIB),
            gpu_count: machine.gpus.len(),
            gpus: machine.gpus,
            gpu_driver: machine.gpu_driver,
        }
    }

    /// Mean utilisation of the GPUs, from 0 to 1; 0 without.
    pub fn gpu_utilization(&self) -> f64 {
        if self.gpus.is_empty() {
            return 0.0;
        }
        self.gpus.iter().map(|gpu| f64::from(gpu.utilization_percent)).sum::<f64>() / (100.0 * self.gpus.len() as f64)
    }
}

/// A container is given a part of its machine: others choose by that, not by what they will not get.
pub mod limits {
    /// So many of the machine's cores; without a limit, all.
    pub fn cores(machine: usize, ours: Option<usize>) -> usize {
        ours.filter(|&ours| ours > 0).map_or(machine, |ours| ours.min(machine.max(1)))
    }

    /// So much of the machine's memory, in bytes; no limit is told as one beyond it, or as 0.
    pub fn memory(machine: u64, ours: Option<u64>) -> u64 {
        ours.filter(|&ours| ours > 0).map_or(machine, |ours| ours.min(machine))
    }
}

/// Bytes as whole MiB.
pub fn mib(bytes: u64) -> u64 {
    bytes / MIB
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_gpu_says_so() {
        let machine =
            Machine { hostname: "box".into(), cpu_cores: 8, ram_bytes: 62 * GIB + 1000, ..Machine::default() };

        let json = serde_json::to_value(Capabilities::of(machine, None)).unwrap();

        assert_eq!(json["ram"], "62GB");
        assert_eq!(json["has_gpu"], false);
        assert_eq!(json["gpu_type"], serde_json::Value::Null);
        assert_eq!(json["worker_type"], "cpu");
    }

    #[test]
    fn a_container_is_no_larger_than_what_it_is_given() {
        assert_eq!(limits::cores(64, Some(2)), 2);
        assert_eq!([limits::cores(64, None), limits::cores(64, Some(64)), limits::cores(2, Some(64))], [64, 64, 2]);
        assert_eq!(limits::memory(62 * GIB, Some(GIB)), GIB);
        assert_eq!([None, Some(0), Some(u64::MAX)].map(|ours| limits::memory(62 * GIB, ours)), [62 * GIB; 3]);
    }

    #[test]
    fn every_gpu_says_how_busy_full_and_warm_it_is_as_far_as_its_driver_does() {
        let told = Gpu {
            name: "NVIDIA H200".into(),
            memory_mib: 143_771,
            memory_used_mib: 90_000,
            utilization_percent: 97,
            temperature_celsius: Some(61),
            processes: Some(2),
            ..Gpu::default()
        };
        let machine = Machine { gpus: vec![told, Gpu { index: 1, ..Gpu::default() }], ..Machine::default() };

        let json = serde_json::to_value(Capabilities::of(machine, None)).unwrap();

        let [told, silent] = [&json["gpus"][0], &json["gpus"][1]];
        assert_eq!((&told["utilization_percent"], &told["memory_used_mib"]), (&97.into(), &90_000.into()));
        assert_eq!((&told["temperature_celsius"], &told["processes"]), (&61.into(), &2.into()));
        assert!(silent.get("temperature_celsius").is_none() && silent.get("processes").is_none());
    }

    #[test]
    fn the_first_gpu_stands_for_the_machine_and_all_are_listed() {
        let gpu = Gpu { name: "NVIDIA A10G".into(), memory_mib: 24576, utilization_percent: 50, ..Gpu::default() };
        let machine = Machine { gpus: vec![gpu.clone(), Gpu { index: 1, ..gpu }], ..Machine::default() };

        let capabilities = Capabilities::of(machine, None);

        assert_eq!(capabilities.gpu_memory.as_deref(), Some("24576 MiB"));
        assert_eq!((capabilities.gpu_count, capabilities.worker_type.as_str()), (2, "gpu"));
        assert_eq!(capabilities.gpu_utilization(), 0.5);
    }
}
