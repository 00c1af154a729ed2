//! Names of fields, shared: a device sends the same few with every publish, and each instance keeps
//! its last payload.
//!
//! A small table a thread, addressed by a hash of the name; of two names in one place the later stays.
//! Never: more than [`PLACES`] names of [`NAME_BYTES_MAX`] bytes a thread; says nothing about any payload.

use std::cell::RefCell;
use std::sync::Arc;

/// A power of two.
const PLACES: usize = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 9;
/// Longer names are not shared.
const NAME_BYTES_MAX: usize = 48;

thread_local! {
    static NAMES: RefCell<Vec<Option<Arc<str>>>> = RefCell::new(vec![None; PLACES]);
}

/// `name`, sharing its text with others that were the same.
pub fn shared(name: &str) -> Arc<str> {
    if name.len() > NAME_BYTES_MAX {
        return name.into();
    }
    NAMES.with_borrow_mut(|names| match names.get_mut(place(name)) {
        Some(Some(known)) if **known == *name => Arc::clone(known),
        Some(place) => Arc::clone(place.insert(name.into())),
        None => name.into(),
    })
}

/// FNV-1a, the best bits of it.
fn place(name: &str) -> usize {
    let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let hash = name.bytes().fold(0x811c_9dc5, mix);
    usize::try_from(hash.wrapping_mul(0x9e37_79b1) >> (u32::BITS - PLACE_BITS)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_names_share_their_text() {
        assert!(Arc::ptr_eq(&shared("temp_c"), &shared("temp_c")));
        for number in 0..10_000 {
            let name = format!("field{number}");
            assert_eq!(*shared(&name), *name);
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        assert!(!Arc::ptr_eq(&shared(&long), &shared(&long)));
    }
}
