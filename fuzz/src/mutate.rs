//! A small mutator for runs without coverage: the same inputs from the same seed, on every machine.

/// xorshift64*.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed, of which 0 is as good as any other.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9E37_79B9_7F4A_7C15)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Below `end`; 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let end = end.max(1) as u64;
        usize::try_from((self.next() >> 11) % end).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }
}

const EDGES: [u8; 12] = [0, 1, 2, 3, 4, 8, 0x10, 0x40, 0x7f, 0x80, 0xfe, 0xff];

/// Changes `data` in one to four places, with parts of `other` among them; at most `max` bytes result.
pub fn mutate(random: &mut Random, data: &mut Vec<u8>, other: &[u8], max: usize) {
    for _ in 0..=random.below(4) {
        let at = random.below(data.len() + 1);
        match random.below(8) {
            0 | 1 if at < data.len() => data[at] = random.byte(),
            2 if at < data.len() => data[at] = EDGES[random.below(EDGES.len())],
            3 if at < data.len() => data[at] ^= 1 << random.below(8),
            4 => {
                let end = data.len().min(at + 1 + random.below(16));
                data.drain(at..end);
            }
            5 => {
                let bytes: Vec<u8> = (0..=random.below(8)).map(|_| random.byte()).collect();
                data.splice(at..at, bytes);
            }
            6 => {
                let end = data.len().min(at + 1 + random.below(64));
                let again = data[at..end].to_vec();
                data.splice(at..at, again);
            }
            _ => {
                let from = random.below(other.len());
                let end = other.len().min(from + 1 + random.below(256));
                let to = data.len().min(at + random.below(32));
                data.splice(at..to, other[from..end].iter().copied());
            }
        }
    }
    data.truncate(max);
}
