//! `list`: what is in a folder, in the order in which it ends.

use super::*;

#[test]
fn those_that_end_first_come_first_and_other_files_are_counted() {
    let desk = with_certificates();
    let folder = desk.folder.path().display().to_string();

    let (text, outcome) = desk.line(&format!("list {folder}"), NOW.plus(2 * DAY));

    outcome.unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("NAME"), "{text}");
    for (line, words) in lines[1..].iter().zip([
        ["worker-1", "10.42.0.8", "1 d ago", "expired", "short.crt"],
        ["worker-1", "10.42.0.7", "in 5 d", "valid", "worker-1.crt"],
        ["worker-1", "10.42.0.9", "in 28 d", "valid", "long.crt"],
        ["lab (ca)", "-", "in 9 y", "valid", "ca.crt"],
    ]) {
        assert!(words.iter().all(|word| line.contains(word)), "{line}: {words:?}");
    }
    // Three keys, a request, public keys.
    assert_eq!(lines[5], "5 files without a certificate were passed over");
    assert_eq!(lines.len(), 6);
    assert!(!text.contains('\u{1b}'), "colours on what is no terminal");
}

#[test]
fn the_status_tells_what_is_revoked_due_and_not_valid_yet() {
    let desk = with_certificates();
    let serial = desk.trust().verify(&desk.chain(), NOW).unwrap().serial();
    desk.line(&format!("revoke --serial {serial}"), NOW).1.unwrap();
    let list = |options: &str, now| {
        desk.line(&format!("list ./worker-1.crt ./long.crt {options}"), now)
            .0
            .lines()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };

    let revoked = list("--revocations ./revocations.bin", NOW);
    let due = list("--within 6d", NOW.plus(DAY));
    let early = list("", NOW.minus(DAY));

    assert!(revoked[0].contains("  revoked  ") && revoked[1].contains("  valid  "), "{revoked:?}");
    assert!(due[0].contains("  needs renewal  ") && due[1].contains("  valid"), "{due:?}");
    assert!(early.iter().all(|line| line.contains("  not valid yet  ")), "{early:?}");
    fs::write(desk.path("./forged"), "x").unwrap();
    assert_eq!(desk.fails("list ./worker-1.crt --revocations ./forged", NOW).exit, Exit::NotSo);
}

#[test]
fn programs_get_the_same_with_stable_names() {
    let desk = with_certificates();

    let said = desk.json("list ./worker-1.crt ./ca.crt ./worker-1.req", NOW);

    let rows = said["certificates"].as_array().unwrap();
    assert_eq!((said["kind"].as_str(), &said["passed_over"]), (Some("certificates"), &1.into()));
    assert_eq!(
        rows[0].as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" "),
        "address expires_in_secs file identity kind mesh name needs_renewal not_after not_before serial status used_percent"
    );
    assert_eq!((&rows[0]["kind"], &rows[0]["status"]), (&"node".into(), &"valid".into()));
    assert_eq!((&rows[1]["kind"], &rows[1]["address"]), (&"ca".into(), &Value::Null));
}

#[test]
fn what_is_named_must_be_there_and_nothing_blocks_or_moves_the_cursor() {
    let desk = with_certificates();
    fs::copy(desk.path("./ca.crt"), desk.path("./a\u{1b}[2Jb.crt")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, desk.path("./pipe"), rustix::fs::Mode::RWXU).unwrap();
    fs::create_dir(desk.path("./below")).unwrap();
    fs::copy(desk.path("./ca.crt"), desk.path("./below/ca.crt")).unwrap();

    assert_eq!(desk.fails("list ./missing", NOW).exit, Exit::NotSo);
    let (text, outcome) = desk.line(&format!("list {}", desk.folder.path().display()), NOW);

    outcome.unwrap();
    assert!(!text.contains('\u{1b}'), "{text:?}");
    assert_eq!(text.matches("lab (ca)").count(), 2, "{text}");
}

/// One certificate that ends in a day, one in a week, one in 30 days.
fn with_certificates() -> Desk {
    let desk = Desk::with_node();
    for line in [
        "sign --in-req ./worker-1.req --networks 10.42.0.8 --duration 1d --out-crt ./short.crt",
        "sign --in-req ./worker-1.req --networks 10.42.0.9 --duration 30d --out-crt ./long.crt",
    ] {
        desk.line(line, NOW).1.unwrap();
    }
    desk
}
