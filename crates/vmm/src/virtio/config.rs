//! Configuration spaces: bytes at fixed offsets.

/// Writes a field. What does not fit is left out; offsets are constants of the specification.
pub(crate) fn put(space: &mut [u8], at: usize, field: &[u8]) {
    if let Some(room) = space.get_mut(at..at + field.len()) {
        room.copy_from_slice(field);
    }
}

/// Copies from `offset`; bytes past the end are zero.
pub(crate) fn read(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn s15_bytes_past_the_end_are_zero(space: Vec<u8>, offset in prop_oneof![0u64..80, any::<u64>()]) {
            let mut data = [0xff; 16];
            read(&space, offset, &mut data);
            for (n, byte) in data.iter().enumerate() {
                let at = offset.checked_add(n as u64).and_then(|at| usize::try_from(at).ok());
                let expected = at.and_then(|at| space.get(at)).copied().unwrap_or(0);
                prop_assert_eq!(*byte, expected);
            }
        }
    }
}
