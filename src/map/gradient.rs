//! The gradient of a program, by the rules of each instruction, as another program.

use super::Binary::{Add, Div, Eq, Lt, Mul, Sub};
use super::Unary::{Abs, Erf, Exp, Log, Neg, Sigmoid, Sign, Softplus, Sqrt, Tanh};
use super::{Binary, Code, Instruction, Program};

/// 2 / √π
const ERF_SLOPE: f32 = std::f32::consts::FRAC_2_SQRT_PI;

impl Program {
    /// The gradients of these inputs, given that of its only output: a program of its inputs, then the output's gradient, then the
    /// output, unless that is to be made again. None for an input through which nothing flows.
    pub(crate) fn gradients(&self, wanted: &[usize], reads_output: bool) -> (Self, Vec<Option<usize>>) {
        self.differentiate(wanted, reads_output, Vec::new())
    }

    /// Its only output, and then the [gradients](Self::gradients) of these inputs: a program of its inputs, then the output's gradient.
    pub(crate) fn with_gradients(&self, wanted: &[usize]) -> (Self, Vec<Option<usize>>) {
        let (program, places) = self.differentiate(wanted, false, self.outputs.clone());
        (program.renumbered(self.inputs + 1, |input| input), places)
    }

    /// Outputs that are there, and then the gradients.
    fn differentiate(
        &self,
        wanted: &[usize],
        reads_output: bool,
        mut outputs: Vec<usize>,
    ) -> (Self, Vec<Option<usize>>) {
        let root = self.outputs[0];
        let mut code = self.code();
        let (dy, y) = (code.input(self.inputs), code.input(self.inputs + 1));
        let is_leaf = matches!(self.code[root], Instruction::Input(_) | Instruction::Constant(_));
        let value = |at: usize| if at == root && !is_leaf && reads_output { y } else { at };
        let mut flows = vec![None; self.code.len()];
        flows[root] = Some(dy);
        for at in (0..self.code.len()).rev() {
            let Some(d) = flows[at] else { continue };
            for (operand, part) in parts(&mut code, self.code[at], d, value(at)) {
                flows[operand] = Some(match flows[operand] {
                    None => part,
                    Some(sum) => code.binary(Add, sum, part),
                });
            }
        }
        let flow = |input: usize| {
            let at = self.code.iter().position(|&instruction| instruction == Instruction::Input(input))?;
            flows[at]
        };
        let places = wanted.iter().map(|&input| {
            outputs.push(flow(input)?);
            Some(outputs.len() - 1)
        });
        let places = places.collect();
        (Self::of(&code, self.inputs + 2, &outputs), places)
    }
}

/// What of the gradient `d` of `y`, the result of an instruction, is that of each operand.
fn parts(code: &mut Code, instruction: Instruction, d: usize, y: usize) -> Vec<(usize, usize)> {
    match instruction {
        Instruction::Input(_) | Instruction::Constant(_) => Vec::new(),
        Instruction::Unary(f, x) => {
            let slope = match f {
                Neg => {
                    return vec![(x, code.unary(Neg, d))];
                }
                Sign => return Vec::new(),
                Abs => code.unary(Sign, x),
                Exp => y,
                Log => return vec![(x, code.binary(Div, d, x))],
                Sqrt => {
                    let twice = code.binary(Add, y, y);
                    return vec![(x, code.binary(Div, d, twice))];
                }
                Tanh => {
                    let (one, square) = (code.constant(1.0), code.binary(Mul, y, y));
                    code.binary(Sub, one, square)
                }
                Sigmoid => {
                    let one = code.constant(1.0);
                    let rest = code.binary(Sub, one, y);
                    code.binary(Mul, y, rest)
                }
                Softplus => code.unary(Sigmoid, x),
                Erf => {
                    let (square, slope) = (code.binary(Mul, x, x), code.constant(ERF_SLOPE));
                    let less = code.unary(Neg, square);
                    let bell = code.unary(Exp, less);
                    code.binary(Mul, bell, slope)
                }
            };
            vec![(x, code.binary(Mul, d, slope))]
        }
        Instruction::Binary(f, a, b) => match f {
            Add => vec![(a, d), (b, d)],
            Sub => vec![(a, d), (b, code.unary(Neg, d))],
            Mul => vec![(a, code.binary(Mul, d, b)), (b, code.binary(Mul, d, a))],
            Div => {
                let (of_a, times) = (code.binary(Div, d, b), code.binary(Mul, d, y));
                let quotient = code.binary(Div, times, b);
                vec![(a, of_a), (b, code.unary(Neg, quotient))]
            }
            Binary::Minimum | Binary::Maximum => {
                let (zero, half) = (code.constant(0.0), code.constant(0.5));
                let (is_equal, halved) = (code.binary(Eq, a, b), code.binary(Mul, d, half));
                let is_less = code.binary(Lt, a, b);
                let [less, more] = [(d, zero), (zero, d)].map(|(then, other)| {
                    let one = code.either(is_less, then, other);
                    code.either(is_equal, halved, one)
                });
                if f == Binary::Minimum { vec![(a, less), (b, more)] } else { vec![(a, more), (b, less)] }
            }
            Lt | Binary::Le | Eq => Vec::new(),
        },
        Instruction::Where(condition, a, b) => {
            let zero = code.constant(0.0);
            vec![(a, code.either(condition, d, zero)), (b, code.either(condition, zero, d))]
        }
    }
}
