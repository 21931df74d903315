//! A made-up stream of bank transactions: seeded, Zipf-distributed cash, planted anomalies.
//!
//! It has the columns of the example's map and is in order of date, like a bank's own file. Every
//! account has habits (a monthly income and household payment on their days, interest and a fee
//! at the month's end, a usual withdrawal); an anomaly is a payment far above the usual one, or of
//! a kind that the account never made.
//! Pure: the same seed gives the same bytes.

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
    /// Exponent of the Zipf distribution of cash withdrawals and deposits.
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

/// Days over which accounts open.
const OPENING_DAYS: u64 = 45;

/// Share of accounts that touch cash on a day.
const CASH_PER_DAY: f64 = 0.06;

/// Events that an account has seen before an anomaly may fall on it.
const HABIT_EVENTS: u64 = 12;

/// How far above the usual amount an anomaly lies.
const ANOMALY_FACTOR: std::ops::Range<f64> = 20.0..60.0;

/// Share of the stream that has passed before the first anomaly.
const ANOMALIES_FROM: f64 = 0.4;

const MONTHS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// Type, operation and purpose, as the bank writes them.
type Kind = (&'static str, &'static str, &'static str);

const INCOME: Kind = ("PRIJEM", "PREVOD Z UCTU", "DUCHOD");
const HOUSEHOLD: Kind = ("VYDAJ", "PREVOD NA UCET", "SIPO");
const INTEREST: Kind = ("PRIJEM", "", "UROK");
const FEE: Kind = ("VYDAJ", "VYBER", "SLUZBY");
const WITHDRAWAL: Kind = ("VYDAJ", "VYBER", "");
const INSURANCE: Kind = ("VYDAJ", "PREVOD NA UCET", "POJISTNE");
const DEPOSIT: Kind = ("PRIJEM", "VKLAD", "");

struct Account {
    /// Days until it opens.
    opens_in: u64,
    seen: u64,
    balance: f64,
    income: f64,
    income_day: u64,
    household: f64,
    household_day: u64,
    withdrawal: f64,
}

impl Account {
    fn new(random: &mut StdRng) -> Self {
        let usual = LogNormal::new(7.6, 0.4).expect("the spread is above 0");
        Account {
            opens_in: random.random_range(0..OPENING_DAYS),
            seen: 0,
            balance: 0.0,
            income: random.random_range(4_000.0f64..6_900.0).round(),
            income_day: random.random_range(5..=15),
            household: random.random_range(1_000.0f64..3_500.0).round(),
            household_day: random.random_range(6..=14),
            withdrawal: usual.sample(random),
        }
    }

    /// What falls due on a day of the month, whose last day is `last`.
    fn due(&self, day: u64, last: u64) -> Vec<(Kind, f64)> {
        let mut due = Vec::new();
        if day == self.income_day {
            due.push((INCOME, self.income));
        }
        if day == self.household_day {
            due.push((HOUSEHOLD, self.household));
        }
        if day == last {
            due.push((INTEREST, (self.balance.max(0.0) * 0.03).round() / 10.0));
            due.push((FEE, 14.6));
        }
        due
    }

    fn cash(&self, random: &mut StdRng) -> (Kind, f64) {
        let amount = self.withdrawal * random.random_range(0.6..1.5);
        let amount = (amount / 100.0).ceil() * 100.0;
        if self.balance < amount * 2.0 { (DEPOSIT, amount * 3.0) } else { (WITHDRAWAL, amount) }
    }

    fn anomaly(&self, random: &mut StdRng) -> (Kind, f64) {
        let factor = random.random_range(ANOMALY_FACTOR);
        match random.random_range(0..3) {
            0 => (WITHDRAWAL, (self.withdrawal * factor / 100.0).ceil() * 100.0),
            1 => (HOUSEHOLD, (self.household * factor).round()),
            _ => (INSURANCE, (self.household * factor / 2.0).round()),
        }
    }
}

struct Stream {
    shape: Shape,
    random: StdRng,
    accounts: Vec<Account>,
    made: Generated,
    events: u64,
}

/// Makes the file.
pub fn generate(shape: &Shape) -> Generated {
    let mut random = StdRng::seed_from_u64(shape.seed);
    let accounts = (0..shape.accounts.max(1)).map(|_| Account::new(&mut random)).collect();
    let csv = String::from("account_id,date,type,operation,amount,balance,k_symbol\n");
    let made = Generated { csv, anomalies: Vec::new() };
    let mut stream = Stream { shape: *shape, random, accounts, made, events: 0 };
    let days = (93..).flat_map(|year| {
        (1..)
            .zip(MONTHS)
            .flat_map(move |(month, last)| (1..=last).map(move |day| (year, month, day, last)))
    });
    for day in days {
        stream.day(day);
        if stream.events >= shape.events {
            break;
        }
    }
    stream.made
}

impl Stream {
    fn day(&mut self, (year, month, day, last): (u64, u64, u64, u64)) {
        let date = format!("{:02}{month:02}{day:02}", year % 100);
        for id in 0..self.accounts.len() {
            if !self.open(&date, id) {
                continue;
            }
            for (kind, amount) in self.accounts[id].due(day, last) {
                self.push(&date, id, kind, amount);
            }
        }
        let zipf = Zipf::new(self.accounts.len() as f64, self.shape.zipf.max(0.0));
        let zipf = zipf.expect("there are accounts");
        let cash = (self.accounts.len() as f64 * CASH_PER_DAY).ceil() as u64;
        for _ in 0..cash {
            let id = zipf.sample(&mut self.random) as usize - 1;
            if self.accounts[id].seen == 0 {
                continue;
            }
            if self.anomaly_due(id) {
                let (kind, amount) = self.accounts[id].anomaly(&mut self.random);
                if self.push(&date, id, kind, amount) {
                    self.made.anomalies.push(self.events + 1);
                    // The account goes back to its habits.
                    self.accounts[id].balance += amount;
                }
            } else {
                let (kind, amount) = self.accounts[id].cash(&mut self.random);
                self.push(&date, id, kind, amount);
            }
        }
    }

    /// Whether an account is open; on its first day it opens with a small deposit, and its
    /// savings follow in cash.
    fn open(&mut self, date: &str, id: usize) -> bool {
        let account = &mut self.accounts[id];
        if account.seen > 0 {
            return true;
        }
        if account.opens_in > 0 {
            account.opens_in -= 1;
            return false;
        }
        let first = f64::from(self.random.random_range(2..=12)) * 100.0;
        let savings = self.random.random_range(15_000.0f64..45_000.0).round();
        self.push(date, id, DEPOSIT, first) && self.push(date, id, DEPOSIT, savings)
    }

    /// Spread over what is left of the stream, on accounts with habits.
    fn anomaly_due(&mut self, id: usize) -> bool {
        let left = self.shape.anomalies - self.made.anomalies.len() as u64;
        let passed = self.events as f64 / self.shape.events.max(1) as f64;
        if left == 0 || passed < ANOMALIES_FROM || self.accounts[id].seen < HABIT_EVENTS {
            return false;
        }
        // A third of the events are cash, and they should be planted before the end.
        let cash_left = (self.shape.events - self.events.min(self.shape.events)) as f64 / 6.0;
        self.random.random_bool((left as f64 / cash_left.max(1.0)).min(1.0))
    }

    /// Adds a row, unless there are enough.
    fn push(&mut self, date: &str, id: usize, kind: Kind, amount: f64) -> bool {
        if self.events >= self.shape.events {
            return false;
        }
        self.events += 1;
        let account = &mut self.accounts[id];
        account.seen += 1;
        account.balance += if kind.0 == "PRIJEM" { amount } else { -amount };
        let ((kind, operation, purpose), balance) = (kind, account.balance);
        let _ = writeln!(
            self.made.csv,
            "{},{date},{kind},{operation},{amount:.2},{balance:.2},{purpose}",
            id + 1,
        );
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { events: 5_000, accounts: 60, zipf: 0.9, anomalies: 10, seed: 7 };

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
            let row: Vec<&str> = lines[line as usize - 1].split(',').collect();
            assert!(row[4].parse::<f64>().unwrap() > 9_000.0, "line {line}: {row:?}");
        }
    }
}
