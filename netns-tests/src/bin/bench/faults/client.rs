//! Clients that look closely: one question on one connection, and everything that comes of it.

use std::{io, net::SocketAddr, time::Duration};

use crate::{
    http1::{Connection, post},
    upstream::{question, stamp_of},
};

/// What a client saw of one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    /// A whole answer with this status.
    Whole(u16),
    /// An answer with this status that broke off.
    Broken(u16),
    /// The connection was closed without an answer.
    Nothing,
    /// Nothing until the client's time was up.
    TimeUp,
}

/// What a client saw of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSeen {
    /// How it ended.
    pub seen: Seen,
    /// Events of the upstream.
    pub events: u64,
    /// Whether it said that something went wrong.
    pub error: bool,
    /// Whether it said that it was complete.
    pub done: bool,
}

/// Whom to ask for what.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Where.
    pub address: SocketAddr,
    /// For what.
    pub path: &'static str,
}

impl Seen {
    /// In a word.
    pub fn name(self) -> String {
        match self {
            Seen::Whole(status) => status.to_string(),
            Seen::Broken(status) => format!("{status}, broken off"),
            Seen::Nothing => "closed".to_owned(),
            Seen::TimeUp => "time up".to_owned(),
        }
    }
}

impl StreamSeen {
    /// Whether a client must think that it got everything.
    pub fn is_clean(&self) -> bool {
        self.done || !self.error && matches!(self.seen, Seen::Whole(200))
    }
}

impl Target {
    /// Asks one question, as the request of this number, for at most so long.
    pub async fn ask(self, number: u64, limit: Duration) -> Seen {
        let asked = tokio::time::timeout(limit, async {
            let mut connection = match self.send(number, false).await {
                Ok(connection) => connection,
                Err(_) => return Seen::Nothing,
            };
            let Ok((status, head)) = connection.answer().await else { return Seen::Nothing };
            let mut body = head.body_of_answer();
            loop {
                match connection.piece(&mut body).await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Seen::Whole(status),
                    Err(_) => return Seen::Broken(status),
                }
            }
        });
        asked.await.unwrap_or(Seen::TimeUp)
    }

    /// Asks for a stream and reads it to its end.
    pub async fn read_stream(self, number: u64, limit: Duration) -> StreamSeen {
        let mut stream = StreamSeen { seen: Seen::TimeUp, events: 0, error: false, done: false };
        // What was seen until the time was up counts too.
        let read = tokio::time::timeout(limit, self.read_into(number, &mut stream)).await;
        stream.seen = read.unwrap_or(Seen::TimeUp);
        stream
    }

    /// Asks for a stream, to do with it as one likes: the connection, after the head of the answer.
    pub async fn open_stream(self, number: u64) -> anyhow::Result<(Connection, crate::http1::Body)> {
        let mut connection = self.send(number, true).await?;
        let (status, head) = connection.answer().await?;
        anyhow::ensure!(status == 200, "status {status}");
        Ok((connection, head.body_of_answer()))
    }

    async fn read_into(self, number: u64, stream: &mut StreamSeen) -> Seen {
        let mut connection = match self.send(number, true).await {
            Ok(connection) => connection,
            Err(_) => return Seen::Nothing,
        };
        let Ok((status, head)) = connection.answer().await else { return Seen::Nothing };
        let (mut body, mut text) = (head.body_of_answer(), Vec::new());
        loop {
            match connection.piece(&mut body).await {
                Ok(Some(piece)) => text.extend_from_slice(&piece),
                Ok(None) => return Seen::Whole(status),
                Err(_) => return Seen::Broken(status),
            }
            while let Some(end) = text.windows(2).position(|bytes| bytes == b"\n\n") {
                let event: Vec<u8> = text.drain(..end + 2).collect();
                let has = |what: &[u8]| event.windows(what.len()).any(|bytes| bytes == what);
                stream.events += u64::from(stamp_of(&event).is_some());
                stream.error |= has(b"\"error\"") || has(b"event: error");
                stream.done |= has(b"[DONE]");
            }
        }
    }

    async fn send(self, number: u64, stream: bool) -> io::Result<Connection> {
        let mut connection = Connection::to(self.address).await?;
        let question = question(&format!("lab-{number}"), stream);
        connection.write(&post(self.address, self.path, &question)).await?;
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_says_it_is_complete_ends_cleanly_however_its_connection_does() {
        let stream = |seen, error, done| StreamSeen { seen, events: 10, error, done };

        assert!(stream(Seen::Whole(200), false, false).is_clean());
        assert!(stream(Seen::Broken(200), false, true).is_clean());
        assert!(!stream(Seen::Broken(200), true, false).is_clean());
        assert!(!stream(Seen::Whole(200), true, false).is_clean());
    }
}
