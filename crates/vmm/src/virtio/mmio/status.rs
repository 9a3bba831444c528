//! The device status field (virtio 1.2, sections 2.1 and 3.1.1): bits are only ever added, each at its time.

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// The driver wrote bits that it may not have now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

/// The status as the driver reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Status(u32);

impl Status {
    pub(super) fn bits(self, needs_reset: bool) -> u32 {
        self.0 | if needs_reset { NEEDS_RESET } else { 0 }
    }

    /// Between DRIVER and FEATURES_OK.
    pub(super) fn may_set_features(self) -> bool {
        self.0 == ACKNOWLEDGE | DRIVER
    }

    /// Between FEATURES_OK and DRIVER_OK.
    pub(super) fn may_set_up_queues(self) -> bool {
        self.0 == ACKNOWLEDGE | DRIVER | FEATURES_OK
    }

    /// Takes the driver's write; several bits at once count as written in order. `agreed`: the driver's features are
    /// among those offered. Returns whether the device goes live now.
    ///
    /// # Errors
    /// [`Refused`]: bits were cleared, skipped or unknown; the status then keeps what was in order, so that the
    /// driver finds FEATURES_OK missing when it reads back (section 3.1.1, step 6).
    pub(super) fn advance(&mut self, value: u32, agreed: bool) -> Result<bool, Refused> {
        let known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;
        let value = value & !NEEDS_RESET;
        if value & self.0 != self.0 || value & !known != 0 {
            return Err(Refused);
        }
        if self.0 & FAILED != 0 || value & FAILED != 0 {
            // The driver gave up; only a reset leads on.
            self.0 |= FAILED;
            return Ok(false);
        }
        let was_live = self.0 & DRIVER_OK != 0;
        for bit in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK] {
            let before = bit_before(bit);
            if value & bit == 0 || self.0 & bit != 0 {
                continue;
            }
            if self.0 & before != before || (bit == FEATURES_OK && !agreed) {
                return Err(Refused);
            }
            self.0 |= bit;
        }
        Ok(!was_live && self.0 & DRIVER_OK != 0)
    }
}

/// The bits that must be there before this one.
fn bit_before(bit: u32) -> u32 {
    match bit {
        DRIVER => ACKNOWLEDGE,
        FEATURES_OK => ACKNOWLEDGE | DRIVER,
        DRIVER_OK => ACKNOWLEDGE | DRIVER | FEATURES_OK,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_of_the_specification_goes_live() {
        let mut status = Status::default();
        assert_eq!(status.advance(1, true), Ok(false));
        assert_eq!(status.advance(3, true), Ok(false));
        assert!(status.may_set_features());
        assert_eq!(status.advance(11, true), Ok(false));
        assert!(status.may_set_up_queues());
        assert_eq!(status.advance(15, true), Ok(true));
        assert_eq!(status.advance(15, true), Ok(false));
    }

    #[test]
    fn s14_features_ok_is_refused_without_agreement() {
        let mut status = Status::default();
        assert_eq!(status.advance(11, false), Err(Refused));
        assert_eq!(status.bits(false), 3);
    }

    #[test]
    fn s14_skipped_and_cleared_bits_are_refused() {
        let mut status = Status::default();
        assert_eq!(status.advance(4, true), Err(Refused));
        assert_eq!(status.advance(3, true), Ok(false));
        assert_eq!(status.advance(1, true), Err(Refused));
        assert_eq!(status.advance(7, true), Err(Refused));
        assert_eq!(status.bits(false), 3);
    }

    #[test]
    fn s14_failed_driver_cannot_go_on() {
        let mut status = Status::default();
        status.advance(11, true).unwrap();
        assert_eq!(status.advance(11 | 128, true), Ok(false));
        assert_eq!(status.advance(15 | 128, true), Ok(false));
        assert!(!status.may_set_up_queues());
    }

    proptest! {
        #[test]
        fn live_implies_agreement(writes in prop::collection::vec((any::<u32>(), any::<bool>()), 0..40)) {
            let mut status = Status::default();
            let mut agreed_once = false;
            for (value, agreed) in writes {
                agreed_once |= agreed;
                let live = status.advance(value & 0xff, agreed) == Ok(true);
                prop_assert!(!live || agreed_once);
                prop_assert!(status.bits(false) & DRIVER_OK == 0 || status.bits(false) & FEATURES_OK != 0);
            }
        }
    }
}
