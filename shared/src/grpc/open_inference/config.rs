//! How a model is set up.

use super::proto::model_config::SchedulingChoice;
use super::proto::model_instance_group::Kind;
use super::proto::model_version_policy::{All, Latest, PolicyChoice, Specific};
use super::proto::{self, DataType, ModelDynamicBatching, ModelInstanceGroup, ModelVersionPolicy};
use crate::grpc::Malformed;
use crate::tensor::config::{DynamicBatching, InstanceGroup, StringValue, TensorConfig, VersionPolicy, triton_name};
use crate::tensor::{Datatype, ModelConfig};

impl From<ModelConfig> for proto::ModelConfig {
    fn from(config: ModelConfig) -> Self {
        let parameter = |(name, StringValue { string_value }): (String, StringValue)| {
            (name, proto::ModelParameter { string_value })
        };
        Self {
            name: config.name,
            platform: config.platform,
            version_policy: Some(config.version_policy.into()),
            max_batch_size: narrowed(config.max_batch_size),
            input: config.input.into_iter().map(Into::into).collect(),
            output: config.output.into_iter().map(Into::into).collect(),
            instance_group: config.instance_group.into_iter().map(Into::into).collect(),
            default_model_filename: config.default_model_filename,
            parameters: config.parameters.into_iter().map(parameter).collect(),
            backend: config.backend,
            scheduling_choice: config
                .dynamic_batching
                .map(|batching| SchedulingChoice::DynamicBatching(batching.into())),
        }
    }
}

impl TryFrom<proto::ModelConfig> for ModelConfig {
    type Error = Malformed;

    fn try_from(config: proto::ModelConfig) -> Result<Self, Malformed> {
        let parameter = |(name, proto::ModelParameter { string_value }): (String, proto::ModelParameter)| {
            (name, StringValue { string_value })
        };
        let batching = config.scheduling_choice.map(|SchedulingChoice::DynamicBatching(batching)| batching.try_into());
        Ok(Self {
            name: config.name,
            platform: config.platform,
            backend: config.backend,
            version_policy: config.version_policy.unwrap_or_default().into(),
            max_batch_size: widened("max_batch_size", config.max_batch_size)?,
            input: config.input.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            output: config.output.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            instance_group: config.instance_group.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            default_model_filename: config.default_model_filename,
            dynamic_batching: batching.transpose()?,
            parameters: config.parameters.into_iter().map(parameter).collect(),
        })
    }
}

/// A count as Triton's definition has it; none is so large in truth.
fn narrowed(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn widened(field: &'static str, count: i32) -> Result<u32, Malformed> {
    u32::try_from(count).map_err(|_| Malformed::new(field, format!("is {count}, which is below 0")))
}

impl From<VersionPolicy> for ModelVersionPolicy {
    fn from(policy: VersionPolicy) -> Self {
        let choice = match policy {
            VersionPolicy::Latest { num_versions } => PolicyChoice::Latest(Latest { num_versions }),
            VersionPolicy::All {} => PolicyChoice::All(All {}),
            VersionPolicy::Specific { versions } => PolicyChoice::Specific(Specific { versions }),
        };
        Self { policy_choice: Some(choice) }
    }
}

impl From<ModelVersionPolicy> for VersionPolicy {
    fn from(policy: ModelVersionPolicy) -> Self {
        match policy.policy_choice {
            Some(PolicyChoice::Latest(Latest { num_versions })) => Self::Latest { num_versions },
            Some(PolicyChoice::All(All {})) => Self::All {},
            Some(PolicyChoice::Specific(Specific { versions })) => Self::Specific { versions },
            None => Self::default(),
        }
    }
}

impl From<TensorConfig> for proto::ModelInput {
    fn from(TensorConfig { name, data_type, dims, label_filename: _ }: TensorConfig) -> Self {
        Self { name, data_type: number(data_type).into(), dims } // labels are those of outputs
    }
}

impl TryFrom<proto::ModelInput> for TensorConfig {
    type Error = Malformed;

    fn try_from(proto::ModelInput { name, data_type, dims }: proto::ModelInput) -> Result<Self, Malformed> {
        Ok(Self { name, data_type: datatype(data_type)?, dims, label_filename: String::new() })
    }
}

impl From<TensorConfig> for proto::ModelOutput {
    fn from(TensorConfig { name, data_type, dims, label_filename }: TensorConfig) -> Self {
        Self { name, data_type: number(data_type).into(), dims, label_filename }
    }
}

impl TryFrom<proto::ModelOutput> for TensorConfig {
    type Error = Malformed;

    fn try_from(output: proto::ModelOutput) -> Result<Self, Malformed> {
        let proto::ModelOutput { name, data_type, dims, label_filename } = output;
        Ok(Self { name, data_type: datatype(data_type)?, dims, label_filename })
    }
}

fn number(datatype: Datatype) -> DataType {
    DataType::from_str_name(&triton_name::of(datatype)).expect("the definition has every datatype; a test looks")
}

fn datatype(number: i32) -> Result<Datatype, Malformed> {
    let name = DataType::try_from(number).ok().map(|known| known.as_str_name());
    name.and_then(triton_name::parse).ok_or_else(|| Malformed::unknown("data_type", number))
}

impl From<InstanceGroup> for ModelInstanceGroup {
    fn from(InstanceGroup { name, kind, count }: InstanceGroup) -> Self {
        let kind = Kind::from_str_name(&kind).unwrap_or(Kind::Auto);
        Self { name, count: narrowed(count), kind: kind.into() }
    }
}

impl TryFrom<ModelInstanceGroup> for InstanceGroup {
    type Error = Malformed;

    fn try_from(ModelInstanceGroup { name, count, kind }: ModelInstanceGroup) -> Result<Self, Malformed> {
        let kind = Kind::try_from(kind).map_err(|_| Malformed::unknown("kind", kind))?;
        Ok(Self { name, kind: kind.as_str_name().to_owned(), count: widened("count", count)? })
    }
}

impl From<DynamicBatching> for ModelDynamicBatching {
    fn from(batching: DynamicBatching) -> Self {
        let DynamicBatching { preferred_batch_size, max_queue_delay_microseconds } = batching;
        let preferred_batch_size = preferred_batch_size.into_iter().map(narrowed).collect();
        Self { preferred_batch_size, max_queue_delay_microseconds }
    }
}

impl TryFrom<ModelDynamicBatching> for DynamicBatching {
    type Error = Malformed;

    fn try_from(batching: ModelDynamicBatching) -> Result<Self, Malformed> {
        let ModelDynamicBatching { preferred_batch_size, max_queue_delay_microseconds } = batching;
        let sizes = preferred_batch_size.into_iter().map(|size| widened("preferred_batch_size", size));
        Ok(Self { preferred_batch_size: sizes.collect::<Result<_, _>>()?, max_queue_delay_microseconds })
    }
}
