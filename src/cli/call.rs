//! `wiremesh call`: sends a request through the agent of this machine and streams the answer as it comes.

mod explain;
mod patient;

use std::{
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures::TryStreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use self::patient::Patient;
use super::{
    failure::{DONE, FAILED, Failure, NOT_SO},
    socket,
};
use crate::clock;

/// With `--json` the answer is collected, up to this.
const MAX_JSON_BYTES: usize = 16 * 1024 * 1024;
/// Uploads are read in pieces of this size.
const PIECE_BYTES: usize = 64 * 1024;

/// Sends a request to a service of the mesh and streams the answer
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh call llm-inference/api/generate --data '{\"prompt\": \"hello\"}'\n  \
                        wiremesh call ocr/scan -X PUT --data @page.png -H 'content-type: image/png' -v\n  \
                        wiremesh call ocr --explain")]
pub struct Args {
    /// The service, and the path that its upstream is to see
    #[arg(value_name = "SERVICE[/PATH]")]
    target: String,
    /// The body: text, @FILE, or @- for standard input. Makes it a POST
    #[arg(long, short, value_name = "TEXT|@FILE")]
    data: Option<String>,
    /// The method
    #[arg(long = "request", short = 'X', value_name = "METHOD")]
    method: Option<Method>,
    /// A header, "name: value"; may be given several times
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Shows on standard error which way the request took, and the time of each hop
    #[arg(long, short)]
    verbose: bool,
    /// Prints one JSON object with the answer, its route and its times
    #[arg(long)]
    json: bool,
    /// Shows who would be asked, and sends nothing
    #[arg(long, conflicts_with_all = ["data", "method", "headers", "verbose"])]
    explain: bool,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("no \":\" in it")?;
    let name = HeaderName::try_from(name.trim()).map_err(|error| error.to_string())?;
    Ok((name, HeaderValue::try_from(value.trim()).map_err(|error| error.to_string())?))
}

/// Sends the request through the agent at `socket`. The answer goes to `out`, the route to `err`.
/// The exit code is 2 if nobody offers the service, 1 if the answer is an error.
pub async fn run(args: &Args, socket: &Path, out: &mut impl Write, err: &mut impl Write) -> Result<u8, Failure> {
    if args.explain {
        return explain::run(&args.target, args.json, socket, out).await;
    }
    let began_at = clock::now();
    let answer = send(request(args).await?, socket).await?;
    let first_byte = clock::now().saturating_duration_since(began_at);
    let route = Route::of(&answer, first_byte);
    if args.verbose {
        route.print(answer.headers(), err)?;
    }
    let exit = exit_of(&answer);
    if args.json {
        print_json(answer, &route, began_at, out).await?;
    } else if let (true, FAILED | NOT_SO) = (route.refused, exit) {
        return Err(refusal(answer, exit).await);
    } else {
        stream(answer, out).await?;
    }
    if args.verbose {
        writeln!(err, "* total {}", millis(clock::now().saturating_duration_since(began_at)))?;
    }
    Ok(exit)
}

async fn request(args: &Args) -> Result<Request<Body>, Failure> {
    let body = match args.data.as_deref() {
        None => full(Bytes::new()),
        Some("@-") => piecewise(tokio::io::stdin()),
        Some(data) => match data.strip_prefix('@') {
            Some(file) => {
                let opened = tokio::fs::File::open(file).await.with_context(|| format!("could not open {file}"))?;
                piecewise(opened)
            }
            None => full(data.to_owned().into()),
        },
    };
    let method = args.method.clone().unwrap_or(if args.data.is_some() { Method::POST } else { Method::GET });
    let mut request = Request::builder()
        .method(method)
        .uri(format!("/service/{}", args.target.trim_start_matches('/')))
        .body(body)
        .map_err(|error| Failure::usage(anyhow!("{:?} is no service and path: {error}", args.target)))?;
    for (name, value) in &args.headers {
        request.headers_mut().append(name, value.clone());
    }
    Ok(request)
}

type Body = BoxBody<Bytes, std::io::Error>;

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

fn piecewise(reader: impl tokio::io::AsyncRead + Send + Sync + 'static) -> Body {
    StreamBody::new(ReaderStream::with_capacity(reader, PIECE_BYTES).map_ok(Frame::data)).boxed()
}

#[expect(clippy::disallowed_methods, reason = "the connection ends with the command")]
async fn send(mut request: Request<Body>, socket: &Path) -> Result<Response<Incoming>, Failure> {
    request.headers_mut().entry(http::header::HOST).or_insert(HeaderValue::from_static("localhost"));
    let stream = socket::connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(Patient::new(stream))).await?;
    // It ends with the answer; what goes wrong on it shows in the answer too.
    drop(tokio::task::spawn(connection));
    Ok(sender.send_request(request).await.context("could not ask the agent")?)
}

/// Which way a request took, as the agent tells it.
struct Route {
    status: u16,
    worker: String,
    path: String,
    source: String,
    request_id: String,
    first_byte: Duration,
    /// Names and milliseconds, from `server-timing`, the nearest hop first.
    hops: Vec<(String, f64)>,
    /// Whether the answer is the mesh's own, not a worker's.
    refused: bool,
}

impl Route {
    fn of<B>(answer: &Response<B>, first_byte: Duration) -> Route {
        let said = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut hops: Vec<_> = answer
            .headers()
            .get_all("server-timing")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|hop| {
                let (name, rest) = hop.trim().split_once(';')?;
                let took = rest.split(';').find_map(|part| part.trim().strip_prefix("dur="))?;
                Some((name.to_owned(), took.parse().ok()?))
            })
            .collect();
        // Every hop appends its own behind those it got from further away.
        hops.reverse();
        Route {
            status: answer.status().as_u16(),
            worker: said("x-wiremesh-worker").to_owned(),
            path: said("x-wiremesh-path").to_owned(),
            source: said("x-wiremesh-source").to_owned(),
            request_id: said("x-request-id").to_owned(),
            first_byte,
            hops,
            refused: !said("x-wiremesh-executed").is_empty(),
        }
    }

    fn print(&self, headers: &HeaderMap, err: &mut impl Write) -> std::io::Result<()> {
        match self.path.is_empty() {
            true => writeln!(err, "* {} from {} itself, no worker answered", self.status, self.worker)?,
            false => {
                writeln!(err, "* {} from {} by {}, known from {}", self.status, self.worker, self.path, self.source)?
            }
        }
        writeln!(err, "* request {}", self.request_id)?;
        writeln!(err, "* first byte {}", millis(self.first_byte))?;
        for (name, took) in &self.hops {
            writeln!(err, "*   {name} {took:.1} ms")?;
        }
        for (name, value) in headers {
            writeln!(err, "< {name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
        }
        Ok(())
    }
}

/// Prints the answer as it comes.
async fn stream(answer: Response<Incoming>, out: &mut impl Write) -> Result<(), Failure> {
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the answer broke off")?;
        if let Some(data) = frame.data_ref() {
            out.write_all(data)?;
            out.flush()?;
        }
    }
    Ok(())
}

async fn print_json(
    answer: Response<Incoming>,
    route: &Route,
    began_at: Instant,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let body = collect(answer).await?;
    let text = String::from_utf8_lossy(&body);
    let hops: Vec<Value> = route.hops.iter().map(|(name, took)| json!({"name": name, "ms": took})).collect();
    let printed = json!({
        "status": route.status,
        "worker": route.worker,
        "path": route.path,
        "source": route.source,
        "request_id": route.request_id,
        "first_byte_ms": as_millis(route.first_byte),
        "total_ms": as_millis(clock::now().saturating_duration_since(began_at)),
        "hops": hops,
        "body": serde_json::from_str::<Value>(&text).unwrap_or_else(|_| text.into()),
    });
    writeln!(out, "{}", serde_json::to_string_pretty(&printed)?)?;
    Ok(())
}

async fn collect(answer: Response<Incoming>) -> Result<Bytes, Failure> {
    let body = http_body_util::Limited::new(answer.into_body(), MAX_JSON_BYTES).collect().await;
    Ok(body.map_err(|error| anyhow!("the answer broke off or is larger than 16 MiB: {error}"))?.to_bytes())
}

/// An error of the mesh, in its own words.
async fn refusal(answer: Response<Incoming>, exit: u8) -> Failure {
    let status = answer.status();
    let retry = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let said: Value = match collect(answer).await {
        Ok(body) => serde_json::from_slice(&body).unwrap_or_default(),
        Err(failure) => return failure,
    };
    let message = said["error"]["message"].as_str().unwrap_or("no reason given");
    let kind = said["error"]["type"].as_str().unwrap_or("error");
    let failure = Failure { exit, error: anyhow!("{message} ({status}, {kind})"), hint: None };
    match retry {
        Some(seconds) => failure.hint(format_args!("try again in {seconds} s")),
        None => failure,
    }
}

fn exit_of<B>(answer: &Response<B>) -> u8 {
    let refused = answer.headers().contains_key("x-wiremesh-executed");
    match answer.status().as_u16() {
        503 if refused => NOT_SO,
        400.. => FAILED,
        _ => DONE,
    }
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", as_millis(duration))
}

fn as_millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &[&str]) -> Args {
        let line = std::iter::once("call").chain(line.iter().copied());
        <Line as clap::Parser>::try_parse_from(line).unwrap().args
    }

    /// An agent that gives one answer to everything and remembers the request.
    async fn agent(answer: &'static str) -> (tempfile::TempDir, tokio::sync::oneshot::Receiver<String>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let folder = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(folder.path().join("agent.sock")).unwrap();
        let (seen, request) = tokio::sync::oneshot::channel();
        std::mem::drop(tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 4096];
            let mut read = 0;
            while !String::from_utf8_lossy(&bytes[..read]).contains("\r\n\r\n") {
                read += stream.read(&mut bytes[read..]).await.unwrap();
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = seen.send(String::from_utf8_lossy(&bytes[..read]).into_owned());
        }));
        (folder, request)
    }

    async fn call(line: &[&str], answer: &'static str) -> (Result<u8, Failure>, String, String, String) {
        tokio::task::LocalSet::new()
            .run_until(async {
                let (folder, request) = agent(answer).await;
                let (mut out, mut err) = (Vec::new(), Vec::new());
                let ended = run(&args(line), &folder.path().join("agent.sock"), &mut out, &mut err).await;
                let text = |bytes| String::from_utf8(bytes).unwrap();
                (ended, text(out), text(err), request.await.unwrap())
            })
            .await
    }

    const GOOD: &str = "HTTP/1.1 200 OK\r\nx-wiremesh-worker: bob\r\nx-wiremesh-path: overlay\r\nx-wiremesh-source: \
                        cache\r\nserver-timing: upstream;dur=1.5\r\nserver-timing: worker;dur=2.5\r\ncontent-length: \
                        5\r\n\r\nhello";

    #[tokio::test]
    async fn the_answer_goes_to_standard_output_and_the_route_to_standard_error() {
        let (ended, out, err, request) = call(&["ocr/v1", "--data", "x", "-H", "a: b", "-v"], GOOD).await;

        assert_eq!((ended.unwrap(), out.as_str()), (DONE, "hello"));
        assert!(err.starts_with("* 200 from bob by overlay, known from cache\n"), "{err}");
        assert!(err.contains("*   worker 2.5 ms\n*   upstream 1.5 ms\n"), "{err}");
        assert!(
            request.starts_with("POST /service/ocr/v1 HTTP/1.1\r\n") && request.contains("\r\na: b\r\n"),
            "{request}"
        );
    }

    #[tokio::test]
    async fn as_json_the_answer_comes_with_its_route() {
        let (_, out, _, _) = call(&["ocr", "--json"], GOOD).await;

        let printed: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&printed["worker"], &printed["body"]), (&"bob".into(), &"hello".into()));
        assert_eq!(printed["hops"][0]["name"], "worker");
    }

    #[tokio::test]
    async fn nobody_offers_it_is_exit_2_with_a_hint() {
        let (ended, _, _, _) = call(
            &["ocr"],
            "HTTP/1.1 503 x\r\nx-wiremesh-executed: no\r\nretry-after: 5\r\ncontent-length: 62\r\n\r\n\
             {\"error\":{\"type\":\"service_not_found\",\"message\":\"nobody does\"}} ",
        )
        .await;

        let failure = ended.unwrap_err();
        assert_eq!(failure.exit, NOT_SO);
        assert!(failure.to_string().contains("nobody does") && failure.to_string().contains("in 5 s"), "{failure}");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_an_error_after_what_came() {
        let (ended, out, _, _) = call(&["ocr"], "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await;

        assert_eq!(out, "hello");
        assert!(ended.unwrap_err().to_string().contains("the answer broke off"));
    }

    #[tokio::test]
    async fn an_answer_that_comes_before_the_end_of_the_body_wins() {
        let body = tempfile::NamedTempFile::new().unwrap();
        body.as_file().set_len(16 * 1024 * 1024).unwrap();
        let data = format!("@{}", body.path().display());

        let (ended, _, _, _) = call(
            &["ocr", "--data", &data],
            "HTTP/1.1 429 x\r\nx-wiremesh-executed: no\r\nretry-after: 7\r\nconnection: close\r\n\
             content-length: 61\r\n\r\n{\"error\":{\"type\":\"overloaded\",\"message\":\"all are full\"}}     ",
        )
        .await;

        let failure = ended.unwrap_err().to_string();
        assert!(failure.contains("all are full") && failure.contains("in 7 s"), "{failure}");
    }

    #[tokio::test]
    async fn explaining_asks_for_the_plan_and_sends_nothing() {
        let (ended, out, _, request) = call(
            &["ocr/v1", "--explain"],
            "HTTP/1.1 200 OK\r\ncontent-length: 91\r\n\r\n\
             {\"source\":\"dht\",\"ways\":[{\"path\":\"overlay\",\"worker\":\"bob\",\"load\":0.5,\"age_seconds\":3}]}     ",
        )
        .await;

        assert_eq!(ended.unwrap(), DONE);
        assert!(request.starts_with("GET /routes/ocr HTTP/1.1"), "{request}");
        assert!(out.starts_with("ocr: 1 way, known from dht\n"), "{out}");
    }
}
