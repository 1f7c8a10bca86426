//! `--metrics`: the counters of the helper as OpenMetrics text.
//!
//! Commands are counted in atomic integers that exist from the start. Only a scrape makes text of them. Labels have a
//! fixed set of values: nothing that a client sends becomes one.

mod socket;

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use scsi_pr_helper::ServerCounters;
use scsi_pr_linux::policy::{CommandMetrics, Counters};

use crate::workers::Pool;
pub(crate) use socket::{ACCESS, serve};

/// The counters of the helper.
#[derive(Clone)]
pub(crate) struct Metrics {
    commands: Arc<Counters>,
    connections: Arc<ServerCounters>,
    pool: Arc<Pool>,
    /// Seconds since 1970-01-01.
    start: f64,
}

impl Metrics {
    /// The metrics of these counters. The helper starts now.
    pub(crate) fn new(commands: Arc<Counters>, connections: Arc<ServerCounters>, pool: Arc<Pool>) -> Self {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { commands, connections, pool, start }
    }

    /// The OpenMetrics text, with its `# EOF`.
    fn text(&self) -> String {
        let mut registry = Registry::with_prefix("qemu_pr_helper");
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        encode(&mut text, &registry).expect("a string takes any text");
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("start", &self.start).finish_non_exhaustive()
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        // A gauge: the textfile collector of the node exporter takes no metric of type info.
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        families.gauge("build_info", "The version of the helper", None, &version, 1.0)?;
        families.gauge("start_time", "The start, since 1970-01-01", Some(&Unit::Seconds), &[], self.start)?;

        if let Some(metrics) = self.commands.metrics() {
            families.commands(metrics)?;
            families.latencies(metrics)?;
        }
        let running = self.commands.counts().running();
        families.gauge("commands_running", "Commands that run now", None, &[], running as f64)?;
        let busy =
            [("max-commands", self.connections.busy()), ("lost-descriptor", self.connections.lost_descriptors())];
        let refused = self.commands.metrics().into_iter().flat_map(CommandMetrics::refusals).chain(busy);
        families.counters("commands_refused", "Commands that were not run", "reason", refused)?;

        let open = self.connections.open();
        families.gauge("connections", "Connections that are open now", None, &[], open as f64)?;
        let mut accepted = families.counter("connections_accepted", "Connections that were accepted")?;
        accepted.encode_counter::<NoLabelSet, _, f64>(&self.connections.accepted(), None)?;
        let disconnects = self.connections.disconnects();
        families.counters("connections_closed", "Connections that the helper closed", "reason", disconnects)?;

        let workers = self.pool.counters();
        families.gauge("workers_running", "Worker processes that run now", None, &[], workers.running() as f64)?;
        families.counters("workers_started", "Worker processes that were started", "kind", workers.started())?;
        let failures = workers.failures();
        families.counters("worker_failures", "Commands that no worker has run or answered", "reason", failures)
    }
}

/// Writes families of metrics.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        labels: &[(&str, &str)],
        value: f64,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        family.encode_family(&labels)?.encode_gauge(&value)
    }

    fn counter<'a>(&'a mut self, name: &'a str, help: &str) -> Result<MetricEncoder<'a>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, MetricType::Counter)
    }

    /// A counter for each value of a label.
    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        counts: impl Iterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        let mut family = self.counter(name, help)?;
        for (value, count) in counts {
            family.encode_family(&[(label, value)])?.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
        }
        Ok(())
    }

    fn commands(&mut self, metrics: &CommandMetrics) -> fmt::Result {
        let mut family = self.counter("commands", "Commands that have ended")?;
        for count in metrics.commands() {
            let labels = [
                ("command", count.command),
                ("service_action", &count.service_action),
                ("status", count.status),
                ("device_class", count.device),
            ];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&count.count, None)?;
        }
        Ok(())
    }

    fn latencies(&mut self, metrics: &CommandMetrics) -> fmt::Result {
        let help = "Time from the start of a command to its end";
        let mut family =
            self.0.encode_descriptor("command_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for latency in metrics.latencies() {
            let count = latency.buckets.iter().map(|(_, count)| count).sum();
            family.encode_family(&[("command", latency.command)])?.encode_histogram::<NoLabelSet>(
                latency.sum.as_secs_f64(),
                count,
                &latency.buckets,
                None,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(commands: Counters) -> String {
        Metrics::new(Arc::new(commands), Arc::default(), Arc::new(Pool::new(None))).text()
    }

    #[test]
    fn text_has_every_family_before_the_first_command() {
        let text = text(Counters::with_metrics());
        assert!(text.ends_with("# EOF\n"), "{text}");
        for line in [
            concat!("qemu_pr_helper_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1.0"),
            "# TYPE qemu_pr_helper_commands counter",
            "# TYPE qemu_pr_helper_command_duration_seconds histogram",
            "qemu_pr_helper_command_duration_seconds_bucket{le=\"+Inf\",command=\"out\"} 0",
            "qemu_pr_helper_commands_running 0.0",
            "qemu_pr_helper_commands_refused_total{reason=\"denied\"} 0",
            "qemu_pr_helper_commands_refused_total{reason=\"max-commands\"} 0",
            "qemu_pr_helper_connections 0.0",
            "qemu_pr_helper_connections_accepted_total 0",
            "qemu_pr_helper_connections_closed_total{reason=\"not-allowed\"} 0",
            "qemu_pr_helper_workers_running 0.0",
            "qemu_pr_helper_workers_started_total{kind=\"multipath\"} 0",
            "qemu_pr_helper_worker_failures_total{reason=\"no-answer\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn start_is_a_time_of_this_century() {
        let text = text(Counters::with_metrics());
        let start = text.lines().find_map(|line| line.strip_prefix("qemu_pr_helper_start_time_seconds ")).unwrap();
        assert!(start.parse::<f64>().unwrap() > 1.7e9, "{start}");
    }
}
