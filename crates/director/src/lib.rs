//! The director: plans deployments, carries the plans out step by step, answers BOSH's HTTP API.

pub mod plan;
