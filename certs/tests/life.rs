//! The whole life of a certificate on files alone, told by the real program and checked by OpenSSL.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;
use wiremesh_certs::{Authority, RevocationList, Trust, UnixTime};

#[test]
fn a_node_is_made_signed_checked_and_refused_when_revoked() {
    let desk = Desk::new();

    desk.cert("ca --name lab --networks 10.42.0.0/16 --duration 10y --out-crt ca.crt --out-key ca.key").ok();
    desk.cert("keygen").ok();
    desk.cert("request --name worker-1 --out-req worker-1.req").ok();
    desk.cert("sign --in-req worker-1.req --networks 10.42.0.7 --groups gpu --services ocr,llm --duration 3d").ok();

    let verified = desk.cert("verify --crt worker-1.crt").ok();
    assert_eq!(verified.lines().filter(|line| line.starts_with("ok ")).count(), 6, "{verified}");
    let printed = desk.cert("print worker-1.crt").ok();
    for fact in ["worker-1", "10.42.0.7", "gpu", "ocr, llm", "expires in 2 d 23 h, 0 % used"] {
        assert!(
            printed.contains(fact) || fact.starts_with("expires") && printed.contains("expires in 3 d"),
            "{printed}"
        );
    }
    for key in ["ca.key", "identity.key", "wireguard.key"] {
        assert_eq!(desk.mode(key), 0o600, "{key}");
    }

    let authority = Authority::from_pem(&desk.read("ca.crt"), &desk.read("ca.key")).unwrap();
    let chain = wiremesh_certs::Chain::from_pem(&desk.read("worker-1.crt")).unwrap();
    let now = UnixTime(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs());
    let serial = Trust::new(authority.certificate().clone()).verify(&chain, now).unwrap().serial();
    let list = RevocationList { number: 1, serials: [serial].into(), ..RevocationList::default() };
    fs::write(desk.path("revoked"), authority.sign_revocations(&list).unwrap().as_bytes()).unwrap();

    let revoked = desk.cert("verify --crt worker-1.crt --revocations revoked");
    assert_eq!(revoked.code(), 2);
    assert!(revoked.errors().starts_with("error: worker-1.crt is refused: its certificate"), "{}", revoked.errors());
    assert!(revoked.errors().contains("\nhint: ask the operator"), "{}", revoked.errors());
    let later = desk.cert("verify --crt worker-1.crt --at 2200-01-01");
    assert_eq!(later.code(), 2);
}

#[test]
fn every_way_of_failing_has_its_exit_status_and_never_a_backtrace() {
    let desk = Desk::new();
    fs::write(desk.path("noise"), [0xff, 0x00, 0x30, 0x82]).unwrap();
    fs::create_dir(desk.path("directory")).unwrap();

    for (line, code) in [
        ("--help", 0),
        ("--version", 0),
        ("sign --help", 0),
        ("", 64),
        ("ca", 64),
        ("sign --in-req", 64),
        ("ca --name lab --duration forever", 64),
        ("keygen --out-key - ", 64),
        ("keygen --out-key same --out-wg-key same", 64),
        ("print missing", 1),
        ("print noise", 1),
        ("print directory", 1),
        ("request --name a", 1),
        ("verify --ca-crt noise --crt noise", 1),
        ("sign --in-req noise --networks 10.42.0.7", 1),
        ("ca --name lab --networks 10.0.0.0/31", 1),
        ("ca --name lab --out-key directory", 1),
        ("ca --name lab --out-key /proc/nowhere/ca.key", 1),
    ] {
        let ran = desk.cert(line);
        let errors = ran.errors();
        assert_eq!(ran.code(), code, "{line}: {errors}");
        assert!(!errors.contains("panicked") && !errors.contains("RUST_BACKTRACE"), "{line}: {errors}");
        // Without arguments clap shows the help; all else says what is wrong.
        assert!(code == 0 || line.is_empty() || errors.starts_with("error: "), "{line}: {errors}");
    }
    assert_eq!(fs::read_dir(desk.0.path()).unwrap().count(), 2, "nothing was left behind");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let desk = Desk::new();
    desk.cert("ca --name lab").ok();

    let mut child = desk.command("print ca.crt").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ran = Ran(child.wait_with_output().unwrap());

    assert!(!ran.errors().contains("panicked"), "{}", ran.errors());
}

#[test]
fn a_request_travels_through_a_pipe() {
    let desk = Desk::new();
    desk.cert("ca --name lab").ok();
    desk.cert("keygen").ok();
    let request = desk.cert("request --name worker-1").ok();

    let mut child = desk
        .command("sign --in-req - --networks 10.42.0.7 --out-crt -")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
    let certificate = Ran(child.wait_with_output().unwrap()).ok();

    assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----\n"), "{certificate}");
    assert!(certificate.ends_with("-----END CERTIFICATE-----\n"), "{certificate}");
}

#[test]
fn openssl_opens_and_verifies_what_is_made_here() {
    let desk = Desk::new();
    desk.cert("ca --name lab --networks 10.42.0.0/16").ok();
    desk.cert("keygen").ok();
    desk.cert("request --name worker-1 --out-req worker-1.req").ok();
    desk.cert("sign --in-req worker-1.req --networks 10.42.0.7 --groups gpu --services ocr").ok();

    let text = desk.openssl("x509 -in worker-1.crt -noout -text").ok();
    for part in [
        "Version: 3",
        "CN = worker-1",
        "IP Address:10.42.0.7, DNS:worker-1.lab.internal, URI:wiremesh://lab/worker-1",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "2.25.3146792049317540851.1",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let text = desk.openssl("x509 -in ca.crt -noout -text").ok();
    for part in ["CA:TRUE", "IP:10.42.0.0/255.255.0.0", "DNS:lab.internal"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    for purpose in ["sslserver", "sslclient"] {
        let line = format!("verify -x509_strict -purpose {purpose} -CAfile ca.crt worker-1.crt");
        assert_eq!(desk.openssl(&line).ok(), "worker-1.crt: OK\n");
    }
    desk.openssl("req -in worker-1.req -noout -verify").ok();
    let public = desk.openssl("pkey -in identity.key -pubout").ok();
    assert_eq!(public, desk.openssl("x509 -in worker-1.crt -noout -pubkey").ok(), "one key in both files");

    desk.cert("ca --name lab --out-crt other.crt --out-key other.key").ok();
    assert_ne!(desk.openssl("verify -CAfile other.crt worker-1.crt").code(), 0, "by another authority");
}

#[test]
fn openssl_holds_to_the_name_constraints_as_we_do() {
    let desk = Desk::new();
    let root = forge::Ca::root("lab");
    fs::write(desk.path("ca.crt"), root.certificate().pem()).unwrap();
    for (file, address) in [("inside", "10.42.0.7"), ("outside", "10.43.0.7")] {
        let der = root.node(|params| params.subject_alt_names = forge::names("lab", "worker-1", address));
        fs::write(desk.path(file), wiremesh_certs::Chain::from_ders(vec![der]).unwrap().to_pem()).unwrap();
    }
    let at = format!("-attime {}", forge::NOW.0);

    assert_eq!(desk.openssl(&format!("verify {at} -CAfile ca.crt inside")).code(), 0);
    let outside = desk.openssl(&format!("verify {at} -CAfile ca.crt outside"));
    assert!(outside.errors().contains("permitted subtree violation"), "{}", outside.errors());
    let ours = |file: &str| desk.cert(&format!("verify --crt {file} --at @{}", forge::NOW.0)).code();
    assert_eq!((ours("inside"), ours("outside")), (0, 2));
}

#[test]
fn keys_made_by_openssl_are_taken() {
    let desk = Desk::new();
    desk.cert("ca --name lab").ok();
    desk.cert("keygen").ok();
    desk.openssl("genpkey -algorithm ed25519 -out foreign.key").ok();

    desk.cert("request --name worker-1 --in-key foreign.key --out-req worker-1.req").ok();
    desk.cert("sign --in-req worker-1.req --networks 10.42.0.7").ok();

    desk.cert("verify --crt worker-1.crt").ok();
}

#[path = "support/forge.rs"]
mod forge;

/// A directory to work in.
struct Desk(TempDir);

impl Desk {
    fn new() -> Desk {
        Desk(tempfile::tempdir().unwrap())
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wiremesh-cert"));
        command
            .args(line.split_whitespace())
            .current_dir(self.0.path())
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null());
        command
    }

    fn cert(&self, line: &str) -> Ran {
        Ran(self.command(line).output().unwrap())
    }

    fn openssl(&self, line: &str) -> Ran {
        let ran = Command::new("openssl").args(line.split_whitespace()).current_dir(self.0.path()).output();
        Ran(ran.expect("this test needs the program \"openssl\" in the PATH: install the package of that name"))
    }

    fn path(&self, file: &str) -> std::path::PathBuf {
        self.0.path().join(Path::new(file))
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap()
    }

    fn mode(&self, file: &str) -> u32 {
        fs::metadata(self.path(file)).unwrap().permissions().mode() & 0o777
    }
}

struct Ran(Output);

impl Ran {
    /// What it printed, if it succeeded.
    fn ok(&self) -> String {
        assert!(self.0.status.success(), "{}", self.errors());
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    fn code(&self) -> i32 {
        self.0.status.code().expect("ended by itself")
    }

    fn errors(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }
}
