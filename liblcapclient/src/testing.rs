//! Records and messages for this crate's own tests.
#![forbid(unsafe_code)]

use lcap_ffi::RecordIndex;
use lcap_ffi::record::records;
use lcap_wire::{Header, Kind};

/// A small record with that index: 64 bytes of head and a name.
pub(crate) fn record(index: u64) -> Vec<u8> {
    let name = format!("f{index}");
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&u16::try_from(name.len()).unwrap().to_ne_bytes());
    bytes.extend_from_slice(&0x1000_u16.to_ne_bytes());
    bytes.extend_from_slice(&1_u32.to_ne_bytes());
    bytes.extend_from_slice(&index.to_ne_bytes());
    bytes.resize(64, 0);
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

/// A message with those records; sequence and epoch are for the caller to fill in.
pub(crate) fn message(low: u64, indexes: &[u64]) -> (Header, Vec<u8>) {
    let body: Vec<u8> = indexes.iter().flat_map(|&index| record(index)).collect();
    let mut header = Header::for_body(Kind::Records, &body);
    header.low = RecordIndex::new(low);
    header.first = RecordIndex::new(indexes.iter().copied().min().unwrap_or(0));
    header.last = RecordIndex::new(indexes.iter().copied().max().unwrap_or(0));
    header.count = u32::try_from(indexes.len()).unwrap();
    (header, body)
}

/// Indexes of the records in `body`.
pub(crate) fn records_of(body: &[u8]) -> Vec<u64> {
    records(body).map(|record| record.unwrap().index().get()).collect()
}
