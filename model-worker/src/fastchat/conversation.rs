//! Lets FastChat's gateway, which renders prompts itself, leave the rendering to the model's own chat template.
//!
//! The gateway is given a conversation template whose role labels are markers. The prompt that comes back is cut at
//! the markers into messages again, and these are rendered as ever. A prompt without markers is taken as it is.
//!
//! FastChat's gateway keeps a template for as long as it runs, so the markers must stay the same when a worker
//! restarts; and a client must not guess them, or it could put words into another role's mouth. They are therefore a
//! hash of the fleet's token, the worker's address and the model's name. Without a token anybody who reaches the worker
//! can ask for them, as for everything else.

use muster_shared::fastchat::Conversation;
use muster_shared::generate::{Chat, Message, Prompt};
use muster_shared::secret::Secret;
use sha2::{Digest as _, Sha256};

/// FastChat's style NO_COLON_TWO: system text, then label, message, separator for each turn; an open turn is its label.
const NO_COLON_TWO: u32 = 5;

/// Labels of a user's and an assistant's turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Markers {
    user: String,
    assistant: String,
}

impl Markers {
    pub(crate) fn new(token: Option<&Secret>, address: &str, model: &str) -> Self {
        let mut hasher = Sha256::new();
        for part in [token.map_or("", Secret::expose), address, model] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let hash: String = hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { user: format!("<|user {hash}|>"), assistant: format!("<|assistant {hash}|>") }
    }

    /// The template that FastChat's gateway is given.
    pub(crate) fn conversation(&self, model: &str) -> Conversation {
        Conversation {
            name: model.to_owned(),
            system_template: "{system_message}".to_owned(),
            system_message: String::new(),
            roles: [self.user.clone(), self.assistant.clone()],
            messages: Vec::new(),
            offset: 0,
            sep_style: NO_COLON_TWO,
            sep: String::new(),
            sep2: Some(String::new()),
            stop_str: None,
            stop_token_ids: None,
        }
    }

    /// Cuts a prompt at the markers; one without any is text.
    pub(crate) fn parse(&self, prompt: &str) -> Prompt {
        let Some((system, mut rest)) = self.next_turn(prompt) else { return Prompt::Text(prompt.to_owned()) };
        let mut messages = Vec::new();
        if !system.is_empty() {
            messages.push(message("system", system));
        }
        loop {
            let (role, marker) =
                if rest.starts_with(&self.user) { ("user", &self.user) } else { ("assistant", &self.assistant) };
            let turn = &rest[marker.len()..];
            match self.next_turn(turn) {
                Some((text, next)) => {
                    messages.push(message(role, text));
                    rest = next;
                }
                None => {
                    // An empty last turn of the assistant is where the answer goes.
                    if role == "user" || !turn.is_empty() {
                        messages.push(message(role, turn));
                    }
                    return Prompt::Chat(Chat { messages, ..Chat::default() });
                }
            }
        }
    }

    /// Text up to the next marker, and the rest from that marker on.
    fn next_turn<'a>(&self, text: &'a str) -> Option<(&'a str, &'a str)> {
        let at = [&self.user, &self.assistant].into_iter().filter_map(|marker| text.find(marker.as_str())).min()?;
        Some(text.split_at(at))
    }
}

fn message(role: &str, text: &str) -> Message {
    Message { role: role.to_owned(), content: Some(text.to_owned()), more: serde_json::Map::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn markers(address: &str) -> Markers {
        Markers::new(Some(&Secret::new("token")), address, "m")
    }

    /// Renders as FastChat's gateway does in style NO_COLON_TWO.
    fn render(conversation: &Conversation, system: &str, turns: &[Option<&str>]) -> String {
        let mut prompt = conversation.system_template.replace("{system_message}", system);
        for (index, text) in turns.iter().enumerate() {
            prompt.push_str(&conversation.roles[index % 2]);
            prompt.push_str(text.unwrap_or_default());
        }
        prompt
    }

    fn turns(prompt: &Prompt) -> Vec<(String, String)> {
        let Prompt::Chat(chat) = prompt else { panic!("a conversation, not {prompt:?}") };
        let text = |message: &Message| (message.role.clone(), message.content.clone().unwrap_or_default());
        chat.messages.iter().map(text).collect()
    }

    #[test]
    fn a_conversation_comes_back_whole() {
        let markers = markers("http://localhost:21002");
        let conversation = markers.conversation("m");
        let prompt = render(&conversation, "Be brief.", &[Some("Hi"), Some("Hello!"), Some("Bye\n"), None]);
        let expected = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye\n")];
        assert_eq!(turns(&markers.parse(&prompt)), expected.map(|(role, text)| (role.to_owned(), text.to_owned())));
        let prompt = render(&conversation, "", &[Some("Hi"), None]);
        assert_eq!(turns(&markers.parse(&prompt)), [("user".to_owned(), "Hi".to_owned())]);
    }

    #[test]
    fn a_prompt_without_markers_is_text() {
        let markers = markers("http://localhost:21002");
        assert_eq!(markers.parse("Once upon"), Prompt::Text("Once upon".to_owned()));
    }

    #[test]
    fn markers_outlive_a_restart_and_differ_between_workers() {
        let (one, again, other) =
            (markers("http://localhost:21002"), markers("http://localhost:21002"), markers("http://localhost:21003"));
        assert_eq!(one, again);
        assert_ne!(one, other);
        assert_ne!(one, Markers::new(None, "http://localhost:21002", "m"), "the token is part of them");
    }
}
