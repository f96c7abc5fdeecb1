//! Which part may name which, and which files may touch the world: held as a test.

/// Each part of the agent and the parts it may name. `app` names them all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("membership", &[]),
    ("overlay", &[]),
    ("directory", &[]),
    ("services", &[]),
    ("router", &["directory", "services"]),
    ("coordinator", &[]),
];

/// Words that only files called `io.rs` or under `io/` may contain.
const WORLD: &[&str] = &[
    "tokio",
    "clock::",
    "std::fs",
    "std::env",
    "UdpSocket",
    "TcpStream",
    "axum",
    "reqwest",
    "quinn::",
    "sqlx",
    ".await",
];

#[test]
fn no_part_names_another_than_it_may() {
    let mut found = Vec::new();
    for (part, may_use) in MAY_USE {
        for (file, text) in files_of(part) {
            for (other, _) in MAY_USE.iter().filter(|(other, _)| other != part && !may_use.contains(other)) {
                if text.contains(&format!("crate::{other}")) || text.contains(&format!("super::{other}::")) {
                    found.push(format!("{file} names {other}"));
                }
            }
            for outer in ["app", "cli", "config"] {
                if text.contains(&format!("crate::{outer}::")) {
                    found.push(format!("{file} names {outer}"));
                }
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn only_io_touches_the_world() {
    let mut found = Vec::new();
    for (part, _) in MAY_USE {
        for (file, text) in files_of(part) {
            if file.ends_with("/io.rs") || file.contains("/io/") {
                continue;
            }
            found.extend(WORLD.iter().filter(|word| text.contains(**word)).map(|word| format!("{file}: {word}")));
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

/// The files of a part, without comments and tests.
fn files_of(part: &str) -> Vec<(String, String)> {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![source.join(part)];
    let mut paths = vec![source.join(format!("{part}.rs"))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() && path.ends_with("tests") => {}
                path if path.is_dir() => folders.push(path),
                path if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") => paths.push(path),
                _ => {}
            }
        }
    }
    assert!(paths[0].exists(), "{part} has moved: mend the table");
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let code: Vec<&str> = text
            .lines()
            .take_while(|line| line.trim() != "#[cfg(test)]")
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        files.push((path.strip_prefix(&source).unwrap().display().to_string(), code.join("\n")));
    }
    files
}
