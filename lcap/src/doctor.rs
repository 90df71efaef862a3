//! `lcap doctor`: what is wrong with this installation, and what to type.
//!
//! It looks and changes nothing: at the configuration, at this machine, at the parameters of the MDTs
//! (which are on their MDS), and at what lcapd says of itself.
#![forbid(unsafe_code)]

mod lustre;
mod machine;
mod params;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use lcap_wire::control::Status;
use lcapclient::Control;
use lcapd::config::Config;
use lcapd::source::SourceUri;

use lustre::Ours;
use params::Params;
use report::Report;

#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// lcapd's configuration [default: /etc/lcap/lcapd.toml].
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// What `lctl get_param mdd.*.changelog_* mdt.*.hsm_control` printed on an MDS, in a file.
    #[arg(long, value_name = "FILE")]
    params: Option<PathBuf>,
    /// Look at /etc, /sys, /proc and /dev below this directory, e.g. an unpacked sosreport.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Do not ask lcapd.
    #[arg(long)]
    offline: bool,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    let report = examine(args)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        crate::print(&report.text())?;
    }
    match report.errors() {
        0 => Ok(()),
        1 => bail!("one thing is wrong"),
        n => bail!("{n} things are wrong"),
    }
}

fn examine(args: &DoctorArgs) -> Result<Report> {
    let params = match &args.params {
        None => Params::Live { root: args.root.clone() },
        Some(file) => Params::printed(
            &fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
        ),
    };
    let mut report = Report::default();
    let config = configuration(&mut report, args);
    let is_root = machine::rights(&mut report, &args.root);
    machine::release(&mut report, &args.root);
    if let Some(config) = &config {
        machine::limits(&mut report, &args.root, &config.server);
        machine::state_dir(&mut report, &args.root, &config.server);
        for mdt in &config.mdts {
            let dir = match &mdt.source {
                SourceUri::Device(dir) => dir,
                SourceUri::Llapi => Path::new(""),
                other => {
                    report.ok(mdt.name.as_str(), format!("not Lustre's log here: {other}"));
                    continue;
                }
            };
            if is_root && !dir.as_os_str().is_empty() {
                let dir = args.root.join(dir.strip_prefix("/").unwrap_or(dir));
                machine::device(
                    &mut report,
                    mdt.name.as_str(),
                    &dir.join(format!("changelog-{}", mdt.name)),
                );
            }
            let ours = Ours {
                mdt: mdt.name.as_str(),
                user: mdt.user.as_deref(),
                keep_alive: config.server.clear_keep_alive,
            };
            lustre::check(&mut report, &params, ours);
        }
    }
    if !args.offline {
        daemon(&mut report, config.as_ref());
    }
    Ok(report)
}

fn configuration(report: &mut Report, args: &DoctorArgs) -> Option<Config> {
    let about = "configuration";
    let usual = || args.root.join("etc/lcap/lcapd.toml");
    let file = args.config.clone().unwrap_or_else(usual);
    let shown = file.display();
    if !file.exists() {
        report.error(
            about,
            format!("there is no {shown}"),
            format!("cp /etc/lcap/lcapd.toml.sample {shown}    # then see lcapd.toml(5)"),
        );
        return None;
    }
    match Config::load(&file) {
        Ok(config) => {
            report.ok(about, format!("{shown}"));
            for warning in config.warnings() {
                report.note(about, warning, "");
            }
            Some(config)
        }
        Err(error) => {
            report.error(about, error.to_string(), format!("lcapd --check -c {shown}"));
            None
        }
    }
}

/// Asks lcapd: where the environment says, or else where the configuration does.
fn daemon(report: &mut Report, config: Option<&Config>) {
    let about = "lcapd";
    let control = match config {
        Some(config) if std::env::var_os("LCAP_REC_URI").is_none() => {
            let endpoint = config.server.control.replace("//*:", "//localhost:");
            Control::new(&endpoint.replace("//0.0.0.0:", "//localhost:"), None, PATIENCE)
        }
        _ => Control::from_env(),
    };
    match control.and_then(|mut control| control.status()) {
        Ok(status) => {
            report.ok(about, format!("version {} answers", status.version));
            if status.version != env!("CARGO_PKG_VERSION") {
                report.note(
                    about,
                    format!("this lcap is {}", env!("CARGO_PKG_VERSION")),
                    "systemctl restart lcapd    # if it was upgraded",
                );
            }
            states(report, &status);
        }
        Err(error) => {
            report.error(
                about,
                error.to_string(),
                "systemctl status lcapd; journalctl -u lcapd -n 30",
            );
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(2);

fn states(report: &mut Report, status: &Status) {
    if let Some(error) = &status.store_error {
        report.error(
            "state",
            format!("lcapd cannot write it, so it clears nothing: {error}"),
            "make room; it goes on by itself",
        );
    }
    for mdt in &status.mdts {
        let reason = mdt.reason.as_deref().unwrap_or_default();
        match mdt.state.as_str() {
            "reading" | "idle" => {
                report.ok(&mdt.name, format!("{}; {} records behind", mdt.state, mdt.lag_records));
            }
            "waiting" => report.warning(
                &mdt.name,
                format!("lcapd waits for it: {reason}"),
                "journalctl -u lcapd    # tried again by itself, at least every 30 s",
            ),
            other => report.error(
                &mdt.name,
                format!("{other}: {reason}"),
                "man lcapd    # under \"What to do\"",
            ),
        }
        if mdt.gaps > 0 {
            report.warning(
                &mdt.name,
                format!("{} records were lost before lcapd could read them", mdt.gaps),
                "journalctl -u lcapd | grep gap    # then rescan what mirrors the file system",
            );
        }
    }
    for stream in &status.streams {
        for policy in stream.policies.iter().filter(|policy| policy.state != "active") {
            let why = policy.fault.as_deref().unwrap_or_default();
            report.error(
                &stream.name,
                format!("policy {} is {}: {why}", policy.module, policy.state),
                format!("lcap policy reload {}    # when the module is mended", stream.name),
            );
        }
        for reader in &stream.readers {
            let (name, about) = (&reader.name, &stream.name);
            let behind = reader.lag_records;
            if reader.suspended {
                report.error(
                    about,
                    format!("reader {name} is suspended: its records are not kept any more"),
                    format!(
                        "lcap reader deregister {about} {name}\nlcap reader register {about} \
                         {name}    # if it is still wanted; then rescan"
                    ),
                );
            } else if reader.sessions == 0 && behind > 0 && reader.idle_seconds > 3600 {
                report.warning(
                    about,
                    format!(
                        "reader {name} has been away for {} h and holds {behind} records on the MDTs",
                        reader.idle_seconds / 3600
                    ),
                    format!("start its program, or:  lcap reader deregister {about} {name}"),
                );
            }
        }
    }
    let keeps = |stream: &lcap_wire::control::StreamStatus| {
        stream.delivery == lcap_wire::control::Delivery::Queue || !stream.readers.is_empty()
    };
    if !status.streams.iter().any(keeps) {
        report.warning(
            "lcapd",
            "no stream has a reader: nothing is kept for anybody, and nothing is ever cleared",
            "lcap reader register STREAM NAME",
        );
    }
}

#[cfg(test)]
mod tests;
