//! `shaders/lib/math.wgsl` on every adapter, against f64: special values, a sample of all floats, and, asked for, all.

use std::collections::BTreeSet;

use elman::kernels;
use rayon::prelude::*;
use wgpu::naga::{self, Expression, MathFunction};
use wgpu::util::{BufferInitDescriptor, DeviceExt as _};

/// A function of `lib/math`, its exact value, and how many units in the last place it may be off.
struct Function {
    name: &'static str,
    exact: fn(f64) -> f64,
    allowed: f64,
}

/// The bounds that `lib/math` states, with a division as bad as WGSL allows.
const FUNCTIONS: [Function; 4] = [
    Function { name: "exp4", exact: f64::exp, allowed: 2.0 },
    Function { name: "log4", exact: ln, allowed: 2.0 },
    Function { name: "tanh4", exact: f64::tanh, allowed: 6.0 },
    Function { name: "sigmoid4", exact: sigmoid, allowed: 6.0 },
];

const LEAST_NORMAL: f64 = f32::MIN_POSITIVE as f64;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// What is below the least normal number counts as 0.
fn ln(x: f64) -> f64 {
    if x.abs() < LEAST_NORMAL { f64::NEG_INFINITY } else { x.ln() }
}

/// How far a value is from the exact one, in units in the last place of that; below the least normal number, of that.
fn off(got: f32, want: f64) -> f64 {
    let rounded = want as f32;
    if rounded == got || (want.is_nan() && got.is_nan()) {
        return 0.0;
    }
    if want.is_nan() || got.is_nan() || rounded.is_infinite() || got.is_infinite() {
        return f64::INFINITY;
    }
    if want.abs() < LEAST_NORMAL {
        return (f64::from(got) - want).abs() / LEAST_NORMAL;
    }
    let ulp = f64::from(rounded.abs().next_up()) - f64::from(rounded.abs());
    (f64::from(got) - want).abs() / ulp
}

/// One of the functions, on an adapter.
struct Program {
    device: wgpu::Device,
    queue: wgpu::Queue,
    pipeline: wgpu::ComputePipeline,
}

impl Program {
    fn new(adapter: &wgpu::Adapter, function: &str) -> Self {
        let descriptor = wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        let entry = format!(
            "@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
            @group(0) @binding(1) var<storage, read_write> y: array<vec4<u32>>;
            @compute @workgroup_size(64)
            fn test(@builtin(global_invocation_id) id: vec3<u32>) {{
                if id.x >= arrayLength(&x) {{ return; }}
                y[id.x] = bitcast<vec4<u32>>({function}(bitcast<vec4<f32>>(x[id.x])));
            }}\n"
        );
        let source = entry + include_str!("../shaders/lib/math.wgsl");
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            cache: None,
        });
        Self { device, queue, pipeline }
    }

    /// Of a multiple of 4 numbers, by their bits, which a NaN keeps.
    fn run(&self, x: &[u32]) -> Vec<f32> {
        use wgpu::BufferUsages as Usages;
        let Self { device, queue, pipeline } = self;
        let bytes = 4 * x.len() as u64;
        let contents = bytemuck::cast_slice(x);
        let input = device.create_buffer_init(&BufferInitDescriptor { label: None, contents, usage: Usages::STORAGE });
        let buffer = |usage| wgpu::BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false };
        let output = device.create_buffer(&buffer(Usages::STORAGE | Usages::COPY_SRC));
        let staging = device.create_buffer(&buffer(Usages::MAP_READ | Usages::COPY_DST));
        let entries = [(0, &input), (1, &output)]
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() });
        let layout = &pipeline.get_bind_group_layout(0);
        let bindings = device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries });
        let mut encoder = device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, &bindings, &[]);
        pass.dispatch_workgroups((x.len() / 4).div_ceil(64) as u32, 1, 1);
        drop(pass);
        encoder.copy_buffer_to_buffer(&output, 0, &staging, 0, bytes);
        queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |mapped| mapped.unwrap());
        device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..).unwrap())
    }
}

fn adapters() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    assert!(!adapters.is_empty() || std::env::var_os("ELMAN_REQUIRE_GPU").is_none_or(|value| value != "1"));
    adapters
}

/// Each function on each adapter, of these runs of bits.
fn check(runs: impl Fn() -> Box<dyn Iterator<Item = Vec<u32>>>) {
    for adapter in adapters() {
        for Function { name, exact, allowed } in FUNCTIONS {
            let program = Program::new(&adapter, name);
            let mut worst = (0.0, 0.0, 0.0);
            for x in runs() {
                let y = program.run(&x);
                let of = |(&bits, &got): (&u32, &f32)| {
                    let x = f32::from_bits(bits);
                    (off(got, exact(x.into())), x, got)
                };
                let larger = |a: (f64, f32, f32), b: (f64, f32, f32)| if b.0 > a.0 { b } else { a };
                let most = x.par_iter().zip(&y).map(of).reduce(|| (0.0, 0.0, 0.0), larger);
                worst = larger(worst, most);
            }
            let (off, x, got) = worst;
            let adapter = adapter.get_info().name;
            println!("{adapter}: {name} is up to {off:.2} ULP off");
            assert!(off <= allowed, "{adapter}: {name}({x:e}) is {got:e}, {off} ULP off");
        }
    }
}

#[test]
fn a_sample_of_all_floats() {
    check(|| Box::new([(0..=u32::MAX).step_by(4093).take(1 << 20).collect()].into_iter()));
}

#[test]
#[ignore = "all 2^32 floats: minutes"]
fn all_floats() {
    check(|| Box::new((0..512).map(|run| (run << 23..=run << 23 | 0x7f_ffff).collect())));
}

#[test]
fn special_values() {
    let inf = f32::INFINITY;
    let x = [0.0, -0.0, 20.0, -20.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4, inf, -inf, 1e-40, -1e-40, 1.0, f32::MAX];
    let nans = [f32::NAN.to_bits(), 0xffc0_0001, 0x7f80_0001, 0xffff_ffff];
    for adapter in adapters() {
        let of = |name| {
            let bits: Vec<_> = x.iter().map(|x| x.to_bits()).chain(nans).collect();
            let y = Program::new(&adapter, name).run(&bits);
            assert!(y[x.len()..].iter().all(|y| y.is_nan()), "{name} on {:?}: {y:?}", adapter.get_info());
            y
        };
        let exp = of("exp4");
        let want = f64::from(88.0f32).exp();
        assert_eq!(exp[..4], [1.0, 1.0, 4.851_652e8, 2.061_153_6e-9], "{:?}", adapter.get_info());
        assert!(off(exp[4], want) <= 2.0 && exp[5].abs() <= f32::MIN_POSITIVE);
        assert_eq!(exp[6..14], [inf, 0.0, inf, 0.0, inf, 0.0, 1.0, 1.0]);
        let log = of("log4");
        assert_eq!(log[..2], [-inf, -inf]);
        assert!([3, 5, 7, 9, 11].iter().all(|&i| log[i].is_nan()), "{log:?}");
        assert_eq!([log[10], log[14]], [inf, 0.0]);
        assert!(off(log[15], f64::from(f32::MAX).ln()) <= 2.0);
        let tanh = of("tanh4");
        assert_eq!(tanh[..12], [0.0, -0.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]);
        assert!(tanh[1].is_sign_negative() && tanh[12].abs() <= f32::MIN_POSITIVE);
        let sigmoid = of("sigmoid4");
        assert_eq!([sigmoid[0], sigmoid[1], sigmoid[12]], [0.5; 3]);
        assert_eq!([4, 6, 8, 10, 15].map(|i| sigmoid[i]), [1.0; 5]);
        assert_eq!([7, 9, 11].map(|i| sigmoid[i]), [0.0; 3]);
        assert!(off(sigmoid[3], self::sigmoid(-20.0)) <= 6.0 && sigmoid[5] <= f32::MIN_POSITIVE);
    }
}

/// What a driver or its compiler may bend is used by no kernel.
#[test]
fn no_kernel_uses_a_built_in_exponential() {
    use MathFunction::{Acosh, Asinh, Atanh, Cosh, Exp, Exp2, Log, Log2, Pow, Sinh, Tanh};
    let built_ins = [Acosh, Asinh, Atanh, Cosh, Exp, Exp2, Log, Log2, Pow, Sinh, Tanh];
    let uses = |source: &str| {
        let module = naga::front::wgsl::parse_str(source).unwrap();
        let functions = module.functions.iter().map(|(_, function)| function);
        let all = functions.chain(module.entry_points.iter().map(|entry| &entry.function));
        let of =
            |expression: &Expression| matches!(expression, Expression::Math { fun, .. } if built_ins.contains(fun));
        all.flat_map(|function| function.expressions.iter()).any(|(_, expression)| of(expression))
    };
    let found: BTreeSet<_> = kernels::ALL.iter().filter(|k| uses(&k.source_with(&[]))).map(|k| k.name).collect();
    assert!(found.is_empty(), "{found:?}");
    assert!(uses("fn f(x: f32) -> f32 { return 2.0 * tanh(x); }"));
}
