//! `lcap reader`: the virtual changelog users.
#![forbid(unsafe_code)]

use std::str::FromStr;

use anyhow::Result;
use clap::{Args, Subcommand};
use lcap_wire::control::{From, ReaderStatus};

#[derive(Args)]
pub(crate) struct ReaderArgs {
    #[command(subcommand)]
    command: ReaderCommand,
}

#[derive(Subcommand)]
enum ReaderCommand {
    /// Create a reader of a broadcast stream: from then on records are kept until it has them.
    Register {
        /// Record types that it wants, e.g. CREAT,UNLNK [default: all].
        #[arg(long, value_delimiter = ',')]
        mask: Vec<String>,
        /// Where it begins: now, oldest, or an index.
        #[arg(long, default_value = "now")]
        from: Start,
        /// The stream.
        stream: String,
        /// Name of the reader.
        name: String,
    },
    /// Remove a reader: nothing is kept for it any more.
    Deregister {
        /// The stream.
        stream: String,
        /// Name of the reader.
        name: String,
    },
    /// List readers and how far they are.
    List {
        /// One JSON document.
        #[arg(long)]
        json: bool,
        /// Only this stream's.
        stream: Option<String>,
    },
}

#[derive(Clone, Copy)]
struct Start(From);

impl FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "now" => Ok(Self(From::Now)),
            "oldest" => Ok(Self(From::Oldest)),
            index => index
                .parse()
                .map(|index| Self(From::Index(index)))
                .map_err(|_| "expected now, oldest, or an index".to_owned()),
        }
    }
}

pub(crate) fn run(args: &ReaderArgs) -> Result<()> {
    let mut control = crate::control()?;
    match &args.command {
        ReaderCommand::Register { mask, from, stream, name } => {
            control.register(stream, name, mask.clone(), from.0)?;
        }
        ReaderCommand::Deregister { stream, name } => control.deregister(stream, name)?,
        ReaderCommand::List { json, stream } => {
            let readers = control.readers(stream.as_deref())?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&readers)?);
            } else {
                print_readers(&readers);
            }
        }
    }
    Ok(())
}

/// A line per reader and MDT.
pub(crate) fn print_readers(readers: &[ReaderStatus]) {
    println!("{:<16} {:<20} {:<20} {:>14} {:>10}", "STREAM", "READER", "MDT", "WATERMARK", "STATE");
    for reader in readers {
        let state = match (reader.suspended, reader.sessions) {
            (true, _) => "suspended".to_owned(),
            (false, 0) => format!("idle {}s", reader.idle_seconds),
            (false, _) => "connected".to_owned(),
        };
        for (mdt, watermark) in &reader.watermark {
            let (stream, name) = (&reader.stream, &reader.name);
            println!("{stream:<16} {name:<20} {mdt:<20} {watermark:>14} {state:>10}");
        }
    }
}
