//! Messages of gRPC.

use bytes::Bytes;
use muster_shared::control::ModelCard;
use muster_shared::embed::{EmbedRequest, EmbedResponse};
use muster_shared::generate::GenerateRequest;
use muster_shared::grpc::open_inference::proto::{ModelInferRequest, ModelInferResponse};
use muster_shared::grpc::open_inference::{Contents, read_request, read_response, request, response};
use muster_shared::grpc::proto;
use muster_shared::text::{
    ClassifyRequest, ClassifyResponse, DetokenizeRequest, DetokenizeResponse, EntitiesRequest, EntitiesResponse,
    RerankRequest, RerankResponse, TokenizeRequest, TokenizeResponse,
};
use prost::Message;

/// Messages of the Open Inference Protocol: no bytes break the reader, and what is read survives with raw contents.
pub(super) fn infer_message(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(Ok(given)) = ModelInferRequest::decode(bytes.clone()).map(read_request) {
        let written = request(given.clone(), Contents::Raw).expect("raw contents can say everything");
        assert_eq!(read_request(written).expect("our own words"), given);
    }
    if let Ok(Ok(given)) = ModelInferResponse::decode(bytes).map(read_response) {
        assert_eq!(read_response(response(given.clone())).expect("our own words"), given);
    }
}

/// A message of our own protocol, of the kind that the first byte says: no bytes break the reader, and what is read is
/// written and read alike.
pub(super) fn message(bytes: &[u8]) {
    let Some((&which, bytes)) = bytes.split_first() else { return };
    match which % 15 {
        0 => ours::<proto::GenerateRequest, GenerateRequest>(bytes),
        1 => event(bytes),
        2 => ours::<proto::EmbedRequest, EmbedRequest>(bytes),
        3 => ours::<proto::EmbedResponse, EmbedResponse>(bytes),
        4 => ours::<proto::RerankRequest, RerankRequest>(bytes),
        5 => ours::<proto::RerankResponse, RerankResponse>(bytes),
        6 => ours::<proto::ClassifyRequest, ClassifyRequest>(bytes),
        7 => ours::<proto::ClassifyResponse, ClassifyResponse>(bytes),
        8 => ours::<proto::EntitiesRequest, EntitiesRequest>(bytes),
        9 => ours::<proto::EntitiesResponse, EntitiesResponse>(bytes),
        10 => ours::<proto::TokenizeRequest, TokenizeRequest>(bytes),
        11 => ours::<proto::TokenizeResponse, TokenizeResponse>(bytes),
        12 => ours::<proto::DetokenizeRequest, DetokenizeRequest>(bytes),
        13 => ours::<proto::DetokenizeResponse, DetokenizeResponse>(bytes),
        _ => ours::<proto::ModelCard, ModelCard>(bytes),
    }
}

fn ours<P, T>(bytes: &[u8])
where
    P: Message + Default + From<T>,
    T: TryFrom<P>,
    T::Error: std::fmt::Debug,
{
    let Ok(Ok(read)) = P::decode(bytes).map(T::try_from) else { return };
    let written = P::from(read).encode_to_vec();
    let again = P::decode(&*written).expect("our own bytes");
    let again = T::try_from(again).expect("our own words");
    // As bytes, since numbers that are none do not equal themselves.
    assert_eq!(P::from(again).encode_to_vec(), written);
}

fn event(bytes: &[u8]) {
    let Ok(Ok(Some(event))) = proto::Event::decode(bytes).map(proto::Event::into_event) else { return };
    let written = proto::Event::from(event).encode_to_vec();
    let again = proto::Event::decode(&*written).expect("our own bytes").into_event().expect("our own words");
    let again = again.expect("more than a sign of life");
    assert_eq!(proto::Event::from(again).encode_to_vec(), written);
}
