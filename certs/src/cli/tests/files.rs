//! What commands do to files: never to private keys, to others with `--force`.

use super::*;

#[test]
fn no_private_key_is_ever_replaced_or_shown() {
    let desk = Desk::with_node();
    let keys = ["./ca.key", "./identity.key", "./wireguard.key"].map(|file| desk.read(file));

    for attempt in [
        &["ca", "--name", "lab", "--force"][..],
        &["keygen", "--force"],
        &["keygen", "--force", "--out-key", "./other.key"],
        &["sign", "--in-req", "./worker-1.req", "--networks", "10.42.0.7", "--out-crt", "./identity.key", "--force"],
        &["sign", "--in-req", "./worker-1.req", "--networks", "10.42.0.7", "--out-crt", "./wireguard.key", "--force"],
        &["request", "--name", "worker-1", "--out-req", "./ca.key", "--force"],
    ] {
        let failure = desk.run(attempt, NOW, "").1.unwrap_err();
        assert_eq!(failure.exit, Exit::Failed, "{attempt:?}");
        assert!(failure.to_string().contains("hint: "), "{failure}");
    }

    assert_eq!(["./ca.key", "./identity.key", "./wireguard.key"].map(|file| desk.read(file)), keys);
    assert!(!desk.path("./other.key").exists(), "half a pair of keys was left behind");
    for file in ["./ca.key", "./identity.key", "./wireguard.key"] {
        let secret = desk.read(file).lines().find(|line| !line.starts_with('-')).unwrap().to_owned();
        assert!(!desk.ok(&["print", file]).contains(&secret), "{file}");
        assert!(!desk.ok(&["print", file, "--json"]).contains(&secret), "{file}");
    }
    assert!(Cli::try_parse_from(["wiremesh-cert", "keygen", "--out-key", "-"]).is_err());
    assert!(Cli::try_parse_from(["wiremesh-cert", "ca", "--name", "lab", "--out-key", "-"]).is_err());
}

#[test]
fn a_public_file_is_replaced_only_with_force() {
    let desk = Desk::with_node();
    let sign = ["sign", "--in-req", "./worker-1.req", "--networks", "10.42.0.8", "--out-crt", "./worker-1.crt"];
    let before = desk.read("./worker-1.crt");

    let refused = desk.run(&sign, NOW, "").1.unwrap_err();
    assert!(refused.to_string().contains("exists already"), "{refused}");
    assert_eq!(desk.read("./worker-1.crt"), before);

    desk.ok(&[&sign[..], &["--force"]].concat());
    assert_ne!(desk.read("./worker-1.crt"), before);
}

#[test]
fn input_without_end_is_refused() {
    let desk = Desk::new();
    let endless = "A".repeat(3 * 1024 * 1024);

    for arguments in [&["print", "-"][..], &["request", "--name", "a", "--in-key", "-"]] {
        let failure = desk.run(arguments, NOW, &endless).1.unwrap_err();
        assert!(failure.to_string().contains("more than"), "{failure}");
    }
}

#[test]
fn a_file_that_is_no_ordinary_one_is_not_replaced() {
    let desk = Desk::with_node();
    std::os::unix::fs::symlink(desk.path("./worker-1.pub"), desk.path("./link")).unwrap();

    let failure = desk.run(&["request", "--name", "a", "--out-req", "./link", "--force"], NOW, "").1.unwrap_err();

    assert!(failure.to_string().contains("not an ordinary file"), "{failure}");
}

#[test]
fn json_holds_the_thing_itself_when_both_go_to_standard_output() {
    let desk = Desk::with_node();

    let said = desk.ok(&["sign", "--json", "--in-req", "./worker-1.req", "--networks", "10.42.0.7", "--out-crt", "-"]);

    let said: Value = serde_json::from_str(&said).unwrap();
    assert!(Chain::from_pem(said["text"].as_str().unwrap()).is_ok());
}
