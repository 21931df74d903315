//! Why a step of a program could not run. The kind says who is told: a caller whose shapes or
//! numbers don't fit, or whoever looks after the device.

use std::fmt;

/// Why an operator could not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Operands whose shapes or kinds don't fit each other: every row with these shapes fails.
    Shape(String),
    /// More elements than a tensor may have: fewer rows may fit.
    TooLarge(String),
    /// One row's numbers have no result, such as a division by zero.
    Value(String),
    /// One row's index selects nothing.
    Index {
        /// The index.
        value: i64,
        /// The least index that selects something.
        min: i64,
        /// The largest.
        max: i64,
    },
    /// The device failed.
    Device(String),
}

impl Fault {
    /// Whether the rows beside the one at fault may still have results.
    pub fn is_of_one_row(&self) -> bool {
        match self {
            Fault::TooLarge(_) | Fault::Value(_) | Fault::Index { .. } => true,
            Fault::Shape(_) | Fault::Device(_) => false,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Shape(reason)
            | Fault::TooLarge(reason)
            | Fault::Value(reason)
            | Fault::Device(reason) => f.write_str(reason),
            Fault::Index { value, min, max } => {
                write!(f, "index {value} is out of range, expected {min}..={max}")
            }
        }
    }
}

impl From<String> for Fault {
    fn from(reason: String) -> Fault {
        Fault::Shape(reason)
    }
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Fault {
        Fault::Shape(reason.to_string())
    }
}

/// A [`Fault::Shape`] with a formatted reason.
macro_rules! unfit {
    ($($text:tt)*) => {
        $crate::onnx::fault::Fault::Shape(format!($($text)*))
    };
}

pub(crate) use unfit;
