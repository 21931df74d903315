//! Compares a GPU with the CPU on one model: the same numbers, then rows per second per batch size.
//!
//! `device_bench MODEL_DIR [--json FILE] [--cpu-only] [--device N] [--seconds S]`
//!
//! Exit codes: 0 done, 1 wrong usage or a broken model, 2 the devices disagree, 3 there is no GPU
//! (the table then has the CPU only if `--cpu-only` asked for that).

use bytes::Bytes;
use serde_json::{Value, json};
use statehouse_inference::trial::{self, Random};
use statehouse_inference::{Device, Error, Model, Runner, Tensor, flex};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str =
    "usage: device_bench MODEL_DIR [--json FILE] [--cpu-only] [--device N] [--seconds S]";
const BATCH_ROWS_MAX: usize = 4096;
/// GPUs multiply f32 as TF32; largest difference allowed, absolute up to 1, relative beyond.
const PARITY_MAX: f64 = 1e-3;
const PARITY_ROWS: usize = 64;
const SEED: u64 = 7;
/// Samples kept per batch size.
const SAMPLES_MAX: usize = 10_000;

struct Arguments {
    model: PathBuf,
    json: Option<PathBuf>,
    cpu_only: bool,
    device: usize,
    seconds: f64,
}

/// One batch size on one device.
struct Figure {
    rows: usize,
    batch_us: f64,
    batch_p99_us: f64,
    rows_per_second: f64,
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(usage) => {
            eprintln!("{usage}\n{USAGE}");
            return ExitCode::from(1);
        }
    };
    let gpu = match (arguments.cpu_only, statehouse_cuda::open(arguments.device)) {
        (true, _) => None,
        (false, Ok(gpu)) => Some(gpu),
        (false, Err(unavailable)) => {
            eprintln!("no GPU: {unavailable}");
            return ExitCode::from(3);
        }
    };
    match compare(&arguments, gpu) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(1)
        }
    }
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed =
        Arguments { model: PathBuf::new(), json: None, cpu_only: false, device: 0, seconds: 1.0 };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        let mut value = |name: &str| given.next().ok_or(format!("{name} needs a value"));
        match argument.as_str() {
            "--json" => parsed.json = Some(PathBuf::from(value("--json")?)),
            "--cpu-only" => parsed.cpu_only = true,
            "--device" => parsed.device = number(&value("--device")?)?,
            "--seconds" => parsed.seconds = number(&value("--seconds")?)?,
            flag if flag.starts_with('-') => return Err(format!("unknown flag {flag}")),
            folder => parsed.model = PathBuf::from(folder),
        }
    }
    if parsed.model.as_os_str().is_empty() {
        Err("expected a model folder".into())
    } else {
        Ok(parsed)
    }
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("expected a number, got {text}"))
}

/// Whether the devices agree; prints and writes what was measured.
fn compare(arguments: &Arguments, gpu: Option<Box<dyn Device>>) -> Result<bool, String> {
    let model = read_model(&arguments.model)?;
    println!("{}", model.describe());
    let mut cpu = flex().map_err(show)?;
    let mut devices = Vec::new();
    let mut parity = Value::Null;
    let mut agrees = true;
    let for_each = Duration::from_secs_f64(arguments.seconds);
    if let Some(mut gpu) = gpu {
        let difference = difference(&model, cpu.as_mut(), gpu.as_mut())?;
        agrees = difference <= PARITY_MAX;
        println!(
            "largest difference over {PARITY_ROWS} rows: {difference:.2e}, allowed {PARITY_MAX:.0e}"
        );
        parity =
            json!({ "difference_max": difference, "allowed": PARITY_MAX, "rows": PARITY_ROWS });
        devices.push((gpu.name(), measure(&model, gpu.as_mut(), for_each)?));
    }
    devices.push((cpu.name(), measure(&model, cpu.as_mut(), for_each)?));
    table(&devices);
    let report = json!({
        "model": model.name(),
        "digest": model.digest(),
        "parity": parity,
        "devices": devices.iter().map(|(name, figures)| json!({
            "device": name,
            "figures": figures.iter().map(|figure| json!({
                "batch_rows": figure.rows,
                "batch_us": figure.batch_us,
                "batch_p99_us": figure.batch_p99_us,
                "rows_per_second": figure.rows_per_second,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    });
    match &arguments.json {
        Some(file) => std::fs::write(file, format!("{report:#}\n"))
            .map_err(|error| format!("{}: {error}", file.display()))?,
        None => println!("{report}"),
    }
    Ok(agrees)
}

fn show(error: Error) -> String {
    error.to_string()
}

fn read_model(folder: &PathBuf) -> Result<Model, String> {
    let about = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(about)? {
        let path = entry.map_err(about)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_string();
        if name.starts_with("model.") {
            files.insert(name, Bytes::from(std::fs::read(&path).map_err(about)?));
        }
    }
    Model::from_files(&files).map_err(show)
}

fn random_batch(model: &Model, count: usize) -> Result<Vec<Tensor>, String> {
    let mut random = Random::new(SEED);
    let rows = (0..count).map(|_| trial::random(model, &mut random)).collect::<Result<Vec<_>, _>>();
    let rows = rows.map_err(show)?;
    Ok(trial::batch(model, &rows.iter().collect::<Vec<_>>()))
}

fn difference(model: &Model, one: &mut dyn Device, other: &mut dyn Device) -> Result<f64, String> {
    let inputs = random_batch(model, PARITY_ROWS.min(rows_max(model)))?;
    let run = |device: &mut dyn Device| {
        let mut runner = device.load(model.program().clone()).map_err(show)?;
        runner.run(inputs.clone()).map_err(show)
    };
    let (one, other) = (run(one)?, run(other)?);
    let mut largest = 0.0_f64;
    for (one, other) in one.iter().zip(&other) {
        for (one, other) in one.to_f64().into_iter().zip(other.to_f64()) {
            let difference = (one - other).abs() / one.abs().max(1.0);
            largest = if difference.is_nan() { f64::INFINITY } else { largest.max(difference) };
        }
    }
    Ok(largest)
}

/// A graph whose batch axis is fixed runs single rows only.
fn rows_max(model: &Model) -> usize {
    if model.limits().batch_rows_max == 1 { 1 } else { BATCH_ROWS_MAX }
}

fn measure(
    model: &Model,
    device: &mut dyn Device,
    for_each: Duration,
) -> Result<Vec<Figure>, String> {
    let mut runner = device.load(model.program().clone()).map_err(show)?;
    let sizes = (0..).map(|power| 1_usize << power).take_while(|&rows| rows <= rows_max(model));
    sizes.map(|rows| measure_size(model, runner.as_mut(), rows, for_each)).collect()
}

fn measure_size(
    model: &Model,
    runner: &mut dyn Runner,
    rows: usize,
    for_each: Duration,
) -> Result<Figure, String> {
    let inputs = random_batch(model, rows)?;
    for _ in 0..3 {
        runner.run(inputs.clone()).map_err(show)?;
    }
    let mut samples = Vec::new();
    let started = Instant::now();
    while samples.is_empty() || (started.elapsed() < for_each && samples.len() < SAMPLES_MAX) {
        let before = Instant::now();
        runner.run(inputs.clone()).map_err(show)?;
        samples.push(before.elapsed().as_secs_f64());
    }
    samples.sort_by(f64::total_cmp);
    let median = samples[samples.len() / 2];
    let p99 = samples[samples.len() * 99 / 100];
    Ok(Figure {
        rows,
        batch_us: median * 1e6,
        batch_p99_us: p99 * 1e6,
        rows_per_second: rows as f64 / median,
    })
}

fn table(devices: &[(String, Vec<Figure>)]) {
    for (name, figures) in devices {
        println!("\n{name}\n{:>6} {:>12} {:>12} {:>12}", "rows", "batch us", "p99 us", "rows/s");
        for figure in figures {
            println!(
                "{:>6} {:>12.1} {:>12.1} {:>12.0}",
                figure.rows, figure.batch_us, figure.batch_p99_us, figure.rows_per_second
            );
        }
    }
}
