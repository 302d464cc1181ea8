//! The hypotheses of one sentence: what beam search keeps, counts and ends, as transformers does it (generation/utils.py, `_beam_search`).
use super::config::{BeamParams, BeamStopping};

/// A running hypothesis.
#[derive(Clone, Debug)]
pub struct Hypothesis {
    /// From the start token on.
    pub tokens: Vec<u32>,
    /// Sum of log-probabilities.
    pub score: f32,
    /// Where its keys and values are.
    pub region: usize,
}

/// One continuation: (score, running hypothesis, token).
pub type Candidate = (f32, usize, u32);

/// One sentence being translated.
#[derive(Debug)]
pub struct Search {
    /// Running hypotheses, the best first.
    pub running: Vec<Hypothesis>,
    /// Finished ones with their final scores, the best first: as many as beams at most.
    finished: Vec<(f32, Vec<u32>)>,
    improvable: bool,
    /// Regions of the cache that are this sentence's, as many as beams.
    regions: Vec<usize>,
    /// Nothing more to do.
    pub done: bool,
}

impl Search {
    /// Tokens of each running hypothesis before its last: what its region of the cache holds before the next step.
    pub fn length(&self) -> usize {
        self.running.first().map_or(0, |h| h.tokens.len() - 1)
    }

    /// Begins with the start token.
    pub fn new(start: u32, regions: Vec<usize>) -> Search {
        let first = Hypothesis { tokens: vec![start], score: 0.0, region: regions[0] };
        Search { running: vec![first], finished: vec![], improvable: true, regions, done: false }
    }

    /// Takes the candidates of all running hypotheses, best first, twice as many as beams where there are so many. Returns the copies
    /// (from, to) between regions that bring the cache to the new hypotheses.
    pub fn advance(
        &mut self,
        candidates: &[Candidate],
        params: &BeamParams,
        eos: u32,
    ) -> Vec<(usize, usize)> {
        let beams = params.num_beams;
        // Tokens before this step, the start token among them: what is generated after it.
        let length = self.running.first().map_or(0, |h| h.tokens.len());
        let penalty = |n: usize| (n as f64).powf(params.length_penalty as f64) as f32;
        let ends = |token: u32| token == eos || length + 1 >= params.max_length;
        let valid = || candidates.iter().filter(|c| c.0 > f32::NEG_INFINITY);
        let full = self.finished.len() >= beams && params.early_stopping == BeamStopping::FirstComplete;
        for &(score, from, token) in valid().take(beams).filter(|c| ends(c.2)) {
            if full {
                break;
            }
            let score = score / penalty(length);
            let tokens = [&self.running[from].tokens[..], &[token]].concat();
            let at = self.finished.partition_point(|f| f.0 >= score);
            self.finished.insert(at, (score, tokens));
            self.finished.truncate(beams);
        }
        let next: Vec<Candidate> = valid().filter(|c| !ends(c.2)).take(beams).copied().collect();
        let copies = self.replace_running(&next);
        let greedy_end = beams == 1 && !self.finished.is_empty();
        let hypothetical = match params.early_stopping {
            BeamStopping::Never if params.length_penalty > 0.0 => params.max_length - 1,
            _ => length,
        };
        let best = self.running.first().map_or(f32::NEG_INFINITY, |h| h.score / penalty(hypothetical));
        let worst = self.finished.last().filter(|_| self.finished.len() >= beams);
        self.improvable &= worst.is_none_or(|f| best > f.0);
        let full = self.finished.len() >= beams && params.early_stopping == BeamStopping::FirstComplete;
        self.done = self.running.is_empty() || !self.improvable || full || greedy_end;
        copies
    }

    /// The first child of a hypothesis takes its region; the others get regions that nobody needs any more, to be copied to.
    fn replace_running(&mut self, next: &[Candidate]) -> Vec<(usize, usize)> {
        let mut free = self.regions.clone();
        free.retain(|r| !next.iter().any(|c| self.running[c.1].region == *r));
        let (mut copies, mut taken, mut children) = (vec![], vec![], Vec::with_capacity(next.len()));
        for &(score, from, token) in next {
            let parent = &self.running[from];
            let mut region = parent.region;
            if taken.contains(&region) {
                // As many regions as beams: one is free for every child beyond a parent's first.
                let Some(other) = free.pop() else { break };
                copies.push((region, other));
                region = other;
            }
            taken.push(region);
            children.push(Hypothesis { tokens: [&parent.tokens[..], &[token]].concat(), score, region });
        }
        self.running = children;
        copies
    }

    /// Tokens that a running hypothesis may not take: they would repeat an n-gram of it.
    pub fn forbidden(tokens: &[u32], n: usize) -> Vec<u32> {
        if n == 0 || tokens.len() + 1 < n {
            return vec![];
        }
        let prefix = &tokens[tokens.len() + 1 - n..];
        tokens.windows(n).filter(|w| w[..n - 1] == *prefix).map(|w| w[n - 1]).collect()
    }

    /// The best hypothesis: (score, tokens from the start token on).
    pub fn best(self) -> Option<(f32, Vec<u32>)> {
        self.finished.into_iter().next()
    }
}
