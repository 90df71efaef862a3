//! `lcap hsm stats`: the live actions as one JSON document, in the form of hsm-stream-stats.
#![forbid(unsafe_code)]

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::counts::Counts;
use super::watch::{Begin, From, News, Watch, now_ms};

#[derive(Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    from: From,
}

#[derive(Serialize)]
struct Stats {
    summary: Summary,
    streams: Vec<StreamStats>,
    breakdown: Vec<Count>,
}

#[derive(Serialize)]
struct Summary {
    total_live_actions: u64,
    oldest_live_action_age_seconds: u64,
    total_events_replayed: u64,
    total_stream_entries: u64,
}

#[derive(Serialize)]
struct StreamStats {
    mdt: String,
    length: u64,
    age_seconds: u64,
    newest_entry_age_seconds: u64,
}

#[derive(Serialize)]
struct Count {
    mdt: String,
    action: String,
    status: String,
    count: u64,
}

pub(crate) fn run(args: &StatsArgs) -> Result<()> {
    let watch = Watch::start(&args.from, Begin::State, false)?;
    let mut counts = Counts::default();
    while let Ok(news) = watch.news.recv() {
        if let News::Trouble(Some(error)) = news {
            bail!("{}: {error}", watch.place);
        }
        counts.take(news);
    }
    if counts.malformed > 0 {
        eprintln!("lcap: {} entries are no events, passed over", counts.malformed);
    }
    println!("{}", serde_json::to_string_pretty(&stats(&counts, now_ms()))?);
    Ok(())
}

fn stats(counts: &Counts, now_ms: u64) -> Stats {
    let age = |ms: u64| now_ms.saturating_sub(ms) / 1000;
    let mut streams = Vec::new();
    for (mdt, stream) in &counts.streams {
        let edges = stream.edges_ms();
        streams.push(StreamStats {
            mdt: mdt.to_string(),
            length: stream.length,
            age_seconds: edges.map_or(0, |(first, last)| last.saturating_sub(first) / 1000),
            newest_entry_age_seconds: edges.map_or(0, |(_, last)| age(last)),
        });
    }
    let or_na = |word: &str| if word.is_empty() { "N/A" } else { word }.to_owned();
    let live = counts.rows().into_iter().filter(|(_, figures)| figures.count > 0);
    let breakdown = live.map(|(row, figures)| Count {
        mdt: row.mdt.to_string(),
        action: or_na(&row.action),
        status: or_na(&row.status),
        count: figures.count,
    });
    Stats {
        summary: Summary {
            total_live_actions: u64::try_from(counts.n_live()).unwrap_or(u64::MAX),
            oldest_live_action_age_seconds: counts.oldest().next().map_or(0, |(ms, ..)| age(ms)),
            total_events_replayed: counts.n_events,
            total_stream_entries: counts.streams.values().map(|stream| stream.length).sum(),
        },
        breakdown: breakdown.collect(),
        streams,
    }
}
