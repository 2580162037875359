//! Files that appear whole or not at all.

use std::fs::{self, File, Metadata};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Symbolic links that may follow one another, as in Linux.
const MOST_LINKS: usize = 40;

/// Replaces a file by these bytes, at once: they are written beside it under a temporary name, flushed, and renamed.
///
/// Through a symbolic link its target is written, there already or not. What is there keeps its mode and, where the
/// system lets us, its owner; a new file has the mode that the umask gives. Once this returns, the new name outlasts a
/// crash on file systems whose folders can be flushed.
///
/// # Errors
/// [`Error::Io`]: something is there that is no ordinary file, or the folder cannot be written; what was there stays.
pub fn write_atomically(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let write = || {
        let target = follow_links(path)?;
        let old = match fs::metadata(&target) {
            Ok(old) if !old.is_file() => return Err(io::Error::other("it is no ordinary file; give another path")),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            old => old.ok(),
        };
        let folder = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = temporary(old.as_ref()).tempfile_in(folder)?;
        file.write_all(bytes)?;
        if let Some(old) = &old {
            be_like(file.as_file(), old)?;
        }
        file.as_file().sync_all()?;
        file.persist(&target).map_err(|error| error.error)?;
        flush_folder(folder);
        Ok(())
    };
    write().map_err(Error::io(path))
}

/// What temporary files are called, so that they are known when nobody writes them any more.
const TEMPORARY: &str = ".elman-unfinished-";

/// Removes what programs that were killed had not finished to write into a folder. That it cannot be removed costs space alone.
pub fn remove_temporary(folder: &Path) {
    for file in fs::read_dir(folder).into_iter().flatten().flatten() {
        if file.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY)) {
            let _ = fs::remove_file(file.path());
        }
    }
}

/// Where a path leads: the last target, which need not exist.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..=MOST_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            // No link.
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other(format!("more than {MOST_LINKS} symbolic links follow one another")))
}

/// A temporary file is open to nobody that the old file was closed to; where there was none, the umask has it.
#[cfg(unix)]
fn temporary(old: Option<&Metadata>) -> tempfile::Builder<'static, 'static> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    builder.permissions(old.map_or(fs::Permissions::from_mode(0o666), Metadata::permissions));
    builder
}

/// What the umask took away is given back. Only root may give files away, and that it is refused is no reason not to save.
#[cfg(unix)]
fn be_like(file: &File, old: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, fchown};
    let _ = fchown(file, Some(old.uid()), Some(old.gid()));
    file.set_permissions(old.permissions())
}

/// Some file systems have no such thing, and some folders may be written but not read.
#[cfg(unix)]
fn flush_folder(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

#[cfg(not(unix))]
fn temporary(_: Option<&Metadata>) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    builder
}

#[cfg(not(unix))]
fn be_like(_: &File, _: &Metadata) -> io::Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn flush_folder(_: &Path) {}
