//! What an adapter computes, once for each driver and version of this crate, before it is trusted.
//!
//! The check has a device of its own, so that what it allocates, counts or breaks is gone when the device that was asked for is
//! opened. Its verdict is kept on the disk, beside the compiled pipelines.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::device::gpu::{Adapter, Gpu, cache_folder};
use crate::device::{Device, Kind};
use crate::error::{Error, Result};
use crate::kernels::cell::Cell;
use crate::kernels::log_softmax::log_softmax;
use crate::kernels::log_softmax_backward::log_softmax_backward;
use crate::kernels::map::unary;
use crate::kernels::matmul::matmul;
use crate::kernels::sequence::{self, Sequence};
use crate::plan::{Precision, Recorder};
use crate::rng;
use crate::tensor::{DType, Tensor};

/// Set to 0, adapters are trusted unchecked: to debug a driver.
const SKIP: &str = "ELMAN_SELF_CHECK";

/// What an adapter computed wrong: a sentence on each, if so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What everything needs.
    basics: Option<String>,
    subgroups: Option<String>,
    f16: Option<String>,
}

impl Verdict {
    /// The features that are not to be used, and why.
    pub fn unused(&self) -> (wgpu::Features, Vec<String>) {
        let each = [
            (&self.subgroups, wgpu::Features::SUBGROUP, "subgroups are"),
            (&self.f16, wgpu::Features::SHADER_F16, "f16 is"),
        ];
        let mut features = wgpu::Features::empty();
        let mut sentences = Vec::new();
        for (problem, feature, subject) in each {
            if let Some(problem) = problem {
                features |= feature;
                sentences.push(format!("{subject} not used, since {problem}"));
            }
        }
        (features, sentences)
    }

    /// An error if the adapter is not to be used at all.
    fn refuse(self, adapter: &str, file: Option<&Path>) -> Result<Self> {
        match &self.basics {
            None => Ok(self),
            Some(problem) => Err(Error::Gpu(format!(
                "{adapter} computes wrong values ({problem}); update its driver, or set {SKIP}=0 to use it all the same{}",
                file.map_or_else(String::new, |file| format!("; this is kept in {}", file.display()))
            ))),
        }
    }
}

/// An adapter, opened with what of it is right, and a sentence on each thing that is not.
pub async fn open_checked(adapter: wgpu::Adapter, summary: Adapter) -> Result<(Gpu, Vec<String>)> {
    let verdict = verdict(&adapter, &summary).await?;
    let (without, sentences) = verdict.unused();
    Ok((Gpu::open(&adapter, summary, without).await?, sentences))
}

/// An adapter, opened with all that it has, be it wrong.
pub async fn open_unchecked(adapter: wgpu::Adapter, summary: Adapter) -> Result<(Gpu, Vec<String>)> {
    Ok((Gpu::open(&adapter, summary, wgpu::Features::empty()).await?, vec!["not checked".into()]))
}

/// The verdict on an adapter: the kept one, or that of a check.
///
/// # Errors
/// The adapter is not to be used, or failed.
async fn verdict(adapter: &wgpu::Adapter, summary: &Adapter) -> Result<Verdict> {
    if std::env::var_os(SKIP).is_some_and(|value| value == "0") {
        return Ok(Verdict::default());
    }
    let file = cache_folder().map(|folder| folder.join("self_check.json"));
    let info = summary.info();
    // What it does not have is not checked.
    let features: Vec<_> = summary.features.iter_names().map(|(name, _)| name).collect();
    let key = format!("{}, {}, {}, {:?}, {features:?}", info.name, info.driver, info.driver_info, info.backend);
    if let Some(verdict) = file.as_ref().and_then(|file| recall(file, &key)) {
        return verdict.refuse(summary.name(), file.as_deref());
    }
    let gpu = Gpu::open(adapter, summary.clone(), wgpu::Features::empty()).await?;
    let device = Device::new(Kind::Gpu(Box::new(gpu)), "to be checked");
    // What is recorded is not `Send`, as the future of an opened device is.
    #[cfg(not(target_arch = "wasm32"))]
    let verdict = std::thread::scope(|scope| {
        let checked = scope.spawn(|| pollster::block_on(check(&device))).join();
        checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    #[cfg(target_arch = "wasm32")]
    let verdict = check(&device).await?;
    if let Some(file) = &file {
        keep(file, &key, &verdict);
    }
    verdict.refuse(summary.name(), file.as_deref())
}

/// Verdicts by adapter and driver, of one version of this crate.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: String,
    verdicts: BTreeMap<String, Verdict>,
}

impl Kept {
    /// What cannot be read, or is another version's, is nothing.
    fn read(file: &Path) -> Self {
        let kept: Option<Self> = std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let version = env!("CARGO_PKG_VERSION");
        kept.filter(|kept| kept.version == version)
            .unwrap_or_else(|| Self { version: version.into(), verdicts: BTreeMap::new() })
    }
}

fn recall(file: &Path, key: &str) -> Option<Verdict> {
    Kept::read(file).verdicts.remove(key)
}

/// That it cannot be kept costs another check, and nothing else.
fn keep(file: &Path, key: &str, verdict: &Verdict) {
    let mut kept = Kept::read(file);
    kept.verdicts.insert(key.into(), verdict.clone());
    if let (Ok(bytes), Some(folder)) = (serde_json::to_vec_pretty(&kept), file.parent()) {
        let _ = std::fs::create_dir_all(folder)
            .and_then(|()| crate::files::write_atomically(file, &bytes).map_err(std::io::Error::other));
    }
}

/// What a tensor must hold.
enum Want {
    /// What the twins compute in f64, each value within this share of it.
    Each(f64),
    /// What the twins compute in f64, within this share of the largest value.
    Largest(f64),
    /// These values, to the bit.
    Exactly(Vec<f64>),
}

/// A tensor to be judged, by what it is, and what it must hold.
type Judged = (&'static str, Tensor, Want);

/// # Errors
/// The device was lost, or has no memory.
async fn check(device: &Device) -> Result<Verdict> {
    let limits = device.limits();
    let mut verdict = Verdict { basics: problem(device, false, &basics).await?, ..Verdict::default() };
    if verdict.basics.is_none() && limits.subgroups.is_some() {
        verdict.subgroups = problem(device, true, &|r| recurrence(r, false, Precision::F32)).await?;
    }
    if verdict.basics.is_none() && limits.f16 {
        verdict.f16 = problem(device, true, &|r| recurrence(r, true, Precision::F16)).await?;
    }
    Ok(verdict)
}

/// What is wrong with what is recorded, if anything: a value, or, of what is optional, that the driver refuses it.
async fn problem(
    device: &Device,
    is_optional: bool,
    record: &dyn Fn(&mut Recorder) -> Result<Vec<Judged>>,
) -> Result<Option<String>> {
    let reference = Device::reference();
    let mut r = Recorder::new(&reference);
    let exact = record(&mut r)?;
    r.finish_async().await?.run()?;
    let run = async || {
        let mut r = Recorder::new(device);
        let judged = record(&mut r)?;
        r.finish_async().await?.run()?;
        let mut results = Vec::new();
        for (_, tensor, _) in &judged {
            results.push(tensor.to_vec_async().await?);
        }
        Ok(results)
    };
    let results = match run().await {
        Ok(results) => results,
        Err(Error::Gpu(problem)) if is_optional => return Ok(Some(problem)),
        Err(error) => return Err(error),
    };
    for ((what, tensor, want), got) in exact.iter().zip(results) {
        if let Err(problem) = judge(what, &got, &tensor.to_vec_f64()?, want) {
            return Ok(Some(problem));
        }
    }
    Ok(None)
}

/// Compares what an adapter computed with what the twins did.
fn judge(what: &str, got: &[f32], exact: &[f64], want: &Want) -> Result<(), String> {
    let largest = exact.iter().filter(|x| x.is_finite()).fold(0.0f64, |largest, x| largest.max(x.abs()));
    let exact = if let Want::Exactly(values) = want { values } else { exact };
    for (i, (&got, &exact)) in got.iter().zip(exact).enumerate() {
        let got = f64::from(got);
        let allowed = match want {
            _ if !exact.is_finite() => 0.0,
            // What is below the least normal number may be 0.
            Want::Each(share) => share * exact.abs() + f64::from(f32::MIN_POSITIVE),
            Want::Largest(share) => share * largest,
            Want::Exactly(_) => 0.0,
        };
        if !(got == exact || (got.is_nan() && exact.is_nan()) || (got - exact).abs() <= allowed) {
            return Err(format!("{what} has {got:e} at {i} in place of {exact:e}"));
        }
    }
    Ok(())
}

/// exp, log, tanh and the logistic function, a product, a sum in the promised order, and a recurrence.
fn basics(r: &mut Recorder) -> Result<Vec<Judged>> {
    let device = r.device().clone();
    let zeros = |name: &str, shape: &[usize]| device.zeros(name, shape, DType::F32);
    let mut x = vec![0.0, 20.0, -20.0, 88.0, -88.0, 1e4, -1e4, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    x.extend([1e-6, -1e-3, 0.1, -0.2, 0.4, 0.7, -1.0, 1.7, -3.0, 5.0, -8.5, 11.0]);
    let n = x.len();
    let x = device.upload("x", &[n], &x)?;
    let [tanh, sigmoid] = [zeros("tanh", &[n])?, zeros("sigmoid", &[n])?];
    unary(r, |x| x.tanh(), &x, &tanh)?;
    unary(r, |x| x.sigmoid(), &x, &sigmoid)?;

    // -exp(y), where the gradient is 1 in one place and 0 in the others.
    let y: Vec<f32> = (0..65).map(|i| -1.37 * i as f32).collect();
    let mut dy = vec![0.0; 65];
    dy[64] = 1.0;
    let (y, dy) = (device.upload("y", &[1, 65], &y)?, device.upload("dy", &[1, 65], &dy)?);
    let (exp, log) = (zeros("exp", &[1, 65])?, zeros("log", &[1, 65])?);
    log_softmax_backward(r, &y, &dy, &exp)?;
    log_softmax(r, &y, &log)?;

    // Whole numbers, so that it is exact.
    let whole = |seed: u64, n: usize| -> Vec<f32> {
        rng::manual_seed(seed).uniform(n, -9.0, 9.0).iter().map(|x| x.round()).collect()
    };
    let (a, b) = (device.upload("a", &[9, 70], &whole(1, 630))?, device.upload("b", &[70, 67], &whole(2, 4690))?);
    let product = zeros("product", &[9, 67])?;
    matmul(r, &a, &b, None, &product, false)?;

    // Halves onto halves: the 1 is lost in the first addition, and in no other order. Of the sum, 0, nothing is left.
    let mut terms = vec![0.0; 64];
    (terms[0], terms[16], terms[32]) = (16_777_216.0, -16_777_216.0, 1.0);
    let want = terms.iter().map(|&x| f64::from(x)).collect();
    let (ones, terms) = (zeros("ones", &[1, 64])?, device.upload("terms", &[1, 64], &terms)?);
    let sum = zeros("sum", &[1, 64])?;
    log_softmax_backward(r, &ones, &terms, &sum)?;

    let mut judged = vec![
        ("tanh", tanh, Want::Each(1e-6)),
        ("the logistic function", sigmoid, Want::Each(1e-6)),
        ("exp", exp, Want::Each(1e-6)),
        ("log", log, Want::Each(1e-6)),
        ("a product", product, Want::Each(0.0)),
        ("a sum", sum, Want::Exactly(want)),
    ];
    judged.extend(recurrence(r, true, Precision::F32)?);
    Ok(judged)
}

/// Three steps of a tanh cell, which compiles fastest, planned as for a GPU: of a size at which subgroups, if there are any, add
/// up the slices of a sum, unless it is the baseline.
fn recurrence(r: &mut Recorder, baseline: bool, precision: Precision) -> Result<Vec<Judged>> {
    const T: usize = 3;
    const B: usize = 8;
    const H: usize = 128;
    let cell = Cell::Tanh.kind();
    let device = r.device().clone();
    r.set_wide(true);
    r.set_baseline(baseline);
    let random = |name: &str, seed: u64, shape: &[usize], scale: f64| {
        device.upload(name, shape, &rng::manual_seed(seed).uniform(shape.iter().product(), -scale, scale))
    };
    let index = device.tokens("index", &[1, T, B], B)?;
    index.write_u32(&(0..T * B).map(|i| (i % B) as u32).collect::<Vec<_>>())?;
    let sequence = Sequence {
        x: random("x", 3, &[1, B, H], 1.0)?,
        index,
        lengths: device.lengths("lengths", B, T)?,
        resets: None,
        w: vec![random("w", 4, &[H, H], 0.15)?],
        w_ih: Vec::new(),
        biases: None,
        states: random("states", 5, &[1, 1, T + 1, B, H], 1.0)?,
        saved: None,
        form: None,
        peepholes: None,
        has_h_0: true,
        precision,
    };
    sequence::forward(r, cell, &sequence)?;
    let (what, share) = match (precision, baseline) {
        (Precision::F16, _) => ("a recurrence in f16", 2e-3),
        (_, false) => ("a recurrence in subgroups", 1e-5),
        (_, true) => ("a recurrence", 1e-5),
    };
    Ok(vec![(what, sequence.states, Want::Largest(share))])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The CPU passes as an adapter would, but for the order of sums in a workgroup, which it has none of.
    #[test]
    fn the_twins_pass_and_a_sum_in_another_order_does_not() {
        let found = |record: &dyn Fn(&mut Recorder) -> Result<Vec<Judged>>| {
            pollster::block_on(problem(&Device::cpu(), false, record)).unwrap()
        };
        assert_eq!(found(&|r| recurrence(r, true, Precision::F32)), None);
        assert_eq!(found(&|r| recurrence(r, true, Precision::F16)), None);
        assert_eq!(found(&|r| Ok(basics(r)?.into_iter().filter(|(what, ..)| *what != "a sum").collect())), None);
        let problem = found(&basics).unwrap();
        assert!(problem.starts_with("a sum has "), "{problem}");
    }

    #[test]
    fn an_adapter_of_this_machine_passes() {
        let Ok(device) = Device::open("gpu") else { return };
        assert_eq!(pollster::block_on(check(&device)).unwrap(), Verdict::default());
        // Of eight slices, in 256 threads.
        if device.limits().subgroups.is_some_and(|(least, most)| least >= 8 && most <= 256) {
            let mut r = Recorder::new(&device);
            recurrence(&mut r, false, Precision::F32).unwrap();
            let plan = r.finish().unwrap();
            assert!(plan.dispatches().any(|dispatch| dispatch.constants().contains(&("SUBGROUPS", 1))), "{plan}");
        }
    }

    #[test]
    fn wrong_values_are_found() {
        let exact = [1.0, -0.5, f64::NAN, f64::INFINITY, 0.0];
        let right = [1.0, -0.5, f32::NAN, f32::INFINITY, 0.0];
        let wants = [Want::Each(1e-6), Want::Largest(1e-5), Want::Exactly(exact.to_vec())];
        let judged = |got: &[f32]| wants.each_ref().map(|want| judge("tanh", got, &exact, want).is_ok());
        assert_eq!(judged(&right), [true; 3]);
        for (i, wrong) in [(0, 1.1), (0, f32::NAN), (1, 0.5), (2, 0.0), (3, f32::MAX), (4, f32::NAN), (4, 1.0)] {
            let mut got = right;
            got[i] = wrong;
            assert_eq!(judged(&got), [false; 3], "{i} {wrong}");
        }
        let error = judge("tanh", &[0.9], &[1.0], &Want::Each(1e-6)).unwrap_err();
        assert!(error.contains("tanh") && error.contains("at 0"), "{error}");
        // A collapsed unit of a recurrence.
        assert!(judge("a recurrence", &[0.7, 0.0], &[0.7, 0.3], &Want::Largest(1e-5)).is_err());
    }

    #[test]
    fn what_is_wrong_is_not_used() {
        let good = Verdict::default();
        assert_eq!(good.unused(), (wgpu::Features::empty(), Vec::new()));
        assert!(good.refuse("a GPU", None).is_ok());
        let no_subgroups = Verdict { subgroups: Some("a recurrence has 0e0 at 3".into()), ..Verdict::default() };
        let (features, sentences) = no_subgroups.unused();
        assert_eq!(features, wgpu::Features::SUBGROUP);
        assert_eq!(sentences, ["subgroups are not used, since a recurrence has 0e0 at 3"]);
        let no_f16 = Verdict { f16: Some("planted".into()), ..Verdict::default() };
        assert_eq!(no_f16.unused().0, wgpu::Features::SHADER_F16);
        assert!(no_f16.refuse("a GPU", None).is_ok());
        let wrong = Verdict { basics: Some("tanh has 0e0 at 1".into()), ..Verdict::default() };
        let error = wrong.refuse("a GPU", None).unwrap_err().to_string();
        assert!(["a GPU", "tanh has 0e0 at 1", SKIP].iter().all(|part| error.contains(part)), "{error}");
    }

    #[test]
    fn a_verdict_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new").join("self_check.json");
        assert_eq!(recall(&file, "a"), None);
        let verdict = Verdict { f16: Some("planted".into()), ..Verdict::default() };
        keep(&file, "a", &verdict);
        keep(&file, "b", &Verdict::default());
        assert_eq!((recall(&file, "a"), recall(&file, "b")), (Some(verdict), Some(Verdict::default())));
        assert_eq!(recall(&file, "another driver"), None);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(env!("CARGO_PKG_VERSION"), "0.0.1")).unwrap();
        assert_eq!(recall(&file, "a"), None, "another version's");
        std::fs::write(&file, "{").unwrap();
        assert_eq!(recall(&file, "a"), None, "damaged");
    }
}
