//! Small requests and answers over one TCP connection, every byte compared: nothing waits for company that never comes.

use std::{
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::Context;
use wiremesh::{clock, sandbox::Node};

const REQUESTS: usize = 400;
/// Larger ones take several packets.
const MAX_BYTES: usize = 4000;
/// From one size to the next, so that all kinds of sizes follow each other.
const STEP: usize = 37;
const LIMIT: Duration = Duration::from_secs(10);

/// Sends requests of many sizes to the far node, one after the other, and expects each back. Gives the median time that one
/// took.
pub fn requests_pass(near: &Node, far: &Node, far_ip: IpAddr) -> anyhow::Result<Duration> {
    let listener = far.run(|| TcpListener::bind((far_ip, 0)))??;
    let to = listener.local_addr()?;
    let mut stream = near.run(|| TcpStream::connect_timeout(&to, LIMIT))?.context("connecting")?;
    let (mut echo, _) = listener.accept()?;
    for stream in [&stream, &echo] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
    }
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut bytes = [0; MAX_BYTES];
            while let Ok(length @ 1..) = echo.read(&mut bytes) {
                if echo.write_all(&bytes[..length]).is_err() {
                    break;
                }
            }
        });
        let mut times = Vec::with_capacity(REQUESTS);
        for number in 0..REQUESTS {
            let size = 1 + number * STEP % MAX_BYTES;
            let request: Vec<u8> = (0..size).map(|at| (at * 31 + number * 7) as u8).collect();
            let begun_at = clock::now();
            stream.write_all(&request)?;
            let mut answer = vec![0; size];
            stream.read_exact(&mut answer).with_context(|| format!("the answer to request {number}, {size} bytes"))?;
            times.push(clock::now() - begun_at);
            anyhow::ensure!(answer == request, "the answer to request {number}, {size} bytes, is damaged");
        }
        drop(stream);
        times.sort();
        Ok(times[REQUESTS / 2])
    })
}
