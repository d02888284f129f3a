//! How much memory there is for keys and values.

use crate::model::ModelError;

/// The memory that this process may still take, in bytes: of the machine or of its control group, whichever is less.
/// `None` where the system does not tell.
pub fn free() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    let machine = Some(system.available_memory()).filter(|&bytes| bytes > 0);
    // Files in the page cache count as used in a group, and make room when memory is wanted: a model just fetched is one.
    let group = system.cgroup_limits().map(|limits| limits.total_memory.saturating_sub(limits.rss));
    machine.into_iter().chain(group).min()
}

/// Fewest tokens worth serving.
const LEAST_TOKENS: u64 = 256;

/// Refuses to give more than there is, whatever the models are.
///
/// # Errors
/// [`ModelError::NoMemory`].
pub fn check(wanted: Option<u64>, free: Option<u64>) -> Result<(), ModelError> {
    match (wanted, free) {
        (Some(wanted), Some(free)) if wanted > free => Err(ModelError::NoMemory { wanted, free }),
        _ => Ok(()),
    }
}

/// Tokens whose keys and values may be held.
///
/// * `wanted`: bytes, where somebody said; else half of what is free, divided among `models`: the rest is for what runs
///   and for others.
/// * `free`: bytes that are left beside the weights.
/// * `token`: bytes that one token takes.
///
/// # Errors
/// [`ModelError::NoMemory`] when less is free than is wanted, or than a few hundred tokens need.
pub fn token_budget(wanted: Option<u64>, free: Option<u64>, token: usize, models: usize) -> Result<usize, ModelError> {
    let token = (token as u64).max(1);
    check(wanted, free)?;
    let bytes = match (wanted, free) {
        (Some(wanted), _) => wanted,
        (None, Some(free)) => free / 2 / models.max(1) as u64,
        (None, None) => return Ok(usize::MAX),
    };
    if bytes / token < LEAST_TOKENS {
        return Err(ModelError::TooFewTokens { given: bytes, least: LEAST_TOKENS * token, tokens: LEAST_TOKENS });
    }
    Ok(usize::try_from(bytes / token).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_asked_for_must_be_there() {
        assert_eq!(token_budget(Some(MIB), Some(2 * MIB), 1024, 1).expect("it fits"), 1024);
        let error = token_budget(Some(3 * MIB), Some(2 * MIB), 1024, 1).expect_err("too much").to_string();
        assert!(error.contains("3.0 MiB") && error.contains("2.0 MiB") && error.contains("--kv-memory"), "{error}");
    }

    #[test]
    fn by_default_models_share_half_of_what_is_free() {
        assert_eq!(token_budget(None, Some(8 * MIB), 1024, 2).expect("enough"), 2048);
        assert_eq!(token_budget(None, None, 1024, 1).expect("unknown"), usize::MAX);
        assert!(token_budget(None, Some(MIB), 1 << 20, 1).is_err());
    }

    #[test]
    fn this_machine_tells_its_memory() {
        assert!(free().is_some_and(|bytes| bytes > MIB));
    }
}
