//! A made-up stream of bank transactions: seeded, Zipf-distributed accounts, planted anomalies.
//!
//! It has the columns of the example's map. Every account has habits (an income, a household
//! payment, a usual withdrawal); an anomaly is a withdrawal far from them. Pure: the same seed
//! gives the same bytes.

use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rand_distr::{Distribution as _, LogNormal, Zipf};

/// What to make.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Rows.
    pub events: u64,
    /// Accounts that they spread over.
    pub accounts: u64,
    /// Exponent of the Zipf distribution.
    pub zipf: f64,
    /// Rows that are far from their account's habits.
    pub anomalies: u64,
    /// Repeats everything.
    pub seed: u64,
}

/// A made-up file.
pub struct Generated {
    /// As a CSV file.
    pub csv: String,
    /// Lines of the planted anomalies, ascending.
    pub anomalies: Vec<u64>,
}

/// Days of the stream, as in the example's training data.
const DAYS: u64 = 420;

/// Events that an account has seen before an anomaly may fall on it.
const HABIT_EVENTS: u64 = 12;

/// How far above the usual withdrawal an anomaly lies.
const ANOMALY_FACTOR: std::ops::Range<f64> = 25.0..60.0;

struct Account {
    seen: u64,
    balance: f64,
    income: f64,
    household: f64,
    withdrawal: f64,
}

impl Account {
    fn new(random: &mut StdRng) -> Self {
        let income = LogNormal::new(9.2, 0.4).expect("the spread is above 0").sample(random);
        Account {
            seen: 0,
            balance: income * random.random_range(1.0..3.0),
            income,
            household: (income * random.random_range(0.1..0.3)).round(),
            withdrawal: income * random.random_range(0.05..0.2),
        }
    }

    /// Type, operation, purpose and amount of its next ordinary transaction.
    fn ordinary(&mut self, random: &mut StdRng) -> (&'static str, &'static str, &'static str, f64) {
        let draw: f64 = random.random();
        if draw < 0.25 || self.balance < self.income * 0.5 {
            let amount = self.income * random.random_range(0.95..1.05);
            ("PRIJEM", "PREVOD Z UCTU", "", amount.round())
        } else if draw < 0.45 {
            ("VYDAJ", "PREVOD NA UCET", "SIPO", self.household)
        } else if draw < 0.55 {
            ("VYDAJ", "VYBER", "SLUZBY", 14.6)
        } else if draw < 0.65 {
            ("PRIJEM", "", "UROK", (self.balance * 0.004 * 10.0).round() / 10.0)
        } else {
            let amount = self.withdrawal * random.random_range(0.6..1.6);
            ("VYDAJ", "VYBER", "", (amount / 100.0).ceil() * 100.0)
        }
    }
}

/// Makes the file.
pub fn generate(shape: &Shape) -> Generated {
    let mut random = StdRng::seed_from_u64(shape.seed);
    let zipf = Zipf::new(shape.accounts as f64, shape.zipf).expect("the shape was checked");
    let mut accounts: Vec<Account> =
        (0..shape.accounts).map(|_| Account::new(&mut random)).collect();
    let mut csv = String::from("account_id,date,type,operation,amount,balance,k_symbol\n");
    let mut anomalies = Vec::new();
    for event in 0..shape.events {
        let id = zipf.sample(&mut random) as usize - 1;
        let account = &mut accounts[id];
        let left = shape.anomalies - anomalies.len() as u64;
        // Spread over what is left of the stream, on accounts with habits.
        let chance = left as f64 / (shape.events - event) as f64 * 2.0;
        let anomaly =
            left > 0 && account.seen >= HABIT_EVENTS && random.random_bool(chance.min(1.0));
        let (kind, operation, purpose, amount) = if anomaly {
            let amount = account.withdrawal * random.random_range(ANOMALY_FACTOR);
            ("VYBER", "VYBER", "", (amount / 100.0).ceil() * 100.0)
        } else {
            account.ordinary(&mut random)
        };
        account.seen += 1;
        account.balance += if kind == "PRIJEM" { amount } else { -amount };
        let date = date_of(event * DAYS / shape.events.max(1));
        let _ = writeln!(
            csv,
            "{},{date},{kind},{operation},{amount:.2},{:.2},{purpose}",
            id + 1,
            account.balance
        );
        if anomaly {
            // The account goes back to its habits; what was taken is found missing elsewhere.
            account.balance += amount;
            anomalies.push(event + 2);
        }
    }
    Generated { csv, anomalies }
}

/// YYMMDD of a day counted from 1993-01-01.
fn date_of(day: u64) -> String {
    const MONTHS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let (year, mut day) = (93 + day / 365, day % 365);
    for (at, days) in MONTHS.iter().enumerate() {
        if day < *days {
            return format!("{year:02}{:02}{:02}", at + 1, day + 1);
        }
        day -= days;
    }
    unreachable!("a year has 365 days")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { events: 5_000, accounts: 200, zipf: 1.05, anomalies: 10, seed: 7 };

    #[test]
    fn the_same_seed_gives_the_same_stream() {
        let (first, again) = (generate(&SHAPE), generate(&SHAPE));
        assert_eq!(first.csv, again.csv);
        assert_ne!(first.csv, generate(&Shape { seed: 8, ..SHAPE }).csv);
        assert_eq!(first.csv.lines().count() as u64, SHAPE.events + 1);
        assert_eq!(first.anomalies.len() as u64, SHAPE.anomalies);
    }

    #[test]
    fn anomalies_stand_at_their_lines() {
        let made = generate(&SHAPE);
        let lines: Vec<&str> = made.csv.lines().collect();
        for line in made.anomalies {
            assert!(lines[line as usize - 1].contains(",VYBER,VYBER,"), "line {line}");
        }
    }
}
