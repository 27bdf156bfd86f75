//! What a table asks of each disk: for the preview of a plan, and for whoever checks it.

use lunette_proto::ids::DiskId;

/// Load of every candidate, in order of disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// See [`DiskLoad`].
    pub disks: Vec<DiskLoad>,
}

/// Load of one disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiskLoad {
    /// Which.
    pub disk: DiskId,
    /// Its weight.
    pub weight: u32,
    /// Copies by the previous table.
    pub copies_before: u32,
    /// Copies by this plan.
    pub copies: u32,
    /// Partitions that have this disk first.
    pub first: u32,
    /// Copies that weight and the failure-domain rule give it, before rounding.
    pub fair: f64,
}

impl Load {
    /// Load of the fullest disk over the mean, by weight alone. 1 is even. Larger than
    /// [`max_over_fair`](Self::max_over_fair) where a domain is too heavy to carry its share.
    #[must_use]
    pub fn max_over_mean(&self) -> f64 {
        self.fullest(|disk| f64::from(disk.copies)) * self.weight() / self.copies()
    }

    /// Load of the fullest disk over its fair share, which is what the rule allows.
    #[must_use]
    pub fn max_over_fair(&self) -> f64 {
        let ratios =
            self.disks.iter().filter(|disk| disk.fair > 0.0).map(|disk| f64::from(disk.copies) / disk.fair);
        ratios.fold(0.0, f64::max)
    }

    /// Part of the capacity (as weight) that is used when the first disk is full.
    #[must_use]
    pub fn usable(&self) -> f64 {
        1.0 / self.max_over_mean()
    }

    /// The same for the best table that the rule allows, with copies divided at will.
    #[must_use]
    pub fn usable_by_rule(&self) -> f64 {
        self.copies() / (self.fullest(|disk| disk.fair) * self.weight())
    }

    fn fullest(&self, load: impl Fn(&DiskLoad) -> f64) -> f64 {
        let loaded = self.disks.iter().filter(|disk| disk.weight > 0);
        loaded.map(|disk| load(disk) / f64::from(disk.weight)).fold(0.0, f64::max)
    }

    fn weight(&self) -> f64 {
        self.disks.iter().map(|disk| f64::from(disk.weight)).sum()
    }

    fn copies(&self) -> f64 {
        self.disks.iter().map(|disk| f64::from(disk.copies)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(disks: [(u32, u32, f64); 3]) -> Load {
        let disks = (1..).zip(disks).map(|(id, (weight, copies, fair))| DiskLoad {
            disk: DiskId(id),
            weight,
            copies_before: 0,
            copies,
            first: 0,
            fair,
        });
        Load { disks: disks.collect() }
    }

    fn close(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 1e-9
    }

    /// Guards the meaning of the figures that operators and the benchmark see.
    #[test]
    fn figures() {
        // Weights 1 : 1 : 2, 40 copies: the mean is 10 per unit of weight, the fullest holds 12.
        let uneven = load([(1, 12, 10.0), (1, 8, 10.0), (2, 20, 20.0)]);
        assert!(close(uneven.max_over_mean(), 1.2));
        assert!(close(uneven.max_over_fair(), 1.2));
        assert!(close(uneven.usable(), 10.0 / 12.0));
        assert!(close(uneven.usable_by_rule(), 1.0));

        // The third is held to half of its share by the rule: 30 of the 40 units can be used.
        let held = load([(1, 10, 10.0), (1, 10, 10.0), (2, 10, 10.0)]);
        assert!(close(held.max_over_mean(), 10.0 / 7.5));
        assert!(close(held.max_over_fair(), 1.0));
        assert!(close(held.usable(), 0.75));
        assert!(close(held.usable_by_rule(), 0.75));
    }
}
