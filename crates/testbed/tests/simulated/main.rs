//! What is about many clusters, on simulated machines.

mod fairness;
