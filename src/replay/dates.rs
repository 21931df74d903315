//! Dates in files of events: a form such as "%y%m%d" to seconds since 1970. Pure.
//!
//! Directives: %Y (four digits), %y (two: 69..=99 are 19xx), %m %d %H %M %S (two digits). Anything
//! else stands for itself. No time zones: a file's times are taken as UTC.

use serde::Deserialize;

/// What a date becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Days since 1970-01-01, with a fraction if the form has a time.
    Days,
    /// Seconds since then.
    Seconds,
}

impl Unit {
    /// How many seconds it has.
    pub fn seconds(self) -> i64 {
        match self {
            Unit::Days => DAY_SECONDS,
            Unit::Seconds => 1,
        }
    }
}

const DAY_SECONDS: i64 = 86_400;

/// The least step between two dates of a form, in seconds.
pub fn resolution(format: &str) -> i64 {
    let steps = [("%S", 1), ("%M", 60), ("%H", 3_600)];
    let finest = steps.into_iter().find(|(directive, _)| format.contains(directive));
    finest.map_or(DAY_SECONDS, |(_, seconds)| seconds)
}

/// The seconds from 1970 to a date, or nothing if it does not have that form.
pub fn parse(text: &str, format: &str) -> Option<i64> {
    let mut rest = text;
    let mut form = format.chars();
    let (mut year, mut month, mut day, mut seconds) = (1970, 1, 1, 0);
    while let Some(c) = form.next() {
        if c != '%' {
            rest = rest.strip_prefix(c)?;
            continue;
        }
        match form.next()? {
            'Y' => year = digits(&mut rest, 4)?,
            'y' => {
                let short = digits(&mut rest, 2)?;
                year = if short < 69 { 2000 + short } else { 1900 + short };
            }
            'm' => month = digits(&mut rest, 2).filter(|m| (1..=12).contains(m))?,
            'd' => day = digits(&mut rest, 2).filter(|d| (1..=31).contains(d))?,
            'H' => seconds += digits(&mut rest, 2).filter(|h| *h < 24)? * 3_600,
            'M' => seconds += digits(&mut rest, 2).filter(|m| *m < 60)? * 60,
            'S' => seconds += digits(&mut rest, 2).filter(|s| *s < 61)?,
            _ => return None,
        }
    }
    if !rest.is_empty() {
        return None;
    }
    Some(days_from_civil(year, month, day) * DAY_SECONDS + seconds)
}

fn digits(rest: &mut &str, count: usize) -> Option<i64> {
    let (number, after) = rest.split_at_checked(count)?;
    *rest = after;
    number.bytes().all(|c| c.is_ascii_digit()).then(|| number.parse().ok())?
}

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar.
pub fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years start in March, so that the leap day is the last of its year.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_become_seconds() {
        assert_eq!(parse("1970-01-02", "%Y-%m-%d"), Some(DAY_SECONDS));
        assert_eq!(parse("000229", "%y%m%d"), Some(11_016 * DAY_SECONDS));
        assert_eq!(parse("1970-01-01 12:00", "%Y-%m-%d %H:%M"), Some(DAY_SECONDS / 2));
        assert_eq!(parse("01.01.1970 00:01:05", "%d.%m.%Y %H:%M:%S"), Some(65));
        for wrong in ["931301", "9301", "93010a", "930101x", ""] {
            assert_eq!(parse(wrong, "%y%m%d"), None, "{wrong:?}");
        }
        assert_eq!((resolution("%y%m%d"), resolution("%d.%m.%Y %H:%M")), (DAY_SECONDS, 60));
    }
}
