//! The commands as functions of their arguments, the time, chance and streams.

mod ca;
mod files;
mod list;
mod needs_renewal;
mod passphrase;
mod print;
mod renew;
mod revoke;
mod rotate;
mod sign;
mod verify;

use std::{cell::RefCell, collections::VecDeque, fs, io, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use clap::{CommandFactory, Parser};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::Value;
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::*;
use crate::{Authority, CaCertificate, Chain, IdentityKey, Trust};

const NOW: UnixTime = UnixTime(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn the_definitions_are_sound_and_each_command_has_an_example() {
    let command = Cli::command();

    command.clone().debug_assert();

    for sub in command.get_subcommands() {
        let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains(&format!("wiremesh-cert {}", sub.get_name())), "{}", sub.get_name());
        assert!(help.starts_with("Example"), "{}", sub.get_name());
    }
}

#[test]
fn bad_usage_is_told_before_anything_is_done() {
    for line in [
        "",
        "ca",
        "ca --name Lab",
        "ca --name lab --networks ten",
        "ca --name lab --duration 7",
        "ca --name lab --duration 7 d",
        "request",
        "sign --networks 10.42.0.7",
        "sign --networks 10.42.0.7 --in-pub x",
        "sign --networks 10.42.0.7 --in-pub x --in-req y --name z",
        "sign --networks 10.42.0.300 --in-req y",
        "sign --networks 10.42.0.7 --in-req y --groups A",
        "sign --networks 10.42.0.7 --in-req y --services a/b",
        "print",
        "print a b",
        "verify",
        "verify --crt x --at noon",
        "ca --intermediate",
        "ca --intermediate --ca-crt x",
        "ca --name lab --ca-crt x --ca-key y",
        "ca --name lab --out-passphrase-file x",
        "rotate --out-crt -",
        "rotate --out-key -",
        "needs-renewal",
        "needs-renewal x --crt y",
        "needs-renewal x --at-percent 101",
        "needs-renewal x --within 2",
        "renew",
        "revoke",
        "revoke --serial 1",
        "list --at-percent -1",
        "frobnicate",
    ] {
        let arguments = ["wiremesh-cert"].into_iter().chain(line.split_whitespace());
        assert!(Cli::try_parse_from(arguments).is_err_and(|error| error.use_stderr()), "{line}");
    }
    let desk = Desk::with_node();
    let twice = desk.run(&["sign", "--in-req", "-", "--ca-key", "-", "--networks", "10.42.0.7"], NOW, "").1;
    assert_eq!(twice.unwrap_err().exit, Exit::Usage);
}

/// A directory to work in, which `./` means in the arguments of commands, and somebody who knows passphrases.
struct Desk {
    folder: TempDir,
    person: RefCell<Person>,
}

/// Types what was prepared, and remembers what was asked.
#[derive(Default)]
struct Person {
    environment: Option<&'static str>,
    answers: VecDeque<&'static str>,
    asked: Vec<String>,
}

impl Keeper for Person {
    fn environment(&self) -> Option<Result<Zeroizing<String>, &'static str>> {
        self.environment.map(|value| Ok(Zeroizing::new(value.to_owned())))
    }

    fn ask(&mut self, question: &str) -> io::Result<Zeroizing<String>> {
        self.asked.push(question.to_owned());
        let answer = self.answers.pop_front().ok_or(io::ErrorKind::NotFound)?;
        Ok(Zeroizing::new(answer.to_owned()))
    }
}

impl Desk {
    fn new() -> Desk {
        Desk { folder: tempfile::tempdir().unwrap(), person: RefCell::default() }
    }

    /// With an authority and one node, signed.
    fn with_node() -> Desk {
        let desk = Desk::new();
        desk.ok(&["ca", "--name", "lab", "--networks", "10.42.0.0/16"]);
        desk.ok(&["keygen", "--out-pub", "./worker-1.pub"]);
        desk.ok(&["request", "--name", "worker-1", "--out-req", "./worker-1.req"]);
        desk.ok(&["sign", "--in-req", "./worker-1.req", "--networks", "10.42.0.7", "--out-crt", "./worker-1.crt"]);
        desk
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let (text, outcome) = self.run(arguments, NOW, "");
        outcome.unwrap_or_else(|failure| panic!("{arguments:?}: {failure}"));
        text
    }

    /// With a root in root.crt and root.key, an intermediate in ca.crt and ca.key, and a node of that.
    fn with_intermediate() -> Desk {
        let desk = Desk::new();
        for line in [
            "ca --name lab --networks 10.42.0.0/16 --out-crt ./root.crt --out-key ./root.key",
            "ca --intermediate --ca-crt ./root.crt --ca-key ./root.key",
            "keygen --out-pub ./worker-1.pub",
            "request --name worker-1 --out-req ./worker-1.req",
            "sign --in-req ./worker-1.req --networks 10.42.0.7 --out-crt ./worker-1.crt",
        ] {
            desk.line(line, NOW).1.unwrap_or_else(|failure| panic!("{line}: {failure}"));
        }
        desk
    }

    /// What a whole line says, and how it went.
    fn line(&self, line: &str, now: UnixTime) -> (String, Result<Exit, Failure>) {
        self.run(&line.split_whitespace().collect::<Vec<_>>(), now, "")
    }

    /// Why a whole line fails.
    fn fails(&self, line: &str, now: UnixTime) -> Failure {
        match self.line(line, now) {
            (_, Err(failure)) => failure,
            (text, Ok(exit)) => panic!("{line}: {exit:?}: {text}"),
        }
    }

    fn json(&self, line: &str, now: UnixTime) -> Value {
        let (text, outcome) = self.line(&format!("{line} --json"), now);
        outcome.unwrap_or_else(|failure| panic!("{line}: {failure}"));
        serde_json::from_str(&text).unwrap()
    }

    fn run(&self, arguments: &[&str], now: UnixTime, input: &str) -> (String, Result<Exit, Failure>) {
        let placed = |value: &&str| match value.strip_prefix("./") {
            Some(file) => self.path(file).display().to_string(),
            None => (*value).to_owned(),
        };
        let mut line = vec!["wiremesh-cert".to_owned()];
        line.extend(arguments.iter().map(placed));
        // The defaults are files of the working directory, which tests share.
        let defaults: &[(&str, &str)] = match arguments[0] {
            "ca" => &[("--out-crt", "./ca.crt"), ("--out-key", "./ca.key")],
            "keygen" => &[("--out-key", "./identity.key"), ("--out-wg-key", "./wireguard.key")],
            "request" => &[("--in-key", "./identity.key"), ("--in-wg-key", "./wireguard.key")],
            "sign" => &[("--ca-crt", "./ca.crt"), ("--ca-key", "./ca.key"), ("--out-crt", "./w.crt")],
            "renew" => &[("--ca-crt", "./ca.crt"), ("--ca-key", "./ca.key")],
            "rotate" => &[
                ("--ca-crt", "./ca.crt"),
                ("--ca-key", "./ca.key"),
                ("--out-crt", "./next.crt"),
                ("--out-key", "./next.key"),
                ("--out-cross", "./cross.crt"),
            ],
            "revoke" => &[("--ca-crt", "./ca.crt"), ("--ca-key", "./ca.key"), ("--revocations", "./revocations.bin")],
            "verify" | "list" => &[("--ca-crt", "./ca.crt")],
            _ => &[],
        };
        for (option, file) in defaults {
            let named = arguments.contains(option) || *option == "--ca-crt" && arguments.contains(&"--ca");
            if !named {
                line.extend([(*option).to_owned(), placed(file)]);
            }
        }
        let command = Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{arguments:?}: {error}")).command;
        let mut output = Vec::new();
        let keeper = &mut *self.person.borrow_mut();
        let mut console = Console { input: &mut input.as_bytes(), output: &mut output, colours: false, keeper };
        let mut rng = StdRng::from_os_rng();
        let outcome = command.run(now, &mut rng, &mut console);
        (String::from_utf8(output).unwrap(), outcome)
    }

    fn path(&self, file: &str) -> std::path::PathBuf {
        self.folder.path().join(Path::new(file))
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap()
    }

    fn mode(&self, file: &str) -> u32 {
        fs::metadata(self.path(file)).unwrap().permissions().mode() & 0o777
    }

    fn authority(&self) -> Authority {
        Authority::from_pem(&self.read("./ca.crt"), &self.read("./ca.key")).unwrap()
    }

    /// Of somebody who knows the root alone.
    fn root_trust(&self) -> Trust {
        Trust::new(CaCertificate::from_pem(&self.read("./root.crt")).unwrap())
    }

    fn trust(&self) -> Trust {
        Trust::new(CaCertificate::from_pem(&self.read("./ca.crt")).unwrap())
    }

    fn chain(&self) -> Chain {
        Chain::from_pem(&self.read("./worker-1.crt")).unwrap()
    }
}
