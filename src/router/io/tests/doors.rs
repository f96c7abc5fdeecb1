//! Who is let in where.

use http::Request;
use wiremesh_certs::proof_header;

use super::mesh::*;
use crate::{clock, open_files, router::io::serve::Room};

#[tokio::test]
async fn the_ingress_refuses_what_is_not_proved_with_its_reason() {
    let mesh = Mesh::new();
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;
    let (key, chain) = mesh.member("carol", 4);
    let (stranger, strange_chain) = Mesh::of_seed(2).member("carol", 4);
    let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(9);
    let audience = worker.id.to_hex();
    let now = clock::unix();
    let mut proof = |method, path: &str| proof_header(&key, &chain, &audience, method, path, now, &mut rng).unwrap();
    let good = proof("GET", "/service/ocr?a=1");
    let other_path = proof("GET", "/service/ocr?a=2");
    let other_method = proof("POST", "/service/ocr?a=1");
    let stale =
        proof_header(&key, &chain, &audience, "GET", "/service/ocr?a=1", now.minus(2 * minute()), &mut rng).unwrap();
    let other_worker = proof_header(&key, &chain, "cafe", "GET", "/service/ocr?a=1", now, &mut rng).unwrap();
    let other_mesh =
        proof_header(&stranger, &strange_chain, &audience, "GET", "/service/ocr?a=1", now, &mut rng).unwrap();

    for (case, authorization, status) in [
        ("none", None, 401),
        ("no proof at all", Some("Bearer secret".into()), 401),
        ("garbage", Some("Wiremesh AAAA".into()), 401),
        ("another path", Some(other_path), 401),
        ("another method", Some(other_method), 401),
        ("stale", Some(stale), 401),
        ("for another worker", Some(other_worker), 401),
        ("of another mesh", Some(other_mesh), 401),
        ("good", Some(good.clone()), 200),
        ("replayed", Some(good), 401),
    ] {
        let mut request = Request::get(format!("http://{}/service/ocr?a=1", worker.ingress));
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let answer = client().request(request.body(text("")).unwrap()).await.unwrap();

        assert_eq!(answer.status(), status, "{case}");
        if status == 401 {
            assert_eq!(said(&answer, "x-wiremesh-executed"), "no");
            assert_eq!(json(answer).await["error"]["type"], "no_proof");
        }
    }
    for page in ["/health", "/health/live", "/metrics", "/stats"] {
        assert_eq!(get(format!("http://{}{page}", worker.ingress)).await.status(), 401, "{page}");
    }
}

#[tokio::test]
async fn a_revoked_member_is_known_and_not_let_in() {
    let mesh = Mesh::new();
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;
    let (key, chain) = mesh.member("carol", 4);
    mesh.revoke(&key);
    let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(9);
    let proof =
        proof_header(&key, &chain, &worker.id.to_hex(), "GET", "/service/ocr", clock::unix(), &mut rng).unwrap();

    let request = Request::get(format!("http://{}/service/ocr", worker.ingress)).header("authorization", proof);
    let answer = client().request(request.body(text("")).unwrap()).await.unwrap();

    assert_eq!(answer.status(), 403);
    assert_eq!(json(answer).await["error"]["type"], "forbidden");
}

#[tokio::test]
async fn a_request_that_came_through_the_mesh_is_not_sent_on_also_without_the_header_that_says_so() {
    let mesh = Mesh::new();
    let (address, count) = named("there").await;
    let worker = mesh.agent("bob", 3, Service::ocr(address)).await;
    let relay = mesh.agent("alice", 2, None).await;
    relay.knows([worker.worker()]);
    let (key, chain) = mesh.member("carol", 4);
    let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(9);
    let proof = proof_header(&key, &chain, &relay.id.to_hex(), "GET", "/service/ocr", clock::unix(), &mut rng).unwrap();

    let by_overlay = get(format!("http://{}/service/ocr", relay.overlay)).await;
    let request = Request::get(format!("http://{}/service/ocr", relay.ingress)).header("authorization", proof);
    let by_ingress = client().request(request.body(text("")).unwrap()).await.unwrap();

    assert_eq!((by_overlay.status().as_u16(), by_ingress.status().as_u16()), (503, 503));
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert_eq!(get(relay.url("/service/ocr")).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_is_asked_gives_its_place_up() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mesh = Mesh::new();
    let agent = mesh.agent("alice", 2, None).await;

    // Nothing at all, the beginning of what could become either version of HTTP, and no more than that version.
    for beginning in ["", "P", "PRI * HTTP/2.0", "GET / HTTP/1.1\r\n", HTTP_2] {
        for door in [agent.local, agent.overlay, agent.ingress] {
            let mut stream = tokio::net::TcpStream::connect(door).await.unwrap();
            stream.write_all(beginning.as_bytes()).await.unwrap();

            let closed = tokio::time::timeout(20 * second(), stream.read_to_end(&mut Vec::new())).await;
            assert!(closed.is_ok(), "{beginning:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_only_strangers_ask_gives_its_place_up() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mesh = Mesh::new();
    let agent = mesh.agent("alice", 2, None).await;

    let mut stream = tokio::net::TcpStream::connect(agent.ingress).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let closed = tokio::time::timeout(second(), stream.read_to_string(&mut answer)).await;
    assert!(closed.is_ok() && answer.starts_with("HTTP/1.1 401") && answer.contains("connection: close"), "{answer}");

    let stream = hyper_util::rt::TokioIo::new(tokio::net::TcpStream::connect(agent.ingress).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, stream).await.unwrap();
    let connection = tokio::task::spawn(connection);
    let request = Request::get(format!("http://{}/", agent.ingress)).body(text("")).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 401);
    assert!(tokio::time::timeout(30 * second(), connection).await.is_ok());
}

#[tokio::test]
async fn one_member_does_not_take_all_places_of_the_overlay_door() {
    use tokio::io::AsyncReadExt;
    let _ = open_files::raise_from_few();
    let (mesh, files) = (Mesh::new(), open_files::limit());
    let agent = mesh.agent("alice", 2, None).await;
    let mut greedy = Vec::new();
    for _ in 0..Room::among(files).member {
        greedy.push(tokio::net::TcpStream::connect(agent.overlay).await.unwrap());
    }

    let mut one_more = tokio::net::TcpStream::connect(agent.overlay).await.unwrap();
    assert_eq!(one_more.read(&mut [0; 1]).await.unwrap(), 0);

    greedy.pop();
    let freed = async {
        while client().get(format!("http://{}/health", agent.overlay).parse().unwrap()).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), freed).await.expect("a place is free again");
}

#[tokio::test]
async fn an_api_key_opens_the_local_door_and_goes_no_further() {
    let mesh = Mesh::new();
    let echo = upstream(async |request: Request<_>| {
        Ok(http::Response::new(text(format!("{:?}", request.headers().get("authorization")))))
    })
    .await;
    let agent = mesh.agent("alice", 2, Service::ocr(echo)).await;
    let address = mesh.behind_key(&agent, " sesame\n").await;
    let ask = async |path: &str, key: &str| {
        let request = Request::get(format!("http://{address}{path}")).header("authorization", key);
        client().request(request.body(text("")).unwrap()).await.unwrap()
    };

    assert_eq!(ask("/service/ocr", "Bearer wrong").await.status(), 401);
    assert_eq!(get(format!("http://{address}/stats")).await.status(), 401);
    assert_eq!(get(format!("http://{address}/health/live")).await.status(), 200);
    assert_eq!(read(ask("/service/ocr", "Bearer sesame").await).await, "None");
}

/// The beginning of a connection: the preface, and settings that are none.
const HTTP_2: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";

fn second() -> std::time::Duration {
    std::time::Duration::from_secs(1)
}

fn minute() -> std::time::Duration {
    std::time::Duration::from_secs(60)
}

#[tokio::test]
async fn a_web_page_is_kept_out_where_no_key_is_asked_for() {
    let mesh = Mesh::new();
    let (address, count) = named("here").await;
    let agent = mesh.agent("alice", 2, Service::ocr(address)).await;
    let keyed = mesh.behind_key(&agent, "sesame").await;
    let ask = async |to: std::net::SocketAddr, path: &str, sent: &[(&str, &str)]| {
        let request = Request::post(format!("http://{to}{path}"));
        let request = sent.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        client().request(request.body(text("x")).unwrap()).await.unwrap()
    };
    let port = agent.local.port();
    let (page, name) = (("origin", "https://evil.example"), ("host", "evil.example"));

    for (to, sent) in [(agent.local, page), (agent.local, name), (agent.overlay, page)] {
        for path in ["/service/ocr", "/v1/chat/completions", "/stats"] {
            let answer = ask(to, path, &[sent]).await;

            assert_eq!(
                (answer.status().as_u16(), said(&answer, "x-wiremesh-executed")),
                (403, "no"),
                "{path} {sent:?}"
            );
            let message = json(answer).await["error"]["message"].as_str().unwrap().to_owned();
            assert_eq!(message.contains("key_file"), to == agent.local, "it says what to do: {message}");
        }
    }
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 0);

    let via = ("x-wiremesh-via", "bob;0123456789abcdef0123456789abcdef");
    for (to, sent) in [
        (agent.local, &[("host", &*format!("localhost:{port}")), ("origin", "http://localhost:3000")][..]),
        (agent.overlay, &[page, via]),
        (keyed, &[page, name, ("authorization", "Bearer sesame")]),
    ] {
        assert_eq!(ask(to, "/service/ocr", sent).await.status(), 200, "{sent:?}");
    }
}
