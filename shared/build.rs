//! Makes Rust of `proto/*.proto`, without `protoc`.

fn main() {
    #[cfg(feature = "grpc")]
    generate();
}

#[cfg(feature = "grpc")]
fn generate() {
    const PROTOCOLS: [&str; 2] = ["proto/muster.proto", "proto/open_inference.proto"];
    for protocol in PROTOCOLS {
        println!("cargo::rerun-if-changed={protocol}");
    }
    let definitions = protox::compile(PROTOCOLS, ["proto"]).expect("our definitions are sound");
    tonic_prost_build::configure()
        .build_transport(false) // our client brings its own connections, so tonic's channels need not be built
        .bytes(".inference") // tensors are pieces of the message as it came, not copies
        .compile_fds(definitions)
        .expect("code can be written");
}
