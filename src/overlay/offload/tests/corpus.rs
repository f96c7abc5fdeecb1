//! Frames and packets that were hard once, or come from a kernel, replayed every time.
//!
//! Each file of `corpus/` says why it is there, what is to become of it, and then has one frame or packet a line:
//!
//! | name       | lines      | what becomes of them                                                |
//! |------------|------------|---------------------------------------------------------------------|
//! | `cut_…`    | one frame  | `refused`, or `cut into` a number of packets                        |
//! | `join_…`   | packets    | `joined as` frames, each with a number of packets                   |

use std::{fs, path::Path};

use super::{
    build::is_well_formed,
    cut::cut,
    join::{apart, count, join, without_id},
    properties::{is_taken_by_the_kernel, is_whole},
};
use crate::overlay::offload::VIRTIO_HEADER;

#[test]
fn every_case_becomes_what_it_says() {
    for case in cases() {
        let becomes = match case.is_cut() {
            true => match cut(&case.lines[0]) {
                Ok(packets) => format!("cut into {}", packets.len()),
                Err(_) => "refused".into(),
            },
            false => {
                let counts: Vec<_> = join(&case.lines).iter().map(|frame| count(frame).to_string()).collect();
                format!("joined as {}", counts.join(" "))
            }
        };

        assert_eq!(becomes, case.becomes, "{}", case.name);
    }
}

#[test]
fn what_a_kernel_handed_over_is_cut_into_packets_that_a_careful_receiver_takes() {
    for case in cases().into_iter().filter(|case| case.name.starts_with("cut_linux_")) {
        let packets = cut(&case.lines[0]).unwrap();

        assert!(packets.iter().all(|packet| is_well_formed(packet)), "{}", case.name);
    }
}

#[test]
fn no_byte_of_a_frame_can_be_changed_to_do_harm() {
    for case in cases().into_iter().filter(Case::is_cut) {
        for at in 0..case.lines[0].len() {
            let shorter = &case.lines[0][..at];
            let changed = CHANGES.map(|change| {
                let mut frame = case.lines[0].clone();
                frame[at] = change(frame[at]);
                frame
            });
            for frame in changed.iter().map(Vec::as_slice).chain([shorter]) {
                if let Ok(packets) = cut(frame) {
                    let whole = |packet: &Vec<u8>| is_whole(packet) && packet.len() <= frame.len() - VIRTIO_HEADER;
                    assert!(packets.iter().all(whole), "{} at {at}", case.name);
                }
            }
        }
    }
}

#[test]
fn no_byte_of_a_packet_can_be_changed_to_make_another_of_it() {
    for case in cases().into_iter().filter(|case| !case.is_cut()) {
        for which in 0..case.lines.len() {
            for at in 0..case.lines[which].len() {
                for change in CHANGES {
                    let mut packets = case.lines.clone();
                    packets[which][at] = change(packets[which][at]);

                    let frames = join(&packets);

                    let mut out: Vec<_> =
                        frames.iter().flat_map(|frame| apart(frame)).map(|packet| without_id(&packet)).collect();
                    let mut into: Vec<_> = packets.iter().map(|packet| without_id(packet)).collect();
                    out.sort();
                    into.sort();
                    assert_eq!(out, into, "{} at {at} of {which}", case.name);
                    assert!(frames.iter().all(|frame| is_taken_by_the_kernel(frame)), "{}", case.name);
                }
            }
        }
    }
}

const CHANGES: [fn(u8) -> u8; 5] = [|_| 0, |_| 0xff, |byte| byte ^ 1, |byte| byte ^ 0x80, |byte| byte.wrapping_add(4)];

struct Case {
    name: String,
    becomes: String,
    lines: Vec<Vec<u8>>,
}

impl Case {
    fn is_cut(&self) -> bool {
        self.name.starts_with("cut_")
    }
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/overlay/offload/corpus");
    let mut cases = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        cases.push(Case {
            name: path.file_stem().unwrap().to_string_lossy().into(),
            becomes: lines.next().unwrap().into(),
            lines: lines.map(|line| hex::decode(line).unwrap()).collect(),
        });
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!cases.is_empty());
    cases
}
