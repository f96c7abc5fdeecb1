//! A server that sends back what it gets.

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};

/// How soon it notices that it should end.
const RECEIVE_LIMIT: Duration = Duration::from_millis(50);
const BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// Answers until it is dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
    answering: Option<JoinHandle<()>>,
}

impl Echo {
    /// At an address of the namespace that the calling thread is in.
    pub fn start(address: SocketAddr) -> anyhow::Result<Echo> {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(RECEIVE_LIMIT))?;
        // Without the right to do so, the system's own limit has to do.
        let _ = setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &BUFFER_BYTES);
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let answering = thread::spawn(move || {
            let mut bytes = [0; 2048];
            while !stopping.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
                // What cannot be sent is missed by whoever asked.
                let _ = socket.send_to(&bytes[..length], from);
            }
        });
        Ok(Echo { stop, answering: Some(answering) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(answering) = self.answering.take() {
            // It has nothing to say.
            let _ = answering.join();
        }
    }
}
