//! The NULL channel: the same calls straight to an MDT, through liblustreapi, without lcapd.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use lcap_ffi::llapi::{
    ChangelogHandle, FLAG_BLOCK, FLAG_EXTRA_FLAGS, FLAG_FOLLOW, FLAG_JOBID, FLAG_NID_BE, Llapi,
    OwnedRecord,
};
use lcap_ffi::record::split_len;
use lcap_ffi::{MdtName, RecordIndex};

use crate::api::Stats;
use crate::error::ClientError;

/// One MDT's changelog, opened on this machine.
#[derive(Debug)]
pub struct Direct {
    library: Arc<Llapi>,
    mdt: MdtName,
    log: ChangelogHandle,
    last: RecordIndex,
    stats: Stats,
}

impl Direct {
    /// Opens it at `from`. Every extension is asked for, as lcapd does: the records are the same.
    ///
    /// # Errors
    /// `ENOSYS` if liblustreapi is not there; otherwise as that says.
    pub fn open(mdt: MdtName, from: u64, follow: bool) -> Result<Self, ClientError> {
        let library = Llapi::load().map_err(|error| ClientError::System {
            action: "LCAP_CL_DIRECT".to_owned(),
            reason: error.to_string(),
            errno: libc::ENOSYS,
        })?;
        let all = FLAG_BLOCK | FLAG_JOBID | FLAG_EXTRA_FLAGS | FLAG_NID_BE;
        let flags = if follow { all | FLAG_FOLLOW } else { all };
        let log = library
            .start(&mdt, flags, RecordIndex::new(from))
            .map_err(|error| ClientError::io(format!("changelog of {mdt}"), &error))?;
        Ok(Self { library, mdt, log, last: RecordIndex::ZERO, stats: Stats::default() })
    }

    /// Receives one record, in memory of the library's. `None` is the end.
    ///
    /// # Errors
    /// As liblustreapi says.
    pub fn recv(&mut self) -> Result<Option<OwnedRecord>, ClientError> {
        let what = |error| ClientError::io(format!("changelog of {}", self.mdt), &error);
        let Some(record) = self.log.recv().map_err(what)? else { return Ok(None) };
        if let Ok((len, index)) = split_len(record.as_bytes()) {
            self.last = index;
            self.stats.records += 1;
            self.stats.bytes += len as u64;
            self.stats.last_index = index.get();
            self.stats.head_index = index.get();
        }
        Ok(Some(record))
    }

    /// Clears for a changelog user, at once. Zero means what was received, never everything.
    ///
    /// # Errors
    /// As liblustreapi says.
    pub fn clear(&mut self, mdt: &str, user: &str, upto: u64) -> Result<(), ClientError> {
        let upto = if upto == 0 { self.last } else { RecordIndex::new(upto) };
        if upto == RecordIndex::ZERO {
            return Ok(());
        }
        let mdt: MdtName =
            mdt.parse().map_err(|error| ClientError::BadArgument(format!("`{mdt}`: {error}")))?;
        let what = || format!("clearing the changelog of {mdt} up to {upto} for {user}");
        self.library.clear(&mdt, user, upto).map_err(|error| ClientError::io(what(), &error))
    }

    /// The MDT.
    pub fn mdt(&self) -> &MdtName {
        &self.mdt
    }

    /// The device's descriptor.
    ///
    /// # Errors
    /// If the library has none.
    pub fn fd(&self) -> Result<BorrowedFd<'_>, ClientError> {
        self.log.fd().map_err(|error| ClientError::io("descriptor of the changelog", &error))
    }

    /// Whether the library holds records that it has read already.
    pub fn in_buf(&mut self) -> bool {
        self.log.in_buf()
    }

    /// What was received.
    pub fn stats(&self) -> Stats {
        self.stats
    }
}
