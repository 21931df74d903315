//! Numbers of a file, exact until they are written as the type that a model's input has. What that
//! type can't hold closely enough is an error: a time that moves in steps of minutes would score.
//! Pure.

use anyhow::{Context as _, bail};
use serde::Deserialize;
use statehouse_client::v1::DataType;

/// A number as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Number {
    /// Without a fraction.
    Whole(i64),
    /// Any other.
    Real(f64),
}

/// How closely a type must hold a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Precision {
    /// Units are kept.
    Units,
    /// Within this much.
    Within(f64),
    /// The nearest number will do.
    Nearest,
}

impl Number {
    /// Reads a finite number.
    pub fn parse(text: &str) -> Option<Number> {
        if let Ok(whole) = text.parse::<i64>() {
            return Some(Number::Whole(whole));
        }
        let real = text.parse::<f64>().ok().filter(|real| real.is_finite())?;
        // Digits that f64 has no room for: no integer type has it either.
        Some(Number::Real(real))
    }

    /// What is left after `other` is taken away.
    pub fn minus(self, other: Number) -> Number {
        match (self, other) {
            (Number::Whole(one), Number::Whole(other)) => match one.checked_sub(other) {
                Some(left) => Number::Whole(left),
                None => Number::Real(one as f64 - other as f64),
            },
            _ => Number::Real(self.real() - other.real()),
        }
    }

    /// One `parts`-th of it.
    pub fn divided(self, parts: i64) -> Number {
        match self {
            Number::Whole(whole) if whole % parts == 0 => Number::Whole(whole / parts),
            _ => Number::Real(self.real() / parts as f64),
        }
    }

    /// The nearest f64.
    pub fn real(self) -> f64 {
        match self {
            Number::Whole(whole) => whole as f64,
            Number::Real(real) => real,
        }
    }

    fn whole(self) -> Option<i64> {
        match self {
            Number::Whole(whole) => Some(whole),
            // Every f64 below this is exactly the integer that it looks like.
            Number::Real(real) if real.fract() == 0.0 && real.abs() < 9e15 => Some(real as i64),
            Number::Real(_) => None,
        }
    }

    /// Appends it as an element of a type. The error says what the type can't hold.
    pub fn write(
        self,
        dtype: DataType,
        precision: Precision,
        out: &mut Vec<u8>,
    ) -> anyhow::Result<()> {
        let name = dtype.as_str_name().trim_start_matches("DATA_TYPE_").to_lowercase();
        macro_rules! integer {
            ($kind:ty) => {{
                let whole = self.whole();
                let whole =
                    whole.with_context(|| format!("expected a whole number, got {self}"))?;
                let fits = <$kind>::try_from(whole).ok();
                let fits =
                    fits.with_context(|| format!("{self} does not fit the input's {name}"))?;
                out.extend_from_slice(&fits.to_le_bytes());
            }};
        }
        macro_rules! float {
            ($kind:ty, $digits:expr, $narrow:expr, $widen:expr) => {{
                let narrow: $kind = $narrow;
                self.check(f64::from($widen(narrow)), $digits, precision, &name)?;
                out.extend_from_slice(&narrow.to_le_bytes());
            }};
        }
        let real = self.real();
        match dtype {
            DataType::Bool => match self.whole() {
                Some(bit @ (0 | 1)) => out.push(bit as u8),
                _ => bail!("expected 0 or 1, got {self}"),
            },
            DataType::U8 => integer!(u8),
            DataType::I8 => integer!(i8),
            DataType::U16 => integer!(u16),
            DataType::I16 => integer!(i16),
            DataType::U32 => integer!(u32),
            DataType::I32 => integer!(i32),
            DataType::U64 => integer!(u64),
            DataType::I64 => integer!(i64),
            DataType::F16 => float!(half::f16, 11, half::f16::from_f64(real), half::f16::to_f32),
            DataType::Bf16 => float!(half::bf16, 8, half::bf16::from_f64(real), half::bf16::to_f32),
            DataType::F32 => float!(f32, 24, real as f32, std::convert::identity),
            DataType::F64 => {
                // Nodes compute it as f32.
                self.check(f64::from(real as f32), 24, precision, "f64, which is computed as f32")?;
                out.extend_from_slice(&real.to_le_bytes());
            }
            DataType::Unspecified => bail!("the model's input has no type"),
        }
        Ok(())
    }

    /// Refuses what a float of so many binary digits does not hold closely enough.
    fn check(self, held: f64, digits: u32, precision: Precision, name: &str) -> anyhow::Result<()> {
        let off = match self {
            // Beyond 2^53 the difference of floats would hide it.
            Number::Whole(whole) => (held as i128 - i128::from(whole)).unsigned_abs() as f64,
            Number::Real(real) => (held - real).abs(),
        };
        let large = self.real().abs() >= f64::from(1_u32 << digits);
        let close = held.is_finite()
            && match precision {
                Precision::Nearest => true,
                Precision::Within(most) => off <= most,
                Precision::Units => !large || off < 0.5,
            };
        if close {
            return Ok(());
        }
        bail!(
            "{self} would become {held} as {name}: take away a `since`, or give the `gap` to the \
             key's last event, or `rounded = true` if that is close enough, or make the model's \
             input an i64"
        )
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Number::Whole(whole) => write!(f, "{whole}"),
            Number::Real(real) => write!(f, "{real}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: Number, dtype: DataType, precision: Precision) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        number.write(dtype, precision, &mut out).map_err(|error| error.to_string())?;
        Ok(out)
    }

    #[test]
    fn an_id_is_written_exactly_or_not_at_all() {
        for id in [0, -7, (1 << 24) + 1, i64::MAX] {
            let written = bytes(Number::Whole(id), DataType::I64, Precision::Units).unwrap();
            assert_eq!(written, id.to_le_bytes());
        }
        let refused = bytes(Number::Whole((1 << 24) + 1), DataType::F32, Precision::Units);
        assert!(refused.unwrap_err().contains("16777217 would become 16777216 as f32"));
        assert!(bytes(Number::Whole(1 << 25), DataType::F32, Precision::Units).is_ok());
        // f64 has room for it, and who computes it has not.
        let refused = bytes(Number::Whole((1 << 24) + 1), DataType::F64, Precision::Units);
        let refused = refused.unwrap_err();
        assert!(refused.contains("16777217 would become 16777216 as f64, which is"), "{refused}");
        let tenth = bytes(Number::Real(0.1), DataType::F64, Precision::Units).unwrap();
        assert_eq!(tenth, 0.1_f64.to_le_bytes(), "what the caller wrote is sent");
        assert!(bytes(Number::Whole(i64::MAX), DataType::F64, Precision::Units).is_err());
        assert!(bytes(Number::Whole(300), DataType::U8, Precision::Units).is_err());
        assert!(bytes(Number::Real(2.5), DataType::I32, Precision::Units).is_err());
        assert!(bytes(Number::Real(2.0), DataType::I32, Precision::Units).is_ok());
        assert!(bytes(Number::Whole(2), DataType::Bool, Precision::Units).is_err());
    }

    #[test]
    fn fractions_are_rounded_as_ever_and_large_ones_only_if_asked() {
        let written = bytes(Number::Real(0.1), DataType::F32, Precision::Units).unwrap();
        assert_eq!(written, 0.1_f32.to_le_bytes());
        let large = Number::Real(123_456_789.12);
        assert!(bytes(large, DataType::F32, Precision::Units).is_err());
        assert!(bytes(large, DataType::F32, Precision::Nearest).is_ok());
        assert!(bytes(Number::Real(1e300), DataType::F32, Precision::Nearest).is_err());
        assert!(bytes(Number::Whole(2_049), DataType::F16, Precision::Units).is_err());
        assert!(bytes(Number::Whole(2_048), DataType::F16, Precision::Units).is_ok());
        let day = Number::Whole(1_795_946_460).divided(86_400);
        assert!(bytes(day, DataType::F32, Precision::Within(0.5 / 86_400.0)).is_err());
    }

    #[test]
    fn what_is_written_is_read_as_it_is() {
        assert_eq!(Number::parse("9007199254740993"), Some(Number::Whole((1 << 53) + 1)));
        assert_eq!(Number::parse("1e3"), Some(Number::Real(1000.0)));
        assert_eq!(Number::parse("inf"), None);
        assert_eq!(Number::parse("x"), None);
        assert_eq!(Number::Whole(5).minus(Number::Whole(7)), Number::Whole(-2));
    }
}
