//! The `reclair` program.
fn main() {}
