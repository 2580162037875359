//! What drivers are known to get wrong, each as a check of its own.

use elman::kernels::column_sum::column_sum;
use elman::kernels::log_softmax::log_softmax;
use elman::kernels::log_softmax_backward::log_softmax_backward;
use elman::kernels::map::unary;
use elman::kernels::matmul::{Factor, matmul, t};
use elman::nn::functional::{InitialState, Reduction, mse_loss};
use elman::nn::{Cell, Init, Linear, Recurrent, RnnOptions};
use elman::optim::Adam;
use elman::{Comparison, DType, Device, Graph, Plan, Precision, Recorder, Result, Tensor, Trainer, rng};

use super::cases::random;

/// What came of a check.
pub enum Finding {
    /// With how far it is off, or how much was looked at.
    Right(String),
    Wrong(String),
    /// Why there is nothing to check.
    Absent(String),
}

use Finding::{Absent, Right, Wrong};

/// A check, by its name.
pub type Trap = (&'static str, fn(&Device) -> Result<Finding>);

/// All of them.
pub const TRAPS: [Trap; 8] = [
    ("memory", memory),
    ("exponentials", exponentials),
    ("long loops", long_loops),
    ("odd sizes", odd_sizes),
    ("order of sums", order_of_sums),
    ("subgroups", subgroups),
    ("f16", f16),
    ("repeatable", repeatable),
];

/// Tensors are zeros at first, and what is written is what is read, to the bit.
fn memory(device: &Device) -> Result<Finding> {
    let sizes = [1, 3, 255, 1_000_003];
    for n in sizes {
        let x = device.zeros("x", &[n], DType::U32)?;
        if x.to_vec_u32()?.iter().any(|&x| x != 0) {
            return Ok(Wrong(format!("a new tensor of {n} numbers is not zero")));
        }
        let mut rng = rng::manual_seed(n as u64);
        let values: Vec<_> = (0..n).map(|_| rng.next_u32()).collect();
        x.write_u32(&values)?;
        if x.to_vec_u32()? != values {
            return Ok(Wrong(format!("{n} numbers are not read as they were written")));
        }
    }
    Ok(Right(format!("zeros, writes and reads of 1 to {} numbers", sizes[3])))
}

/// The largest error of each value, or the first value that is wrong by more than a millionth of itself.
fn each(what: &str, x: &[f32], got: &[f32], exact: impl Fn(f64) -> f64, least: f64) -> Result<f64, Finding> {
    let mut most = 0.0f64;
    for (&x, &got) in x.iter().zip(got) {
        let (want, got) = (exact(x.into()), f64::from(got));
        let is_same = got == want || got == f64::from(want as f32) || (got.is_nan() && want.is_nan());
        // What is below the least normal number may be 0.
        let error = (got - want).abs() / (want.abs() + least);
        let error = if is_same || (got - want).abs() <= f64::from(f32::MIN_POSITIVE) { 0.0 } else { error };
        if error.is_nan() || error > 1e-6 {
            return Err(Wrong(format!("{what}({x:e}) is {got:e} in place of {want:e}")));
        }
        most = most.max(error);
    }
    Ok(most)
}

/// tanh, the logistic function, exp and log, of special values and a sweep.
fn exponentials(device: &Device) -> Result<Finding> {
    let mut x = vec![0.0, -0.0, 20.0, -20.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4, 1e-6, -1e-6, f32::MAX, f32::MIN];
    x.extend([f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    x.extend((0..4097).map(|i| (i as f32 - 2048.0) / 2048.0 * 87.0));
    x.extend((0..1025).map(|i| (i as f32 - 512.0) / 512.0));
    let n = x.len();
    let mut r = Recorder::new(device);
    let input = device.upload("x", &[n], &x)?;
    let [tanh, sigmoid] = ["tanh", "sigmoid"].map(|name| device.zeros(name, &[n], DType::F32));
    let (tanh, sigmoid) = (tanh?, sigmoid?);
    unary(&mut r, |x| x.tanh(), &input, &tanh)?;
    unary(&mut r, |x| x.sigmoid(), &input, &sigmoid)?;
    // -exp(y), where the gradient is 1 in one place and 0 in the others; NaN would be everywhere.
    let y: Vec<f32> = x.iter().copied().filter(|x| x.is_finite()).chain([0.0]).collect();
    let mut dy = vec![0.0; y.len()];
    dy[y.len() - 1] = 1.0;
    let exp = device.zeros("exp", &[1, y.len()], DType::F32)?;
    let [y_tensor, dy] = [("y", &y), ("dy", &dy)].map(|(name, values)| device.upload(name, &[1, y.len()], values));
    log_softmax_backward(&mut r, &y_tensor?, &dy?, &exp)?;
    // log(1 + exp(-z))
    let z: Vec<f32> = (0..2049).map(|i| i as f32 / 100.0).collect();
    let pairs: Vec<f32> = z.iter().flat_map(|&z| [0.0, -z]).collect();
    let log = device.zeros("log", &[z.len(), 2], DType::F32)?;
    log_softmax(&mut r, &device.upload("z", &[z.len(), 2], &pairs)?, &log)?;
    r.finish()?.run()?;

    let minus_exp: Vec<f32> = exp.to_vec()?.iter().map(|x| -x).collect();
    let minus_log: Vec<f32> = log.to_vec()?.iter().step_by(2).map(|x| -x).collect();
    let of = |values: &[f32]| values.len();
    let last = y.len() - 1;
    let found = [
        each("tanh", &x, &tanh.to_vec()?, f64::tanh, 0.0),
        each("the logistic function", &x, &sigmoid.to_vec()?, |x| 1.0 / (1.0 + (-x).exp()), 0.0),
        each("exp", &y[..last], &minus_exp[..last], f64::exp, 0.0),
        // The sum is rounded before its logarithm is taken.
        each("log(1 + exp(-z)), z", &z, &minus_log, |z| (-z).exp().ln_1p(), 0.5),
    ];
    let mut most = 0.0f64;
    for error in found {
        match error {
            Ok(error) => most = most.max(error),
            Err(wrong) => return Ok(wrong),
        }
    }
    let values = 2 * of(&x) + last + of(&z);
    Ok(Right(format!("{values} values of tanh, the logistic function, exp and log, each within {most:.1e}")))
}

/// The worst of these, in words.
fn judged(what: String, found: &[Comparison]) -> Finding {
    let worst = found.iter().max_by(|a, b| a.error.total_cmp(&b.error));
    match found.iter().find(|comparison| !comparison.is_right()) {
        Some(wrong) => Wrong(wrong.to_string()),
        None => Right(format!("{what}, within {:.1e}", worst.map_or(0.0, |worst| worst.error))),
    }
}

/// Sums and a recurrence that are longer than the 65,535 turns after which Mesa ends a shader's loops.
fn long_loops(device: &Device) -> Result<Finding> {
    const ROWS: usize = 200_003;
    const STEPS: usize = 70_001;
    let mut r = Recorder::new(device);
    let x = device.upload("x", &[ROWS, 3], &rng::manual_seed(1).rand(3 * ROWS))?;
    let factor = device.upload("a", &[1, ROWS], &rng::manual_seed(2).rand(ROWS))?;
    let [sum, product] = ["sum", "product"].map(|name| device.zeros(name, &[1, 3], DType::F32));
    column_sum(&mut r, &x, &sum?.reshape(&[3])?, false)?;
    matmul(&mut r, &factor, &x, None, &product?, false)?;
    let mut found = r.finish()?.compare_with_twins()?;

    let recurrence = |device: &Device| -> Result<Vec<f64>> {
        let mut init = Init::new(rng::manual_seed(3));
        let rnn = Recurrent::new(&mut init, "rnn", Cell::Tanh, RnnOptions::new(1, 5))?;
        let parameters = init.upload(device)?;
        let x = device.upload("x", &[STEPS, 1, 1], &rng::manual_seed(4).randn(STEPS))?;
        let mut g = Graph::inference(&parameters);
        let x = g.input(&x)?;
        let (output, _) = rnn.forward(&mut g, x, InitialState::Zero)?;
        let output = g.tensor(output)?;
        g.finish()?.run()?;
        output.to_vec_f64()
    };
    let (got, want) = (recurrence(device)?, recurrence(&Device::reference())?);
    let error = |(got, want): (&f64, &f64)| (got - want).abs();
    let wrong = got.iter().zip(&want).position(|pair| error(pair) > 1e-4 || error(pair).is_nan());
    if let Some(at) = wrong {
        return Ok(Wrong(format!(
            "a recurrence of {STEPS} steps is {} in place of {} in step {}",
            got[at],
            want[at],
            at / 5
        )));
    }
    found.retain(|comparison| comparison.kernel != "copy");
    Ok(judged(format!("sums of {ROWS} terms and a recurrence of {STEPS} steps"), &found))
}

/// Products around the edges of tiles, in all orders of their factors.
fn odd_sizes(device: &Device) -> Result<Finding> {
    let sizes = [(1, 1, 1), (63, 15, 65), (65, 17, 63), (131, 35, 70), (1, 300, 67), (67, 2601, 3)];
    let mut found = Vec::new();
    for wide in [false, true] {
        let mut r = Recorder::new(device);
        r.set_wide(wide);
        for ((m, k, n), (ta, tb)) in
            sizes.into_iter().flat_map(|size| [(false, false), (false, true), (true, false)].map(|order| (size, order)))
        {
            let a = random(device, "a", &if ta { [k, m] } else { [m, k] })?;
            let b = random(device, "b", &if tb { [n, k] } else { [k, n] })?;
            let c = random(device, "c", &[m, n])?;
            let a = if ta { t(&a) } else { Factor::from(&a) };
            let b = if tb { t(&b) } else { Factor::from(&b) };
            matmul(&mut r, a, b, Some(&random(device, "bias", &[n])?), &c, true)?;
        }
        found.extend(r.finish()?.compare_with_twins()?);
    }
    Ok(judged(format!("{} products of 1 x 1 x 1 to 67 x 2601 x 3", found.len()), &found))
}

/// Halves onto halves: the 1 is lost in the first addition, and in no other order.
fn order_of_sums(device: &Device) -> Result<Finding> {
    if !device.is_gpu() {
        return Ok(Absent("the CPU's sums have an order of their own".into()));
    }
    let mut terms = vec![0.0; 64];
    (terms[0], terms[16], terms[32]) = (16_777_216.0, -16_777_216.0, 1.0);
    let [ones, sum] = ["ones", "sum"].map(|name| device.zeros(name, &[1, 64], DType::F32));
    let sum = sum?;
    let mut r = Recorder::new(device);
    log_softmax_backward(&mut r, &ones?, &device.upload("terms", &[1, 64], &terms)?, &sum)?;
    r.finish()?.run()?;
    Ok(match sum.to_vec()? == terms {
        true => Right("64 terms are added up in the promised order, to the bit".into()),
        false => Wrong("64 terms are added up in another order than the promised one".into()),
    })
}

/// A recurrence of one layer, forward and backward, of a size at which subgroups are used if there are any.
fn recurrence(device: &Device, precision: Precision, baseline: bool) -> Result<(Plan, Tensor)> {
    let (steps, batch, hidden) = (3, 8, 128);
    let mut init = Init::new(rng::manual_seed(5));
    let rnn = Recurrent::new(&mut init, "rnn", Cell::Gru, RnnOptions::new(17, hidden))?;
    let parameters = init.upload(device)?;
    let (x, d) = (random(device, "x", &[steps, batch, 17])?, random(device, "d", &[steps, batch, hidden])?);
    let mut g = Graph::new(&parameters);
    g.set_wide(true);
    g.set_baseline(baseline);
    g.set_precision(precision)?;
    let x = g.input_with_gradient(&x)?;
    let (output, _) = rnn.forward(&mut g, x, InitialState::Zero)?;
    g.backward(&[], &[(output, &d)])?;
    let output = g.tensor(output)?;
    Ok((g.finish()?, output))
}

fn subgroups(device: &Device) -> Result<Finding> {
    let Some(adapter) = device.adapter() else { return Ok(Absent("not on a CPU".into())) };
    let (least, most) = adapter.subgroup_sizes();
    if !adapter.features().contains(&("subgroups", true)) {
        return Ok(Absent("not there".into()));
    }
    let (plan, with) = recurrence(device, Precision::F32, false)?;
    if !plan.dispatches().any(|dispatch| dispatch.constants().contains(&("SUBGROUPS", 1))) {
        return Ok(Absent(format!("there, but not used with sizes of {least} to {most}")));
    }
    let found = plan.compare_with_twins()?;
    let (plan, without) = recurrence(device, Precision::F32, true)?;
    plan.run()?;
    let differ = with.to_vec()?.iter().zip(without.to_vec()?).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    if differ > 1e-4 || differ.is_nan() {
        return Ok(Wrong(format!("a recurrence with them and one without differ by {differ:.1e}")));
    }
    Ok(judged(format!("a recurrence in subgroups of {least} to {most}"), &found))
}

fn f16(device: &Device) -> Result<Finding> {
    if device.adapter().is_some_and(|adapter| !adapter.features().contains(&("f16", true))) {
        return Ok(Absent("not there".into()));
    }
    let (plan, _) = recurrence(device, Precision::F16, false)?;
    Ok(judged("a recurrence with weights of 11 bits".into(), &plan.compare_with_twins()?))
}

/// The same seed on the same device gives the same bits.
fn repeatable(device: &Device) -> Result<Finding> {
    let steps = 5;
    let train = || -> Result<Vec<u32>> {
        let mut init = Init::new(rng::manual_seed(6));
        let rnn = Recurrent::new(&mut init, "rnn", Cell::Lstm, RnnOptions::new(9, 37).num_layers(2))?;
        let layer = Linear::new(&mut init, "layer", 37, 3)?;
        let parameters = init.upload(device)?;
        let (x, wanted) = (random(device, "x", &[6, 11, 9])?, random(device, "wanted", &[6, 11, 3])?);
        let mut trainer = Trainer::new(&parameters, Adam::new(0.01), |g| {
            let x = g.input(&x)?;
            let (output, _) = rnn.forward(g, x, InitialState::Zero)?;
            let output = layer.forward(g, output)?;
            mse_loss(g, output, &wanted, Reduction::Mean)
        })?;
        (0..steps).try_for_each(|_| trainer.step())?;
        let weights = parameters.iter().map(|(_, tensor)| tensor.to_vec()).collect::<Result<Vec<_>>>()?;
        Ok(trainer.losses()?.into_iter().chain(weights.into_iter().flatten()).map(f32::to_bits).collect())
    };
    let first = train()?;
    Ok(match train()? == first {
        true => Right(format!("{steps} training steps twice, to the bit")),
        false => Wrong(format!("{steps} training steps from the same seed give other bits the second time")),
    })
}
