//! A model is tried when it is loaded, on a device that does as the test says: rows alone, rows
//! beside each other, and batches that fit.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod rows;

use bytes::Bytes;
use rows::safetensors_file;
use statehouse_inference::onnx::fault::Fault;
use statehouse_inference::{
    Config, Device, DeviceKind, Error, Model, Program, Runner, Tensor, Worker,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// A function of a batch: one number of each row in, one out.
type Work = fn(&[f32]) -> Result<Vec<f32>, Error>;

/// A device that does this work, and notes how many rows each batch had.
#[derive(Clone)]
struct Told {
    work: Work,
    batches: Arc<Mutex<Vec<usize>>>,
}

impl Device for Told {
    fn name(&self) -> String {
        "told".into()
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Cpu
    }

    fn load(&mut self, _: Arc<Program>) -> Result<Box<dyn Runner>, Error> {
        Ok(Box::new(self.clone()))
    }

    fn pads_batches(&self) -> bool {
        false
    }
}

impl Runner for Told {
    fn run(&mut self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        let x = inputs[0].to_f32().unwrap();
        self.batches.lock().unwrap().push(x.len());
        let y = (self.work)(&x)?;
        Ok(vec![Tensor::from_f32(inputs[0].shape.clone(), &y).unwrap()])
    }
}

/// Loads a model of one number in, one number out. Returns what came of it, and the batches run.
fn load(work: Work, config: Config) -> (Result<(), Error>, Vec<usize>) {
    let batches: Arc<Mutex<Vec<usize>>> = Arc::default();
    let device = Told { work, batches: batches.clone() };
    let handle = Worker::start(Box::new(device), config).unwrap();
    let weights = [("fc1.weight", vec![1, 1], vec![1.0]), ("fc1.bias", vec![1], vec![1.0])];
    let manifest = "name = \"m\"\nformat = \"safetensors\"\n\
                    [architecture]\nkind = \"mlp\"\nsizes = [1, 1]\n";
    let files = BTreeMap::from([
        ("model.toml".to_string(), Bytes::from(manifest)),
        ("model.safetensors".to_string(), safetensors_file(&weights)),
    ]);
    let loaded = handle.load(Model::from_files(&files).unwrap()).map(drop);
    handle.shutdown();
    let batches = batches.lock().unwrap().clone();
    (loaded, batches)
}

/// Why a model is not loaded.
fn refusal(work: Work) -> Error {
    load(work, Config::default()).0.unwrap_err()
}

fn self_test(output: &str, reason: &str) -> Error {
    Error::SelfTest { output: output.into(), reason: reason.into() }
}

fn at_fault(fault: Fault) -> Error {
    Error::Run { step: "node 'n' (Op)".into(), fault, inputs: Vec::new() }
}

/// Each row for itself.
fn same(x: &[f32]) -> Result<Vec<f32>, Error> {
    Ok(x.to_vec())
}

/// Each row has the sum of all.
fn sum(x: &[f32]) -> Result<Vec<f32>, Error> {
    Ok(vec![x.iter().sum(); x.len()])
}

/// As `sum`, but only ones have a result.
fn sum_of_ones(x: &[f32]) -> Result<Vec<f32>, Error> {
    match x.iter().all(|number| *number == 1.0) {
        true => sum(x),
        false => Err(at_fault(Fault::Value("not a one".into()))),
    }
}

/// No more than three rows fit.
fn three_at_most(x: &[f32]) -> Result<Vec<f32>, Error> {
    match x.len() {
        0..=3 => same(x),
        _ => Err(at_fault(Fault::TooLarge("too many elements".into()))),
    }
}

#[test]
fn a_model_whose_rows_depend_on_each_other_is_refused() {
    let reason = "a row's result depends on the rows beside it: is batch_axis right?";
    assert_eq!(refusal(sum), self_test("score", reason));
    // One row that has a result is tried beside itself.
    assert_eq!(refusal(sum_of_ones), self_test("score", reason));
}

#[test]
fn a_model_is_tried_and_warmed_with_batches_that_fit() {
    // A row has 4 bytes, and needs as many for its result.
    let batches = |rows: usize| {
        let config = Config { batch_bytes_max: 8 * rows, ..Config::default() };
        let (loaded, batches) = load(same, config);
        loaded.unwrap();
        batches
    };
    // Three rows alone, then together; then each size once to warm it, and twice to measure it.
    assert_eq!(batches(3), [1, 1, 1, 3, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
    assert_eq!(batches(1), [1, 1, 1, 1, 1, 1]);
}

#[test]
fn whatever_fails_while_a_model_is_tried_is_told_as_a_failed_self_test() {
    let alone = refusal(|_| Err(at_fault(Fault::Shape("operands don't fit".into()))));
    assert_eq!(alone, self_test("", "node 'n' (Op): operands don't fit"));
    let warmed = refusal(three_at_most);
    assert_eq!(warmed, self_test("", "node 'n' (Op): too many elements"));
    let lost = refusal(|_| Err(Error::Internal { reason: "the device is lost".into() }));
    assert_eq!(lost, self_test("", "the device is lost"));
    let panicked = refusal(|_| panic!("asked to panic"));
    assert_eq!(panicked, self_test("", "the device panicked on a trial input"));
}
