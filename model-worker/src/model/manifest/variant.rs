//! Variants: graphs of one model whose weights are of different precision, as `model_q4.onnx` beside `model.onnx`.

/// Quantised graphs first, since they are fastest on a processor; half precision is slowest there. Of them 4 bits first:
/// activations of int8 graphs share one scale, so that their answers depend on what runs beside them.
const LANGUAGE: [&str; 8] = ["q4", "quantized", "int8", "uint8", FULL, "q4f16", "fp16", "bnb4"];
/// Full precision first, since vectors made by one file are compared with vectors made by another.
const ENCODER: [&str; 8] = [FULL, "quantized", "int8", "uint8", "q4", "fp16", "q4f16", "bnb4"];
/// As sentence-transformers' exporter names encoders: optimised graphs of full precision, then those of 8 bits for a kind
/// of processor, at last half precision.
const OPTIMISED: [&str; 3] = ["O3", "O2", "O1"];
/// Graphs of 8 bits for a kind of processor, the best first.
const FOR_PROCESSOR: &[&str] = if cfg!(target_arch = "aarch64") {
    &["qint8_arm64"]
} else {
    &["qint8_avx512_vnni", "qint8_avx512", "quint8_avx2"]
};
/// Half precision, for a GPU.
const HALF: [&str; 1] = ["O4"];
/// The variant without a name of its own: `model.onnx`.
const FULL: &str = "fp32";
/// Where graphs are looked for, below the model's folder.
const FOLDERS: [&str; 2] = ["", "onnx/"];

/// The graph of a variant, or of a file by its name.
pub(super) fn find<'a>(graphs: &'a [String], variant: &str) -> Option<&'a str> {
    let file = match variant {
        FULL => "model.onnx".to_owned(),
        file if file.ends_with(".onnx") => file.to_owned(),
        variant => format!("model_{variant}.onnx"),
    };
    let found = FOLDERS
        .iter()
        .find_map(|folder| graphs.iter().find(|graph| **graph == format!("{folder}{file}")).map(String::as_str));
    match variant {
        // Exporters call the same thing by either name.
        "int8" => found.or_else(|| find(graphs, "quantized")),
        _ => found,
    }
}

/// The graph to serve where the user names none.
pub(super) fn usual(graphs: &[String], is_language: bool) -> Option<&str> {
    let exported: &[&[&str]] = if is_language { &[] } else { &[&OPTIMISED, FOR_PROCESSOR, &HALF] };
    let variants = order(is_language).iter().chain(exported.iter().copied().flatten());
    variants.into_iter().find_map(|variant| find(graphs, variant))
}

/// Files among which [`usual`] looks, for people.
pub(super) fn usual_files(is_language: bool) -> String {
    let file =
        |variant: &&str| if *variant == FULL { "model.onnx".to_owned() } else { format!("model_{variant}.onnx") };
    order(is_language).iter().map(file).collect::<Vec<_>>().join(", ")
}

fn order(is_language: bool) -> &'static [&'static str] {
    if is_language { &LANGUAGE } else { &ENCODER }
}

/// Names by which graphs can be asked for: the variant's, or the file's.
pub(super) fn names<'a>(graphs: impl IntoIterator<Item = &'a str>) -> String {
    graphs.into_iter().map(name).collect::<Vec<_>>().join(", ")
}

fn name(graph: &str) -> &str {
    let file = graph.strip_prefix("onnx/").unwrap_or(graph);
    match file.strip_prefix("model").and_then(|rest| rest.strip_suffix(".onnx")) {
        Some("") => FULL,
        Some(variant) => variant.strip_prefix('_').unwrap_or(file),
        None => file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graphs(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_processor_gets_four_bits_for_text_and_full_precision_for_vectors() {
        let all = graphs(&["onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_int8.onnx", "onnx/model_q4.onnx"]);
        assert_eq!(usual(&all, true), Some("onnx/model_q4.onnx"));
        assert_eq!(usual(&all, false), Some("onnx/model.onnx"));
        assert_eq!(usual(&graphs(&["onnx/model_q4.onnx", "model_fp16.onnx"]), true), Some("onnx/model_q4.onnx"));
        assert_eq!(usual(&graphs(&["decoder_model.onnx"]), true), None);
    }

    #[test]
    fn the_names_of_sentence_transformers_are_known() {
        let all = graphs(&["onnx/model.onnx", "onnx/model_O4.onnx", "onnx/model_qint8_avx512_vnni.onnx"]);
        assert_eq!(usual(&all, false), Some("onnx/model.onnx"));
        assert_eq!(usual(&all[1..], true), None, "no language model is called so");
        assert_eq!(usual(&all[1..2], false), Some("onnx/model_O4.onnx"));
        assert_eq!(find(&all, "O4"), Some("onnx/model_O4.onnx"));
        assert_eq!(find(&all, "qint8_avx512_vnni"), Some("onnx/model_qint8_avx512_vnni.onnx"));
        let optimised = graphs(&["onnx/model_O1.onnx", "onnx/model_O3.onnx", "onnx/model_quantized.onnx"]);
        assert_eq!(usual(&optimised[..2], false), Some("onnx/model_O3.onnx"));
    }

    #[test]
    fn a_variant_is_asked_for_by_the_name_under_which_it_is_listed() {
        let all = graphs(&["model.onnx", "onnx/model.onnx", "onnx/model_no_gather_q4.onnx", "decoder.onnx"]);
        assert_eq!(names(all.iter().map(String::as_str)), "fp32, fp32, no_gather_q4, decoder.onnx");
        assert_eq!(find(&all, "fp32"), Some("model.onnx"));
        assert_eq!(find(&all, "no_gather_q4"), Some("onnx/model_no_gather_q4.onnx"));
        assert_eq!(find(&all, "onnx/model.onnx"), Some("onnx/model.onnx"));
        assert_eq!(find(&all, "decoder.onnx"), Some("decoder.onnx"));
        assert_eq!(find(&all, "q4"), None);
        assert_eq!(find(&graphs(&["model_quantized.onnx"]), "int8"), Some("model_quantized.onnx"));
    }
}
