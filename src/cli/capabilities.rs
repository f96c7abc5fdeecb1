//! `wiremesh capabilities`: what this machine would tell others about itself, without joining anything.

use std::io::Write;

use super::failure::{DONE, Failure};
use crate::services::{Capabilities, io::MachineReader};

/// Shows what this machine would advertise: CPU, memory, GPUs
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh capabilities\n  wiremesh capabilities --json | jq .gpus")]
pub struct Args {
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// Reads the machine and prints it.
pub fn run(args: &Args, out: &mut impl Write) -> Result<u8, Failure> {
    let (machine, _) = MachineReader::new().read();
    print(&Capabilities::of(machine, None), args.json, out)?;
    Ok(DONE)
}

fn print(capabilities: &Capabilities, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(capabilities)?)?;
        return Ok(());
    }
    writeln!(out, "host      {}", capabilities.hostname)?;
    writeln!(out, "type      {}", capabilities.worker_type)?;
    writeln!(out, "cpu       {} cores", capabilities.cpu_cores)?;
    writeln!(out, "memory    {}", capabilities.ram)?;
    if capabilities.gpus.is_empty() {
        writeln!(out, "gpu       none")?;
    }
    for gpu in &capabilities.gpus {
        let temperature = gpu.temperature_celsius.map(|degrees| format!(", {degrees} °C")).unwrap_or_default();
        writeln!(
            out,
            "gpu {}     {}, {} MiB ({} in use), {} % busy{temperature}",
            gpu.index, gpu.name, gpu.memory_mib, gpu.memory_used_mib, gpu.utilization_percent
        )?;
    }
    if let Some(driver) = &capabilities.gpu_driver {
        writeln!(out, "driver    {driver}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{Gpu, Machine};

    #[test]
    fn a_machine_is_printed_for_people_and_for_programs() {
        let gpu = Gpu { name: "NVIDIA H200".into(), memory_mib: 143_771, ..Gpu::default() };
        let machine = Machine { hostname: "box".into(), cpu_cores: 16, gpus: vec![gpu], ..Machine::default() };
        let capabilities = Capabilities::of(machine, None);
        let (mut people, mut programs) = (Vec::new(), Vec::new());

        print(&capabilities, false, &mut people).unwrap();
        print(&capabilities, true, &mut programs).unwrap();

        assert!(
            String::from_utf8(people).unwrap().contains("gpu 0     NVIDIA H200, 143771 MiB (0 in use), 0 % busy\n")
        );
        assert_eq!(serde_json::from_slice::<Capabilities>(&programs).unwrap(), capabilities);
    }
}
