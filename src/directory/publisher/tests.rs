use super::*;
use crate::directory::{
    entry::testing::{Mesh, Node, t0},
    spread::SPLIT_AT,
};

#[test]
fn a_record_is_written_under_address_name_and_every_service() {
    let (node, mut publisher) = (Mesh::new().node(1), Publisher::default());

    publisher.publish(node.offering(&["asr", "ocr"], 1), t0());
    let found = find_all(&mut publisher, 3);
    let written = write_all(&mut publisher, usize::MAX);

    assert_eq!((found, written), (4, 4));
    assert!(publisher.is_settled());
    assert_eq!(publisher.stored_by(), 3);
}

#[test]
fn a_refresh_goes_straight_to_the_known_storers() {
    let (node, mut publisher) = published(3);

    publisher.publish(node.offering(&["ocr"], 30), t0() + SAY_AGAIN_WHERE);

    assert_eq!(find_all(&mut publisher, 3), 0);
    assert_eq!(write_all(&mut publisher, usize::MAX), 3);
}

#[test]
fn where_a_node_is_that_has_not_moved_is_written_more_rarely_than_what_it_offers() {
    let (node, mut publisher) = published(3);

    publisher.publish(node.offering(&["ocr"], 30), t0() + SAY_AGAIN_WHERE / 2);

    assert_eq!(write_all(&mut publisher, usize::MAX), 1);
}

#[test]
fn where_a_node_is_that_has_moved_is_written_at_once() {
    let (node, mut publisher) = published(3);

    publisher.publish(node.moved(&["ocr"], 2), t0());

    assert_eq!(write_all(&mut publisher, usize::MAX), 3);
}

#[test]
fn the_closest_are_looked_for_again_now_and_then() {
    let (node, mut publisher) = published(3);

    publisher.publish(node.offering(&["ocr"], 130), t0() + FIND_AGAIN);

    assert_eq!(find_all(&mut publisher, 3), 3);
}

#[test]
fn a_lone_node_publishes_again_when_the_first_other_appears() {
    let (_, mut publisher) = published(0);
    assert_eq!(publisher.poll_timeout(), None);

    publisher.on_new_member(t0());
    let (due_at, _) = publisher.poll_timeout().unwrap();
    publisher.handle_timeout(due_at);

    assert_eq!(due_at, t0() + SETTLE_FOR);
    assert_eq!(find_all_at(&mut publisher, 1, due_at), 3);
    assert_eq!(write_all_at(&mut publisher, usize::MAX, due_at), 3);
}

#[test]
fn a_write_that_most_did_not_take_is_repeated_ever_more_rarely() {
    let (node, mut publisher) = (Mesh::new().node(1), Publisher::default());
    let mut now = t0();
    publisher.publish(node.offering(&[], 1), now);
    let mut waits = Vec::new();

    for _ in 0..6 {
        find_all_at(&mut publisher, 4, now);
        let failed = write_all_at(&mut publisher, 1, now);
        assert_eq!(failed, 2);
        let (due_at, _) = publisher.poll_timeout().unwrap();
        waits.push((due_at - now).as_secs());
        now = due_at;
        publisher.handle_timeout(now);
    }

    assert_eq!(waits, [2, 4, 8, 16, 30, 30]);
}

#[test]
fn a_search_that_found_fewer_than_there_are_is_repeated() {
    let (node, mut publisher) = (Mesh::new().node(1), Publisher::default());
    publisher.publish(node.offering(&[], 1), t0());
    find_all_among(&mut publisher, 0, 5, t0());
    write_all(&mut publisher, usize::MAX);

    let (due_at, _) = publisher.poll_timeout().unwrap();
    publisher.handle_timeout(due_at);

    assert_eq!(due_at, t0() + RETRY_AFTER);
    assert_eq!(find_all_at(&mut publisher, 5, due_at), 2);
}

#[test]
fn a_service_offered_no_longer_is_withdrawn_once() {
    let (node, mut publisher) = published(3);

    publisher.publish(node.offering(&[], 2), t0());
    let withdrawn = write_all(&mut publisher, usize::MAX);
    publisher.publish(node.offering(&[], 3), t0());

    assert_eq!(withdrawn, 1);
    assert_eq!(write_all(&mut publisher, usize::MAX), 0);
}

#[test]
fn what_is_published_while_a_write_is_under_way_is_written_after_it() {
    let (node, mut publisher) = published(3);
    publisher.publish(node.offering(&["ocr"], 2), t0());

    publisher.publish(node.offering(&["ocr"], 3), t0());
    let first = write_all(&mut publisher, usize::MAX);

    assert_eq!(first, 2, "the second, and then the third");
    assert!(publisher.is_settled());
}

#[test]
fn a_full_bucket_makes_the_writer_spread() {
    let (node, mut publisher) = published(8);
    let first = Key::of_worker(wiremesh_certs::Offer::Service("ocr".parse().unwrap()), 0, &node.id());

    publisher.on_count(&first, SPLIT_AT, t0());
    find_all(&mut publisher, 8);

    assert_eq!(write_all(&mut publisher, usize::MAX), 2, "both spreads");
}

#[test]
fn a_record_is_written_under_each_of_its_models_and_under_any() {
    let (node, mut publisher) = (Mesh::new().node(1), Publisher::default());

    publisher.publish(node.serving("llm", &["llama", "mistral"], 1), t0());
    let found = find_all(&mut publisher, 3);
    let written = write_all(&mut publisher, usize::MAX);
    publisher.publish(node.serving("llm", &["llama"], 2), t0());

    assert_eq!((found, written), (6, 6), "address, name, service, two models, any model");
    assert_eq!(write_all(&mut publisher, usize::MAX), 4, "service, model, any model; what is gone is withdrawn");
    publisher.publish(node.serving("llm", &["llama"], 3), t0());
    assert_eq!(write_all(&mut publisher, usize::MAX), 3);
}

fn published(storers: u8) -> (Node, Publisher) {
    let (node, mut publisher) = (Mesh::new().node(1), Publisher::default());
    publisher.publish(node.offering(&["ocr"], 1), t0());
    find_all(&mut publisher, storers);
    write_all(&mut publisher, usize::MAX);
    assert!(publisher.is_settled());
    (node, publisher)
}

/// Answers every search in hand with so many storers.
fn find_all(publisher: &mut Publisher, storers: u8) -> usize {
    find_all_at(publisher, storers, t0())
}

fn find_all_at(publisher: &mut Publisher, storers: u8, now: Instant) -> usize {
    find_all_among(publisher, storers, usize::from(storers), now)
}

fn find_all_among(publisher: &mut Publisher, storers: u8, members: usize, now: Instant) -> usize {
    let mut others = Vec::new();
    let mut found = 0;
    while let Some(command) = publisher.poll_command() {
        match command {
            Command::Find(key) => {
                found += 1;
                publisher.on_found(&key, (0..storers).map(|n| NodeId([n; 32])).collect(), members, now);
            }
            Command::Count(_) => {}
            write @ Command::Write { .. } => others.push(write),
        }
    }
    publisher.commands.extend(others);
    found
}

fn write_all(publisher: &mut Publisher, take: usize) -> usize {
    write_all_at(publisher, take, t0())
}

/// Ends every write in hand: at most `take` of its storers took it.
fn write_all_at(publisher: &mut Publisher, take: usize, now: Instant) -> usize {
    let mut written = 0;
    while let Some(command) = publisher.poll_command() {
        if let Command::Write { key, to, .. } = command {
            written += 1;
            publisher.on_written(&key, to.len().min(take), now);
        }
    }
    written
}
