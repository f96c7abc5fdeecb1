//! What an engine that is simply ended leaves behind: folders in the machine's cgroups, which are everybody's.

use std::{fs, io, path::Path, thread, time::Duration};

const CGROUPS: &str = "/sys/fs/cgroup";
/// The kernel may take a moment to be rid of the processes of a sandbox.
const ATTEMPTS: u32 = 40;
const EVERY: Duration = Duration::from_millis(50);

/// The cgroups of one story's containers: cleared away when this is dropped, and before.
#[derive(Debug)]
pub struct Leftovers(String);

/// Where the containers of a story are among all cgroups.
pub fn parent_of(story: &str) -> String {
    format!("/wiremesh.{}", story.replace("::", "."))
}

impl Leftovers {
    /// What a story left behind that was killed, and will leave behind now.
    pub fn of(story: &str) -> Leftovers {
        let leftovers = Leftovers(parent_of(story));
        leftovers.clear();
        leftovers
    }

    fn clear(&self) {
        for _ in 0..ATTEMPTS {
            if self.try_clear().is_ok() {
                return;
            }
            thread::sleep(EVERY);
        }
    }

    fn try_clear(&self) -> io::Result<()> {
        let Ok(hierarchies) = fs::read_dir(CGROUPS) else { return Ok(()) };
        let own = self.0.trim_start_matches('/');
        // Version 1 has a folder for each kind of limit, version 2 is the folder itself.
        remove(&Path::new(CGROUPS).join(own))?;
        hierarchies.flatten().try_for_each(|hierarchy| remove(&hierarchy.path().join(own)))
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Removes a folder of cgroups with those under it. What is in one is the kernel's and goes with it.
fn remove(folder: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&entry.path())?;
    }
    fs::remove_dir(folder)
}
