//! `wiremesh-cert`: the certificate commands alone, for an offline machine.

fn main() {}
