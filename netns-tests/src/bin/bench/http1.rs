//! As much of HTTP/1.1 as a lean client and a lean server need: heads, and bodies piece by piece.
//!
//! It reads what well-behaved programs write, and tells a body that ended from one that broke off.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What is read at once, if it is there.
const READ_BYTES: usize = 16 * 1024;
/// No head of ours or of what we measure is larger.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// One connection, as either side of it.
pub struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

/// The head of a request or an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The first line.
    pub line: String,
    /// Whether the connection ends with this message.
    pub closes: bool,
    /// `retry-after`, as it stands there.
    pub retry_after: Option<String>,
    framing: Framing,
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Framing {
    /// After so many bytes.
    Length(u64),
    /// After the chunk without content.
    Chunked,
    /// With the connection. An answer only; a request that says nothing has no body.
    #[default]
    Unsaid,
}

/// How far a body has been read.
#[derive(Debug)]
pub struct Body {
    left: Left,
}

#[derive(Debug, PartialEq, Eq)]
enum Left {
    Bytes(u64),
    /// So many bytes of a chunk, and the line end after it.
    Chunk(u64),
    NextChunk,
    UntilClosed,
    Nothing,
}

impl Connection {
    /// A new one, as a client.
    pub async fn to(address: SocketAddr) -> io::Result<Connection> {
        Connection::of(TcpStream::connect(address).await?)
    }

    /// One that was made.
    pub fn of(stream: TcpStream) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: BytesMut::new() })
    }

    /// Writes all of it.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next head; none if the other side closed the connection instead.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        let mut looked_at = 0;
        loop {
            let found = self.buffer[looked_at..].windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(at) = found {
                let head = self.buffer.split_to(looked_at + at + 4);
                return Head::parse(&head).map(Some).ok_or_else(|| ErrorKind::InvalidData.into());
            }
            looked_at = self.buffer.len().saturating_sub(3);
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(ErrorKind::InvalidData.into());
            }
            if self.fill().await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// The head of an answer: its status too. A connection that was closed instead is an error.
    pub async fn answer(&mut self) -> io::Result<(u16, Head)> {
        loop {
            let head = self.head().await?.ok_or(ErrorKind::UnexpectedEof)?;
            let status = head.line.split(' ').nth(1).and_then(|code| code.parse().ok());
            match status.ok_or(ErrorKind::InvalidData)? {
                100..=199 => continue,
                status => return Ok((status, head)),
            }
        }
    }

    /// The next piece of a body; none at its end. A body that breaks off is an error.
    pub async fn piece(&mut self, body: &mut Body) -> io::Result<Option<Bytes>> {
        loop {
            match body.left {
                Left::Nothing | Left::Bytes(0) => return Ok(None),
                Left::UntilClosed => {
                    if self.buffer.is_empty() && self.fill().await? == 0 {
                        body.left = Left::Nothing;
                        return Ok(None);
                    }
                    return Ok(Some(self.buffer.split().freeze()));
                }
                Left::Bytes(left) => {
                    let piece = self.at_most(left).await?;
                    body.left = Left::Bytes(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
                Left::Chunk(0) => {
                    self.line().await?;
                    body.left = Left::NextChunk;
                }
                Left::Chunk(left) => {
                    let piece = self.at_most(left).await?;
                    body.left = Left::Chunk(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
                Left::NextChunk => {
                    let line = self.line().await?;
                    let size = line.split(|byte| *byte == b';').next().and_then(|size| str::from_utf8(size).ok());
                    let size = size.and_then(|size| u64::from_str_radix(size.trim(), 16).ok());
                    match size.ok_or(ErrorKind::InvalidData)? {
                        0 => {
                            // What may follow, up to an empty line.
                            while !self.line().await?.is_empty() {}
                            body.left = Left::Nothing;
                        }
                        size => body.left = Left::Chunk(size),
                    }
                }
            }
        }
    }

    /// Waits until the other side closes the connection, or breaks it.
    pub async fn closed(&mut self) {
        // Nothing is expected meanwhile: what comes is the next request, which nobody will answer.
        while matches!(self.fill().await, Ok(1..)) && self.buffer.len() < MAX_HEAD_BYTES {}
    }

    async fn at_most(&mut self, bytes: u64) -> io::Result<Bytes> {
        if self.buffer.is_empty() && self.fill().await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let length = self.buffer.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        Ok(self.buffer.split_to(length).freeze())
    }

    /// The next line, without its end.
    async fn line(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line = self.buffer.split_to(at + 1);
                line.truncate(at);
                let length = line.trim_ascii_end().len();
                line.truncate(length);
                return Ok(line.freeze());
            }
            if self.fill().await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ_BYTES);
        self.stream.read_buf(&mut self.buffer).await
    }
}

impl Head {
    fn parse(bytes: &[u8]) -> Option<Head> {
        let text = str::from_utf8(bytes).ok()?;
        let mut lines = text.split("\r\n");
        let mut head = Head { line: lines.next()?.to_owned(), ..Head::default() };
        head.closes = head.line.ends_with("HTTP/1.0") || head.line.starts_with("HTTP/1.0");
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match name.len() {
                14 if name.eq_ignore_ascii_case("content-length") => {
                    head.framing = Framing::Length(value.parse().ok()?)
                }
                17 if name.eq_ignore_ascii_case("transfer-encoding") => head.framing = Framing::Chunked,
                10 if name.eq_ignore_ascii_case("connection") => head.closes |= value.eq_ignore_ascii_case("close"),
                11 if name.eq_ignore_ascii_case("retry-after") => head.retry_after = Some(value.to_owned()),
                _ => {}
            }
        }
        Some(head)
    }

    /// The body of a request.
    pub fn body_of_request(&self) -> Body {
        Body { left: self.framing.left(Left::Nothing) }
    }

    /// The body of an answer.
    pub fn body_of_answer(&self) -> Body {
        Body { left: self.framing.left(Left::UntilClosed) }
    }
}

impl Framing {
    fn left(self, unsaid: Left) -> Left {
        match self {
            Framing::Length(bytes) => Left::Bytes(bytes),
            Framing::Chunked => Left::NextChunk,
            Framing::Unsaid => unsaid,
        }
    }
}

/// A whole POST of JSON, as it goes over the connection.
pub fn post(to: SocketAddr, path: &str, json: &str) -> Vec<u8> {
    let length = json.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: {to}\r\ncontent-type: application/json\r\nauthorization: Bearer sk-bench\r\n\
         content-length: {length}\r\n\r\n{json}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_body_of_known_length_ends_and_the_next_head_follows() {
        let mut connection =
            said("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 429 No\r\nretry-after: 7\r\n\r\n").await;

        let (status, head) = connection.answer().await.unwrap();
        assert_eq!((status, read(&mut connection, head.body_of_answer()).await.unwrap()), (200, "hello".to_owned()));
        let (status, head) = connection.answer().await.unwrap();
        assert_eq!((status, head.retry_after.as_deref()), (429, Some("7")));
    }

    #[tokio::test]
    async fn chunks_are_joined_and_their_end_is_an_end() {
        let mut connection =
            said("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n").await;

        let (_, head) = connection.answer().await.unwrap();

        assert_eq!(read(&mut connection, head.body_of_answer()).await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_has_no_end() {
        for text in ["content-length: 9\r\n\r\nhello", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
            let mut connection = said(&format!("HTTP/1.1 200 OK\r\n{text}")).await;

            let (_, head) = connection.answer().await.unwrap();

            assert!(read(&mut connection, head.body_of_answer()).await.is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn without_a_length_an_answer_goes_on_to_the_end_of_its_connection() {
        let mut connection = said("HTTP/1.0 200 OK\r\n\r\nhello").await;

        let (_, head) = connection.answer().await.unwrap();

        assert!(head.closes);
        assert_eq!(read(&mut connection, head.body_of_answer()).await.unwrap(), "hello");
    }

    async fn said(text: &str) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connection = Connection::to(listener.local_addr().unwrap()).await.unwrap();
        let (mut other, _) = listener.accept().await.unwrap();
        other.write_all(text.as_bytes()).await.unwrap();
        connection
    }

    async fn read(connection: &mut Connection, mut body: Body) -> io::Result<String> {
        let mut text = Vec::new();
        while let Some(piece) = connection.piece(&mut body).await? {
            text.extend_from_slice(&piece);
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
