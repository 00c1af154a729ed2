//! The `watchbell` command.

fn main() {}
