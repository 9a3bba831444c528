//! Flow control of one stream (virtio 1.2, section 5.10.6.3). Pure arithmetic on counters that wrap.
//!
//! Each side tells how much it can buffer (`buf_alloc`) and how much it has taken out so far (`fwd_cnt`); the other
//! may have sent at most the sum. What the guest tells about itself is only used to hold back (S26): a lie makes its
//! own stream slow or dead.

/// The guest broke flow control; its stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation;

#[derive(Debug, Clone)]
pub(super) struct Credit {
    /// Bytes that the guest may have under way to us.
    alloc: u32,
    received: u32,
    forwarded: u32,
    /// The last `forwarded` that the guest knows.
    told: u32,
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
}

impl Credit {
    pub(super) fn new(alloc: u32) -> Self {
        Self { alloc, received: 0, forwarded: 0, told: 0, sent: 0, peer_alloc: 0, peer_forwarded: 0 }
    }

    /// Notes what a packet of the guest says about its side.
    ///
    /// # Errors
    /// It claims to have taken out more than was sent.
    pub(super) fn note_peer(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), Violation> {
        let under_way = self.sent.wrapping_sub(fwd_cnt);
        if under_way > u32::MAX / 2 {
            return Err(Violation);
        }
        self.peer_alloc = buf_alloc;
        // Linux may queue two packets in another order than it counted in: an older count says nothing new.
        if under_way <= self.under_way() {
            self.peer_forwarded = fwd_cnt;
        }
        Ok(())
    }

    /// Counts bytes from the guest.
    ///
    /// # Errors
    /// It had no credit for them.
    pub(super) fn receive(&mut self, len: u32) -> Result<(), Violation> {
        let held = self.received.wrapping_sub(self.forwarded);
        match held.checked_add(len) {
            Some(held) if held <= self.alloc => {
                self.received = self.received.wrapping_add(len);
                Ok(())
            }
            _ => Err(Violation),
        }
    }

    /// Counts received bytes that are off our hands.
    pub(super) fn forward(&mut self, len: usize) {
        // At most what was received, which is counted in 32 bits.
        self.forwarded = self.forwarded.wrapping_add(len as u32);
    }

    /// True where the guest should hear of freed space though no other packet goes to it: half of its window, so that a
    /// sender neither stalls nor costs a packet for each of its own. Linux sends no more ahead than it would itself
    /// take, whatever we offer, so the window is the smaller of both.
    pub(super) fn update_due(&self) -> bool {
        let untold = self.forwarded.wrapping_sub(self.told);
        untold > 0 && untold >= self.alloc.min(self.peer_alloc) / 2
    }

    /// `buf_alloc` and `fwd_cnt` for a header.
    pub(super) fn terms(&self) -> (u32, u32) {
        (self.alloc, self.forwarded)
    }

    /// A header with the terms is with the guest.
    pub(super) fn informed(&mut self) {
        self.told = self.forwarded;
    }

    /// Bytes that may be sent to the guest now.
    pub(super) fn room(&self) -> u32 {
        self.peer_alloc.saturating_sub(self.under_way())
    }

    /// Counts bytes to the guest, at most [`Credit::room`].
    pub(super) fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    fn under_way(&self) -> u32 {
        self.sent.wrapping_sub(self.peer_forwarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn s26_more_than_the_credit_is_a_violation() {
        let mut credit = Credit::new(100);
        assert_eq!(credit.receive(100), Ok(()));
        assert_eq!(credit.receive(1), Err(Violation));
        credit.forward(40);
        assert_eq!(credit.receive(40), Ok(()));
        assert_eq!(credit.receive(u32::MAX), Err(Violation));
    }

    #[test]
    fn s26_claiming_bytes_that_were_not_sent_is_a_violation() {
        let mut credit = Credit::new(100);
        assert_eq!(credit.note_peer(1000, 1), Err(Violation));
        credit.note_peer(1000, 0).unwrap();
        credit.send(10);
        assert_eq!(credit.note_peer(1000, 11), Err(Violation));
        assert_eq!(credit.note_peer(1000, 10), Ok(()));
    }

    #[test]
    fn s26_shrunken_buffer_leaves_no_room() {
        let mut credit = Credit::new(100);
        credit.note_peer(1000, 0).unwrap();
        credit.send(600);
        for (alloc, room) in [(1000, 400), (600, 0), (10, 0), (0, 0), (u32::MAX, u32::MAX - 600)] {
            credit.note_peer(alloc, 0).unwrap();
            assert_eq!(credit.room(), room);
        }
    }

    #[test]
    fn s26_counters_wrap() {
        let mut credit = Credit::new(1 << 16);
        let mut taken = 0u32;
        credit.note_peer(1 << 30, 0).unwrap();
        for _ in 0..12 {
            credit.send(1 << 29);
            taken = taken.wrapping_add(1 << 29);
            credit.note_peer(1 << 30, taken).unwrap();
            assert_eq!(credit.room(), 1 << 30);
        }
    }

    #[test]
    fn update_is_due_at_half_of_the_smaller_window() {
        for (alloc, peer_alloc, half) in [(1000, 400, 200), (400, 1000, 200), (1000, 0, 1)] {
            let mut credit = Credit::new(alloc);
            credit.note_peer(peer_alloc, 0).unwrap();
            credit.receive(half).unwrap();
            assert!(!credit.update_due());
            credit.forward(half as usize - 1);
            assert!(!credit.update_due());
            credit.forward(1);
            assert!(credit.update_due());
            credit.informed();
            assert!(!credit.update_due());
        }
    }

    #[test]
    fn older_count_is_no_violation_and_changes_nothing() {
        let mut credit = Credit::new(100);
        credit.note_peer(100, 0).unwrap();
        credit.send(80);
        credit.note_peer(100, 60).unwrap();
        credit.note_peer(100, 20).unwrap();
        assert_eq!(credit.room(), 80);
    }

    proptest! {
        /// Whatever the guest says and sends: no more is held than was promised, no more is sent than it allows.
        #[test]
        fn s26_held_and_sent_stay_bounded(steps in prop::collection::vec((any::<u32>(), any::<u32>(), 0u32..5000), 1..100)) {
            let mut credit = Credit::new(4096);
            let mut held = 0u64;
            for (alloc, fwd, len) in steps {
                let fwd = credit.sent.wrapping_sub(fwd % 8192);
                let _ = credit.note_peer(alloc % 100_000, fwd);
                if credit.receive(len).is_ok() {
                    held += u64::from(len);
                }
                prop_assert!(held <= 4096);
                let out = held / 2;
                credit.forward(out as usize);
                held -= out;
                let before = credit.under_way();
                let send = credit.room().min(len);
                credit.send(send);
                prop_assert!(before.checked_add(send).is_some());
            }
        }
    }
}
