//! Batches: values on the host, sequences padded to the longest, windows of a series, and the order they come in.
//!
//! A [`Trainer::on_batches`](crate::Trainer::on_batches) takes arrays of any shape; what is here makes them from what a program
//! has.
//!
//! ```
//! use elman::data::{self, Array};
//! use elman::rng;
//!
//! let sentences = [vec![3, 1, 2], vec![2], vec![1, 3]];
//! let tags = [vec![0, 1, 1], vec![1], vec![0, 0]];
//! let mut rng = rng::manual_seed(1);
//! let lengths: Vec<usize> = sentences.iter().map(Vec::len).collect();
//! for rows in data::batches_by_length(&mut rng, &lengths, 2) {
//!     let words = data::pick(&sentences, &rows);
//!     let batch = [
//!         Array::pad_tokens("words", &words, 0, 4)?, // [T, B]
//!         Array::pad_targets("tags", data::pick(&tags, &rows), 2)?,
//!         Array::lengths_of("lengths", &words)?,
//!     ];
//!     assert_eq!(batch[0].shape()[1], rows.len());
//! }
//! # Ok::<(), elman::Error>(())
//! ```

mod array;
mod order;

pub use array::Array;
pub(crate) use array::Signature;
pub use order::{ahead, batches, batches_by_length, pick, split};
