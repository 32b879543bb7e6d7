//! How large a stream's receive window is.
//!
//! Pure. What arrives within one round trip shows what the path could carry; a window that was
//! nearly used up within one is too small and doubles. The sum over a tunnel's streams stays under
//! a budget, so that many streams get small windows and few may have large ones: what a reader that
//! stalls can make this side hold is its own stream's window, and no more.
//!
//! HTTP/2 counts twice, per stream and per connection. If the connection's window could run out, one
//! stalled stream would stall its neighbours. So it is [`CONNECTION`], more than all streams can use
//! together.

use crate::pipe::{CHUNK, FRAME};

/// The first window of a stream: one chunk, without a remainder that would travel alone.
pub(crate) const INITIAL: u32 = CHUNK as u32;
/// The largest window of a stream.
const LARGEST: u32 = 16 * CHUNK as u32;
/// The window of a stream while all tunnels together hold much.
const SMALLEST: u32 = FRAME as u32;
/// What all streams of a tunnel may hold together, as long as no window is below [`INITIAL`].
const BUDGET: u32 = 64 * 1024 * 1024;
/// The most bytes between two looks.
const MOST_PATIENT: u64 = 64 * 1024 * 1024;
/// The window of a connection. It is also what a peer can make this side hold that grows its windows
/// with few streams and then fills them with many, or does not take smaller ones: so it counts what
/// waits.
pub(crate) const CONNECTION: u32 = 512 * 1024 * 1024;

/// The window of one tunnel's streams.
#[derive(Debug)]
pub(crate) struct Window {
    size: u32,
    wanted: u32,
    /// Bytes to wait for before the next look; grows while looks find nothing new.
    patience: u64,
}

impl Window {
    /// As streams start.
    pub(crate) fn new() -> Self {
        Self {
            size: INITIAL,
            wanted: INITIAL,
            patience: u64::from(INITIAL) / 2,
        }
    }

    /// Whether `bytes` since the last look are worth a look at the round trip.
    pub(crate) fn curious(&self, bytes: u64) -> bool {
        bytes >= self.patience
    }

    /// The window to announce, if it should change, while all tunnels together hold much. When they
    /// do not any more, the first bytes that come are worth a look, and it is what it was.
    pub(crate) fn squeeze(&mut self) -> Option<u32> {
        self.patience = self.patience.min(u64::from(SMALLEST));
        (self.size > SMALLEST).then_some(SMALLEST)
    }

    /// Learns that `bytes` came within a round trip over `streams` streams. The window to
    /// announce, if it should change; [`set`](Self::set) says that it did.
    pub(crate) fn learn(&mut self, bytes: u64, streams: usize) -> Option<u32> {
        if self.wanted < LARGEST && bytes >= u64::from(self.size) * 2 / 3 {
            self.wanted = (self.size * 2).min(LARGEST);
            self.patience = u64::from(self.size);
        } else {
            self.patience = (self.patience * 2).min(MOST_PATIENT);
        }
        let share = BUDGET / u32::try_from(streams.max(1)).unwrap_or(u32::MAX);
        let size = self.wanted.min(share).max(INITIAL);
        let size = size - size % INITIAL;
        (size != self.size).then_some(size)
    }

    /// The window is `size` from now on.
    pub(crate) fn set(&mut self, size: u32) {
        self.size = size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rounds: &[(u64, usize)], expect: u32) {
        let mut window = Window::new();
        for (bytes, streams) in rounds {
            if let Some(size) = window.learn(*bytes, *streams) {
                window.set(size);
            }
        }
        assert_eq!(window.size, expect * INITIAL, "{rounds:?}");
    }

    #[test]
    fn a_window_grows_with_what_one_round_trip_brings() {
        let much = u64::from(INITIAL) * 100;
        check(&[], 1);
        check(&[(1000, 1)], 1);
        check(&[(much, 1)], 2);
        check(&[(much, 1); 3], 8);
        check(&[(much, 1); 9], 16);
    }

    #[test]
    fn many_streams_share_a_budget() {
        let much = u64::from(INITIAL) * 100;
        check(&[(much, 1), (much, 1), (much, 1), (0, 64)], 4);
        check(&[(much, 1), (much, 1), (0, 1000)], 1);
        let most = u64::from(INITIAL) * 1000;
        assert!(
            most < u64::from(CONNECTION),
            "a thousand stalled streams stall nobody else"
        );
    }

    #[test]
    fn a_squeezed_window_is_soon_what_it_was() {
        let much = u64::from(INITIAL) * 100;
        let mut window = Window::new();
        for _ in 0..30 {
            if let Some(size) = window.learn(much, 1) {
                window.set(size);
            }
        }
        assert_eq!(window.squeeze(), Some(SMALLEST));
        window.set(SMALLEST);
        assert_eq!(window.squeeze(), None);
        assert!(window.curious(u64::from(SMALLEST)));
        assert_eq!(window.learn(much, 1), Some(LARGEST));
        let mut unused = Window::new();
        assert_eq!(unused.squeeze(), Some(SMALLEST));
        unused.set(SMALLEST);
        assert_eq!(unused.learn(1, 1), Some(INITIAL));
    }
}
