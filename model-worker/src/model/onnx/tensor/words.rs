//! ONNX Runtime's words, fit for a client.

/// Ends of file names that ONNX Runtime's messages hold. Names of nodes begin with a slash, too, and stay.
const FILES: [&str; 10] = [".cc", ".h", ".hpp", ".cpp", ".onnx", ".so", ".bin", ".data", ".pbtxt", ".txt"];

/// A message with the last part in the place of each path to a file.
pub fn without_paths(message: &str) -> String {
    let lines = message.lines().map(|line| line.split(' ').map(without_path).collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join(" ")
}

fn without_path(word: &str) -> String {
    let Some(begin) = word.find('/') else { return word.to_owned() };
    let is_part_of_a_path = |c: char| c.is_alphanumeric() || "/._-+@~".contains(c);
    let end = word[begin..].find(|c| !is_part_of_a_path(c)).map_or(word.len(), |end| begin + end);
    let path = &word[begin..end];
    let name = path.rsplit('/').next().unwrap_or_default();
    if FILES.iter().any(|extension| name.ends_with(extension)) {
        // What comes before belongs to the path where that is relative: `../lib/x.cc`.
        let before = word[..begin].trim_end_matches(is_part_of_a_path);
        return format!("{before}{name}{}", without_path(&word[end..]));
    }
    format!("{}{}", &word[..end], without_path(&word[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_lose_their_folders_and_nodes_keep_their_names() {
        let told = "Non-zero status code returned while running Gather node. Name:'/layer.0/Gather' Status Message: \
                    /onnxruntime_src/core/providers/cpu/gather.cc:160 indices element out of data bounds, idx=9";
        let kept = without_paths(told);
        assert!(kept.contains("Name:'/layer.0/Gather'"), "{kept}");
        assert!(kept.contains(" gather.cc:160 indices"), "{kept}");
        assert!(!kept.contains("onnxruntime_src"), "{kept}");
        assert_eq!(
            without_paths("open \"/home/me/model.onnx\" and (../a/b.data), 1/2"),
            "open \"model.onnx\" and (b.data), 1/2"
        );
    }
}
