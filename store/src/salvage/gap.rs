//! Where reading can go on behind a block that can't be read.
//!
//! RocksDB does not say which keys a block has. But a seek behind its last key succeeds and one
//! among its keys does not: so the end of a gap is searched for by halves, in the space of keys,
//! first near and then further away. Between two gaps that lie close to each other something whole
//! may be skipped; nothing that can't be read is ever taken for read.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::db::{Db, Family, Walk};
use crate::error::Error;

/// Bytes of a key that are searched at a time, as one number.
const DIGITS: usize = 16;

/// How often the search goes on with further bytes.
const ROUNDS_MAX: usize = 33;

/// Finds the first key from `from` on, and before `end`, from which rows can be read again. `None`:
/// there is none.
pub(super) fn end_of(
    db: &Arc<Db>,
    family: &Family,
    from: &[u8],
    end: &[u8],
) -> Result<Option<Vec<u8>>, Error> {
    let readable = |at: &[u8]| -> Result<bool, Error> {
        let range = (at.to_vec(), end.to_vec());
        match db.walk(family, range, Walk::Few, &mut |_, _| Ok(ControlFlow::Break(()))) {
            Ok(()) => Ok(true),
            Err(Error::Corrupt { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    };
    search(from, end, readable)
}

/// The search, by any way to look.
fn search(
    from: &[u8],
    end: &[u8],
    mut readable: impl FnMut(&[u8]) -> Result<bool, Error>,
) -> Result<Option<Vec<u8>>, Error> {
    let mut prefix: Vec<u8> =
        from.iter().zip(end).take_while(|(a, b)| a == b).map(|(a, _)| *a).collect();
    let mut found = None;
    for _ in 0..ROUNDS_MAX {
        // Nothing behind the prefix: what is found lies before `end`, or before the last find.
        let top = if found.is_none() { number(end, prefix.len()) } else { u128::MAX };
        let base = if from.starts_with(&prefix) { number(from, prefix.len()) } else { 0 };
        let at = |number: u128| {
            let key = [&prefix[..], &number.to_be_bytes()].concat();
            if key.as_slice() < from { from.to_vec() } else { key }
        };
        let (mut low, mut high, mut is_end) = (base, top, true);
        for step in 0..u128::BITS {
            let next = base.saturating_add(1 << step);
            if next >= top {
                break;
            }
            if readable(&at(next))? {
                (high, is_end) = (next, false);
                break;
            }
            low = next;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match readable(&at(middle))? {
                true => (high, is_end) = (middle, false),
                false => low = middle,
            }
        }
        if !is_end {
            found = Some(at(high));
        }
        // The gap ends among the keys that begin like the last one that can't be read.
        let deeper = at(low);
        prefix = deeper[..(prefix.len() + DIGITS).min(deeper.len())].to_vec();
        if is_end && found.is_none() && low + 1 < top {
            break;
        }
    }
    Ok(found)
}

/// Some bytes of a key as a number.
fn number(key: &[u8], start: usize) -> u128 {
    let mut digits = [0; DIGITS];
    let rest = key.get(start..).unwrap_or_default();
    let len = rest.len().min(DIGITS);
    digits[..len].copy_from_slice(&rest[..len]);
    u128::from_be_bytes(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys of which some lie in blocks that can't be read: a seek fails if the first key at or
    /// behind it is one of them.
    fn resumes(keys: &[&str], bad: std::ops::Range<usize>) -> Option<String> {
        let from = match bad.start {
            0 => b"S".to_vec(),
            first => [keys[first - 1].as_bytes(), &[0]].concat(),
        };
        let found = search(&from, b"T", |at| {
            let first = keys.iter().position(|key| key.as_bytes() >= at);
            Ok(first.is_none_or(|first| !bad.contains(&first)))
        });
        let found = found.expect("looking does not fail")?;
        keys.iter().find(|key| key.as_bytes() >= &found[..]).map(|key| (*key).to_owned())
    }

    #[test]
    fn reading_goes_on_at_the_first_key_behind_a_gap() {
        let names: Vec<String> =
            (0..200).map(|n| format!("Scollection-one/customer-{n:09}")).collect();
        let keys: Vec<&str> = names.iter().map(String::as_str).collect();
        for bad in [0..1, 0..50, 10..11, 10..20, 150..199] {
            assert_eq!(resumes(&keys, bad.clone()), Some(names[bad.end].clone()), "{bad:?}");
        }
    }

    #[test]
    fn a_gap_to_the_end_has_no_end_before_it() {
        let keys = ["Sa", "Sb", "Sc"];
        assert_eq!(resumes(&keys, 1..3), None);
        assert_eq!(resumes(&keys, 0..2), Some("Sc".into()));
    }
}
