//! A gigabyte in and a gigabyte out over the overlay: streamed, not collected.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use netns_tests::{client, story_within};

const BYTES: u64 = 1_000_000_000;
const PIECE_BYTES: u64 = 50_000;
const LIMIT: Duration = Duration::from_secs(300);
/// What an agent may have had at its peak, whatever passed through it.
const MEMORY_KIB: u64 = 80_000;

#[test]
fn a_gigabyte_streams_in_and_out_in_flat_memory() {
    story_within(LIMIT, |lab| {
        let coordinator = lab.coordinator()?;
        let mut caller = lab.node("caller")?.join(&coordinator)?;
        let mut worker = lab.node("worker")?.serving("files").join(&coordinator)?;
        worker.expect_published()?;

        let came = caller.node.block_on(|| async {
            let url = format!("http://127.0.0.1:8000/service/files/download?bytes={BYTES}");
            let answer = client()?.get(url).send().await?.error_for_status()?;
            let count = |sum, piece: Bytes| async move { Ok(sum + piece.len() as u64) };
            Ok(answer.bytes_stream().try_fold(0, count).await?)
        })?;
        let went: serde_json::Value = caller.node.block_on(|| async {
            let piece = Bytes::from(vec![0x77; PIECE_BYTES as usize]);
            let pieces = stream::iter(0..BYTES / PIECE_BYTES).map(move |_| Ok::<_, std::io::Error>(piece.clone()));
            let upload = client()?.post("http://127.0.0.1:8000/service/files/upload");
            let answer = upload.body(reqwest::Body::wrap_stream(pieces)).send().await?.error_for_status()?;
            Ok(serde_json::from_slice(&answer.bytes().await?)?)
        })?;

        assert_eq!(came, BYTES);
        assert_eq!(went["bytes"], BYTES);
        for agent in [&mut caller, &mut worker] {
            let peak = agent.running()?.peak_memory_kib()?;
            assert!(peak < MEMORY_KIB, "{} had {peak} KiB", agent.name());
        }
        Ok(())
    });
}
