//! Files: [`open`] and [`save`], and the same on bytes in memory ([`decode`], [`encode`]).
//!
//! A picture is recognised by its content, never by its name; a file is written whole or not at all.

mod format;
mod open;
mod save;

pub use format::{Format, is_picture_name};
pub use open::{Limits, decode, open, open_within, size};
pub use save::{encode, save};
