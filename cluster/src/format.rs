//! The format number that each shared row begins with. Pure.
//!
//! A row of another format is refused where it is read, before anything guesses what is in it.

use serde::{Deserialize, Serialize};

/// Written as the number `N`; anything else is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub struct Format<const N: u32>;

impl<const N: u32> From<Format<N>> for u32 {
    fn from(_: Format<N>) -> u32 {
        N
    }
}

impl<const N: u32> TryFrom<u32> for Format<N> {
    type Error = String;

    fn try_from(found: u32) -> Result<Self, String> {
        match found == N {
            true => Ok(Format),
            false => Err(format!("its format is {found}, expected {N}")),
        }
    }
}

/// Of rows whose format has grown: written as the oldest of 1 to `NEWEST` that says everything, so
/// that nodes of older programs read what they can understand; anything up to `NEWEST` is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub struct UpTo<const NEWEST: u32>(u32);

impl<const NEWEST: u32> UpTo<NEWEST> {
    /// The format of that number.
    ///
    /// # Panics
    /// If there is no such format.
    pub fn of(number: u32) -> Self {
        assert!((1..=NEWEST).contains(&number), "format {number} of 1 to {NEWEST}");
        UpTo(number)
    }
}

impl<const NEWEST: u32> From<UpTo<NEWEST>> for u32 {
    fn from(format: UpTo<NEWEST>) -> u32 {
        format.0
    }
}

impl<const NEWEST: u32> TryFrom<u32> for UpTo<NEWEST> {
    type Error = String;

    fn try_from(found: u32) -> Result<Self, String> {
        match (1..=NEWEST).contains(&found) {
            true => Ok(UpTo(found)),
            false => Err(format!("its format is {found}, expected 1 to {NEWEST}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_several_formats_is_read_up_to_the_newest() {
        for format in [1, 2] {
            let read: UpTo<2> = serde_json::from_str(&format.to_string()).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), format.to_string());
        }
        for format in [0, 3] {
            assert!(serde_json::from_str::<UpTo<2>>(&format.to_string()).is_err());
        }
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Row {
        format: Format<2>,
    }

    #[test]
    fn a_row_of_another_format_is_not_read() {
        let json = serde_json::to_string(&Row { format: Format }).unwrap();
        assert_eq!(json, r#"{"format":2}"#);
        assert!(serde_json::from_str::<Row>(&json).is_ok());
        let error = serde_json::from_str::<Row>(r#"{"format":3}"#).unwrap_err().to_string();
        assert!(error.contains("its format is 3, expected 2"), "{error}");
        assert!(serde_json::from_str::<Row>("{}").is_err());
    }

    #[test]
    fn a_row_that_has_grown_is_read_in_every_format_up_to_the_newest() {
        type Grown = UpTo<2>;
        assert_eq!(serde_json::to_string(&Grown::of(1)).unwrap(), "1");
        assert_eq!(serde_json::to_string(&Grown::of(2)).unwrap(), "2");
        for found in ["1", "2"] {
            assert!(serde_json::from_str::<Grown>(found).is_ok());
        }
        for found in ["0", "3"] {
            let error = serde_json::from_str::<Grown>(found).unwrap_err().to_string();
            assert!(error.contains("expected 1 to 2"), "{error}");
        }
    }
}
