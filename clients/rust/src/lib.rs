//! A client of Chargeonce, which charges a card exactly once.
//!
//! * The contract: messages, enums and [`command_service_client`], [`query_service_client`], generated from the .proto files.
//! * The rule for calls, **when in doubt, the same request again with the same key**: [`until_settled`].
//! * The way to the servers: [`Settings`].

mod connection;
mod rule;

mod contract {
    #![allow(clippy::doc_lazy_continuation, clippy::doc_overindented_list_items, clippy::large_enum_variant)]
    tonic::include_proto!("charging.v1");
}

pub use connection::{Bearer, Commands, Connection, Queries, Settings};
pub use contract::*;
pub use rule::{Answer, DEADLINE, Failure, PATIENCE, PAUSE, Refusal, once, until_answered, until_settled};
