//! Whether the user, or the system, wants the program to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What a shell says of a program that SIGINT ended: 128 + 2.
const CODE: i32 = 130;

/// Takes Ctrl-C, SIGTERM and SIGHUP from here on.
pub fn listen() -> Result<()> {
    static LISTENS: Mutex<bool> = Mutex::new(false);
    let mut listens = LISTENS.lock().unwrap_or_else(PoisonError::into_inner);
    if !*listens {
        let handler = || {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(CODE);
            }
        };
        set_handler(handler)
            .map_err(|error| Error::argument("on_interrupt", "signals", "left to this handler alone", error))?;
        *listens = true;
    }
    Ok(())
}

pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

#[cfg(all(feature = "signals", not(target_family = "wasm")))]
use ctrlc::set_handler;

#[cfg(not(all(feature = "signals", not(target_family = "wasm"))))]
fn set_handler(_: impl Fn()) -> std::result::Result<(), &'static str> {
    Err("the crate was built without its feature `signals`")
}
