//! Reads what the operating system and the GPU driver say about this machine.

use std::num::NonZero;

use nvml_wrapper::{Nvml, enum_wrappers::device::TemperatureSensor, error::NvmlError};
use sysinfo::System;

use crate::services::{
    Gpu, Machine,
    capabilities::{limits, mib},
};

/// Keeps the GPU driver's library open, and the last CPU times, from which the next reading tells the utilisation.
pub struct MachineReader {
    /// None where the operating system does not let itself be read.
    system: Option<System>,
    /// None where there is no driver. It is loaded at run time: no GPU is no error.
    nvml: Option<Nvml>,
}

impl MachineReader {
    /// Opens what there is to read from.
    #[expect(clippy::new_without_default, reason = "it loads a library, which a default should not")]
    pub fn new() -> MachineReader {
        let nvml = Nvml::init().inspect_err(|error| tracing::debug!(%error, "no GPU driver; going on without")).ok();
        let mut system = System::new().inspect_err(|error| tracing::warn!(%error, "machine not readable")).ok();
        if let Some(system) = &mut system {
            system.refresh_memory();
            system.refresh_cpu_usage();
        }
        MachineReader { system, nvml }
    }

    /// Whether reading may take a while: the GPU driver is asked over an ioctl.
    pub fn may_block(&self) -> bool {
        self.nvml.is_some()
    }

    /// The machine, and the utilisation of its CPUs since the last reading, from 0 to 1.
    pub fn read(&mut self) -> (Machine, f64) {
        let mut cpu = 0.0;
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            cpu = f64::from(system.global_cpu_usage()) / 100.0;
        }
        let system = self.system.as_ref();
        let machine = Machine {
            hostname: System::host_name().unwrap_or_default(),
            cpu_cores: limits::cores(system.map_or(0, |system| system.cpus().len()), cores_for_us()),
            ram_bytes: limits::memory(system.map_or(0, System::total_memory), memory_for_us(system)),
            gpus: self.nvml.as_ref().map(gpus).unwrap_or_default(),
            gpu_driver: self.nvml.as_ref().and_then(|nvml| nvml.sys_driver_version().ok()),
        };
        (machine, cpu)
    }
}

/// Of the affinity and the CPU quota of our cgroup, whole cores.
fn cores_for_us() -> Option<usize> {
    std::thread::available_parallelism().ok().map(NonZero::get)
}

/// Of our cgroup.
fn memory_for_us(system: Option<&System>) -> Option<u64> {
    Some(system?.cgroup_limits()?.total_memory)
}

/// All GPUs the driver lets us see; one that fails to answer is left out.
fn gpus(nvml: &Nvml) -> Vec<Gpu> {
    let count = nvml.device_count().unwrap_or(0);
    (0..count)
        .filter_map(|index| {
            gpu(nvml, index).inspect_err(|error| tracing::debug!(index, %error, "GPU does not answer")).ok()
        })
        .collect()
}

fn gpu(nvml: &Nvml, index: u32) -> Result<Gpu, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let memory = device.memory_info()?;
    Ok(Gpu {
        index,
        name: device.name()?,
        uuid: device.uuid()?,
        memory_mib: mib(memory.total),
        memory_used_mib: mib(memory.used),
        // A GPU cut into MIG slices has no figure for the whole.
        utilization_percent: device.utilization_rates().map_or(0, |rates| rates.gpu),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        processes: device.running_compute_processes_count().ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_a_processor_and_memory_with_or_without_a_gpu() {
        let (machine, cpu) = MachineReader::new().read();

        assert!(machine.cpu_cores > 0 && machine.ram_bytes > 0);
        assert!((0.0..=1.0).contains(&cpu));
    }
}
