//! What a device does at most, and what it costs to ask: for `elman doctor`, and beside the times of `elman bench`.

use std::time::Instant;

use anyhow::{Result, ensure};
use elman::kernels::accumulate::accumulate;
use elman::kernels::matmul::matmul;
use elman::{DType, Device, Plan, Recorder, Tensor, rng};
use serde::Serialize;

/// What was measured: each a median.
#[derive(Clone, Debug, Serialize)]
pub struct Ceilings {
    /// Microseconds of a dispatch that does nothing to speak of, among many.
    pub dispatch_us: f64,
    /// Microseconds to submit one such dispatch and wait for it.
    pub round_trip_us: f64,
    /// Microseconds to read a number back.
    pub read_us: f64,
    /// 10⁹ multiplications and additions a second of a product of matrices.
    pub gflop_per_second: f64,
    /// Edge of those matrices.
    pub product: usize,
    /// 10⁹ bytes a second, read and written, of the sum of two tensors.
    pub gb_per_second: f64,
    /// Megabytes of those tensors, together.
    pub stream_mb: f64,
}

impl Ceilings {
    /// Milliseconds that so much work takes at least: the larger of what products and memory take.
    pub fn least_ms(&self, flops: u64, bytes: u64) -> f64 {
        let [products, memory] = [flops as f64 / self.gflop_per_second, bytes as f64 / self.gb_per_second];
        products.max(memory) / 1e6
    }
}

/// What a sample takes at least, in seconds.
const LEAST: f64 = 0.01;

/// Measures a device, each result checked before its time counts. It takes seconds on a software driver.
///
/// # Errors
/// A result is wrong, or the device failed.
pub fn measure(device: &Device) -> Result<Ceilings> {
    let (dispatch_us, round_trip_us, read_us) = dispatches(device)?;
    let (gflop_per_second, product) = products(device)?;
    let (gb_per_second, stream_mb) = stream(device)?;
    Ok(Ceilings { dispatch_us, round_trip_us, read_us, gflop_per_second, product, gb_per_second, stream_mb })
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn timed(work: impl FnOnce() -> elman::Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Seconds of a run, among as many as take a while.
fn seconds(device: &Device, plan: &Plan) -> Result<f64> {
    let run = |times| timed(|| plan.run_times(times).and_then(|()| device.synchronize()));
    // The first may compile, or take memory.
    run(1)?;
    let times = (LEAST / run(1)?.max(1e-7)).ceil().min(1000.0) as usize;
    let samples = (0..5).map(|_| run(times)).collect::<Result<_>>()?;
    Ok(median(samples) / times as f64)
}

/// Microseconds of a dispatch, of one with a wait, and of a read.
fn dispatches(device: &Device) -> Result<(f64, f64, f64)> {
    const MANY: usize = 200;
    let x = device.upload("x", &[1], &[1.0])?;
    let y = device.zeros("y", &[1], DType::F32)?;
    let adds = |times: usize| {
        let mut r = Recorder::new(device);
        (0..times).try_for_each(|_| accumulate(&mut r, &x, &y))?;
        r.finish()
    };
    let (many, one) = (adds(MANY)?, adds(1)?);
    many.run()?;
    ensure!(y.to_vec()? == [MANY as f32], "{MANY} dispatches that add 1 make {:?}", y.to_vec()?);
    let dispatch = seconds(device, &many)? / MANY as f64;
    let sample = |work: &dyn Fn() -> elman::Result<()>| (0..20).map(|_| timed(work)).collect::<Result<_>>().map(median);
    let round_trip = sample(&|| one.run().and_then(|()| device.synchronize()))?;
    let read = sample(&|| y.to_vec().map(drop))?;
    Ok((1e6 * dispatch, 1e6 * round_trip, 1e6 * read))
}

/// GFLOP/s of the product of two square matrices, as large as takes a while, and their edge.
fn products(device: &Device) -> Result<(f64, usize)> {
    let mut most = (0.0, 0);
    for edge in [256, 512, 1024, 2048, 4096] {
        let random = |seed| rng::manual_seed(seed).uniform(edge * edge, -1.0, 1.0);
        let (a, b) = (random(1), random(2));
        let c = device.zeros("c", &[edge, edge], DType::F32)?;
        let mut r = Recorder::new(device);
        let [a_tensor, b_tensor] =
            [("a", &a), ("b", &b)].map(|(name, values)| device.upload(name, &[edge, edge], values));
        matmul(&mut r, &a_tensor?, &b_tensor?, None, &c, false)?;
        let plan = r.finish()?;
        plan.run()?;
        check_product(&a, &b, &c, edge)?;
        let seconds = seconds(device, &plan)?;
        let gflop_per_second = plan.count().flops as f64 / seconds / 1e9;
        if gflop_per_second > most.0 {
            most = (gflop_per_second, edge);
        }
        if seconds >= 5.0 * LEAST {
            break;
        }
    }
    Ok(most)
}

/// The first and the last row of a product, in f64.
fn check_product(a: &[f32], b: &[f32], c: &Tensor, edge: usize) -> Result<()> {
    let got = c.to_vec_f64()?;
    for row in [0, edge - 1] {
        let mut want = vec![0.0; edge];
        for (k, &a) in a[row * edge..][..edge].iter().enumerate() {
            want.iter_mut().zip(&b[k * edge..]).for_each(|(sum, &b)| *sum += f64::from(a) * f64::from(b));
        }
        let off = |(got, want): (&f64, &f64)| (got - want).abs() / (edge as f64).sqrt();
        let is_right = got[row * edge..].iter().zip(&want).map(off).all(|error| error <= 1e-4);
        ensure!(is_right, "a product of {edge} x {edge} matrices is wrong in row {row}");
    }
    Ok(())
}

/// GB/s of the sum of two tensors, as large as takes a while, and their size in MB.
fn stream(device: &Device) -> Result<(f64, f64)> {
    let mut n = 1 << 20;
    loop {
        let (x, y) = (device.upload("x", &[n], &vec![1.0; n])?, device.zeros("y", &[n], DType::F32)?);
        let mut r = Recorder::new(device);
        accumulate(&mut r, &x, &y)?;
        let plan = r.finish()?;
        let fits = |n| n <= 1 << 25 && device.adapter().is_none_or(|adapter| 4 * n <= adapter.largest_tensor());
        plan.run()?;
        ensure!(y.to_vec()?.iter().all(|&y| y == 1.0), "a sum of two tensors of {n} numbers is wrong");
        let seconds = seconds(device, &plan)?;
        if seconds >= LEAST || !fits(4 * n as u64) {
            return Ok((12e-9 * n as f64 / seconds, 8e-6 * n as f64));
        }
        n *= 4;
    }
}
