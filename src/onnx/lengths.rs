//! Whether the lengths and numbers in a file's bytes are whole: `rten-onnx` believes them, and would read in a circle or ask for more
//! memory than there is.

use super::file::Result;

/// The messages of ONNX that hold others, those that hold none, and fields of whole numbers one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Type,
    TensorType,
    Sequence,
    Shape,
    Leaf,
    Numbers,
}

/// A message, the number of a field, and the message in it.
const NESTED: [(Message, u64, Message); 23] = {
    use Message::*;
    [
        (Model, 7, Graph),
        (Model, 8, Leaf),
        (Model, 14, Leaf),
        (Graph, 1, Node),
        (Graph, 5, Tensor),
        (Graph, 11, ValueInfo),
        (Graph, 12, ValueInfo),
        (Graph, 13, ValueInfo),
        (Node, 5, Attribute),
        (Attribute, 5, Tensor),
        (Attribute, 6, Graph),
        (Attribute, 8, Numbers),
        (Tensor, 1, Numbers),
        (Tensor, 5, Numbers),
        (Tensor, 7, Numbers),
        (Tensor, 11, Numbers),
        (Tensor, 13, Leaf),
        (ValueInfo, 2, Type),
        (Type, 1, TensorType),
        (Type, 4, Sequence),
        (Sequence, 1, Type),
        (TensorType, 2, Shape),
        (Shape, 1, Leaf),
    ]
};

/// Messages in messages, at most: three for each graph within a graph.
const MOST_NESTED: usize = 64;

/// Each length of the model in these bytes is at most what is left of what it lies in.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    check_message(bytes, Message::Model, 0)
}

fn check_message(mut rest: &[u8], message: Message, depth: usize) -> Result<()> {
    if depth > MOST_NESTED {
        return Err(format!("it has more than {MOST_NESTED} messages in one another"));
    }
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        if message == Message::Numbers {
            continue;
        }
        let length = match tag & 7 {
            0 => varint(&mut rest).map(|_| 0)?,
            1 => 8,
            2 => varint(&mut rest)?,
            5 => 4,
            _ => return Err("it is no ONNX file".into()),
        };
        let length = usize::try_from(length).ok().filter(|&length| length <= rest.len());
        let (field, after) = rest.split_at(length.ok_or("it is cut short, or its lengths are not true")?);
        rest = after;
        let nested = NESTED.iter().find(|&&(outer, number, _)| (outer, number) == (message, tag >> 3));
        if let (2, Some(&(_, _, inner))) = (tag & 7, nested) {
            check_message(field, inner, depth + 1)?;
        }
    }
    Ok(())
}

/// A whole number of 7 bits a byte, the last of which is below 128.
fn varint(rest: &mut &[u8]) -> Result<u64> {
    const MOST_BYTES: usize = 10;
    let end = rest.iter().take(MOST_BYTES).position(|&byte| byte < 0x80);
    let (number, after) = rest.split_at(1 + end.ok_or("it is no ONNX file: it has a number without an end")?);
    *rest = after;
    Ok(number.iter().rev().fold(0, |value, &byte| value << 7 | u64::from(byte & 0x7f)))
}
