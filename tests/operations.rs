//! Every operation against PyTorch's in double precision: values and gradients, on the reference and on each device, by themselves and
//! with everything around them.

mod common;

use std::collections::BTreeSet;

use common::{Fixture, assert_close, f32_devices};
use elman::nn::functional::{self as f, Conv1dOptions};
use elman::{Device, Graph, Result, Var};

type Case = (&'static str, fn(&mut Graph, &[Var]) -> Result<Var>);

/// Of the name in the fixture, what stands before a dot is enough, if that is all there is to it.
const CASES: &[Case] = &[
    ("add", |g, v| f::add(g, v[0], v[1])),
    ("sub", |g, v| f::sub(g, v[0], v[1])),
    ("mul", |g, v| f::mul(g, v[0], v[1])),
    ("div", |g, v| f::div(g, v[0], v[1])),
    ("minimum", |g, v| f::minimum(g, v[0], v[1])),
    ("maximum", |g, v| f::maximum(g, v[0], v[1])),
    ("neg", |g, v| f::neg(g, v[0])),
    ("scale", |g, v| f::scale(g, v[0], 0.3)),
    ("exp", |g, v| f::exp(g, v[0])),
    ("log", |g, v| f::log(g, v[0])),
    ("sqrt", |g, v| f::sqrt(g, v[0])),
    ("abs", |g, v| f::abs(g, v[0])),
    ("square", |g, v| f::square(g, v[0])),
    ("clamp.whole", |g, v| f::clamp(g, v[0], -1.0, 1.0)),
    ("clamp", |g, v| f::clamp(g, v[0], -0.5, 1.0)),
    ("relu", |g, v| f::relu(g, v[0])),
    ("leaky_relu", |g, v| f::leaky_relu(g, v[0], 0.1)),
    ("elu", |g, v| f::elu(g, v[0], 0.7)),
    ("softplus", |g, v| f::softplus(g, v[0])),
    ("tanh", |g, v| f::tanh(g, v[0])),
    ("sigmoid", |g, v| f::sigmoid(g, v[0])),
    ("hard_sigmoid", |g, v| f::hard_sigmoid(g, v[0])),
    ("silu", |g, v| f::silu(g, v[0])),
    ("gelu", |g, v| f::gelu(g, v[0])),
    ("where", |g, v| {
        let is_positive = f::map(g, [v[0]], |[c]| c.gt(0.0))?;
        f::where_(g, is_positive, v[1], v[2])
    }),
    ("masked_fill", |g, v| {
        let mask = f::map(g, [v[1]], |[m]| m.gt(0.0))?;
        f::masked_fill(g, v[0], mask, -3.0)
    }),
    ("softmax", |g, v| f::softmax(g, v[0])),
    ("gate", |g, v| f::map(g, [v[0], v[1], v[2]], |[x, y, z]| x.sigmoid() * y.tanh() + (1.0 - x.sigmoid()) * z)),
    ("sum_axis.0", |g, v| f::sum_axis(g, v[0], 0)),
    ("sum_axis.1", |g, v| f::sum_axis(g, v[0], 1)),
    ("sum_axis.2", |g, v| f::sum_axis(g, v[0], 2)),
    ("sum_axis.-1", |g, v| f::sum_axis(g, v[0], -1)),
    ("mean_axis.0", |g, v| f::mean_axis(g, v[0], 0)),
    ("mean_axis.1", |g, v| f::mean_axis(g, v[0], 1)),
    ("mean_axis.2", |g, v| f::mean_axis(g, v[0], 2)),
    ("mean_axis.-1", |g, v| f::mean_axis(g, v[0], -1)),
    ("transpose.0.1", |g, v| f::transpose(g, v[0], 0, 1)),
    ("transpose.1.2", |g, v| f::transpose(g, v[0], 1, 2)),
    ("transpose.0.2", |g, v| f::transpose(g, v[0], 0, 2)),
    ("transpose.-1.-2", |g, v| f::transpose(g, v[0], -1, -2)),
    ("narrow.0", |g, v| narrow_twice(g, v[0], 0)),
    ("narrow.1", |g, v| narrow_twice(g, v[0], 1)),
    ("narrow.-1", |g, v| narrow_twice(g, v[0], -1)),
    ("select.0", |g, v| f::select(g, v[0], 0, 1)),
    ("select.1", |g, v| f::select(g, v[0], 1, 1)),
    ("select.-1", |g, v| f::select(g, v[0], -1, 1)),
    ("concat.0", |g, v| f::concat(g, &[v[0], v[1], v[0]], 0)),
    ("concat.1", |g, v| f::concat(g, &[v[0], v[1], v[0]], 1)),
    ("concat.-1", |g, v| f::concat(g, &[v[0], v[1], v[0]], -1)),
    ("stack.0", |g, v| f::stack(g, &[v[0], v[1], v[0]], 0)),
    ("stack.1", |g, v| f::stack(g, &[v[0], v[1], v[0]], 1)),
    ("stack.-1", |g, v| f::stack(g, &[v[0], v[1], v[0]], -1)),
    ("matmul", |g, v| f::matmul(g, v[0], v[1])),
    ("attention", |g, v| {
        let keys = f::transpose(g, v[1], -1, -2)?;
        let scores = f::matmul(g, v[0], keys)?;
        let scores = f::scale(g, scores, 3f32.sqrt().recip())?;
        let shares = f::softmax(g, scores)?;
        f::matmul(g, shares, v[2])
    }),
    ("layer_norm.plain", |g, v| f::layer_norm(g, v[0], None, 1e-5)),
    ("layer_norm", |g, v| f::layer_norm(g, v[0], Some((v[1], v[2])), 1e-5)),
    ("rms_norm", |g, v| f::rms_norm(g, v[0], Some(v[1]), 1e-5)),
    ("batch_norm", |g, v| f::batch_norm(g, v[0], None, Some((v[1], v[2])), 1e-5)),
    ("conv1d.settings", |g, v| {
        let options = Conv1dOptions { stride: 2, padding: 3, dilation: 2, groups: 2 };
        f::conv1d(g, v[0], v[1], Some(v[2]), options)
    }),
    ("conv1d.depthwise", |g, v| {
        f::conv1d(g, v[0], v[1], Some(v[2]), Conv1dOptions { padding: 1, groups: 4, ..Conv1dOptions::default() })
    }),
    ("conv1d", |g, v| f::conv1d(g, v[0], v[1], Some(v[2]), Conv1dOptions::default())),
];

fn narrow_twice(g: &mut Graph, x: Var, axis: isize) -> Result<Var> {
    let parts = [f::narrow(g, x, axis, 1, 2)?, f::narrow(g, x, axis, 0, 2)?];
    let len = g.shape(parts[0]).iter().product();
    let parts = [f::reshape(g, parts[0], &[len])?, f::reshape(g, parts[1], &[len])?];
    f::concat(g, &parts, 0)
}

/// The case of a name in the fixture.
fn case(name: &str) -> &'static Case {
    let exact = CASES.iter().find(|(case, _)| *case == name);
    let general = || CASES.iter().find(|(case, _)| name.split_once('.').is_some_and(|(start, _)| start == *case));
    exact.or_else(general).unwrap_or_else(|| panic!("{name} is not tested"))
}

/// Values and gradients as PyTorch's.
fn check(fixture: &Fixture, name: &str, device: &Device, tolerance: f64) {
    let what = format!("{name} on {device:?}");
    let get = |part: &str| fixture.get(&format!("{name}/{part}"));
    let mut g = Graph::without_parameters(device);
    let mut inputs = Vec::new();
    while let Some((shape, values)) = fixture.try_get(&format!("{name}/x{}", inputs.len())) {
        let tensor = device.zeros(&format!("x{}", inputs.len()), &shape, elman::DType::F32).unwrap();
        tensor.write_f64(&values).unwrap();
        inputs.push(g.input_with_gradient(&tensor).unwrap());
    }
    let y = case(name).1(&mut g, &inputs).unwrap_or_else(|error| panic!("{what}: {error}"));
    let (shape, want) = get("y");
    assert_eq!(g.shape(y), if shape.is_empty() { &[1][..] } else { &shape }, "{what}");
    let dy = device.zeros("dy", g.shape(y), elman::DType::F32).unwrap();
    dy.write_f64(&(0..want.len()).map(|i| (0.9 * i as f64 + 0.3).cos()).collect::<Vec<_>>()).unwrap();
    let result = g.tensor(y).unwrap();
    g.backward(&[], &[(y, &dy)]).unwrap();
    let gradients: Vec<_> = inputs.iter().map(|&x| g.gradient(x)).collect();
    let plan = g.finish().unwrap();
    // Twice: what a run leaves behind must not reach the next.
    plan.run_times(2).unwrap();
    assert_close(&what, &result.to_vec_f64().unwrap(), &want, want.len(), tolerance);
    for (i, gradient) in gradients.iter().enumerate() {
        let (_, want) = get(&format!("dx{i}"));
        match gradient {
            Some(gradient) => {
                assert_close(&format!("{what}: dx{i}"), &gradient.to_vec_f64().unwrap(), &want, want.len(), tolerance);
            }
            None => assert!(want.iter().all(|&d| d == 0.0), "{what}: no gradient for x{i}"),
        }
    }
}

#[test]
fn operations_are_pytorchs() {
    let fixture = Fixture::open("operations");
    let names: BTreeSet<_> =
        fixture.names().iter().filter_map(|name| Some(name.strip_suffix("/y")?.to_owned())).collect();
    let mut tested = BTreeSet::new();
    for name in &names {
        tested.insert(case(name).0);
        // Numbers of programs are f32, as 0.3, and so is the fixture.
        check(&fixture, name, &Device::reference(), 3e-7);
        for device in f32_devices() {
            check(&fixture, name, &device, 1e-5);
        }
    }
    assert_eq!(tested.len(), CASES.len(), "cases without a fixture");
}

/// What gradients of long expressions have is more than the expressions: 70 times tanh, one dispatch there and one back.
#[test]
fn long_expressions_have_their_gradients() {
    for device in f32_devices() {
        let mut g = Graph::without_parameters(&device);
        let x = g.input_with_gradient(&device.upload("x", &[3], &[0.5, -1.0, 2.0]).unwrap()).unwrap();
        let y = f::map(&mut g, [x], |[x]| (0..70).fold(x, |x, _| x.tanh())).unwrap();
        let ones = device.upload("ones", &[3], &[1.0; 3]).unwrap();
        g.backward(&[], &[(y, &ones)]).unwrap();
        let gradient = g.gradient(x).unwrap();
        g.finish().unwrap().run().unwrap();
        let want = [0.5f64, -1.0, 2.0]
            .map(|x| (0..70).fold((x, 1.0), |(x, slope), _| (x.tanh(), slope * (1.0 - x.tanh() * x.tanh()))).1);
        assert_close(&format!("70 times tanh on {device:?}"), &gradient.to_vec_f64().unwrap(), &want, 3, 1e-5);
    }
}

/// Of a table with a row of zeros that is never looked up: its gradient is 0, not 0 / 0.
#[test]
fn rows_that_are_not_looked_up_have_no_gradient() {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let table = g.input_with_gradient(&device.upload("table", &[2, 2], &[0.0, 0.0, 4.0, 9.0]).unwrap()).unwrap();
    let tokens = device.tokens("tokens", &[5], 2).unwrap();
    tokens.write_u32(&[1; 5]).unwrap();
    let rows = f::embedding(&mut g, table, &tokens).unwrap();
    let y = f::sqrt(&mut g, rows).unwrap();
    let ones = device.upload("ones", &[5, 2], &[1.0; 10]).unwrap();
    g.backward(&[], &[(y, &ones)]).unwrap();
    let gradient = g.gradient(table).unwrap();
    g.finish().unwrap().run().unwrap();
    assert_close("d table", &gradient.to_vec_f64().unwrap(), &[0.0, 0.0, 1.25, 5.0 / 6.0], 4, 1e-6);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let mut var = |name: &str, shape: &[usize]| {
        let tensor = device.zeros(name, shape, elman::DType::F32).unwrap();
        g.input_with_gradient(&tensor).unwrap()
    };
    let (x, row, wide) = (var("x", &[2, 3, 4]), var("row", &[4]), var("wide", &[2, 4]));
    let refused = [
        f::add(&mut g, x, wide),
        f::layer_norm(&mut g, row, Some((wide, wide)), 1e-5),
        f::rms_norm(&mut g, row, Some(wide), 1e-5),
        f::batch_norm(&mut g, x, None, Some((row, row)), 1e-5),
        f::conv1d(&mut g, x, x, None, Conv1dOptions { padding: usize::MAX / 2, ..Conv1dOptions::default() }),
        f::conv1d(&mut g, x, x, None, Conv1dOptions { dilation: usize::MAX, ..Conv1dOptions::default() }),
        f::transpose(&mut g, x, 0, 3),
        f::transpose(&mut g, x, isize::MIN, 0),
        f::sum_axis(&mut g, x, -4),
        f::narrow(&mut g, x, 1, usize::MAX, 2),
        f::select(&mut g, row, 0, 0),
        f::concat(&mut g, &[], 0),
        f::stack(&mut g, &[x, row], 0),
        f::matmul(&mut g, x, row),
        f::map(&mut g, [x], |[x]| (0..200).fold(x, |x, _| x.tanh())),
    ];
    for (i, result) in refused.into_iter().enumerate() {
        assert!(result.is_err(), "{i}");
    }
}

/// A step of a GRU written in separate operations, on columns that are there: `r`, `z`, `n` and `h` are one dispatch, and one more for each
/// six of the gradients that it has; written in one `map`, as many.
#[test]
fn separate_operations_are_one_dispatch() {
    let gru = |g: &mut Graph, [r, z, n, rest, h]: [Var; 5]| -> Result<Var> {
        let (r, z) = (f::sigmoid(g, r)?, f::sigmoid(g, z)?);
        let reset = f::mul(g, r, rest)?;
        let sum = f::add(g, n, reset)?;
        let n = f::tanh(g, sum)?;
        let less = f::sub(g, h, n)?;
        let kept = f::mul(g, z, less)?;
        f::add(g, n, kept)
    };
    let in_one = |g: &mut Graph, values: [Var; 5]| {
        f::map(g, values, |[r, z, n, rest, h]| {
            let n = (n + r.sigmoid() * rest).tanh();
            n + z.sigmoid() * (h - n)
        })
    };
    for device in f32_devices() {
        let run = |cell: &dyn Fn(&mut Graph, [Var; 5]) -> Result<Var>| {
            let mut g = Graph::without_parameters(&device);
            let mut random = elman::rng::manual_seed(3);
            let values =
                [0; 5].map(|_| g.input_with_gradient(&device.upload("x", &[7], &random.randn(7)).unwrap()).unwrap());
            let y = cell(&mut g, values).unwrap();
            let tensor = g.tensor(y).unwrap();
            let dy = device.upload("dy", &[7], &random.randn(7)).unwrap();
            g.backward(&[], &[(y, &dy)]).unwrap();
            let gradients = values.map(|value| g.gradient(value).unwrap());
            let plan = g.finish().unwrap();
            plan.run().unwrap();
            let all: Vec<_> = std::iter::once(tensor).chain(gradients).map(|t| t.to_vec_f64().unwrap()).collect();
            (plan.count().dispatches, plan.notes().join("\n"), all.concat())
        };
        let (separate, notes, values) = run(&gru);
        let (one, _, want) = run(&in_one);
        assert_eq!(separate, one);
        assert!(one <= 4, "{one}");
        assert!(notes.contains("8 operations of elements in one dispatch"), "{notes}");
        assert_close(&format!("{device:?}"), &values, &want, 42, 1e-6);
    }
}

/// What is used by several things of several kinds: a product, operations, a seed of its own.
#[test]
fn values_that_are_used_several_times_have_the_sum_of_gradients() {
    for device in f32_devices() {
        let mut g = Graph::without_parameters(&device);
        let x = device.upload("x", &[2, 2], &[1., 2., 3., 4.]).unwrap();
        let x = g.input_with_gradient(&x).unwrap();
        let squares = f::square(&mut g, x).unwrap();
        let doubled = f::scale(&mut g, squares, 2.0).unwrap();
        let sum = f::add(&mut g, squares, doubled).unwrap();
        let product = f::matmul(&mut g, squares, squares).unwrap();
        let never = f::exp(&mut g, sum).unwrap();
        let ones = device.upload("ones", &[2, 2], &[1.0; 4]).unwrap();
        g.backward(&[], &[(sum, &ones), (product, &ones), (squares, &ones)]).unwrap();
        assert!(g.gradient(never).is_none());
        let (sum, product, gradient) = (g.tensor(sum).unwrap(), g.tensor(product).unwrap(), g.gradient(x).unwrap());
        let plan = g.finish().unwrap();
        assert!(!plan.to_string().contains("exp"), "what nothing needs is not computed: {plan}");
        plan.run().unwrap();
        let read = |tensor: &elman::Tensor| tensor.to_vec().unwrap();
        assert_eq!(read(&sum), [3., 12., 27., 48.], "{device:?}");
        assert_eq!(read(&product), [37., 68., 153., 292.], "{device:?}");
        // With S = x²: 3 and 1, and of the product each row's sum of S and each column's: [15 35; 25 45]; times 2 x.
        assert_eq!(read(&gradient), [38., 156., 174., 392.], "{device:?}");
    }
}

/// Of a value that is computed within others no gradient is known; of one whose tensor was asked for, all of it.
#[test]
fn a_gradient_is_whole_or_none() {
    for (asks, device) in [false, true].into_iter().flat_map(|asks| f32_devices().into_iter().map(move |d| (asks, d))) {
        let mut g = Graph::without_parameters(&device);
        let x = g.input_with_gradient(&device.upload("x", &[2], &[1., 3.]).unwrap()).unwrap();
        let squares = f::square(&mut g, x).unwrap();
        if asks {
            g.tensor(squares).unwrap();
        }
        let tripled = f::scale(&mut g, squares, 3.0).unwrap();
        let [a, b] = [tripled, squares].map(|value| f::scale(&mut g, value, 1.0).unwrap());
        let ones = device.upload("ones", &[2], &[1.0; 2]).unwrap();
        g.backward(&[], &[(a, &ones), (b, &ones)]).unwrap();
        let (of_squares, of_x) = (g.gradient(squares), g.gradient(x).unwrap());
        g.finish().unwrap().run().unwrap();
        let read = |tensor: &elman::Tensor| tensor.to_vec().unwrap();
        assert_eq!(read(&of_x), [8., 24.], "{device:?}");
        if let Some(of_squares) = &of_squares {
            assert_eq!(read(of_squares), [4., 4.], "{device:?}");
        }
        assert!(of_squares.is_some() || !asks, "{device:?}");
    }
}

/// A state that each step both hands on and gives out is computed once.
#[test]
fn what_several_use_is_computed_once() {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let x = g.input(&device.upload("x", &[6, 3], &[0.5; 18]).unwrap()).unwrap();
    let start = g.input(&device.upload("h", &[3], &[0.0; 3]).unwrap()).unwrap();
    let (all, _) = f::scan(&mut g, x, [start], |g, x, [h]| {
        let (kept, new) = (f::scale(g, h, 0.9)?, f::tanh(g, x)?);
        let h = f::add(g, kept, new)?;
        Ok((h, [h]))
    })
    .unwrap();
    g.tensor(all).unwrap();
    let count = g.finish().unwrap().count();
    // A dispatch a step, of two inputs and a result.
    assert_eq!(count.dispatches, 6);
}

/// A value is what its input was where it was recorded, whatever is written to that before something reads the value.
#[test]
fn values_stay_what_they_were() {
    for device in f32_devices() {
        let mut g = Graph::without_parameters(&device);
        let state = device.upload("state", &[2], &[1., 3.]).unwrap();
        let x = g.input(&state).unwrap();
        let squares = f::square(&mut g, x).unwrap();
        let less = f::scale(&mut g, squares, -1.0).unwrap();
        let next = f::scale(&mut g, squares, 2.0).unwrap();
        let next = g.tensor(next).unwrap();
        elman::kernels::map::unary(&mut g, |x| x, &next, &state).unwrap();
        let before = f::add(&mut g, squares, less).unwrap();
        let both = f::sub(&mut g, x, less).unwrap();
        let [squares, before, both] = [squares, before, both].map(|value| g.tensor(value).unwrap());
        g.finish().unwrap().run().unwrap();
        let read = |tensor: &elman::Tensor| tensor.to_vec().unwrap();
        assert_eq!(read(&state), [2., 18.], "{device:?}");
        assert_eq!(read(&squares), [1., 9.], "{device:?}");

        // And in the backward pass, for what others' gradients are made of.
        let mut g = Graph::without_parameters(&device);
        let state = device.upload("state", &[2], &[1., 3.]).unwrap();
        let w = g.input_with_gradient(&device.upload("w", &[2], &[5., 7.]).unwrap()).unwrap();
        let x = g.input(&state).unwrap();
        let squares_of_state = f::square(&mut g, x).unwrap();
        let y = f::mul(&mut g, squares_of_state, w).unwrap();
        let next = g.tensor(y).unwrap();
        elman::kernels::map::unary(&mut g, |x| x * 10.0, &next, &state).unwrap();
        let ones = device.upload("ones", &[2], &[1.0; 2]).unwrap();
        g.backward(&[], &[(y, &ones)]).unwrap();
        let of_w = g.gradient(w).unwrap();
        g.finish().unwrap().run().unwrap();
        assert_eq!(read(&of_w), [1., 9.], "{device:?}");
        assert_eq!(read(&before), [0., 0.], "{device:?}");
        assert_eq!(read(&both), [3., 27.], "{device:?}");
    }
}
