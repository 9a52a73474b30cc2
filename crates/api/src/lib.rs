//! Wire types of our services and the clients that speak them.
//!
//! Owns: what goes over HTTP between our programs ([`pks`], [`identity`], [`director`]), how a client is set up and how the error
//! bodies of all our (and the foreign) shapes become one [`Error`] ([`http`]), and the verification of access tokens
//! ([`token`]). Never does: SQL, serving.

pub mod director;
pub mod http;
pub mod identity;
pub mod pks;
pub mod token;

pub use http::Error;
