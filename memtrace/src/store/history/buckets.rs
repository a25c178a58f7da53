//! Fault histograms as they lie in the database: for each bucket that is not empty its index in one byte and its
//! count as a LEB128 number. Two are merged by adding counts of equal indices.

/// The bytes of a histogram; `None` of an empty one.
pub fn encode(buckets: &[u64]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for (index, &count) in buckets.iter().enumerate() {
        let Ok(index) = u8::try_from(index) else {
            break;
        };
        if count > 0 {
            bytes.push(index);
            leb128(count, &mut bytes);
        }
    }
    (!bytes.is_empty()).then_some(bytes)
}

fn leb128(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// Adds the histogram in `bytes` to `to`, which grows as need be. False where the bytes are no histogram.
pub fn add(bytes: &[u8], to: &mut Vec<u64>) -> bool {
    let mut rest = bytes.iter();
    while let Some(&index) = rest.next() {
        let mut count = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = rest.next() else {
                return false;
            };
            count |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        let index = usize::from(index);
        if to.len() <= index {
            to.resize(index + 1, 0);
        }
        to[index] = to[index].saturating_add(count);
    }
    true
}

/// What came since `before`.
pub fn since(before: &[u64], now: &[u64]) -> Vec<u64> {
    let before = before.iter().copied().chain(std::iter::repeat(0));
    now.iter()
        .zip(before)
        .map(|(now, before)| now.saturating_sub(before))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_merge() {
        let mut first = vec![0; 128];
        (first[0], first[40], first[127]) = (1, 300, u64::MAX);
        let second = [0, 5];
        let bytes = encode(&first).unwrap();
        assert_eq!(bytes[..5], [0, 1, 40, 0xac, 2]);
        let mut sum = Vec::new();
        assert!(add(&bytes, &mut sum));
        assert_eq!(sum, first);
        assert!(add(&encode(&second).unwrap(), &mut sum));
        assert_eq!((sum[0], sum[1], sum[40]), (1, 5, 300));
        assert_eq!(encode(&[0, 0]), None);
        assert!(!add(&[4], &mut sum), "a count is missing");
        assert!(!add(&[4, 0x80], &mut sum), "a count is cut");
        assert_eq!(since(&[1, 2], &[5, 2, 3]), [4, 0, 3]);
        assert_eq!(since(&[], &[5]), [5]);
    }
}
