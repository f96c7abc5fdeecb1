//! The program from outside: started, told what to do, asked what it did.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use netns_tests::{Process, eventually};
use nix::sys::signal::Signal;
use reqwest::Method;
use wiremesh::sandbox::Node;

use super::{Behaviour, Stream};
use crate::programs::until_ready;

const START_LIMIT: Duration = Duration::from_secs(10);
/// Where it listens, on its node.
pub const UPSTREAM_PORT: u16 = 9100;

/// A model server on a node.
pub struct Upstream {
    node: Node,
    folder: PathBuf,
    process: Process,
}

/// What a model server noted.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// How often it began to execute each request.
    pub executed: BTreeMap<u64, u64>,
    /// When it saw that the client of a request had left, in nanoseconds of [`super::nanos`].
    pub left: BTreeMap<u64, u64>,
}

impl Upstream {
    /// Starts it.
    pub fn start(node: &Node, folder: &Path) -> anyhow::Result<Upstream> {
        fs::create_dir_all(folder)?;
        let (process, folder) = (Upstream::process(node, folder)?, folder.to_owned());
        Ok(Upstream { node: node.clone(), folder, process })
    }

    /// Where it is reached from other nodes.
    pub fn address(&self) -> SocketAddr {
        (self.node.address(), UPSTREAM_PORT).into()
    }

    /// Where it is reached on its node.
    pub fn local(&self) -> SocketAddr {
        (IpAddr::from([127, 0, 0, 1]), UPSTREAM_PORT).into()
    }

    /// Tells it what to do from here on. If it has ended, or is about to, it is started again.
    pub fn behave(&mut self, behaviour: Behaviour, stream: Stream) -> anyhow::Result<()> {
        let Stream { every, events } = stream;
        let path = format!("/lab/do?behaviour={behaviour}&every_ms={}&events={events}", every.as_millis());
        eventually("the upstream does as it is told", START_LIMIT, || {
            if self.process.expect_running().is_err() {
                self.process = Upstream::process(&self.node, &self.folder)?;
            }
            self.get(&path)
        })
    }

    /// Ends it. Whoever connects is refused.
    pub fn end(&mut self) -> anyhow::Result<()> {
        self.process.kill()
    }

    /// Stops it where it is: connections are made and nothing is answered. Or lets it go on.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.process.signal(signal)
    }

    /// What it noted, over all its runs.
    pub fn noted(&self) -> anyhow::Result<Noted> {
        let mut noted = Noted::default();
        for line in fs::read_to_string(self.folder.join("notes"))?.lines() {
            let mut words = line.split(' ');
            let (what, number, nanos) = (words.next(), words.next(), words.next());
            let number = number.context("a note without a number")?.parse()?;
            match what {
                Some("executed") => *noted.executed.entry(number).or_default() += 1,
                _ => _ = noted.left.insert(number, nanos.context("a note without a time")?.parse()?),
            }
        }
        Ok(noted)
    }

    fn process(node: &Node, folder: &Path) -> anyhow::Result<Process> {
        let mut command = node.command(std::env::current_exe()?)?;
        command
            .args(["upstream", "--listen", &format!("0.0.0.0:{UPSTREAM_PORT}"), "--notes"])
            .arg(folder.join("notes"));
        let mut process = Process::start("upstream", command, &folder.join("upstream.log"))?;
        until_ready(&mut process, START_LIMIT, || {
            node.run(|| std::net::TcpStream::connect(("127.0.0.1", UPSTREAM_PORT)))??;
            Ok(())
        })?;
        Ok(process)
    }

    fn get(&self, path: &str) -> anyhow::Result<()> {
        let url = format!("http://{}{path}", self.local());
        netns_tests::fetch(&self.node, Method::GET, &url, &[], "", START_LIMIT)?.expect_ok()?;
        Ok(())
    }
}
