//! Where a record is kept: under which key, and in which part of the cache.
//!
//! A collection's records are at its *home*, which is in one part of the cache. When a collection
//! is pinned, let go or dropped it gets another home, with a number that is never used again:
//! whoever still puts something into the old one puts it where nobody looks.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use quick_cache::DefaultHashBuilder;

use crate::ids::CollectionId;
use crate::keys;

/// Bytes of a place's key in front of the row's: the space, the home's number.
const PREFIX_BYTES: usize = 8 + 4;

/// A replica's part of the cache, named by a number that is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space(pub u64);

/// Where a collection's records are kept. The default is the first one of every collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Home {
    number: u32,
    pub pinned: bool,
}

/// The key of a place: the space, the home, then the row's key; with its hash, taken once.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    hash: u64,
    home: Home,
    key: Vec<u8>,
}

impl Place {
    fn new(space: Space, home: Home, row: &[u8], rest: &[u8], hashes: &DefaultHashBuilder) -> Self {
        let mut prefix = [0; PREFIX_BYTES];
        prefix[..8].copy_from_slice(&space.0.to_be_bytes());
        prefix[8..].copy_from_slice(&home.number.to_be_bytes());
        let mut key = Vec::with_capacity(PREFIX_BYTES + row.len() + rest.len());
        key.extend_from_slice(&prefix);
        key.extend_from_slice(row);
        key.extend_from_slice(rest);
        Place { hash: hashes.hash_one(&key[..]), home, key }
    }

    /// The row's key.
    pub fn row(&self) -> &[u8] {
        &self.key[PREFIX_BYTES..]
    }

    /// Whose state it is.
    pub fn collection(&self) -> CollectionId {
        keys::collection_of(self.row())
    }

    /// Where it is.
    pub fn home(&self) -> Home {
        self.home
    }

    /// In which space.
    pub fn space(&self) -> Space {
        let (space, _) = self.key.split_first_chunk().expect("a key begins with its space");
        Space(u64::from_be_bytes(*space))
    }

    /// Bytes of the key.
    pub fn len(&self) -> usize {
        self.key.len()
    }

    /// A number that is spread evenly over all places, in all of its bits.
    pub fn spread(&self) -> u64 {
        // The hash is made for tables; its high bits alone may be spread less well.
        (self.hash ^ (self.hash >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

impl PartialEq for Place {
    /// The key has the space and the home.
    fn eq(&self, other: &Place) -> bool {
        self.hash == other.hash && self.key == other.key
    }
}

impl Eq for Place {}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Takes the hash that a place carries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Carried(u64);

impl BuildHasher for Carried {
    type Hasher = Carried;

    fn build_hasher(&self) -> Carried {
        Carried(0)
    }
}

impl Hasher for Carried {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Where the records of all collections are.
#[derive(Default)]
pub(crate) struct Homes {
    hashes: DefaultHashBuilder,
    /// Some collection has left its first home.
    moved: AtomicBool,
    homes: ArcSwap<HashMap<CollectionId, Home>>,
    /// How many homes were given out.
    numbers: Mutex<u32>,
}

impl Homes {
    /// The place of a row.
    pub fn place(&self, space: Space, row: &[u8]) -> Place {
        let home = self.of(keys::collection_of(row));
        Place::new(space, home, row, &[], &self.hashes)
    }

    /// The place of a state.
    pub fn place_of(&self, space: Space, collection: CollectionId, key: &[u8]) -> Place {
        let prefix = keys::record_prefix(collection);
        Place::new(space, self.of(collection), &prefix, key, &self.hashes)
    }

    /// Where a collection's records are now.
    pub fn of(&self, collection: CollectionId) -> Home {
        match self.moved.load(Ordering::SeqCst) {
            false => Home::default(),
            true => self.homes.load().get(&collection).copied().unwrap_or_default(),
        }
    }

    /// Whether any collection is pinned.
    pub fn any_pinned(&self) -> bool {
        self.moved.load(Ordering::SeqCst) && self.homes.load().values().any(|home| home.pinned)
    }

    /// Gives these collections homes that they never had.
    pub fn leave(&self, collections: &HashSet<CollectionId>) {
        let mut numbers = self.numbers.lock();
        let mut homes = HashMap::clone(&self.homes.load());
        for collection in collections {
            *numbers += 1;
            homes.entry(*collection).or_default().number = *numbers;
        }
        self.homes.store(homes.into());
        self.moved.store(true, Ordering::SeqCst);
    }

    /// Pins these collections and no others; answers those that have moved.
    pub fn pin(&self, pinned: &HashSet<CollectionId>) -> HashSet<CollectionId> {
        let mut numbers = self.numbers.lock();
        let mut homes = HashMap::clone(&self.homes.load());
        let known: HashSet<CollectionId> = homes.keys().copied().collect();
        let mut moved = HashSet::new();
        for collection in known.union(pinned) {
            let home = homes.entry(*collection).or_default();
            let wanted = pinned.contains(collection);
            if home.pinned != wanted {
                *numbers += 1;
                *home = Home { number: *numbers, pinned: wanted };
                moved.insert(*collection);
            }
        }
        if !moved.is_empty() {
            self.homes.store(homes.into());
            self.moved.store(true, Ordering::SeqCst);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_never_used_again() {
        let homes = Homes::default();
        let (first, second) = (CollectionId(7), CollectionId(8));
        let mut seen = vec![homes.of(first)];
        for round in 0..4 {
            let pinned = if round % 2 == 0 { HashSet::from([first]) } else { HashSet::new() };
            assert_eq!(homes.pin(&pinned), HashSet::from([first]));
            assert!(homes.pin(&pinned).is_empty(), "nothing moves twice");
            let home = homes.of(first);
            assert_eq!(home.pinned, round % 2 == 0);
            assert!(!seen.contains(&home), "{home:?} in {seen:?}");
            seen.push(home);
        }
        assert_eq!(homes.of(second), Home::default());
    }

    #[test]
    fn a_place_is_the_same_by_its_row_and_by_its_key() {
        let homes = Homes::default();
        homes.pin(&HashSet::from([CollectionId(7)]));
        let row = keys::record(CollectionId(7), b"key");
        let place = homes.place(Space(3), &row);
        assert_eq!(place, homes.place_of(Space(3), CollectionId(7), b"key"));
        assert_eq!(
            (place.row(), place.space(), place.collection()),
            (&row[..], Space(3), CollectionId(7))
        );
        assert!(place.home().pinned);
        assert_ne!(place, homes.place_of(Space(4), CollectionId(7), b"key"));
    }
}
