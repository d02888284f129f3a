//! ONNX Runtime's words, fit for a client.

/// Shortens each path to its last part. ONNX Runtime names its own source files, and the model's.
pub(crate) fn without_paths(words: &str) -> String {
    // What a path ends at; a colon and a line's number belong to its last part.
    let ends = |letter: char| letter.is_whitespace() || "'\"`()[]{}<>,;=".contains(letter);
    words.split_inclusive(ends).map(|word| word.rfind(['/', '\\']).map_or(word, |at| &word[at + 1..])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_are_not_told_and_all_else_is() {
        for (words, told) in [
            (
                "Non-zero status code returned while running Gather node. Name:'/embeddings/Gather' Status Message: indices \
                 element out of data bounds, idx=30522 must be within the inclusive range [-30522,30521]",
                "Non-zero status code returned while running Gather node. Name:'Gather' Status Message: indices \
                 element out of data bounds, idx=30522 must be within the inclusive range [-30522,30521]",
            ),
            ("/onnxruntime_src/core/graph.cc:120 T& Get() failed", "graph.cc:120 T& Get() failed"),
            (r"cannot map C:\models\model.data (of model)", "cannot map model.data (of model)"),
            ("path=/home/someone/model.onnx, [/srv/x]", "path=model.onnx, [x]"),
            ("nothing to hide", "nothing to hide"),
        ] {
            assert_eq!(without_paths(words), told);
        }
    }
}
