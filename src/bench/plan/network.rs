//! Sums over all ranks: bytes and time on links of given rates (Thakur et al. 2005; a ring in each machine, rings between machines).

/// Where the ranks are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranks {
    /// All of them.
    pub all: usize,
    /// In one machine, at most.
    pub per_node: usize,
}

impl Ranks {
    /// (ranks in a machine, machines).
    pub fn split(self) -> (usize, usize) {
        let inside = self.per_node.min(self.all).max(1);
        (inside, self.all.div_ceil(inside))
    }

    /// Bytes that each rank sends in an all-reduce of `bytes`: 2 (n - 1) / n of them.
    pub fn sent(self, bytes: f64) -> f64 {
        let n = self.all as f64;
        2.0 * (n - 1.0) / n * bytes
    }

    /// Seconds of an all-reduce of `bytes`: scattered sums in each machine at `link` bytes/s, a ring over the machines for each rank's part at `network` bytes/s, gathering in
    /// each machine; `latency` s a message.
    pub fn all_reduce(self, bytes: f64, link: f64, network: f64, latency: f64) -> f64 {
        let (inside, machines) = self.split();
        let (g, m) = (inside as f64, machines as f64);
        let ring = |n: f64, bytes: f64, rate: f64| 2.0 * (n - 1.0) * (bytes / n / rate + latency);
        ring(g, bytes, link) + ring(m, bytes / g, network)
    }

    /// Seconds of gathering `bytes` that lie in equal parts on all ranks: half of an all-reduce.
    pub fn all_gather(self, bytes: f64, link: f64, network: f64, latency: f64) -> f64 {
        self.all_reduce(bytes, link, network, latency) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_moves_what_theory_says() {
        let one = Ranks { all: 1, per_node: 8 };
        assert_eq!((one.sent(8e9), one.all_reduce(8e9, 1e9, 1e9, 1e-3)), (0.0, 0.0));
        let eight = Ranks { all: 8, per_node: 8 };
        assert_eq!(eight.sent(8e9), 14e9);
        assert!((eight.all_reduce(8e9, 100e9, 1e9, 0.0) - 0.14).abs() < 1e-12);
        // Two machines: 7/4 of the bytes inside at 100 GB/s, an eighth of them between both at 10 GB/s.
        let two = Ranks { all: 16, per_node: 8 };
        assert!((two.all_reduce(8e9, 100e9, 10e9, 0.0) - 0.24).abs() < 1e-12);
        assert!((two.all_reduce(0.0, 100e9, 10e9, 1e-5) - 16e-5).abs() < 1e-12);
    }
}
