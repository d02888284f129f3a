//! What fuzz targets call: readers of foreign bytes that are otherwise nobody's business. No part of the interface.

use muster_shared::fastchat::{CountTokenParams, EmbeddingsParams, GenerateParams, ModelQuery};
use muster_shared::generate::Prompt;

use crate::fastchat::Markers;

/// What FastChat's gateway asks: any of its bodies, and the prompt cut into turns. The bytes 1 and 2 of a prompt stand
/// for the labels of a user and an assistant, which nobody can guess.
///
/// # Panics
/// When a turn is lost or made up.
pub fn fastchat_body(body: &[u8]) {
    let _ = serde_json::from_slice::<CountTokenParams>(body);
    let _ = serde_json::from_slice::<EmbeddingsParams>(body);
    let _ = serde_json::from_slice::<ModelQuery>(body);
    let Ok(params) = serde_json::from_slice::<GenerateParams>(body) else { return };
    let markers = Markers::new(None, "http://127.0.0.1:21002", "m");
    let [user, assistant] = markers.conversation("m").roles;
    let prompt = params.prompt.replace('\u{1}', &user).replace('\u{2}', &assistant);
    match markers.parse(&prompt) {
        Prompt::Chat(chat) => {
            let turns = |role: &str| chat.messages.iter().filter(|message| message.role == role).count();
            assert_eq!(turns("user"), prompt.matches(&user).count());
            let said: usize = chat.messages.iter().filter_map(|message| message.content.as_deref()).map(str::len).sum();
            let labels =
                prompt.matches(&user).count() * user.len() + prompt.matches(&assistant).count() * assistant.len();
            assert_eq!(said + labels, prompt.len(), "every byte is a label's or a message's");
        }
        Prompt::Text(text) => assert_eq!(text, prompt),
        Prompt::Tokens(_) => panic!("a text became tokens"),
    }
}
