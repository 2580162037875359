//! Which examples make a batch, and making batches ahead of their use.

use std::sync::mpsc;

use crate::rng::Rng;

/// How many batches lie ready at most.
const READY: usize = 4;

/// Examples in random order, in two parts: to learn from, and a share of them, from 0 to 1, that is held out
/// (`torch.utils.data.random_split`).
///
/// ```
/// let words = ["one", "two", "three", "four", "five"];
/// let (training, held_out) = elman::data::split(&mut elman::rng::manual_seed(1), &words, 0.2);
/// assert_eq!((training.len(), held_out.len()), (4, 1));
/// ```
pub fn split<T: Clone>(rng: &mut Rng, examples: &[T], share: f64) -> (Vec<T>, Vec<T>) {
    let order: Vec<T> = rng.randperm(examples.len()).into_iter().map(|i| examples[i as usize].clone()).collect();
    let (held_out, training) = order.split_at((order.len() as f64 * share.clamp(0.0, 1.0)) as usize);
    (training.into(), held_out.into())
}

/// The numbers 0 to `examples` in random order, `batch` of them at a time, the last ones perhaps fewer: the batches of an epoch
/// (PyTorch's `DataLoader` with `shuffle=True`).
pub fn batches(rng: &mut Rng, examples: usize, batch: usize) -> Vec<Vec<usize>> {
    let order: Vec<usize> = rng.randperm(examples).into_iter().map(|i| i as usize).collect();
    order.chunks(batch.max(1)).map(<[usize]>::to_vec).collect()
}

/// [`batches`] of examples of about one length each, so that little is padded: by length, equal ones in random order, and the
/// batches in random order.
pub fn batches_by_length(rng: &mut Rng, lengths: &[usize], batch: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = rng.randperm(lengths.len()).into_iter().map(|i| i as usize).collect();
    order.sort_by_key(|&i| lengths[i]);
    let buckets: Vec<_> = order.chunks(batch.max(1)).collect();
    rng.randperm(buckets.len()).into_iter().map(|i| buckets[i as usize].to_vec()).collect()
}

/// The examples of a batch.
///
/// # Panics
/// One of the numbers is not below the number of examples.
pub fn pick<'a, T>(examples: &'a [T], rows: &[usize]) -> Vec<&'a T> {
    rows.iter().map(|&row| &examples[row]).collect()
}

/// Takes items from an iterator ahead of their use, on a thread, while `consume` waits for the device: a few at most. What
/// `consume` leaves is not made.
///
/// ```
/// use elman::data;
///
/// let squares = (0..10).map(|i| i * i); // or batches, read and padded
/// let sum = data::ahead(squares, |squares| squares.sum::<i32>());
/// assert_eq!(sum, 285);
/// ```
///
/// # Panics
/// The iterator does.
pub fn ahead<I: Iterator<Item: Send> + Send, R>(items: I, consume: impl FnOnce(mpsc::Iter<'_, I::Item>) -> R) -> R {
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel(READY);
        let made = scope.spawn(move || items.map(|item| sender.send(item)).all(|sent| sent.is_ok()));
        let result = consume(receiver.iter());
        drop(receiver);
        if let Err(panic) = made.join() {
            std::panic::resume_unwind(panic);
        }
        result
    })
}
