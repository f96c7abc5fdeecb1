//! What a story of containers stands on: an engine, bridges, and the members of a mesh in containers.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use wiremesh::{clock, sandbox};

use super::{Bridge, Compose, Coordinator, Engine, Worker, docker, docker::Docker, twin::Twin};
use crate::{
    Answer, fetch_in,
    story::{SAID_ALOUD, name_of, story_named},
};

/// Says which engine is wanted.
const WANTED: &str = "CONTAINERS_ON";
/// More than any of these stories takes on a machine that is busy with another.
const LIMIT: Duration = Duration::from_secs(150);
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Containers' addresses on a bridge begin here.
const FIRST_HOST: u8 = 11;

/// The machine that a story's containers run on.
#[derive(Clone)]
pub struct Ground {
    pub(super) engine: Arc<dyn Engine>,
    folder: PathBuf,
    bridges: Arc<AtomicU8>,
    hosts: Arc<AtomicU8>,
}

/// Tells a story of containers. Called by a `#[test]` function and by nothing else.
pub fn in_containers<F: FnOnce(&Ground) -> anyhow::Result<()>>(tell: F) {
    let name = name_of::<F>();
    // Of these two processes, the one outside lives to clear away what the kernel does not.
    let _leftovers = sandbox::scratch().is_none().then(|| docker::Leftovers::of(&name));
    story_named(&name, LIMIT, |scratch| {
        let ground = Ground::choose(scratch, &name)?;
        let on = ground.engine.describe();
        println!("\nthis story is told on {on}");
        let begun_at = clock::now();
        let told = tell(&ground);
        println!("\n{SAID_ALOUD}{name}: {:.1} s on {on}", (clock::now() - begun_at).as_secs_f64());
        told
    });
}

impl Ground {
    fn choose(scratch: &Path, story: &str) -> anyhow::Result<Ground> {
        let folder = scratch.join("containers");
        fs::create_dir_all(&folder)?;
        let on = |engine: Arc<dyn Engine>| Ground {
            engine,
            folder: folder.clone(),
            bridges: Arc::default(),
            hosts: Arc::new(FIRST_HOST.into()),
        };
        match std::env::var(WANTED).as_deref() {
            Ok("docker") => match Docker::start(scratch, &folder, story)? {
                Ok(docker) => Ok(on(Arc::new(docker))),
                Err(why) => anyhow::bail!("{WANTED} is docker, and there is no engine: {why}"),
            },
            Ok("twin") => Ok(on(Arc::new(Twin::new(&folder, "as wanted")?))),
            Ok(other) => anyhow::bail!("{WANTED} is {other}: docker and twin are understood"),
            Err(_) => match Docker::start(scratch, &folder, story)? {
                Ok(docker) => Ok(on(Arc::new(docker))),
                Err(why) => Ok(on(Arc::new(Twin::new(&folder, &why)?))),
            },
        }
    }

    /// One more bridge.
    pub fn bridge(&self, name: &str) -> anyhow::Result<Bridge> {
        let bridge = Bridge { name: name.to_owned(), number: self.bridges.fetch_add(1, Ordering::Relaxed) + 1 };
        self.engine.add_bridge(&bridge)?;
        Ok(bridge)
    }

    /// A coordinator on the machine's own network, at its address on this bridge.
    pub fn coordinator_on_the_machine(&self, at: &Bridge) -> anyhow::Result<Coordinator> {
        Coordinator::on_the_machine(self, &[at], "")
    }

    /// `deploy/compose.yaml` on this machine; none on the twin, which has nothing that reads it.
    pub fn compose(&self) -> Option<Compose> {
        self.engine.compose()
    }

    /// A worker on this bridge, to be described and started.
    pub fn worker(&self, name: &str, bridge: &Bridge) -> Worker {
        Worker::new(self.clone(), name, bridge, self.next_address(bridge))
    }

    /// Has a bridge drop UDP between its containers.
    pub fn block_udp(&self, bridge: &Bridge) -> anyhow::Result<()> {
        self.engine.block_udp(bridge)
    }

    /// Has it let UDP pass again.
    pub fn pass_udp(&self, bridge: &Bridge) -> anyhow::Result<()> {
        self.engine.pass_udp(bridge)
    }

    /// GET by a program on the machine.
    pub fn fetch(&self, url: &str, headers: &[(&str, &str)]) -> anyhow::Result<Answer> {
        fetch_in(&self.engine.machine(), reqwest::Method::GET, url, headers, "", REQUEST_LIMIT)
    }

    /// An address that no container has.
    pub fn next_address(&self, bridge: &Bridge) -> std::net::IpAddr {
        bridge.address(self.hosts.fetch_add(1, Ordering::Relaxed))
    }

    /// A folder for what one container and the story share.
    pub(super) fn folder(&self, container: &str, what: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join(container).join(what);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder)
    }
}
