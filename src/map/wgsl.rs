//! A program as a kernel: WGSL that differs with the instructions and with what is strided, not with sizes and numbers.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{Binary, Instruction, Layout, Map, Unary, twin};
use crate::kernel::{Access, Binding, Field, Kernel, Twin};
use crate::tensor::DType;

/// What programs call.
const FUNCTIONS: &str =
    concat!(include_str!("../../shaders/lib/map.wgsl"), "\n", include_str!("../../shaders/lib/math.wgsl"));

/// Characters of a kernel's name, at most, before its number.
const LONGEST_NAME: usize = 40;

/// The kernels made so far: of each source one, which is kept for good. There are as many as there are programs in the process.
#[derive(Default)]
struct Made {
    of_source: HashMap<String, &'static Kernel>,
    with_name: HashMap<String, usize>,
}

impl Map {
    /// Its kernel.
    pub(crate) fn kernel(&self) -> &'static Kernel {
        static MADE: OnceLock<Mutex<Made>> = OnceLock::new();
        let body = self.body();
        let mut made = MADE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = made.of_source.get(&body) {
            return kernel;
        }
        let mut name = format!("map_{}", self.program.names());
        name.truncate(LONGEST_NAME);
        let number = made.with_name.entry(name.clone()).or_default();
        *number += 1;
        if *number > 1 {
            write!(name, "_{number}").expect("a String takes it");
        }
        let source = format!("{}{FUNCTIONS}", body.replacen("fn map(", &format!("fn {name}("), 1));
        let fields = self.words().into_iter().map(|(name, word)| Field { name: name.leak(), ty: word.ty() });
        let bindings = (0..self.layouts.len()).map(|operand| Binding {
            name: self.operand_name(operand).leak(),
            access: if operand < self.program.inputs { Access::Read } else { Access::Write },
            dtype: DType::F32,
        });
        let kernel = &*Box::leak(Box::new(Kernel {
            name: name.leak(),
            source: source.leak(),
            constants: &[],
            params: fields.collect::<Vec<_>>().leak(),
            bindings: bindings.collect::<Vec<_>>().leak(),
            twin: Twin {
                f32: twin::twin::<f32>,
                #[cfg(feature = "reference")]
                f64: twin::twin::<f64>,
                is_own: true,
                can_be_alone: true,
            },
        }));
        made.of_source.insert(body, kernel);
        kernel
    }

    /// All but its functions and its name.
    fn body(&self) -> String {
        let mut wgsl = String::from("struct Params {\n");
        for (name, word) in self.words() {
            wgsl += &format!("    {name}: {},\n", word.ty());
        }
        wgsl += "}\n\n@group(0) @binding(0) var<uniform> p: Params;\n";
        for operand in 0..self.layouts.len() {
            let access = if operand < self.program.inputs { "read" } else { "read_write" };
            let (binding, name) = (operand + 1, self.operand_name(operand));
            wgsl += &format!("@group(0) @binding({binding}) var<storage, {access}> {name}: array<f32>;\n");
        }
        wgsl += "\n@compute @workgroup_size(256)\n\
                 fn map(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {\n    \
                 for (var i = id.x; i < p.n; i += 256u * groups.x) {\n";
        if self.has_dimensions() {
            wgsl += "        var rest = i;\n";
            for d in (1..self.sizes.len()).rev() {
                wgsl += &format!("        let d{d} = rest % p.size{d};\n        rest /= p.size{d};\n");
            }
            wgsl += "        let d0 = rest;\n";
        }
        let constants = self.program.constants();
        for (at, instruction) in self.program.code.iter().enumerate() {
            let value = match *instruction {
                Instruction::Input(input) => self.place(input),
                Instruction::Constant(bits) => format!("p.c{}", constants[&bits]),
                Instruction::Unary(f, a) => unary(f, a),
                Instruction::Binary(f, a, b) => binary(f, a, b),
                Instruction::Where(condition, a, b) => format!("select(v{b}, v{a}, v{condition} != 0.0)"),
            };
            wgsl += &format!("        let v{at} = {value};\n");
        }
        for (output, (at, adds)) in self.program.outputs.iter().zip(&self.adds).enumerate() {
            let operator = if *adds { "+=" } else { "=" };
            wgsl += &format!("        {} {operator} v{at};\n", self.place(self.program.inputs + output));
        }
        wgsl + "    }\n}\n\n"
    }

    /// The element of an operand.
    fn place(&self, operand: usize) -> String {
        let name = self.operand_name(operand);
        let Some(Layout { strides, .. }) = &self.layouts[operand] else { return format!("{name}[i]") };
        let index = (0..strides.len()).map(|d| format!(" + d{d} * p.{name}_stride{d}"));
        format!("{name}[p.{name}_offset{}]", index.collect::<String>())
    }
}

fn unary(f: Unary, a: usize) -> String {
    match f {
        Unary::Neg => format!("-v{a}"),
        Unary::Abs => format!("abs(v{a})"),
        Unary::Sign => format!("sign(v{a})"),
        Unary::Exp => format!("exponential(v{a})"),
        Unary::Log => format!("logarithm(v{a})"),
        Unary::Sqrt => format!("sqrt(v{a})"),
        Unary::Tanh => format!("tanh4(vec4<f32>(v{a})).x"),
        Unary::Sigmoid => format!("sigmoid4(vec4<f32>(v{a})).x"),
        Unary::Softplus => format!("softplus(v{a})"),
        Unary::Erf => format!("erf(v{a})"),
    }
}

fn binary(f: Binary, a: usize, b: usize) -> String {
    let operator = match f {
        Binary::Add => "+",
        Binary::Sub => "-",
        Binary::Mul => "*",
        Binary::Div => "/",
        Binary::Minimum => return format!("minimum(v{a}, v{b})"),
        Binary::Maximum => return format!("maximum(v{a}, v{b})"),
        Binary::Lt => return format!("select(0.0, 1.0, v{a} < v{b})"),
        Binary::Le => return format!("select(0.0, 1.0, v{a} <= v{b})"),
        Binary::Eq => return format!("select(0.0, 1.0, v{a} == v{b})"),
    };
    format!("v{a} {operator} v{b}")
}
