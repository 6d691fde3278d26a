//! LoRA adapters: `doppler_lora`.

use std::ffi::c_char;
use std::path::Path;

use crate::ffi::guard;
use crate::ffi::handle::Table;
use crate::ffi::model::{MODELS, doppler_model};
use crate::ffi::session::{SESSIONS, doppler_session};
use crate::ffi::status::{Failure, Result, doppler_status};
use crate::ffi::structs::{Versioned, output, slot};
use crate::ffi::text::{c_text_in, fixed, slice_in};
use crate::session::{Lora, LoraCache};

/// A LoRA adapter, loaded for one model. Sessions that use it keep it alive, and it keeps its model, so handles may be destroyed in any order.
#[derive(Debug)]
pub struct doppler_lora {
    _private: [u8; 0],
}

pub(crate) static LORAS: Table<doppler_lora, Lora> = Table::new("lora", 4);

/// What an adapter is. Set `struct_size` before the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_lora_info {
    /// sizeof(doppler_lora_info)
    pub struct_size: usize,
    /// Its name, NUL-terminated, cut to fit; may be empty.
    pub name: [c_char; 128],
    /// Bytes on the device.
    pub bytes: u64,
    /// Tensors of the model that it changes.
    pub n_tensors: u32,
    /// The highest rank among them.
    pub rank: u32,
}

// SAFETY: `repr(C)`, numbers only.
unsafe impl Versioned for doppler_lora_info {
    const NAME: &'static str = "doppler_lora_info";
    const FIRST: usize = std::mem::offset_of!(Self, rank) + 4;
}

/// Loads a LoRA adapter for a model. The model stays as it is: sessions choose their adapters with doppler_session_set_loras().
///
/// @param model  the model it was made for
/// @param path   a GGUF file, or a folder with adapter_config.json and adapter_model.safetensors; NUL-terminated UTF-8
/// @param lora   gets the handle; end it with doppler_lora_destroy()
/// @return       DOPPLER_STATUS_IO; DOPPLER_STATUS_BAD_FILE for one of another architecture or shape, DOPPLER_STATUS_UNSUPPORTED for what is not plain
///               LoRA (the error text names the file, and the key or tensor); DOPPLER_STATUS_OUT_OF_MEMORY
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_lora_load(
    model: *mut doppler_model,
    path: *const c_char,
    lora: *mut *mut doppler_lora,
) -> doppler_status {
    guard(|| {
        let model = MODELS.get(model)?;
        // SAFETY: the caller vouches for pointer and text.
        let (out, path) = unsafe { (slot(lora, "lora")?, c_text_in(path, "path")?) };
        out.write(LORAS.insert(model.load_lora(Path::new(path))?));
        Ok(())
    })
}

/// Ends an adapter's handle. Sessions that use it go on with it; its memory is freed with the last use.
///
/// @param lora  NULL is allowed; a handle that was destroyed already gets DOPPLER_STATUS_BAD_HANDLE
///
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn doppler_lora_destroy(lora: *mut doppler_lora) -> doppler_status {
    guard(|| LORAS.remove(lora).map(drop))
}

/// What an adapter is.
///
/// @param info  filled in; set its `struct_size`
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_lora_get_info(
    lora: *const doppler_lora,
    info: *mut doppler_lora_info,
) -> doppler_status {
    guard(|| {
        let lora = LORAS.get(lora)?;
        // SAFETY: the caller vouches for the structure.
        let out = unsafe { output(info)? };
        let i = lora.info();
        out.write(doppler_lora_info {
            struct_size: size_of::<doppler_lora_info>(),
            name: fixed(&i.name),
            bytes: i.bytes,
            n_tensors: i.tensors,
            rank: i.rank,
        });
        Ok(())
    })
}

/// Gives a session these adapters in the place of those it has; what they change adds up. What is evaluated from now on is evaluated with them.
/// The same list again changes nothing. Nothing is loaded: adapters may be changed between any two generations, and lists that were used lately
/// are kept ready. Forks have the adapters of their session; a snapshot is only taken back by a session that has the same ones.
///
/// @param loras       the adapters, all of the session's model; may be NULL if `n_loras` is 0: none
/// @param scales      a factor for each; NULL: 1 for all. 0 is as if the adapter were not there.
/// @param n_loras     how many
/// @param keep_cache  0: what was evaluated with other adapters is evaluated again when it is needed, as if the session had had these from the
///                    beginning. Not 0: it stays as it is, and only what comes now is seen by the new adapters.
/// @return            DOPPLER_STATUS_INVALID_ARGUMENT for an adapter of another model or a factor that is not finite,
///                    DOPPLER_STATUS_INVALID_STATE while generating; the session is then as it was
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_set_loras(
    session: *mut doppler_session,
    loras: *const *mut doppler_lora,
    scales: *const f32,
    n_loras: usize,
    keep_cache: u32,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        let n_scales = if scales.is_null() { 0 } else { n_loras };
        // SAFETY: the caller vouches for both arrays.
        let (loras, scales) = unsafe { (slice_in(loras, n_loras, "loras")?, slice_in(scales, n_scales, "scales")?) };
        let list = loras.iter().enumerate().map(|(i, &lora)| {
            let lora = LORAS.get(lora).map_err(|e| Failure::new(e.status, format!("loras[{i}]: {}", e.text)))?;
            Ok(((*lora).clone(), scales.get(i).copied().unwrap_or(1.0)))
        });
        let list = list.collect::<Result<Vec<_>>>()?;
        let cache = if keep_cache == 0 { LoraCache::Forget } else { LoraCache::Keep };
        Ok(object.enter()?.set_loras(&list, cache)?)
    })
}
