//! Which calls a lane makes: kinds by weight, keys by Zipf, payloads made once. Seeded.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use rand_distr::{Distribution as _, Zipf};
use statehouse_client::v1;

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Read one state.
    Get,
    /// Replace one state.
    Put,
    /// Score, leaving the state.
    Peek,
    /// Score and write the state.
    Step,
    /// Read many states.
    BatchGet,
    /// Replace many states.
    BatchPut,
}

const NAMES: &[(&str, Kind)] = &[
    ("get", Kind::Get),
    ("put", Kind::Put),
    ("peek", Kind::Peek),
    ("step", Kind::Step),
    ("batch-get", Kind::BatchGet),
    ("batch-put", Kind::BatchPut),
];

/// Kinds and their weights, such as `get=80,put=20`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mix(pub Vec<(Kind, u32)>);

impl std::str::FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let part = |part: &str| {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let kind = NAMES.iter().find(|(known, _)| *known == name);
            let kind = kind.ok_or_else(|| format!("{name:?} is not one of {}", names()))?.1;
            let weight = weight.parse::<u32>().ok().filter(|weight| *weight > 0);
            Ok((kind, weight.ok_or_else(|| format!("{part:?}: a weight is a number above 0"))?))
        };
        Ok(Mix(text.split(',').map(part).collect::<Result<_, String>>()?))
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (kind, weight)) in self.0.iter().enumerate() {
            let name = NAMES.iter().find(|(_, known)| known == kind).map_or("?", |(name, _)| name);
            let comma = if at > 0 { "," } else { "" };
            match self.0.len() {
                1 => write!(f, "{name}")?,
                _ => write!(f, "{comma}{name}={weight}")?,
            }
        }
        Ok(())
    }
}

impl Mix {
    /// Whether a kind is in it.
    pub fn has(&self, wanted: &[Kind]) -> bool {
        self.0.iter().any(|(kind, _)| wanted.contains(kind))
    }
}

/// What calls carry, shared by all lanes.
#[derive(Debug, Clone)]
pub struct Payload {
    /// The fields of a state as it's put.
    pub fields: Vec<v1::Field>,
    /// The same as one value, for peers that keep bytes.
    pub value: Bytes,
    /// The model to score with.
    pub model: String,
    /// Its inputs.
    pub inputs: Vec<v1::NamedTensor>,
}

/// One call: what, and on which keys.
#[derive(Debug, Clone)]
pub struct Call {
    /// What it does.
    pub kind: Kind,
    /// One key, or those of a batch.
    pub keys: Vec<Bytes>,
}

/// The calls of one lane.
pub struct Workload {
    random: SmallRng,
    mix: Mix,
    weight: u32,
    keys: Zipf<f64>,
    batch: usize,
}

impl Workload {
    /// A lane's calls: `zipf` 0 is uniform over `keys` keys.
    pub fn new(mix: Mix, keys: u64, zipf: f64, batch: usize, seed: u64) -> Self {
        let weight = mix.0.iter().map(|(_, weight)| weight).sum();
        let keys = Zipf::new(keys.max(1) as f64, zipf.max(0.0)).expect("counts are above 0");
        Workload { random: SmallRng::seed_from_u64(seed), mix, weight, keys, batch }
    }

    /// The next call.
    pub fn draw(&mut self) -> Call {
        let mut point = self.random.random_range(0..self.weight);
        let mut kind = self.mix.0[0].0;
        for (candidate, weight) in &self.mix.0 {
            if point < *weight {
                kind = *candidate;
                break;
            }
            point -= weight;
        }
        let count = match kind {
            Kind::BatchGet | Kind::BatchPut => self.batch,
            Kind::Get | Kind::Put | Kind::Peek | Kind::Step => 1,
        };
        let keys = (0..count).map(|_| key(self.keys.sample(&mut self.random) as u64)).collect();
        Call { kind, keys }
    }
}

/// The key of a rank, counted from 1.
pub fn key(rank: u64) -> Bytes {
    format!("key-{rank:010}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_is_read_and_shown() {
        let mix: Mix = "get=80,put=20".parse().unwrap();
        assert_eq!(mix.0, [(Kind::Get, 80), (Kind::Put, 20)]);
        assert_eq!(mix.to_string(), "get=80,put=20");
        assert_eq!("peek".parse::<Mix>().unwrap().to_string(), "peek");
        for wrong in ["", "got", "get=0", "get=x"] {
            assert!(wrong.parse::<Mix>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn kinds_come_by_weight_and_low_ranks_most() {
        let mut workload = Workload::new("get=3,put=1".parse().unwrap(), 1_000, 1.0, 1, 5);
        let calls: Vec<Call> = (0..4_000).map(|_| workload.draw()).collect();
        let gets = calls.iter().filter(|call| call.kind == Kind::Get).count();
        assert!((2_800..3_200).contains(&gets), "{gets}");
        let first = calls.iter().filter(|call| call.keys[0] == key(1)).count();
        assert!(first > 300, "{first}");
    }
}
