//! Who is not let in, and what they are told: a table of cases at each door.

use std::{net::IpAddr, time::Duration};

use anyhow::Context;
use netns_tests::{
    Agent, Answer, Coordinator, Lab, Node, TokenOptions, eventually, fetch,
    forge::{self, Identity},
    story, story_within,
};
use reqwest::Method;
use serde_json::json;
use wiremesh::clock;
use wiremesh_certs::{Authority, JoinToken, Verified};

const LIMIT: Duration = Duration::from_secs(10);
/// Nobody else's address: the coordinator gives the low ones first.
const FORGED: &str = "10.42.200.1";

#[test]
fn the_ingress_lets_in_members_and_nobody_else() {
    story(|lab| {
        let mesh = Mesh::new(lab)?;
        let (now, minute) = (clock::unix(), Duration::from_secs(60));
        let path = "/service/ocr/page?number=1";
        let audience = mesh.worker_is.id().to_hex();
        let stranger = Identity::by(&forge::impostor_of(&mesh.authority)?, "stranger", FORGED.parse()?)?;
        let expired = Identity::at(&mesh.authority, "expired", FORGED.parse()?, now.minus(4 * minute), minute)?;
        let member = &mesh.member;
        let good = || member.proof(&audience, "GET", path, clock::unix());

        let honest = mesh.ingress(path, &[("authorization", &good()?)])?;
        assert_eq!((honest.status, honest.header("x-wiremesh-worker")), (200, "worker"), "{}", honest.text());

        let cases = [
            ("no proof", String::new(), "proof"),
            ("no proof but a key", "Bearer secret".to_owned(), "Wiremesh"),
            ("another authority", stranger.proof(&audience, "GET", path, now)?, "another authority"),
            ("expired", expired.proof(&audience, "GET", path, now)?, "ended at"),
            ("for another worker", member.proof(&member.key.id().to_hex(), "GET", path, now)?, "audience"),
            ("for another path", member.proof(&audience, "GET", "/service/ocr/page?number=2", now)?, "path"),
            ("for another method", member.proof(&audience, "POST", path, now)?, "method"),
            ("two minutes old", member.proof(&audience, "GET", path, now.minus(2 * minute))?, "apart"),
            ("two minutes ahead", member.proof(&audience, "GET", path, now.plus(2 * minute))?, "apart"),
            ("one byte changed", with_a_byte_changed(&good()?), ""),
        ];
        for (case, proof, reason) in cases {
            let answer = mesh.ingress(path, &[("authorization", &proof)])?;
            assert_eq!(answer.status, 401, "{case}: {}", answer.text());
            assert!(answer.text().contains(reason), "{case}: expected {reason:?} in {}", answer.text());
            assert_eq!(answer.header("x-wiremesh-executed"), "no", "{case}");
        }

        let proof = good()?;
        assert_eq!(mesh.ingress(path, &[("authorization", &proof)])?.status, 200);
        let replayed = mesh.ingress(path, &[("authorization", &proof)])?;
        assert_eq!(replayed.status, 401);
        assert!(replayed.text().contains("used before"), "{}", replayed.text());

        assert_eq!(mesh.worker.services[0].executions()?.total, 2);
        Ok(())
    });
}

#[test]
fn a_revoked_member_is_refused_at_once_where_the_news_has_come() {
    story_within(Duration::from_secs(150), |lab| {
        let mesh = Mesh::new(lab)?;
        let mut stolen = lab.node("stolen")?.serving("chat").join(&mesh.coordinator)?;
        stolen.expect_published()?;
        stolen.get("/service/ocr")?.expect_ok()?;

        mesh.coordinator.revoke("stolen")?;

        eventually("its requests are refused", Duration::from_secs(45), || {
            let answer = stolen.get("/service/ocr")?;
            anyhow::ensure!(answer.status != 200, "still answered by {}", answer.route());
            Ok(())
        })?;
        eventually("nobody is sent to it", Duration::from_secs(45), || {
            let answer = mesh.worker.get("/service/chat")?;
            anyhow::ensure!(answer.status == 503, "{} {}", answer.status, answer.route());
            Ok(())
        })?;
        stolen.launch()?;
        let said = eventually("it is told", LIMIT, || {
            let log = stolen.log();
            anyhow::ensure!(log.contains("revoked"), "not yet");
            Ok(log)
        })?;
        assert!(said.contains("revoked"));
        Ok(())
    });
}

#[test]
fn the_coordinator_takes_records_from_their_owners_alone() {
    story(|lab| {
        let mesh = Mesh::new(lab)?;
        let now = clock::unix();
        let stranger = Identity::by(&forge::impostor_of(&mesh.authority)?, "stranger", FORGED.parse()?)?;
        let expired = Identity::at(
            &mesh.authority,
            "expired",
            FORGED.parse()?,
            now.minus(Duration::from_secs(240)),
            Duration::from_secs(60),
        )?;
        let record = mesh.member.record("ocr")?;
        let changed = wiremesh_certs::SignedRecord::from_bytes(&forge::tampered(&record, record.as_bytes().len() - 1))?;

        let cases = [
            ("another authority", &stranger, stranger.record("ocr")?.to_base64(), "another authority"),
            ("expired", &expired, expired.record("ocr")?.to_base64(), "ended at"),
            ("somebody else's record", &mesh.member, stranger.record("ocr")?.to_base64(), ""),
            ("one byte changed", &mesh.member, changed.to_base64(), "signature"),
        ];
        for (case, who, record, reason) in cases {
            let answer = mesh.register(who, &record)?;
            assert!((400..500).contains(&answer.status), "{case}: {} {}", answer.status, answer.text());
            assert!(answer.text().contains(reason), "{case}: expected {reason:?} in {}", answer.text());
        }

        let path = "/api/worker/register";
        let proof = mesh.member.proof(&mesh.coordinator_audience(), "POST", path, now)?;
        let body = json!({ "record": mesh.member.record("ocr")?.to_base64() }).to_string();
        let first = mesh.at_coordinator(path, &proof, &body)?;
        let again = mesh.at_coordinator(path, &proof, &body)?;
        assert!(again.status == 401 && again.text().contains("used before"), "{} {}", again.status, again.text());
        assert!(first.status != 401, "{}", first.text());
        Ok(())
    });
}

#[test]
fn a_token_is_good_for_its_name_its_time_and_its_uses() {
    story_within(Duration::from_secs(180), |lab| {
        let coordinator = lab.coordinator()?;
        let other_coordinator = lab.coordinator_with("impostor", "")?;

        let once = coordinator.token()?;
        let mut first = lab.node("first")?.prepare(&once)?;
        first.start()?;
        refused(lab.node("second")?.prepare(&once)?, "token")?;

        let short = coordinator.token_with(&TokenOptions { ttl: Some("1s"), ..TokenOptions::default() })?;
        std::thread::sleep(Duration::from_millis(2500));
        refused(lab.node("late")?.prepare(&short)?, "token")?;

        refused(lab.node("namesake")?.called("first").prepare(&coordinator.token()?)?, "first")?;

        let bound = TokenOptions { name: Some("somebody".to_owned()), ..TokenOptions::default() };
        refused(lab.node("nobody")?.prepare(&coordinator.token_with(&bound)?)?, "somebody")?;

        // The right token, and at the address in it another coordinator.
        let mut misled: JoinToken = coordinator.token()?.parse()?;
        misled.urls = vec![other_coordinator.url()];
        refused(lab.node("misled")?.prepare(&misled.to_text())?, "authority")?;

        assert_eq!(first.health()?["status"], "healthy");
        Ok(())
    });
}

#[test]
fn introductions_by_strangers_make_no_peers() {
    story(|lab| {
        let mesh = Mesh::new(lab)?;
        let now = clock::unix();
        let to = mesh.worker_is.wg();
        let stranger = Identity::by(&forge::impostor_of(&mesh.authority)?, "stranger", FORGED.parse()?)?;
        let expired = Identity::at(
            &mesh.authority,
            "expired",
            FORGED.parse()?,
            now.minus(Duration::from_secs(240)),
            Duration::from_secs(60),
        )?;
        let record = mesh.member.record("ocr")?;
        let changed = forge::tampered(&record, record.as_bytes().len() - 1);
        let peers = mesh.worker.command_json(&["peers"])?;

        let cases = [
            (
                "another authority",
                forge::introduction(stranger.record("ocr")?.as_bytes(), &to)?,
                "introduction_refused",
            ),
            ("expired", forge::introduction(expired.record("ocr")?.as_bytes(), &to)?, "introduction_refused"),
            ("one byte changed", forge::introduction(&changed, &to)?, "introduction_refused"),
            (
                "for somebody else",
                forge::introduction(record.as_bytes(), &mesh.member.wg.public())?,
                "introduction_forged",
            ),
        ];
        for (case, datagram, counter) in cases {
            let before = mesh.worker.metric("wiremesh", counter)?;
            mesh.attacker.run(|| -> std::io::Result<usize> {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
                socket.send_to(&datagram, (mesh.worker.node.address(), 51820))
            })??;
            eventually(&format!("{case} is counted as {counter}"), Duration::from_secs(5), || {
                let after = mesh.worker.metric("wiremesh", counter)?;
                anyhow::ensure!(after > before, "{counter} is {after}");
                Ok(())
            })?;
        }

        let count = |peers: &serde_json::Value| peers.to_string().matches("public_key").count();
        assert_eq!(count(&mesh.worker.command_json(&["peers"])?), count(&peers));
        Ok(())
    });
}

/// A coordinator, a worker with an ingress, an attacker on a node of its own, and what an attacker would like to have.
struct Mesh {
    coordinator: Coordinator,
    worker: Agent,
    worker_is: Verified,
    attacker: Node,
    authority: Authority,
    /// A good identity: what the others differ from in one thing each.
    member: Identity,
}

impl Mesh {
    fn new(lab: &mut Lab) -> anyhow::Result<Mesh> {
        let coordinator = lab.coordinator()?;
        let worker = lab.node("worker")?.serving("ocr").with_tunnel().join(&coordinator)?;
        let attacker = lab.bare_node("attacker")?;
        let authority = forge::authority_of(&coordinator)?;
        let address: IpAddr = "10.42.200.9".parse()?;
        let member = Identity::by(&authority, "member", address)?;
        let worker_is = eventually("the coordinator knows the worker", LIMIT, || {
            forge::who_is(&attacker, &coordinator, &authority, &member, "worker")
        })?;
        Ok(Mesh { coordinator, worker, worker_is, attacker, authority, member })
    }

    fn ingress(&self, path: &str, headers: &[(&str, &str)]) -> anyhow::Result<Answer> {
        let url = format!("http://{}:8001{path}", self.worker.node.address());
        let headers: Vec<_> = headers.iter().copied().filter(|(_, value)| !value.is_empty()).collect();
        fetch(&self.attacker, Method::GET, &url, &headers, "", LIMIT)
    }

    fn register(&self, who: &Identity, record: &str) -> anyhow::Result<Answer> {
        let path = "/api/worker/register";
        let proof = who.proof(&self.coordinator_audience(), "POST", path, clock::unix())?;
        self.at_coordinator(path, &proof, &json!({ "record": record }).to_string())
    }

    fn at_coordinator(&self, path: &str, proof: &str, body: &str) -> anyhow::Result<Answer> {
        let url = format!("{}{path}", self.coordinator.url());
        let headers = [("authorization", proof), ("content-type", "application/json")];
        fetch(&self.attacker, Method::POST, &url, &headers, body, LIMIT)
    }

    fn coordinator_audience(&self) -> String {
        format!("coordinator.{}", self.authority.certificate().mesh())
    }
}

/// The agent does not become a member, and its log has a reason with `word` in it.
fn refused(mut agent: Agent, word: &str) -> anyhow::Result<()> {
    agent.launch()?;
    let name = agent.node.name().to_owned();
    eventually(&format!("{name} is refused"), Duration::from_secs(20), || {
        let log = agent.log();
        let line = log
            .lines()
            .find(|line| line.contains(word) && ["ERROR", "error", "WARN"].iter().any(|level| line.contains(level)));
        line.map(str::to_owned).with_context(|| format!("nothing about {word:?} yet"))
    })?;
    assert!(agent.get("/health/ready").map_or(true, |answer| answer.status != 200), "{name} is ready all the same");
    Ok(())
}

fn with_a_byte_changed(proof: &str) -> String {
    let mut bytes = proof.as_bytes().to_vec();
    let at = bytes.len() - 20;
    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    String::from_utf8_lossy(&bytes).into_owned()
}
