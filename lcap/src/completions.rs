//! `lcap completions`, and the manual pages of the commands: both from what clap knows of the command
//! line, so that they are never out of date.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

#[derive(Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Prints a script that the shell reads.
pub(crate) fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Args::command(), "lcap", &mut script);
    crate::print(&String::from_utf8(script)?)
}

#[derive(Args)]
pub(crate) struct ManArgs {
    /// Directory for lcap.1, lcap-changelog.1, …
    directory: PathBuf,
}

/// Writes a page for each command: `make install` does.
pub(crate) fn man(args: &ManArgs) -> Result<()> {
    let dir = &args.directory;
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(crate::Args::command(), dir))
        .with_context(|| format!("cannot write to {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_has_a_script_and_every_command_a_page() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut crate::Args::command(), "lcap", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("changelog"), "{shell}");
        }
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs { directory: dir.path().to_owned() }).unwrap();
        let shown = crate::Args::command();
        let shown = shown.get_subcommands().filter(|command| !command.is_hide_set());
        for command in shown {
            let name = format!("lcap-{}.1", command.get_name());
            assert!(dir.path().join(&name).is_file(), "{name}");
        }
    }
}
