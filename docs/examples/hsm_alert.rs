//! Tells of every HSM action that fails: `hsm_alert [-f] MDT`
//!
//! `-f` goes on with what happens from now on. `LCAP_REC_URI` names the server, `LCAP_STREAM` the stream
//! (`hsm` unless set), `LCAP_READER` a registered reader: with one, no failure is missed and none is
//! told twice, whoever dies and restarts.

use std::error::Error;

use lcap_client::{Builder, EventKind, StatusCode};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (follow, mdt) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["-f", mdt] => (true, mdt),
        [mdt] => (false, mdt),
        _ => return Err("usage: hsm_alert [-f] MDT".into()),
    };
    let stream = std::env::var("LCAP_STREAM").unwrap_or_else(|_| "hsm".to_owned());
    let builder = Builder::new(mdt.parse()?).stream(&stream).follow(follow);
    let mut client = builder.connect()?;
    while let Some(event) = client.recv_hsm()? {
        let fields = event.fields;
        // Once for each action: the event that made it fail, not the purge that comes later.
        let failed = event.kind != EventKind::Purged && fields.status == StatusCode::FAILED;
        if failed && event.last_status != StatusCode::FAILED {
            println!(
                "{} {} of {} in archive {} FAILED (cookie {:#x})",
                mdt, fields.action, fields.fid, fields.archive_id, fields.cookie
            );
        }
        let index = event.index;
        client.clear(index)?; // cheap: the server is told every so often
    }
    Ok(())
}
