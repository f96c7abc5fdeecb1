//! nebula: two members that know where the other is, without a lighthouse.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::Context;
use netns_tests::Process;

use super::{Beside, Running, file_for};
use crate::{
    overlay::{
        daemons::Daemons,
        place::{Place, SIDES, Side},
    },
    programs::until_ready,
};

const PORT: u16 = 4242;
const START_LIMIT: Duration = Duration::from_secs(10);

/// nebula; its `nebula-cert` is beside it.
#[derive(Debug)]
pub struct Nebula;

impl Nebula {
    pub(super) fn start(&self, program: &Path, place: &Place, folder: &Path, number: usize) -> anyhow::Result<Running> {
        let certifier = program.with_file_name("nebula-cert");
        certify(&certifier, folder, &["ca", "-name", "bench", "-out-crt", "ca.crt", "-out-key", "ca.key"])?;
        let mut processes = Vec::new();
        for side in SIDES {
            let (name, address) = (side.name(), own_address(side));
            let (certificate, key) = (format!("{name}.crt"), format!("{name}.key"));
            let network = format!("{address}/16");
            certify(
                &certifier,
                folder,
                &["sign", "-name", name, "-ip", &network, "-out-crt", &certificate, "-out-key", &key],
            )?;
            let interface = format!("bench{number}{}", &name[..1]);
            let file = file_for(folder, "nebula", side, "yml");
            fs::write(&file, configuration(place, side, folder, &interface))?;
            let mut command = place.namespace(side).command(program)?;
            command.arg("-config").arg(file);
            let mut process = Process::start("nebula", command, &file_for(folder, "nebula", side, "log"))?;
            until_ready(&mut process, START_LIMIT, || {
                place.namespace(side).run(|| nix::net::if_::if_nametoindex(&*interface))??;
                Ok(())
            })?;
            processes.push(process);
        }
        let addresses = SIDES.map(|side| IpAddr::V4(own_address(side)));
        Ok(Running { daemons: Daemons::new(processes)?, mtu: place.overlay_mtu(), addresses, _beside: Beside::Nothing })
    }
}

fn own_address(side: Side) -> Ipv4Addr {
    match side {
        Side::Near => Ipv4Addr::new(10, 43, 0, 1),
        Side::Far => Ipv4Addr::new(10, 43, 0, 2),
    }
}

fn certify(certifier: &Path, folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(certifier);
    let output = command.args(arguments).current_dir(folder).output();
    let output = output.with_context(|| format!("running {}", certifier.display()))?;
    anyhow::ensure!(output.status.success(), "nebula-cert {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The MTU is the others', so that packets are as many; its own default is 1300. All else is nebula's default.
fn configuration(place: &Place, side: Side, folder: &Path, interface: &str) -> String {
    let (name, other, mtu) = (side.name(), side.other(), place.overlay_mtu());
    let file = |file: &str| folder.join(file).display().to_string();
    format!(
        "pki: {{ca: {:?}, cert: {:?}, key: {:?}}}\n\
         static_host_map: {{\"{}\": [\"{}:{PORT}\"]}}\n\
         lighthouse: {{am_lighthouse: false, hosts: []}}\n\
         listen: {{host: \"0.0.0.0\", port: {PORT}}}\n\
         tun: {{dev: {interface}, mtu: {mtu}}}\n\
         logging: {{level: error}}\n\
         firewall:\n  outbound: [{{port: any, proto: any, host: any}}]\n  inbound: [{{port: any, proto: any, host: any}}]\n",
        file("ca.crt"),
        file(&format!("{name}.crt")),
        file(&format!("{name}.key")),
        own_address(other),
        other.underlay(),
    )
}
