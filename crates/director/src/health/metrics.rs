//! Figures of the health of machines, in the form that Prometheus reads.
//!
//! Each member of an installation counts what it saw and did itself.

use std::sync::Mutex;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum State {
    Alive,
    Suspect,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: String,
}

pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    machines: Family<OfState, Gauge>,
    alerts: Family<OfKind, Counter>,
    repairs: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("stolos");
        let (machines, alerts, repairs) = (Family::default(), Family::default(), Counter::default());
        registry.register(
            "machines",
            "Machines that are watched, by state",
            Clone::clone(&machines),
        );
        registry.register(
            "alerts",
            "Alerts that were told as events, by kind",
            Clone::clone(&alerts),
        );
        registry.register(
            "repairs",
            "Repairs of machines that were begun",
            Clone::clone(&repairs),
        );
        Self {
            registry: Mutex::new(registry),
            machines,
            alerts,
            repairs,
        }
    }

    pub(crate) fn alerted(&self, kind: &str) {
        let kind = kind.to_owned();
        self.alerts.get_or_create(&OfKind { kind }).inc();
    }

    pub(crate) fn repair_begun(&self) {
        self.repairs.inc();
    }

    /// The text for whoever scrapes, with so many machines in each state.
    pub(crate) fn text(&self, counts: [(State, usize); 3]) -> Result<String, std::fmt::Error> {
        for (state, count) in counts {
            let gauge = self.machines.get_or_create(&OfState { state });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        let registry = self
            .registry
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        encode(&mut text, &registry)?;
        Ok(text)
    }
}
