//! GPUs and links by name: what their makers state, and which share of it is taken to be reached.
use std::str::FromStr;

/// One kind of GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// As `--gpu` names it.
    pub name: &'static str,
    /// Dense bf16 products with f32 sums at the boost clock, FLOP/s (NVIDIA's data sheets).
    pub products: f64,
    /// Memory bandwidth, bytes/s.
    pub bandwidth: f64,
    /// Memory, bytes.
    pub memory: f64,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Bandwidth to a neighbour in the machine, bytes/s and direction: NVLink where there is one, else PCIe.
    pub link: f64,
}

const GIB: f64 = (1u64 << 30) as f64;

/// The known ones.
pub const CARDS: [Card; 6] = [
    Card::new("a100", 312e12, 2.039e12, 80.0, 108, 300e9),
    Card::new("h100", 989e12, 3.35e12, 80.0, 132, 450e9),
    Card::new("h200", 989e12, 4.8e12, 141.0, 132, 450e9),
    Card::new("l40s", 362e12, 0.864e12, 48.0, 142, 32e9),
    Card::new("rtx-4090", 165e12, 1.008e12, 24.0, 128, 32e9),
    Card::new("rtx-5090", 209e12, 1.792e12, 32.0, 170, 64e9),
];

impl Card {
    const fn new(
        name: &'static str,
        products: f64,
        bandwidth: f64,
        gib: f64,
        multiprocessors: usize,
        link: f64,
    ) -> Card {
        Card { name, products, bandwidth, memory: gib * GIB, multiprocessors, link }
    }
}

impl FromStr for Card {
    type Err = String;
    fn from_str(s: &str) -> Result<Card, String> {
        let known = || CARDS.map(|c| c.name).join(", ");
        CARDS.into_iter().find(|c| c.name == s.to_ascii_lowercase()).ok_or_else(|| {
            format!("`{s}` is none of {}: name the nearest one and give its rates by --products, --bandwidth, --memory and --link", known())
        })
    }
}

/// Rates that are taken to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Large products, FLOP/s.
    pub products: f64,
    /// Attention's forward pass, FLOP/s.
    pub attention: f64,
    /// Attention's backward pass, FLOP/s.
    pub attention_backward: f64,
    /// Memory, bytes/s.
    pub bandwidth: f64,
    /// Between two kernels, s.
    pub gap: f64,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Memory, bytes.
    pub memory: f64,
    /// To a neighbour in the machine, bytes/s and direction.
    pub link: f64,
    /// From a GPU to another machine, bytes/s and direction.
    pub network: f64,
    /// Of one message, s.
    pub latency: f64,
}

impl Rates {
    /// Of this project's kernels on `card`, as they were read from their machine code and from published kernels of the same structure; none is measured.
    pub fn assumed(card: Card) -> Rates {
        Rates {
            products: 0.66 * card.products,
            attention: 0.15 * card.products,
            attention_backward: 0.13 * card.products,
            bandwidth: 0.8 * card.bandwidth,
            gap: 1.3e-6,
            multiprocessors: card.multiprocessors,
            memory: card.memory,
            link: 0.8 * card.link,
            network: 0.8 * 50e9,
            latency: 10e-6,
        }
    }
}
