//! A configuration file and a file of clients' keys: no text breaks the readers, and an error names the file and shows
//! nothing that might be a key.

use std::io::Write as _;

use crate::config::{File, GatewaySection};

/// Checks both readers, and what becomes of the sections.
///
/// # Panics
/// When it does not hold, or when the system gives no file.
pub(crate) fn config_file(bytes: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(bytes).expect("room for it");
    let name = file.path().display().to_string();
    match File::load(Some(file.path())) {
        Ok(File { controller, worker, gateway, .. }) => {
            let _ = (controller.config(), worker.config());
            // A file that the text names is anybody's, and may never end.
            if gateway.api_key_file.is_none() && gateway.fleet_token_file.is_none() && gateway.openai_key_file.is_none()
            {
                let _ = gateway.config();
            }
        }
        Err(error) => assert!(format!("{error:#}").contains(&name), "{error:#}"),
    }
    let keys = GatewaySection { api_key_file: Some(file.path().to_owned()), ..GatewaySection::default() };
    if let Err(error) = keys.config() {
        assert!(format!("{error:#}").contains(&name), "{error:#}");
    }
}
