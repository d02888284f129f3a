//! Makes Rust of `proto/muster.proto`, without `protoc`.

fn main() {
    #[cfg(feature = "grpc")]
    generate();
}

#[cfg(feature = "grpc")]
fn generate() {
    println!("cargo::rerun-if-changed=proto/muster.proto");
    let definitions = protox::compile(["proto/muster.proto"], ["proto"]).expect("proto/muster.proto is sound");
    // Our client brings its own connections, so tonic's channels need not be built.
    tonic_prost_build::configure().build_transport(false).compile_fds(definitions).expect("code can be written");
}
