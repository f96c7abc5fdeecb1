//! Containers that are not given all that an overlay needs, and a bridge that does not pass its datagrams.

use std::time::Duration;

use netns_tests::{
    containers::{Worker, in_containers},
    eventually,
};
use serde_json::json;

/// Long before this a client would have given up a request whose way has just been lost.
const DETOUR: Duration = Duration::from_secs(15);
/// So long until a way that is there again is used.
const BACK: Duration = Duration::from_secs(30);

#[test]
fn without_net_admin_or_a_tun_device_requests_take_tunnel_urls_both_ways_and_the_agent_says_what_is_lacking() {
    in_containers(|ground| {
        let alpha = ground.bridge("alpha")?;
        let coordinator = ground.coordinator_on_the_machine(&alpha)?;
        let whole = ground.worker("whole", &alpha).serving("translation").with_tunnel().join(&coordinator)?;
        let rightless = ground.worker("rightless", &alpha).serving("ocr").with_tunnel().without_net_admin();
        let rightless = rightless.watched().join(&coordinator)?;
        let deviceless = ground.worker("deviceless", &alpha).serving("speech").with_tunnel().without_tun();
        let deviceless = deviceless.join(&coordinator)?;
        let all = [(&whole, "translation"), (&rightless, "ocr"), (&deviceless, "speech")];
        for (worker, service) in all {
            coordinator.expect_offering(service, worker)?;
        }

        let gain = |lacks: &str, compose: &str, run: &str| {
            let costs = "no overlay: requests take tunnel URLs, and nothing but requests reaches others";
            json!([{"lacks": lacks, "costs": costs, "compose": compose, "run": run}])
        };
        expect_said(&rightless, &gain("NET_ADMIN", "cap_add: [NET_ADMIN]", "--cap-add NET_ADMIN"))?;
        expect_said(&deviceless, &gain("/dev/net/tun", "devices: [/dev/net/tun]", "--device /dev/net/tun"))?;
        assert_eq!(whole.status()?["reach"]["picked"], "tun");
        assert!(whole.health()?["vpn_ip"].is_string());
        for (from, _) in all {
            for (to, service) in all.into_iter().filter(|(to, _)| to.name() != from.name()) {
                let request = || from.post(&format!("/service/{service}"), "a request")?.expect_ok();
                let way = format!("{} tunnel", to.name());
                assert!(request()?.route().starts_with(&way), "{} to {}", from.name(), to.name());
                assert_eq!(request()?.route(), format!("{way} cache"));
            }
        }
        for (worker, _) in all {
            assert_eq!(worker.executions()?.values().sum::<u64>(), 4);
            assert_eq!(worker.stats()?["routing"]["failed_requests"], 0);
        }
        rightless.expect_watched_and_well()
    });
}

#[test]
fn while_the_bridge_drops_udp_requests_take_the_tunnel_and_the_overlay_after() {
    in_containers(|ground| {
        let alpha = ground.bridge("alpha")?;
        let coordinator = ground.coordinator_on_the_machine(&alpha)?;
        let one = ground.worker("worker-1", &alpha).serving("translation").with_tunnel().join(&coordinator)?;
        let two = ground.worker("worker-2", &alpha).serving("ocr").with_tunnel().join(&coordinator)?;
        one.expect_published()?;
        two.expect_published()?;
        let ways = [(&one, "ocr", "worker-2"), (&two, "translation", "worker-1")];
        for (from, service, to) in ways {
            assert_eq!(
                from.post(&format!("/service/{service}"), "one")?.expect_ok()?.route(),
                format!("{to} overlay dht")
            );
        }

        ground.block_udp(&alpha)?;

        for (from, service, to) in ways {
            for request in ["two", "three"] {
                let answer = from.post(&format!("/service/{service}"), request)?.expect_ok()?;
                assert_eq!(answer.route(), format!("{to} tunnel cache"));
                assert!(answer.took < DETOUR, "{:?}", answer.took);
            }
        }

        ground.pass_udp(&alpha)?;

        for (from, service, _) in ways {
            eventually("back on the overlay", BACK, || {
                let answer = from.post(&format!("/service/{service}"), "four")?.expect_ok()?;
                anyhow::ensure!(answer.header("x-wiremesh-path") == "overlay", "still by {}", answer.route());
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// It goes by tunnel URLs, says why and what would help, in its status and in one line of its log.
fn expect_said(worker: &Worker, gains: &serde_json::Value) -> anyhow::Result<()> {
    let reach = &worker.status()?["reach"];
    assert_eq!(reach["picked"], "tunnel_only", "{reach}");
    assert_eq!(&reach["gains"], gains, "{reach}");
    assert_eq!((&reach["container"], &reach["underlay_mtu"]), (&json!("docker"), &json!(1500)), "{reach}");
    assert!(worker.health()?["vpn_ip"].is_null());

    let log = worker.log()?;
    let lines: Vec<_> = log.lines().filter(|line| line.contains("\"picked\":\"tunnel_only\"")).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let said: serde_json::Value = serde_json::from_str(lines[0])?;
    assert_eq!((&said["why"], &said["more"]), (&reach["why"], &gains[0]["run"]), "{said}");
    Ok(())
}
