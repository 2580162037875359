//! The kernels of the plans that GPUs get, each with the constants that it gets.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use elman::device::AbsentGpu;
use elman::kernel::Kernel;
use elman::kernels::sequence::{self, Activation, Form, Sequence, SequenceGradients};
use elman::nn::{Cell, CellForm};
use elman::{DType, Device, Dispatch, Precision, Recorder};

use crate::workloads::{self, Kind, Settings, Stored, Workload};

pub type Constants = Vec<(&'static str, u32)>;

/// A kernel, and the values of its constants.
#[derive(Clone)]
pub struct Variant {
    pub kernel: &'static Kernel,
    pub constants: Constants,
}

impl Variant {
    /// The kernel, and those of its constants that are not 0.
    pub fn name(&self) -> String {
        let mut name = self.kernel.name.to_owned();
        for (constant, value) in self.constants.iter().filter(|(_, value)| *value != 0) {
            write!(name, " {constant} {value}").expect("a string takes it");
        }
        name
    }
}

/// Variants, each once, by name. Programs of elements have one name and differ in their source.
#[derive(Default)]
pub struct Variants(BTreeMap<(&'static str, Constants, &'static str), Variant>);

impl Variants {
    pub fn add<'a>(&mut self, dispatches: impl Iterator<Item = &'a Dispatch>) {
        for dispatch in dispatches {
            let (kernel, constants) = (dispatch.kernel(), dispatch.constants().to_vec());
            let key = (kernel.name, constants.clone(), kernel.source);
            self.0.entry(key).or_insert(Variant { kernel, constants });
        }
    }

    pub fn all(self) -> Vec<Variant> {
        self.0.into_values().collect()
    }
}

/// What adapters report: subgroups of 8 to 64 threads or none, and workgroup memory of 16 to 64 KiB.
pub const GPUS: [AbsentGpu; 6] = [
    AbsentGpu { subgroups: None, workgroup_bytes: 16 << 10 },
    AbsentGpu { subgroups: Some((32, 64)), workgroup_bytes: 64 << 10 },
    AbsentGpu { subgroups: Some((32, 32)), workgroup_bytes: 48 << 10 },
    AbsentGpu { subgroups: Some((8, 32)), workgroup_bytes: 64 << 10 },
    AbsentGpu { subgroups: Some((64, 64)), workgroup_bytes: 32 << 10 },
    AbsentGpu { subgroups: Some((32, 64)), workgroup_bytes: 16 << 10 },
];

/// W1 to W6.
pub fn workloads(variants: &mut Variants, device: &Device) -> Result<()> {
    let all = Workload::ALL.into_iter().filter(|&workload| workload != Workload::W7);
    let cells = [Kind::Gru, Kind::Lstm].map(|cell| (Workload::W5, cell));
    for (workload, cell) in all.map(|workload| (workload, Kind::Rnn)).chain(cells) {
        for precision in [Stored::F32, Stored::F16] {
            let settings =
                Settings { cell, lanes: 1, stepwise: None, baseline: false, precision, runs: None, seconds: 0.0 };
            variants.add(workloads::build(device, workload, &settings, false)?.0.plan().dispatches());
        }
    }
    Ok(())
}

/// Every cell, and the GRU that resets before its product.
pub fn cells() -> impl Iterator<Item = CellForm> {
    let before = CellForm { reset_after: false, ..Cell::Gru.into() };
    Cell::ALL.iter().map(|&cell| CellForm::from(cell)).chain([before])
}

/// The longest of those that a cell can be asked for.
pub fn with_other_functions(cell: CellForm) -> CellForm {
    let activations = [
        Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Activation::Elu { alpha: 1.0 },
        Activation::Softplus,
        Activation::ScaledTanh { alpha: 1.0, beta: 1.0 },
        Activation::Softsign,
    ];
    CellForm { form: Some(Form { activations, ..Form::new(cell.kind().functions) }), ..cell }
}

/// How a recurrence is recorded.
#[derive(Clone, Copy)]
pub struct Way {
    pub precision: Precision,
    /// Layers of a wavefront, or 1.
    pub stacked: usize,
    pub resets: bool,
}

/// Both passes of a recurrence.
pub fn recurrence(
    variants: &mut Variants,
    device: &Device,
    cell: CellForm,
    [steps, batch, hidden]: [usize; 3],
    way: Way,
) -> Result<()> {
    let kind = cell.kind();
    let (width, layers) = (kind.gates * hidden, way.stacked);
    let mut r = Recorder::new(device);
    r.set_precision(way.precision)?;
    let w = |_| r.zeros("w", &[width, hidden]);
    let biases = usize::from(kind.separate_bias) * layers + layers - 1;
    let mut s = Sequence {
        x: r.zeros("x", &[1, 16, width])?,
        index: device.tokens("index", &[1, steps, batch], 16)?,
        lengths: device.lengths("lengths", batch, steps)?,
        resets: None,
        w: (0..layers).map(w).collect::<Result<_, _>>()?,
        w_ih: (1..layers).map(w).collect::<Result<_, _>>()?,
        biases: (biases > 0).then(|| r.zeros("biases", &[biases, width])).transpose()?,
        states: r.zeros("states", &[layers, kind.states, steps + 1, batch, hidden])?,
        saved: None,
        form: cell.form,
        peepholes: None,
        has_h_0: true,
        precision: way.precision,
    };
    let blocks = s.saved_blocks(kind);
    s.saved = (blocks > 0).then(|| r.zeros("saved", &[layers, steps, batch, blocks * hidden])).transpose()?;
    s.peepholes = (cell.form.is_some() && cell.cell == Cell::Lstm)
        .then(|| r.zeros("peepholes", &[layers, 3 * hidden]))
        .transpose()?;
    s.resets = way.resets.then(|| device.zeros("resets", &[batch + steps * batch], DType::U32)).transpose()?;
    let dy = Some(r.zeros("dy", &[1, steps, batch, hidden])?);
    let d = SequenceGradients::new(&r, kind, &s, (dy, None), true)?;
    sequence::forward(&mut r, kind, &s)?;
    sequence::backward(&mut r, kind, &s, &d)?;
    variants.add(r.dispatches());
    Ok(())
}
