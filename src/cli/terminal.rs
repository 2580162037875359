//! A terminal: keys of one that may go away, and whether it is to have colours.

use std::io;
use std::time::Duration;

use ratatui::crossterm::event;

/// Whether there is an event to read within this time. A terminal that is gone, by a window that is closed or a line that is cut, is an
/// error here; crossterm 0.29 would read its end for ever.
pub fn poll(timeout: Duration) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use std::io::IsTerminal as _;
        use std::sync::OnceLock;

        use rustix::event::{PollFd, PollFlags, Timespec};

        // Otherwise keys come from elsewhere.
        static IS_INPUT: OnceLock<bool> = OnceLock::new();
        let input = io::stdin();
        if *IS_INPUT.get_or_init(|| input.is_terminal()) {
            let mut descriptors = [PollFd::new(&input, PollFlags::IN)];
            let timeout = Timespec::try_from(timeout).ok();
            match rustix::event::poll(&mut descriptors, timeout.as_ref()) {
                // A signal: of another size of the window, say.
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if descriptors[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
                return Err(io::Error::new(io::ErrorKind::NotConnected, "the terminal is gone"));
            }
            return event::poll(Duration::ZERO);
        }
    }
    event::poll(timeout)
}

/// Whether colours are wanted: an empty NO_COLOR switches nothing off (https://no-color.org).
pub fn has_colors() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
