//! Generates the messages and the clients from the contract. protox is a compiler of .proto files in Rust: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let contract = "../../protos";
    println!("cargo::rerun-if-changed={contract}/charging");
    let files = protox::compile(["charging/v1/command.proto", "charging/v1/query.proto"], [contract])?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    Ok(())
}
