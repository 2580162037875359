//! Buffers of a device, and moving values in and out of them.

use std::cell::UnsafeCell;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::turns::{Footprint, Turn};
use super::{Counters, Device, Floats, Kind, gpu};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Elements of one type in one allocation of one device, which is made when it is first needed.
pub(crate) struct Buffer {
    pub device: Device,
    pub dtype: DType,
    name: Box<str>,
    len: usize,
    memory: OnceLock<Memory>,
    refuses_nan: AtomicBool,
    keeps: Keeps,
}

/// For how long what is in a buffer means something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// As long as there is a handle.
    Always,
    /// Within a run of a plan.
    WithinARun,
    /// From some commands of a plan to others, several times.
    Shared,
}

pub(crate) enum Memory {
    Gpu(Arc<gpu::Buffer>),
    F32(Cells<f32>),
    #[cfg(feature = "reference")]
    F64(Cells<f64>),
    U32(Cells<u32>),
}

/// CPU memory that plans write through a shared handle, as a GPU does.
///
/// # Safety of its use
/// Every access happens in a [`Turn`] of work whose [`Footprint`] has the buffer, as written if the access writes: nobody else uses
/// a buffer that is written meanwhile. Within one dispatch, `Recorder::dispatch` has refused overlapping ranges of which one is
/// written.
pub(crate) struct Cells<T> {
    values: UnsafeCell<Box<[T]>>,
    /// The first that is at the start of a line of the cache: the widest vectors fill one.
    first: usize,
    len: usize,
}

// SAFETY: see `Cells`: turns let in several readers, which share `&T`, or one writer, which may have been another thread before.
unsafe impl<T: Send + Sync> Sync for Cells<T> {}

impl<T: bytemuck::Zeroable> Cells<T> {
    /// A large one takes memory where it is written, not before.
    fn zeros(device: &Device, name: &str, len: usize) -> Result<Self> {
        const LINE: usize = 64;
        let bytes = len as u64 * size_of::<T>() as u64;
        // Not an allocation that is aligned, all of which would be written to make it 0.
        let values = bytemuck::try_zeroed_slice_box::<T>(len + LINE / size_of::<T>() - 1);
        let values = values.map_err(|()| device.out_of_memory(name, bytes, 0, None))?;
        let first = values.as_ptr().align_offset(LINE);
        Ok(Self { values: UnsafeCell::new(values), first, len })
    }
}

impl<T> Cells<T> {
    /// # Safety
    /// It is the caller's turn to use the buffer, and no slice that overlaps `range` is being written.
    pub unsafe fn slice(&self, range: Range<usize>) -> &[T] {
        // SAFETY: the caller's promise; the address of the first element does not borrow the others.
        unsafe { std::slice::from_raw_parts(self.start(&range), range.len()) }
    }

    /// # Safety
    /// It is the caller's turn to write the buffer, and no other slice overlaps `range`.
    #[allow(clippy::mut_from_ref, reason = "interior mutability is the point of `Cells`")]
    pub unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start(&range), range.len()) }
    }

    fn start(&self, range: &Range<usize>) -> *mut T {
        // SAFETY: the box itself is never replaced; only its length is read through this reference.
        let base: *mut [T] = unsafe { &raw mut **self.values.get() };
        assert!(range.start <= range.end && range.end <= self.len, "range {range:?} of a buffer of {}", self.len);
        // SAFETY: within the allocation, as just checked.
        unsafe { base.cast::<T>().add(self.first + range.start) }
    }
}

impl Memory {
    /// # Safety
    /// It is the caller's turn to write this and to use `source`, and the two ranges do not overlap.
    pub unsafe fn copy_from(&self, start: usize, source: &Self, source_start: usize, len: usize) {
        let (to, from) = (start..start + len, source_start..source_start + len);
        // SAFETY: the caller's promise.
        unsafe {
            match (self, source) {
                (Self::F32(a), Self::F32(b)) => a.slice_mut(to).copy_from_slice(b.slice(from)),
                #[cfg(feature = "reference")]
                (Self::F64(a), Self::F64(b)) => a.slice_mut(to).copy_from_slice(b.slice(from)),
                (Self::U32(a), Self::U32(b)) => a.slice_mut(to).copy_from_slice(b.slice(from)),
                _ => unreachable!("`Recorder::copy` checks device and element type"),
            }
        }
    }

    /// # Safety
    /// It is the caller's turn to write this.
    pub unsafe fn clear(&self, start: usize, len: usize) {
        let range = start..start + len;
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::F32(cells) => cells.slice_mut(range).fill(0.0),
                #[cfg(feature = "reference")]
                Self::F64(cells) => cells.slice_mut(range).fill(0.0),
                Self::U32(cells) => cells.slice_mut(range).fill(0),
                Self::Gpu(_) => unreachable!("a GPU plan clears on the GPU"),
            }
        }
    }
}

/// The element types of the host: f32, f64, u32.
pub(crate) trait Element: bytemuck::Pod + num_traits::NumCast {}
impl<T: bytemuck::Pod + num_traits::NumCast> Element for T {}

/// Between the host's element type and the device's: f32 and f64 convert, u32 stays (`Tensor` has checked the type).
fn convert<A: Element, B: Element>(x: A) -> B {
    num_traits::cast(x).expect("f32, f64 and u32 tensors are read and written as what they are")
}

fn convert_all<A: Element, B: Element>(from: &[A], to: &mut [B]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = convert(from));
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.memory.get().is_some() {
            self.device.release(self.bytes());
        }
    }
}

/// Bytes of the device for what is about to be allocated; given back unless kept.
struct Claim<'a>(&'a Device, u64);

impl Claim<'_> {
    fn keep(&mut self, buffer: &Buffer) {
        self.1 -= buffer.bytes();
        self.0.counters().allocated(buffer.bytes());
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.release(self.1);
    }
}

impl Buffer {
    /// A buffer of zeros, without memory so far.
    pub fn new(device: &Device, name: &str, len: usize, dtype: DType) -> Result<Self> {
        let (bytes, allowed) = (4 * len as u64, device.limits().tensor_bytes());
        if bytes > allowed {
            return Err(Error::Limit {
                tensor: name.into(),
                needed: bytes,
                unit: "bytes in one buffer",
                allowed,
                device: device.describe(),
                cure: "use a smaller batch, window or hidden size, or `--device cpu`",
            });
        }
        let (memory, refuses_nan) = (OnceLock::new(), AtomicBool::new(false));
        Ok(Self { device: device.clone(), dtype, name: name.into(), len, memory, refuses_nan, keeps: Keeps::Always })
    }

    /// The same, of other contents.
    pub fn that_keeps(mut self, keeps: Keeps) -> Self {
        self.keeps = keeps;
        self
    }

    /// Whether a plan may give it the memory of another: it has none yet.
    pub fn may_share(&self) -> bool {
        self.keeps == Keeps::WithinARun && self.memory.get().is_none()
    }

    /// Whether it is such memory.
    pub fn is_shared(&self) -> bool {
        self.keeps == Keeps::Shared
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// From here on, NaN is not written to it.
    pub fn refuse_nan(&self) {
        self.refuses_nan.store(true, Ordering::Relaxed);
    }

    /// The first NaN of these, if it refuses such.
    pub fn refused_nan<T: Element>(&self, values: &[T]) -> Option<usize> {
        if self.dtype != DType::F32 || !self.refuses_nan.load(Ordering::Relaxed) {
            return None;
        }
        values.iter().position(|&value| convert::<T, f64>(value).is_nan())
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        4 * self.len as u64
    }

    /// Where its values are: those of a plan have been given memory.
    pub fn memory(&self) -> &Memory {
        self.memory.get().expect("a plan gives memory to all of its tensors before it runs")
    }

    /// [`Self::memory`], made now if there is none.
    pub fn touch(&self) -> Result<&Memory> {
        Self::allocate(&format!("`{}`", self.name), &self.device, [self])?;
        Ok(self.memory())
    }

    fn make(&self) -> Result<Memory> {
        let Self { device, name, len, .. } = self;
        Ok(match (device.kind(), self.dtype) {
            (Kind::Gpu(gpu), _) => Memory::Gpu(gpu.create_tensor(name, self.bytes())?),
            (_, DType::U32) => Memory::U32(Cells::zeros(device, name, *len)?),
            (Kind::Cpu(Floats::F32, _), DType::F32) => Memory::F32(Cells::zeros(device, name, *len)?),
            #[cfg(feature = "reference")]
            (Kind::Cpu(Floats::F64, _), DType::F32) => Memory::F64(Cells::zeros(device, name, *len)?),
        })
    }

    /// Those of them that have no memory, each once.
    pub fn without_memory<'a>(buffers: impl IntoIterator<Item = &'a Self>) -> Vec<&'a Self> {
        let mut seen = HashSet::new();
        let is_missing = |buffer: &&Self| buffer.memory.get().is_none() && seen.insert(std::ptr::from_ref(*buffer));
        buffers.into_iter().filter(is_missing).collect()
    }

    /// Gives memory to all of these that have none, or to none of them. `what` needs it.
    pub fn allocate<'a>(what: &str, device: &Device, buffers: impl IntoIterator<Item = &'a Self>) -> Result<()> {
        let missing = Self::without_memory(buffers);
        if missing.is_empty() {
            return Ok(());
        }
        match Self::allocate_by(Self::make, what, device, &missing) {
            // What is kept for a lost device, plans that are gone say, goes first.
            Err(Error::OutOfMemory { .. }) if device.lets_go() => Self::allocate_by(Self::make, what, device, &missing),
            done => done,
        }
    }

    fn allocate_by(
        make: impl Fn(&Self) -> Result<Memory>,
        what: &str,
        device: &Device,
        buffers: &[&Self],
    ) -> Result<()> {
        let needed = buffers.iter().map(|buffer| buffer.bytes()).sum();
        let short = |available, limit| {
            let mut error = device.out_of_memory(what, needed, available, limit);
            if let Error::OutOfMemory { largest, .. } = &mut error {
                let mut all: Vec<_> = buffers.iter().map(|buffer| (buffer.name.to_string(), buffer.bytes())).collect();
                all.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
                all.truncate(3);
                *largest = all;
            }
            error
        };
        device.claim(needed).map_err(|(available, limit)| short(available, Some(limit)))?;
        let mut claim = Claim(device, needed);
        let mut made = Vec::new();
        for buffer in buffers {
            match make(buffer) {
                Ok(memory) => made.push(memory),
                Err(Error::OutOfMemory { .. }) => {
                    drop(claim);
                    let got = buffers.iter().take(made.len()).map(|buffer| buffer.bytes()).sum();
                    return Err(short(got, None));
                }
                Err(error) => return Err(error),
            }
        }
        for (buffer, memory) in buffers.iter().zip(made) {
            // Another thread may have been faster.
            if buffer.memory.set(memory).is_ok() {
                claim.keep(buffer);
            }
        }
        Ok(())
    }

    /// Waits until it can be read or written by this call.
    fn turn(&self, is_written: bool) -> Option<Turn<'_>> {
        if self.device.is_gpu() {
            return None;
        }
        self.device.turn([Some(&Footprint::new([(self, is_written)])), None])
    }

    pub fn write<T: Element>(&self, offset: usize, values: &[T]) -> Result<()> {
        let memory = self.touch()?;
        let Memory::Gpu(buffer) = memory else {
            let _turn = self.turn(true);
            // SAFETY: it is this call's turn to write, and there is no other slice.
            unsafe { self.put(offset, values) };
            return Ok(());
        };
        Counters::add(&self.device.counters().uploads, 1);
        let gpu = self.device.gpu().expect("GPU memory belongs to a GPU device");
        match self.dtype {
            DType::F32 => {
                let values: Vec<f32> = values.iter().map(|&x| convert(x)).collect();
                gpu.write(buffer, 4 * offset as u64, bytemuck::cast_slice(&values))
            }
            DType::U32 => gpu.write(buffer, 4 * offset as u64, bytemuck::cast_slice(values)),
        }
    }

    /// Writes to the CPU's memory, which there is.
    ///
    /// # Safety
    /// It is the caller's turn to write, and there is no other slice of these values.
    pub unsafe fn put<T: Element>(&self, offset: usize, values: &[T]) {
        Counters::add(&self.device.counters().uploads, 1);
        let range = offset..offset + values.len();
        // SAFETY: the caller's promise.
        unsafe {
            match self.memory() {
                Memory::F32(cells) => convert_all(values, cells.slice_mut(range)),
                #[cfg(feature = "reference")]
                Memory::F64(cells) => convert_all(values, cells.slice_mut(range)),
                Memory::U32(cells) => convert_all(values, cells.slice_mut(range)),
                Memory::Gpu(_) => unreachable!("a GPU's memory is written through its queue"),
            }
        }
    }

    /// Reads the CPU's memory, which there is.
    ///
    /// # Safety
    /// It is the caller's turn to read.
    pub unsafe fn get<T: Element>(&self, offset: usize, values: &mut [T]) {
        Counters::add(&self.device.counters().downloads, 1);
        let range = offset..offset + values.len();
        // SAFETY: the caller's promise.
        unsafe {
            match self.memory() {
                Memory::F32(cells) => convert_all(cells.slice(range), values),
                #[cfg(feature = "reference")]
                Memory::F64(cells) => convert_all(cells.slice(range), values),
                Memory::U32(cells) => convert_all(cells.slice(range), values),
                Memory::Gpu(_) => unreachable!("a GPU's memory is read through its queue"),
            }
        }
    }

    pub async fn read<T: Element>(&self, range: Range<usize>) -> Result<Vec<T>> {
        let memory = self.touch()?;
        if let Memory::Gpu(buffer) = memory {
            Counters::add(&self.device.counters().downloads, 1);
            let gpu = self.device.gpu().expect("GPU memory belongs to a GPU device");
            let bytes = gpu.read(buffer, 4 * range.start as u64..4 * range.end as u64).await?;
            return Ok(match self.dtype {
                DType::F32 => bytemuck::pod_collect_to_vec::<u8, f32>(&bytes).into_iter().map(convert).collect(),
                DType::U32 => bytemuck::pod_collect_to_vec::<u8, u32>(&bytes).into_iter().map(convert).collect(),
            });
        }
        let _turn = self.turn(false);
        let mut values = vec![T::zeroed(); range.len()];
        // SAFETY: it is this call's turn to read, so nobody writes.
        unsafe { self.get(range.start, &mut values) };
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An allocation that the driver refuses takes back those before it.
    #[test]
    fn all_have_memory_or_none() {
        let device = Device::cpu();
        let buffers = [("a", 10), ("b", 300), ("c", 20), ("d", 100)]
            .map(|(name, len)| Buffer::new(&device, name, len, DType::F32).unwrap());
        let make = |buffer: &Buffer| match &*buffer.name {
            "c" => Err(device.out_of_memory("c", buffer.bytes(), 0, None)),
            _ => buffer.make(),
        };
        let error = Buffer::allocate_by(make, "the plan", &device, &buffers.each_ref()).unwrap_err();
        let Error::OutOfMemory { needed, held, available, limit, largest, .. } = &error else { panic!("{error}") };
        assert_eq!((*needed, *held, *available, *limit), (1720, 0, 1240, None));
        let largest: Vec<_> = largest.iter().map(|(name, bytes)| (&name[..], *bytes)).collect();
        assert_eq!(largest, [("b", 1200), ("d", 400), ("c", 80)]);
        for part in ["the plan needs 1720 bytes", "the driver refused", "`b` (1200 bytes)", "72%"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        assert_eq!((device.live_bytes(), device.count().buffers), (0, 0));
        assert_eq!(Buffer::without_memory(&buffers).len(), 4);
        Buffer::allocate("the plan", &device, &buffers).unwrap();
        assert_eq!((device.live_bytes(), device.count().buffers), (1720, 4));
        drop(buffers);
        assert_eq!(device.live_bytes(), 0);
    }
}
