//! `lcap clear`: acknowledgement by hand, like `lfs changelog_clear`.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::Args;
use lcap_ffi::MdtName;

#[derive(Args)]
pub(crate) struct ClearArgs {
    /// Stream of the reader; needed only if two streams have one of that name.
    #[arg(long)]
    stream: Option<String>,
    /// MDT, e.g. lustre-MDT0000.
    mdt: MdtName,
    /// The registered reader.
    reader: String,
    /// Last index that is done with; 0 is everything that was delivered.
    endrec: u64,
}

pub(crate) fn run(args: &ClearArgs) -> Result<()> {
    let stream = args.stream.as_deref();
    Ok(crate::control()?.clear(stream, args.mdt.as_str(), &args.reader, args.endrec)?)
}
