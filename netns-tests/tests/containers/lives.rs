//! What happens to containers: they are killed, paused, stopped, taken off their network, moved and replaced. The mesh heals
//! by itself, nothing is executed twice, and everybody stays who they were.

use std::{collections::BTreeSet, time::Duration};

use netns_tests::{
    Load, Outcome,
    containers::{Bridge, Coordinator, Ground, Worker, in_containers},
    eventually,
};

const BRISK: Load<'_> = Load { paths: &["/service/sums/slow?ms=20"], around: 100 };
/// For a worker to be asked again.
const BACK: Duration = Duration::from_secs(40);
/// Agents report so often here that a story need not wait for it.
const QUICK: &str = "heartbeat_interval = \"2s\"";

#[test]
fn a_worker_that_is_killed_or_paused_is_done_without_and_back_when_it_runs() {
    in_containers(|ground| {
        let (alpha, coordinator) = one_bridge(ground)?;
        let (caller, mut one, two) = caller_and_two(ground, &alpha, &coordinator)?;
        let address = one.overlay_ip()?;

        let killed = BRISK.send_while(&*caller.namespace()?, || one.kill())?;

        compare(&killed, [&one, &two])?;
        expect_lost(&killed, Load::AT_ONCE);
        expect_within(&killed, Duration::from_secs(15));
        assert_eq!(last_workers(&killed), ["worker-2"].into());

        one.start_again()?;
        asks_the_first(&caller)?;
        assert_eq!(one.overlay_ip()?, address);

        let paused = BRISK.send_while(&*caller.namespace()?, || {
            one.pause()?;
            // Longer than any caller waits for its word.
            std::thread::sleep(Duration::from_secs(7));
            one.unpause()
        })?;

        // What it had been sent is executed late or not at all, and nobody else did it in between.
        asks_the_first(&caller)?;
        compare(&paused, [&one, &two])?;
        expect_lost(&paused, 2 * Load::AT_ONCE);
        expect_within(&paused, Duration::from_secs(20));
        assert_eq!(one.overlay_ip()?, address);
        expect_joined_once(&coordinator, 3)
    });
}

#[test]
fn a_worker_that_is_taken_off_its_network_and_put_back_elsewhere_is_who_it_was() {
    in_containers(|ground| {
        let (alpha, coordinator) = one_bridge(ground)?;
        let (caller, mut one, two) = caller_and_two(ground, &alpha, &coordinator)?;
        let (address, at) = (one.overlay_ip()?, one.address());

        let cut_off = BRISK.send_while(&*caller.namespace()?, || one.disconnect())?;

        compare(&cut_off, [&one, &two])?;
        expect_lost(&cut_off, Load::AT_ONCE);
        assert_eq!(last_workers(&cut_off), ["worker-2"].into());
        // It still answers whoever is with it.
        assert_eq!(one.get("/service/sums")?.expect_ok()?.route(), "worker-1 local local");

        one.reconnect()?;
        asks_the_first(&caller)?;

        one.disconnect()?;
        one.reconnect_elsewhere()?;
        assert_ne!(one.address(), at);
        asks_the_first(&caller)?;
        eventually("it asks others from there, too", BACK, || {
            let route = one.get("/service/words")?.expect_ok()?.route();
            anyhow::ensure!(route.starts_with("worker-2 overlay"), "{route}");
            Ok(())
        })?;

        assert_eq!(one.overlay_ip()?, address);
        assert_eq!(one.health()?["worker_id"], "worker-1");
        reported_by(&coordinator, &["worker-1", "worker-2"])?;
        expect_joined_once(&coordinator, 3)
    });
}

#[test]
fn requests_never_stop_while_the_coordinators_container_is_replaced_and_agents_find_it_at_its_new_address() {
    in_containers(|ground| {
        let alpha = ground.bridge("alpha")?;
        let mut coordinator = Coordinator::on_a_bridge(ground, &alpha, QUICK)?;
        let (caller, one, two) = caller_and_two(ground, &alpha, &coordinator)?;
        let before = coordinator.address();

        let meanwhile = BRISK.send_while(&*caller.namespace()?, || coordinator.replace())?;

        compare(&meanwhile, [&one, &two])?;
        expect_lost(&meanwhile, 0);
        assert_ne!(coordinator.address(), before);
        reported_by(&coordinator, &["worker-1", "worker-2"])?;
        let newcomer = ground.worker("newcomer", &alpha).join(&coordinator)?;
        assert_eq!(newcomer.get("/service/words")?.expect_ok()?.header("x-wiremesh-worker"), "worker-2");
        expect_joined_once(&coordinator, 4)
    });
}

#[test]
fn a_worker_that_is_stopped_under_load_loses_nothing() {
    in_containers(|ground| {
        let (alpha, coordinator) = one_bridge(ground)?;
        let (caller, one, two) = caller_and_two(ground, &alpha, &coordinator)?;
        let load = Load {
            paths: &[
                "/service/sums",
                "/service/sums/slow?ms=1500",
                "/service/sums/sse?every_ms=50&count=30",
                "/service/sums/upload",
            ],
            around: 60,
        };

        let mut ended = None;
        let outcomes = load.send_while(&*caller.namespace()?, || {
            ended = Some(one.stop(Duration::from_secs(40))?);
            Ok(())
        })?;

        compare(&outcomes, [&one, &two])?;
        expect_lost(&outcomes, 0);
        let executed = |worker: &Worker| anyhow::Ok(worker.executions()?.values().sum::<u64>());
        assert!(executed(&one)? > 0 && executed(&two)? > 0);
        assert_eq!(last_workers(&outcomes), ["worker-2"].into());
        assert_eq!(ended, Some(0));
        reported_by(&coordinator, &["worker-2"])
    });
}

#[test]
fn all_containers_replaced_are_the_same_mesh() {
    in_containers(|ground| {
        let (alpha, mut coordinator) = one_bridge(ground)?;
        let (mut caller, mut one, mut two) = caller_and_two(ground, &alpha, &coordinator)?;
        let addresses = |workers: [&Worker; 3]| workers.map(|worker| worker.overlay_ip().ok());
        let before = addresses([&caller, &one, &two]);

        for worker in [&caller, &one, &two] {
            worker.remove()?;
        }
        coordinator.remove()?;
        // Agents begin without it.
        for worker in [&mut caller, &mut one, &mut two] {
            worker.create_again()?;
        }
        coordinator.come_back_elsewhere()?;
        one.expect_published()?;
        two.expect_published()?;

        assert_eq!(addresses([&caller, &one, &two]), before);
        shared_by(&caller, &[&one, &two])?;
        reported_by(&coordinator, &["worker-1", "worker-2"])?;
        coordinator.expect_offering("words", &two)?;
        expect_joined_once(&coordinator, 3)
    });
}

fn one_bridge(ground: &Ground) -> anyhow::Result<(Bridge, Coordinator)> {
    let alpha = ground.bridge("alpha")?;
    let coordinator = Coordinator::on_the_machine(ground, &[&alpha], QUICK)?;
    Ok((alpha, coordinator))
}

/// Two workers of one service, each with another beside it, and who asks them.
fn caller_and_two(
    ground: &Ground,
    bridge: &Bridge,
    coordinator: &Coordinator,
) -> anyhow::Result<(Worker, Worker, Worker)> {
    let caller = ground.worker("caller", bridge).join(coordinator)?;
    let one = ground.worker("worker-1", bridge).serving("sums").serving("songs").join(coordinator)?;
    let two = ground.worker("worker-2", bridge).serving("sums").serving("words").join(coordinator)?;
    one.expect_published()?;
    two.expect_published()?;
    shared_by(&caller, &[&one, &two])?;
    Ok((caller, one, two))
}

/// Waits until the workers share the requests of a caller.
fn shared_by(caller: &Worker, workers: &[&Worker]) -> anyhow::Result<()> {
    let mut answered = BTreeSet::new();
    eventually("all are asked", BACK, || {
        answered.insert(caller.get("/service/sums")?.expect_ok()?.header("x-wiremesh-worker").to_owned());
        anyhow::ensure!(workers.iter().all(|worker| answered.contains(worker.name())), "{answered:?}");
        Ok(())
    })
}

/// Waits until the first of the workers is asked for what it alone offers.
fn asks_the_first(caller: &Worker) -> anyhow::Result<()> {
    eventually("worker-1 is asked", BACK, || {
        let route = caller.get("/service/songs")?.expect_ok()?.route();
        anyhow::ensure!(route.starts_with("worker-1 overlay"), "{route}");
        Ok(())
    })
}

/// Waits until these and no others are in the registry for what both offer.
fn reported_by(coordinator: &Coordinator, workers: &[&str]) -> anyhow::Result<()> {
    eventually("the registry is right", BACK, || {
        let offering = coordinator.offering("sums")?;
        anyhow::ensure!(offering == workers, "{offering:?}");
        Ok(())
    })
}

/// What the callers were told is true, and nothing was executed twice.
fn compare(outcomes: &[Outcome], workers: [&Worker; 2]) -> anyhow::Result<()> {
    let mut executions = workers[0].executions()?;
    for (id, times) in workers[1].executions()? {
        *executions.entry(id).or_default() += times;
    }
    Outcome::compare(outcomes, &executions)
}

fn expect_lost(outcomes: &[Outcome], at_most: usize) {
    let lost: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_well()).collect();
    assert!(lost.len() <= at_most, "{} of {} were lost: {lost:?}", lost.len(), outcomes.len());
}

fn expect_within(outcomes: &[Outcome], limit: Duration) {
    let slowest = outcomes.iter().max_by_key(|outcome| outcome.took);
    assert!(slowest.is_none_or(|slowest| slowest.took < limit), "{slowest:?}");
}

/// Who answered the last of them.
fn last_workers(outcomes: &[Outcome]) -> BTreeSet<&str> {
    let answered = outcomes.iter().rev().filter(|outcome| outcome.is_well());
    answered.take(BRISK.around / 2).map(|outcome| outcome.worker.as_str()).collect()
}

/// Nobody had to become a member anew.
fn expect_joined_once(coordinator: &Coordinator, members: usize) -> anyhow::Result<()> {
    let joined = coordinator.audit("joined")?;
    let names: BTreeSet<_> = joined.iter().collect();
    assert_eq!((joined.len(), names.len()), (members, members), "{joined:?}");
    Ok(())
}
