//! The program: `bench upstream`.

use std::{
    cell::Cell,
    collections::HashMap,
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

use super::{BREAKS_AFTER, Behaviour, FLOOD_BYTES, RETRY_AFTER, Stream, nanos, number_of};
use crate::http1::{Connection, Head};

/// What a piece of a flood has in its one event.
const FLOOD_EVENT_BYTES: usize = 16 * 1024;

/// The model server that is measured in front of
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Where to write what is executed.
    #[arg(long)]
    notes: PathBuf,
}

/// What all connections share.
struct Server {
    behaviour: Cell<Behaviour>,
    stream: Cell<Stream>,
    notes: File,
    whole: Vec<u8>,
}

/// How a stream of events ended.
enum Ended {
    AllSent,
    ClientLeft,
}

/// Serves until it is ended.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let notes = OpenOptions::new().create(true).append(true).open(&arguments.notes)?;
    let (behaviour, stream) = (Cell::default(), Cell::default());
    let server = Rc::new(Server { behaviour, stream, notes, whole: whole_answer() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async {
        let listener = TcpListener::bind(arguments.listen).await?;
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let server = server.clone();
            // A connection that breaks has ended, and nobody else is concerned.
            tokio::task::spawn_local(async move { server.serve(stream).await });
        }
    })
}

impl Server {
    async fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut connection = Connection::of(stream)?;
        while let Some(head) = connection.head().await? {
            let (mut body, mut content) = (head.body_of_request(), Vec::new());
            while let Some(piece) = connection.piece(&mut body).await? {
                content.extend_from_slice(&piece);
            }
            if head.line.starts_with("POST ") {
                self.execute(&mut connection, &content).await?;
            } else {
                connection.write(&self.page(&head)).await?;
            }
            if head.closes {
                break;
            }
        }
        Ok(())
    }

    async fn execute(&self, connection: &mut Connection, content: &[u8]) -> io::Result<()> {
        let number = number_of(content);
        self.note("executed", number);
        let streams = content.windows(14).any(|bytes| bytes == br#""stream": true"#)
            || content.windows(13).any(|bytes| bytes == br#""stream":true"#);
        match self.behaviour.get() {
            Behaviour::Fail => connection.write(&error("500 Internal Server Error", "")).await,
            Behaviour::Busy => {
                let header = format!("retry-after: {RETRY_AFTER}\r\n");
                connection.write(&error("429 Too Many Requests", &header)).await
            }
            Behaviour::Crash => std::process::exit(134),
            Behaviour::Answer if !streams => connection.write(&self.whole).await,
            Behaviour::Answer | Behaviour::Break | Behaviour::Flood => {
                let ended = self.events(connection).await.unwrap_or(Ended::ClientLeft);
                if matches!(ended, Ended::ClientLeft) {
                    self.note("left", number);
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                Ok(())
            }
        }
    }

    async fn events(&self, connection: &mut Connection) -> io::Result<Ended> {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        connection.write(head.as_bytes()).await?;
        let behaviour = self.behaviour.get();
        if behaviour == Behaviour::Flood {
            let piece = chunk(&event(&"x".repeat(FLOOD_EVENT_BYTES)));
            for _ in 0..FLOOD_BYTES / FLOOD_EVENT_BYTES as u64 {
                connection.write(&piece).await?;
            }
        } else {
            let Stream { every, events } = self.stream.get();
            let mut due = tokio::time::interval(every);
            for number in 0..events {
                tokio::select! {
                    _ = due.tick() => {}
                    () = connection.closed() => return Ok(Ended::ClientLeft),
                }
                if behaviour == Behaviour::Break && number == BREAKS_AFTER {
                    std::process::exit(134);
                }
                connection.write(&chunk(&event(&format!("@{}@", nanos())))).await?;
            }
        }
        connection.write(&[chunk("data: [DONE]\n\n").as_slice(), b"0\r\n\r\n"].concat()).await?;
        Ok(Ended::AllSent)
    }

    fn page(&self, head: &Head) -> Vec<u8> {
        let path = head.line.split(' ').nth(1).unwrap_or_default();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let json = match path {
            "/lab/do" => match self.told(query) {
                Ok(()) => serde_json::json!({}),
                Err(_) => return error("400 Bad Request", ""),
            },
            "/v1/models" => serde_json::json!({
                "object": "list",
                "data": [{"id": "bench", "object": "model", "created": 1, "owned_by": "lab", "max_model_len": 8192}],
            }),
            // What routers for model servers ask to see what they have in front of them.
            "/get_model_info" | "/model_info" | "/get_server_info" | "/server_info" => serde_json::json!({
                "model_path": "bench", "served_model_name": "bench", "model_id": "bench", "is_generation": true,
                "tp_size": 1, "dp_size": 1, "version": "0.5.0",
            }),
            "/" | "/health" | "/health_generate" | "/alive" => serde_json::json!({"status": "ok"}),
            _ => return error("404 Not Found", ""),
        };
        answer("200 OK", "", &json.to_string())
    }

    fn told(&self, query: &str) -> anyhow::Result<()> {
        let said: HashMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let mut stream = Stream::default();
        if let Some(text) = said.get("every_ms") {
            stream.every = Duration::from_millis(text.parse()?);
        }
        if let Some(text) = said.get("events") {
            stream.events = text.parse()?;
        }
        self.behaviour.set(said.get("behaviour").unwrap_or(&"answer").parse()?);
        self.stream.set(stream);
        Ok(())
    }

    /// One line, written at once: this program may end at any moment.
    fn note(&self, what: &str, number: Option<u64>) {
        let Some(number) = number else { return };
        let line = format!("{what} {number} {}\n", nanos());
        // A note that is missing shows as an execution that is missing.
        let _ = (&self.notes).write_all(line.as_bytes());
    }
}

/// A whole answer of about 1 KB.
fn whole_answer() -> Vec<u8> {
    let content = "African or European? I do not know that. ".repeat(18);
    let json = serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "bench",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop", "logprobs": null,
        }],
        "usage": {"prompt_tokens": 200, "completion_tokens": 200, "total_tokens": 400},
    });
    answer("200 OK", "", &json.to_string())
}

fn error(status: &str, headers: &str) -> Vec<u8> {
    let json = serde_json::json!({"error": {"message": status, "type": "lab", "param": null, "code": null}});
    answer(status, headers, &json.to_string())
}

fn answer(status: &str, headers: &str, json: &str) -> Vec<u8> {
    let length = json.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n");
    format!("{head}\r\n{json}").into_bytes()
}

fn event(content: &str) -> String {
    let mut text = String::with_capacity(content.len() + 256);
    text.push_str(r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"bench","#);
    // Writing to a string does not fail.
    let _ = write!(
        text,
        r#""choices":[{{"index":0,"delta":{{"role":"assistant","content":"{content}"}},"finish_reason":null}}]}}"#
    );
    text.push_str("\n\n");
    text
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}
