//! Who a wiremesh node is, and who says so.

mod time;

pub use time::UnixTime;
