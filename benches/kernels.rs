//! Times of the kernels one by one, at the shapes of the workloads, and what the device can do at most:
//! `cargo bench --bench kernels -- lstm`, on the device that `ELMAN_DEVICE` names; criterion's options apply.
//!
//! Each result is compared with the f64 reference before it is timed. A time is that of everything the operation takes, the
//! packing of weights and the sums of slices included, many runs to a submission. `--verbose` adds the median and its spread.
#![allow(missing_docs, reason = "a program")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use elman::kernels::cross_entropy::{ClassLoss, cross_entropy};
use elman::kernels::matmul::{matmul, t};
use elman::kernels::sequence::{self, Sequence, SequenceGradients};
use elman::kernels::{Update, accumulate, column_sum, dropout, gather, map, segment_sum, squared_norm};
use elman::map::Layout;
use elman::nn::Cell;
use elman::optim::{Adam, Rule};
use elman::{DType, Device, Plan, Precision, Recorder, Result, Tensor, rng};

/// Records an operation on new tensors, and gives what it computes.
type Record = Box<dyn Fn(&Device, &mut Recorder) -> Result<Vec<Tensor>>>;

/// An operation, its shape, and what it is timed on.
struct Case {
    name: String,
    shape: String,
    record: Record,
}

fn case(
    name: &str,
    shape: impl Into<String>,
    record: impl Fn(&Device, &mut Recorder) -> Result<Vec<Tensor>> + 'static,
) -> Case {
    Case { name: name.into(), shape: shape.into(), record: Box::new(record) }
}

/// Irregular values that depend on the name alone, from -1 to 1.
fn random(device: &Device, name: &str, shape: &[usize]) -> Result<Tensor> {
    let seed = name.bytes().map(u64::from).sum();
    device.upload(name, shape, &rng::manual_seed(seed).uniform(shape.iter().product(), -1.0, 1.0))
}

fn zeros(device: &Device, name: &str, shape: &[usize]) -> Result<Tensor> {
    device.zeros(name, shape, DType::F32)
}

fn tokens(device: &Device, shape: &[usize], vocabulary: usize) -> Result<Tensor> {
    let tokens = device.tokens("tokens", shape, vocabulary)?;
    tokens.write_u32(&(0..tokens.len()).map(|i| (i * i / 7 % vocabulary) as u32).collect::<Vec<_>>())?;
    Ok(tokens)
}

/// `[m, k]` times `[k, n]`; transposed, the first lies as `[k, m]`, as in the gradient of a weight.
fn product(m: usize, k: usize, n: usize, transposed: bool) -> Case {
    let shape = format!("{m} x {k} x {n}{}", if transposed { ", transposed" } else { "" });
    case("matmul", shape, move |device, g| {
        let (b, c) = (random(device, "b", &[k, n])?, zeros(device, "c", &[m, n])?);
        if transposed {
            matmul(g, t(&random(device, "a", &[k, m])?), &b, None, &c, false)?;
        } else {
            matmul(g, &random(device, "a", &[m, k])?, &b, None, &c, false)?;
        }
        Ok(vec![c])
    })
}

/// A recurrence on a table of 85 rows, from zero states; with its backward pass, from the gradient of every output. As planned,
/// or without what only some adapters have.
fn recurrence(cell: Cell, [steps, batch, hidden]: [usize; 3], backward: bool, baseline: bool) -> Case {
    let name = format!("{cell:?}{}", if backward { " forward, backward" } else { " forward" }).to_lowercase();
    let shape = format!("T {steps}, B {batch}, H {hidden}{}", if baseline { ", baseline" } else { "" });
    case(&name, shape, move |device, g| {
        g.set_baseline(baseline);
        let (width, states) = (cell.gates() * hidden, [1, cell.states(), steps + 1, batch, hidden]);
        let scale = 1.0 / (hidden as f64).sqrt();
        let w: Vec<_> = rng::manual_seed(5).uniform(width * hidden, -scale, scale);
        let saves = backward && cell.saved() > 0;
        let gru = cell.kind().separate_bias;
        let s = Sequence {
            x: random(device, "x", &[1, 85, width])?,
            index: tokens(device, &[1, steps, batch], 85)?,
            lengths: device.lengths("lengths", batch, steps)?,
            resets: None,
            w: vec![device.upload("w", &[width, hidden], &w)?],
            w_ih: Vec::new(),
            biases: gru.then(|| random(device, "bias", &[1, width])).transpose()?,
            states: zeros(device, "states", &states)?,
            saved: saves.then(|| zeros(device, "saved", &[1, steps, batch, cell.saved() * hidden])).transpose()?,
            form: None,
            peepholes: None,
            has_h_0: false,
            precision: Precision::F32,
        };
        sequence::forward(g, cell.kind(), &s)?;
        if !backward {
            return Ok(vec![s.states]);
        }
        let dy = random(device, "dy", &[1, steps, batch, hidden])?;
        let d = SequenceGradients::new(g, cell.kind(), &s, (Some(dy), None), false)?;
        sequence::backward(g, cell.kind(), &s, &d)?;
        Ok(vec![s.states.clone(), d.parts(&s)[0].clone()])
    })
}

fn cases() -> Vec<Case> {
    let (w1, w3, w5, small) = ([8, 512, 256], [64, 64, 512], [128, 64, 256], [128, 64, 64]);
    let mut cases = vec![
        product(512, 256, 85, false),
        product(256, 3584, 256, true),
        product(1024, 1024, 1024, false),
        product(4096, 512, 2048, false),
        product(2048, 4096, 512, true),
    ];
    for cell in [Cell::Tanh, Cell::Gru, Cell::Lstm] {
        let sizes = [(w1, false), (w1, true), (w5, false)];
        cases.extend(sizes.map(|(size, backward)| recurrence(cell, size, backward, false)));
    }
    cases.extend([false, true].map(|backward| recurrence(Cell::Lstm, w3, backward, false)));
    // Weights few enough for workgroup memory.
    cases.extend([false, true].map(|baseline| recurrence(Cell::Tanh, small, false, baseline)));
    cases.push(case("cross_entropy", "512 x 85", |device, g| {
        let (losses, dx) = (zeros(device, "losses", &[512])?, zeros(device, "dx", &[512, 85])?);
        let loss = ClassLoss {
            x: &random(device, "x", &[512, 85])?,
            targets: &tokens(device, &[512], 85)?,
            ignore_index: None,
            class_weights: None,
            label_smoothing: 0.0,
            counts: true,
            scale: &zeros(device, "scale", &[1])?,
            losses: &losses,
            dx: Some(&dx),
        };
        cross_entropy(g, loss)?;
        Ok(vec![losses, dx])
    }));
    for v in [85, 20_000] {
        cases.push(case("segment_sum", format!("4096 x 256 -> {v}"), move |device, g| {
            let (index, dtable) = (tokens(device, &[4096], v)?, zeros(device, "dtable", &[v, 256])?);
            segment_sum::segment_sum(g, &random(device, "dy", &[4096, 256])?, &index, &dtable, false)?;
            Ok(vec![dtable])
        }));
    }
    cases.push(case("gather", "85 x 256 -> 4096", |device, g| {
        let y = zeros(device, "y", &[4096, 256])?;
        gather::gather(g, &random(device, "table", &[85, 256])?, &tokens(device, &[4096], 85)?, &y)?;
        Ok(vec![y])
    }));
    cases.push(case("column_sum", "4096 x 2048", |device, g| {
        let y = zeros(device, "y", &[2048])?;
        column_sum::column_sum(g, &random(device, "x", &[4096, 2048])?, &y, false)?;
        Ok(vec![y])
    }));
    for n in [102_272, 4_000_000] {
        cases.push(case("adam", n.to_string(), move |device, g| {
            let [gradient, parameters, mean] = ["g", "w", "m"].map(|name| random(device, name, &[n]));
            let (gradient, parameters, mean) = (&gradient?, parameters?, mean?);
            let (lr, clock) = (&device.upload("lr", &[1], &[1e-3])?, &device.upload_u32("clock", &[2], &[3, 0])?);
            let moments = &[mean, device.upload("v", &[n], &vec![0.1; n])?];
            let update = Update { gradient, lr, clock, parameters: &parameters, moments };
            Adam::new(1e-3).record(g, update)?;
            Ok(vec![parameters])
        }));
    }
    let large = [8, 512, 256];
    cases.push(case("squared_norm", "1048576", move |device, g| {
        let norm = zeros(device, "norm", &[1])?;
        squared_norm::squared_norm(g, &random(device, "x", &large)?, &norm)?;
        Ok(vec![norm])
    }));
    cases.push(case("dropout", "1048576", move |device, g| {
        let (y, clock) = (zeros(device, "y", &large)?, device.upload_u32("clock", &[2], &[3, 0])?);
        dropout::dropout(g, &random(device, "x", &large)?, &y, 0.5, 7, &clock)?;
        Ok(vec![y])
    }));
    cases.push(case("tanh", "1048576", move |device, g| {
        let y = zeros(device, "y", &large)?;
        map::unary(g, |x| x.tanh(), &random(device, "x", &large)?, &y)?;
        Ok(vec![y])
    }));
    cases.push(case("transpose", "8 x 512 x 256", move |device, g| {
        let y = zeros(device, "y", &[512, 8, 256])?;
        let x = random(device, "x", &[8, 512, 256])?;
        let turned = map::Operand::strided(&x, Layout { offset: 0, strides: vec![256, 512 * 256, 1] });
        map::copy(g, &[512, 8, 256], turned, (&y).into(), false)?;
        Ok(vec![y])
    }));
    cases
}

fn plan(device: &Device, record: &Record) -> Result<(Plan, Vec<Tensor>)> {
    let mut g = Recorder::new(device);
    let results = record(device, &mut g)?;
    Ok((g.finish()?, results))
}

/// Panics if a result is not the reference's.
fn check(name: &str, device: &Device, record: &Record) -> Result<Plan> {
    let (plan_here, here) = plan(device, record)?;
    let (reference, exact) = plan(&Device::reference(), record)?;
    plan_here.run()?;
    reference.run()?;
    for (got, want) in here.iter().zip(&exact) {
        let (got, want) = (got.to_vec_f64()?, want.to_vec_f64()?);
        let scale = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let right = got.iter().zip(&want).all(|(got, want)| (got - want).abs() <= 1e-4 * scale);
        assert!(right, "{name} is wrong on {}", device.describe());
    }
    Ok(plan_here)
}

/// Times `times` runs of a plan.
fn run(device: &Device, plan: &Plan, times: u64) -> Result<Duration> {
    let start = Instant::now();
    let mut left = times as usize;
    while left > 0 {
        let some = left.min(100);
        plan.run_times(some)?;
        left -= some;
    }
    device.synchronize()?;
    Ok(start.elapsed())
}

/// What bounds every kernel: memory, by the sum of two large tensors, and products, by a chain of them in registers (on the CPU
/// by a large product of matrices).
fn ceilings(criterion: &mut Criterion, device: &Device) -> anyhow::Result<()> {
    let n = if device.describe().contains("software") { 1 << 22 } else { 1 << 26 };
    let add: Record = Box::new(move |device, g| {
        let [x, y] = ["x", "y"].map(|name| device.upload(name, &[n], &vec![0.5; n]));
        let y = y?;
        accumulate::accumulate(g, &x?, &y)?;
        Ok(vec![y])
    });
    let mut group = criterion.benchmark_group("at most");
    group.throughput(Throughput::BytesDecimal(12 * n as u64));
    let mut checked = None;
    group.bench_function("memory", |bencher| {
        let plan = checked.get_or_insert_with(|| check("accumulate", device, &add).expect("the device works"));
        bencher.iter_custom(|times| run(device, plan, times).expect("the device works"));
    });
    if let Some(chain) = fma::Chain::open(device)? {
        group.throughput(Throughput::Elements(chain.flops()));
        group.bench_function("products", |bencher| bencher.iter_custom(|times| chain.run(times)));
    }
    group.finish();
    Ok(())
}

/// A kernel that only multiplies and adds, which no network has, so that it is not one of the library's.
mod fma {
    use std::time::{Duration, Instant};

    use elman::Device;

    const SOURCE: &str = "
        @group(0) @binding(0) var<storage, read_write> out: array<vec4<f32>>;
        @compute @workgroup_size(256)
        fn chain(@builtin(global_invocation_id) id: vec3<u32>) {
            let x = vec4<f32>(f32(id.x & 3u) * 0.25);
            var a = x; var b = x + 1.0; var c = x + 2.0; var d = x + 3.0;
            for (var i = 0u; i < 1024u; i++) {
                a = fma(a, x, x); b = fma(b, x, x); c = fma(c, x, x); d = fma(d, x, x);
            }
            out[id.x] = a + b + c + d;
        }";

    pub struct Chain {
        device: wgpu::Device,
        queue: wgpu::Queue,
        pipeline: wgpu::ComputePipeline,
        bindings: wgpu::BindGroup,
        workgroups: u32,
    }

    impl Chain {
        /// On the adapter of this device; none if it is no GPU.
        pub fn open(device: &Device) -> anyhow::Result<Option<Self>> {
            if !device.is_gpu() {
                return Ok(None);
            }
            let workgroups = if device.describe().contains("software") { 16 } else { 4096 };
            let instance = wgpu::Instance::default();
            let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
            let is_this = |adapter: &wgpu::Adapter| {
                let info = adapter.get_info();
                device.describe().starts_with(&format!("{} ({:?}, ", info.name, info.backend))
            };
            let Some(adapter) = adapters.into_iter().find(is_this) else { return Ok(None) };
            let (device, queue) = pollster::block_on(adapter.request_device(&Default::default()))?;
            let source = wgpu::ShaderSource::Wgsl(SOURCE.into());
            let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: None,
                module: &module,
                entry_point: None,
                compilation_options: Default::default(),
                cache: None,
            });
            let out = device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 16 * 256 * u64::from(workgroups),
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            });
            let entry = wgpu::BindGroupEntry { binding: 0, resource: out.as_entire_binding() };
            let layout = &pipeline.get_bind_group_layout(0);
            let bindings =
                device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &[entry] });
            Ok(Some(Self { device, queue, pipeline, bindings, workgroups }))
        }

        pub fn flops(&self) -> u64 {
            2 * 16 * 1024 * 256 * u64::from(self.workgroups)
        }

        pub fn run(&self, times: u64) -> Duration {
            let start = Instant::now();
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.bindings, &[]);
            (0..times).for_each(|_| pass.dispatch_workgroups(self.workgroups, 1, 1));
            drop(pass);
            self.queue.submit([encoder.finish()]);
            self.device.poll(wgpu::PollType::wait_indefinitely()).expect("the device works");
            start.elapsed()
        }
    }
}

fn main() -> anyhow::Result<()> {
    let device = Device::from_environment()?;
    println!("{}, f32", device.describe());
    let mut criterion = Criterion::default()
        .sample_size(10)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    ceilings(&mut criterion, &device)?;
    for Case { name, shape, record } in cases() {
        let mut group = criterion.benchmark_group(name.as_str());
        let mut checked = None;
        let count = plan(&Device::cpu(), &record)?.0.count();
        group.sampling_mode(SamplingMode::Flat);
        group.throughput(match count.flops {
            0 => Throughput::BytesDecimal(count.bytes),
            flops => Throughput::Elements(flops),
        });
        group.bench_function(BenchmarkId::from_parameter(&shape), |bencher| {
            // Here, so that what is filtered out is not run.
            let plan = checked.get_or_insert_with(|| check(&name, &device, &record).expect("the device works"));
            bencher.iter_custom(|times| run(&device, plan, times).expect("the device works"));
        });
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}
