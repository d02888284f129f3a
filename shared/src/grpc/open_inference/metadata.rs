//! What a server and its models say of themselves.

use super::proto;
use crate::grpc::Malformed;
use crate::tensor::{IndexEntry, ModelMetadata, ModelState, ServerMetadata, TensorMetadata};

impl From<ServerMetadata> for proto::ServerMetadataResponse {
    fn from(ServerMetadata { name, version, extensions }: ServerMetadata) -> Self {
        Self { name, version, extensions }
    }
}

impl From<proto::ServerMetadataResponse> for ServerMetadata {
    fn from(metadata: proto::ServerMetadataResponse) -> Self {
        let proto::ServerMetadataResponse { name, version, extensions } = metadata;
        Self { name, version, extensions }
    }
}

impl From<ModelMetadata> for proto::ModelMetadataResponse {
    fn from(ModelMetadata { name, versions, platform, inputs, outputs }: ModelMetadata) -> Self {
        let tensors = |tensors: Vec<TensorMetadata>| tensors.into_iter().map(Into::into).collect();
        Self { name, versions, platform, inputs: tensors(inputs), outputs: tensors(outputs) }
    }
}

impl TryFrom<proto::ModelMetadataResponse> for ModelMetadata {
    type Error = Malformed;

    fn try_from(metadata: proto::ModelMetadataResponse) -> Result<Self, Malformed> {
        let proto::ModelMetadataResponse { name, versions, platform, inputs, outputs } = metadata;
        let tensors = |tensors: Vec<proto::model_metadata_response::TensorMetadata>| {
            tensors.into_iter().map(TensorMetadata::try_from).collect::<Result<_, _>>()
        };
        Ok(Self { name, versions, platform, inputs: tensors(inputs)?, outputs: tensors(outputs)? })
    }
}

impl From<TensorMetadata> for proto::model_metadata_response::TensorMetadata {
    fn from(TensorMetadata { name, datatype, shape }: TensorMetadata) -> Self {
        Self { name, datatype: datatype.to_string(), shape }
    }
}

impl TryFrom<proto::model_metadata_response::TensorMetadata> for TensorMetadata {
    type Error = Malformed;

    fn try_from(tensor: proto::model_metadata_response::TensorMetadata) -> Result<Self, Malformed> {
        let proto::model_metadata_response::TensorMetadata { name, datatype, shape } = tensor;
        let datatype = datatype.parse().map_err(|error| Malformed::new("datatype", format!("is wrong: {error}")))?;
        Ok(Self { name, datatype, shape })
    }
}

impl From<IndexEntry> for proto::repository_index_response::ModelIndex {
    fn from(IndexEntry { name, version, state, reason }: IndexEntry) -> Self {
        Self { name, version, state: state.name().to_owned(), reason }
    }
}

impl TryFrom<proto::repository_index_response::ModelIndex> for IndexEntry {
    type Error = Malformed;

    fn try_from(entry: proto::repository_index_response::ModelIndex) -> Result<Self, Malformed> {
        let proto::repository_index_response::ModelIndex { name, version, state, reason } = entry;
        let states = [ModelState::Ready, ModelState::Unavailable, ModelState::Loading, ModelState::Unloading];
        let state = states.into_iter().find(|known| known.name() == state);
        let state = state.ok_or_else(|| Malformed::new("state", "is none that this version knows"))?;
        Ok(Self { name, version, state, reason })
    }
}
