//! Fields and tensors on the command line: `name=VALUE`.
//!
//! VALUE is JSON numbers (`[1, 2]`, nested for more axes, f32 unless the name says `name:i64`),
//! `@file.npy`, `@file` for a file's bytes, `text:…` or `hex:…`. A name may hold colons: only a
//! type after the last one is a type. Where a model's own names are known they are found first.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use statehouse_client::v1::{self, DataType, Tensor, field::Value};

use super::npy;

const NAMES: &[(&str, DataType)] = &[
    ("bool", DataType::Bool),
    ("u8", DataType::U8),
    ("i8", DataType::I8),
    ("u16", DataType::U16),
    ("i16", DataType::I16),
    ("u32", DataType::U32),
    ("i32", DataType::I32),
    ("u64", DataType::U64),
    ("i64", DataType::I64),
    ("f16", DataType::F16),
    ("bf16", DataType::Bf16),
    ("f32", DataType::F32),
    ("f64", DataType::F64),
];

/// A type's name, such as "f32".
pub fn dtype_name(dtype: i32) -> &'static str {
    NAMES.iter().find(|(_, known)| *known as i32 == dtype).map_or("unknown", |(name, _)| name)
}

/// `name=VALUE` or `name:dtype=VALUE`.
pub fn parse(text: &str) -> anyhow::Result<v1::Field> {
    let (name, value) =
        text.split_once('=').with_context(|| format!("expected NAME=VALUE, got {text:?}"))?;
    let (name, dtype) = typed(name)?;
    field(name, dtype, value)
}

fn field(name: &str, dtype: Option<DataType>, value: &str) -> anyhow::Result<v1::Field> {
    let value = parse_value(value, dtype).with_context(|| format!("field {name:?}"))?;
    Ok(v1::Field { name: name.to_owned(), value: Some(value), expiry: None })
}

/// A name, and the type that follows its last colon, if one does.
fn typed(name: &str) -> anyhow::Result<(&str, Option<DataType>)> {
    let Some((before, last)) = name.rsplit_once(':') else { return Ok((name, None)) };
    if let Some((_, dtype)) = NAMES.iter().find(|(known, _)| *known == last) {
        return Ok((before, Some(*dtype)));
    }
    // A slip of the finger, rather than a name.
    let digits = last.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let word = &last[..last.len() - digits.len()];
    let like_a_type = ["f", "i", "u", "bf", "int", "uint", "float"].contains(&word)
        && !digits.is_empty()
        && digits.bytes().all(|c| c.is_ascii_digit());
    if like_a_type {
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        bail!("no dtype {last:?}: one of {}", names.join(" "));
    }
    Ok((name, None))
}

/// Whether only the model's own names can tell where this one ends.
pub fn is_ambiguous(text: &str) -> bool {
    let mut parts = text.split('=');
    parts.next().is_some_and(|name| name.contains(':')) || parts.count() > 1
}

/// As [`parse_tensor`], of an input of a model: the longest of its names that the text begins with.
pub fn parse_input(text: &str, names: &[String]) -> anyhow::Result<v1::NamedTensor> {
    let known = |name: &str| names.iter().any(|known| known == name);
    for (at, _) in text.rmatch_indices('=') {
        let (name, value) = (&text[..at], &text[at + 1..]);
        if known(name) {
            return tensor_field(field(name, None, value)?);
        }
        if let Ok((name, Some(dtype))) = typed(name)
            && known(name)
        {
            return tensor_field(field(name, Some(dtype), value)?);
        }
    }
    parse_tensor(text)
}

/// As [`parse`], for what must be a tensor.
pub fn parse_tensor(text: &str) -> anyhow::Result<v1::NamedTensor> {
    tensor_field(parse(text)?)
}

fn tensor_field(field: v1::Field) -> anyhow::Result<v1::NamedTensor> {
    match field.value {
        Some(Value::Tensor(tensor)) => {
            Ok(v1::NamedTensor { name: field.name, tensor: Some(tensor) })
        }
        _ => bail!("input {:?} is a tensor: JSON numbers or @file.npy", field.name),
    }
}

fn parse_value(text: &str, dtype: Option<DataType>) -> anyhow::Result<Value> {
    if let Some(path) = text.strip_prefix('@') {
        let file = Bytes::from(std::fs::read(path).with_context(|| format!("read {path}"))?);
        return if path.ends_with(".npy") {
            npy::parse(&file).map(Value::Tensor).with_context(|| format!("read {path}"))
        } else {
            Ok(Value::Bytes(file))
        };
    }
    if let Some(text) = text.strip_prefix("text:") {
        return Ok(Value::Bytes(Bytes::copy_from_slice(text.as_bytes())));
    }
    if let Some(hex) = text.strip_prefix("hex:") {
        return Ok(Value::Bytes(parse_hex(hex)?));
    }
    let json: serde_json::Value = serde_json::from_str(text)
        .context("expected JSON numbers, @file.npy, @file, text:… or hex:…")?;
    tensor_of(&json, dtype.unwrap_or(DataType::F32)).map(Value::Tensor)
}

/// The bytes that a value stands for, for ranges and appends.
pub fn raw_bytes(value: Value) -> Bytes {
    match value {
        Value::Bytes(bytes) => bytes,
        Value::Tensor(tensor) => tensor.data,
    }
}

fn tensor_of(json: &serde_json::Value, dtype: DataType) -> anyhow::Result<Tensor> {
    let mut shape = Vec::new();
    let mut level = json;
    while let serde_json::Value::Array(items) = level {
        shape.push(items.len() as u64);
        match items.first() {
            Some(first) => level = first,
            None => break,
        }
    }
    let mut data = Vec::new();
    push(json, &shape, dtype, &mut data)?;
    Ok(Tensor { dtype: dtype as i32, shape, data: Bytes::from(data) })
}

fn push(
    json: &serde_json::Value,
    shape: &[u64],
    dtype: DataType,
    data: &mut Vec<u8>,
) -> anyhow::Result<()> {
    match (json, shape) {
        (serde_json::Value::Array(items), [length, inner @ ..]) => {
            if items.len() as u64 != *length {
                bail!("rows of different lengths: {length} and {}", items.len());
            }
            items.iter().try_for_each(|item| push(item, inner, dtype, data))
        }
        (json, []) => push_number(json, dtype, data),
        _ => bail!("expected nested lists of numbers of one shape"),
    }
}

fn push_number(
    json: &serde_json::Value,
    dtype: DataType,
    data: &mut Vec<u8>,
) -> anyhow::Result<()> {
    let name = dtype_name(dtype as i32);
    let wrong = || format!("expected {name}, got {json}");
    let float = || match json {
        serde_json::Value::String(text) if text == "NaN" => Ok(f64::NAN),
        _ => json.as_f64().with_context(wrong),
    };
    macro_rules! integer {
        ($as:ident, $kind:ty) => {{
            let value = json.$as().and_then(|n| <$kind>::try_from(n).ok()).with_context(wrong)?;
            data.extend_from_slice(&value.to_le_bytes());
        }};
    }
    match dtype {
        DataType::Bool => {
            let value = json.as_bool().or(json.as_u64().map(|n| n != 0)).with_context(wrong)?;
            data.push(u8::from(value));
        }
        DataType::U8 => integer!(as_u64, u8),
        DataType::U16 => integer!(as_u64, u16),
        DataType::U32 => integer!(as_u64, u32),
        DataType::U64 => integer!(as_u64, u64),
        DataType::I8 => integer!(as_i64, i8),
        DataType::I16 => integer!(as_i64, i16),
        DataType::I32 => integer!(as_i64, i32),
        DataType::I64 => integer!(as_i64, i64),
        DataType::F32 => data.extend_from_slice(&(float()? as f32).to_le_bytes()),
        DataType::F64 => data.extend_from_slice(&float()?.to_le_bytes()),
        DataType::F16 => data.extend_from_slice(&half::f16::from_f64(float()?).to_le_bytes()),
        DataType::Bf16 => data.extend_from_slice(&half::bf16::from_f64(float()?).to_le_bytes()),
        DataType::Unspecified => bail!("no dtype"),
    }
    Ok(())
}

fn parse_hex(hex: &str) -> anyhow::Result<Bytes> {
    if !hex.len().is_multiple_of(2) || !hex.is_ascii() {
        bail!("expected pairs of hex digits, got {hex:?}");
    }
    let pairs = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
    Ok(pairs.collect::<Result<Vec<u8>, _>>().context("expected hex digits")?.into())
}

/// The elements of a tensor as JSON numbers, in row-major order.
pub fn elements(tensor: &Tensor) -> Vec<serde_json::Value> {
    macro_rules! all {
        ($kind:ty, $convert:expr) => {
            tensor
                .data
                .chunks_exact(size_of::<$kind>())
                .map(|c| <$kind>::from_le_bytes(c.try_into().expect("chunks have that size")))
                .map($convert)
                .collect()
        };
    }
    let float = |value: f64| {
        serde_json::Number::from_f64(value)
            .map_or_else(|| value.to_string().into(), serde_json::Value::Number)
    };
    match DataType::try_from(tensor.dtype).unwrap_or_default() {
        DataType::Bool => tensor.data.iter().map(|b| (*b != 0).into()).collect(),
        DataType::U8 => all!(u8, Into::into),
        DataType::I8 => all!(i8, Into::into),
        DataType::U16 => all!(u16, Into::into),
        DataType::I16 => all!(i16, Into::into),
        DataType::U32 => all!(u32, Into::into),
        DataType::I32 => all!(i32, Into::into),
        DataType::U64 => all!(u64, Into::into),
        DataType::I64 => all!(i64, Into::into),
        DataType::F16 => all!(u16, |bits| float(half::f16::from_bits(bits).to_f64())),
        DataType::Bf16 => all!(u16, |bits| float(half::bf16::from_bits(bits).to_f64())),
        DataType::F32 => all!(f32, shortest),
        DataType::F64 => all!(f64, float),
        DataType::Unspecified => Vec::new(),
    }
}

/// An f32 with the fewest digits that read back as the same f32.
fn shortest(value: f32) -> serde_json::Value {
    let text = value.to_string();
    match text.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
        Some(number) => number.into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(text: &str) -> Tensor {
        parse_tensor(text).unwrap().tensor.unwrap()
    }

    #[test]
    fn json_becomes_a_tensor_of_its_shape() {
        assert_eq!(tensor("x=[[1,2,3],[4,5,6]]").shape, vec![2, 3]);
        assert_eq!(tensor("x=1.5").shape, Vec::<u64>::new());
        assert_eq!(tensor("x:i64=[1,-2]").data.len(), 16);
        let elements = elements(&tensor("x=[0.1, 2]"));
        assert_eq!(serde_json::to_string(&elements).unwrap(), "[0.1,2.0]");
        assert_eq!(super::elements(&tensor("x:bf16=[1.5]"))[0], 1.5);
    }

    #[test]
    fn what_is_no_field_is_refused() {
        for wrong in ["x", "x=[[1],[2,3]]", "x:f31=[1]", "x:u8=[256]", "x=abc", "x=[1,[2]]"] {
            assert!(parse_tensor(wrong).is_err(), "{wrong:?}");
        }
        assert!(parse_tensor("x=text:hello").is_err());
        assert!(parse("x=hex:0g").is_err());
    }

    #[test]
    fn names_may_hold_colons_and_equals_signs() {
        let name = |text: &str| parse(text).unwrap().name;
        assert_eq!(name("onnx::Flatten_0=[1]"), "onnx::Flatten_0");
        assert_eq!(name("input:0=[1]"), "input:0");
        assert_eq!(name("input:0:i64=[1]"), "input:0");
        let names = ["x=y", "a:f32", "in.put/0 a:0"].map(String::from);
        let input = |text: &str| parse_input(text, &names).unwrap();
        for (text, name, dtype) in [
            ("x=y=[1]", "x=y", DataType::F32),
            ("x=y:i64=[1]", "x=y", DataType::I64),
            ("a:f32=[1]", "a:f32", DataType::F32),
            ("a:f32:i32=[1]", "a:f32", DataType::I32),
            ("in.put/0 a:0=[1]", "in.put/0 a:0", DataType::F32),
            ("other:f64=[1]", "other", DataType::F64),
        ] {
            assert!(is_ambiguous(text));
            let found = input(text);
            assert_eq!(found.name, name, "{text}");
            assert_eq!(found.tensor.unwrap().dtype, dtype as i32, "{text}");
        }
        assert!(!is_ambiguous("x=[1]"));
    }

    #[test]
    fn bytes_come_from_text_and_hex() {
        let value = |text| raw_bytes(parse(text).unwrap().value.unwrap());
        assert_eq!(value("x=text:a=b"), "a=b".as_bytes());
        assert_eq!(value("x=hex:00ff"), [0u8, 255].as_slice());
    }
}
