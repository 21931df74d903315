//! Rows of a CSV file, gzipped or not, as requests: read one at a time, errors with their line.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context as _, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use csv::{Reader, ReaderBuilder, StringRecord};
use flate2::read::MultiGzDecoder;
use statehouse_client::v1;

use super::Map;

/// One row, ready to send.
pub struct Event {
    /// Its line in the file.
    pub line: u64,
    /// Whose state.
    pub key: String,
    /// The model's inputs.
    pub inputs: Vec<v1::NamedTensor>,
    /// The columns shown beside it.
    pub label: String,
}

/// The rows of a file, in order.
pub struct Events {
    rows: Reader<Box<dyn Read + Send>>,
    record: StringRecord,
    /// Where each name of the map lies in a row.
    key: usize,
    inputs: Vec<(String, Vec<(super::map::Column, usize)>)>,
    label: Vec<(String, usize)>,
}

impl Events {
    /// Opens a file; a name that ends in `.gz` is decompressed.
    pub fn open(path: &Path, map: &Map) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let gzipped = path.extension().is_some_and(|extension| extension == "gz");
        let reader: Box<dyn Read + Send> = if gzipped {
            Box::new(BufReader::new(MultiGzDecoder::new(BufReader::new(file))))
        } else {
            Box::new(BufReader::new(file))
        };
        Events::new(reader, map).with_context(|| format!("read {}", path.display()))
    }

    /// Reads rows from anything.
    pub fn new(reader: Box<dyn Read + Send>, map: &Map) -> anyhow::Result<Self> {
        let mut rows = ReaderBuilder::new().from_reader(reader);
        let header = rows.headers().context("line 1: the header")?.clone();
        let find = |name: &str| {
            header.iter().position(|column| column == name).with_context(|| {
                let columns: Vec<&str> = header.iter().collect();
                format!("line 1: no column {name:?} among {}", columns.join(", "))
            })
        };
        let input = |input: &super::map::Input| {
            let columns = input.columns.iter().map(|c| Ok((c.clone(), find(&c.column)?)));
            Ok((input.name.clone(), columns.collect::<anyhow::Result<_>>()?))
        };
        let label = |name: &String| Ok((name.clone(), find(name)?));
        Ok(Events {
            key: find(&map.key)?,
            inputs: map.inputs.iter().map(input).collect::<anyhow::Result<_>>()?,
            label: map.label.columns.iter().map(label).collect::<anyhow::Result<_>>()?,
            rows,
            record: StringRecord::new(),
        })
    }

    /// The next row; an error names its line.
    pub fn read(&mut self) -> anyhow::Result<Option<Event>> {
        let before = self.rows.position().line();
        match self.rows.read_record(&mut self.record) {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(error) => {
                let line = error.position().map_or(before, csv::Position::line);
                bail!("line {line}: {}", describe(&error));
            }
        }
        let line = self.record.position().map_or(before, csv::Position::line);
        self.event(line).with_context(|| format!("line {line}")).map(Some)
    }

    fn event(&self, line: u64) -> anyhow::Result<Event> {
        let key = self.record[self.key].to_owned();
        if key.is_empty() {
            bail!("the key is empty");
        }
        let inputs = self.inputs.iter().map(|(name, columns)| self.input(name, columns));
        let label = self
            .label
            .iter()
            .map(|(_, at)| &self.record[*at])
            .filter(|cell| !cell.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        Ok(Event { line, key, inputs: inputs.collect::<anyhow::Result<_>>()?, label })
    }

    fn input(
        &self,
        name: &str,
        columns: &[(super::map::Column, usize)],
    ) -> anyhow::Result<v1::NamedTensor> {
        let mut data = BytesMut::with_capacity(columns.len() * 4);
        for (column, at) in columns {
            data.put_f32_le(column.number(&self.record[*at])?);
        }
        let tensor = v1::Tensor {
            dtype: v1::DataType::F32 as i32,
            shape: vec![columns.len() as u64],
            data: Bytes::from(data),
        };
        Ok(v1::NamedTensor { name: name.to_owned(), tensor: Some(tensor) })
    }
}

fn describe(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("expected {expected_len} columns, got {len}")
        }
        csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
        csv::ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "model = \"m\"\ncollection = \"c\"\nkey = \"id\"\n[[input]]\nname = \"x\"\n\
        columns = [{ column = \"amount\" }]\n[label]\ncolumns = [\"id\", \"amount\"]";

    fn read_all(text: &'static str) -> anyhow::Result<Vec<Event>> {
        let mut events = Events::new(Box::new(text.as_bytes()), &Map::parse(MAP)?)?;
        let mut all = Vec::new();
        while let Some(event) = events.read()? {
            all.push(event);
        }
        Ok(all)
    }

    #[test]
    fn rows_become_events() {
        let events = read_all("amount,id\n5,a\n6,b\n").unwrap();
        let seen: Vec<_> = events.iter().map(|e| (e.line, e.key.as_str(), &e.label[..])).collect();
        assert_eq!(seen, [(2, "a", "a 5"), (3, "b", "b 6")]);
    }

    #[test]
    fn a_malformed_row_is_named_by_its_line() {
        for (text, expected) in [
            ("amount,id\n5,a\nx,b\n", "line 3: column \"amount\": expected a number, got \"x\""),
            ("amount,id\n5,a,z\n", "line 2: expected 2 columns, got 3"),
            ("amount,id\n5,\n", "line 2: the key is empty"),
            ("amount,name\n5,a\n", "line 1: no column \"id\" among amount, name"),
        ] {
            let error = read_all(text).err().unwrap();
            assert_eq!(format!("{error:#}"), expected);
        }
    }
}
