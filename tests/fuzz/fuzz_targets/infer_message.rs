//! Messages of the Open Inference Protocol: no bytes break the reader, and what is read survives with raw contents.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use muster_shared::grpc::open_inference::proto::{ModelInferRequest, ModelInferResponse};
use muster_shared::grpc::open_inference::{Contents, read_request, read_response, request, response};
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(Ok(given)) = ModelInferRequest::decode(bytes.clone()).map(read_request) {
        let written = request(given.clone(), Contents::Raw).expect("raw contents can say everything");
        assert_eq!(read_request(written).expect("our own words"), given);
    }
    if let Ok(Ok(given)) = ModelInferResponse::decode(bytes).map(read_response) {
        assert_eq!(read_response(response(given.clone())).expect("our own words"), given);
    }
});
