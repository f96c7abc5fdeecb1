use super::*;

fn one_service(max_concurrency: usize, queue: usize) -> (Handle, ServiceName) {
    service(max_concurrency, queue, &[])
}

/// A service whose command we run.
fn supervised(max_concurrency: usize, queue: usize) -> (Handle, ServiceName) {
    service(max_concurrency, queue, &["true"])
}

fn service(max_concurrency: usize, queue: usize, command: &[&str]) -> (Handle, ServiceName) {
    let name = ServiceName::new("ocr").unwrap();
    let config = ServiceConfig {
        command: command.iter().map(|word| word.to_string()).collect(),
        max_concurrency: Some(max_concurrency),
        queue,
        ..ServiceConfig::new(name.clone(), "http://127.0.0.1:9".parse().unwrap())
    };
    (Handle::new(vec![config], Capabilities::of(Default::default(), None)), name)
}

#[tokio::test]
async fn the_permit_of_one_request_goes_to_the_next_in_line() {
    let (handle, ocr) = one_service(1, 1);
    handle.set_up(&ocr);
    let first = handle.reserve(&ocr).unwrap().ready().await.unwrap();
    let second = handle.reserve(&ocr).unwrap();
    assert!(second.must_wait());
    assert!(matches!(handle.reserve(&ocr), Err(Refused::Full(_))));

    drop(first);

    second.ready().await.unwrap();
    assert_eq!(handle.occupancy(), [(ocr, 0, 0)]);
}

#[tokio::test]
async fn who_leaves_the_line_takes_no_place_with_them() {
    let (handle, ocr) = one_service(1, 2);
    handle.set_up(&ocr);
    let first = handle.reserve(&ocr).unwrap().ready().await.unwrap();
    let (second, third) = (handle.reserve(&ocr).unwrap(), handle.reserve(&ocr).unwrap());

    drop(first);
    drop(second);

    third.ready().await.unwrap();
    assert_eq!(handle.occupancy(), [(ocr, 0, 0)]);
}

#[tokio::test]
async fn a_service_whose_upstream_is_gone_is_not_offered_and_this_is_told() {
    let (handle, ocr) = one_service(1, 0);
    let mut changes = handle.changes();
    assert!(matches!(handle.reserve(&ocr), Err(Refused::NotOffered)));

    handle.set_up(&ocr);
    assert_eq!(changes.borrow_and_update().as_ref(), std::slice::from_ref(&ocr));
    handle.on_unreachable(&ocr);

    assert!(changes.has_changed().unwrap());
    assert!(handle.offered().is_empty());
}

#[tokio::test]
async fn a_full_service_is_a_fully_loaded_node() {
    let (handle, ocr) = one_service(2, 2);
    handle.set_up(&ocr);
    assert_eq!(handle.load().percent(), 0);

    let _one = handle.reserve(&ocr).unwrap();
    assert_eq!(handle.load().percent(), 50);
    let _all = [handle.reserve(&ocr).unwrap(), handle.reserve(&ocr).unwrap()];

    assert_eq!(handle.load().percent(), 100);
}

#[tokio::test]
async fn a_line_waits_while_the_command_is_started_again_and_then_moves_on() {
    let (handle, ocr) = supervised(1, 2);
    handle.set_up(&ocr);
    let running = handle.reserve(&ocr).unwrap().ready().await.unwrap();
    let before = handle.reserve(&ocr).unwrap();

    handle.shared.on_command_ended(&handle.shared.services[&ocr]);
    let after = handle.reserve(&ocr).unwrap();
    drop(running);
    assert_eq!(handle.occupancy(), [(ocr.clone(), 0, 2)]);
    assert_eq!(handle.offered().as_ref(), std::slice::from_ref(&ocr));
    assert_eq!(handle.report(&ocr).unwrap().state, ServiceState::Loading);
    handle.set_up(&ocr);

    assert_eq!(handle.report(&ocr).unwrap().state, ServiceState::Ready);
    drop(before.ready().await.unwrap());
    after.ready().await.unwrap();
}

#[tokio::test]
async fn a_request_that_finds_nobody_is_first_in_line_while_the_command_is_started_again() {
    let (handle, ocr) = supervised(1, 0);
    handle.set_up(&ocr);
    let permit = handle.reserve(&ocr).unwrap().ready().await.unwrap();

    handle.on_unreachable(&ocr);
    let again = permit.back_in_line().expect("it is held");
    assert_eq!(handle.occupancy(), [(ocr.clone(), 0, 1)]);
    handle.set_up(&ocr);

    let permit = again.ready().await.unwrap();
    assert!(permit.back_in_line().is_none(), "nothing is awaited");
    assert_eq!(handle.occupancy(), [(ocr, 0, 0)]);
}

#[tokio::test]
async fn a_request_does_not_go_back_into_the_line_for_ever() {
    let (handle, ocr) = supervised(1, 0);
    handle.set_up(&ocr);
    let mut permit = handle.reserve(&ocr).unwrap().ready().await.unwrap();

    let mut returns = 0;
    loop {
        handle.on_unreachable(&ocr);
        let Some(again) = permit.back_in_line() else { break };
        returns += 1;
        handle.set_up(&ocr);
        permit = again.ready().await.unwrap();
    }

    assert_eq!(returns, 3);
    assert_eq!(handle.occupancy(), [(ocr, 0, 0)]);
}

#[tokio::test]
async fn those_in_line_of_a_service_that_is_gone_are_told_at_once() {
    let (handle, ocr) = one_service(1, 2);
    handle.set_up(&ocr);
    let _running = handle.reserve(&ocr).unwrap();
    let (told, leaving) = (handle.reserve(&ocr).unwrap(), handle.reserve(&ocr).unwrap());

    handle.on_unreachable(&ocr);

    drop(leaving);
    assert_eq!(told.ready().await.err(), Some(Refused::NotOffered));
    assert_eq!(handle.occupancy(), [(ocr, 1, 0)]);
}

#[tokio::test]
async fn a_member_that_has_the_whole_line_gives_way_to_another() {
    let (handle, ocr) = one_service(1, 2);
    handle.set_up(&ocr);
    let member = |last_byte| Asker::Member(wiremesh_certs::OverlayIp([10, 42, 0, last_byte].into()));
    let _running = handle.reserve_for(&ocr, member(1)).unwrap();
    let (_kept, put_out) = (handle.reserve_for(&ocr, member(1)).unwrap(), handle.reserve_for(&ocr, member(1)).unwrap());

    let _other = handle.reserve_for(&ocr, member(2)).unwrap();

    assert!(matches!(put_out.ready().await, Err(Refused::Full(_))));
    assert_eq!(handle.occupancy(), [(ocr, 1, 2)]);
}

#[tokio::test]
async fn a_node_that_leaves_takes_no_new_work_and_finishes_what_waits() {
    let (handle, ocr) = one_service(1, 1);
    handle.set_up(&ocr);
    let running = handle.reserve(&ocr).unwrap();
    let waiting = handle.reserve(&ocr).unwrap();
    let mut changes = handle.changes();

    handle.drain();

    assert!(changes.has_changed().unwrap() && changes.borrow_and_update().is_empty());
    assert!(matches!(handle.reserve(&ocr), Err(Refused::NotOffered)));
    assert_eq!(handle.report(&ocr).unwrap().state, ServiceState::Draining);
    drop(running);
    waiting.ready().await.unwrap();
}

#[tokio::test]
async fn what_an_upstream_says_shows_in_the_report_until_it_is_gone() {
    let (handle, ocr) = one_service(8, 0);
    assert_eq!(handle.report(&ocr), None);
    handle.set_up(&ocr);
    let service = &handle.shared.services[&ocr];
    let mut rung = handle.report_changes();
    let reading = Reading { running: Some(2), waiting: Some(1), kv_usage: Some(0.1), capacity: Some(4) };

    handle.shared.on_reading(service, 1, Some(reading));

    let report = handle.report(&ocr).unwrap();
    assert_eq!((report.running, report.queued, report.capacity), (2, 1, 4));
    assert_eq!((report.load.percent(), handle.load().percent()), (75, 75));
    assert!(rung.has_changed().unwrap());
    rung.mark_unchanged();
    handle.on_unreachable(&ocr);
    handle.set_up(&ocr);
    assert_eq!(handle.report(&ocr).unwrap().running, 0);
    // What was asked in an earlier life and is answered in this one.
    handle.shared.on_reading(service, 1, Some(reading));
    assert_eq!(handle.report(&ocr).unwrap().running, 0);
}

#[tokio::test]
async fn the_models_of_a_service_are_told_as_long_as_it_is_offered() {
    let (handle, ocr) = one_service(1, 0);
    handle.set_up(&ocr);
    let mut changes = handle.models_changes();

    handle.set_models(&ocr, &["qwen", "lora"]);
    assert!(changes.has_changed().unwrap());
    assert_eq!(changes.borrow_and_update()[0].1.as_ref(), ["qwen", "lora"]);
    handle.set_models(&ocr, &["qwen", "lora"]);
    assert!(!changes.has_changed().unwrap());
    handle.on_unreachable(&ocr);

    assert!(handle.models().is_empty());
}
