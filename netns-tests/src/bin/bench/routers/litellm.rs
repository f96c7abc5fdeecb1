//! litellm's proxy with one model, which every worker serves.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, process::Command};

use super::processors;

/// Its configuration file, and how it is told to use it.
pub fn configure(command: &mut Command, workers: &[SocketAddr], port: u16, folder: &Path) -> anyhow::Result<()> {
    let mut text = String::from("model_list:\n");
    for worker in workers {
        writeln!(
            text,
            "  - model_name: bench\n    litellm_params:\n      model: openai/bench\n      \
             api_base: http://{worker}/v1\n      api_key: sk-bench"
        )?;
    }
    text.push_str("litellm_settings:\n  telemetry: false\n");
    let file = folder.join("litellm.yaml");
    fs::write(&file, text)?;
    command.arg("--config").arg(file).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    // Its usual server ends workers that take more than five seconds to load.
    command.args(["--run_gunicorn", "--num_workers", &processors().to_string(), "--telemetry", "False"]);
    // There is no way out of the sandbox to ask for prices, and nothing is written but errors.
    command.env("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true");
    command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True").env("LITELLM_LOG", "ERROR").env("LITELLM_MODE", "PRODUCTION");
    Ok(())
}
