//! Where a program finds its inputs and leaves its results, and all of a dispatch as words.

use super::{Binary, Instruction, Program, Unary};

/// Where the elements of a tensor are that belong to those of the results, in row-major order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Of the first, from the tensor's first.
    pub offset: usize,
    /// How far apart two are whose index in a dimension differs by 1; 0: the same for all, which broadcasts.
    pub strides: Vec<usize>,
}

impl Layout {
    /// One after the other.
    pub fn dense(sizes: &[usize]) -> Self {
        let mut strides = vec![1; sizes.len()];
        for d in (1..sizes.len()).rev() {
            strides[d - 1] = usize::saturating_mul(strides[d], sizes[d]);
        }
        Self { offset: 0, strides }
    }

    /// Of a tensor of this shape, broadcast: sizes are compared from the last, and one of 1 stands for any (`torch.broadcast_to`).
    /// None if it does not fit.
    pub fn broadcast(shape: &[usize], sizes: &[usize]) -> Option<Self> {
        let mut strides = Self::dense(shape).strides;
        let missing = sizes.len().checked_sub(shape.len())?;
        for ((stride, &size), &wanted) in strides.iter_mut().zip(shape).zip(&sizes[missing..]) {
            match size {
                _ if size == wanted => {}
                1 => *stride = 0,
                _ => return None,
            }
        }
        Some(Self { offset: 0, strides: [vec![0; missing], strides].concat() })
    }

    /// The place after the last.
    pub(crate) fn end(&self, sizes: &[usize]) -> usize {
        let last = self.strides.iter().zip(sizes).map(|(&stride, &size)| stride.saturating_mul(size - 1));
        last.fold(self.offset, usize::saturating_add).saturating_add(1)
    }

    /// Whether no two elements have one place.
    pub(crate) fn is_injective(&self, sizes: &[usize]) -> bool {
        let mut strides: Vec<_> = self.strides.iter().zip(sizes).filter(|(_, size)| **size > 1).collect();
        strides.sort_unstable();
        let mut reach = 0usize;
        strides.into_iter().all(|(&stride, &size)| {
            let is_beyond = stride > reach;
            reach = reach.saturating_add(stride.saturating_mul(size - 1));
            is_beyond
        })
    }

    fn is_dense(&self, sizes: &[usize]) -> bool {
        *self == Self::dense(sizes)
    }
}

/// A program, the sizes of what it makes, and where inputs and results are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Map {
    pub(crate) program: Program,
    /// None of which is 1, if there are more than one.
    pub(crate) sizes: Vec<usize>,
    /// Of the inputs, then of the outputs. None: one after the other.
    pub(crate) layouts: Vec<Option<Layout>>,
    /// Whether an output is added to what is there.
    pub(crate) adds: Vec<bool>,
}

impl Map {
    /// Dimensions that lie one after the other everywhere become one.
    pub(crate) fn new(program: Program, sizes: &[usize], layouts: &[Layout], adds: Vec<bool>) -> Self {
        let mut merged: Vec<usize> = Vec::new();
        let mut strides: Vec<Vec<usize>> = vec![Vec::new(); layouts.len()];
        for (d, &size) in sizes.iter().enumerate().filter(|(_, size)| **size != 1) {
            let continues = !merged.is_empty()
                && layouts
                    .iter()
                    .zip(&strides)
                    .all(|(layout, strides)| strides.last() == Some(&(layout.strides[d] * size)));
            if continues {
                *merged.last_mut().expect("there is one") *= size;
                strides.iter_mut().zip(layouts).for_each(|(strides, layout)| {
                    *strides.last_mut().expect("there is one") = layout.strides[d];
                });
            } else {
                merged.push(size);
                strides.iter_mut().zip(layouts).for_each(|(strides, layout)| strides.push(layout.strides[d]));
            }
        }
        if merged.is_empty() {
            merged.push(1);
            strides.iter_mut().for_each(|strides| strides.push(1));
        }
        let layouts = layouts.iter().zip(strides).map(|(layout, strides)| {
            let layout = Layout { offset: layout.offset, strides };
            (!layout.is_dense(&merged)).then_some(layout)
        });
        Self { program, layouts: layouts.collect(), sizes: merged, adds }
    }

    /// Elements of a result.
    pub(crate) fn len(&self) -> usize {
        self.sizes.iter().product()
    }

    /// Whether the dimensions matter to anything.
    pub(crate) fn has_dimensions(&self) -> bool {
        self.layouts.iter().any(Option::is_some)
    }

    /// The parameters of its kernel, by name.
    pub(crate) fn words(&self) -> Vec<(String, Word)> {
        let Self { program, sizes, layouts, adds } = self;
        let sizes = if self.has_dimensions() { &sizes[..] } else { &[] };
        let constants = program.constants();
        let mut words = Vec::new();
        let mut push = |name: String, word: usize| words.push((name, Word::Whole(word as u32)));
        push("n".into(), self.len());
        push("dimensions".into(), sizes.len());
        push("inputs".into(), program.inputs);
        push("outputs".into(), program.outputs.len());
        push("constants".into(), constants.len());
        push("instructions".into(), program.code.len());
        sizes.iter().enumerate().for_each(|(d, &size)| push(format!("size{d}"), size));
        for (operand, layout) in layouts.iter().enumerate() {
            let name = self.operand_name(operand);
            push(format!("{name}_strided"), usize::from(layout.is_some()));
            if let Some(Layout { offset, strides }) = layout {
                push(format!("{name}_offset"), *offset);
                strides.iter().enumerate().for_each(|(d, &stride)| push(format!("{name}_stride{d}"), stride));
            }
        }
        adds.iter().enumerate().for_each(|(output, &adds)| push(format!("y{output}_adds"), adds.into()));
        for (output, &at) in program.outputs.iter().enumerate() {
            push(format!("y{output}_from"), at);
        }
        let code = |instruction: &Instruction| match *instruction {
            Instruction::Input(input) => [0, 0, input, 0],
            Instruction::Constant(bits) => [1, 0, constants[&bits], 0],
            Instruction::Unary(f, a) => [2, f as usize, a, 0],
            Instruction::Binary(f, a, b) => [3, f as usize, a, b],
            Instruction::Where(condition, a, b) => [4, condition, a, b],
        };
        // Two words for each, of two halves.
        for (at, instruction) in program.code.iter().enumerate() {
            let [kind, f, a, b] = code(instruction);
            push(format!("code{at}"), kind << 16 | f);
            push(format!("operands{at}"), a << 16 | b);
        }
        let mut constants: Vec<_> = constants.into_iter().map(|(bits, at)| (at, bits)).collect();
        constants.sort_unstable();
        words.extend(constants.into_iter().map(|(at, bits)| (format!("c{at}"), Word::Real(f32::from_bits(bits)))));
        words
    }

    /// Reads what [`Self::words`] has.
    pub(crate) fn from_words(words: &[u32]) -> Self {
        let mut words = words.iter().copied();
        let mut next = || words.next().expect("a dispatch has all words") as usize;
        let n = next();
        let [dimensions, inputs, outputs, constants, instructions] = std::array::from_fn(|_| next());
        let mut sizes: Vec<_> = (0..dimensions).map(|_| next()).collect();
        let layouts = (0..inputs + outputs).map(|_| {
            (next() == 1).then(|| Layout { offset: next(), strides: (0..dimensions).map(|_| next()).collect() })
        });
        let layouts = layouts.collect();
        if sizes.is_empty() {
            sizes.push(n);
        }
        let adds = (0..outputs).map(|_| next() == 1).collect();
        let outputs = (0..outputs).map(|_| next()).collect();
        let code: Vec<_> = (0..instructions).map(|_| [next(), next()]).collect();
        let constants: Vec<_> = (0..constants).map(|_| next() as u32).collect();
        let instruction = |[first, second]: [usize; 2]| {
            let [kind, f, a, b] = [first >> 16, first & 0xffff, second >> 16, second & 0xffff];
            match kind {
                0 => Instruction::Input(a),
                1 => Instruction::Constant(constants[a]),
                2 => Instruction::Unary(Unary::ALL[f], a),
                3 => Instruction::Binary(Binary::ALL[f], a, b),
                _ => Instruction::Where(f, a, b),
            }
        };
        let code = code.into_iter().map(instruction).collect();
        Self { program: Program { code, inputs, outputs }, sizes, layouts, adds }
    }

    pub(crate) fn operand_name(&self, operand: usize) -> String {
        match operand.checked_sub(self.program.inputs) {
            None => format!("x{operand}"),
            Some(output) => format!("y{output}"),
        }
    }
}

/// A parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Word {
    Whole(u32),
    Real(f32),
}

impl Word {
    pub fn bits(self) -> u32 {
        match self {
            Self::Whole(word) => word,
            Self::Real(value) => value.to_bits(),
        }
    }

    pub fn ty(self) -> &'static str {
        match self {
            Self::Whole(_) => "u32",
            Self::Real(_) => "f32",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_all() {
        let program = Program::new(|[x, y]| (x * 2.0 + y).tanh().gt(0.5).then(x, y.clamp(-1.0, 1.0)));
        for (sizes, shapes) in [([2, 3, 4], [&[2, 3, 4][..], &[3, 1]]), ([2, 1, 4], [&[2, 1, 4], &[1, 4]])] {
            let mut layouts: Vec<_> = shapes.iter().map(|shape| Layout::broadcast(shape, &sizes).unwrap()).collect();
            layouts.push(Layout::dense(&sizes));
            let map = Map::new(program.clone(), &sizes, &layouts, vec![true]);
            let words: Vec<_> = map.words().into_iter().map(|(_, word)| word.bits()).collect();
            assert_eq!(Map::from_words(&words), map);
        }
    }

    #[test]
    fn dimensions_are_merged_where_they_can_be() {
        let program = Program::new(|[x, y]| x + y);
        let map = |x: &[usize], y: &[usize], sizes: &[usize]| {
            let layouts = [x, y].map(|shape| Layout::broadcast(shape, sizes).unwrap());
            Map::new(program.clone(), sizes, &[&layouts[..], &[Layout::dense(sizes)]].concat(), vec![false])
        };
        assert_eq!(map(&[2, 3, 4], &[2, 3, 4], &[2, 3, 4]).sizes, [24]);
        let rows = map(&[2, 3, 4], &[4], &[2, 3, 4]);
        assert_eq!((rows.sizes, &rows.layouts[1].as_ref().unwrap().strides[..]), (vec![6, 4], &[0, 1][..]));
        assert_eq!(map(&[2, 3, 4], &[3, 1], &[2, 3, 4]).sizes, [2, 3, 4]);
        assert_eq!(map(&[1], &[1, 1], &[1, 1]).sizes, [1]);
        assert_eq!(Layout::broadcast(&[3], &[2, 4]), None);
        assert_eq!(Layout::broadcast(&[2, 4], &[4]), None);
    }
}
