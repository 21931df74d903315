//! After damage that nobody else can mend: what is whole stays, and what is lost is listed.

use std::collections::BTreeSet;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use statehouse_store::{Error, LostRows, ReplicaId, Selection, Store, salvage_tables};
use tempfile::TempDir;

use crate::flips::{Base, Driven, REPLICAS, config, copy, files, harm, holds_rows};
use crate::support::{USERS, pick, seed};

/// Damaged places, each repaired and read; `SALVAGES` overrides it.
const PLACES: usize = 12;

/// How often as many places are tried at most, until a quarter as many could be salvaged.
const DRAWS_MAX: usize = 10;

/// What a list of losses says of a state.
fn is_listed(lost: &[statehouse_store::Lost], id: ReplicaId, key: &str) -> bool {
    let state = (USERS, Bytes::copy_from_slice(key.as_bytes()));
    lost.iter().filter(|lost| lost.replica == id).any(|lost| match &lost.rows {
        LostRows::State(collection, key) => (*collection, key.clone()) == state,
        LostRows::States { after, before } => {
            after.as_ref().is_none_or(|after| *after < state)
                && before.as_ref().is_none_or(|before| state < *before)
        }
        LostRows::EntriesFrom(_) => true,
        LostRows::Uploads | LostRows::Requests => false,
    })
}

#[test]
fn salvage_keeps_what_is_whole_and_lists_what_is_lost() {
    let seed = seed();
    let random = &mut StdRng::seed_from_u64(seed);
    let places = std::env::var("SALVAGES").map_or(PLACES, |it| it.parse().expect("a number"));
    let base = Base::build(seed);
    let (mut salvaged, mut states_lost) = (0, 0);
    // What is damaged is drawn, and with it whether anything can be made of it.
    for place in 0..places * DRAWS_MAX {
        if place >= places && salvaged > places / 4 {
            break;
        }
        let mut candidates = Vec::new();
        files(&base.stopped, &mut candidates);
        candidates.retain(|path| holds_rows(path));
        let chosen = candidates[pick(random, 0..candidates.len())].clone();
        let dir = TempDir::new().unwrap();
        let to = dir.path().join("s");
        copy(&base.stopped, &to, |path| path == chosen);
        let victim = to.join(chosen.strip_prefix(&base.stopped).unwrap());
        let Some(done) = harm(&victim, random) else { continue };
        let context = format!("SEED={seed}, place {place}: {done}");
        let lost = match salvage_tables(&to) {
            Ok(lost) => lost,
            // The node's own rows, or one that says what is applied: nothing can be made of them.
            Err(Error::Damaged { .. } | Error::Corrupt { .. }) => continue,
            Err(error) => panic!("{context}: {error}"),
        };
        let store = match Store::open(&to, config()) {
            Ok(store) => store,
            // A table of the log that is gone stays in the list of files.
            Err(Error::Damaged { .. }) => continue,
            Err(error) => panic!("{context}: {error}"),
        };
        salvaged += 1;
        let mut listed = BTreeSet::new();
        for id in REPLICAS {
            let mut driven = Driven::open(&store, id);
            driven.catch_up(&store).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(driven.shard.audit_usage().unwrap(), None, "{context}");
            for ((_, key), expected) in base.model.states.iter().filter(|((of, _), _)| *of == id) {
                let all = Selection::all();
                let read = driven.reader.get_whole(USERS, key.as_bytes(), &all, 1_000);
                match read.unwrap_or_else(|error| panic!("{context}: {key}: {error}")) {
                    Some(state) => {
                        assert_eq!(state.fields[0].bytes(), expected, "{context}: {key}");
                    }
                    None => {
                        assert!(
                            is_listed(&lost, id, key),
                            "{context}: {key} is not among {lost:?}"
                        );
                        listed.insert((id, key.clone()));
                    }
                }
            }
        }
        states_lost += listed.len();
        store.close().unwrap();
    }
    println!("{salvaged} of {places} salvaged, {states_lost} states lost and listed");
    assert!(salvaged > places / 4, "{salvaged} of {places}");
}
