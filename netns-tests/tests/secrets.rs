//! Secrets stay where they are made: not in a log, not in an answer, not in a database, not in a child, not in a core.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::Duration,
};

use anyhow::Context;
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use netns_tests::{Agent, Coordinator, Process, eventually, fetch, story_within, wiremesh_binary};
use nix::sys::signal::Signal;
use reqwest::Method;
use wiremesh::sandbox::Node;
use wiremesh_certs::{IdentityKey, JoinToken, WgPrivateKey};

const LIMIT: Duration = Duration::from_secs(200);
const WITHIN: Duration = Duration::from_secs(60);
const API_KEY: &str = "an-api-key-that-nobody-else-has-7c31";
/// Certificates that are renewed while the story goes on.
const SHORT_LIVED: &str = "certificate_lifetime = \"60s\"\nheartbeat_interval = \"1s\"";

#[test]
fn no_secret_is_in_a_log_an_answer_a_command_s_output_or_the_database() {
    story_within(LIMIT, |lab| {
        let mut secrets = Secrets::default();
        let mut coordinator = lab.coordinator_with("coordinator", SHORT_LIVED)?;
        coordinator.set_log_filter("trace");
        coordinator.restart()?;
        secrets.of_coordinator(&coordinator)?;
        let key_file = lab.folder("keys")?.join("api.key");
        fs::write(&key_file, API_KEY)?;
        secrets.add("API key", API_KEY);
        let token = coordinator.token()?;
        secrets.of_token(&token)?;
        let mut client = lab.node("client")?.logging("trace").prepare(&token)?;
        client.start()?;
        let token = coordinator.token()?;
        secrets.of_token(&token)?;
        let mut worker = lab.node("worker")?.serving("echo").logging("trace").prepare(&token)?;
        with_key_file(&worker, &key_file)?;
        worker.start()?;
        secrets.of_agent(&client)?;
        secrets.of_agent(&worker)?;

        // Requests, good and bad; a join that is refused; keys that change; certificates that are renewed.
        let bearer = format!("Bearer {API_KEY}");
        eventually("the worker answers", WITHIN, || {
            client.post("/service/echo/echo", "hello")?.expect_ok()?;
            Ok(())
        })?;
        let keyed = worker.request(Method::POST, "/service/echo/echo", &[("authorization", &bearer)], "hello")?;
        assert_eq!(keyed.status, 200, "{}", keyed.text());
        assert_eq!(worker.post("/service/echo/echo", "hello")?.status, 401);
        let mut late = lab.node("late")?.called("client").logging("trace").prepare(&coordinator.token()?)?;
        secrets.of_token(&fs::read_to_string(late.config().with_file_name("token"))?)?;
        late.launch()?;
        late.running()?.wait(WITHIN)?;
        secrets.of_agent(&late)?;
        let rotated = client.command(&["keys", "rotate"])?;
        assert!(rotated.status.success(), "{}", text(&rotated));
        secrets.of_agent(&client)?;
        eventually("a certificate is renewed", WITHIN, || {
            anyhow::ensure!(worker.log().contains("certificate renewed"), "not yet");
            Ok(())
        })?;

        let mut said = outputs(&coordinator, &[&client, &worker])?;
        said.extend(answers(&client.node, &coordinator, &secrets)?);
        said.extend(answers_of(&[&client, &worker])?);
        let scratch = coordinator.folder().parent().context("a folder for all")?.to_owned();
        for path in files_of(&scratch)? {
            if !is_a_secret_by_itself(&path) {
                said.insert(path.display().to_string(), fs::read(&path)?);
            }
        }
        assert!(said.keys().any(|name| name.ends_with("coordinator.db")) && said.len() > 20, "{:?}", said.keys());
        secrets.are_not_in(&said);
        Ok(())
    });
}

#[test]
fn a_join_token_in_the_environment_does_not_reach_what_the_agent_starts() {
    story_within(LIMIT, |lab| {
        let coordinator = lab.coordinator()?;
        let token = coordinator.token()?;
        let (node, folder) = (lab.bare_node("worker")?, lab.folder("worker")?);
        let config = folder.join("agent.toml");
        let state = folder.join("state");
        let service =
            "[[service]]\nname = \"held\"\nupstream = \"http://127.0.0.1:9\"\ncommand = [\"sleep\", \"1000\"]";
        fs::write(&config, format!("name = \"worker\"\nstate_dir = {state:?}\n{service}\n"))?;
        let mut command = lab.wiremesh(&node)?;
        command.arg("agent").arg("--config").arg(&config).env("WIREMESH_JOIN_TOKEN", &token).env("KEPT", "yes");
        let agent = Process::start("agent", command, &folder.join("agent.log"))?;

        let child =
            eventually("the command runs", WITHIN, || child_of(agent.pid().as_raw(), "sleep").context("it does not"))?;
        let environment = fs::read(format!("/proc/{child}/environ"))?;
        let line = fs::read(format!("/proc/{child}/cmdline"))?;

        assert!(contains(&environment, b"KEPT=yes"));
        assert!(!contains(&environment, token.trim().as_bytes()) && !contains(&line, token.trim().as_bytes()));
        Ok(())
    });
}

#[test]
fn a_crash_leaves_no_core() {
    story_within(LIMIT, |lab| {
        let coordinator = lab.coordinator()?;
        let node = lab.bare_node("worker")?;
        let joined = lab.node("member")?.join(&coordinator)?;
        let programs = [
            ("control", vec!["sleep".to_owned(), "1000".to_owned()]),
            ("agent", agent_of(&joined)?),
            ("coordinator", coordinator_in(&lab.folder("second")?)?),
        ];
        drop(joined);
        let mut dumped = BTreeMap::new();
        for (what, arguments) in programs {
            let folder = lab.folder(&format!("core-of-{what}"))?;
            let mut command = node.command("sh")?;
            command.args(["-c", "ulimit -c unlimited; exec \"$0\" \"$@\""]).args(arguments).current_dir(&folder);
            let mut process = Process::start(what, command, &folder.join("process.log"))?;
            if what != "control" {
                eventually("it runs", WITHIN, || {
                    process.expect_running()?;
                    anyhow::ensure!(
                        process.log().contains("coordinator is up") || process.log().contains("ready"),
                        "no"
                    );
                    Ok(())
                })?;
            }
            thread::sleep(Duration::from_millis(300));

            // Rust's runtime takes the first SIGSEGV that nobody's mistake caused, and this one not.
            process.signal(Signal::SIGABRT)?;
            let status = process.wait(WITHIN)?;

            assert_eq!(status.signal(), Some(libc::SIGABRT), "{what}: {status}");
            dumped.insert(what, status.core_dumped() || files_of(&folder)?.iter().any(|path| is_core(path)));
        }
        assert!(!dumped["agent"] && !dumped["coordinator"], "{dumped:?}");
        if !dumped["control"] {
            println!("this machine writes no cores at all: nothing was shown");
        }
        Ok(())
    });
}

#[test]
fn nobody_of_the_same_user_looks_into_a_coordinator() {
    story_within(LIMIT, |lab| {
        let node = lab.bare_node("coordinator")?;
        let folder = lab.folder("of-an-ordinary-user")?;
        // Without root's rights a process is as any other of its user, whatever its number.
        let ordinary = |program: &[String]| -> anyhow::Result<Command> {
            let mut command = node.command("setpriv")?;
            command.args(["--bounding-set=-all", "--inh-caps=-all"]).args(program).current_dir(&folder);
            Ok(command)
        };
        let sleep = ordinary(&["sleep".to_owned(), "1000".to_owned()])?;
        let control = Process::start("control", sleep, &folder.join("control.log"))?;
        let command = ordinary(&coordinator_in(&folder.join("data"))?)?;
        let mut process = Process::start("coordinator", command, &folder.join("coordinator.log"))?;
        eventually("it runs", WITHIN, || {
            process.expect_running()?;
            anyhow::ensure!(process.log().contains("coordinator is up"), "not yet");
            Ok(())
        })?;

        for file in ["mem", "environ", "maps", "auxv"] {
            let look = |pid: i32| -> anyhow::Result<bool> {
                let read = format!("exec 3< /proc/{pid}/{file}");
                Ok(ordinary(&["sh".to_owned(), "-c".to_owned(), read])?.output()?.status.success())
            };
            assert!(look(control.pid().as_raw())?, "{file} of any other process of the same user");
            assert!(!look(process.pid().as_raw())?, "{file} of the coordinator");
        }
        process.expect_running()
    });
}

/// What must be nowhere, in every form in which it could be written.
#[derive(Default)]
struct Secrets(Vec<(String, Vec<u8>)>);

impl Secrets {
    fn add(&mut self, what: &str, form: impl AsRef<[u8]>) {
        assert!(form.as_ref().len() >= 20, "{what} is too short to be found by");
        self.0.push((what.to_owned(), form.as_ref().to_vec()));
    }

    fn add_bytes(&mut self, what: &str, bytes: &[u8]) {
        self.add(what, bytes);
        self.add(what, hex::encode(bytes));
        self.add(what, hex::encode_upper(bytes));
        self.add(what, BASE64_STANDARD_NO_PAD.encode(bytes));
        self.add(what, BASE64_URL_SAFE_NO_PAD.encode(bytes));
        // As `{:?}` of an array shows it.
        let listed: Vec<String> = bytes.iter().map(u8::to_string).collect();
        self.add(what, listed.join(", "));
    }

    fn of_key_file(&mut self, what: &str, path: &Path) -> anyhow::Result<()> {
        let pem = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let body = pem.lines().find(|line| !line.starts_with('-')).context("PEM")?;
        self.add(what, body);
        self.add_bytes(what, IdentityKey::from_pkcs8_pem(&pem)?.seed());
        Ok(())
    }

    fn of_coordinator(&mut self, coordinator: &Coordinator) -> anyhow::Result<()> {
        self.of_key_file("CA key", &coordinator.data().join("ca.key"))?;
        let admin = fs::read_to_string(coordinator.data().join("admin.key"))?;
        self.add("admin key", admin.trim());
        self.add("admin key", BASE64_STANDARD.encode(format!("admin:{}", admin.trim())));
        Ok(())
    }

    fn of_agent(&mut self, agent: &Agent) -> anyhow::Result<()> {
        self.of_key_file("identity key", &agent.state().join("identity.key"))?;
        let text = fs::read_to_string(agent.state().join("wireguard.key"))?;
        self.add_bytes("WireGuard key", WgPrivateKey::from_base64(&text)?.bytes());
        Ok(())
    }

    fn of_token(&mut self, text: &str) -> anyhow::Result<()> {
        let token: JoinToken = text.trim().parse()?;
        self.add("join token", text.trim());
        let secret = BASE64_URL_SAFE_NO_PAD.decode(token.secret_base64().as_bytes())?;
        self.add_bytes("secret of a join token", &secret);
        Ok(())
    }

    fn admin_key(&self) -> String {
        let (_, key) = self.0.iter().find(|(what, _)| what == "admin key").expect("the coordinator's were added");
        String::from_utf8_lossy(key).into_owned()
    }

    fn are_not_in(&self, said: &BTreeMap<String, Vec<u8>>) {
        let mut found = Vec::new();
        for (whence, bytes) in said {
            for (what, form) in &self.0 {
                if let Some(at) = position(bytes, form) {
                    let begin = bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |line| line + 1);
                    let context = String::from_utf8_lossy(&bytes[begin.max(at.saturating_sub(200))..at]).into_owned();
                    found.push(format!("{what} in {whence}, after {context:?}"));
                }
            }
        }
        assert!(found.is_empty(), "{} finds:\n{}", found.len(), found.join("\n"));
    }
}

/// What every command prints as JSON.
fn outputs(coordinator: &Coordinator, agents: &[&Agent]) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut said = BTreeMap::new();
    for agent in agents {
        for arguments in [&["status"][..], &["peers"], &["services"], &["ping", "client"], &["drain"]] {
            let output = agent.command(&[arguments, &["--json"]].concat())?;
            said.insert(format!("wiremesh {arguments:?} on {}", agent.name()), text(&output).into_bytes());
            let output = agent.command(arguments)?;
            said.insert(format!("wiremesh {arguments:?} for people on {}", agent.name()), text(&output).into_bytes());
        }
    }
    for arguments in [&["token", "list", "--json"][..], &["token", "list"], &["token", "revoke", "abcdef"]] {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        said.insert(format!("wiremesh {arguments:?}"), text(&coordinator.command(&arguments)?).into_bytes());
    }
    Ok(said)
}

/// What the coordinator answers to its operator, and to somebody who is wrong.
fn answers(node: &Node, coordinator: &Coordinator, secrets: &Secrets) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut said = BTreeMap::new();
    let right = format!("Bearer {}", secrets.admin_key());
    for authorization in [right.as_str(), "Bearer wrong", "Wiremesh AAAA"] {
        for path in ["/", "/health", "/metrics", "/api/services/list", "/api/dht/bootstrap", "/api/nodes/worker", "/x"]
        {
            let url = format!("{}{path}", coordinator.url());
            let answer = fetch(node, Method::GET, &url, &[("authorization", authorization)], "", WITHIN)?;
            let shown = format!("{:?}\n{}", answer.headers, answer.text());
            let whose = &authorization[..authorization.len().min(12)];
            said.insert(format!("GET {path} of the coordinator with {whose}"), shown.into_bytes());
        }
    }
    Ok(said)
}

fn answers_of(agents: &[&Agent]) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut said = BTreeMap::new();
    for agent in agents {
        for path in ["/health", "/stats", "/metrics", "/routes/echo", "/v1/models", "/nothing"] {
            let answer = agent.request(Method::GET, path, &[("authorization", &format!("Bearer {API_KEY}"))], "")?;
            let shown = format!("{:?}\n{}", answer.headers, answer.text());
            said.insert(format!("GET {path} of {}", agent.name()), shown.into_bytes());
        }
    }
    Ok(said)
}

/// The files that hold them, and nothing else may.
fn is_a_secret_by_itself(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    matches!(name.as_ref(), "identity.key" | "wireguard.key" | "ca.key" | "admin.key" | "api.key" | "token")
        || name.starts_with("identity.key.")
        || name.starts_with("wireguard.key.")
}

/// Clients of this agent must show a key.
fn with_key_file(agent: &Agent, key_file: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(agent.config())?;
    let keyed = format!("listen = \"127.0.0.1:8000\"\nkey_file = {key_file:?}");
    fs::write(agent.config(), text.replace("listen = \"127.0.0.1:8000\"", &keyed))?;
    Ok(())
}

fn agent_of(joined: &Agent) -> anyhow::Result<Vec<String>> {
    let binary = wiremesh_binary()?.display().to_string();
    Ok(vec![binary, "agent".into(), "--config".into(), joined.config().display().to_string()])
}

fn coordinator_in(data: &Path) -> anyhow::Result<Vec<String>> {
    let binary = wiremesh_binary()?.display().to_string();
    let data = data.display().to_string();
    Ok(vec![binary, "coordinator".into(), "--data-dir".into(), data, "--listen".into(), "127.0.0.1:0".into()])
}

fn is_core(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("core"))
}

fn child_of(parent: i32, name: &str) -> Option<i32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (before, after) = stat.rsplit_once(") ")?;
        let ppid: i32 = after.split(' ').nth(1)?.parse().ok()?;
        (ppid == parent && before.ends_with(&format!("({name}"))).then(|| before.split(' ').next()?.parse().ok())?
    })
}

fn files_of(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files.extend(files_of(&entry.path())?);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn contains(bytes: &[u8], form: &[u8]) -> bool {
    position(bytes, form).is_some()
}

fn position(bytes: &[u8], form: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, form)
}
