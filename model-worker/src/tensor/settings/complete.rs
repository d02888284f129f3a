//! A configuration and its graph: each narrows the other, and what they disagree about is an error.

use super::{BTreeMap, Dimension, ModelConfig, Port, Ports, Settings, StringValue, TensorConfig};

/// A configuration with its gaps filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complete {
    /// As clients are told.
    pub config: ModelConfig,
    /// What the graph takes and gives, as the configuration narrows it.
    pub ports: Ports,
}

/// Checks a configuration against the graph, and fills its gaps from there.
///
/// # Errors
/// In words, naming both sides, where they contradict each other.
pub fn complete(settings: &Settings, graph: &Ports) -> Result<Complete, String> {
    let mut config = settings.config.clone();
    let batched = config.max_batch_size > 0;
    let inputs = merge("input", &config.input, &graph.inputs, batched)?;
    let outputs = merge("output", &config.output, &graph.outputs, batched)?;
    if !config.input.is_empty() {
        let is_named = |port: &Port| config.input.iter().any(|input| input.name == port.name);
        if let Some(port) = graph.inputs.iter().find(|port| port.required && !is_named(port)) {
            return Err(format!("input `{}` of the graph is not in the configuration; add it", port.name));
        }
    }
    let labels: BTreeMap<String, String> =
        config.output.iter().map(|output| (output.name.clone(), output.label_filename.clone())).collect();
    config.input = inputs.iter().map(|port| tensor(port, batched)).collect();
    config.output = outputs.iter().map(|port| tensor(port, batched)).collect();
    for output in &mut config.output {
        output.label_filename = labels.get(&output.name).cloned().unwrap_or_default();
    }
    Ok(Complete { config, ports: Ports { inputs, outputs } })
}

impl Complete {
    /// Notes something that is not Triton's among the parameters, for whoever reads the configuration.
    pub fn note(&mut self, key: &str, text: &str) {
        self.config.parameters.insert(key.to_owned(), StringValue { string_value: text.to_owned() });
    }
}

fn tensor(port: &Port, batched: bool) -> TensorConfig {
    let sizes = port.sizes();
    TensorConfig {
        name: port.name.clone(),
        data_type: port.datatype,
        dims: sizes.get(usize::from(batched)..).unwrap_or_default().to_vec(),
        label_filename: String::new(),
    }
}

/// The graph's ports as the configuration has them; all are in the graph's order.
fn merge(what: &str, configured: &[TensorConfig], ports: &[Port], batched: bool) -> Result<Vec<Port>, String> {
    if let Some(stranger) = configured.iter().find(|tensor| ports.iter().all(|port| port.name != tensor.name)) {
        let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
        let name = &stranger.name;
        return Err(format!("the configuration has {what} `{name}`, and the graph has {}", names.join(", ")));
    }
    let merged = |port: &Port| match configured.iter().find(|tensor| tensor.name == port.name) {
        Some(tensor) => narrow(what, tensor, port, batched),
        None if batched => narrow_batch(what, port),
        None => Ok(port.clone()),
    };
    ports.iter().map(merged).collect()
}

fn narrow(what: &str, tensor: &TensorConfig, port: &Port, batched: bool) -> Result<Port, String> {
    let name = &port.name;
    if tensor.data_type != port.datatype {
        let (configured, graph) = (tensor.data_type, port.datatype);
        return Err(format!("{what} `{name}` is {configured} in the configuration and {graph} in the graph"));
    }
    let batch = if batched { &[-1][..] } else { &[] };
    let sizes: Vec<i64> = batch.iter().chain(&tensor.dims).copied().collect();
    let Some(dimensions) = &port.dimensions else {
        let open = |&size: &i64| Dimension { size: usize::try_from(size).ok(), symbol: None };
        return Ok(Port { dimensions: Some(sizes.iter().map(open).collect()), ..port.clone() });
    };
    // Triton writes a scalar as [ 1 ], for its messages know no empty shape.
    if dimensions.is_empty() && tensor.dims == [1] && !batched {
        return Ok(port.clone());
    }
    let conflict = || {
        let also = if batched { ", with -1 in front for the batch" } else { "" };
        Err(format!(
            "{what} `{name}` has dims {:?} in the configuration{also}, and shape {:?} in the graph",
            tensor.dims,
            port.sizes()
        ))
    };
    if sizes.len() != dimensions.len() || (batched && dimensions[0].size.is_some()) {
        return conflict();
    }
    let mut narrowed = dimensions.clone();
    for (dimension, &size) in narrowed.iter_mut().zip(&sizes) {
        let size = usize::try_from(size).ok();
        match (dimension.size, size) {
            (Some(fixed), Some(size)) if fixed != size => return conflict(),
            (None, Some(size)) => dimension.size = Some(size),
            _ => {}
        }
    }
    Ok(Port { dimensions: Some(narrowed), ..port.clone() })
}

/// A port that the configuration leaves out must begin with the batch all the same.
fn narrow_batch(what: &str, port: &Port) -> Result<Port, String> {
    match port.dimensions.as_ref().and_then(|dimensions| dimensions.first()) {
        Some(Dimension { size: None, .. }) => Ok(port.clone()),
        _ if !port.required => Ok(port.clone()),
        _ => Err(format!(
            "max_batch_size is above 0, and {what} `{}` has shape {:?} in the graph, which begins with no open dimension",
            port.name,
            port.sizes()
        )),
    }
}
