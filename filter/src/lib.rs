//! The filter language: which records, in one expression.
//!
//! The `filter` policy module and the filters that consumers give at start are written in it. An
//! expression is checked and compiled once ([`Filter`]: `FromStr`) and then asked of each record.
//!
//! ```text
//! type in (CREAT, UNLNK) and not name ~ *.tmp
//! uid = 1000 or gid in (100, 2000-2999)
//! type = HSM and (hsm = archive and hsm_error != 0 or hsm_dirty)
//! nid in (10.0.0.0/8@tcp, *@o2ib1) and mdt = lustre-MDT0000
//! ```
//!
//! * `and`, `or`, `not` (also `&&`, `||`, `!`) and parentheses; `and` binds closer than `or`.
//! * A test is `FIELD OP VALUE`, `FIELD in (VALUE, …)`, or a bare `FIELD`: it is true or, for
//!   others than flags, the record has it. `docs/policies.md` lists fields and operators.
//! * A record without the field fails the test; `!=`, `!~` and `not in` are the opposites of `=`, `~`
//!   and `in`, and so succeed.
//!
//! ```
//! let filter: lcap_filter::Filter = "type = CREAT and name ~ \"*.h5\"".parse()?;
//! # let record = lcap_policy_sdk::RecordBuilder::new(lcap_ffi::RecordType::CREATE).name(b"a.h5").build();
//! let (record, _) = lcap_ffi::record::split_first(&record)?;
//! assert!(filter.matches(&record, "lustre-MDT0000"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod eval;
mod glob;
mod lex;
mod nid;
mod parse;

use std::fmt;
use std::str::FromStr;

use lcap_ffi::Record;

use eval::Expr;
pub use glob::Glob;
pub use nid::{BadNidRange, NidRange};

/// Longest expression: it may come from any client.
pub const MAX_EXPRESSION_BYTES: usize = 4096;

/// A compiled expression.
///
/// Filters are equal if their expressions are, however they were spelled; so equal filters can be
/// evaluated once. `Display` gives the canonical spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Filter(Expr);

impl Filter {
    /// Whether the record passes. `mdt` is the name of its MDT.
    #[inline]
    pub fn matches(&self, record: &Record<'_>, mdt: &str) -> bool {
        self.0.holds(record, mdt)
    }
}

/// An expression that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter, at character {}: {problem}", at + 1)]
pub struct FilterError {
    /// Offset in bytes of what is wrong.
    pub at: usize,
    /// What is wrong there.
    pub problem: String,
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        parse::parse(text).map(Self)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests;
