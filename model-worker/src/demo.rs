//! The two small models inside the binary, so that a newcomer needs no files.

use crate::model::files::ModelFiles;

/// Name of the chat model.
pub const CHAT: &str = "muster-demo-chat";
/// Name of the embedding model.
pub const EMBEDDING: &str = "muster-demo-embedding";

macro_rules! embed {
    ($folder:literal: $($name:literal),* $(,)?) => {
        ModelFiles::Embedded(&[$(($name, include_bytes!(concat!("../demo/", $folder, "/", $name)))),*])
    };
}

/// The chat model, in the layout of ONNX Runtime GenAI.
pub(crate) fn chat() -> ModelFiles {
    embed!("chat": "model.onnx", "genai_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
}

/// The embedding model, in the layout of sentence-transformers.
pub(crate) fn embedding() -> ModelFiles {
    embed!("embedding":
        "model.onnx", "config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json",
        "tokenizer.json", "tokenizer_config.json",
    )
}
