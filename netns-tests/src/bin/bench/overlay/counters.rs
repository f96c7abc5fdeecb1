//! What the kernel counts about TCP in a namespace.

use std::fs;

use anyhow::Context;
use wiremesh::sandbox::Namespace;

/// TCP of one namespace so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// Segments sent again.
    pub retransmitted: u64,
    /// Segments that came before one that was sent earlier, and had to wait for it.
    pub out_of_order: u64,
    /// How often a sender saw that segments had overtaken each other, and not been lost.
    pub reordered: u64,
    /// Segments reported to have come twice: sent again for nothing.
    pub duplicates: u64,
}

impl Tcp {
    /// Reads them.
    pub fn of(namespace: &Namespace) -> anyhow::Result<Tcp> {
        let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let (snmp, netstat) = namespace.run(|| (read("snmp"), read("netstat")))?;
        Tcp::parse(&snmp?, &netstat?).context("no counters of TCP")
    }

    /// What has been counted since `earlier`.
    pub fn since(self, earlier: Tcp) -> Tcp {
        Tcp {
            retransmitted: self.retransmitted - earlier.retransmitted,
            out_of_order: self.out_of_order - earlier.out_of_order,
            reordered: self.reordered - earlier.reordered,
            duplicates: self.duplicates - earlier.duplicates,
        }
    }

    /// Both together.
    pub fn plus(self, other: Tcp) -> Tcp {
        Tcp {
            retransmitted: self.retransmitted + other.retransmitted,
            out_of_order: self.out_of_order + other.out_of_order,
            reordered: self.reordered + other.reordered,
            duplicates: self.duplicates + other.duplicates,
        }
    }

    fn parse(snmp: &str, netstat: &str) -> Option<Tcp> {
        let extended = |name| counter(netstat, "TcpExt:", name);
        Some(Tcp {
            retransmitted: counter(snmp, "Tcp:", "RetransSegs")?,
            out_of_order: extended("TCPOFOQueue")?,
            reordered: extended("TCPSACKReorder")? + extended("TCPRenoReorder")? + extended("TCPTSReorder")?,
            duplicates: extended("TCPDSACKRecv")? + extended("TCPDSACKOfoRecv")?,
        })
    }
}

/// Two lines each: names, then numbers.
fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|other| other == name)?;
    numbers.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names() {
        let snmp = "Ip: Forwarding\nIp: 1\nTcp: MaxConn InSegs RetransSegs\nTcp: -1 500 7\nUdp: InDatagrams\nUdp: 0\n";
        let netstat = "TcpExt: TCPSACKReorder TCPRenoReorder TCPTSReorder TCPOFOQueue TCPDSACKRecv TCPDSACKOfoRecv\n\
                       TcpExt: 1 2 3 40 50 6\nIpExt: InNoRoutes\nIpExt: 0\n";

        let tcp = Tcp::parse(snmp, netstat).unwrap();

        assert_eq!(tcp, Tcp { retransmitted: 7, out_of_order: 40, reordered: 6, duplicates: 56 });
        assert_eq!(tcp.since(tcp).plus(tcp), tcp);
    }
}
