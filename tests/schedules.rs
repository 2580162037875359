//! Learning-rate schedules and early stopping against values printed by PyTorch 2.5.1.
//!
//! The lists come from these functions; the comment at each list says how they were called.
//!
//! ```python
//! import torch
//! from itertools import groupby
//! from torch.optim.lr_scheduler import *
//! from math import inf, nan
//!
//! def scheduled(lr, make, steps):
//!     optimizer = torch.optim.SGD([torch.zeros(1)], lr)
//!     schedule, lrs = make(optimizer), []
//!     for _ in range(steps):
//!         lrs.append(optimizer.param_groups[0]["lr"])
//!         optimizer.step()
//!         schedule.step()
//!     return lrs
//!
//! def plateau(metrics, lr=0.1, **options):
//!     optimizer = torch.optim.SGD([torch.zeros(1)], lr)
//!     schedule, lrs = ReduceLROnPlateau(optimizer, **options), []
//!     for metric in metrics:
//!         schedule.step(metric)
//!         lrs.append(optimizer.param_groups[0]["lr"])
//!     return [(lr, len(list(run))) for lr, run in groupby(lrs)]
//!
//! def early(metrics, mode, patience, min_delta):
//!     optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
//!     schedule = ReduceLROnPlateau(optimizer, mode, 0.5, patience, min_delta, "abs")
//!     best = None
//!     for epoch, metric in enumerate(metrics):
//!         before = schedule.best
//!         schedule.step(metric)
//!         if schedule.best != before:
//!             best = schedule.best, epoch
//!         if optimizer.param_groups[0]["lr"] < 1:
//!             return epoch, best
//!     return None, best
//!
//! noisy = [5 - min(i, 24) / 8 + i * 7 % 11 / 4 for i in range(48)]
//! falling = [2 - i / 8192 for i in range(24)]
//! ```

use elman::schedule::{
    CosineAnnealing, EarlyStopping, Exponential, Mode, OneCycle, OneCycleOptions, PlateauOptions, ReduceOnPlateau,
    Schedule, Step, Threshold,
};
use elman::{Error, Result};

const NAN: f64 = f64::NAN;
const INFINITY: f64 = f64::INFINITY;

/// Sums of binary fractions, so both languages have the same numbers.
fn noisy() -> impl Iterator<Item = f64> {
    (0..48).map(|i| 5.0 - i.min(24) as f64 / 8.0 + (i * 7 % 11) as f64 / 4.0)
}

fn falling() -> impl Iterator<Item = f64> {
    (0..24).map(|i| 2.0 - i as f64 / 8192.0)
}

#[track_caller]
fn close(got: impl IntoIterator<Item = f64>, want: &[f64]) {
    let got: Vec<f64> = got.into_iter().collect();
    assert_eq!(got.len(), want.len());
    for (step, (got, want)) in got.iter().zip(want).enumerate() {
        // Not `>`, which a NaN would pass.
        assert!((got - want).abs() <= 1e-12 * want, "step {step}: {got:e}, but PyTorch has {want:e}");
    }
}

#[track_caller]
fn scheduled(schedule: Result<impl Schedule>, want: &[f64]) {
    let schedule = schedule.unwrap();
    close((0..want.len()).map(|step| schedule.lr(step)), want);
}

/// `want` is each learning rate with the number of epochs it stays.
#[track_caller]
fn plateau(metrics: impl IntoIterator<Item = f64>, lr: f64, options: PlateauOptions, want: &[(f64, usize)]) {
    let mut schedule = ReduceOnPlateau::new(lr, options).unwrap();
    assert_eq!(schedule.lr(), lr);
    let lrs = metrics.into_iter().map(|metric| {
        let lr = schedule.step(metric);
        assert_eq!(schedule.lr(), lr);
        lr
    });
    let want: Vec<f64> = want.iter().flat_map(|&(lr, epochs)| vec![lr; epochs]).collect();
    close(lrs, &want);
}

/// The epoch in which it says stop, and the best metric with its epoch.
fn early(
    metrics: impl IntoIterator<Item = f64>,
    mode: Mode,
    patience: usize,
    min_delta: f64,
) -> (Option<usize>, Option<(f64, usize)>) {
    let mut stopping = EarlyStopping::new(mode, patience, min_delta).unwrap();
    assert_eq!((stopping.best(), stopping.best_epoch()), (None, None));
    let stopped = metrics.into_iter().position(|metric| stopping.stop(metric));
    (stopped, stopping.best().zip(stopping.best_epoch()))
}

/// It was refused, and for this argument.
#[track_caller]
fn refused<T>(result: Result<T>, name: &str) {
    match result {
        Err(Error::Argument { argument, .. }) => assert_eq!(argument, name),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("a bad `{name}` was accepted"),
    }
}

#[test]
fn step() {
    // scheduled(0.1, lambda o: StepLR(o, 7, 0.3), 36)
    #[rustfmt::skip]
    let want = [
        0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.03, 0.03, 0.03, 0.03, 0.03, 0.03, 0.03, 0.009, 0.009, 0.009, 0.009,
        0.009, 0.009, 0.009, 0.0026999999999999997, 0.0026999999999999997, 0.0026999999999999997,
        0.0026999999999999997, 0.0026999999999999997, 0.0026999999999999997, 0.0026999999999999997,
        0.0008099999999999998, 0.0008099999999999998, 0.0008099999999999998, 0.0008099999999999998,
        0.0008099999999999998, 0.0008099999999999998, 0.0008099999999999998, 0.00024299999999999994,
    ];
    scheduled(Step::new(0.1, 7, 0.3), &want);
    // scheduled(0.1, lambda o: ExponentialLR(o, 1.05), 6), which is the same with an interval of 1
    scheduled(
        Step::new(0.1, 1, 1.05),
        &[0.1, 0.10500000000000001, 0.11025000000000001, 0.11576250000000002, 0.12155062500000002, 0.12762815625000004],
    );
}

#[test]
fn exponential() {
    // scheduled(0.1, lambda o: ExponentialLR(o, 0.9), 36)
    #[rustfmt::skip]
    let want = [
        0.1, 0.09000000000000001, 0.08100000000000002, 0.07290000000000002, 0.06561000000000002, 0.05904900000000002,
        0.05314410000000002, 0.04782969000000002, 0.043046721000000024, 0.03874204890000002, 0.03486784401000002,
        0.03138105960900001, 0.028242953648100012, 0.025418658283290013, 0.022876792454961013, 0.020589113209464913,
        0.01853020188851842, 0.01667718169966658, 0.015009463529699923, 0.013508517176729932, 0.01215766545905694,
        0.010941898913151246, 0.009847709021836121, 0.00886293811965251, 0.007976644307687259, 0.007178979876918534,
        0.006461081889226681, 0.005814973700304013, 0.005233476330273611, 0.00471012869724625, 0.004239115827521626,
        0.0038152042447694634, 0.003433683820292517, 0.0030903154382632653, 0.002781283894436939, 0.002503155504993245,
    ];
    scheduled(Exponential::new(0.1, 0.9), &want);
    // scheduled(0.1, lambda o: ExponentialLR(o, 1.05), 6)
    scheduled(
        Exponential::new(0.1, 1.05),
        &[0.1, 0.10500000000000001, 0.11025000000000001, 0.11576250000000002, 0.12155062500000002, 0.12762815625000004],
    );
    scheduled(Exponential::new(0.0, 0.5), &[0.0; 3]);
}

#[test]
fn cosine_annealing() {
    // scheduled(0.1, lambda o: CosineAnnealingLR(o, 20), 41)
    #[rustfmt::skip]
    let want = [
        0.1, 0.0993844170297569, 0.09755282581475769, 0.0945503262094184, 0.0904508497187474, 0.08535533905932739,
        0.07938926261462367, 0.07269952498697735, 0.06545084971874739, 0.05782172325201156, 0.05000000000000001,
        0.04217827674798848, 0.03454915028125264, 0.027300475013022667, 0.020610737385376353, 0.014644660940672629,
        0.009549150281252633, 0.005449673790581611, 0.0024471741852423235, 0.0006155829702431171, 0.0,
        0.0006155829702431115, 0.0024471741852423123, 0.005449673790581605, 0.009549150281252621,
        0.014644660940672615, 0.020610737385376336, 0.027300475013022647, 0.03454915028125261, 0.042178276747988436,
        0.049999999999999975, 0.05782172325201152, 0.06545084971874734, 0.0726995249869773, 0.0793892626146236,
        0.08535533905932732, 0.09045084971874733, 0.09455032620941833, 0.09755282581475762, 0.09938441702975682,
        0.09999999999999995,
    ];
    scheduled(CosineAnnealing::new(0.1, 20, 0.0), &want);
    // scheduled(0.02, lambda o: CosineAnnealingLR(o, 7, 1e-3), 15)
    #[rustfmt::skip]
    let want = [
        0.02, 0.019059204245072982, 0.01642315311765797, 0.012613948872584987, 0.008386051127415015,
        0.004576846882342032, 0.001940795754927019, 0.001, 0.001940795754927018, 0.004576846882342029,
        0.008386051127415011, 0.012613948872584976, 0.016423153117657963, 0.01905920424507298, 0.019999999999999993,
    ];
    scheduled(CosineAnnealing::new(0.02, 7, 1e-3), &want);
    // scheduled(0.1, lambda o: CosineAnnealingLR(o, 1), 3)
    scheduled(CosineAnnealing::new(0.1, 1, 0.0), &[0.1, 0.0, 0.1]);
    // lrs = scheduled(0.1, lambda o: CosineAnnealingLR(o, 200), 401)
    // [(i, lrs[i]) for i in (1, 100, 199, 200, 201, 399, 400)]
    let schedule = CosineAnnealing::new(0.1, 200, 0.0).unwrap();
    for (step, want) in [
        (1, 0.09999383162408304),
        (100, 0.050000000000000024),
        (199, 6.168375916970619e-06),
        (200, 0.0),
        (201, 6.168375916970615e-06),
        (399, 0.09999383162408314),
        (400, 0.1000000000000001),
    ] {
        close([schedule.lr(step)], &[want]);
    }
}

#[test]
fn one_cycle() {
    let defaults = OneCycleOptions::default();
    // scheduled(1.0, lambda o: OneCycleLR(o, 0.1, 40, cycle_momentum=False), 40)
    #[rustfmt::skip]
    let want = [
        0.0040000000000000036, 0.005944337266504118, 0.011619830424103306, 0.020566684770626315, 0.03206007937590945,
        0.04516888776288231, 0.058831112237117685, 0.07193992062409055, 0.08343331522937368, 0.0923801695758967,
        0.09805566273349588, 0.1, 0.09968561175222017, 0.09874640062350874, 0.09719417773875232, 0.09504846320134738,
        0.09233624061657436, 0.089091617757105, 0.08535539763797113, 0.0811745653949763, 0.07660169741935154,
        0.07169430017913009, 0.06651408704194597, 0.06112620219362893, 0.055598401412270175, 0.0500002,
        0.04440199858772983, 0.03887419780637107, 0.03348631295805405, 0.028306099820869922, 0.023398702580648485,
        0.0188258346050237, 0.014645002362028864, 0.010908782242895003, 0.0076641593834256404, 0.004951936798652629,
        0.002806222261247683, 0.0012539993764912555, 0.0003147882477798485, 4e-07,
    ];
    scheduled(OneCycle::new(0.1, 40, defaults), &want);
    // scheduled(1.0, lambda o: OneCycleLR(o, 0.5, 25, pct_start=0.45, div_factor=10.0, final_div_factor=100.0,
    //                                     cycle_momentum=False), 25)
    #[rustfmt::skip]
    let want = [
        0.04999999999999999, 0.06048581178764062, 0.09096589382748849, 0.13859928253250642, 0.1989462023580869,
        0.266381884919742, 0.3346208379942488, 0.39730269875027474, 0.44858506545993715, 0.4836880514979713,
        0.4993398052663416, 0.49634212050296134, 0.4803006323654338, 0.4523019943451431, 0.413801468302835,
        0.366800163975612, 0.3137410289648234, 0.2573818736857256, 0.20065203095522513, 0.1465001005027789,
        0.09774069206104931, 0.056908132742889146, 0.026124742434333284, 0.006990523743652216, 0.0005,
    ];
    let options = OneCycleOptions { pct_start: 0.45, div_factor: 10.0, final_div_factor: 100.0 };
    scheduled(OneCycle::new(0.5, 25, options), &want);
    // scheduled(1.0, lambda o: OneCycleLR(o, 0.1, 3, cycle_momentum=False), 3), too short to rise
    scheduled(OneCycle::new(0.1, 3, defaults), &[0.09944154354509119, 0.046263710266697504, 4e-07]);
    // scheduled(1.0, lambda o: OneCycleLR(o, 0.1, 1, cycle_momentum=False), 1)
    scheduled(OneCycle::new(0.1, 1, defaults), &[4e-07]);
}

/// The last learning rate stays. (PyTorch runs past the end by one step, then raises an error.)
#[test]
fn one_cycle_past_its_end() {
    let schedule = OneCycle::new(0.1, 40, OneCycleOptions::default()).unwrap();
    for step in [40, 41, 1000, usize::MAX] {
        assert_eq!(schedule.lr(step), schedule.lr(39));
    }
}

#[test]
fn reduce_on_plateau() {
    let defaults = PlateauOptions::default();
    // plateau(noisy)
    let want = [(0.1, 44), (0.010000000000000002, 4)];
    plateau(noisy(), 0.1, defaults, &want);
    // plateau(noisy, factor=0.5, patience=2, cooldown=3, min_lr=0.01)
    let want = [(0.1, 3), (0.05, 11), (0.025, 11), (0.0125, 6), (0.01, 17)];
    plateau(noisy(), 0.1, PlateauOptions { factor: 0.5, patience: 2, cooldown: 3, min_lr: 0.01, ..defaults }, &want);
    // plateau([-x for x in noisy], mode="max", factor=0.3, patience=1, threshold=0.25, threshold_mode="abs")
    #[rustfmt::skip]
    let want = [
        (0.1, 2), (0.03, 2), (0.009, 2), (0.0026999999999999997, 4), (0.0008099999999999998, 3),
        (0.00024299999999999994, 2), (7.289999999999998e-05, 2), (2.1869999999999996e-05, 4),
        (6.560999999999999e-06, 3), (1.9682999999999994e-06, 2), (5.904899999999998e-07, 2),
        (1.7714699999999994e-07, 2), (5.314409999999998e-08, 2), (1.5943229999999993e-08, 2),
        (4.782968999999998e-09, 14),
    ];
    let threshold = Threshold::Absolute(0.25);
    let options = PlateauOptions { mode: Mode::Max, factor: 0.3, patience: 1, threshold, ..defaults };
    plateau(noisy().map(|x| -x), 0.1, options, &want);
    // plateau([100 - x for x in noisy], mode="max", factor=0.6, patience=3, threshold=0.01)
    #[rustfmt::skip]
    let want = [
        (0.1, 4), (0.06, 4), (0.036, 7), (0.021599999999999998, 4), (0.012959999999999998, 7),
        (0.007775999999999998, 4), (0.004665599999999999, 4), (0.0027993599999999994, 4), (0.0016796159999999997, 4),
        (0.0010077695999999997, 4), (0.0006046617599999998, 2),
    ];
    let threshold = Threshold::Relative(0.01);
    let options = PlateauOptions { mode: Mode::Max, factor: 0.6, patience: 3, threshold, ..defaults };
    plateau(noisy().map(|x| 100.0 - x), 0.1, options, &want);
}

/// Improvements that are too small, or exactly as large as the threshold, are none.
#[test]
fn reduce_on_plateau_thresholds() {
    let defaults = PlateauOptions { factor: 0.5, patience: 0, ..PlateauOptions::default() };
    // plateau(falling, factor=0.5, patience=0)
    #[rustfmt::skip]
    let want = [
        (0.1, 1), (0.05, 2), (0.025, 2), (0.0125, 2), (0.00625, 2), (0.003125, 2), (0.0015625, 2), (0.00078125, 2),
        (0.000390625, 2), (0.0001953125, 2), (9.765625e-05, 2), (4.8828125e-05, 2), (2.44140625e-05, 1),
    ];
    plateau(falling(), 0.1, defaults, &want);
    // plateau(falling, factor=0.5, patience=0, threshold=1 / 8192, threshold_mode="abs") is the same
    plateau(falling(), 0.1, PlateauOptions { threshold: Threshold::Absolute(1.0 / 8192.0), ..defaults }, &want);
    // plateau([1.0] * 10, lr=1e-6, factor=0.5, patience=0), held up by eps
    #[rustfmt::skip]
    let want = [
        (1e-06, 1), (5e-07, 1), (2.5e-07, 1), (1.25e-07, 1), (6.25e-08, 1), (3.125e-08, 1), (1.5625e-08, 4),
    ];
    plateau([1.0; 10], 1e-6, defaults, &want);
}

#[test]
fn reduce_on_plateau_without_numbers() {
    // plateau([nan, nan, 1, nan, 0.5, nan, nan, nan, 0.25, 0.25, nan, 0.125, inf, -inf, -inf, nan], factor=0.5,
    //         patience=1)
    #[rustfmt::skip]
    let metrics = [
        NAN, NAN, 1.0, NAN, 0.5, NAN, NAN, NAN, 0.25, 0.25, NAN, 0.125, INFINITY, -INFINITY, -INFINITY, NAN,
    ];
    let want = [(0.1, 1), (0.05, 5), (0.025, 4), (0.0125, 5), (0.00625, 1)];
    plateau(metrics, 0.1, PlateauOptions { factor: 0.5, patience: 1, ..PlateauOptions::default() }, &want);
}

#[test]
fn early_stopping() {
    // early(noisy, "min", 10, 0.0), and so on
    assert_eq!(early(noisy(), Mode::Min, 10, 0.0), (Some(44), Some((2.0, 33))));
    assert_eq!(early(noisy(), Mode::Min, 4, 0.0), (Some(27), Some((2.25, 22))));
    assert_eq!(early(noisy(), Mode::Min, 4, 0.5), (Some(5), Some((5.0, 0))));
    assert_eq!(early(noisy().map(|x| -x), Mode::Max, 10, 1.0), (Some(33), Some((-2.25, 22))));
    assert_eq!(early(falling(), Mode::Min, 0, 1.0 / 8192.0), (Some(1), Some((2.0, 0))));
    assert_eq!(early(falling(), Mode::Min, 0, 1e-4), (None, Some((1.9971923828125, 23))));
    assert_eq!(early([NAN; 5], Mode::Min, 2, 0.0), (Some(2), None));
    assert_eq!(early([NAN, 1.0, NAN, 0.5, 0.5, 0.5], Mode::Min, 1, 0.0), (Some(5), Some((0.5, 3))));
}

/// Whoever goes on after a stop is told again, until the metric improves.
#[test]
fn early_stopping_can_be_ignored() {
    let mut stopping = EarlyStopping::new(Mode::Max, 1, 0.0).unwrap();
    let answers = [1.0, 1.0, 1.0, 0.5, 2.0, 2.0, 2.0].map(|metric| stopping.stop(metric));
    assert_eq!(answers, [false, false, true, true, false, false, true]);
}

#[test]
fn bad_learning_rates() {
    for bad in [-1e-3, NAN, INFINITY] {
        refused(Step::new(bad, 7, 0.3), "lr");
        refused(Exponential::new(bad, 0.9), "lr");
        refused(CosineAnnealing::new(bad, 20, 0.0), "lr");
        refused(CosineAnnealing::new(0.1, 20, bad), "eta_min");
        refused(OneCycle::new(bad, 40, OneCycleOptions::default()), "max_lr");
        refused(ReduceOnPlateau::new(bad, PlateauOptions::default()), "lr");
    }
}

#[test]
fn bad_schedules() {
    for bad in [0.0, -0.5, NAN, INFINITY] {
        refused(Step::new(0.1, 7, bad), "gamma");
        refused(Exponential::new(0.1, bad), "gamma");
        let defaults = OneCycleOptions::default();
        refused(OneCycle::new(0.1, 40, OneCycleOptions { div_factor: bad, ..defaults }), "div_factor");
        refused(OneCycle::new(0.1, 40, OneCycleOptions { final_div_factor: bad, ..defaults }), "final_div_factor");
    }
    refused(Step::new(0.1, 0, 0.3), "step_size");
    refused(CosineAnnealing::new(0.1, 0, 0.0), "t_max");
    refused(OneCycle::new(0.1, 0, OneCycleOptions::default()), "total_steps");
    // The last divides by zero: in PyTorch, too.
    for pct_start in [0.0, 1.0, -0.1, 1.1, NAN, 1.0 / 40.0] {
        refused(OneCycle::new(0.1, 40, OneCycleOptions { pct_start, ..OneCycleOptions::default() }), "pct_start");
    }
}

#[test]
fn bad_plateaus() {
    let new = |options| ReduceOnPlateau::new(0.1, options);
    let defaults = PlateauOptions::default();
    for factor in [0.0, 1.0, 1.5, -0.1, NAN] {
        refused(new(PlateauOptions { factor, ..defaults }), "factor");
    }
    for bad in [-1e-3, NAN, INFINITY] {
        refused(new(PlateauOptions { threshold: Threshold::Relative(bad), ..defaults }), "threshold");
        refused(new(PlateauOptions { threshold: Threshold::Absolute(bad), ..defaults }), "threshold");
        refused(new(PlateauOptions { min_lr: bad, ..defaults }), "min_lr");
        refused(new(PlateauOptions { eps: bad, ..defaults }), "eps");
        refused(EarlyStopping::new(Mode::Min, 3, bad), "min_delta");
    }
    refused(new(PlateauOptions { threshold: Threshold::Relative(1.0), ..defaults }), "threshold");
}
