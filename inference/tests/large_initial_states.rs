//! An initial state may be large: it is made without a copy on the way, of zeros it takes no
//! memory, and rows that begin with it share it. One test, since it measures its process.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

use bytes::Bytes;
use statehouse_inference::{Model, trial};
use std::collections::BTreeMap;

/// Bytes of the state.
const STATE: usize = 32 << 20;
/// Bytes that all else may take.
const SLACK: usize = STATE / 2;

/// A model with a state that is this number everywhere.
fn model(initial: f32) -> Model {
    let manifest = format!(
        "name = \"m\"\nformat = \"onnx\"\n[[state]]\nfield = \"h\"\ninput = \"h\"\n\
         output = \"h_out\"\ninitial = {initial:?}\n"
    );
    let onnx = std::fs::read("testdata/rows/state_of_32_mib.onnx").unwrap();
    Model::from_files(&BTreeMap::from([
        ("model.toml".to_string(), Bytes::from(manifest)),
        ("model.onnx".to_string(), Bytes::from(onnx)),
    ]))
    .unwrap()
}

/// The most resident memory that this process has had.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// Does something, and returns by how much the peak of memory has grown.
fn grown<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = peak();
    let done = work();
    (done, peak().saturating_sub(before))
}

#[test]
fn an_initial_state_takes_its_bytes_once_and_of_zeros_none() {
    let (zeros, bytes) = grown(|| model(0.0));
    assert!(bytes < SLACK, "{bytes} bytes for zeros that nobody has changed");
    let initial = &zeros.states()[0].initial.data;
    assert_eq!(initial.len(), STATE);
    let (rows, bytes) = grown(|| trial::rows(&zeros, 1, 1).unwrap());
    assert!(bytes < SLACK, "{bytes} bytes for rows that begin with it");
    for row in &rows {
        assert!(row.iter().any(|tensor| tensor.data.as_ptr() == initial.as_ptr()), "it is shared");
    }
    let (halves, bytes) = grown(|| model(0.5));
    assert!(bytes < STATE + SLACK, "{bytes} bytes for a state of {STATE}");
    let initial = &halves.states()[0].initial.data;
    assert_eq!(initial.len(), STATE);
    assert!(initial.chunks(4).all(|number| number == 0.5_f32.to_le_bytes()));
}
