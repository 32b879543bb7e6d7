//! Windows of flow control (RFC 9113 §6.9).

/// The window of streams and connections until somebody says otherwise (RFC 9113 §6.9.2).
pub(crate) const DEFAULT: u32 = 65_535;
/// The largest window (RFC 9113 §6.9.1).
pub(crate) const LARGEST: u32 = (1 << 31) - 1;

/// What one side may still send. Below zero when SETTINGS took away what was used already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window(i32);

/// A window beyond [`LARGEST`], or one that was overrun.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overflow;

impl Window {
    pub(crate) fn new(size: u32) -> Self {
        Self(i32::try_from(size.min(LARGEST)).expect("LARGEST fits"))
    }

    /// What may be sent now.
    pub(crate) fn room(self) -> u32 {
        u32::try_from(self.0).unwrap_or(0)
    }

    /// Moves it by `by`, as a WINDOW_UPDATE or a change of SETTINGS does.
    pub(crate) fn shift(&mut self, by: i64) -> Result<(), Overflow> {
        self.0 = i32::try_from(i64::from(self.0) + by).map_err(|_| Overflow)?;
        Ok(())
    }

    /// Uses `bytes` of it, which must be there.
    pub(crate) fn take(&mut self, bytes: u32) -> Result<(), Overflow> {
        if bytes > self.room() && bytes > 0 {
            return Err(Overflow);
        }
        self.shift(-i64::from(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_end_where_they_must() {
        let mut window = Window::new(100);
        assert_eq!(window.take(101), Err(Overflow));
        assert_eq!(window.take(100), Ok(()));
        assert_eq!(window.take(0), Ok(()));
        assert_eq!(window.shift(-50), Ok(()));
        assert_eq!((window.room(), window.take(1)), (0, Err(Overflow)));
        assert_eq!(window.shift(i64::from(LARGEST)), Ok(()));
        assert_eq!(window.room(), LARGEST - 50);
        assert_eq!(window.shift(51), Err(Overflow));
        assert_eq!(Window::new(u32::MAX).room(), LARGEST);
    }
}
