//! Every WGSL file, read by naga: it matches its host struct and bindings, stays within WebGPU's default limits, and
//! translates to SPIR-V, MSL, HLSL and GLSL, so that Metal and DX12 are checked where there is no such machine.

#[path = "../common/mod.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};

use elman::device::AbsentGpu;
use elman::kernel::{Access, Kernel};
use elman::kernels::generate::Sizes;
use elman::kernels::sample::Draw;
use elman::kernels::sequence::CellKind;
use elman::nn::functional::{self, InitialState, Reduction, cross_entropy};
use elman::nn::{Cell, CellForm, CharRnn, CharRnnOptions, Init, LanguageModel};
use elman::optim::{Adam, Clip, Optimizer};
use elman::text::{Corpus, Windows};
use elman::{DType, Device, Graph, Precision, Trainer, kernels, rng};
use naga::back::{glsl, hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, Layouter};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage, StorageAccess, TypeInner};

/// WebGPU's default limits.
const STORAGE_BUFFERS: usize = 8;
const INVOCATIONS: u32 = 256;
const WORKGROUP_MEMORY: u32 = 16_384;

fn parse(kernel: &Kernel, constants: &[(&str, u32)]) -> (Module, ModuleInfo) {
    let (name, source) = (kernel.name, kernel.source_with(constants));
    let module = naga::front::wgsl::parse_str(&source)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(&source)));
    let info = Validator::new(ValidationFlags::all(), capabilities(constants))
        .validate(&module)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(&source)));
    (module, info)
}

/// What a kernel may use: nothing that WebGPU does not have, but what its constants are set for where the adapter has it.
fn capabilities(constants: &[(&str, u32)]) -> Capabilities {
    let of = |name, capability| {
        let is_set = constants.iter().any(|&(constant, value)| constant == name && value != 0);
        if is_set { capability } else { Capabilities::empty() }
    };
    of("F16", Capabilities::SHADER_FLOAT16) | of("SUBGROUPS", Capabilities::SUBGROUP)
}

type Constants = Vec<(&'static str, u32)>;

/// What adapters report: subgroups of 8 to 64 threads or none, and workgroup memory of 16 to 64 KiB.
const GPUS: [AbsentGpu; 5] = [
    AbsentGpu { subgroups: None, workgroup_bytes: 16 << 10 },
    AbsentGpu { subgroups: Some((8, 32)), workgroup_bytes: 16 << 10 },
    AbsentGpu { subgroups: Some((32, 64)), workgroup_bytes: 64 << 10 },
    AbsentGpu { subgroups: Some((32, 32)), workgroup_bytes: 48 << 10 },
    AbsentGpu { subgroups: Some((64, 64)), workgroup_bytes: 32 << 10 },
];

/// The constants of every pipeline that plans of these sizes make, with those of the defaults, and the workgroup memory that there is.
fn variants() -> Vec<(&'static Kernel, Constants, u32)> {
    let mut found: BTreeMap<_, _> =
        kernels::ALL.iter().enumerate().map(|(i, _)| ((i, Vec::new()), WORKGROUP_MEMORY)).collect();
    for hidden in [1, 5, 64, 65, 256, 1022, 1025] {
        let gpus = GPUS.into_iter().map(Some).chain([None]);
        let shapes = gpus.flat_map(|gpu| [(1, gpu), (512, gpu)]);
        for ((batch, gpu), cell) in shapes.flat_map(|shape| Cell::ALL.iter().map(move |&cell| (shape, cell))) {
            // Two layers of the largest size are a wavefront.
            let layers = if hidden == 1025 && batch == 1 { 2 } else { 1 };
            let precision = if gpu.is_some() { [Precision::F32, Precision::F16].as_slice() } else { &[Precision::F32] };
            for &precision in precision {
                let trainer = char_rnn_trainer(cell, hidden, layers, batch, gpu, precision);
                for dispatch in trainer.plan().dispatches() {
                    let name = dispatch.kernel().name;
                    let Some(i) = kernels::ALL.iter().position(|k| k.name == name) else {
                        assert!(name.starts_with("map_"), "{name}");
                        continue;
                    };
                    let memory = gpu.map_or(WORKGROUP_MEMORY, |gpu| gpu.workgroup_bytes as u32);
                    let least = found.entry((i, dispatch.constants().to_vec())).or_insert(memory);
                    *least = memory.min(*least);
                }
            }
        }
    }
    let mut insert = |i, constants| found.insert((i, constants), WORKGROUP_MEMORY);
    // What a plan of these has not: every function, resets, and the other GRU in all forms.
    for kernel in kinds().flat_map(|kind| [kind.forward, kind.backward]) {
        let i = kernels::ALL.iter().position(|k| k.name == kernel.name).unwrap();
        for asked in [[("ACTIVATIONS", 0), ("RESETS", 1)], [("ACTIVATIONS", 0x54321), ("RESETS", 0)]] {
            insert(i, asked.to_vec());
        }
        for constants in [&[("SLICES", 2)][..], &[("FUSED", 0)], &[("FUSED", 0), ("STACKED", 1)]] {
            insert(i, [&[("ACTIVATIONS", 0xba986), ("RESETS", 1)], constants].concat());
            insert(i, constants.to_vec());
        }
    }
    // A vocabulary of words.
    let i = kernels::ALL.iter().position(|k| k.name == "segment_sum").unwrap();
    insert(i, vec![("MANY", 1)]);
    let i = kernels::ALL.iter().position(|k| k.name == "generate").unwrap();
    for (cell, layers, vocabulary, hidden) in [
        (Cell::Tanh, 1, 85, 256),
        (Cell::Relu, 3, 7, 1),
        (Cell::Gru, 2, 300, 250),
        (Cell::Lstm, 2, 85, 512),
        (Cell::Tanh, 1, 3000, 64),
        (Cell::Tanh, 1, 9, 1788),
    ] {
        insert(i, generate_constants(Sizes { cell, layers, vocabulary, hidden }));
    }
    found.into_iter().map(|((i, constants), memory)| (kernels::ALL[i], constants, memory)).collect()
}

/// The constants of a dispatch that draws tokens.
fn generate_constants(sizes: Sizes) -> Constants {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let tensor = |name, shape: &[usize], dtype| device.zeros(name, shape, dtype).unwrap();
    let draw = Draw {
        shape: &tensor("shape", &[1, 4], DType::F32),
        control: &tensor("control", &[1, 6], DType::U32),
        history: &tensor("history", &[1 + sizes.vocabulary, 1], DType::U32),
        tokens: &device.tokens("tokens", &[1], sizes.vocabulary).unwrap(),
        ring: &tensor("ring", &[1, 1], DType::U32),
    };
    let [h, c] = ["h", "c"].map(|name| tensor(name, &[sizes.layers, 1, sizes.hidden], DType::F32));
    let weights = common::network(&device, sizes).unwrap().2.pack(&mut g).unwrap();
    kernels::generate::generate(&mut g, sizes, &weights, draw, (&h, Some(&c)), 1).unwrap();
    let plan = g.finish().unwrap();
    plan.dispatches().last().unwrap().constants().to_vec()
}

fn char_rnn_trainer(
    cell: Cell,
    hidden: usize,
    layers: usize,
    batch: usize,
    gpu: Option<AbsentGpu>,
    precision: Precision,
) -> Trainer {
    let device = gpu.map_or_else(Device::cpu, Device::in_place_of);
    let mut init = Init::new(rng::manual_seed(0));
    let model = CharRnn::new(&mut init, CharRnnOptions::new(85, 42, hidden).cell(cell).num_layers(layers)).unwrap();
    let parameters = init.upload(&device).unwrap();
    let corpus = Corpus::new(&device, &[1; 20], 85).unwrap();
    let windows = Windows::new(&corpus, (0..12).collect(), 4).unwrap();
    Trainer::new(&parameters, Optimizer::from(Adam::new(1e-3)).clip(Clip::Norm(1.0)), |g| {
        g.set_precision(precision)?;
        let batch = windows.batch(g, batch)?;
        let logits = model.forward(g, &batch.tokens, InitialState::Zero)?;
        cross_entropy(g, logits, &batch.targets, Reduction::Mean)
    })
    .unwrap()
}

/// Checks the `Params` struct, the bindings, the entry point and the constants of the module against the host's.
fn matches_host(kernel: &Kernel, module: &Module) -> Result<(), String> {
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx()).map_err(|error| error.to_string())?;
    let binding = |number: u32| {
        let found = module.global_variables.iter().find(|(_, v)| v.binding.is_some_and(|b| b.binding == number));
        found.map(|(_, variable)| variable).ok_or(format!("no binding {number}"))
    };
    let params = binding(0)?;
    let TypeInner::Struct { members, span } = &module.types[params.ty].inner else {
        return Err("binding 0 is no struct".into());
    };
    if params.space != AddressSpace::Uniform || *span as usize != 4 * kernel.params.len() {
        return Err(format!("`Params` has {span} bytes, the host's {}", 4 * kernel.params.len()));
    }
    for (i, (member, field)) in members.iter().zip(kernel.params).enumerate() {
        let ty = scalar_name(&module.types[member.ty].inner);
        if member.name.as_deref() != Some(field.name) || member.offset as usize != 4 * i || ty != Some(field.ty) {
            return Err(format!("field {i} is {member:?}, the host's {field:?}"));
        }
    }
    let bound = module.global_variables.iter().filter(|(_, v)| v.binding.is_some()).count();
    if bound != kernel.bindings.len() + 1 {
        return Err(format!("{bound} bindings, the host has {}", kernel.bindings.len() + 1));
    }
    for (number, host) in (1..).zip(kernel.bindings) {
        let variable = binding(number)?;
        let AddressSpace::Storage { access } = variable.space else { return Err(format!("{host:?} is no storage")) };
        let writes = access.contains(StorageAccess::STORE);
        let TypeInner::Array { base, .. } = module.types[variable.ty].inner else {
            return Err(format!("{host:?} is no array"));
        };
        let dtype = match scalar_name(&module.types[base].inner) {
            Some("f32") => DType::F32,
            Some("u32") => DType::U32,
            other => return Err(format!("{host:?} has elements of {other:?}")),
        };
        if variable.name.as_deref() != Some(host.name)
            || writes != (host.access == Access::Write)
            || dtype != host.dtype
        {
            return Err(format!("binding {number} is {:?} {access:?}, the host's {host:?}", variable.name));
        }
    }
    if module.entry_points.len() != 1 || module.entry_points[0].name != kernel.name {
        return Err("the entry point is not named like the file".into());
    }
    // A value that is set is there.
    for name in kernel.constants {
        let source = kernel.source_with(&[(name, 4321)]);
        if source.matches(&format!("\nconst {name}: u32 = 4321u;")).count() != 1 {
            return Err(format!("no line `const {name}: u32 = ...`"));
        }
    }
    if let Some((_, extra)) = module.overrides.iter().next() {
        return Err(format!("{extra:?} is an override, which the host does not set"));
    }
    Ok(())
}

/// Checks that a line there may be depends on what the host sets.
fn conditions_are_constants(kernel: &Kernel, source: &str) -> Result<(), String> {
    for line in source.lines().map(str::trim_start).filter(|line| line.starts_with("@if(")) {
        let name = line["@if(".len()..].split(')').next().unwrap_or("").trim_start_matches('!');
        if !kernel.constants.contains(&name) {
            return Err(format!("`{line}` depends on no constant of the host"));
        }
    }
    Ok(())
}

/// The name of a scalar, or of a vector's scalar.
fn scalar_name(inner: &TypeInner) -> Option<&'static str> {
    match *inner {
        TypeInner::Scalar(naga::Scalar::F32) | TypeInner::Vector { scalar: naga::Scalar::F32, .. } => Some("f32"),
        TypeInner::Scalar(naga::Scalar::U32) => Some("u32"),
        _ => None,
    }
}

/// Invocations, workgroup memory, of which there is so much, and storage buffers of a module.
fn within_limits(module: &Module, most_memory: u32) -> Result<(), String> {
    let invocations: u32 = module.entry_points[0].workgroup_size.iter().product();
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx()).map_err(|error| error.to_string())?;
    let in_space = |wanted: fn(&AddressSpace) -> bool| {
        module.global_variables.iter().filter(move |(_, variable)| wanted(&variable.space))
    };
    let memory: u32 = in_space(|space| *space == AddressSpace::WorkGroup).map(|(_, v)| layouter[v.ty].size).sum();
    let buffers = in_space(|space| matches!(space, AddressSpace::Storage { .. })).count();
    if invocations <= INVOCATIONS && memory <= most_memory && buffers <= STORAGE_BUFFERS {
        return Ok(());
    }
    Err(format!("{invocations} invocations, {memory} bytes of workgroup memory, {buffers} storage buffers"))
}

#[test]
fn every_file_parses_and_matches_its_host() {
    for kernel in kernels::ALL {
        let (module, _) = parse(kernel, &[]);
        matches_host(kernel, &module)
            .and_then(|()| conditions_are_constants(kernel, kernel.source))
            .unwrap_or_else(|error| panic!("{}: {error}", kernel.name));
    }
}

/// Every instruction, with inputs that lie as the results do, others, and results in parts.
fn programs() -> Vec<&'static Kernel> {
    let device = Device::cpu();
    let mut g = Graph::without_parameters(&device);
    let [x, y, row] = [("x", &[3, 4][..]), ("y", &[3, 4]), ("row", &[4])].map(|(name, shape)| {
        let x = device.zeros(name, shape, DType::F32).unwrap();
        g.input_with_gradient(&x).unwrap()
    });
    let z = functional::map(&mut g, [x, y, row], |[x, y, row]| {
        let smooth = (-x).exp() + x.abs().log() + y.sqrt() + y.tanh() * x.sigmoid() + x.softplus() / y.erf() + x.sign();
        let picked = x.minimum(y) - x.maximum(row) + x.lt(y) * x.le(row) + x.eq(y);
        picked.then(smooth, 0.25)
    });
    let joined = functional::concat(&mut g, &[z.unwrap(), y], -1).unwrap();
    let ones = device.zeros("ones", &[3, 8], DType::F32).unwrap();
    g.backward(&[], &[(joined, &ones)]).unwrap();
    let plan = g.finish().unwrap();
    let kernels: Vec<_> =
        plan.dispatches().map(elman::Dispatch::kernel).filter(|k| k.name.starts_with("map_")).collect();
    assert!(kernels.len() >= 5, "{plan}");
    kernels
}

#[test]
fn every_program_parses_translates_and_matches_its_host() {
    for kernel in programs() {
        let (module, info) = parse(kernel, &[]);
        matches_host(kernel, &module)
            .and_then(|()| within_limits(&module, WORKGROUP_MEMORY))
            .unwrap_or_else(|error| panic!("{error}"));
        elman::custom::check(kernel, &[]).unwrap();
        translate(kernel.name, kernel.name, &module, &info, false);
    }
}

#[test]
fn every_wgsl_file_is_a_kernel() {
    let folder = format!("{}/../../shaders", env!("CARGO_MANIFEST_DIR"));
    let files: BTreeSet<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wgsl"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(files, kernels::ALL.iter().map(|kernel| kernel.name.to_owned()).collect());
}

#[test]
fn every_file_opens_with_its_equation_shapes_and_grid() {
    for kernel in kernels::ALL {
        let comments = |lines: &mut dyn Iterator<Item = &'static str>| lines.collect::<Vec<_>>().join("\n");
        let header = comments(&mut kernel.source.lines().take_while(|line| line.starts_with("//")));
        assert!(header.contains('=') && header.contains("// grid "), "{}: equation or grid", kernel.name);
        // The struct `Params` follows the header that explains it, the file's or, for cells, that of the piece they join.
        let before = kernel.source.split("struct Params").next().unwrap().trim_end();
        let is_of_cell = kinds().any(|kind| [kind.forward.name, kind.backward.name].contains(&kernel.name));
        assert!(before.lines().last().unwrap().starts_with("//"), "{}", kernel.name);
        let all = before.lines().filter(|line| !line.is_empty()).all(|line| line.starts_with("//"));
        assert!(all || is_of_cell, "{}", kernel.name);
        let piece = comments(&mut before.lines().rev().take_while(|line| line.starts_with("//")));
        let header = header + &piece;
        let names = kernel.bindings.iter().map(|b| b.name).chain(kernel.params.iter().map(|p| p.name));
        for name in names {
            let named = header.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
            assert!(named, "{}: the header does not explain `{name}`", kernel.name);
        }
    }
}

/// All cells, and the GRU's other form, which has kernels of its own.
fn kinds() -> impl Iterator<Item = &'static CellKind> {
    let before = CellForm { reset_after: false, ..Cell::Gru.into() };
    Cell::ALL.iter().map(|&cell| CellForm::from(cell)).chain([before]).map(CellForm::kind)
}

/// What a cell says of itself is what its kernels are written for.
#[test]
fn cells_and_their_kernels_agree() {
    for kind in kinds() {
        let is_in = |kernel: &Kernel, name: &str, value: usize| {
            let line = format!("\nconst {name}: u32 = {value}u;\n");
            assert!(kernel.source.contains(&line), "{}: {name} is not {value}", kernel.name);
        };
        for kernel in [kind.forward, kind.backward] {
            is_in(kernel, "GATES", kind.gates);
            is_in(kernel, "STATES", kind.states);
        }
        is_in(kind.forward, "SEPARATE_BIAS", kind.separate_bias.into());
    }
}

#[test]
fn every_variant_stays_within_limits_and_translates() {
    let variants = variants();
    assert!(variants.len() > kernels::ALL.len() + 10, "{} variants", variants.len());
    for set in [("F16", 1), ("SUBGROUPS", 1), ("KEPT", 1), ("STACKED", 1), ("ROWS", 8), ("ROWS", 16)] {
        assert!(variants.iter().any(|(_, constants, _)| constants.contains(&set)), "{set:?}");
    }
    for (kernel, constants, memory) in variants {
        let what = format!("{} {constants:?}", kernel.name);
        let (module, info) = parse(kernel, &constants);
        within_limits(&module, memory).unwrap_or_else(|error| panic!("{what}: {error}"));
        translate(&what, kernel.name, &module, &info, !capabilities(&constants).is_empty());
    }
}

fn translate(what: &str, entry: &str, module: &Module, info: &ModuleInfo, is_extended: bool) {
    spv::write_vec(module, info, &spv::Options::default(), None)
        .unwrap_or_else(|error| panic!("{what}: SPIR-V: {error}"));
    let (_, metal_info) = msl::write_string(module, info, &msl::Options::default(), &msl::PipelineOptions::default())
        .unwrap_or_else(|error| panic!("{what}: MSL: {error}"));
    metal_info.entry_point_names[0].as_ref().unwrap_or_else(|error| panic!("{what}: MSL: {error}"));

    let mut directx = String::new();
    // `num_workgroups` comes in a buffer of its own there; wgpu provides it.
    let special = hlsl::BindTarget { space: 1, register: 0, ..Default::default() };
    let shader_model = if is_extended { hlsl::ShaderModel::V6_2 } else { hlsl::ShaderModel::V5_1 };
    let options = hlsl::Options { shader_model, special_constants_binding: Some(special), ..Default::default() };
    let pipeline = hlsl::PipelineOptions::default();
    let reflection = hlsl::Writer::new(&mut directx, &options, &pipeline)
        .write(module, info, None)
        .unwrap_or_else(|error| panic!("{what}: HLSL: {error}"));
    reflection.entry_point_names[0].as_ref().unwrap_or_else(|error| panic!("{what}: HLSL: {error}"));

    if is_extended {
        return;
    }
    let mut opengl = String::new();
    let options =
        glsl::Options { version: glsl::Version::Embedded { version: 310, is_webgl: false }, ..Default::default() };
    let pipeline =
        glsl::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: entry.into(), multiview: None };
    glsl::Writer::new(&mut opengl, module, info, &options, &pipeline, BoundsCheckPolicies::default())
        .and_then(|mut writer| writer.write())
        .unwrap_or_else(|error| panic!("{what}: GLSL: {error}"));
}

// ---- planted faults: each check above can fail ---------------------------------------------------------------------

/// A kernel that is right but for one replacement in its source.
fn broken(from: &str, to: &str) -> Result<(), String> {
    let kernel = &kernels::cross_entropy::KERNEL;
    assert!(kernel.source.contains(from), "{from:?} is not in the source");
    let source = kernel.source.replace(from, to);
    let module = naga::front::wgsl::parse_str(&source).map_err(|error| error.to_string())?;
    Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module).map_err(|e| e.to_string())?;
    matches_host(kernel, &module)?;
    within_limits(&module, WORKGROUP_MEMORY)
}

#[test]
fn planted_faults_are_found() {
    broken("R: u32,\n", "R: u32,\n").expect("the kernel itself is right");
    let faults = [
        ("R: u32,\n    V: u32,", "V: u32,\n    R: u32,"),
        ("gradient: u32,\n", "gradient: u32,\n    extra: u32,\n"),
        ("gradient: u32,\n", "gradient: f32,\n"),
        ("read> logits", "read_write> logits"),
        ("losses: array<f32>", "losses: array<u32>"),
        ("fn cross_entropy(", "fn main("),
        ("@binding(2) var<storage, read> targets", "@binding(6) var<storage, read> scale"),
        ("const THREADS: u32 = 64u;", "const THREADS: u32 = 512u;"),
        ("array<f32, THREADS>", "array<f32, 4097>"),
        ("const THREADS: u32 = 64u;", "override THREADS: u32 = 64u;"),
        ("let row = ", "let row: f32 = "),
    ];
    for (from, to) in faults {
        assert!(broken(from, to).is_err(), "{from:?} -> {to:?} was not noticed");
    }
    let pack = &kernels::pack::KERNEL;
    assert!(conditions_are_constants(pack, &pack.source.replace("@if(!F16)", "@if(!F61)")).is_err());
}
