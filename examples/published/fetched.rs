//! Files of published networks, which are fetched and not committed.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Where a file of the folder is.
pub fn fetched(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    let cure = "`tests/run.sh --with-python` makes it, with what is in `tests/fixtures/published`";
    ensure!(path.exists(), "there is no {}: {cure}", path.display());
    Ok(path)
}
