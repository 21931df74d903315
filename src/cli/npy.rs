//! Tensors from and to NumPy's `.npy` files.
//!
//! Only what tensors need: versions 1 to 3, little endian, C order. Others are refused by name.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use statehouse_client::v1::{DataType, Tensor};

const MAGIC: &[u8] = b"\x93NUMPY";

const DESCRIPTIONS: &[(&str, DataType)] = &[
    ("|b1", DataType::Bool),
    ("|u1", DataType::U8),
    ("|i1", DataType::I8),
    ("<u2", DataType::U16),
    ("<i2", DataType::I16),
    ("<u4", DataType::U32),
    ("<i4", DataType::I32),
    ("<u8", DataType::U64),
    ("<i8", DataType::I64),
    ("<f2", DataType::F16),
    ("<f4", DataType::F32),
    ("<f8", DataType::F64),
];

/// What a file says before its data.
#[derive(Debug)]
pub struct Header {
    /// The elements' type.
    pub dtype: DataType,
    /// Length of each axis.
    pub shape: Vec<u64>,
    /// Where the data begin.
    pub data_at: usize,
}

/// Bytes from a file's front that hold any header of a tensor.
pub const HEADER_BYTES_MAX: usize = 64 << 10;

/// Reads a file's bytes.
pub fn parse(file: &Bytes) -> anyhow::Result<Tensor> {
    let Header { dtype, shape, data_at } = header(file)?;
    Ok(Tensor { dtype: dtype as i32, shape, data: file.slice(data_at..) })
}

/// Reads what lies before the data; the file's front is enough.
pub fn header(file: &[u8]) -> anyhow::Result<Header> {
    let version = file.get(6).filter(|_| file.starts_with(MAGIC));
    let (length, start) = match version {
        Some(1) => (usize::from(u16::from_le_bytes(bytes_at(file, 8)?)), 10),
        Some(2 | 3) => (u32::from_le_bytes(bytes_at(file, 8)?) as usize, 12),
        _ => bail!("not a .npy file of version 1, 2 or 3"),
    };
    let header = file.get(start..start + length).context(".npy header is cut off")?;
    let header = std::str::from_utf8(header).context(".npy header is not text")?;
    let description = quoted(header, "'descr':")?;
    let Some((_, dtype)) = DESCRIPTIONS.iter().find(|(name, _)| *name == description) else {
        let known: Vec<&str> = DESCRIPTIONS.iter().map(|(name, _)| *name).collect();
        bail!(".npy type {description:?} is not one of {}", known.join(" "));
    };
    if after(header, "'fortran_order':")?.starts_with("True") {
        bail!(".npy is in Fortran order: save it with numpy.ascontiguousarray");
    }
    let shape = after(header, "'shape':")?;
    let shape = shape.strip_prefix('(').and_then(|s| s.split_once(')')).context(".npy shape")?.0;
    let shape = shape
        .split(',')
        .map(str::trim)
        .filter(|axis| !axis.is_empty())
        .map(|axis| axis.parse::<u64>().with_context(|| format!(".npy axis {axis:?}")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Header { dtype: *dtype, shape, data_at: start + length })
}

/// Writes a tensor as a file's bytes.
pub fn encode(tensor: &Tensor) -> anyhow::Result<Vec<u8>> {
    let mut out = front(tensor.dtype, &tensor.shape)?;
    out.extend_from_slice(&tensor.data);
    Ok(out)
}

/// What a file says before its data.
pub fn front(dtype: i32, shape: &[u64]) -> anyhow::Result<Vec<u8>> {
    let Some((description, _)) = DESCRIPTIONS.iter().find(|(_, known)| *known as i32 == dtype)
    else {
        bail!("a .npy file can't hold {}", super::field::dtype_name(dtype));
    };
    let mut axes = shape.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    if shape.len() == 1 {
        axes.push(',');
    }
    let header =
        format!("{{'descr': '{description}', 'fortran_order': False, 'shape': ({axes}), }}");
    // The data starts at a multiple of 64, the header ends with a newline.
    let padding = (64 - (10 + header.len() + 1) % 64) % 64;
    let length = header.len() + padding + 1;
    let mut out = Vec::with_capacity(10 + length);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[1, 0]);
    out.extend_from_slice(&u16::try_from(length).context("shape is too long")?.to_le_bytes());
    out.extend_from_slice(header.as_bytes());
    out.extend(std::iter::repeat_n(b' ', padding));
    out.push(b'\n');
    Ok(out)
}

fn bytes_at<const N: usize>(file: &[u8], at: usize) -> anyhow::Result<[u8; N]> {
    let bytes = file.get(at..at + N).context(".npy header is cut off")?;
    Ok(bytes.try_into().expect("the range has N bytes"))
}

fn after<'a>(header: &'a str, key: &str) -> anyhow::Result<&'a str> {
    let at = header.find(key).with_context(|| format!(".npy header has no {key}"))?;
    Ok(header[at + key.len()..].trim_start())
}

fn quoted<'a>(header: &'a str, key: &str) -> anyhow::Result<&'a str> {
    let rest = after(header, key)?.strip_prefix('\'').context(".npy structured types")?;
    Ok(rest.split_once('\'').context(".npy header is cut off")?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_comes_back_as_it_was() {
        for shape in [vec![], vec![3], vec![2, 3]] {
            let elements: u64 = shape.iter().product();
            let data = Bytes::from((0..elements * 4).map(|n| n as u8).collect::<Vec<_>>());
            let tensor = Tensor { dtype: DataType::F32 as i32, shape, data };
            let file = Bytes::from(encode(&tensor).unwrap());
            assert_eq!(parse(&file).unwrap(), tensor);
        }
    }

    #[test]
    fn what_is_no_npy_is_refused() {
        let good = encode(&Tensor { dtype: DataType::F32 as i32, ..Default::default() }).unwrap();
        for length in 0..good.len().min(60) {
            assert!(parse(&Bytes::copy_from_slice(&good[..length])).is_err(), "{length}");
        }
        let text = String::from_utf8_lossy(&good).replace("<f4", ">f4");
        assert!(parse(&Bytes::from(text.into_bytes())).is_err());
    }
}
