//! `needs-renewal`: what its exit status and its one line say.

use super::*;

#[test]
fn it_is_yes_from_half_of_life_on_and_says_why() {
    let desk = Desk::with_node();
    let ask = |options: &str, days: u32| {
        let (text, outcome) = desk.line(&format!("needs-renewal --crt ./worker-1.crt {options}"), NOW.plus(DAY * days));
        assert_eq!(text.lines().count(), 1, "{text}");
        (outcome.unwrap(), text)
    };

    for (options, days, exit, says) in [
        ("", 3, Exit::No, "has used 42 % of its life and expires in 4 d; it is due in 11 h"),
        ("", 4, Exit::Done, "has used 57 % of its life of 50 %; expires in 3 d"),
        ("", 8, Exit::Done, "expired 1 d ago"),
        ("--at-percent 80", 4, Exit::No, "it is due in "),
        ("--at-percent 80 --within 3d", 4, Exit::Done, "expires in 3 d, which is within 3 d"),
        ("--within 2d", 4, Exit::No, "it is due in 1 d"),
        ("--within 2d --at @1800432000", 0, Exit::Done, "which is within 2 d"),
    ] {
        let (found, text) = ask(options, days);
        assert_eq!(found, exit, "{options} {days}: {text}");
        assert!(text.contains(says), "{options} {days}: {text}");
        assert!(text.starts_with(if exit == Exit::Done { "yes: " } else { "no: " }), "{text}");
    }
    let early = desk.line("needs-renewal ./worker-1.crt", NOW.minus(DAY));
    assert!(early.0.contains("is not valid yet"), "{}", early.0);
    assert_eq!(early.1.unwrap(), Exit::No);
}

#[test]
fn programs_are_told_the_same() {
    let desk = Desk::with_node();

    let no = desk.json("needs-renewal ./worker-1.crt", NOW);
    let yes = desk.json("needs-renewal ./worker-1.crt", NOW.plus(4 * DAY));

    assert_eq!((&no["needs_renewal"], &no["reason"], &no["kind"]), (&false.into(), &Value::Null, &"renewal".into()));
    assert_eq!((&yes["needs_renewal"], &yes["reason"]), (&true.into(), &"used".into()));
    assert_eq!((&yes["name"], &yes["used_percent"]), (&"worker-1".into(), &57.into()));
    assert_eq!(no["due_at"], yes["due_at"]);
}

#[test]
fn a_missing_file_is_told_from_one_that_is_no_certificate() {
    let desk = Desk::with_node();
    fs::write(desk.path("./noise"), [0xff; 100]).unwrap();
    fs::write(desk.path("./empty"), "").unwrap();

    let missing = desk.fails("needs-renewal ./missing.crt", NOW);
    assert_eq!(missing.exit, Exit::NotSo);
    assert!(missing.to_string().contains("there is no such file"), "{missing}");

    for file in ["./noise", "./empty", "./worker-1.req", "./identity.key"] {
        let (text, outcome) = desk.line(&format!("needs-renewal {file}"), NOW);
        assert_eq!(outcome.unwrap(), Exit::Done, "{file}");
        assert!(text.starts_with("yes: ") && text.contains("holds no certificate"), "{file}: {text}");
        assert_eq!(desk.json(&format!("needs-renewal {file}"), NOW)["reason"], "unreadable");
    }
    assert_eq!(desk.fails(&format!("needs-renewal {}", desk.folder.path().display()), NOW).exit, Exit::Usage);
}

#[test]
fn an_authority_is_due_later_in_its_life() {
    let desk = Desk::with_node();
    let year = 365 * DAY;

    assert_eq!(desk.line("needs-renewal ./ca.crt", NOW.plus(7 * year)).1.unwrap(), Exit::No);
    assert_eq!(desk.line("needs-renewal ./ca.crt", NOW.plus(8 * year)).1.unwrap(), Exit::Done);
}
