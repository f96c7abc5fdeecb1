//! Measures the machine every two seconds.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Handle, MachineReader};
use crate::{clock, services::Capabilities};

/// How often GPU and CPU are measured.
const METER_EVERY: Duration = Duration::from_secs(2);

pub(super) async fn run(
    services: Handle,
    mut reader: MachineReader,
    worker_type: Option<String>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut due = clock::beats(METER_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = due.tick() => {}
        }
        let (machine, cpu);
        if reader.may_block() {
            (reader, machine, cpu) = tokio::task::spawn_blocking(move || {
                let (machine, cpu) = reader.read();
                (reader, machine, cpu)
            })
            .await?;
        } else {
            (machine, cpu) = reader.read();
        }
        services.measured(Capabilities::of(machine, worker_type.as_deref()), cpu);
    }
}
