//! Whether the lengths in a file's bytes are true: `rten-onnx` believes them, and would read in a circle or ask for more memory than
//! there is.

use rten_onnx::protobuf::varint::read_varint;

use super::file::Result;

/// The messages of ONNX that hold others, and whatever holds none of those.
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
}

/// A message, the number of a field, and the message in it.
const NESTED: [(Message, u64, Message); 18] = {
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
    let varint = |rest: &mut &[u8]| read_varint(rest).map_err(|error| format!("it is no ONNX file ({error:?})"));
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
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
