//! What happens in the demo, in its order, and what each answer must be.

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    mesh::{Mesh, WORKERS},
    report::{Report, Row},
    request::Answer,
};
use crate::{clock, sandbox::Traffic};

const TEXT: &str = "the wind, the sea and the long way round the cape";
/// The product of two primes of seven digits or so: a moment's work, and checked by multiplying.
const NUMBER: u64 = 999_983 * 1_000_003;
const FILE_BYTES: usize = 32 * 1024 * 1024;
/// After a repair the overlay is in use again.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// What an answer must be.
struct Expected {
    worker: &'static str,
    path: &'static str,
    source: &'static [&'static str],
    answer: Value,
}

/// Plays every scene; the rows of the table are in `report`.
pub fn play(mesh: &mut Mesh, report: &mut Report, out: &mut impl Write) -> anyhow::Result<()> {
    let coordinator = mesh.start_coordinator()?;
    report.progress(out, "coordinator up: its own authority, database and certificate", clock::now())?;
    let mut workers = Vec::new();
    for (name, service) in WORKERS {
        let worker = mesh.start_worker(&coordinator, name, service)?;
        let line = format!("{name} joined with a token: {}, offers {service}", worker.overlay_ip);
        report.progress(out, &line, clock::now())?;
        workers.push(worker);
    }
    let [alpha, beta, gamma] = &workers[..] else { anyhow::bail!("three workers were started") };
    let words = || -> Value { json!({ "words": 11, "distinct": 8, "most_frequent": "the" }) };

    for worker in &workers {
        mesh.wait_published(worker)?;
    }
    report.progress(out, "every worker is in the table of the others", clock::now())?;

    let answer = || beta.ask("/service/primes", NUMBER.to_string().into());
    let factors = json!({ "number": NUMBER, "factors": [999_983, 1_000_003] });
    let expected = Expected { worker: "gamma", path: "overlay", source: &["dht"], answer: factors.clone() };
    show(report, out, "found in the DHT, over the overlay", ("beta", "primes"), answer, &expected)?;

    let expected = Expected { source: &["cache"], ..expected };
    show(report, out, "the same again: remembered", ("beta", "primes"), answer, &expected)?;

    let file: Vec<u8> = (0..FILE_BYTES).map(|at| (at * 31 % 251) as u8).collect();
    let sha256 = json!({ "bytes": FILE_BYTES, "sha256": hex::encode(Sha256::digest(&file)) });
    let expected = Expected { worker: "alpha", path: "overlay", source: &["dht", "cache"], answer: sha256 };
    show(report, out, "32 MiB streamed", ("gamma", "checksum"), || gamma.ask("/service/checksum", file), &expected)?;

    let expected = Expected { worker: "beta", path: "overlay", source: &["dht"], answer: words() };
    let answer = || alpha.ask("/service/words", TEXT.into());
    show(report, out, "another pair, over the overlay", ("alpha", "words"), answer, &expected)?;

    let cut = mesh.network.cut(&alpha.node, &beta.node, Traffic::Udp)?;
    report.progress(out, "UDP between alpha and beta is cut", clock::now())?;
    let expected = Expected { path: "tunnel", source: &["cache", "dht"], ..expected };
    show(report, out, "UDP cut: by the tunnel URL", ("alpha", "words"), answer, &expected)?;

    cut.restore()?;
    report.progress(out, "UDP is restored", clock::now())?;
    let expected = Expected { path: "overlay", ..expected };
    let restored_at = clock::now();
    let back = until(restored_at + BACK_WITHIN, || {
        let answer = answer()?;
        anyhow::ensure!(answer.header("x-wiremesh-path") == "overlay", "still by tunnel");
        Ok(answer)
    });
    let line = format!("UDP restored: overlay again, {:.1} s later", (clock::now() - restored_at).as_secs_f64());
    show(report, out, &line, ("alpha", "words"), || back, &expected)?;

    mesh.stop_coordinator()?;
    report.progress(out, "the coordinator is stopped", clock::now())?;
    let expected = Expected { worker: "gamma", path: "overlay", source: &["dht"], answer: factors };
    let answer = || alpha.ask("/service/primes", NUMBER.to_string().into());
    show(report, out, "no coordinator: a service not asked for before", ("alpha", "primes"), answer, &expected)?;
    let expected = Expected { worker: "beta", path: "overlay", source: &["cache", "dht"], answer: words() };
    let answer = || gamma.ask("/service/words", TEXT.into());
    show(report, out, "no coordinator: another pair", ("gamma", "words"), answer, &expected)
}

/// Asks once, compares, and adds a row.
fn show(
    report: &mut Report,
    out: &mut impl Write,
    scene: &str,
    (asked_by, service): (&'static str, &'static str),
    ask: impl FnOnce() -> anyhow::Result<Answer>,
    expected: &Expected,
) -> anyhow::Result<()> {
    let answer = ask();
    let row = match &answer {
        Ok(answer) => Row {
            scene: scene.to_owned(),
            asked_by,
            service,
            worker: answer.header("x-wiremesh-worker").to_owned(),
            path: answer.header("x-wiremesh-path").to_owned(),
            source: answer.header("x-wiremesh-source").to_owned(),
            took: Some(answer.took),
            wrong: difference(answer, expected),
        },
        Err(error) => Row {
            scene: scene.to_owned(),
            asked_by,
            service,
            worker: String::new(),
            path: String::new(),
            source: String::new(),
            took: None,
            wrong: Some(format!("{error:#}")),
        },
    };
    report.row(out, row, clock::now())?;
    Ok(())
}

/// What is not as it should be.
fn difference(answer: &Answer, expected: &Expected) -> Option<String> {
    let header = |name| answer.header(name);
    if answer.status != 200 {
        return Some(format!("status {}: {}", answer.status, answer.text()));
    }
    if header("x-wiremesh-worker") != expected.worker {
        return Some(format!("expected an answer by {}", expected.worker));
    }
    if header("x-wiremesh-path") != expected.path {
        return Some(format!("expected the path {}", expected.path));
    }
    if !expected.source.contains(&header("x-wiremesh-source")) {
        return Some(format!("expected the source {}", expected.source.join(" or ")));
    }
    let said: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    (said != expected.answer).then(|| format!("expected the answer {}, got {}", expected.answer, answer.text()))
}

fn until(deadline: Instant, mut ask: impl FnMut() -> anyhow::Result<Answer>) -> anyhow::Result<Answer> {
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if clock::now() >= deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}
