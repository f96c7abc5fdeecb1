//! Tries the committed corpus, and what lies near it, without a fuzzer: for `cargo test`.
//!
//! The corpus has a folder for each target. A file called `valid-…` must be taken: if it no longer is, a format has
//! changed under those who use it. What lies near it, with a byte changed, cut short, or with a piece of another in it, is
//! tried as well. All others are what was found by fuzzing: they may be taken or not, and break nothing.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
};

use rand::RngCore;

use super::{Target, Verdict, world::Counted};

/// Set it to write the specimens that are made here into the corpus, after a change of a format that is meant.
pub const WRITE: &str = "WRITE_CORPUS";
/// How names of files begin that must be taken.
const VALID: &str = "valid-";
/// Changed bytes, cuts and pieces of others tried of one file: all of a small one, of a large one as many, spread evenly.
/// All of the corpus takes seconds.
const CHANGED: usize = 500;
const CUT: usize = 200;
const SPLICED: usize = 30;

/// Something that is as it should be, for one target.
pub struct Specimen {
    /// Which.
    pub target: &'static str,
    /// What it is called, without the beginning.
    pub name: &'static str,
    /// What it is.
    pub bytes: Vec<u8>,
}

impl Specimen {
    fn path(&self, corpus: &Path) -> PathBuf {
        corpus.join(self.target).join(format!("{VALID}{}", self.name))
    }
}

/// Tries all of `corpus` that is for `targets`, and that these `specimens` are taken and in it.
///
/// # Panics
///
/// If anything is not as it must be. Says which file it was, and in which bytes.
pub fn replay(corpus: &Path, targets: &[(&str, Target)], specimens: &[Specimen]) {
    let may_write = std::env::var_os(WRITE).is_some();
    for specimen in specimens {
        let path = specimen.path(corpus);
        let Some((_, target)) = targets.iter().find(|(name, _)| *name == specimen.target) else {
            panic!("a specimen for {}, which is no target", specimen.target);
        };
        let verdict = tried(*target, &path, &specimen.bytes);
        assert_eq!(verdict, Verdict::Taken, "{}, as it is made today", path.display());
        if may_write {
            fs::create_dir_all(corpus.join(specimen.target)).expect("the corpus can be written");
            fs::write(&path, &specimen.bytes).expect("the corpus can be written");
        }
        assert!(path.exists(), "{} is not there: set {WRITE}=1 and run this test again", path.display());
    }
    for (name, target) in targets {
        let files = files_of(&corpus.join(name));
        let is_valid = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(VALID));
        assert!(files.iter().any(|(path, _)| is_valid(path)), "no specimen for {name}");
        for (at, (path, bytes)) in files.iter().enumerate() {
            let verdict = tried(*target, path, bytes);
            assert_eq!(tried(*target, path, bytes), verdict, "{}, at second sight", path.display());
            if !is_valid(path) {
                continue;
            }
            assert_eq!(
                verdict,
                Verdict::Taken,
                "{} is taken no longer: whoever has such a thing is cut off. If that is meant, set {WRITE}=1 and run this \
                 test again",
                path.display()
            );
            let (_, another) = &files[(at + 1) % files.len()];
            for_each_neighbour(bytes, another, |bytes| _ = tried(*target, path, bytes));
        }
    }
}

/// Runs it; if it breaks, says on which bytes.
fn tried(target: Target, path: &Path, bytes: &[u8]) -> Verdict {
    let run = catch_unwind(AssertUnwindSafe(|| target(bytes)));
    run.unwrap_or_else(|panic| {
        eprintln!(
            "{}, or near it: these {} bytes, in hexadecimal digits\n{}",
            path.display(),
            bytes.len(),
            hex::encode(bytes)
        );
        resume_unwind(panic)
    })
}

/// All that is tried beside a file itself.
fn for_each_neighbour(bytes: &[u8], another: &[u8], mut each: impl FnMut(&[u8])) {
    let mut random = Counted(bytes.len() as u64);
    let mut changed = bytes.to_vec();
    for at in (0..bytes.len()).step_by(bytes.len().div_ceil(CHANGED).max(1)) {
        changed[at] ^= 1 << (random.next_u32() % 8);
        each(&changed);
        changed[at] = bytes[at];
    }
    for end in (0..bytes.len()).step_by(bytes.len().div_ceil(CUT).max(1)) {
        each(&bytes[..end]);
    }
    let mut below = |bound: usize| random.next_u32() as usize % (bound + 1);
    for _ in 0..SPLICED.min(bytes.len()) {
        let from = below(another.len());
        let piece = &another[from..from + below((another.len() - from).min(16))];
        let at = below(bytes.len());
        let to = at + below((bytes.len() - at).min(16));
        each(&[&bytes[..at], piece, &bytes[to..]].concat());
    }
}

fn files_of(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("a folder that can be read").path());
    let mut files: Vec<_> =
        paths.map(|path| (path.clone(), fs::read(path).expect("a file that can be read"))).collect();
    files.sort();
    files
}
