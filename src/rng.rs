//! PyTorch's CPU random generator, draw for draw.
//!
//! `torch.manual_seed(777)` followed by any mix of `rand`, `randn`, `uniform_` and `randperm` gives the same numbers
//! as [`manual_seed`]`(777)` followed by the same calls here, so initial weights and the order of batches match.
//! Written by hand because no crate reproduces PyTorch's transformations (24-bit uniforms, Box-Muller in blocks of
//! 16, the cached second normal); the raw draws are Matsumoto and Nishimura's mt19937 (1998).

use serde::{Deserialize, Serialize};

const N: usize = 624;
const M: usize = 397;

/// A generator seeded like `torch.manual_seed(seed)`.
///
/// ```
/// let mut rng = elman::rng::manual_seed(777);
/// let first = rng.rand(1)[0];
/// assert!((0.0..1.0).contains(&first));
/// assert_eq!(first, elman::rng::manual_seed(777).rand(1)[0]);
/// ```
pub fn manual_seed(seed: u64) -> Rng {
    // PyTorch seeds the twister with the low 32 bits.
    let mut state = [0; N];
    state[0] = seed as u32;
    for i in 1..N {
        let previous: u32 = state[i - 1] ^ (state[i - 1] >> 30);
        state[i] = previous.wrapping_mul(1_812_433_253).wrapping_add(i as u32);
    }
    Rng { state, used: N, spare_normal: None }
}

/// The generator; see [`manual_seed`]. What serde keeps of it goes on with the same draws.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Saved", into = "Saved")]
pub struct Rng {
    state: [u32; N],
    used: usize,
    spare_normal: Option<f64>,
}

/// A generator as it is kept.
#[derive(Serialize, Deserialize)]
struct Saved {
    state: Vec<u32>,
    used: usize,
    spare_normal: Option<f64>,
}

impl From<Rng> for Saved {
    fn from(Rng { state, used, spare_normal }: Rng) -> Self {
        Self { state: state.into(), used, spare_normal }
    }
}

impl TryFrom<Saved> for Rng {
    type Error = &'static str;

    fn try_from(Saved { state, used, spare_normal }: Saved) -> Result<Self, Self::Error> {
        let state: [u32; N] = state.try_into().map_err(|_| "a generator has 624 words")?;
        if used > N || state.iter().all(|&word| word == 0) || spare_normal.is_some_and(|spare| !spare.is_finite()) {
            return Err("no generator has this state");
        }
        Ok(Self { state, used, spare_normal })
    }
}

impl Rng {
    /// The next 32 raw bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == N {
            self.twist();
        }
        let mut y = self.state[self.used];
        self.used += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// The next N words, before they are tempered.
    #[cold]
    fn twist(&mut self) {
        let state = &mut self.state;
        let twisted = |high: u32, low: u32| {
            let y = (high & 0x8000_0000) | (low & 0x7fff_ffff);
            (y >> 1) ^ ((y & 1) * 0x9908_b0df)
        };
        (0..N - M).for_each(|i| state[i] = state[i + M] ^ twisted(state[i], state[i + 1]));
        (N - M..N - 1).for_each(|i| state[i] = state[i + M - N] ^ twisted(state[i], state[i + 1]));
        state[N - 1] = state[M - 1] ^ twisted(state[N - 1], state[0]);
        self.used = 0;
    }

    /// Uniform in [0, 1) with 24 bits: `torch.rand`'s draw.
    fn unit_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 / (1 << 24) as f32
    }

    /// Uniform in [0, 1) with 53 bits, from two draws.
    fn unit_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32()) << 32;
        let bits = high | u64::from(self.next_u32());
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// `torch.rand(n)`: uniform in [0, 1).
    pub fn rand(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit_f32()).collect()
    }

    /// `torch.empty(n).uniform_(from, to)`.
    pub fn uniform(&mut self, n: usize, from: f64, to: f64) -> Vec<f32> {
        let (from, to) = (from as f32, to as f32);
        // One rounding, as PyTorch's compiled code does it.
        (0..n).map(|_| self.unit_f32().mul_add(to - from, from)).collect()
    }

    /// `torch.randn(n)`: standard normal. Equal to PyTorch's up to the last bits of log, sin and cos.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < 16 {
            return (0..n).map(|_| self.normal_f64() as f32).collect();
        }
        let mut values = self.rand(n);
        for block in values.chunks_exact_mut(16) {
            box_muller(block);
        }
        if !n.is_multiple_of(16) {
            // The last sixteen are drawn anew, as PyTorch does.
            let tail = &mut values[n - 16..];
            tail.fill_with(|| self.unit_f32());
            box_muller(tail);
        }
        values
    }

    fn normal_f64(&mut self) -> f64 {
        if let Some(spare) = self.spare_normal.take() {
            return spare;
        }
        let (u1, u2) = (self.unit_f64(), self.unit_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let angle = std::f64::consts::TAU * u1;
        self.spare_normal = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// `torch.randint(0, high, (n,))`: uniform in 0..high. A `high` of 0 is taken for 1.
    ///
    /// ```
    /// assert_eq!(elman::rng::manual_seed(777).randint(10, 8), [5, 9, 1, 8, 5, 7, 7, 7]);
    /// ```
    pub fn randint(&mut self, high: u32, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.next_u32() % high.max(1)).collect()
    }

    /// `torch.randperm(n)`: a random order of 0..n.
    pub fn randperm(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in 0..n.saturating_sub(1) {
            let z = self.next_u32() % (n - i) as u32;
            order.swap(i, i + z as usize);
        }
        order
    }
}

/// Sixteen uniforms to sixteen normals: the first eight give radii, the last eight angles.
fn box_muller(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(8);
    for (r, a) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * (1.0 - *r).ln()).sqrt();
        let angle = std::f32::consts::TAU * *a;
        (*r, *a) = (radius * angle.cos(), radius * angle.sin());
    }
}

/// Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): two random words
/// for a key and a counter. `shaders/lib/threefry.wgsl` has the same function.
///
/// ```
/// // The known-answer test of the authors' Random123 library.
/// assert_eq!(elman::rng::threefry2x32([0, 0], [0, 0]), [0x6b200159, 0x99ba4efe]);
/// ```
pub fn threefry2x32(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    threefry2x32_each(key, counter.map(|counter| [counter])).map(|[word]| word)
}

/// [`threefry2x32`] of so many counters, as the loops over vectors that a compiler makes of it.
#[inline(always)]
pub(crate) fn threefry2x32_each<const N: usize>(key: [u32; 2], counters: [[u32; N]; 2]) -> [[u32; N]; 2] {
    const ROTATIONS: [u32; 8] = [13, 15, 26, 6, 17, 29, 16, 24];
    let keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1bd1_1bda];
    let [mut x, mut y] = counters;
    x.iter_mut().for_each(|x| *x = x.wrapping_add(key[0]));
    y.iter_mut().for_each(|y| *y = y.wrapping_add(key[1]));
    for round in 0..20 {
        for (x, y) in x.iter_mut().zip(&mut y) {
            *x = x.wrapping_add(*y);
            *y = y.rotate_left(ROTATIONS[round % 8]) ^ *x;
        }
        if round % 4 == 3 {
            let injection = round / 4 + 1;
            let second = keys[(injection + 1) % 3].wrapping_add(injection as u32);
            x.iter_mut().for_each(|x| *x = x.wrapping_add(keys[injection % 3]));
            y.iter_mut().for_each(|y| *y = y.wrapping_add(second));
        }
    }
    [x, y]
}
