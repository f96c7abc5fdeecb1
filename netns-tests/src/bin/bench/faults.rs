//! `bench faults`: what clients and workers see through wiremesh and through the routers that others use when
//! something goes wrong.
//!
//! ```text
//!                     ┌─► worker 1
//!   clients ─► router ┤                   each on a machine of its own; in wiremesh with an agent each
//!                     └─► worker 2
//! ```
//!
//! Workers write down what they execute. Each router is started anew for each fault, so that none meets what an earlier one
//! left behind; but for those that take long to start.

mod client;
mod outcome;
mod report;
mod rows;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use netns_tests::Lab;
use wiremesh::sandbox::Node;

use self::{client::Target, report::Line, rows::Fault};
use crate::{
    routers::{Mesh, Router, Running, WIREMESH},
    tree::Tree,
    upstream::{Behaviour, Stream, Upstream},
};

/// Ports of the routers, some of which take two.
const FIRST_PORT: u16 = 20_000;
const PORTS_EACH: u16 = 10;

/// What goes wrong, and for whom
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Only these: wiremesh, nginx, haproxy, sglang-router, vllm-router, smg, litellm
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// Not these
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Only these faults
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Fault>,
}

/// The machines, and what is between the clients and the workers at the moment.
struct Place {
    node: Node,
    upstreams: Vec<Upstream>,
    target: Target,
    tree: Tree,
    router: Option<Running>,
    scratch: PathBuf,
    /// Questions so far.
    asked: u64,
    /// Routers started so far.
    started: u16,
    _lab: Lab,
}

/// Shows every fault to everybody, and prints what came of it.
pub fn run(scratch: &Path, options: &Options, as_json: bool) -> anyhow::Result<()> {
    options.check()?;
    let (mut place, mut mesh) = Place::start(scratch, options.wants(WIREMESH))?;
    let (mut lines, mut missing) = (Vec::new(), Vec::new());
    if let Some(mesh) = &mut mesh {
        for fault in options.faults() {
            let outcome = place.put_mesh(mesh).and_then(|()| fault.show(&mut place, Some(&*mesh)));
            lines.push(Line::new(fault, WIREMESH, outcome));
        }
    }
    // Its agents would share the machine with the others.
    drop(mesh);
    for router in Router::all(|name| options.wants(name)) {
        match router {
            Ok(router) => {
                for fault in options.faults().filter(|fault| *fault != Fault::Freezes) {
                    let stays = router.starts_slowly() && place.router.is_some();
                    let started = if stays { Ok(()) } else { place.put(&router) };
                    // One that does not start once would take as long to fail again.
                    if let Err(error) = started {
                        lines.push(Line::new(fault, router.name, Err(error)));
                        break;
                    }
                    lines.push(Line::new(fault, router.name, fault.show(&mut place, None)));
                }
                place.router = None;
            }
            Err(one) => {
                eprintln!("{} is not shown: {}", one.name, one.looked);
                missing.push(one);
            }
        }
    }
    if as_json {
        println!("{:#}", report::json(&lines, &missing));
    } else {
        report::print(&lines, &missing);
    }
    Ok(())
}

impl Options {
    fn check(&self) -> anyhow::Result<()> {
        let known: Vec<&str> = [WIREMESH].into_iter().chain(Router::names()).collect();
        for name in self.with.iter().chain(&self.without) {
            anyhow::ensure!(known.contains(&name.as_str()), "nothing is called {name}: there are {known:?}");
        }
        Ok(())
    }

    fn wants(&self, name: &str) -> bool {
        let with = |wanted: &String| wanted == name;
        (self.with.is_empty() || self.with.iter().any(with)) && !self.without.iter().any(with)
    }

    fn faults(&self) -> impl Iterator<Item = Fault> {
        Fault::value_variants().iter().copied().filter(|fault| self.only.is_empty() || self.only.contains(fault))
    }
}

impl Place {
    fn start(scratch: &Path, with_mesh: bool) -> anyhow::Result<(Place, Option<Mesh>)> {
        let mut lab = Lab::new(scratch)?;
        let (client, first, second) = (lab.node("client")?, lab.node("first")?, lab.node("second")?);
        let node = client.node.clone();
        let upstreams = [&first, &second]
            .map(|agent| Upstream::start(&agent.node, &scratch.join(agent.node.name()).join("upstream")));
        let upstreams = upstreams.into_iter().collect::<anyhow::Result<Vec<Upstream>>>()?;
        let mesh = if with_mesh {
            eprintln!("starting wiremesh");
            Some(Mesh::start(&mut lab, client, None, [first, second])?)
        } else {
            None
        };
        let place = Place {
            node,
            target: Target { address: upstreams[0].address(), path: crate::routers::CHAT },
            upstreams,
            tree: Tree::default(),
            router: None,
            scratch: scratch.to_owned(),
            asked: 0,
            started: 0,
            _lab: lab,
        };
        Ok((place, mesh))
    }

    /// Puts a router between, started anew.
    fn put(&mut self, router: &Router) -> anyhow::Result<()> {
        self.router = None;
        self.behave(Behaviour::Answer, Stream::default())?;
        self.started += 1;
        let workers: Vec<_> = self.upstreams.iter().map(Upstream::address).collect();
        let folder = self.scratch.join(format!("{}-{}", router.name, self.started));
        let running = router.start(&self.node, &workers, FIRST_PORT + self.started * PORTS_EACH, &folder)?;
        self.target = Target { address: running.address, path: running.path };
        self.tree = running.tree();
        self.router = Some(running);
        Ok(())
    }

    /// Puts wiremesh between, started anew.
    fn put_mesh(&mut self, mesh: &mut Mesh) -> anyhow::Result<()> {
        self.behave(Behaviour::Answer, Stream::default())?;
        mesh.start_anew()?;
        self.target = Target { address: mesh.address(), path: Mesh::FAR };
        self.tree = mesh.all()?;
        Ok(())
    }

    fn behave(&mut self, behaviour: Behaviour, stream: Stream) -> anyhow::Result<()> {
        self.upstreams.iter_mut().try_for_each(|upstream| upstream.behave(behaviour, stream))
    }

    fn number(&mut self) -> u64 {
        self.asked += 1;
        self.asked
    }

    fn numbers(&mut self, count: u64) -> Vec<u64> {
        (0..count).map(|_| self.number()).collect()
    }
}
