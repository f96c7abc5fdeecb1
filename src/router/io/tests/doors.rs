//! Who is let in where.

use http::Request;
use wiremesh_certs::proof_header;

use super::mesh::*;
use crate::clock;

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

fn minute() -> std::time::Duration {
    std::time::Duration::from_secs(60)
}
