//! `lcap keygen`: CURVE keys for lcapd and its clients.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use lcapclient::KeyPair;

#[derive(Args)]
pub(crate) struct KeygenArgs {
    /// Print the public key of a file that is there instead of making one.
    #[arg(long)]
    public: bool,
    /// One JSON document.
    #[arg(long)]
    json: bool,
    /// The file: its owner alone can read it. One that exists is left as it is.
    file: PathBuf,
}

pub(crate) fn run(args: &KeygenArgs) -> Result<()> {
    let pair = if args.public {
        KeyPair::load(&args.file)?
    } else {
        let pair = KeyPair::generate()?;
        pair.create(&args.file)?;
        pair
    };
    let public = pair.public.to_z85();
    if args.json {
        let file = args.file.to_string_lossy();
        println!("{}", serde_json::json!({ "file": file, "public_key": public }));
    } else {
        println!("{public}");
    }
    Ok(())
}
