//! Small programs that make an element of their results from the elements of their inputs: written as expressions, differentiated
//! by rules, compiled to WGSL for a GPU, walked by one twin on the CPU.

mod gradient;
mod layout;
mod twin;
mod wgsl;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Add, Div, Mul, Neg, Sub};

pub use layout::{Layout, Map};

/// Instructions of a program, at most.
pub(crate) const MOST_INSTRUCTIONS: usize = 128;

/// A function of one number. PyTorch's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Unary {
    Neg,
    Abs,
    Sign,
    Exp,
    Log,
    Sqrt,
    Tanh,
    Sigmoid,
    Softplus,
    Erf,
}

impl Unary {
    const ALL: &[Self] = &[
        Self::Neg,
        Self::Abs,
        Self::Sign,
        Self::Exp,
        Self::Log,
        Self::Sqrt,
        Self::Tanh,
        Self::Sigmoid,
        Self::Softplus,
        Self::Erf,
    ];
}

/// A function of two numbers; comparisons give 1 or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Minimum,
    Maximum,
    Lt,
    Le,
    Eq,
}

impl Binary {
    const ALL: &[Self] =
        &[Self::Add, Self::Sub, Self::Mul, Self::Div, Self::Minimum, Self::Maximum, Self::Lt, Self::Le, Self::Eq];
}

/// An instruction, whose operands are earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Instruction {
    Input(usize),
    /// The bits of an f32.
    Constant(u32),
    Unary(Unary, usize),
    Binary(Binary, usize, usize),
    /// The second where the first is not 0, the third where it is.
    Where(usize, usize, usize),
}

impl Instruction {
    fn operands(self) -> impl Iterator<Item = usize> {
        let operands = match self {
            Self::Input(_) | Self::Constant(_) => [None; 3],
            Self::Unary(_, a) => [Some(a), None, None],
            Self::Binary(_, a, b) => [Some(a), Some(b), None],
            Self::Where(a, b, c) => [Some(a), Some(b), Some(c)],
        };
        operands.into_iter().flatten()
    }

    fn with_operands(self, at: impl Fn(usize) -> usize) -> Self {
        match self {
            Self::Unary(f, a) => Self::Unary(f, at(a)),
            Self::Binary(f, a, b) => Self::Binary(f, at(a), at(b)),
            Self::Where(a, b, c) => Self::Where(at(a), at(b), at(c)),
            leaf => leaf,
        }
    }
}

/// Instructions so far, none twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Code(Vec<Instruction>);

impl Code {
    pub fn input(&mut self, input: usize) -> usize {
        self.push(Instruction::Input(input))
    }

    pub fn constant(&mut self, value: f32) -> usize {
        self.push(Instruction::Constant(value.to_bits()))
    }

    pub fn unary(&mut self, f: Unary, a: usize) -> usize {
        match self.0[a] {
            Instruction::Unary(Unary::Neg, a) if f == Unary::Neg => a,
            _ => self.push(Instruction::Unary(f, a)),
        }
    }

    /// Adding and taking away 0, multiplying and dividing by 1, is left out: what rules of gradients leave.
    pub fn binary(&mut self, f: Binary, a: usize, b: usize) -> usize {
        let is = |at: usize, value: f32| self.0[at] == Instruction::Constant(value.to_bits());
        match f {
            Binary::Add if is(b, 0.0) => a,
            Binary::Add if is(a, 0.0) => b,
            Binary::Sub if is(b, 0.0) => a,
            Binary::Mul if is(b, 1.0) => a,
            Binary::Mul if is(a, 1.0) => b,
            Binary::Div if is(b, 1.0) => a,
            _ => self.push(Instruction::Binary(f, a, b)),
        }
    }

    pub fn either(&mut self, condition: usize, a: usize, b: usize) -> usize {
        self.push(Instruction::Where(condition, a, b))
    }

    fn push(&mut self, instruction: Instruction) -> usize {
        if let Some(at) = self.0.iter().position(|&other| other == instruction) {
            return at;
        }
        self.0.push(instruction);
        self.0.len() - 1
    }
}

/// Code, and which of its values are the results.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    code: Vec<Instruction>,
    inputs: usize,
    outputs: Vec<usize>,
}

impl Program {
    /// The program of an expression of so many inputs.
    pub fn new<const N: usize>(expression: impl for<'a> FnOnce([Expr<'a>; N]) -> Expr<'a>) -> Self {
        let arena = Arena::default();
        let inputs: Vec<_> = (0..N).map(|input| arena.0.borrow_mut().input(input)).collect();
        let root = expression(std::array::from_fn(|i| Expr { arena: &arena, at: inputs[i] })).at;
        let code = arena.0.into_inner();
        Self::of(&code, N, &[root])
    }

    /// What of the code these results need.
    pub(crate) fn of(code: &Code, inputs: usize, outputs: &[usize]) -> Self {
        let mut is_needed = vec![false; code.0.len()];
        outputs.iter().for_each(|&output| is_needed[output] = true);
        for at in (0..code.0.len()).rev() {
            if is_needed[at] {
                code.0[at].operands().for_each(|operand| is_needed[operand] = true);
            }
        }
        let mut place = vec![0; code.0.len()];
        let mut needed = Vec::new();
        for at in (0..code.0.len()).filter(|&at| is_needed[at]) {
            place[at] = needed.len();
            needed.push(code.0[at].with_operands(|operand| place[operand]));
        }
        Self { code: needed, inputs, outputs: outputs.iter().map(|&output| place[output]).collect() }
    }

    pub(crate) fn code(&self) -> Code {
        Code(self.code.clone())
    }

    /// Some of its results.
    pub(crate) fn with_outputs(&self, outputs: impl Iterator<Item = usize>) -> Self {
        let outputs: Vec<_> = outputs.map(|output| self.outputs[output]).collect();
        Self::of(&self.code(), self.inputs, &outputs)
    }

    /// Whether it has no instruction whose slope may be infinite or NaN where its inputs are finite.
    pub(crate) fn is_tame(&self) -> bool {
        use Unary::{Abs, Neg, Sigmoid, Sign, Softplus, Tanh};
        self.code.iter().all(|instruction| match instruction {
            Instruction::Unary(f, _) => matches!(f, Neg | Abs | Sign | Tanh | Sigmoid | Softplus),
            Instruction::Binary(f, ..) => *f != Binary::Div,
            _ => true,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.code.len()
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> &[usize] {
        &self.outputs
    }

    /// Whether it makes use of an input.
    pub(crate) fn reads(&self, input: usize) -> bool {
        self.code.contains(&Instruction::Input(input))
    }

    /// The input that an output is, unchanged.
    pub(crate) fn is_input(&self, output: usize) -> Option<usize> {
        match self.code[self.outputs[output]] {
            Instruction::Input(input) => Some(input),
            _ => None,
        }
    }

    /// The same of inputs with other numbers, of which there are `inputs`; two may get one number.
    pub(crate) fn renumbered(&self, inputs: usize, number: impl Fn(usize) -> usize) -> Self {
        let (mut code, mut place) = (Code::default(), Vec::new());
        for &instruction in &self.code {
            let at = match instruction {
                Instruction::Input(input) => code.input(number(input)),
                other => code.push(other.with_operands(|operand| place[operand])),
            };
            place.push(at);
        }
        Self::of(&code, inputs, &self.outputs.iter().map(|&output| place[output]).collect::<Vec<_>>())
    }

    /// The same of the inputs that it reads, and which those are.
    pub(crate) fn of_what_it_reads(&self) -> (Self, Vec<usize>) {
        let read: Vec<_> = (0..self.inputs).filter(|&input| self.reads(input)).collect();
        let place = |input: usize| read.iter().position(|&other| other == input).unwrap_or(0);
        (self.renumbered(read.len(), place), read)
    }

    /// The program with another in place of the input that one of the values is, and the values that both read, each once.
    pub(crate) fn with<V: Copy + PartialEq>(
        &self,
        values: &[V],
        value: V,
        other: &Self,
        of_other: &[V],
    ) -> (Self, Vec<V>) {
        let mut read: Vec<V> = values.iter().copied().filter(|&kept| kept != value).collect();
        for &added in of_other {
            if !read.contains(&added) {
                read.push(added);
            }
        }
        let number = |value: V| read.iter().position(|&other| other == value).expect("all are there");
        let mut code = Code::default();
        let mut append = |program: &Self, values: &[V], result: Option<usize>| {
            let mut place = Vec::new();
            for &instruction in &program.code {
                let at = match (instruction, result) {
                    (Instruction::Input(input), Some(result)) if values[input] == value => result,
                    (Instruction::Input(input), _) => code.input(number(values[input])),
                    (other, _) => code.push(other.with_operands(|operand| place[operand])),
                };
                place.push(at);
            }
            place
        };
        let result = append(other, of_other, None)[other.outputs[0]];
        let place = append(self, values, Some(result));
        let outputs: Vec<_> = self.outputs.iter().map(|&output| place[output]).collect();
        (Self::of(&code, read.len(), &outputs), read)
    }

    /// What it is made of, for names and notes: `mul_sigmoid`.
    pub(crate) fn names(&self) -> String {
        let names = self.code.iter().filter_map(|instruction| match instruction {
            Instruction::Input(_) | Instruction::Constant(_) => None,
            Instruction::Unary(f, _) => Some(format!("{f:?}").to_lowercase()),
            Instruction::Binary(f, ..) => Some(format!("{f:?}").to_lowercase()),
            Instruction::Where(..) => Some("where".into()),
        });
        let names: Vec<_> = names.collect();
        if names.is_empty() { "copy".into() } else { names.join("_") }
    }

    /// The constants, each once.
    fn constants(&self) -> BTreeMap<u32, usize> {
        let bits = self.code.iter().filter_map(|instruction| match instruction {
            Instruction::Constant(bits) => Some(*bits),
            _ => None,
        });
        // In the order of their use: of two programs that differ in numbers alone, one kernel.
        let mut constants = BTreeMap::new();
        for bits in bits {
            let next = constants.len();
            constants.entry(bits).or_insert(next);
        }
        constants
    }
}

/// What an expression is built in.
#[derive(Default)]
pub(crate) struct Arena(RefCell<Code>);

/// A number that is made of others; see [`crate::nn::functional::map`]. Numbers (f32) mix with it: `1.0 - x`.
///
/// Comparisons give 1 or 0, through which no gradient flows.
#[derive(Clone, Copy)]
pub struct Expr<'a> {
    arena: &'a Arena,
    at: usize,
}

impl<'a> Expr<'a> {
    fn unary(self, f: Unary) -> Self {
        Self { at: self.arena.0.borrow_mut().unary(f, self.at), ..self }
    }

    fn binary(self, f: Binary, other: impl Into<Operand<'a>>) -> Self {
        let other = other.into().of(self.arena);
        Self { at: self.arena.0.borrow_mut().binary(f, self.at, other.at), ..self }
    }

    /// The number, for what mixes with this expression.
    pub(crate) fn with(self, value: f32) -> Self {
        Self { at: self.arena.0.borrow_mut().constant(value), ..self }
    }

    /// `|x|`; its gradient at 0 is 0.
    pub fn abs(self) -> Self {
        self.unary(Unary::Abs)
    }

    /// 1, 0 or -1; its gradient is 0.
    pub fn sign(self) -> Self {
        self.unary(Unary::Sign)
    }

    /// `exp x`
    pub fn exp(self) -> Self {
        self.unary(Unary::Exp)
    }

    /// The natural logarithm; -∞ at 0, NaN below it.
    pub fn log(self) -> Self {
        self.unary(Unary::Log)
    }

    /// `√x`; NaN below 0.
    pub fn sqrt(self) -> Self {
        self.unary(Unary::Sqrt)
    }

    /// `tanh x`
    pub fn tanh(self) -> Self {
        self.unary(Unary::Tanh)
    }

    /// `1 / (1 + exp(-x))`
    pub fn sigmoid(self) -> Self {
        self.unary(Unary::Sigmoid)
    }

    /// `log(1 + exp x)`
    pub fn softplus(self) -> Self {
        self.unary(Unary::Softplus)
    }

    /// `2/√π ∫ exp(-t²) dt`, t from 0 to x
    pub fn erf(self) -> Self {
        self.unary(Unary::Erf)
    }

    /// `x²`
    pub fn square(self) -> Self {
        self * self
    }

    /// The smaller of both; of equals, each has half the gradient (`torch.minimum`).
    pub fn minimum(self, other: impl Into<Operand<'a>>) -> Self {
        self.binary(Binary::Minimum, other)
    }

    /// The larger of both; of equals, each has half the gradient (`torch.maximum`).
    pub fn maximum(self, other: impl Into<Operand<'a>>) -> Self {
        self.binary(Binary::Maximum, other)
    }

    /// Whether it is less.
    pub fn lt(self, other: impl Into<Operand<'a>>) -> Self {
        self.binary(Binary::Lt, other)
    }

    /// Whether it is less, or equal.
    pub fn le(self, other: impl Into<Operand<'a>>) -> Self {
        self.binary(Binary::Le, other)
    }

    /// Whether it is greater.
    pub fn gt(self, other: impl Into<Operand<'a>>) -> Self {
        other.into().of(self.arena).lt(self)
    }

    /// Whether it is greater, or equal.
    pub fn ge(self, other: impl Into<Operand<'a>>) -> Self {
        other.into().of(self.arena).le(self)
    }

    /// Whether it is equal.
    pub fn eq(self, other: impl Into<Operand<'a>>) -> Self {
        self.binary(Binary::Eq, other)
    }

    /// `then` where this is not 0, `other` where it is (`torch.where`). What is not taken has gradient 0, be it NaN.
    pub fn then(self, then: impl Into<Operand<'a>>, other: impl Into<Operand<'a>>) -> Self {
        let [a, b] = [then.into().of(self.arena).at, other.into().of(self.arena).at];
        Self { at: self.arena.0.borrow_mut().either(self.at, a, b), ..self }
    }

    /// At least `low`, at most `high`; at both its gradient is 1 (`torch.clamp`).
    pub fn clamp(self, low: f32, high: f32) -> Self {
        self.lt(low).then(low, self.gt(high).then(high, self))
    }

    /// `max(0, x)`; its gradient at 0 is 0.
    pub fn relu(self) -> Self {
        self.le(0.0).then(0.0, self)
    }

    /// x from 0 on, `slope · x` below it.
    pub fn leaky_relu(self, slope: f32) -> Self {
        self.gt(0.0).then(self, self * slope)
    }

    /// x above 0, `alpha (exp x - 1)` elsewhere.
    pub fn elu(self, alpha: f32) -> Self {
        // Of what is not taken, an infinite value would make NaN of a gradient of 0.
        let least = self.gt(0.0).then(0.0, self);
        self.gt(0.0).then(self, (least.exp() - 1.0) * alpha)
    }

    /// `x σ(x)` (Elfwing et al. 2017)
    pub fn silu(self) -> Self {
        self * self.sigmoid()
    }

    /// `x Φ(x) = x (1 + erf(x / √2)) / 2` (Hendrycks and Gimpel 2016)
    pub fn gelu(self) -> Self {
        self * ((self * std::f32::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5
    }

    /// `x / 6 + 1 / 2`, at least 0 and at most 1.
    pub fn hard_sigmoid(self) -> Self {
        let line = self * (1.0 / 6.0) + 0.5;
        self.le(-3.0).then(0.0, self.ge(3.0).then(1.0, line))
    }
}

/// An expression, or a number.
pub struct Operand<'a>(Either<'a>);

enum Either<'a> {
    Expr(Expr<'a>),
    Number(f32),
}

impl<'a> Operand<'a> {
    fn of(self, arena: &'a Arena) -> Expr<'a> {
        match self.0 {
            Either::Expr(expr) => expr,
            Either::Number(value) => Expr { arena, at: 0 }.with(value),
        }
    }
}

impl<'a> From<Expr<'a>> for Operand<'a> {
    fn from(expr: Expr<'a>) -> Self {
        Self(Either::Expr(expr))
    }
}

impl From<f32> for Operand<'_> {
    fn from(value: f32) -> Self {
        Self(Either::Number(value))
    }
}

macro_rules! operators {
    ($($operator:ident $method:ident),*) => {$(
        impl<'a, T: Into<Operand<'a>>> $operator<T> for Expr<'a> {
            type Output = Self;
            fn $method(self, other: T) -> Self {
                self.binary(Binary::$operator, other)
            }
        }

        impl<'a> $operator<Expr<'a>> for f32 {
            type Output = Expr<'a>;
            fn $method(self, other: Expr<'a>) -> Expr<'a> {
                other.with(self).binary(Binary::$operator, other)
            }
        }
    )*};
}
operators!(Add add, Sub sub, Mul mul, Div div);

impl Neg for Expr<'_> {
    type Output = Self;
    fn neg(self) -> Self {
        self.unary(Unary::Neg)
    }
}
