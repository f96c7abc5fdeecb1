//! The whole life of a certificate on files alone, told by the real program and checked by OpenSSL.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
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
    let now = UnixTime(now());
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
fn the_whole_life_of_a_mesh_from_its_offline_root_to_the_next_one() {
    let desk = Desk::new();
    desk.write("root.pass", "correct horse battery staple\n");

    // The root is made on a machine without network, under a passphrase; the coordinator gets an intermediate.
    desk.cert("ca --name lab --networks 10.42.0.0/16 --encrypt --passphrase-file root.pass --out-crt root.crt --out-key root.key")
        .ok();
    let below = "--ca-crt root.crt --ca-key root.key --passphrase-file root.pass";
    desk.cert(&format!("ca --intermediate {below} --duration 2y")).ok();
    assert!(desk.read("root.key").starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
    assert_eq!((desk.mode("root.key"), desk.mode("ca.key")), (0o600, 0o600));

    // A node makes its keys, and only its request leaves it.
    desk.cert("keygen --out-pub worker-1.pub").ok();
    desk.cert("request --name worker-1 --out-req worker-1.req").ok();
    desk.cert("sign --in-req worker-1.req --networks 10.42.0.7 --groups gpu --services ocr --duration 8d").ok();
    let verify = "verify --ca-crt root.crt --crt worker-1.crt";
    assert_eq!(desk.cert(verify).ok().lines().filter(|line| line.starts_with("ok ")).count(), 6);

    // Half of its life later it is time to renew, and not before; soon after its end too.
    let now = now();
    let after = |days: u64| now + days * 86_400;
    for (days, code) in [(1, 1), (3, 1), (5, 0), (9, 0)] {
        let ran = desk.cert(&format!("needs-renewal --crt worker-1.crt --at @{}", after(days)));
        assert_eq!(ran.code(), code, "after {days} days: {}", ran.errors());
    }
    assert_eq!(desk.cert("needs-renewal --crt missing.crt").code(), 2);
    assert_eq!(desk.cert("needs-renewal --crt worker-1.crt --at-percent 200").code(), 64);
    assert_eq!(desk.cert(&format!("{verify} --at @{}", after(9))).code(), 2, "it has expired");
    desk.cert(&format!("renew --crt worker-1.crt --at @{} --out-crt renewed.crt", after(9))).ok();
    let renewed = format!("verify --ca-crt root.crt --crt renewed.crt --at @{}", after(9));
    desk.cert(&renewed).ok();

    // The machine is stolen: whatever certificate its key has is refused from then on, and not renewed.
    desk.cert("revoke --crt worker-1.crt").ok();
    for line in [format!("{verify} --revocations revocations.bin"), format!("{renewed} --revocations revocations.bin")]
    {
        let refused = desk.cert(&line);
        assert_eq!(refused.code(), 2);
        assert!(refused.errors().contains("is revoked"), "{}", refused.errors());
    }
    assert_eq!(desk.cert("renew --crt worker-1.crt --revocations revocations.bin --out-crt no.crt").code(), 2);
    let list = desk.cert("list . --revocations revocations.bin").ok();
    let statuses = |word: &str| list.lines().filter(|line| line.contains(word)).count();
    // Its two certificates; root, intermediate and the root behind that.
    assert_eq!((statuses("  revoked  "), statuses("  valid  ")), (2, 3), "{list}");

    // The next root, and everybody moves to it while both are believed.
    let next = desk.cert(&format!("rotate {below}")).ok();
    assert!(next.contains("what to do next:"), "{next}");
    assert!(desk.read("next.key").starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
    desk.cert("keygen --out-key k2 --out-wg-key w2 --out-pub worker-2.pub").ok();
    desk.cert("sign --in-pub worker-2.pub --name worker-2 --networks 10.42.0.8").ok();
    let by_next = "--ca-crt next.crt --ca-key next.key --passphrase-file root.pass";
    desk.cert(&format!("renew --crt worker-2.crt {by_next} --old-ca-crt ca.crt --out-crt moved.crt")).ok();
    desk.write("both.crt", &(desk.read("next.crt") + &desk.read("root.crt")));
    for crt in ["worker-2.crt", "moved.crt"] {
        desk.cert(&format!("verify --ca-crt both.crt --crt {crt} --revocations revocations.bin")).ok();
    }
    desk.cert("verify --ca-crt next.crt --crt moved.crt").ok();
    assert_eq!(desk.cert("verify --ca-crt next.crt --crt worker-2.crt").code(), 2, "the old root is believed no more");

    // OpenSSL says the same of all of it.
    desk.write("intermediate.crt", desk.read("ca.crt").split_inclusive("-----END CERTIFICATE-----\n").next().unwrap());
    desk.write("leaf.crt", desk.read("worker-2.crt").split_inclusive("-----END CERTIFICATE-----\n").next().unwrap());
    for (root, untrusted, leaf) in [
        ("root.crt", "-untrusted intermediate.crt", "leaf.crt"),
        ("next.crt", "", "moved.crt"),
        ("root.crt", "-untrusted cross.crt", "moved.crt"),
    ] {
        let line = format!("verify -x509_strict -purpose sslserver -CAfile {root} {untrusted} {leaf}");
        assert_eq!(desk.openssl(&line).ok(), format!("{leaf}: OK\n"));
    }
    for (root, leaf) in [("root.crt", "moved.crt"), ("next.crt", "leaf.crt")] {
        assert_ne!(desk.openssl(&format!("verify -CAfile {root} {leaf}")).code(), 0, "{leaf} alone under {root}");
    }
    let text = desk.openssl("x509 -in intermediate.crt -noout -text").ok();
    assert!(text.contains("CA:TRUE, pathlen:0") && text.contains("IP:10.42.0.0/255.255.0.0"), "{text}");
}

#[test]
fn openssl_opens_the_keys_encrypted_here_and_its_own_are_opened_here() {
    let desk = Desk::new();
    desk.write("pass", "correct horse battery staple\n");
    desk.cert("ca --name lab --encrypt --passphrase-file pass").ok();
    desk.cert("keygen").ok();
    desk.cert("request --name worker-1 --out-req worker-1.req").ok();

    let public = desk.openssl("pkey -in ca.key -passin file:pass -pubout").ok();
    assert_eq!(public, desk.openssl("x509 -in ca.crt -noout -pubkey").ok());
    desk.write("wrong", "correct horse battery stable\n");
    assert_ne!(desk.openssl("pkey -in ca.key -passin file:wrong -pubout").code(), 0);

    desk.openssl("pkey -in ca.key -passin file:pass -out plain.key").ok();
    for (at, options) in [
        "-v2 aes-256-cbc",
        "-v2 aes-128-cbc -v2prf hmacWithSHA512 -iter 100000",
        "-v2 aes-192-cbc",
        "-scrypt",
        "-scrypt -scrypt_N 32768 -scrypt_r 4 -scrypt_p 2",
    ]
    .into_iter()
    .enumerate()
    {
        desk.openssl(&format!("pkcs8 -topk8 {options} -in plain.key -passout file:pass -out {at}.key")).ok();
        let sign = format!("sign --in-req worker-1.req --networks 10.42.0.7 --ca-key {at}.key --out-crt {at}.crt");
        desk.cert(&format!("{sign} --passphrase-file pass")).ok();
        desk.cert(&format!("verify --crt {at}.crt")).ok();
        let wrong = desk.cert(&format!("{sign} --force --passphrase-file wrong"));
        assert!(
            wrong.errors().starts_with(&format!("error: reading {at}.key: the passphrase is wrong")),
            "{}",
            wrong.errors()
        );
    }
    let sign = "sign --in-req worker-1.req --networks 10.42.0.7";
    let nobody = Ran(desk.without_terminal(sign).output().unwrap());
    assert_eq!(nobody.code(), 1);
    assert!(
        nobody.errors().contains("\nhint: name a file that holds it: --passphrase-file FILE\n"),
        "{}",
        nobody.errors()
    );
    desk.cert_with_passphrase(sign, "correct horse battery staple").ok();
}

#[test]
fn a_passphrase_typed_at_a_terminal_is_never_shown() {
    let desk = Desk::new();
    desk.cert("keygen").ok();
    desk.cert("request --name worker-1 --out-req worker-1.req").ok();

    let mut making = Typing::at(&desk, "ca --name lab --encrypt");
    making.answer("new passphrase for ca.key: ", "correct horse\n");
    making.answer("the same again: ", "correct horse\n");
    let (text, code) = making.end();
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("certificate in ca.crt") && !text.contains("correct"), "{text}");

    let mut signing = Typing::at(&desk, "sign --in-req worker-1.req --networks 10.42.0.7");
    // Mistyped, and taken back.
    signing.answer("passphrase of ca.key: ", "corrx\x7fect horse\n");
    let (text, code) = signing.end();
    assert_eq!(code, 0, "{text}");
    assert!(!text.contains("horse"), "{text}");

    let mut stopped = Typing::at(&desk, "sign --in-req worker-1.req --networks 10.42.0.7 --force");
    stopped.answer("passphrase of ca.key: ", "correct\x03");
    let (text, code) = stopped.end();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("error: reading ca.key: interrupted") && !text.contains("correct"), "{text}");
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
        ("needs-renewal", 64),
        ("needs-renewal --crt directory", 64),
        ("needs-renewal --crt missing", 2),
        ("needs-renewal --crt noise", 0),
        ("renew --crt noise", 64),
        ("renew --crt noise --force", 1),
        ("revoke", 64),
        ("revoke --serial 12", 64),
        ("revoke --crt noise", 1),
        ("list missing", 2),
        ("list directory", 0),
        ("list --within never", 64),
        ("rotate", 1),
        ("rotate --out-cross -", 64),
        ("ca --intermediate", 64),
        ("ca --intermediate --ca-crt noise --ca-key noise", 1),
        ("ca --name lab --encrypt --passphrase-file missing", 1),
        ("ca --name lab --passphrase-file noise", 64),
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
            .env_remove("WIREMESH_CA_PASSPHRASE")
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

    /// In a session of its own, so that nobody is asked at the terminal where the tests run.
    fn without_terminal(&self, line: &str) -> Command {
        let command = self.command(line);
        let mut alone = Command::new("setsid");
        alone.arg("--wait").arg(command.get_program()).args(command.get_args()).current_dir(self.0.path());
        alone.env_remove("WIREMESH_CA_PASSPHRASE").stdin(Stdio::null());
        alone
    }

    /// With a passphrase in the environment.
    fn cert_with_passphrase(&self, line: &str, passphrase: &str) -> Ran {
        Ran(self.command(line).env("WIREMESH_CA_PASSPHRASE", passphrase).output().unwrap())
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).unwrap();
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

/// Somebody at a terminal, which the program "script" makes.
struct Typing {
    child: Child,
    seen: String,
}

impl Typing {
    fn at(desk: &Desk, line: &str) -> Typing {
        let child = Command::new("script")
            .args(["-qec", &format!("{} {line}", env!("CARGO_BIN_EXE_wiremesh-cert")), "/dev/null"])
            .current_dir(desk.0.path())
            .env_remove("WIREMESH_CA_PASSPHRASE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let child = child.expect("this test needs the program \"script\": install the package \"bsdutils\"");
        Typing { child, seen: String::new() }
    }

    /// Waits until it is asked this, and types the answer.
    fn answer(&mut self, question: &str, answer: &str) {
        let output = self.child.stdout.as_mut().unwrap();
        while !self.seen.ends_with(question) {
            let mut byte = [0];
            output.read_exact(&mut byte).unwrap_or_else(|_| panic!("{question} was never asked: {}", self.seen));
            self.seen.push(byte[0].into());
        }
        self.child.stdin.as_mut().unwrap().write_all(answer.as_bytes()).unwrap();
    }

    /// All that was on the screen, and the exit status.
    fn end(mut self) -> (String, i32) {
        self.child.stdout.take().unwrap().read_to_string(&mut self.seen).unwrap();
        (self.seen, self.child.wait().unwrap().code().expect("ended by itself"))
    }
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
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
