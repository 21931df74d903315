//! Dates in files of events: a form such as "%y%m%d" to days or seconds since 1970. Pure.
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

/// The number of a date, or nothing if it does not have that form.
pub fn parse(text: &str, format: &str, unit: Unit) -> Option<f32> {
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
    let days = days_from_civil(year, month, day);
    Some(match unit {
        Unit::Days => days as f32 + seconds as f32 / 86_400.0,
        Unit::Seconds => (days * 86_400 + seconds) as f32,
    })
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
    fn dates_become_days_and_seconds() {
        assert_eq!(parse("1970-01-02", "%Y-%m-%d", Unit::Days), Some(1.0));
        assert_eq!(parse("000229", "%y%m%d", Unit::Days), Some(11_016.0));
        assert_eq!(parse("1970-01-01 12:00", "%Y-%m-%d %H:%M", Unit::Days), Some(0.5));
        assert_eq!(parse("01.01.1970 00:01:05", "%d.%m.%Y %H:%M:%S", Unit::Seconds), Some(65.0));
        for wrong in ["931301", "9301", "93010a", "930101x", ""] {
            assert_eq!(parse(wrong, "%y%m%d", Unit::Days), None, "{wrong:?}");
        }
    }
}
