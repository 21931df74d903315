//! What each loaded model has done, as metrics.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use statehouse_inference::stats::Stats;
use statehouse_inference::{Handle, LoadedModel};

/// A figure of one model.
type Figure = (&'static str, &'static str, fn(&Stats) -> u64);

const COUNTERS: &[Figure] = &[
    ("model_rows", "Rows scored", |stats| stats.rows),
    ("model_batches", "Batches run", |stats| stats.batches),
    ("model_rows_failed", "Rows whose run or result failed", |stats| stats.failed),
    ("model_rows_late", "Rows refused: the deadline could not be met", |stats| stats.late),
    ("model_rows_refused", "Rows refused: the queue was full", |stats| stats.overloaded),
];

const GAUGES: &[Figure] = &[("model_rows_queued", "Rows that wait", |stats| stats.queued as u64)];

/// Histograms as quantiles.
const QUANTILES: &[(&str, &str, Histogram)] = &[
    ("model_batch_rows", "Rows of a batch", |stats| &stats.batch_rows),
    ("model_queue_micros", "Microseconds from queue to device", |stats| &stats.queued_us),
    ("model_run_micros", "Microseconds of a batch on the device", |stats| &stats.ran_us),
];

type Histogram = fn(&Stats) -> &statehouse_inference::histogram::Histogram;

/// Encodes all models.
pub fn encode(worker: &Handle, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let models = worker.stats();
    for (name, help, figure) in COUNTERS {
        let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (model, stats) in &models {
            ConstCounter::new(figure(stats)).encode(family.encode_family(&labels(model))?)?;
        }
    }
    for (name, help, figure) in GAUGES {
        let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (model, stats) in &models {
            let value = ConstGauge::new(figure(stats) as i64);
            value.encode(family.encode_family(&labels(model))?)?;
        }
    }
    for (name, help, histogram) in QUANTILES {
        let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (model, stats) in &models {
            for (quantile, share) in [("0.5", 0.5), ("0.99", 0.99)] {
                let [model, digest] = labels(model);
                let labels = [model, digest, ("quantile", quantile.to_owned())];
                let value = ConstGauge::new(histogram(stats).quantile(share) as i64);
                value.encode(family.encode_family(&labels)?)?;
            }
        }
    }
    Ok(())
}

fn labels(model: &LoadedModel) -> [(&'static str, String); 2] {
    [("model", model.name().to_owned()), ("digest", model.digest().to_owned())]
}
