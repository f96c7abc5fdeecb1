//! Every `wiremesh …` that somebody is told to type, or that is started for them, is a command with these options.

use std::{collections::BTreeMap, process::Command, sync::Mutex};

use netns_tests::wiremesh_binary;

use super::{Files, Slip};

pub const SLIPS: &[Slip] = &[
    ("deploy/compose.yaml", "exec worker-2 wiremesh call", "exec worker-2 wiremesh cull", "wiremesh cull"),
    ("deploy/compose.remote-worker.yaml", "token create --name", "token create --nam", "wiremesh token create --nam"),
    ("deploy/kubernetes/kustomization.yaml", "--ttl 1h", "--ttl 1q", "wiremesh token create"),
    ("deploy/systemd/wiremesh-agent.service", "`wiremesh status`", "`wiremesh state`", "wiremesh state"),
];

/// What ends a command in a shell, or in the sentence around it.
const ENDS: [&str; 8] = ["|", ">", "<", "&&", ";", "\\", "#", "2>&1"];

pub fn problems(files: &Files) -> Vec<String> {
    let comments = files.texts.iter().filter(|(path, _)| *path != "Cargo.toml").flat_map(|(path, text)| {
        let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix('#'));
        lines.flat_map(move |line| typed(line).into_iter().chain(quoted(line)).map(move |command| (path, command)))
    });
    comments.filter_map(|(path, command)| named(command).map(|why| format!("{path}: {why}"))).collect()
}

/// A sentence may name an option without a value of it.
fn named(mut command: Vec<String>) -> Option<String> {
    let why = refused(&command)?;
    let ends_with_option = command.last().is_some_and(|word| word.starts_with("--"));
    command.push("example".to_owned());
    (!ends_with_option || refused(&command).is_some()).then_some(why)
}

/// Why the program would not take these arguments. It is asked for help about them, which it gives if it knows what stands
/// before that.
pub fn refused(arguments: &[String]) -> Option<String> {
    /// The same is asked again and again.
    static ANSWERS: Mutex<BTreeMap<Vec<String>, Option<String>>> = Mutex::new(BTreeMap::new());
    let ask = || {
        let wiremesh = wiremesh_binary().unwrap();
        let output = Command::new(wiremesh).args(arguments).arg("--help").env_clear().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
        (!output.status.success()).then(|| format!("wiremesh {}: {said}", arguments.join(" ")))
    };
    ANSWERS.lock().unwrap().entry(arguments.to_vec()).or_insert_with(ask).clone()
}

/// The command in a line that is set apart from the text around it: `#   docker compose exec coordinator wiremesh …`
fn typed(comment: &str) -> Option<Vec<String>> {
    let words: Vec<_> = comment.strip_prefix("   ")?.split_whitespace().collect();
    let options_of_others = |at: usize| at > 0 && matches!(words[at - 1], "-n" | "-t" | "generic");
    let at = (0..words.len()).rev().find(|at| words[*at] == "wiremesh" && !options_of_others(*at))?;
    let command = words[at + 1..].iter().take_while(|word| !ENDS.contains(word));
    Some(command.map(|word| (*word).to_owned()).collect()).filter(|command: &Vec<_>| !command.is_empty())
}

/// The commands within a sentence: `wiremesh status`
fn quoted(comment: &str) -> Vec<Vec<String>> {
    let quoted = comment.split('`').skip(1).step_by(2);
    let commands = quoted.filter_map(|quoted| quoted.strip_prefix("wiremesh "));
    commands.map(|command| command.split_whitespace().map(str::to_owned).collect()).collect()
}
