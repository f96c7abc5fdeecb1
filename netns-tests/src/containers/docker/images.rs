//! The images: `deploy/Dockerfile` on a base of the machine's own files, since no registry is needed for a story. They are
//! built once for each build of the programs and kept in a file of the target folder, from which every engine takes them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};

use super::cli::Cli;
use crate::{
    containers::Program,
    lab::{beside_the_tests, wiremesh_binary},
    story::ENGINE_FOLDER,
};

/// The lab's service, in the base of the images.
pub const SERVICE: &str = "/usr/local/bin/service";

const DOCKERFILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/Dockerfile");
/// This file, which decides what is in the base.
const RECIPE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/containers/docker/images.rs");
const BASE: &str = "wiremesh-base";
/// What the C library loads when it looks up a name, on machines where it is not part of it: `ldd` does not know.
const LOADED_LATE: &[&str] = &["libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"];

/// The image of a program.
pub fn of(program: Program) -> &'static str {
    match program {
        Program::Agent => "wiremesh",
        Program::Coordinator => "wiremesh-coordinator",
    }
}

/// Has the engine know the images. Err inside: this engine runs no containers here.
pub fn provide(cli: &Cli, scratch: &Path) -> anyhow::Result<Result<(), String>> {
    let programs = [wiremesh_binary()?, beside_the_tests("service")?];
    let folder = beside_the_tests("../containers")?;
    fs::create_dir_all(&folder)?;
    let kept = folder.join(format!("images-{}.tar", content_hash(&programs)?));
    let lock = File::create(folder.join("lock"))?;
    // Whoever comes first builds, the others wait for it.
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).context("locking the images")?;
    if kept.exists() {
        drop(lock);
        cli.run(&["load".as_ref(), "--quiet".as_ref(), "--input".as_ref(), kept.as_os_str()])?;
        return Ok(Ok(()));
    }
    let build = scratch.join(ENGINE_FOLDER).join("build");
    import_base(cli, &programs, &build.join("base"))?;
    let runs = cli.run(&["run", "--rm", "--network", "none", BASE, SERVICE, "--help"]);
    if let Err(why) = runs {
        return Ok(Err(format!("the engine runs no containers here: {why:#}")));
    }
    build_images(cli, &programs[0], &build.join("context"))?;
    let images = [Program::Agent, Program::Coordinator].map(of);
    let being_written = folder.join("images.new");
    cli.run(&["save", "--output", &being_written.display().to_string(), images[0], images[1]])?;
    for old in fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).filter(|path| path != &being_written) {
        if old.extension().is_some_and(|extension| extension == "tar") {
            fs::remove_file(old)?;
        }
    }
    fs::rename(&being_written, &kept)?;
    // What is in these folders is in memory, twice.
    fs::remove_dir_all(&build)?;
    Ok(Ok(()))
}

/// A root with the libraries that the programs need, and the service.
fn import_base(cli: &Cli, programs: &[PathBuf], root: &Path) -> anyhow::Result<()> {
    let put = |from: &Path, to: &Path| -> anyhow::Result<()> {
        let to = root.join(to.strip_prefix("/")?);
        fs::create_dir_all(to.parent().context("a file is in a folder")?)?;
        fs::copy(from, &to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
        Ok(())
    };
    for library in libraries(programs)? {
        put(&library, &library)?;
        for late in LOADED_LATE.iter().map(|name| library.with_file_name(name)).filter(|late| late.exists()) {
            put(&late, &late)?;
        }
    }
    put(&programs[1], Path::new(SERVICE))?;
    for folder in ["tmp", "etc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;

    let mut tar = Command::new("tar").arg("-C").arg(root).args(["-c", "."]).stdout(Stdio::piped()).spawn()?;
    let contents = tar.stdout.take().context("the output of tar")?;
    let output = cli.command().args(["import", "-", BASE]).stdin(contents).output()?;
    let packed = tar.wait()?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(packed.success() && output.status.success(), "importing a base: {}", said.trim());
    Ok(())
}

/// The real thing, with a program that was built already.
fn build_images(cli: &Cli, wiremesh: &Path, context: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(context)?;
    let stripped = Command::new("strip").arg("-o").arg(context.join("wiremesh")).arg(wiremesh).output();
    let stripped = stripped.context("running strip (Debian: binutils)")?;
    anyhow::ensure!(stripped.status.success(), "strip: {}", String::from_utf8_lossy(&stripped.stderr).trim());
    for program in [Program::Agent, Program::Coordinator] {
        let base = format!("BASE={BASE}");
        let context = context.display().to_string();
        let arguments =
            ["build", "--quiet", "--file", DOCKERFILE, "--build-arg", &base, "--build-arg", "BINARIES=prebuilt"];
        let target = ["--target", program.command(), "--tag", of(program), &context];
        cli.run(&[&arguments[..], &target].concat())?;
    }
    Ok(())
}

/// What the dynamic linker would load for them, itself too.
fn libraries(programs: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").args(programs).output().context("running ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let mut paths: Vec<_> = paths.map(PathBuf::from).collect();
    paths.sort();
    paths.dedup();
    anyhow::ensure!(!paths.is_empty(), "ldd knows no libraries: {text}");
    Ok(paths)
}

/// Changes with all that the images are made of.
fn content_hash(programs: &[PathBuf]) -> anyhow::Result<String> {
    let ignored = format!("{DOCKERFILE}.dockerignore");
    let output = Command::new("sha256sum").args(programs).args([DOCKERFILE, &ignored, RECIPE]).output()?;
    anyhow::ensure!(output.status.success(), "sha256sum: {}", String::from_utf8_lossy(&output.stderr).trim());
    let sums = String::from_utf8_lossy(&output.stdout);
    Ok(sums.lines().map(|line| line.get(..8).unwrap_or(line)).collect())
}
