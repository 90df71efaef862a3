//! wip
use clap::Args;
#[derive(Args)]
pub(crate) struct DemoArgs {}
pub(crate) fn run(_: &DemoArgs) -> anyhow::Result<()> { Ok(()) }
