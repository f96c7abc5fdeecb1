//! Joins packets of one flow that follow one another, so that the kernel takes them as one.
//!
//! ```text
//! arena    [A0][B0][A1][A2][C0][B1][A3]           packets as they were opened, side by side
//! 1st next [virtio][A0][payload of A1][payload of A2][payload of A3]    the header of A0 speaks for all of them
//! 2nd next [virtio][B0][payload of B1]
//! 3rd next [virtio][C0]
//! ```
//!
//! A group goes out where its first packet was. Of each flow only the last group is open, and a packet of the flow that
//! does not join closes it: so no packet overtakes another of its flow.
//!
//! Packets join if, cut apart again, they are what they were; [`Segment`] has the rules for headers. Besides:
//!
//! - TCP: the next sequence number; a PSH or a smaller payload closes the group, a larger one does not join
//! - UDP: a checksum; a smaller payload closes the group, a larger one does not join
//! - both: right checksums. They are verified only for packets that would join, and for the first of a group when a
//!   second would: to verify those that stand alone is the kernel's work

use std::{io::IoSlice, iter, ops::Range};

use super::{
    IPV6_HEADER, PSH, TCP_CHECKSUM, TCP_FLAGS, UDP_CHECKSUM,
    checksum::Sum,
    flow::{Key, Segment, Shape, have_same_addresses},
    put,
    virtio::{Kind, Several, Unfinished, VIRTIO_HEADER, VirtioHeader},
};
use crate::overlay::batch::BATCH_PACKETS;

/// Flows joined at the same time: other implementations interleave that many. Beyond it the one begun first is closed.
pub const MAX_FLOWS: usize = 8;
/// Pieces of one write: the virtio header, a packet, and the payloads of others. Enough for 64 KiB in packets of 520
/// bytes; an array of them fits the stack.
pub const MAX_PIECES: usize = 128;

/// Beside them there is the virtio header.
pub const MAX_SEGMENTS: usize = MAX_PIECES - 1;
/// As many datagrams as Linux takes at once: `UDP_MAX_SEGMENTS` before it was doubled.
pub const MAX_DATAGRAMS: usize = 64;
/// No IP packet is larger.
const MAX_PACKET: usize = 65_535;

/// What the device takes joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing: every packet stands alone.
    Nothing,
    /// TCP (`TUN_F_TSO4`, `TUN_F_TSO6`).
    Tcp,
    /// TCP, and UDP too (`TUN_F_USO4`, `TUN_F_USO6`, since Linux 6.2).
    TcpAndUdp,
}

/// Packets on their way to the device, grouped. Allocates only when it is made.
pub struct Join {
    takes: Takes,
    groups: Vec<Group>,
    /// The packets of all groups, but for the first of each.
    members: Vec<Member>,
    /// Groups that can grow, in the order in which they were begun.
    open: Vec<Open>,
    /// Groups already handed out.
    taken: usize,
    header: [u8; VIRTIO_HEADER],
}

/// One write to the device: a virtio header and the pieces of one packet.
pub struct Joined<'a> {
    header: &'a [u8; VIRTIO_HEADER],
    arena: &'a [u8],
    group: &'a Group,
    members: &'a [Member],
}

impl Join {
    /// Empty, with the memory for a batch.
    pub fn new(takes: Takes) -> Join {
        Join {
            takes,
            groups: Vec::with_capacity(BATCH_PACKETS),
            members: Vec::with_capacity(BATCH_PACKETS),
            open: Vec::with_capacity(MAX_FLOWS),
            taken: 0,
            header: [0; VIRTIO_HEADER],
        }
    }

    /// `arena[at]` is a packet. What cannot join stands alone. All packets of a batch stay where they are, unchanged,
    /// until [`Join::next`] has handed out the last; a place outside of it is no packet.
    pub fn add(&mut self, arena: &[u8], at: Range<usize>) {
        let Some(packet) = arena.get(at.clone()) else { return };
        let shape = match self.takes {
            Takes::Nothing => Shape::Foreign,
            Takes::Tcp | Takes::TcpAndUdp => Shape::of(packet),
        };
        match shape {
            Shape::Segment(segment) if segment.kind != Kind::Udp || self.takes == Takes::TcpAndUdp => {
                return self.add_segment(arena, packet, at, segment);
            }
            Shape::Segment(_) | Shape::Foreign => {}
            Shape::Lone(key) => self.close(arena, packet, Some(key)),
            Shape::Unclear => self.close(arena, packet, None),
        }
        self.groups.push(Group::alone(at));
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.taken == self.groups.len()
    }

    /// The next to write, its headers put right in the arena. After the last, this is empty again.
    pub fn next<'a>(&'a mut self, arena: &'a mut [u8]) -> Option<Joined<'a>> {
        self.open.clear();
        if self.taken == self.groups.len() {
            self.groups.clear();
            self.members.clear();
            self.taken = 0;
            return None;
        }
        let group = &self.groups[self.taken];
        self.taken += 1;
        let first = arena.get_mut(group.first.clone()).unwrap_or_default();
        self.header = group.finish(first).unwrap_or(VirtioHeader::NONE).to_bytes();
        Some(Joined { header: &self.header, arena, group, members: &self.members })
    }

    /// How much its memory holds.
    #[cfg(test)]
    pub fn capacities(&self) -> [usize; 3] {
        [self.groups.capacity(), self.members.capacity(), self.open.capacity()]
    }

    fn add_segment(&mut self, arena: &[u8], packet: &[u8], at: Range<usize>, segment: Segment) {
        let of_flow = |open: &Open| open.key == segment.key && open.is_between(arena, packet);
        if let Some(place) = self.open.iter().position(of_flow) {
            let group = &mut self.groups[self.open[place].group];
            match group.fit(arena, packet, &segment) {
                Fit::Joins(after) => {
                    let member = self.members.len();
                    self.members.push(Member { payload: at.start + segment.payload_at..at.end, next: None });
                    match group.last.replace(member) {
                        Some(last) => self.members[last].next = Some(member),
                        None => group.second = Some(member),
                    }
                    group.grow(packet.len() - segment.payload_at, segment.push);
                    if after == After::Closed {
                        self.open.remove(place);
                    }
                    return;
                }
                Fit::Corrupt => {
                    self.open.remove(place);
                    return self.groups.push(Group::alone(at));
                }
                Fit::Not => {
                    self.open.remove(place);
                }
            }
        }
        if segment.push {
            return self.groups.push(Group::alone(at));
        }
        if self.open.len() == MAX_FLOWS {
            self.open.remove(0);
        }
        self.open.push(Open { key: segment.key, group: self.groups.len(), first: at.clone() });
        self.groups.push(Group { segment: Some(segment), ..Group::alone(at) });
    }

    /// Ends what `packet` may belong to: its flow if that is known, or else all between its addresses.
    fn close(&mut self, arena: &[u8], packet: &[u8], key: Option<Key>) {
        let may_grow = |open: &Open| key.is_some_and(|key| key != open.key) || !open.is_between(arena, packet);
        self.open.retain(may_grow);
    }
}

impl<'a> Joined<'a> {
    /// How many packets it is made of.
    pub fn packets(&self) -> usize {
        self.group.packets
    }

    /// What to write, piece by piece: at most [`MAX_PIECES`].
    pub fn pieces(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let Joined { header, arena, group, members } = *self;
        let second = group.second.and_then(|second| members.get(second));
        let others = iter::successors(second, move |member| member.next.and_then(|next| members.get(next)));
        let places = iter::once(&group.first).chain(others.map(|member| &member.payload));
        iter::once(&header[..]).chain(places.map(|at| arena.get(at.clone()).unwrap_or_default()))
    }

    /// The same, for one system call.
    pub fn fill<'s>(&self, slices: &'s mut [IoSlice<'a>; MAX_PIECES]) -> &'s [IoSlice<'a>] {
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(self.pieces()) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        &slices[..count]
    }
}

/// A group that can grow.
struct Open {
    key: Key,
    group: usize,
    /// Where its first packet is.
    first: Range<usize>,
}

/// What is written together.
struct Group {
    /// Where the first packet is.
    first: Range<usize>,
    /// What it is; None if nothing can join.
    segment: Option<Segment>,
    /// Whether its checksums were looked at, and are right.
    intact: bool,
    packets: usize,
    /// Bytes of payload in all but the first.
    more: usize,
    /// The last packet had PSH.
    push: bool,
    second: Option<usize>,
    last: Option<usize>,
}

/// A packet joined to others. Only its payload is written.
struct Member {
    payload: Range<usize>,
    next: Option<usize>,
}

/// Whether a packet joins a group.
enum Fit {
    Joins(After),
    /// It would, but its checksum is wrong.
    Corrupt,
    Not,
}

/// What a group is once a packet has joined.
#[derive(PartialEq, Eq)]
enum After {
    Open,
    Closed,
}

impl Open {
    /// Whether its packets have the addresses of `packet`.
    fn is_between(&self, arena: &[u8], packet: &[u8]) -> bool {
        arena.get(self.first.clone()).is_some_and(|first| have_same_addresses(first, packet))
    }
}

impl Group {
    fn alone(at: Range<usize>) -> Group {
        Group { first: at, segment: None, intact: false, packets: 1, more: 0, push: false, second: None, last: None }
    }

    fn fit(&mut self, arena: &[u8], packet: &[u8], segment: &Segment) -> Fit {
        let (Some(of), Some(first)) = (&self.segment, arena.get(self.first.clone())) else { return Fit::Not };
        let (size, whole) = (packet.len() - segment.payload_at, first.len() - of.payload_at);
        let sequence = of.sequence.map(|sequence| sequence.wrapping_add((whole + self.more) as u32));
        let fits = segment.sequence == sequence
            && segment.payload_at == of.payload_at
            && size <= whole
            && first.len() + self.more + size <= MAX_PACKET
            && segment.is_like(packet, first)
            && segment.has_id(packet, first, self.packets);
        if !fits {
            return Fit::Not;
        }
        self.intact = self.intact || of.is_intact(first);
        if !self.intact {
            return Fit::Not;
        }
        if !segment.is_intact(packet) {
            return Fit::Corrupt;
        }
        let most = match segment.kind {
            Kind::TcpV4 | Kind::TcpV6 => MAX_SEGMENTS,
            Kind::Udp => MAX_DATAGRAMS,
        };
        let closed = size < whole || segment.push || self.packets + 1 == most;
        Fit::Joins(if closed { After::Closed } else { After::Open })
    }

    fn grow(&mut self, size: usize, push: bool) {
        self.packets += 1;
        self.more += size;
        self.push = push;
    }

    /// Makes the headers of the first packet speak for all. None if there is only this one.
    fn finish(&self, first: &mut [u8]) -> Option<VirtioHeader> {
        let segment = self.segment.as_ref().filter(|_| self.packets > 1)?;
        let (total, size) = (first.len() + self.more, first.len().checked_sub(segment.payload_at)?);
        let (network, transport) = first.split_at_mut_checked(segment.transport_at)?;

        if segment.is_v4() {
            put(network, 2, (total as u16).to_be_bytes());
            put(network, 10, [0, 0]);
            let sum = Sum::of(network).checksum();
            put(network, 10, sum);
        } else {
            put(network, 4, ((total - IPV6_HEADER) as u16).to_be_bytes());
        }
        let len = total - segment.transport_at;
        let checksum_at = match segment.kind {
            Kind::TcpV4 | Kind::TcpV6 => {
                transport[TCP_FLAGS] |= if self.push { PSH } else { 0 };
                TCP_CHECKSUM
            }
            Kind::Udp => {
                put(transport, 4, (len as u16).to_be_bytes());
                UDP_CHECKSUM
            }
        };
        put(transport, checksum_at, segment.pseudo_header(network, len).unfinished());
        Some(VirtioHeader {
            unfinished: Some(Unfinished { start: segment.transport_at as u16, offset: checksum_at as u16 }),
            several: Some(Several { kind: segment.kind, size: size as u16, headers: segment.payload_at as u16 }),
        })
    }
}
