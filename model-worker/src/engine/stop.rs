//! Ends an answer before a stop string, wherever tokens cut it.
//!
//! The answer ends where the first stop string is complete; of several that are complete at the same place, the longest
//! counts. So the result does not depend on the pieces in which the text came, and nothing waits longer than it must:
//! held back is only the end of the text that is the beginning of a stop string.
//!
//! All stop strings are looked for at once, by the automaton of Aho and Corasick 1975 ("Efficient string matching: an aid
//! to bibliographic search"): its state after a text *is* the longest such end, so ten thousand strings cost no more than
//! one. (The crate `aho-corasick` does not tell that length.)

use std::{collections::HashMap, sync::Arc};

#[cfg(test)]
mod tests;

/// Filters the text of one answer. Clones begin with what the original holds back, and share the automaton.
#[derive(Debug, Clone)]
pub struct StopFilter {
    automaton: Arc<Automaton>,
    state: u32,
    /// The end of the text so far that may become a stop string: as long as the depth of `state`.
    held: String,
    stopped: bool,
}

/// What may be shown of the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filtered {
    /// Text that is no part of a stop string. May be empty.
    pub text: String,
    /// Whether a stop string has come: the answer ends after `text`.
    pub stopped: bool,
}

impl StopFilter {
    /// Empty strings are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        Self { automaton: Arc::new(Automaton::new(&stops)), state: ROOT, held: String::new(), stopped: false }
    }

    /// Takes more of the answer. After a stop string nothing is shown any more.
    pub fn push(&mut self, text: &str) -> Filtered {
        if self.stopped {
            return Filtered { text: String::new(), stopped: true };
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (index, byte) in text.bytes().enumerate() {
            self.state = self.automaton.step(self.state, byte);
            let longest = self.automaton.nodes[self.state as usize].longest_stop as usize;
            if longest > 0 {
                self.held.truncate(before + index + 1 - longest);
                self.stopped = true;
                return Filtered { text: std::mem::take(&mut self.held), stopped: true };
            }
        }
        let depth = self.automaton.nodes[self.state as usize].depth as usize;
        // A state begins as a stop string does, with a whole character, so this cuts none.
        let kept = self.held.split_off(self.held.len() - depth);
        Filtered { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }

    /// The text held back, when the answer has ended otherwise.
    pub fn finish(&mut self) -> String {
        self.state = ROOT;
        std::mem::take(&mut self.held)
    }
}

const ROOT: u32 = 0;

/// A trie of all stop strings, byte by byte, in which every node knows where to go on when no child fits.
#[derive(Debug)]
struct Automaton {
    nodes: Vec<Node>,
    children: HashMap<(u32, u8), u32>,
}

/// A node is a beginning of a stop string.
#[derive(Debug, Default, Clone)]
struct Node {
    /// Its length in bytes.
    depth: u32,
    /// The longest proper end of it that is a node too.
    fallback: u32,
    /// Length of the longest stop string that it ends with; 0 for none.
    longest_stop: u32,
}

impl Automaton {
    fn new(stops: &[String]) -> Self {
        let mut automaton = Self { nodes: vec![Node::default()], children: HashMap::new() };
        for stop in stops {
            automaton.insert(stop);
        }
        automaton.link();
        automaton
    }

    fn insert(&mut self, stop: &str) {
        let mut node = ROOT;
        for byte in stop.bytes() {
            let depth = self.nodes[node as usize].depth + 1;
            node = *self.children.entry((node, byte)).or_insert_with(|| {
                self.nodes.push(Node { depth, ..Node::default() });
                self.nodes.len() as u32 - 1
            });
        }
        let node = &mut self.nodes[node as usize];
        node.longest_stop = node.depth; // 0 at the root: an empty string never stops
    }

    /// Finds every fallback, shortest beginnings first, for a node's fallback is shorter than it.
    fn link(&mut self) {
        let mut by_depth: Vec<(u32, u8, u32)> =
            self.children.iter().map(|((parent, byte), node)| (*parent, *byte, *node)).collect();
        by_depth.sort_unstable_by_key(|(parent, ..)| self.nodes[*parent as usize].depth);
        for (parent, byte, node) in by_depth {
            let fallback = if parent == ROOT { ROOT } else { self.step(self.nodes[parent as usize].fallback, byte) };
            let inherited = self.nodes[fallback as usize].longest_stop;
            let node = &mut self.nodes[node as usize];
            node.fallback = fallback;
            // Its own is the longest possible.
            if node.longest_stop == 0 {
                node.longest_stop = inherited;
            }
        }
    }

    /// The longest node that the text of `state` followed by `byte` ends with.
    fn step(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            match self.children.get(&(state, byte)) {
                Some(next) => return *next,
                None if state == ROOT => return ROOT,
                None => state = self.nodes[state as usize].fallback,
            }
        }
    }
}
