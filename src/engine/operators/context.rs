//! What a kernel asks of the runtime while it runs, by the C API.
//!
//! `ort`'s own way to tensors and threads allocates several times for each tensor and each parallel loop. A step of a
//! generator has some hundreds of both, and none of that memory outlives the node; so nothing here allocates.

use std::{ffi::c_void, ops::Deref, ptr, slice};

use ort::{
    AsPointer, Error, Result,
    operator::{ComputeContext, KernelContext},
    sys,
};

/// Shape of a tensor with up to four axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Axes {
    sizes: [i64; 4],
    count: usize,
}

impl Deref for Axes {
    type Target = [i64];

    fn deref(&self) -> &[i64] {
        &self.sizes[..self.count]
    }
}

/// Shape and values of an input.
pub(super) fn input(context: &ComputeContext, index: usize) -> Result<(Axes, &[f32])> {
    let api = ort::api();
    let mut value: *const sys::OrtValue = ptr::null();
    // SAFETY: the context is alive while the kernel runs.
    check(unsafe { (api.KernelContext_GetInput)(context.ptr(), index, &raw mut value) })?;
    if value.is_null() {
        return Err(Error::new(format!("input {index} is missing")));
    }
    // SAFETY: the value lives as long as the kernel runs.
    unsafe { tensor(value) }
}

/// # Safety
/// The value outlives the result.
unsafe fn tensor<'a>(value: *const sys::OrtValue) -> Result<(Axes, &'a [f32])> {
    let api = ort::api();
    let axes = axes(value)?;
    let length = axes.iter().product::<i64>() as usize;
    let mut data: *mut c_void = ptr::null_mut();
    // SAFETY: the value is a tensor of the context; the operators declare all of theirs as float32 on the CPU. It is only
    // read.
    unsafe {
        check((api.GetTensorMutableData)(value.cast_mut(), &raw mut data))?;
        if length == 0 {
            return Ok((axes, &[]));
        }
        Ok((axes, slice::from_raw_parts(data.cast::<f32>(), length)))
    }
}

/// Shape and values of an input that the runtime knows before it runs; `None` where it does not.
pub(super) fn constant<'a>(
    context: &'a KernelContext<'_>,
    index: usize,
) -> Result<Option<(Axes, &'a [f32])>> {
    let mut value: *const sys::OrtValue = ptr::null();
    let mut is_constant = 0;
    // SAFETY: the context is alive while a kernel is made.
    check(unsafe {
        (ort::api().KernelInfoGetConstantInput_tensor)(
            context.ptr(),
            index,
            &raw mut is_constant,
            &raw mut value,
        )
    })?;
    if is_constant == 0 || value.is_null() {
        return Ok(None);
    }
    // SAFETY: a constant outlives the making of a kernel.
    unsafe { tensor(value) }.map(Some)
}

/// An output of a kernel, to be written. It may be asked for once; it is empty where the graph does without it.
#[allow(clippy::mut_from_ref)]
pub(super) fn output<'a>(
    context: &'a ComputeContext,
    index: usize,
    shape: &[i64],
) -> Result<&'a mut [f32]> {
    let api = ort::api();
    let mut value: *mut sys::OrtValue = ptr::null_mut();
    let length = shape.iter().product::<i64>() as usize;
    let mut data: *mut c_void = ptr::null_mut();
    // SAFETY: as in `input`; the output is a tensor of its own, which nobody else sees while the kernel runs.
    unsafe {
        let (axes, count) = (shape.as_ptr(), shape.len());
        let context = context.ptr().cast_mut();
        check((api.KernelContext_GetOutput)(context, index, axes, count, &raw mut value))?;
        if value.is_null() || length == 0 {
            return Ok(&mut []);
        }
        check((api.GetTensorMutableData)(value, &raw mut data))?;
        Ok(slice::from_raw_parts_mut(data.cast::<f32>(), length))
    }
}

/// Calls `work` once with each number below `total`, on the session's threads.
pub(super) fn par_for<F: Fn(usize) + Sync>(
    context: &ComputeContext,
    total: usize,
    work: F,
) -> Result<()> {
    unsafe extern "C" fn one<F: Fn(usize) + Sync>(work: *mut c_void, index: usize) {
        // SAFETY: `work` is the closure below, which outlives the loop.
        unsafe { (*work.cast_const().cast::<F>())(index) }
    }
    let work = &raw const work;
    // SAFETY: the call returns once all of the loop is done; the closure may be shared by threads.
    check(unsafe {
        (ort::api().KernelContext_ParallelFor)(
            context.ptr(),
            one::<F>,
            total,
            0,
            work.cast_mut().cast(),
        )
    })
}

fn axes(value: *const sys::OrtValue) -> Result<Axes> {
    let api = ort::api();
    let mut info: *mut sys::OrtTensorTypeAndShapeInfo = ptr::null_mut();
    let mut axes = Axes { sizes: [0; 4], count: 0 };
    // SAFETY: the value is a tensor; the description is released after its last use.
    unsafe {
        check((api.GetTensorTypeAndShape)(value, &raw mut info))?;
        let counted = check((api.GetDimensionsCount)(info, &raw mut axes.count));
        let read = counted.and_then(|()| {
            if axes.count > axes.sizes.len() {
                return Err(Error::new(format!("a tensor has {} axes", axes.count)));
            }
            check((api.GetDimensions)(info, axes.sizes.as_mut_ptr(), axes.count))
        });
        (api.ReleaseTensorTypeAndShapeInfo)(info);
        read?;
    }
    Ok(axes)
}

fn check(status: sys::OrtStatusPtr) -> Result<()> {
    // SAFETY: every status comes straight from the runtime.
    unsafe { Error::result_from_status(status) }
}
