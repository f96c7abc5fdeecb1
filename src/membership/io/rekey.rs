//! A change of keys in the world: the files, in an order that a crash may cut anywhere, and the exchange.
//!
//! | file | holds | there |
//! |------|-------|-------|
//! | `identity.key.next`, `wireguard.key.next` | the next keys | from when a change was begun |
//! | `node.crt.next` | their chain | from when the coordinator certified them until the switch is over |
//! | `identity.key.old`, `wireguard.key.old` | the keys before | from within the switch until they are erased |
//!
//! ```text
//! no node.crt.next   the present keys are in use, whatever else lies there
//! node.crt.next      the next keys are; whoever opens the directory finishes the switch first
//! ```
//!
//! **Invariant:** the next thing to do follows from which files are there, so that it can be begun again after each step.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio::sync::{Notify, oneshot};
use wiremesh_certs::{IdentityKey, NodeId, UnixTime, WgPrivateKey, files};

use super::{
    disk::{CERTIFICATE, IDENTITY, StateDir, WIREGUARD},
    http::ClientError,
    session::Session,
};
use crate::{
    clock,
    membership::rekey::{self, Schedule},
    task::CancellationToken,
};

const NEXT: &str = ".next";
const OLD: &str = ".old";
/// Commands to change keys that wait for one change; beyond it they are told to come back.
const MAX_WAITING: usize = 16;

/// The one thing to do next in a switch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// A present key gets out of the way.
    PutAside(&'static str),
    /// A next key takes its place.
    Take(&'static str),
    /// The next certificate takes its place: from here on the next keys are the present ones.
    TakeCertificate,
    /// The old identity key says that the age of the new ones is not written yet, and goes when it is.
    DateAndErase,
    /// The old WireGuard key goes.
    Erase,
}

impl StateDir {
    /// Finishes a switch to the next keys if one was begun: to be called before anything is read. True if there was one.
    pub fn finish_switch(&self, now: UnixTime) -> anyhow::Result<bool> {
        let mut any = false;
        while let Some(step) = self.next_step()? {
            self.take_step(step, now).with_context(|| format!("changing keys in {}", self.path.display()))?;
            any = true;
        }
        Ok(any)
    }

    /// Whether a change of keys was begun and not brought to its end.
    pub fn has_next_keys(&self) -> bool {
        [IDENTITY, WIREGUARD].iter().any(|key| self.path.join(with(key, NEXT)).exists())
    }

    /// The next keys: those of a change that was cut off, or made and kept before anybody sees them.
    pub fn next_keys(&self, rng: &mut StdRng) -> anyhow::Result<(IdentityKey, WgPrivateKey)> {
        let path = self.path.join(with(IDENTITY, NEXT));
        if !path.exists() {
            files::write_new_secret(&path, IdentityKey::generate(rng).to_pkcs8_pem().as_bytes())?;
        }
        let unusable = || format!("{} cannot be used; remove it, new ones are made", path.display());
        let identity = IdentityKey::from_pkcs8_pem(&files::read_secret(&path)?).with_context(unusable)?;
        let path = self.path.join(with(WIREGUARD, NEXT));
        if !path.exists() {
            files::write_new_secret(&path, WgPrivateKey::generate(rng).to_base64().as_bytes())?;
        }
        let unusable = || format!("{} cannot be used; remove it, new ones are made", path.display());
        let wg = WgPrivateKey::from_base64(&files::read_secret(&path)?).with_context(unusable)?;
        Ok((identity, wg))
    }

    /// The coordinator will never certify them.
    pub fn discard_next_keys(&self) -> anyhow::Result<()> {
        for key in [IDENTITY, WIREGUARD] {
            erase(&self.path.join(with(key, NEXT)))?;
        }
        Ok(())
    }

    /// Keeps the chain of the next keys, from which moment on they are the ones to start with.
    pub fn keep_next_certificate(&self, pem: &str) -> anyhow::Result<()> {
        Ok(files::replace(&self.path.join(with(CERTIFICATE, NEXT)), pem.as_bytes(), 0o644)?)
    }

    fn next_step(&self) -> anyhow::Result<Option<Step>> {
        let there = |name: String| {
            let path = self.path.join(name);
            fs::exists(&path).with_context(|| format!("could not look for {}", path.display()))
        };
        if there(with(CERTIFICATE, NEXT))? {
            for key in [IDENTITY, WIREGUARD] {
                if there(with(key, NEXT))? {
                    let step = if there(key.to_owned())? { Step::PutAside(key) } else { Step::Take(key) };
                    return Ok(Some(step));
                }
            }
            return Ok(Some(Step::TakeCertificate));
        }
        if there(with(IDENTITY, OLD))? {
            return Ok(Some(Step::DateAndErase));
        }
        Ok(there(with(WIREGUARD, OLD))?.then_some(Step::Erase))
    }

    fn take_step(&self, step: Step, now: UnixTime) -> anyhow::Result<()> {
        let at = |name: String| self.path.join(name);
        match step {
            Step::PutAside(key) => rename(&at(key.to_owned()), &at(with(key, OLD))),
            Step::Take(key) => rename(&at(with(key, NEXT)), &at(key.to_owned())),
            Step::TakeCertificate => rename(&at(with(CERTIFICATE, NEXT)), &at(CERTIFICATE.to_owned())),
            Step::DateAndErase => {
                if let Some(mut member) = self.member()? {
                    member.keys_made_at = Some(now);
                    self.keep_member(&member)?;
                }
                erase(&at(with(IDENTITY, OLD)))
            }
            Step::Erase => erase(&at(with(WIREGUARD, OLD))),
        }
    }
}

fn with(name: &str, suffix: &str) -> String {
    format!("{name}{suffix}")
}

/// Durable when it returns.
fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("renaming {} to {}", from.display(), to.display()))?;
    sync_folder_of(to)
}

/// Overwrites a secret and removes it. A disk that writes elsewhere each time (flash, copy on write) keeps what was
/// overwritten for a while: what really ends these keys is that the coordinator revokes them.
fn erase(path: &Path) -> anyhow::Result<()> {
    let length = match fs::metadata(path) {
        Ok(facts) => usize::try_from(facts.len().min(files::MAX_SECRET_BYTES)).unwrap_or(0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
    };
    let overwrite = || {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.write_all(&vec![0; length])?;
        file.sync_all()?;
        fs::remove_file(path)
    };
    overwrite().with_context(|| format!("erasing {}", path.display()))?;
    sync_folder_of(path)
}

fn sync_folder_of(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().context("a file is in a folder")?;
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| format!("syncing {}", folder.display()))
}

/// What there is to know about a change of keys, for whoever asked for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NextKeys {
    /// The identity in use.
    pub present: NodeId,
    /// The one that this node has from its next start on, which comes at once.
    pub next: NodeId,
}

/// Why keys were not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RotateFailed {
    /// The coordinator did not certify the next keys.
    #[error("the next keys were not certified: {0}")]
    Client(#[from] ClientError),
    /// Its answer is not to be believed, or the disk does not take it.
    #[error("{0}")]
    Other(String),
    /// Too many ask at once.
    #[error("others have asked for it already")]
    Busy,
    /// The agent stops.
    #[error("the agent is stopping")]
    Stopping,
}

impl RotateFailed {
    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            RotateFailed::Client(error) if error.is_passing() => {
                Some("the present keys stay in use; it is tried again by itself when a coordinator answers")
            }
            RotateFailed::Client(error) => error.hint(),
            RotateFailed::Other(_) | RotateFailed::Busy | RotateFailed::Stopping => None,
        }
    }
}

type Answer = oneshot::Sender<Result<NextKeys, RotateFailed>>;

/// Where a change of keys is asked for, and told of. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Desk {
    waiting: Arc<Mutex<Vec<Answer>>>,
    pub(super) asked: Arc<Notify>,
    pub(super) ready: CancellationToken,
}

impl Desk {
    /// Asks for a change and waits until the next keys are certified.
    pub(super) async fn ask(&self) -> Result<NextKeys, RotateFailed> {
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= MAX_WAITING {
                return Err(RotateFailed::Busy);
            }
            waiting.push(answer);
        }
        self.asked.notify_one();
        answered.await.unwrap_or(Err(RotateFailed::Stopping))
    }

    fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_asked(&self) -> bool {
        !self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// The care for our keys that a session takes.
#[derive(Debug)]
pub(super) struct KeyCare {
    pub(super) made_at: UnixTime,
    pub(super) schedule: Schedule,
    rng: StdRng,
}

impl KeyCare {
    /// For keys of this age.
    pub(super) fn new(
        made_at: UnixTime,
        every: Option<std::time::Duration>,
        was_begun: bool,
        rng: &mut StdRng,
    ) -> KeyCare {
        let schedule = Schedule::new(made_at, every, was_begun, rng.next_u64());
        KeyCare { made_at, schedule, rng: StdRng::from_rng(rng) }
    }
}

impl Session {
    /// Has the next keys certified if it is time or somebody wants it. What follows needs another start: whoever runs
    /// this session is told that the keys are ready.
    pub(super) async fn rotate_if_due(&mut self) {
        let now = clock::unix();
        if self.desk.ready.is_cancelled() || !(self.desk.is_asked() || self.care.schedule.is_due(now)) {
            return;
        }
        let rotated = self.rotate(now).await;
        match &rotated {
            Ok(keys) => {
                tracing::info!(present = %keys.present, next = %keys.next, "next keys are certified, starting anew");
                self.desk.ready.cancel();
            }
            Err(error) => {
                self.care.schedule.on_failure(now);
                tracing::warn!(why = %error, hint = error.hint(), "keys could not be changed");
            }
        }
        for answer in self.desk.take() {
            // Whoever asked may have gone.
            let _ = answer.send(rotated.clone());
        }
    }

    async fn rotate(&mut self, now: UnixTime) -> Result<NextKeys, RotateFailed> {
        let other = |error: anyhow::Error| RotateFailed::Other(format!("{error:#}"));
        let (identity, wg) = self.disk.next_keys(&mut self.care.rng).map_err(other)?;
        let before = self.member.client.verified();
        let request = rekey::request(&identity, &wg, before.name()).map_err(|bad| other(bad.into()))?;
        let answer = match self.member.client.rekey(&request).await {
            Ok(answer) => answer,
            Err(refused @ ClientError::Refused { .. }) => {
                self.disk.discard_next_keys().map_err(other)?;
                return Err(refused.into());
            }
            Err(error) => return Err(error.into()),
        };
        let trust = self.member.trust.current();
        let verified = rekey::accept(&trust, &answer.certificate, identity.id(), wg.public(), &before, now)
            .map_err(|bad| other(bad.into()))?;
        self.disk.keep_next_certificate(&verified.chain().to_pem()).map_err(other)?;
        Ok(NextKeys { present: before.id(), next: verified.id() })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::membership::state::MemberFile;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    #[test]
    fn a_switch_that_is_cut_anywhere_ends_wholly_with_the_next_keys() {
        let steps = {
            let place = Place::certified();
            let mut steps = 0;
            while let Some(step) = place.dir().next_step().unwrap() {
                place.dir().take_step(step, NOW).unwrap();
                steps += 1;
            }
            steps
        };
        assert_eq!(steps, 7);

        for cut in 0..=steps {
            let place = Place::certified();
            for _ in 0..cut {
                let step = place.dir().next_step().unwrap().unwrap();
                place.dir().take_step(step, NOW).unwrap();
            }

            place.dir().finish_switch(NOW).unwrap();

            assert_eq!(
                place.files(),
                ["agent.lock", "identity.key", "member.json", "node.crt", "wireguard.key"],
                "{cut}"
            );
            let identity = place.dir().identity(&mut rng()).unwrap();
            let wg = place.dir().wireguard(&mut rng()).unwrap();
            assert_eq!((identity.id(), wg.public().0), (place.next.0, place.next.1), "{cut}");
            assert_eq!(place.dir().certificate().unwrap(), "next chain", "{cut}");
            assert_eq!(place.dir().member().unwrap().unwrap().keys_made_at, Some(NOW), "{cut}");
            let mode = fs::metadata(place.folder.path().join(IDENTITY)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn until_the_next_keys_are_certified_the_present_ones_stay_and_the_next_are_made_once() {
        let place = Place::new();
        let present = place.dir().identity(&mut rng()).unwrap().id();

        let first = place.dir().next_keys(&mut rng()).unwrap();
        let again = place.dir().next_keys(&mut rng()).unwrap();
        assert!(!place.dir().finish_switch(NOW).unwrap());

        assert_eq!((first.0.id(), first.1.public()), (again.0.id(), again.1.public()));
        assert_eq!(place.dir().identity(&mut rng()).unwrap().id(), present);
        assert!(place.dir().has_next_keys());
        place.dir().discard_next_keys().unwrap();
        assert!(!place.dir().has_next_keys());
    }

    #[test]
    fn a_secret_is_overwritten_before_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, witness) = (folder.path().join("key"), folder.path().join("witness"));
        files::write_new_secret(&path, b"secret").unwrap();
        fs::hard_link(&path, &witness).unwrap();

        erase(&path).unwrap();
        erase(&path).unwrap();

        assert!(!path.exists());
        assert_eq!(fs::read(&witness).unwrap(), [0; 6]);
    }

    /// A state directory of a member.
    struct Place {
        folder: tempfile::TempDir,
        dir: Option<StateDir>,
        next: (NodeId, [u8; 32]),
    }

    impl Place {
        fn new() -> Place {
            let folder = tempfile::tempdir().unwrap();
            let dir = StateDir::open(folder.path()).unwrap();
            dir.identity(&mut rng()).unwrap();
            dir.wireguard(&mut rng()).unwrap();
            let member = MemberFile {
                mesh: "lab".parse().unwrap(),
                network: "10.42.0.0/16".parse().unwrap(),
                coordinators: Vec::new(),
                authorities: Vec::new(),
                enforced: 0,
                keys_made_at: Some(UnixTime(1)),
            };
            dir.keep_member(&member).unwrap();
            dir.keep_certificate("present chain").unwrap();
            Place { folder, dir: Some(dir), next: (NodeId([0; 32]), [0; 32]) }
        }

        /// At the moment from which on there is no way back.
        fn certified() -> Place {
            let mut place = Place::new();
            let (identity, wg) = place.dir().next_keys(&mut rng()).unwrap();
            place.next = (identity.id(), wg.public().0);
            place.dir().keep_next_certificate("next chain").unwrap();
            place
        }

        fn dir(&self) -> &StateDir {
            self.dir.as_ref().unwrap()
        }

        fn files(&self) -> Vec<String> {
            let entries = fs::read_dir(self.folder.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    fn rng() -> StdRng {
        StdRng::from_os_rng()
    }
}
