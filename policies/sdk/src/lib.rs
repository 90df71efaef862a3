//! Write a policy module for lcapd in safe Rust.
//!
//! A module is a type that implements [`Policy`], in a crate of type `cdylib`, and one line:
//! [`export_policy!`]. lcapd gives it records with [`Policy::enqueue`] and asks for decisions with
//! [`Policy::dequeue`]: each record's token is emitted or dropped, now or later, in any order. The
//! contract behind it is `include/lcap_policy.h`; `docs/policies.md` is the guide.
//!
//! ```
//! use lcap_policy_sdk::{export_policy, CStr, Failure, Host, Nanos, NoConfig, Out, Policy, Records};
//!
//! /// Lets pass what was done to files whose name begins with a dot, and nothing else.
//! #[derive(Debug, Default)]
//! struct Dotted {
//!     decided: Vec<(u64, bool)>,
//! }
//!
//! impl Policy for Dotted {
//!     const NAME: &'static CStr = c"dotted";
//!     const SUMMARY: &'static str = "emits records of dotted names only";
//!     type Config = NoConfig;
//!
//!     fn create(_: NoConfig, _: &Host) -> Result<Self, Failure> {
//!         Ok(Self::default())
//!     }
//!
//!     fn enqueue(&mut self, records: Records<'_>, _: Nanos) -> Result<(), Failure> {
//!         for item in records {
//!             self.decided.push((item.token, item.record()?.name().starts_with(b".")));
//!         }
//!         Ok(())
//!     }
//!
//!     fn dequeue(&mut self, _: Nanos, _: bool, out: &mut Out) -> Result<Option<Nanos>, Failure> {
//!         for (token, dotted) in self.decided.drain(..) {
//!             if dotted { out.emit(token) } else { out.drop(token) }
//!         }
//!         Ok(None) // nothing is held: no need to be called again before the next records
//!     }
//! }
//!
//! export_policy!(Dotted);
//! ```

mod build;
mod glue;
#[cfg(feature = "harness")]
pub mod harness;
mod options;
mod out;
mod policy;
mod taken;

pub use std::ffi::CStr;

pub use build::RecordBuilder;
#[doc(hidden)]
pub use glue::Table;
pub use lcap_ffi::policy as abi;
pub use lcap_ffi::record;
pub use lcap_ffi::{Fid, MdtName, Record, RecordError, RecordIndex, RecordType, name};
pub use options::{Choice, NoConfig, OptionKind, PolicyOption, Size, Span};
pub use out::Out;
pub use policy::{Failure, Host, Item, Nanos, Policy, Reader, Records};
pub use serde;
pub use serde_json;
pub use taken::Taken;

/// Makes the crate a policy module: exports `lcap_policy_entry` for a type that is a [`Policy`].
///
/// Use it once in a crate whose type is `cdylib`. The crate may `deny(unsafe_code)`, not `forbid` it:
/// exporting a symbol counts as unsafe.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty) => {
        /// The symbol that lcapd looks for.
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        pub extern "C" fn lcap_policy_entry() -> *const $crate::abi::PolicyOps {
            const VERSION: &$crate::CStr = match $crate::CStr::from_bytes_with_nul(
                concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes(),
            ) {
                Ok(version) => version,
                Err(_) => c"",
            };
            static TABLE: $crate::Table = $crate::Table::of::<$policy>(VERSION);
            TABLE.as_ptr()
        }
    };
}
