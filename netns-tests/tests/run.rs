//! `netns-tests/run` itself: how it ends is how the tests ended, and its last lines say what failed.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

/// A `cargo` that builds at once, and whose tests all pass but those of the file that `BROKEN` names.
const CARGO: &str = r#"#!/bin/sh
case "$*" in
*"--test $BROKEN"*)
    printf 'test it_works ... FAILED\n\nfailures:\n\n---- it_works stdout ----\nit does not, because of the moon\n\nfailures:\n'
    printf '    it_works\n\ntest result: FAILED. 0 passed; 1 failed\n'
    exit 101
    ;;
*) printf 'test it_works ... ok\n' ;;
esac
"#;

#[test]
fn a_run_ends_as_its_tests_do_and_says_at_its_end_what_failed() {
    let programs = tempfile::tempdir().unwrap();
    let cargo = programs.path().join("cargo");
    fs::write(&cargo, CARGO).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();

    let all_is_well = run(programs.path(), "nothing", &[]);
    let one_story = run(programs.path(), "nothing", &["fallback"]);
    // One that runs among others, one that runs beside them, one that was asked for.
    let broken = [("fallback", &[][..]), ("ten_minutes", &[]), ("fallback", &["fallback"])];
    let broken = broken.map(|(name, asked)| run(programs.path(), name, asked));

    assert_eq!((all_is_well.status.code(), one_story.status.code()), (Some(0), Some(0)), "{all_is_well:?}");
    for ended in broken {
        let printed = String::from_utf8(ended.stdout).unwrap();
        assert_eq!(ended.status.code(), Some(101), "{printed}");
        let (_, end) = printed.rsplit_once("── failed").expect("a last heading");
        assert!(end.contains("because of the moon") && end.contains("test it_works ... FAILED"), "{printed}");
        assert!(!end.contains("... ok"), "{end}");
    }
}

fn run(programs: &Path, broken: &str, asked: &[&str]) -> Output {
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/run");
    let mut command = Command::new(script);
    command.args(asked).envs([("PATH", path.as_str()), ("BROKEN", broken), ("CONTAINERS_ON", "twin")]);
    command.output().expect("a script of this folder runs")
}
