//! The Dockerfile: its stages, and what they promise about the program in them.

use super::{Files, Slip, commands, default_data_dir, default_state_dir};

pub const DOCKERFILE: &str = "deploy/Dockerfile";

pub const SLIPS: &[Slip] = &[
    (DOCKERFILE, "ARG VERSION=", "ARG VERSION=9.", "is of version"),
    (DOCKERFILE, "VOLUME /var/lib/wiremesh\n", "VOLUME /var/lib/wire\n", "keeps nothing on a volume"),
    (DOCKERFILE, "VOLUME /var/lib/wiremesh-coordinator", "VOLUME /data", "keeps nothing on a volume"),
    (DOCKERFILE, r#"CMD ["agent"]"#, r#"CMD ["agnet"]"#, "wiremesh agnet"),
    (DOCKERFILE, r#""health", "--coordinator"]"#, r#""health", "--cordinator"]"#, "wiremesh health --cordinator"),
    (DOCKERFILE, "WIREMESH_LISTEN", "WIREMESH_LISTN", "there is no such option"),
    (DOCKERFILE, "FROM runtime AS agent", "FROM runtim AS agent", "no stage runtim"),
    (DOCKERFILE, "--from=binaries /wiremesh", "--from=binarys /wiremesh", "no stage binarys"),
    (DOCKERFILE, "USER 10001:10001\n", "", "runs as root"),
    ("deploy/Dockerfile.dockerignore", "!certs\n", "", "certs is not in the context"),
];

/// One image that is made.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    pub environment: Vec<(String, String)>,
    pub user: Option<String>,
    pub volumes: Vec<String>,
    command: Vec<String>,
    health: Vec<String>,
}

pub fn problems(files: &Files) -> Vec<String> {
    let mut problems = Vec::new();
    let text = files.text(DOCKERFILE);
    let instructions = instructions(text);
    let names = stages(text);
    let given = |name: &str| instructions.iter().find_map(|line| line.strip_prefix(&format!("ARG {name}=")));
    for line in &instructions {
        let from = line.strip_prefix("FROM ").and_then(|rest| rest.split_whitespace().next());
        let copied = line.strip_prefix("COPY --from=").and_then(|rest| rest.split_whitespace().next());
        for stage in from.into_iter().chain(copied) {
            let outside = stage == "scratch" || ["${BASE}", "${BUILDER}", "${BINARIES}"].contains(&stage);
            if !outside && !names.iter().any(|name| name == stage) {
                problems.push(format!("{DOCKERFILE}: no stage {stage}"));
            }
        }
    }
    if !names.iter().any(|name| Some(name.as_str()) == given("BINARIES")) {
        problems.push(format!("{DOCKERFILE}: BINARIES names no stage"));
    }
    if given("VERSION") != Some(env!("CARGO_PKG_VERSION")) {
        problems.push(format!("{DOCKERFILE}: is of version {:?}", given("VERSION")));
    }
    for (name, folder) in [("agent", default_state_dir().to_owned()), ("coordinator", default_data_dir())] {
        let stage = stage(files, name);
        if !stage.volumes.contains(&folder) {
            problems.push(format!("{DOCKERFILE}: {name} keeps nothing on a volume: not {folder}"));
        }
        for command in [&stage.command, &stage.health] {
            problems.extend(commands::refused(command).map(|why| format!("{DOCKERFILE}: {why}")));
        }
    }
    if stage(files, "coordinator").user.is_none() {
        problems.push(format!("{DOCKERFILE}: the coordinator runs as root"));
    }
    problems.extend(super::coordinator(files, Vec::new()).err().map(|bad| format!("{DOCKERFILE}: {bad}")));
    let context: Vec<_> = files.text("deploy/Dockerfile.dockerignore").lines().collect();
    for needed in ["Cargo.toml", "Cargo.lock", "src", "certs", "netns-tests/Cargo.toml", "netns-tests/src", "wiremesh"]
    {
        if !context.contains(&format!("!{needed}").as_str()) {
            problems.push(format!("{DOCKERFILE}: {needed} is not in the context"));
        }
    }
    problems
}

/// The names of all stages.
pub fn stages(text: &str) -> Vec<String> {
    let from = instructions(text).into_iter().filter(|line| line.starts_with("FROM "));
    from.filter_map(|line| Some(line.split_once(" AS ")?.1.to_owned())).collect()
}

/// What a stage says itself.
pub fn stage(files: &Files, name: &str) -> Stage {
    let mut stage = Stage::default();
    let instructions = instructions(files.text(DOCKERFILE));
    let begins =
        instructions.iter().position(|line| line.starts_with("FROM ") && line.ends_with(&format!(" AS {name}")));
    let Some(begins) = begins else { return stage };
    for line in instructions[begins + 1..].iter().take_while(|line| !line.starts_with("FROM ")) {
        let (instruction, rest) = line.split_once(' ').unwrap_or((line, ""));
        match instruction {
            "ENV" => {
                stage.environment.extend(rest.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
            }
            "USER" => stage.user = Some(rest.to_owned()),
            "VOLUME" => stage.volumes.push(rest.to_owned()),
            "CMD" => stage.command = list(rest),
            "HEALTHCHECK" => {
                let command = rest.split_once(" CMD ").map(|(_, command)| list(command)).unwrap_or_default();
                stage.health = command.into_iter().skip(1).collect();
            }
            _ => {}
        }
    }
    stage
}

/// Without comments, lines that go on made one.
fn instructions(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let joined = lines.fold(String::new(), |text, line| match line.strip_suffix('\\') {
        Some(line) => format!("{text}{line} "),
        None => format!("{text}{line}\n"),
    });
    joined.lines().map(str::to_owned).collect()
}

fn list(json: &str) -> Vec<String> {
    serde_json::from_str(json).unwrap_or_default()
}
