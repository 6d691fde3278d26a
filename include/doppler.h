/*
 * Doppler: language models inside other programs, on any GPU that wgpu reaches.
 *
 * Generated from src/ffi by tests/tidy_header.rs; do not edit. The C++17 wrapper is doppler.hpp.
 *
 * Every function keeps these rules:
 *
 *  - It returns a doppler_status (except those that only give a version or a text). After a failure doppler_last_error() has the text for
 *    people, for the calling thread. No failure ends the process, and no panic crosses this boundary.
 *  - Outputs are written on success only, with two exceptions: `needed` (of a snapshot: `size`) also says how large a buffer would have been enough, and the logits
 *    buffer of doppler_session_eval() has no defined content if that call fails half-way.
 *  - Handles (doppler_context, doppler_model, doppler_lora, doppler_session) are opaque. NULL gets DOPPLER_STATUS_NULL_POINTER; a handle that was
 *    destroyed, or is of another kind, gets DOPPLER_STATUS_BAD_HANDLE. They may be destroyed in any order: a session keeps its model and its adapters,
 *    a model its context. Destroying NULL does nothing.
 *  - Structures begin with `struct_size`. Options: call the matching ..._init(&options, sizeof options), then change fields. Results: set
 *    `struct_size = sizeof` the structure, then call. Structures only ever grow at their end, so a program built for an older header goes on
 *    working; one built for a newer header works as long as what this library does not know is zero.
 *  - Numbers of enums are permanent. Fields that hold them are uint32_t. Flags are uint32_t: 0 is no, everything else yes.
 *  - Text is UTF-8. Prompts are pointer and length; paths, names and messages end with NUL. Text that comes out always ends with NUL.
 *  - "Threads: any" functions may be called from all threads at the same time. "One at a time" functions of one object must not overlap;
 *    if they do, the later one gets DOPPLER_STATUS_INVALID_STATE and does nothing.
 *  - Memory stays with its side: the library frees no pointer of the caller's and gives none to free. What options point to is only read
 *    during the call.
 *  - Sizes are in bytes, times in nanoseconds of wall time, unless they say otherwise.
 */


#ifndef DOPPLER_H
#define DOPPLER_H

#include <stddef.h>
#include <stdint.h>

/** Version of the library that this header belongs to; doppler_version_string() has that of the library in use. */
#define DOPPLER_VERSION_MAJOR 0
#define DOPPLER_VERSION_MINOR 1
#define DOPPLER_VERSION_PATCH 0

/** ABI of this header; doppler_abi_version() must give the same. */
#define DOPPLER_ABI_VERSION 1

/** Define DOPPLER_DLL before including this header on Windows when linking the DLL's import library. */
#ifndef DOPPLER_API
#if defined(_WIN32) && defined(DOPPLER_DLL)
#define DOPPLER_API __declspec(dllimport)
#else
#define DOPPLER_API
#endif
#endif

/**
 * "None" where an index or a token is expected: no adapter index, no token, no stop string.
 */
#define DOPPLER_NONE UINT32_MAX

/**
 * Groups that doppler_model_stats describes.
 */
#define DOPPLER_KV_GROUPS 8

/**
 * What a function answers. The numbers are permanent; newer libraries may add some, so treat an unknown one as a failure.
 * doppler_last_error() has the text that belongs to a failure.
 */
enum doppler_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Done.
     */
    DOPPLER_STATUS_OK = 0,
    /**
     * An argument is outside what the function accepts.
     */
    DOPPLER_STATUS_INVALID_ARGUMENT = 1,
    /**
     * The call is not allowed now: the session is in the middle of another call, or has nothing to continue.
     */
    DOPPLER_STATUS_INVALID_STATE = 2,
    /**
     * A file could not be opened, read or mapped.
     */
    DOPPLER_STATUS_IO = 3,
    /**
     * A file's bytes break its format.
     */
    DOPPLER_STATUS_BAD_FILE = 4,
    /**
     * Well formed, but more than this version can do.
     */
    DOPPLER_STATUS_UNSUPPORTED = 5,
    /**
     * No adapter satisfies the request.
     */
    DOPPLER_STATUS_NO_ADAPTER = 6,
    /**
     * The device, the host, or the memory budget has no room.
     */
    DOPPLER_STATUS_OUT_OF_MEMORY = 7,
    /**
     * The device is gone: destroy everything made from its context.
     */
    DOPPLER_STATUS_DEVICE_LOST = 8,
    /**
     * The device rejected a command or a shader: a defect of this library or of the driver.
     */
    DOPPLER_STATUS_GPU = 9,
    /**
     * A guard in strict mode refused a readback, or found a budget broken.
     */
    DOPPLER_STATUS_GUARD = 10,
    /**
     * The tokens do not fit in the session's context. Nothing was changed: truncate or reset, or append less.
     */
    DOPPLER_STATUS_CONTEXT_FULL = 11,
    /**
     * A callback or doppler_session_cancel() ended the call.
     */
    DOPPLER_STATUS_CANCELLED = 12,
    /**
     * The model's chat template failed.
     */
    DOPPLER_STATUS_TEMPLATE = 13,
    /**
     * A defect of this library.
     */
    DOPPLER_STATUS_INTERNAL = 14,
    /**
     * A tensor holds NaN, an infinity or a value beyond the limit of the session's probe, which asked for this check.
     */
    DOPPLER_STATUS_NOT_FINITE = 15,
    /**
     * A pointer that must not be NULL is NULL.
     */
    DOPPLER_STATUS_NULL_POINTER = 100,
    /**
     * A defect of this library, caught before it could end the process. The object may be left unusable.
     */
    DOPPLER_STATUS_PANIC = 101,
    /**
     * A structure's `struct_size` is too small, or it has fields that this library does not know and that are not zero.
     */
    DOPPLER_STATUS_BAD_STRUCT_SIZE = 102,
    /**
     * The handle is not of this kind, or its object was destroyed.
     */
    DOPPLER_STATUS_BAD_HANDLE = 103,
    /**
     * A buffer is too small. Where the function has a `needed` output, it says how much is enough.
     */
    DOPPLER_STATUS_BUFFER_TOO_SMALL = 104,
    /**
     * A text is not valid UTF-8.
     */
    DOPPLER_STATUS_BAD_UTF8 = 105,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_status doppler_status;
#else
typedef uint32_t doppler_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Kinds of adapters.
 */
enum doppler_adapter_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * None of the others.
     */
    DOPPLER_ADAPTER_KIND_OTHER = 0,
    /**
     * A graphics card with memory of its own.
     */
    DOPPLER_ADAPTER_KIND_DISCRETE = 1,
    /**
     * A GPU that shares the memory of the CPU.
     */
    DOPPLER_ADAPTER_KIND_INTEGRATED = 2,
    /**
     * A GPU lent to a virtual machine.
     */
    DOPPLER_ADAPTER_KIND_VIRTUAL = 3,
    /**
     * A driver that computes on the CPU (llvmpipe, WARP).
     */
    DOPPLER_ADAPTER_KIND_SOFTWARE = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_adapter_kind doppler_adapter_kind;
#else
typedef uint32_t doppler_adapter_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which kind of adapter is preferred.
 */
enum doppler_power_preference
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Discrete first, then integrated.
     */
    DOPPLER_POWER_PREFERENCE_HIGH_PERFORMANCE = 0,
    /**
     * Integrated first, then discrete.
     */
    DOPPLER_POWER_PREFERENCE_LOW_POWER = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_power_preference doppler_power_preference;
#else
typedef uint32_t doppler_power_preference;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What happens when decoding costs more than its budget (per submit: 1 submit, 1 readback of at most 16 bytes a token; no buffer, bind
 * group or pipeline created), or a debug readback is asked for.
 */
enum doppler_guard_mode
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Nothing is checked.
     */
    DOPPLER_GUARD_MODE_OFF = 0,
    /**
     * A warning is logged.
     */
    DOPPLER_GUARD_MODE_WARN = 1,
    /**
     * The call fails with DOPPLER_STATUS_GUARD.
     */
    DOPPLER_GUARD_MODE_STRICT = 2,
    /**
     * Sessions only: as the context.
     */
    DOPPLER_GUARD_MODE_INHERIT = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_guard_mode doppler_guard_mode;
#else
typedef uint32_t doppler_guard_mode;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Who drafts tokens.
 */
enum doppler_drafter
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Nobody: each token is decoded.
     */
    DOPPLER_DRAFTER_NONE = 0,
    /**
     * The text so far: what followed the last tokens where they stood before.
     */
    DOPPLER_DRAFTER_LOOKUP = 1,
    /**
     * A smaller model.
     */
    DOPPLER_DRAFTER_MODEL = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_drafter doppler_drafter;
#else
typedef uint32_t doppler_drafter;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Classes of device memory: the index of `memory` in doppler_context_stats.
 */
enum doppler_memory_class
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Model weights and tables derived from them.
     */
    DOPPLER_MEMORY_CLASS_WEIGHTS = 0,
    /**
     * Keys and values of the attention cache, and its tables.
     */
    DOPPLER_MEMORY_CLASS_KV = 1,
    /**
     * Activations, planned once for a model.
     */
    DOPPLER_MEMORY_CLASS_SCRATCH = 2,
    /**
     * Host-visible buffers for readback.
     */
    DOPPLER_MEMORY_CLASS_STAGING = 3,
    /**
     * Everything else.
     */
    DOPPLER_MEMORY_CLASS_OTHER = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_memory_class doppler_memory_class;
#else
typedef uint32_t doppler_memory_class;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How keys and values of the attention cache are stored.
 */
enum doppler_kv_type
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Half precision.
     */
    DOPPLER_KV_TYPE_F16 = 0,
    /**
     * Single precision: twice the memory.
     */
    DOPPLER_KV_TYPE_F32 = 1,
    /**
     * Signed bytes with a scale for each 32 dimensions of a head: about half the memory of F16. Models whose heads are no multiple of 32
     * dimensions do not load with it (DOPPLER_STATUS_UNSUPPORTED).
     */
    DOPPLER_KV_TYPE_Q8 = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_kv_type doppler_kv_type;
#else
typedef uint32_t doppler_kv_type;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What weights become while they are loaded.
 */
enum doppler_weight_format
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * As they are stored.
     */
    DOPPLER_WEIGHT_FORMAT_AS_STORED = 0,
    /**
     * 8 bits and a scale for each 32 weights.
     */
    DOPPLER_WEIGHT_FORMAT_Q8 = 1,
    /**
     * 4 bits and a scale for each 32 weights.
     */
    DOPPLER_WEIGHT_FORMAT_Q4 = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_weight_format doppler_weight_format;
#else
typedef uint32_t doppler_weight_format;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What GPU work is for: the index of `phases` in statistics.
 */
enum doppler_phase
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Loading: weights go up, pipelines are compiled.
     */
    DOPPLER_PHASE_LOAD = 0,
    /**
     * Evaluating a prompt.
     */
    DOPPLER_PHASE_PREFILL = 1,
    /**
     * Generating tokens.
     */
    DOPPLER_PHASE_DECODE = 2,
    /**
     * Everything else.
     */
    DOPPLER_PHASE_OTHER = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_phase doppler_phase;
#else
typedef uint32_t doppler_phase;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What is read back: the index of `readbacks` and `readback_bytes`.
 */
enum doppler_readback_class
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Generated tokens and their stop flags.
     */
    DOPPLER_READBACK_CLASS_TOKEN = 0,
    /**
     * Logits that were asked for.
     */
    DOPPLER_READBACK_CLASS_LOGITS = 1,
    /**
     * Embeddings that were asked for.
     */
    DOPPLER_READBACK_CLASS_EMBEDDING = 2,
    /**
     * State of a sequence.
     */
    DOPPLER_READBACK_CLASS_STATE = 3,
    /**
     * Intermediate values, for debugging.
     */
    DOPPLER_READBACK_CLASS_DEBUG = 4,
    /**
     * GPU times.
     */
    DOPPLER_READBACK_CLASS_PROFILE = 5,
    /**
     * Probabilities of given tokens that were asked for.
     */
    DOPPLER_READBACK_CLASS_SCORE = 6,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_readback_class doppler_readback_class;
#else
typedef uint32_t doppler_readback_class;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where GPU times come from.
 */
enum doppler_gpu_time_source
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * There are none: `gpu_ns` is 0. A CPU clock is never called a GPU time.
     */
    DOPPLER_GPU_TIME_SOURCE_NONE = 0,
    /**
     * Timestamp queries of the GPU.
     */
    DOPPLER_GPU_TIME_SOURCE_TIMESTAMP = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_gpu_time_source doppler_gpu_time_source;
#else
typedef uint32_t doppler_gpu_time_source;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which part of the library reads back: the index of `places` in statistics.
 */
enum doppler_place
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Tokens drawn after a prompt or in a decode batch.
     */
    DOPPLER_PLACE_PIPELINE = 0,
    /**
     * A layer's intermediate tensors.
     */
    DOPPLER_PLACE_LAYER = 1,
    /**
     * Logits.
     */
    DOPPLER_PLACE_LOGITS = 2,
    /**
     * The attention cache.
     */
    DOPPLER_PLACE_KV_CACHE = 3,
    /**
     * GPU times.
     */
    DOPPLER_PLACE_PROFILER = 4,
    /**
     * Candidates and choices of the samplers.
     */
    DOPPLER_PLACE_SAMPLE = 5,
    /**
     * State of the stop check.
     */
    DOPPLER_PLACE_CHECK_STOP = 6,
    /**
     * Converted or repacked data.
     */
    DOPPLER_PLACE_CAST = 7,
    /**
     * A buffer, read by a tool.
     */
    DOPPLER_PLACE_POOL = 8,
    /**
     * Scores and embeddings.
     */
    DOPPLER_PLACE_RESULTS = 9,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_place doppler_place;
#else
typedef uint32_t doppler_place;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Guards ready made.
 */
enum doppler_guard_preset
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * For shipped programs: STRICT, with the production budgets.
     */
    DOPPLER_GUARD_PRESET_PRODUCTION = 0,
    /**
     * For development: WARN.
     */
    DOPPLER_GUARD_PRESET_DEBUG = 1,
    /**
     * For measuring: OFF. Counters count as always.
     */
    DOPPLER_GUARD_PRESET_BENCHMARK = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_guard_preset doppler_guard_preset;
#else
typedef uint32_t doppler_guard_preset;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Why a generation ended.
 */
enum doppler_finish_reason
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The model ended its reply.
     */
    DOPPLER_FINISH_REASON_END_TOKEN = 0,
    /**
     * A stop string was met.
     */
    DOPPLER_FINISH_REASON_STOP_STRING = 1,
    /**
     * `max_tokens` were generated.
     */
    DOPPLER_FINISH_REASON_MAX_TOKENS = 2,
    /**
     * The context is full.
     */
    DOPPLER_FINISH_REASON_CONTEXT_FULL = 3,
    /**
     * The callback asked for it.
     */
    DOPPLER_FINISH_REASON_CALLBACK = 4,
    /**
     * doppler_session_cancel() was called, or the session destroyed.
     */
    DOPPLER_FINISH_REASON_CANCELLED = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_finish_reason doppler_finish_reason;
#else
typedef uint32_t doppler_finish_reason;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a part of a reply is. Marks of the model's family tell: those that are tokens of its vocabulary or stand in its chat template.
 */
enum doppler_segment_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * For the reader.
     */
    DOPPLER_SEGMENT_KIND_CONTENT = 0,
    /**
     * What the model thinks before it answers.
     */
    DOPPLER_SEGMENT_KIND_REASONING = 1,
    /**
     * A call of a tool, in the form of the model's family; control tokens within it show.
     */
    DOPPLER_SEGMENT_KIND_TOOL_CALL = 2,
    /**
     * A mark that begins or ends another part, such as "<think>". Marks that are control tokens have no text.
     */
    DOPPLER_SEGMENT_KIND_MARKER = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_segment_kind doppler_segment_kind;
#else
typedef uint32_t doppler_segment_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What decides between continuations.
 */
enum doppler_ranking
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The likelihood of the whole continuation: the longer it is, the less likely.
     */
    DOPPLER_RANKING_SUM = 0,
    /**
     * The likelihood by token, for continuations of different lengths.
     */
    DOPPLER_RANKING_MEAN = 1,
    /**
     * The likelihood of the first token.
     */
    DOPPLER_RANKING_FIRST = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_ranking doppler_ranking;
#else
typedef uint32_t doppler_ranking;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How the rows of a text become one.
 */
enum doppler_pooling
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * As the model's file says; the mean where it says nothing.
     */
    DOPPLER_POOLING_MODEL = 0,
    /**
     * They do not: a row for each token.
     */
    DOPPLER_POOLING_NONE = 1,
    /**
     * Their mean.
     */
    DOPPLER_POOLING_MEAN = 2,
    /**
     * The first token's row.
     */
    DOPPLER_POOLING_CLS = 3,
    /**
     * The last token's row.
     */
    DOPPLER_POOLING_LAST = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum doppler_pooling doppler_pooling;
#else
typedef uint32_t doppler_pooling;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * An open device. Models are loaded into it and keep it alive, so it may be destroyed before them.
 */
typedef struct doppler_context doppler_context;

/**
 * A LoRA adapter, loaded for one model. Sessions that use it keep it alive, and it keeps its model, so handles may be destroyed in any order.
 */
typedef struct doppler_lora doppler_lora;

/**
 * A loaded model. Sessions keep it alive, so it may be destroyed before them.
 */
typedef struct doppler_model doppler_model;

/**
 * A conversation with a model: a sequence of tokens and its place in the attention cache.
 */
typedef struct doppler_session doppler_session;

/**
 * What is known of an adapter. Set `struct_size` before the call.
 */
typedef struct doppler_adapter_info {
    /**
     * sizeof(doppler_adapter_info)
     */
    size_t struct_size;
    /**
     * Name, as the driver gives it; NUL-terminated UTF-8.
     */
    char name[256];
    /**
     * Driver name and version; NUL-terminated UTF-8.
     */
    char driver[256];
    /**
     * "vulkan", "metal" or "dx12"; NUL-terminated.
     */
    char backend[16];
    /**
     * A doppler_adapter_kind.
     */
    uint32_t kind;
    /**
     * PCI vendor id.
     */
    uint32_t vendor;
    /**
     * PCI device id.
     */
    uint32_t device;
    /**
     * Smallest subgroup that a shader can meet.
     */
    uint32_t subgroup_min;
    /**
     * Largest subgroup that a shader can meet.
     */
    uint32_t subgroup_max;
    /**
     * 1 with subgroup operations (of a context: if they are used).
     */
    uint32_t subgroups;
    /**
     * 1 with f16 arithmetic in shaders (of a context: if it is used).
     */
    uint32_t f16;
    /**
     * 1 with immediate data (of a context: if it is used).
     */
    uint32_t immediates;
    /**
     * 1 with timestamp queries (of a context: if they are allowed).
     */
    uint32_t timestamps;
    /**
     * 1 if the driver can keep compiled pipelines (of a context: if that is used).
     */
    uint32_t pipeline_cache;
    /**
     * Largest range that one storage binding can cover, in bytes.
     */
    uint64_t max_binding_bytes;
    /**
     * Largest buffer, in bytes.
     */
    uint64_t max_buffer_bytes;
    /**
     * 1 with cooperative matrices of the shape that the library uses (of a context: if they are used).
     */
    uint32_t cooperative_matrix;
    /**
     * 1 if it is known to start workgroups in the order of their indices, so that one dispatch may hold several operations (of a context: if that is
     * used). The environment variable DOPPLER_CHAINS, 1 or 0, says so of devices for which it is not known.
     */
    uint32_t chains;
} doppler_adapter_info;

/**
 * Upper limits for one submit and what belongs to it. UINT64_MAX: no limit. This structure stands inside others, so it does not grow.
 */
typedef struct doppler_budget {
    /**
     * Submits. Production: 1.
     */
    uint64_t submits;
    /**
     * Required readbacks (not debug, not profile). Production: 1.
     */
    uint64_t readbacks;
    /**
     * Bytes read back for each token drawn. Production: 16.
     */
    uint64_t readback_bytes_per_token;
    /**
     * Buffers created. Production: 0.
     */
    uint64_t buffers;
    /**
     * Bind groups created. Production: 0.
     */
    uint64_t bind_groups;
    /**
     * Pipelines created. Production: 0.
     */
    uint64_t pipelines;
} doppler_budget;

/**
 * A guard: a mode and two budgets. Fill it with doppler_guard_init().
 */
typedef struct doppler_guard {
    /**
     * Set by doppler_guard_init().
     */
    size_t struct_size;
    /**
     * A doppler_guard_mode, but not INHERIT.
     */
    uint32_t mode;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * For each submit of decoding.
     */
    struct doppler_budget decode;
    /**
     * For each submit of a prompt; a chunk from which no token is drawn reads nothing back.
     */
    struct doppler_budget prefill;
} doppler_guard;

/**
 * How conversations are rendered. Fill it with doppler_chat_options_init(). The texts are only read during the call.
 */
typedef struct doppler_chat_options {
    /**
     * Set by doppler_chat_options_init().
     */
    size_t struct_size;
    /**
     * NULL (default): the model's own template. Otherwise a name, or a Jinja template itself; NUL-terminated UTF-8. Names are those of further
     * templates of the model's file, and of the built-in ones: "chatml", "llama2", "llama3", "gemma", "mistral", "mistral-v7", "phi3", "phi4", "zephyr",
     * "vicuna", "alpaca", "deepseek", "command-r", "granite", "glm4".
     */
    const char *chat_template;
    /**
     * Tools that the model may call: a JSON array, in the form that the template expects (mostly that of OpenAI); NULL: none. NUL-terminated UTF-8.
     */
    const char *tools;
    /**
     * Values for the template's own switches: a JSON object such as {"enable_thinking": false}; NULL: none. NUL-terminated UTF-8.
     */
    const char *variables;
} doppler_chat_options;

/**
 * How to open a context. Fill it with doppler_context_options_init().
 */
typedef struct doppler_context_options {
    /**
     * Set by doppler_context_options_init().
     */
    size_t struct_size;
    /**
     * Part of the adapter's name, case does not matter; NUL-terminated UTF-8, read during the call. NULL: any.
     */
    const char *adapter_name;
    /**
     * Number of the adapter, see doppler_adapter_get_info(); wins over the name. DOPPLER_NONE: not by number.
     * Where neither number nor name is given, the environment variable DOPPLER_ADAPTER may give one.
     */
    uint32_t adapter_index;
    /**
     * A doppler_power_preference among the adapters that are left.
     */
    uint32_t power_preference;
    /**
     * Not 0: accept an adapter that computes on the CPU. Default 0.
     */
    uint32_t allow_software;
    /**
     * Not 0: use no subgroup operations.
     */
    uint32_t disable_subgroups;
    /**
     * Not 0: use no f16 types in shaders.
     */
    uint32_t disable_f16;
    /**
     * Not 0: use no immediate data.
     */
    uint32_t disable_immediates;
    /**
     * Not 0: use no timestamp queries.
     */
    uint32_t disable_timestamps;
    /**
     * Not 0: keep no compiled pipelines in the driver's cache object.
     */
    uint32_t disable_pipeline_cache;
    /**
     * Most bytes on the device, weights and attention cache included; what would exceed it fails with DOPPLER_STATUS_OUT_OF_MEMORY before
     * anything is allocated. 0: no limit.
     */
    uint64_t memory_budget;
    /**
     * Not 0: take the GPU time of every pass, where the adapter has timestamp queries. Costs a readback every few hundred passes.
     */
    uint32_t gpu_timing;
    /**
     * A doppler_guard_mode with the production budgets; doppler_context_set_guard() sets others. Default OFF.
     */
    uint32_t guard_mode;
    /**
     * Folder in which the device's width, and where the driver can compiled pipelines, are kept from one process to the next; it is made if it does
     * not exist. NUL-terminated UTF-8, read during the call. NULL: they are not kept.
     */
    const char *cache_dir;
    /**
     * Not 0: use no cooperative matrices.
     */
    uint32_t disable_cooperative_matrix;
    /**
     * Not 0: put no operations together in one dispatch whose workgroups wait for each other.
     */
    uint32_t disable_chains;
    /**
     * Workgroups of 256 threads that the device is taken to run at once, 1 to 256, by which work is divided: so results are the same on devices of
     * different widths. Rounded up to a power of two. 0 (default): as measured, which is kept in `cache_dir` (the first time takes some ten
     * milliseconds), or without one a guess by the kind of device.
     */
    uint32_t device_width;
    /**
     * 0.
     */
    uint32_t reserved;
} doppler_context_options;

/**
 * The cost of one phase. This structure stands in arrays, so it does not grow: `reserved` is for what is added.
 */
typedef struct doppler_phase_stats {
    /**
     * Calls of the queue's submit.
     */
    uint64_t submits;
    /**
     * Dispatches recorded.
     */
    uint64_t dispatches;
    /**
     * Compute passes recorded.
     */
    uint64_t passes;
    /**
     * Buffers created.
     */
    uint64_t buffers_created;
    /**
     * Bytes of those buffers.
     */
    uint64_t buffer_bytes;
    /**
     * Bind groups created.
     */
    uint64_t bind_groups;
    /**
     * Pipelines created (compiled, or taken from the driver's cache).
     */
    uint64_t pipelines;
    /**
     * CPU time of creating them, nanoseconds.
     */
    uint64_t pipeline_ns;
    /**
     * Writes of host data into buffers.
     */
    uint64_t uploads;
    /**
     * Bytes of those writes.
     */
    uint64_t upload_bytes;
    /**
     * Readbacks, by doppler_readback_class; the last one is reserved and 0.
     */
    uint64_t readbacks[8];
    /**
     * Bytes read back, by doppler_readback_class; the last one is reserved and 0.
     */
    uint64_t readback_bytes[8];
    /**
     * CPU time inside submit calls, nanoseconds.
     */
    uint64_t submit_cpu_ns;
    /**
     * Longest single submit call, nanoseconds.
     */
    uint64_t submit_cpu_max_ns;
    /**
     * CPU time of recording commands, nanoseconds.
     */
    uint64_t record_cpu_ns;
    /**
     * GPU time, nanoseconds; see `gpu_time_source` of the structure around this one.
     */
    uint64_t gpu_ns;
    /**
     * 0.
     */
    uint64_t reserved[6];
} doppler_phase_stats;

/**
 * Readbacks of one place, all phases together. It stands in arrays, so it does not grow.
 */
typedef struct doppler_place_stats {
    /**
     * Readbacks done.
     */
    uint64_t readbacks;
    /**
     * Their bytes.
     */
    uint64_t bytes;
    /**
     * Readbacks that a guard refused.
     */
    uint64_t refused;
} doppler_place_stats;

/**
 * What a context has done and holds. Set `struct_size` before the call.
 */
typedef struct doppler_context_stats {
    /**
     * sizeof(doppler_context_stats)
     */
    size_t struct_size;
    /**
     * Everything done on the device since the context was created or its statistics reset, by doppler_phase.
     */
    struct doppler_phase_stats phases[4];
    /**
     * CPU times of submit calls: entry i counts calls of 2^i to 2^(i+1) nanoseconds.
     */
    uint64_t submit_histogram[32];
    /**
     * Device memory now, in bytes, by doppler_memory_class; the last two are reserved and 0.
     */
    uint64_t memory[8];
    /**
     * All classes together, in bytes.
     */
    uint64_t memory_total;
    /**
     * Highest total so far, in bytes.
     */
    uint64_t memory_peak;
    /**
     * Buffers that exist now.
     */
    uint64_t live_buffers;
    /**
     * Pipelines held by the pipeline cache.
     */
    uint64_t cached_pipelines;
    /**
     * Shader modules held by it.
     */
    uint64_t cached_modules;
    /**
     * Requests that it answered.
     */
    uint64_t pipeline_hits;
    /**
     * Requests that had to compile.
     */
    uint64_t pipeline_misses;
    /**
     * CPU time of compiling, nanoseconds.
     */
    uint64_t compile_ns;
    /**
     * Transient buffers on loan.
     */
    uint64_t pool_leased;
    /**
     * Transient buffers waiting for reuse.
     */
    uint64_t pool_idle;
    /**
     * Bytes of those.
     */
    uint64_t pool_idle_bytes;
    /**
     * Requests for a transient buffer answered with an old one.
     */
    uint64_t pool_reuses;
    /**
     * Requests that made a new one.
     */
    uint64_t pool_misses;
    /**
     * A doppler_gpu_time_source.
     */
    uint32_t gpu_time_source;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * Readbacks by doppler_place; the last two are reserved and 0.
     */
    struct doppler_place_stats places[12];
    /**
     * Most bytes there may be on the device; 0: no limit.
     */
    uint64_t memory_budget;
    /**
     * Bind-group layouts held by the pipeline cache.
     */
    uint64_t cached_group_layouts;
    /**
     * Pipeline layouts held by it.
     */
    uint64_t cached_pipeline_layouts;
    /**
     * Bytes of compiled pipelines that an earlier process left in `cache_dir`.
     */
    uint64_t cache_file_bytes;
    /**
     * 1 if a file was there but was damaged or made for something else.
     */
    uint64_t cache_file_rejected;
    /**
     * Bytes of the transient buffers on loan.
     */
    uint64_t pool_leased_bytes;
    /**
     * Most bytes ever on loan.
     */
    uint64_t pool_peak_leased_bytes;
    /**
     * Bytes asked for by the leases there are; the rest of `pool_leased_bytes` is slack.
     */
    uint64_t pool_requested_bytes;
    /**
     * Idle transient buffers freed.
     */
    uint64_t pool_trimmed;
    /**
     * Passes that were not timed because too many waited to be read.
     */
    uint64_t gpu_times_dropped;
} doppler_context_stats;

/**
 * How to embed. Fill it with doppler_embed_options_init().
 */
typedef struct doppler_embed_options {
    /**
     * Set by doppler_embed_options_init().
     */
    size_t struct_size;
    /**
     * A doppler_pooling. Default MODEL.
     */
    uint32_t pooling;
    /**
     * Not 0: rows get length 1 (L2). Default 1.
     */
    uint32_t normalize;
    /**
     * Not 0: the text of control tokens becomes those tokens. Default 0.
     */
    uint32_t parse_special;
    /**
     * 0.
     */
    uint32_t reserved;
} doppler_embed_options;

/**
 * Added to the logit of one token.
 */
typedef struct doppler_logit_bias {
    /**
     * The token.
     */
    uint32_t token;
    /**
     * Finite, or -INFINITY to forbid the token.
     */
    float bias;
} doppler_logit_bias;

/**
 * How to generate. Fill it with doppler_generate_options_init(). What it points to is only read during the call.
 */
typedef struct doppler_generate_options {
    /**
     * Set by doppler_generate_options_init().
     */
    size_t struct_size;
    /**
     * Tokens to generate, at most. 0 (default): as many as the context holds.
     */
    uint32_t max_tokens;
    /**
     * Divides the logits before the draw, 0 to 100. 0 takes the most likely token every time. Default 0.8.
     */
    float temperature;
    /**
     * Keeps the most likely tokens, this many. 0: all. Default 40.
     */
    uint32_t top_k;
    /**
     * Keeps the shortest list of most likely tokens that has this share of the probability, 0 to 1. 1: all. Default 0.95.
     */
    float top_p;
    /**
     * Drops tokens less likely than this share of the most likely one, 0 to 1. 0: none. Default 0.05.
     */
    float min_p;
    /**
     * Divides the positive logits of recent tokens, multiplies the negative ones, 0.01 to 100. Default 1: off.
     */
    float repeat_penalty;
    /**
     * Subtracted from a logit for each recent occurrence of its token, -100 to 100. Default 0.
     */
    float frequency_penalty;
    /**
     * Subtracted from the logit of a token that occurred recently, -100 to 100. Default 0.
     */
    float presence_penalty;
    /**
     * How many of the newest tokens, prompt included, are "recent". 0: no penalties. Default 64.
     */
    uint32_t penalty_last_n;
    /**
     * Not 0: do not stop at tokens that end a reply.
     */
    uint32_t ignore_eos;
    /**
     * The same seed gives the same text. Default 0.
     */
    uint64_t seed;
    /**
     * Entries for single tokens, each token at most once; may be NULL if `n_logit_bias` is 0.
     */
    const struct doppler_logit_bias *logit_bias;
    /**
     * How many, at most 256.
     */
    size_t n_logit_bias;
    /**
     * Texts that end the generation and do not appear in it, NUL-terminated UTF-8; may be NULL if `n_stop` is 0.
     */
    const char *const *stop;
    /**
     * How many.
     */
    size_t n_stop;
    /**
     * Not 0: show control tokens in the text.
     */
    uint32_t render_special;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * Tokens that end the generation like the model's own, which they do with `ignore_eos` too; may be NULL if `n_end_tokens` is 0.
     */
    const uint32_t *end_tokens;
    /**
     * How many; with the model's own 64 at most.
     */
    size_t n_end_tokens;
} doppler_generate_options;

/**
 * Text as it arrives. Valid during the callback. New fields are added at the end.
 */
typedef struct doppler_token_event {
    /**
     * sizeof(doppler_token_event) of the library.
     */
    size_t struct_size;
    /**
     * Text that became certain with this token: whole UTF-8 characters, possibly none, NUL-terminated. Never part of a stop string.
     * The texts of all events, joined, are the reply.
     */
    const char *text;
    /**
     * Its length in bytes, without the NUL.
     */
    size_t text_bytes;
    /**
     * The token; DOPPLER_NONE in an event that only brings more text: of another kind than the event before it, or held back until the
     * end.
     */
    uint32_t token;
    /**
     * The event's place in this generation, from 0.
     */
    uint32_t index;
    /**
     * What the text is: a doppler_segment_kind.
     */
    uint32_t kind;
    /**
     * 0.
     */
    uint32_t reserved;
} doppler_token_event;

/**
 * Hears each token of a generation, on the thread that generates. Not 0 ends the generation (reason CALLBACK); the token it was called for
 * stays in the session. Calls into the same session answer DOPPLER_STATUS_INVALID_STATE, except doppler_session_cancel() and
 * doppler_session_destroy(). It must return: no exception and no longjmp may leave it.
 */
typedef int (*doppler_token_callback)(void *user, const struct doppler_token_event *event);

/**
 * How a generation went. Set `struct_size` before the call.
 */
typedef struct doppler_generate_result {
    /**
     * sizeof(doppler_generate_result)
     */
    size_t struct_size;
    /**
     * A doppler_finish_reason.
     */
    uint32_t reason;
    /**
     * Which stop string was met, by its place in the options; else DOPPLER_NONE.
     */
    uint32_t stop_string;
    /**
     * Tokens generated, an end token included.
     */
    uint32_t n_tokens;
    /**
     * Prompt tokens that had to be evaluated first.
     */
    uint32_t prefill_tokens;
    /**
     * Wall time of evaluating them, nanoseconds.
     */
    uint64_t prefill_ns;
    /**
     * Wall time from the start of the call to the first token, nanoseconds.
     */
    uint64_t first_token_ns;
    /**
     * Tokens that came after the first one.
     */
    uint64_t decode_tokens;
    /**
     * Wall time of decoding them, without the callbacks, nanoseconds.
     */
    uint64_t decode_ns;
    /**
     * Wall time of the call, callbacks included, nanoseconds.
     */
    uint64_t total_ns;
} doppler_generate_result;

/**
 * Hears each token of several generations, on the thread that generates; `session` is the place of its session in the call. Not 0 ends that
 * session's generation (reason CALLBACK); else as doppler_token_callback.
 */
typedef int (*doppler_many_token_callback)(void *user, size_t session, const struct doppler_token_event *event);

/**
 * What an adapter is. Set `struct_size` before the call.
 */
typedef struct doppler_lora_info {
    /**
     * sizeof(doppler_lora_info)
     */
    size_t struct_size;
    /**
     * Its name, NUL-terminated, cut to fit; may be empty.
     */
    char name[128];
    /**
     * Bytes on the device.
     */
    uint64_t bytes;
    /**
     * Tensors of the model that it changes.
     */
    uint32_t n_tensors;
    /**
     * The highest rank among them.
     */
    uint32_t rank;
} doppler_lora_info;

/**
 * Hears how loading goes on: bytes done, and bytes in all. Called on the thread that loads. Not 0 ends the load.
 * It must return: no exception and no longjmp may leave it.
 */
typedef int (*doppler_progress_callback)(void *user, uint64_t done_bytes, uint64_t total_bytes);

/**
 * How to load a model. Fill it with doppler_model_options_init().
 */
typedef struct doppler_model_options {
    /**
     * Set by doppler_model_options_init().
     */
    size_t struct_size;
    /**
     * Longest context of a session, in tokens. 0: the length the model was trained with, at most 4096.
     */
    uint32_t n_ctx;
    /**
     * Prompt tokens evaluated in one submit. 0: as many as suit the device, 256 to 2048.
     */
    uint32_t prefill_chunk;
    /**
     * A doppler_kv_type. Default F16.
     */
    uint32_t kv_type;
    /**
     * Not 0: compile the pipelines of decoding while loading, so that the first token compiles nothing. Default 1.
     */
    uint32_t prewarm;
    /**
     * Hears the progress; may be NULL.
     */
    doppler_progress_callback on_progress;
    /**
     * Handed to `on_progress`.
     */
    void *progress_user;
    /**
     * Not 0: products in f32 alone. Default 0: where the device is faster so, decoding rounds the activations of quantised weights to signed
     * bytes, 32 with a scale, and those of weights in f16 or bf16 to 16 bits of mantissa; prompts take matrix units, which round operands to f16 (a
     * row with a power of two of its own).
     */
    uint32_t exact;
    /**
     * A doppler_weight_format: what the weights of a folder of safetensors become while they are loaded. Default AS_STORED, the only one for
     * GGUF files.
     */
    uint32_t quantize;
} doppler_model_options;

/**
 * What a model is. Set `struct_size` before the call.
 */
typedef struct doppler_model_info {
    /**
     * sizeof(doppler_model_info)
     */
    size_t struct_size;
    /**
     * Name, or empty; NUL-terminated UTF-8.
     */
    char name[256];
    /**
     * Architecture, such as "llama"; NUL-terminated UTF-8.
     */
    char architecture[64];
    /**
     * Weight format of most bytes, such as "Q8_0"; NUL-terminated UTF-8.
     */
    char format[32];
    /**
     * Weights of all matrices.
     */
    uint64_t parameters;
    /**
     * Bytes of weights in the file.
     */
    uint64_t file_bytes;
    /**
     * Layers.
     */
    uint32_t n_layer;
    /**
     * Width of the residual stream.
     */
    uint32_t n_embd;
    /**
     * Tokens in the vocabulary: logits have this many entries, token ids are below it.
     */
    uint32_t n_vocab;
    /**
     * Longest context of a session, in tokens, as loaded.
     */
    uint32_t n_ctx;
    /**
     * Context that the model was trained with, in tokens.
     */
    uint32_t n_ctx_train;
    /**
     * A doppler_kv_type.
     */
    uint32_t kv_type;
    /**
     * 1 if the file has a chat template.
     */
    uint32_t has_chat_template;
    /**
     * The token that begins a text, or DOPPLER_NONE.
     */
    uint32_t bos_token;
    /**
     * The token that the file names as the end, or DOPPLER_NONE. There may be more: doppler_model_is_end_of_generation().
     */
    uint32_t eos_token;
    /**
     * 1 if tokenizing with `add_special` puts the BOS token in front.
     */
    uint32_t adds_bos;
} doppler_model_info;

/**
 * One message of a conversation. Both texts are NUL-terminated UTF-8 and are only read during the call.
 */
typedef struct doppler_message {
    /**
     * Who speaks: "system", "user", "assistant", or what else the model's template knows.
     */
    const char *role;
    /**
     * What is said.
     */
    const char *content;
} doppler_message;

/**
 * What the attention cache of the layers with one window holds.
 */
typedef struct doppler_kv_group {
    /**
     * Positions that a token of these layers sees, itself included. 0: all.
     */
    uint32_t window;
    /**
     * Layers.
     */
    uint32_t n_layer;
    /**
     * Blocks that exist.
     */
    uint32_t blocks;
    /**
     * Blocks in use.
     */
    uint32_t used;
    /**
     * Most blocks that were ever in use.
     */
    uint32_t high_water;
    /**
     * Blocks in use that several sessions share.
     */
    uint32_t shared;
    /**
     * Bytes of one block, all layers of the group, keys and values.
     */
    uint64_t block_bytes;
} doppler_kv_group;

/**
 * What loading a model cost, and what its attention cache holds. Set `struct_size` before the call.
 */
typedef struct doppler_model_stats {
    /**
     * sizeof(doppler_model_stats)
     */
    size_t struct_size;
    /**
     * Wall time of loading, nanoseconds.
     */
    uint64_t load_ns;
    /**
     * Bytes of weights in the file.
     */
    uint64_t file_bytes;
    /**
     * Bytes of one block of the attention cache in every group of layers, keys and values: what `kv_block_tokens` tokens take.
     */
    uint64_t kv_block_bytes;
    /**
     * Tokens in a block.
     */
    uint32_t kv_block_tokens;
    /**
     * Blocks that exist, in all groups.
     */
    uint32_t kv_blocks;
    /**
     * Blocks in use.
     */
    uint32_t kv_blocks_used;
    /**
     * Most blocks that were ever in use.
     */
    uint32_t kv_blocks_high_water;
    /**
     * Bytes of all blocks.
     */
    uint64_t kv_bytes;
    /**
     * Bytes of the blocks in use.
     */
    uint64_t kv_used_bytes;
    /**
     * Blocks copied because a session wrote to one that it shared.
     */
    uint64_t kv_copies;
    /**
     * Blocks in use that several sessions share.
     */
    uint32_t kv_blocks_shared;
    /**
     * Groups of layers: those with the same sliding window keep their tokens together.
     */
    uint32_t kv_n_groups;
    /**
     * The first of them, in the order of their first layers; the rest is zero.
     */
    struct doppler_kv_group kv_groups[DOPPLER_KV_GROUPS];
    /**
     * Recurrent layers: they keep a state of fixed size for a session instead of something for each token.
     */
    uint32_t n_recurrent_layer;
    /**
     * States that exist; one is that of all recurrent layers after some token of a session, which has a few of them.
     */
    uint32_t states;
    /**
     * States in use.
     */
    uint32_t states_used;
    /**
     * Most states that were ever in use.
     */
    uint32_t states_high_water;
    /**
     * Bytes of one state.
     */
    uint64_t state_bytes;
    /**
     * Bytes of all states.
     */
    uint64_t states_bytes;
    /**
     * Of the time of loading: opening the file and measuring what it holds.
     */
    uint64_t load_open_ns;
    /**
     * Of the time of loading: the weights' way to the device. What follows happens beside it.
     */
    uint64_t load_weights_ns;
    /**
     * Indexing the vocabulary.
     */
    uint64_t load_vocabulary_ns;
    /**
     * Compiling pipelines and preparing the first prompt.
     */
    uint64_t load_prewarm_ns;
    /**
     * Reading the file and repacking weights: CPU time of all threads together.
     */
    uint64_t load_repack_ns;
} doppler_model_stats;

/**
 * What to look at. Fill it with doppler_probe_options_init().
 */
typedef struct doppler_probe_options {
    /**
     * Set by doppler_probe_options_init().
     */
    size_t struct_size;
    /**
     * Names of the points, NUL-terminated: "embed", "attn.norm", "attn.qkv", "attn.q", "kv.table", "mix.in", "mix.conv", "mix.scan",
     * "attn.heads", "attn.residual", "ffn.norm", "moe.router", "moe.weights", "ffn.inner", "ffn.residual", "output.norm", "logits", "sample.picked", "stop.state". Read during the call.
     */
    const char *const *points;
    /**
     * How many; 0: all.
     */
    size_t n_points;
    /**
     * First layer. Default 0.
     */
    uint32_t first_layer;
    /**
     * Last layer; DOPPLER_NONE: the model's last. Default DOPPLER_NONE.
     */
    uint32_t last_layer;
    /**
     * Magnitude beyond which a finite element counts as bad. Default: the largest float.
     */
    float limit;
    /**
     * Not 0: calls end with DOPPLER_STATUS_NOT_FINITE at the first tensor with a bad element.
     */
    uint32_t require_finite;
} doppler_probe_options;

/**
 * What a probe saw: one tensor of one submit. It stands in arrays, so it does not grow: `reserved` is for what is added.
 */
typedef struct doppler_probe_reading {
    /**
     * Where; NUL-terminated.
     */
    char point[32];
    /**
     * The layer, or DOPPLER_NONE.
     */
    uint32_t layer;
    /**
     * Position of the first row in the session.
     */
    uint32_t position;
    /**
     * Rows (tokens).
     */
    uint32_t rows;
    /**
     * Columns.
     */
    uint32_t cols;
    /**
     * 1 if the tensor holds floats and has statistics; 0 if it holds words: then only `words` is filled in.
     */
    uint32_t has_stats;
    /**
     * NaN in it.
     */
    uint32_t nan;
    /**
     * Infinities in it.
     */
    uint32_t inf;
    /**
     * Finite elements beyond the limit.
     */
    uint32_t over;
    /**
     * Number, by row and column, of the first element that is not finite or beyond the limit; DOPPLER_NONE: there is none.
     */
    uint32_t first_bad;
    /**
     * Smallest finite element.
     */
    float min;
    /**
     * Largest finite element.
     */
    float max;
    /**
     * Entries of `words` in use.
     */
    uint32_t n_words;
    /**
     * Mean of the finite elements.
     */
    double mean;
    /**
     * Root of their mean square.
     */
    double rms;
    /**
     * The first values of the first row, as bits: floats where `has_stats` is 1.
     */
    uint32_t words[8];
    /**
     * 0.
     */
    uint64_t reserved[2];
} doppler_probe_reading;

/**
 * The submits made under one label in one phase. Times are CPU times of the submit calls, in nanoseconds. It stands in arrays, so it does not
 * grow: `reserved` is for what is added.
 */
typedef struct doppler_submit_stats {
    /**
     * What the submits were for, such as "decode"; NUL-terminated.
     */
    char label[32];
    /**
     * A doppler_phase.
     */
    uint32_t phase;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * How many.
     */
    uint64_t submits;
    /**
     * Dispatches in them.
     */
    uint64_t dispatches;
    /**
     * All calls together.
     */
    uint64_t total_ns;
    /**
     * Shortest call.
     */
    uint64_t min_ns;
    /**
     * Longest call.
     */
    uint64_t max_ns;
    /**
     * 0.
     */
    uint64_t reserved2[2];
} doppler_submit_stats;

/**
 * The transient buffers borrowed under one label. It stands in arrays, so it does not grow: `reserved` is for what is added.
 */
typedef struct doppler_pool_stats {
    /**
     * What they were for, such as "readback"; NUL-terminated.
     */
    char label[32];
    /**
     * On loan now. While no call runs, anything but 0 is a leak.
     */
    uint64_t leased;
    /**
     * Bytes of those.
     */
    uint64_t leased_bytes;
    /**
     * Requests so far.
     */
    uint64_t requests;
    /**
     * 0.
     */
    uint64_t reserved[2];
} doppler_pool_stats;

/**
 * What drawing more tokens in one submit would have saved.
 */
typedef struct doppler_batching_saving {
    /**
     * Submits that would not have been made.
     */
    uint64_t submits;
    /**
     * CPU time that submitting them took, nanoseconds. Recording and waiting come on top.
     */
    uint64_t submit_cpu_ns;
} doppler_batching_saving;

/**
 * What doppler_context_purge_caches() freed.
 */
typedef struct doppler_purged {
    /**
     * Compiled pipelines.
     */
    uint64_t pipelines;
    /**
     * Shader modules.
     */
    uint64_t modules;
    /**
     * Bind-group layouts.
     */
    uint64_t group_layouts;
    /**
     * Pipeline layouts.
     */
    uint64_t pipeline_layouts;
    /**
     * Bytes of idle transient buffers.
     */
    uint64_t pool_bytes;
} doppler_purged;

/**
 * How complete a profile is.
 */
typedef struct doppler_profile_info {
    /**
     * A doppler_gpu_time_source; a profile exists only with timestamps.
     */
    uint32_t gpu_time_source;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * Dispatches that found no free query: they are in no sum.
     */
    uint64_t dropped;
    /**
     * Dispatches that were measured wrongly (ends before it starts, over a minute): in no sum.
     */
    uint64_t invalid;
    /**
     * Dispatches that are in the sums but not in the trace.
     */
    uint64_t untraced;
} doppler_profile_info;

/**
 * GPU times of one operation. It stands in arrays, so it does not grow: `reserved` is for what is added.
 */
typedef struct doppler_profile_row {
    /**
     * The operation, such as "attn.qkv"; NUL-terminated.
     */
    char label[32];
    /**
     * A doppler_phase.
     */
    uint32_t phase;
    /**
     * The layer, or DOPPLER_NONE outside the layers.
     */
    uint32_t layer;
    /**
     * Dispatches.
     */
    uint64_t count;
    /**
     * All together, nanoseconds by timestamp queries.
     */
    uint64_t total_ns;
    /**
     * Shortest.
     */
    uint64_t min_ns;
    /**
     * Longest.
     */
    uint64_t max_ns;
    /**
     * 0.
     */
    uint64_t reserved[2];
} doppler_profile_row;

/**
 * How to choose. Fill it with doppler_choose_options_init().
 */
typedef struct doppler_choose_options {
    /**
     * Set by doppler_choose_options_init().
     */
    size_t struct_size;
    /**
     * A doppler_ranking. Default SUM.
     */
    uint32_t ranking;
    /**
     * Not 0: the text of control tokens becomes those tokens. Default 0.
     */
    uint32_t parse_special;
} doppler_choose_options;

/**
 * How likely a continuation is, in natural logarithms. It stands in arrays, so it does not grow.
 */
typedef struct doppler_score {
    /**
     * ln p of the whole continuation: the sum over its tokens. -INFINITY for what the model excludes.
     */
    double log_likelihood;
    /**
     * The same, divided by the number of tokens.
     */
    double mean;
    /**
     * ln p of the first token.
     */
    double first;
    /**
     * Tokens of the continuation.
     */
    uint32_t n_tokens;
    /**
     * 0.
     */
    uint32_t reserved[3];
} doppler_score;

/**
 * How to create a session. Fill it with doppler_session_options_init().
 */
typedef struct doppler_session_options {
    /**
     * Set by doppler_session_options_init().
     */
    size_t struct_size;
    /**
     * Context length in tokens. 0: the model's.
     */
    uint32_t n_ctx;
    /**
     * Tokens drawn in one submit. They arrive together, and a cancel request waits for them. Default 1.
     */
    uint32_t tokens_per_submit;
    /**
     * A doppler_guard_mode. Default INHERIT.
     */
    uint32_t guard_mode;
    /**
     * Microseconds that the tokens of a submit may take, so that they arrive smoothly: as many are drawn as were measured to fit, one to
     * `tokens_per_submit`. 0 (default): always `tokens_per_submit`. The text is the same.
     */
    uint32_t submit_time_us;
    /**
     * Who drafts tokens that the model verifies several at a time: a doppler_drafter. The text is the same with and without. Models with
     * recurrent layers are refused. Default NONE.
     */
    uint32_t drafter;
    /**
     * Tokens drafted at a time, at most 15. 0 (default): 7. One less than a multiple of eight suits: rows are evaluated in eights.
     */
    uint32_t max_draft;
    /**
     * With DOPPLER_DRAFTER_MODEL: a smaller model whose token ids mean the same (the tables may differ by up to 128 rows at their ends). The session
     * keeps it.
     */
    struct doppler_model *draft_model;
    /**
     * With DOPPLER_DRAFTER_LOOKUP: the shortest run of last tokens whose earlier occurrence counts. 0 (default): 2.
     */
    uint32_t ngram_min;
    /**
     * The longest run that is looked for, at most 64. 0 (default): 4.
     */
    uint32_t ngram_max;
    /**
     * Not 0: always `max_draft` tokens. By default fewer are drafted where drafts are wrong, and none for a while where drafting was measured to be
     * slower.
     */
    uint32_t fixed_draft;
    /**
     * 0.
     */
    uint32_t reserved2;
} doppler_session_options;

/**
 * What a session has done since it was created or its statistics reset. Set `struct_size` before the call.
 */
typedef struct doppler_session_stats {
    /**
     * sizeof(doppler_session_stats)
     */
    size_t struct_size;
    /**
     * This session's share of the work, by doppler_phase.
     */
    struct doppler_phase_stats phases[4];
    /**
     * CPU times of its submit calls: entry i counts calls of 2^i to 2^(i+1) nanoseconds.
     */
    uint64_t submit_histogram[32];
    /**
     * Prompt tokens evaluated.
     */
    uint64_t prefill_tokens;
    /**
     * Wall time of evaluating them, nanoseconds.
     */
    uint64_t prefill_ns;
    /**
     * Tokens generated.
     */
    uint64_t generated_tokens;
    /**
     * Those of them that came from decoding (the first of each generation comes with its prompt).
     */
    uint64_t decode_tokens;
    /**
     * Wall time of decoding, nanoseconds.
     */
    uint64_t decode_ns;
    /**
     * Wall time from the start of the latest generation to its first token, nanoseconds.
     */
    uint64_t first_token_ns;
    /**
     * Tokens in the session.
     */
    uint32_t n_tokens;
    /**
     * Those of them that are in the attention cache.
     */
    uint32_t cached_tokens;
    /**
     * Tokens that it can hold.
     */
    uint32_t n_ctx;
    /**
     * A doppler_gpu_time_source.
     */
    uint32_t gpu_time_source;
    /**
     * Readbacks by doppler_place; the last two are reserved and 0.
     */
    struct doppler_place_stats places[12];
    /**
     * Tokens drafted and verified.
     */
    uint64_t drafted_tokens;
    /**
     * Those of them that were accepted.
     */
    uint64_t accepted_tokens;
    /**
     * Submits that verified drafts; each gives one token more than it accepts.
     */
    uint64_t verifications;
    /**
     * Wall time of drafting, a draft model's evaluation of prompts included, nanoseconds.
     */
    uint64_t draft_ns;
    /**
     * Accepted tokens of a verification, on average; 0 where there was none.
     */
    double mean_accepted;
} doppler_session_stats;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the ABI that this library has; `DOPPLER_ABI_VERSION` is the one the header was made for.
 * They must be equal. Threads: any.
 */
DOPPLER_API uint32_t doppler_abi_version(void);

/**
 * The version of this library as text, such as "0.1.0". The text is never freed. Threads: any.
 */
DOPPLER_API const char *doppler_version_string(void);

/**
 * The text of the latest failure on the calling thread (empty if there was none): which file, argument or limit, for people to read.
 * A call that succeeds leaves it as it is.
 *
 * @param buffer    gets the text, NUL-terminated, UTF-8, cut at a character border if it does not fit; may be NULL
 * @param capacity  bytes in `buffer`
 * @return          bytes that the whole text takes, its NUL included
 *
 * Threads: any; each has its own text.
 */
DOPPLER_API
size_t doppler_last_error(char *buffer,
                          size_t capacity);

/**
 * How many adapters this machine has, software ones included. Asks the drivers anew in each call (tens of milliseconds).
 *
 * @param count  gets the number
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_adapter_count(uint32_t *count);

/**
 * What is known of an adapter before it is opened. Asks the drivers anew in each call.
 *
 * @param index  0 .. count - 1, the number that doppler_context_options.adapter_index takes
 * @param info   filled in; set its `struct_size`
 * @return       DOPPLER_STATUS_INVALID_ARGUMENT if there is no such adapter
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_adapter_get_info(uint32_t index, struct doppler_adapter_info *info);

/**
 * Fills a guard from a preset.
 *
 * @param values       filled in
 * @param struct_size  sizeof *values
 * @param preset       a doppler_guard_preset
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_guard_init(struct doppler_guard *values, size_t struct_size, uint32_t preset);

/**
 * Replaces the guard of a context, from now on; sessions with a guard of their own keep theirs.
 *
 * @param new_guard  copied
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_set_guard(struct doppler_context *context,
                                         const struct doppler_guard *new_guard);

/**
 * The guard of a context.
 *
 * @param current  filled in; set its `struct_size`
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_get_guard(const struct doppler_context *context,
                                         struct doppler_guard *current);

/**
 * Gives a session a guard of its own.
 *
 * @param new_guard  copied; NULL: the context's guard, whatever it is at the time
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_set_guard(struct doppler_session *session,
                                         const struct doppler_guard *new_guard);

/**
 * Fills options with their defaults.
 *
 * @param options      filled in
 * @param struct_size  sizeof *options
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_chat_options_init(struct doppler_chat_options *options, size_t struct_size);

/**
 * Renders a conversation with a template, tools and variables of the caller's choice.
 *
 * @param messages               a JSON array of objects with a text as "role" and what else the template knows ("content", "tool_calls", …);
 *                               UTF-8, not NUL-terminated
 * @param messages_bytes         its length
 * @param options                NULL: defaults
 * @param add_generation_prompt  not 0: open the assistant's turn at the end
 * @param buffer                 gets the text, NUL-terminated UTF-8; NULL (with `capacity` 0) to ask for the size
 * @param capacity               bytes that fit
 * @param needed                 gets the bytes of the text, NUL included, also when they do not fit; may be NULL
 * @return                       DOPPLER_STATUS_INVALID_ARGUMENT for what is no such JSON, or an unknown name of a template;
 *                               DOPPLER_STATUS_UNSUPPORTED if there is no template, DOPPLER_STATUS_TEMPLATE if it fails (the error text is the template's
 *                               own message, where it has one), DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written)
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_model_render_chat(const struct doppler_model *model,
                                         const char *messages,
                                         size_t messages_bytes,
                                         const struct doppler_chat_options *options,
                                         uint32_t add_generation_prompt,
                                         char *buffer,
                                         size_t capacity,
                                         size_t *needed);

/**
 * Chooses the template, the tools and the variables that a session's conversation is rendered with, from the next message on. What the session
 * holds already stays; the next rendering keeps as much of it as is the same. Forks take the choice over, snapshots do not hold it.
 *
 * @param options  NULL: the model's own template, no tools, no variables
 * @return         as doppler_model_render_chat(); the choice is then as before
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_set_chat_options(struct doppler_session *session,
                                                const struct doppler_chat_options *options);

/**
 * As doppler_session_append_messages(), with messages as JSON: they may have more than a text, such as the results of tools.
 *
 * @param messages               a JSON array of objects with a text as "role" and what else the template knows ("content", "tool_calls", …);
 *                               UTF-8, not NUL-terminated
 * @param messages_bytes         its length
 * @param add_generation_prompt  not 0: open the assistant's turn, as is wanted before doppler_session_generate()
 * @param n_added                gets the number of tokens that are new; may be NULL
 * @return                       DOPPLER_STATUS_INVALID_ARGUMENT for what is no such JSON; else as doppler_session_append_messages()
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_append_messages_json(struct doppler_session *session,
                                                    const char *messages,
                                                    size_t messages_bytes,
                                                    uint32_t add_generation_prompt,
                                                    uint32_t *n_added);

/**
 * Fills options with their defaults.
 *
 * @param options      filled in
 * @param struct_size  sizeof *options
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_context_options_init(struct doppler_context_options *options, size_t struct_size);

/**
 * Opens a device.
 *
 * @param options  NULL: defaults
 * @param context  gets the handle; end it with doppler_context_destroy()
 * @return         DOPPLER_STATUS_NO_ADAPTER if no adapter fits the options, DOPPLER_STATUS_GPU if the driver refuses the device
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_create(const struct doppler_context_options *options,
                                      struct doppler_context **context);

/**
 * Ends a context handle. Models and sessions made from it go on working; the device is closed with the last of them.
 *
 * @param context  NULL is allowed; a handle that was destroyed already gets DOPPLER_STATUS_BAD_HANDLE
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_context_destroy(struct doppler_context *context);

/**
 * The adapter in use, and which of its abilities are used.
 *
 * @param info  filled in; set its `struct_size`
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_get_adapter_info(const struct doppler_context *context,
                                                struct doppler_adapter_info *info);

/**
 * Counters, memory and caches of a context. With `gpu_timing` this reads times back from the device.
 *
 * @param stats  filled in; set its `struct_size`
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_get_stats(const struct doppler_context *context,
                                         struct doppler_context_stats *stats);

/**
 * Sets `phases`, `places`, `submit_histogram` and the submits by label of a context to zero; memory and caches are what they are.
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_reset_stats(struct doppler_context *context);

/**
 * Fills options with their defaults.
 *
 * @param options      filled in
 * @param struct_size  sizeof *options
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_embed_options_init(struct doppler_embed_options *options, size_t struct_size);

/**
 * The embeddings of texts: their final hidden states, pooled on the device. Texts that are short are evaluated together. No session is needed, and none
 * changes. The rows have `n_embd` numbers (doppler_model_get_info()): one row a text, without pooling one row for each token of each text.
 *
 * @param texts       NUL-terminated UTF-8, tokenized with BOS and EOS where the model's file says so
 * @param n_texts     how many
 * @param options     NULL: defaults
 * @param n_tokens    gets the tokens of each text, `n_texts` numbers; may be NULL
 * @param embeddings  gets the rows; NULL (with `capacity` 0) to ask for the size, which evaluates nothing
 * @param capacity    numbers that fit
 * @param needed      gets how many numbers there are, also when they do not fit; may be NULL
 * @return            DOPPLER_STATUS_BUFFER_TOO_SMALL (found before anything is evaluated), DOPPLER_STATUS_UNSUPPORTED if the file asks for a pooling that is not
 *                    here (ranking), DOPPLER_STATUS_INVALID_ARGUMENT or DOPPLER_STATUS_CONTEXT_FULL naming the text, DOPPLER_STATUS_GUARD
 *
 * Threads: any; the call takes turns with the model's sessions.
 */
DOPPLER_API
doppler_status doppler_model_embed(struct doppler_model *model,
                                   const char *const *texts,
                                   size_t n_texts,
                                   const struct doppler_embed_options *options,
                                   uint32_t *n_tokens,
                                   float *embeddings,
                                   size_t capacity,
                                   size_t *needed);

/**
 * As doppler_model_embed(), for token ids as they are.
 *
 * @param tokens      the tokens of all texts, one after the other
 * @param lengths     how many of them each text has, 1 at least
 * @param n_texts     how many texts
 * @param options     NULL: defaults; `parse_special` means nothing here
 * @param embeddings  gets the rows; NULL (with `capacity` 0) to ask for the size, which evaluates nothing
 * @param capacity    numbers that fit
 * @param needed      gets how many numbers there are, also when they do not fit; may be NULL
 * @return            as doppler_model_embed()
 *
 * Threads: any; the call takes turns with the model's sessions.
 */
DOPPLER_API
doppler_status doppler_model_embed_tokens(struct doppler_model *model,
                                          const uint32_t *tokens,
                                          const uint32_t *lengths,
                                          size_t n_texts,
                                          const struct doppler_embed_options *options,
                                          float *embeddings,
                                          size_t capacity,
                                          size_t *needed);

/**
 * Fills options with their defaults.
 *
 * @param options      filled in
 * @param struct_size  sizeof *options
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_generate_options_init(struct doppler_generate_options *options, size_t struct_size);

/**
 * Generates until something ends it, and returns then. The tokens become part of the session, so the next call goes on from there.
 *
 * @param options   NULL: defaults
 * @param on_token  hears each token; may be NULL
 * @param user      handed to `on_token`
 * @param result    filled in on success; set its `struct_size`; may be NULL
 * @return          DOPPLER_STATUS_INVALID_STATE in an empty session, or from a callback of the same session; DOPPLER_STATUS_INVALID_ARGUMENT names
 *                  the option at fault; DOPPLER_STATUS_GUARD for a broken budget in strict mode. Being cancelled is no failure: see `reason`.
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_generate(struct doppler_session *session,
                                        const struct doppler_generate_options *options,
                                        doppler_token_callback on_token,
                                        void *user,
                                        struct doppler_generate_result *result);

/**
 * Generates in several sessions of one model together, each as doppler_session_generate() would, and returns when all have ended. Prompts are
 * evaluated one after the other; then each submit draws for all sessions that still run, and the weights are read once for all of them. A
 * session that ends leaves the others at the next submit. As many tokens come from a submit as the session with the smallest
 * `tokens_per_submit` takes.
 *
 * A session that fails does not end the others: they run to their ends first. Each session counts the submits that it took part in.
 *
 * @param sessions    different sessions of one model, any number; up to 32 share a submit
 * @param n_sessions  how many; with 0 nothing happens
 * @param options     one for each session, in its order; an entry, or the list, may be NULL: defaults
 * @param on_token    hears each token; may be NULL
 * @param user        handed to `on_token`
 * @param results     one for each session, filled in where its generation succeeded; set each `struct_size`. An entry, or the list, may be NULL
 * @param statuses    one for each session, what its doppler_session_generate() would return; may be NULL
 * @return            the status of the first session that failed, if one did; doppler_last_error() then says which and why. Without having
 *                    generated: DOPPLER_STATUS_INVALID_ARGUMENT for sessions of several models, DOPPLER_STATUS_INVALID_STATE for a session that is
 *                    in the middle of a call or in the list twice, and what is wrong with options and structures. `statuses` is then left alone.
 *
 * Threads: one at a time for each of the sessions.
 */
DOPPLER_API
doppler_status doppler_generate_many(struct doppler_session *const *sessions,
                                     size_t n_sessions,
                                     const struct doppler_generate_options *const *options,
                                     doppler_many_token_callback on_token,
                                     void *user,
                                     struct doppler_generate_result *const *results,
                                     doppler_status *statuses);

/**
 * Loads a LoRA adapter for a model. The model stays as it is: sessions choose their adapters with doppler_session_set_loras().
 *
 * @param model  the model it was made for
 * @param path   a GGUF file, or a folder with adapter_config.json and adapter_model.safetensors; NUL-terminated UTF-8
 * @param lora   gets the handle; end it with doppler_lora_destroy()
 * @return       DOPPLER_STATUS_IO; DOPPLER_STATUS_BAD_FILE for one of another architecture or shape, DOPPLER_STATUS_UNSUPPORTED for what is not plain
 *               LoRA (the error text names the file, and the key or tensor); DOPPLER_STATUS_OUT_OF_MEMORY
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_lora_load(struct doppler_model *model,
                                 const char *path,
                                 struct doppler_lora **lora);

/**
 * Ends an adapter's handle. Sessions that use it go on with it; its memory is freed with the last use.
 *
 * @param lora  NULL is allowed; a handle that was destroyed already gets DOPPLER_STATUS_BAD_HANDLE
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_lora_destroy(struct doppler_lora *lora);

/**
 * What an adapter is.
 *
 * @param info  filled in; set its `struct_size`
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_lora_get_info(const struct doppler_lora *lora, struct doppler_lora_info *info);

/**
 * Gives a session these adapters in the place of those it has; what they change adds up. What is evaluated from now on is evaluated with them.
 * The same list again changes nothing. Nothing is loaded: adapters may be changed between any two generations, and lists that were used lately
 * are kept ready. Forks have the adapters of their session; a snapshot is only taken back by a session that has the same ones.
 *
 * @param loras       the adapters, all of the session's model; may be NULL if `n_loras` is 0: none
 * @param scales      a factor for each; NULL: 1 for all. 0 is as if the adapter were not there.
 * @param n_loras     how many
 * @param keep_cache  0: what was evaluated with other adapters is evaluated again when it is needed, as if the session had had these from the
 *                    beginning. Not 0: it stays as it is, and only what comes now is seen by the new adapters.
 * @return            DOPPLER_STATUS_INVALID_ARGUMENT for an adapter of another model or a factor that is not finite,
 *                    DOPPLER_STATUS_INVALID_STATE while generating; the session is then as it was
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_set_loras(struct doppler_session *session,
                                         struct doppler_lora *const *loras,
                                         const float *scales,
                                         size_t n_loras,
                                         uint32_t keep_cache);

/**
 * Fills options with their defaults.
 *
 * @param options      filled in
 * @param struct_size  sizeof *options
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_model_options_init(struct doppler_model_options *options, size_t struct_size);

/**
 * Loads a model from a GGUF file, or from a folder with config.json, tokenizer.json and model.safetensors (or shards with their index). They are
 * only needed during the call.
 *
 * @param context  into which device
 * @param path     NUL-terminated UTF-8
 * @param options  NULL: defaults
 * @param model    gets the handle; end it with doppler_model_destroy()
 * @return         DOPPLER_STATUS_IO, DOPPLER_STATUS_BAD_FILE or DOPPLER_STATUS_UNSUPPORTED (the error text names the file, and the key or tensor),
 *                 DOPPLER_STATUS_OUT_OF_MEMORY, DOPPLER_STATUS_CANCELLED if `on_progress` asked for it
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_model_load(struct doppler_context *context,
                                  const char *path,
                                  const struct doppler_model_options *options,
                                  struct doppler_model **model);

/**
 * Ends a model handle. Its sessions go on working; its memory is freed with the last of them.
 *
 * @param model  NULL is allowed; a handle that was destroyed already gets DOPPLER_STATUS_BAD_HANDLE
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_model_destroy(struct doppler_model *model);

/**
 * What a model is.
 *
 * @param info  filled in; set its `struct_size`
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_model_get_info(const struct doppler_model *model, struct doppler_model_info *info);

/**
 * The tokens of a text.
 *
 * @param text           UTF-8, not NUL-terminated; may be NULL if `text_bytes` is 0
 * @param text_bytes     its length
 * @param add_special    not 0: BOS before and EOS after it, where the model's file says so
 * @param parse_special  not 0: the text of control tokens becomes those tokens. Do not set it for text of strangers.
 * @param tokens         gets the tokens; NULL (with `capacity` 0) to ask for the number
 * @param capacity       tokens that fit
 * @param needed         gets the number of tokens, also when they do not fit; may be NULL
 * @return               DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written), DOPPLER_STATUS_BAD_UTF8
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_model_tokenize(const struct doppler_model *model,
                                      const char *text,
                                      size_t text_bytes,
                                      uint32_t add_special,
                                      uint32_t parse_special,
                                      uint32_t *tokens,
                                      size_t capacity,
                                      size_t *needed);

/**
 * The text of tokens. Bytes that are not UTF-8 become U+FFFD.
 *
 * @param tokens          may be NULL if `n_tokens` is 0
 * @param n_tokens        how many
 * @param render_special  not 0: control tokens show as text
 * @param buffer          gets the text, NUL-terminated; NULL (with `capacity` 0) to ask for the size
 * @param capacity        bytes that fit
 * @param needed          gets the bytes of the text, NUL included, also when they do not fit; may be NULL
 * @return                DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written), DOPPLER_STATUS_INVALID_ARGUMENT for a token
 *                        outside the vocabulary
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_model_detokenize(const struct doppler_model *model,
                                        const uint32_t *tokens,
                                        size_t n_tokens,
                                        uint32_t render_special,
                                        char *buffer,
                                        size_t capacity,
                                        size_t *needed);

/**
 * The exact bytes of one token, which may be a part of a character, or a zero byte. Streamed output is easier to have from doppler_session_generate().
 *
 * @param token           below `n_vocab`
 * @param render_special  not 0: control tokens show as text
 * @param buffer          gets the bytes and a NUL behind them; NULL (with `capacity` 0) to ask for the size
 * @param capacity        bytes that fit
 * @param needed          gets the number of bytes, NUL included, also when they do not fit; may be NULL
 * @return                as doppler_model_detokenize()
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_model_token_bytes(const struct doppler_model *model,
                                         uint32_t token,
                                         uint32_t render_special,
                                         char *buffer,
                                         size_t capacity,
                                         size_t *needed);

/**
 * The name of a token in the vocabulary, marks for spaces and bytes included: for people, not for output.
 *
 * @param token     below `n_vocab`
 * @param buffer    gets the text, NUL-terminated UTF-8; NULL (with `capacity` 0) to ask for the size
 * @param capacity  bytes that fit
 * @param needed    gets the bytes of the text, NUL included, also when they do not fit; may be NULL
 * @return          as doppler_model_detokenize()
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_model_token_text(const struct doppler_model *model,
                                        uint32_t token,
                                        char *buffer,
                                        size_t capacity,
                                        size_t *needed);

/**
 * Whether a token ends a reply.
 *
 * @param token  a token
 * @param ends   gets 1 or 0
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_model_is_end_of_generation(const struct doppler_model *model,
                                                  uint32_t token,
                                                  uint32_t *ends);

/**
 * Renders a conversation through the model's chat template. doppler_session_append_messages() does this and appends the result.
 *
 * @param messages               the conversation; may be NULL if `n_messages` is 0
 * @param n_messages             how many
 * @param add_generation_prompt  not 0: open the assistant's turn at the end
 * @param buffer                 gets the text, NUL-terminated UTF-8; NULL (with `capacity` 0) to ask for the size
 * @param capacity               bytes that fit
 * @param needed                 gets the bytes of the text, NUL included, also when they do not fit; may be NULL
 * @return                       DOPPLER_STATUS_UNSUPPORTED if the file has no template, DOPPLER_STATUS_TEMPLATE if it fails,
 *                               DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written)
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_model_format_chat(const struct doppler_model *model,
                                         const struct doppler_message *messages,
                                         size_t n_messages,
                                         uint32_t add_generation_prompt,
                                         char *buffer,
                                         size_t capacity,
                                         size_t *needed);

/**
 * What loading a model cost, and what its attention cache holds.
 *
 * @param stats  filled in; set its `struct_size`
 *
 * Threads: any; waits for a submit that is under way in one of its sessions.
 */
DOPPLER_API
doppler_status doppler_model_get_stats(const struct doppler_model *model,
                                       struct doppler_model_stats *stats);

/**
 * Fills options with their defaults.
 *
 * @param options      filled in
 * @param struct_size  sizeof *options
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_probe_options_init(struct doppler_probe_options *options, size_t struct_size);

/**
 * Looks at a session's tensors from now on. Statistics are made on the GPU in the same submit; while a probe is set, decoding runs one token a
 * submit and is slower. Under a STRICT guard calls then end with DOPPLER_STATUS_GUARD before any work.
 *
 * @param options  NULL: look no longer
 * @return         DOPPLER_STATUS_INVALID_ARGUMENT for an unknown point or a layer that the model does not have
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_set_probe(struct doppler_session *session,
                                         const struct doppler_probe_options *options);

/**
 * What the probe has seen since the readings were last taken, in order. Getting them takes them; asking for the number does not. At most
 * 131,072 wait: then generating and evaluating fail with DOPPLER_STATUS_INVALID_STATE until they are taken.
 *
 * @param readings  gets the readings; NULL (with `capacity` 0) to ask for the number
 * @param capacity  readings that fit
 * @param needed    gets the number of readings, also when they do not fit; may be NULL
 * @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written, the readings stay)
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_take_readings(struct doppler_session *session,
                                             struct doppler_probe_reading *readings,
                                             size_t capacity,
                                             size_t *needed);

/**
 * The submits of a context by phase and label.
 *
 * @param submits   gets the entries; NULL (with `capacity` 0) to ask for the number
 * @param capacity  entries that fit
 * @param needed    gets the number of entries, also when they do not fit; may be NULL
 * @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written)
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_get_submits(const struct doppler_context *context,
                                           struct doppler_submit_stats *submits,
                                           size_t capacity,
                                           size_t *needed);

/**
 * The transient buffers of a context by label: requests, and what is on loan.
 *
 * @param labels    gets the entries; NULL (with `capacity` 0) to ask for the number
 * @param capacity  entries that fit
 * @param needed    gets the number of entries, also when they do not fit; may be NULL
 * @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written)
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_get_pool(const struct doppler_context *context,
                                        struct doppler_pool_stats *labels,
                                        size_t capacity,
                                        size_t *needed);

/**
 * The submits of a session by phase and label; else as doppler_context_get_submits().
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_get_submits(const struct doppler_session *session,
                                           struct doppler_submit_stats *submits,
                                           size_t capacity,
                                           size_t *needed);

/**
 * What drawing more tokens in one submit would have saved in a session's decoding so far.
 *
 * @param tokens_per_submit  the number to compare with
 * @param saving             filled in
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_estimate_batching(const struct doppler_session *session,
                                                 uint32_t tokens_per_submit,
                                                 struct doppler_batching_saving *saving);

/**
 * Everything that a context has done and holds, as text of some lines for people.
 *
 * @param text      gets the text with its terminating NUL; NULL (with `capacity` 0) to ask for the size
 * @param capacity  bytes that fit
 * @param needed    gets the bytes of the text with its NUL, also when it does not fit; may be NULL
 * @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written)
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_get_summary(const struct doppler_context *context,
                                           char *text,
                                           size_t capacity,
                                           size_t *needed);

/**
 * Everything that a session has done, as text; else as doppler_context_get_summary().
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_get_summary(const struct doppler_session *session,
                                           char *text,
                                           size_t capacity,
                                           size_t *needed);

/**
 * Forgets compiled pipelines and idle transient buffers. Loaded models keep what their plans use; what is needed again is compiled again.
 *
 * @param purged  gets what was freed; may be NULL
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_purge_caches(struct doppler_context *context,
                                            struct doppler_purged *purged);

/**
 * Starts a profile: until doppler_context_stop_profile() each GPU operation of the context is timed by itself, which makes work slower.
 *
 * @return  DOPPLER_STATUS_UNSUPPORTED without timestamp queries, DOPPLER_STATUS_GUARD if the context's guard is STRICT
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_start_profile(struct doppler_context *context);

/**
 * Ends the profile and keeps it, in place of the one before, for the functions below.
 *
 * @param info  filled in; may be NULL
 * @return      DOPPLER_STATUS_INVALID_STATE if none was started
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_stop_profile(struct doppler_context *context,
                                            struct doppler_profile_info *info);

/**
 * The rows of the profile taken last: each operation of each layer in each phase.
 *
 * @param rows      gets the rows; NULL (with `capacity` 0) to ask for the number
 * @param capacity  rows that fit
 * @param needed    gets the number of rows, also when they do not fit; may be NULL
 * @return          DOPPLER_STATUS_INVALID_STATE if no profile was taken; DOPPLER_STATUS_BUFFER_TOO_SMALL
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_get_profile(const struct doppler_context *context,
                                           struct doppler_profile_row *rows_out,
                                           size_t capacity,
                                           size_t *needed);

/**
 * The profile taken last as a table for people; else as doppler_context_get_summary().
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_context_get_profile_text(const struct doppler_context *context,
                                                char *text,
                                                size_t capacity,
                                                size_t *needed);

/**
 * Writes the profile taken last as a trace file that Perfetto and chrome://tracing open.
 *
 * @param path  the file, replaced if it exists; NUL-terminated UTF-8
 * @return      DOPPLER_STATUS_INVALID_STATE if no profile was taken, DOPPLER_STATUS_IO if the file cannot be written
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_context_write_trace(const struct doppler_context *context, const char *path);

/**
 * Fills options with their defaults.
 *
 * @param options      filled in
 * @param struct_size  sizeof *options
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_choose_options_init(struct doppler_choose_options *options, size_t struct_size);

/**
 * Says how likely each of several texts is as the continuation of what a session holds, and which is best. The session's own tokens are evaluated once;
 * the continuations share them and are evaluated together, as many in one submit as fit (models with recurrent layers: one after the other). Only
 * one number a token is read back. The session is as before, but that its tokens are evaluated. Each text is tokenized by itself, as
 * doppler_session_append_text() would append it: where words begin with a space, so should a continuation that begins one.
 *
 * @param continuations    NUL-terminated UTF-8, each of one token at least
 * @param n_continuations  how many, 1 at least
 * @param options          NULL: defaults
 * @param scores           gets `n_continuations` scores; may be NULL
 * @param best             gets the place of the best one, the first of several that are equal; may be NULL
 * @return                 DOPPLER_STATUS_INVALID_STATE in an empty session; DOPPLER_STATUS_INVALID_ARGUMENT or DOPPLER_STATUS_CONTEXT_FULL name the continuation at
 *                         fault; DOPPLER_STATUS_CANCELLED; DOPPLER_STATUS_GUARD for a broken budget in strict mode. Nothing is written then.
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_choose(struct doppler_session *session,
                                      const char *const *continuations,
                                      size_t n_continuations,
                                      const struct doppler_choose_options *options,
                                      struct doppler_score *scores,
                                      uint32_t *best);

/**
 * As doppler_session_choose(), for token ids, with each token's own number.
 *
 * @param tokens           the tokens of all continuations, one after the other
 * @param lengths          how many of them each continuation has, 1 at least
 * @param n_continuations  how many, 1 at least
 * @param options          NULL: defaults
 * @param log_probs        gets ln p of each of `tokens`, given the session and the tokens of its continuation before it; may be NULL
 * @param scores           gets `n_continuations` scores; may be NULL
 * @param best             gets the place of the best one; may be NULL
 * @return                 as doppler_session_choose()
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_choose_tokens(struct doppler_session *session,
                                             const uint32_t *tokens,
                                             const uint32_t *lengths,
                                             size_t n_continuations,
                                             const struct doppler_choose_options *options,
                                             float *log_probs,
                                             struct doppler_score *scores,
                                             uint32_t *best);

/**
 * Fills options with their defaults.
 *
 * @param options      filled in
 * @param struct_size  sizeof *options
 *
 * Threads: any.
 */
DOPPLER_API doppler_status doppler_session_options_init(struct doppler_session_options *options, size_t struct_size);

/**
 * Creates a session.
 *
 * @param model    the model; sessions of one model take turns on the device
 * @param options  NULL: defaults
 * @param session  gets the handle; end it with doppler_session_destroy()
 * @return         DOPPLER_STATUS_INVALID_ARGUMENT for a context longer than the model's, or a draft model of another vocabulary;
 *                 DOPPLER_STATUS_UNSUPPORTED for drafts with recurrent layers; DOPPLER_STATUS_OUT_OF_MEMORY
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_session_create(struct doppler_model *model,
                                      const struct doppler_session_options *options,
                                      struct doppler_session **session);

/**
 * Ends a session handle. A call that is running in it, on another thread or around the callback that calls this, is cancelled, and
 * the session is freed when that call returns.
 *
 * @param session  NULL is allowed; a handle that was destroyed already gets DOPPLER_STATUS_BAD_HANDLE
 *
 * Threads: any.
 */
DOPPLER_API
doppler_status doppler_session_destroy(struct doppler_session *session);

/**
 * Asks the running call of a session, or else its next one, to end. Takes effect within one submit: doppler_session_generate() then succeeds with
 * reason CANCELLED, doppler_session_eval() fails with DOPPLER_STATUS_CANCELLED. doppler_session_reset() takes a request back that nothing has answered yet.
 *
 * Threads: any, at any time, callbacks included.
 */
DOPPLER_API
doppler_status doppler_session_cancel(const struct doppler_session *session);

/**
 * Adds text to the end of a session. Nothing is evaluated yet. The first text gets a BOS token in front where the model wants one.
 *
 * @param text           UTF-8, not NUL-terminated; may be NULL if `text_bytes` is 0
 * @param text_bytes     its length
 * @param parse_special  not 0: the text of control tokens becomes those tokens. Do not set it for text of strangers.
 * @param n_added        gets the number of tokens added; may be NULL
 * @return               DOPPLER_STATUS_CONTEXT_FULL (nothing is added), DOPPLER_STATUS_BAD_UTF8
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_append_text(struct doppler_session *session,
                                           const char *text,
                                           size_t text_bytes,
                                           uint32_t parse_special,
                                           uint32_t *n_added);

/**
 * Adds tokens to the end of a session. Nothing is evaluated yet.
 *
 * @param tokens    may be NULL if `n_tokens` is 0
 * @param n_tokens  how many
 * @return          DOPPLER_STATUS_CONTEXT_FULL or DOPPLER_STATUS_INVALID_ARGUMENT (a token outside the vocabulary); nothing is added
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_append_tokens(struct doppler_session *session,
                                             const uint32_t *tokens,
                                             size_t n_tokens);

/**
 * Adds messages to the conversation of a session, and renders it through the model's chat template. What the session holds already stays, only
 * what is new is evaluated later. Replies become part of the conversation by themselves: doppler_session_generate() adds them.
 *
 * @param messages               the new messages; may be NULL if `n_messages` is 0
 * @param n_messages             how many
 * @param add_generation_prompt  not 0: open the assistant's turn, as is wanted before doppler_session_generate()
 * @param n_added                gets the number of tokens that are new; may be NULL
 * @return                       DOPPLER_STATUS_CONTEXT_FULL, DOPPLER_STATUS_UNSUPPORTED (no template), DOPPLER_STATUS_TEMPLATE; the conversation is then
 *                               as before
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_append_messages(struct doppler_session *session,
                                               const struct doppler_message *messages,
                                               size_t n_messages,
                                               uint32_t add_generation_prompt,
                                               uint32_t *n_added);

/**
 * Adds tokens and evaluates them with all their logits: row i holds the logits of what follows token i. Tokens that were appended before
 * are evaluated first. Budgets of the guard hold for those; the logits themselves are read back as often as they have to be.
 *
 * @param tokens    may be NULL if `n_tokens` is 0
 * @param n_tokens  how many
 * @param logits    gets `n_tokens` rows of `n_vocab` numbers, row by row. If the call fails after it began, the content is undefined.
 * @param capacity  numbers that fit
 * @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (found before any work), DOPPLER_STATUS_CONTEXT_FULL, DOPPLER_STATUS_INVALID_ARGUMENT,
 *                  DOPPLER_STATUS_CANCELLED. The session then holds the tokens it had.
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_eval(struct doppler_session *session,
                                    const uint32_t *tokens,
                                    size_t n_tokens,
                                    float *logits,
                                    size_t capacity);

/**
 * The tokens of a session, generated ones included.
 *
 * @param tokens    gets the tokens; NULL (with `capacity` 0) to ask for the number
 * @param capacity  tokens that fit
 * @param needed    gets the number of tokens, also when they do not fit; may be NULL
 * @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `needed` is written)
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_get_tokens(const struct doppler_session *session,
                                          uint32_t *tokens,
                                          size_t capacity,
                                          size_t *needed);

/**
 * How many tokens a session holds.
 *
 * @param length  gets the number
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API doppler_status doppler_session_get_length(const struct doppler_session *session, uint32_t *length);

/**
 * Forgets everything said: the session is as new. Its statistics go on. A cancel request that nothing has answered yet is forgotten too.
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_reset(struct doppler_session *session);

/**
 * Keeps the first tokens and forgets the rest. The conversation of doppler_session_append_messages() starts over. Models with sliding windows
 * or recurrent layers cannot go back to any place: some of the tokens that are kept may be evaluated again with the next call that evaluates.
 *
 * @param n_tokens  how many to keep
 * @return          DOPPLER_STATUS_INVALID_ARGUMENT if there are fewer
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_truncate(struct doppler_session *session,
                                        uint32_t n_tokens);

/**
 * Counters and times of a session. With `gpu_timing` this reads times back from the device.
 *
 * @param stats  filled in; set its `struct_size`
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_get_stats(const struct doppler_session *session,
                                         struct doppler_session_stats *stats);

/**
 * Sets the statistics of a session to zero.
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API doppler_status doppler_session_reset_stats(struct doppler_session *session);

/**
 * Creates a session that goes on from where another one is: with the same tokens, conversation, adapters and options. What was evaluated is
 * shared, not copied, and not evaluated again; from then on the two are independent. The cache makes room for what the new one may
 * still come to hold. Its statistics start at zero.
 *
 * @param session      stays as it is
 * @param new_session  gets the handle; end it with doppler_session_destroy()
 * @return             DOPPLER_STATUS_INVALID_STATE while `session` generates, DOPPLER_STATUS_OUT_OF_MEMORY
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_fork(struct doppler_session *session,
                                    struct doppler_session **new_session);

/**
 * Writes a session to bytes: its tokens, its conversation and what was evaluated. doppler_session_restore() takes them back, in any session of
 * the same model file loaded with the same `kv_type`, in this process or another. Options and statistics are no part of it; of LoRA adapters it says which
 * they were, and the other session must have the same ones.
 *
 * @param buffer    gets the bytes; NULL (with `capacity` 0) to ask for the size, which reads nothing from the device
 * @param capacity  bytes that fit
 * @param size      gets the bytes of the snapshot, also when they do not fit; may be NULL
 * @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `size` is written), DOPPLER_STATUS_INVALID_STATE while generating,
 *                  DOPPLER_STATUS_OUT_OF_MEMORY
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_snapshot(const struct doppler_session *session,
                                        void *buffer,
                                        size_t capacity,
                                        size_t *size);

/**
 * Makes a session what another one was when doppler_session_snapshot() wrote these bytes: it goes on exactly as that one did.
 *
 * @param data  the bytes; only read during the call
 * @param size  how many
 * @return      DOPPLER_STATUS_INVALID_ARGUMENT for bytes that are no snapshot, are damaged, or belong to another model or other adapters (the error text
 *              says which), DOPPLER_STATUS_CONTEXT_FULL if their tokens do not fit, DOPPLER_STATUS_INVALID_STATE while generating: the session is
 *              then as it was
 *
 * Threads: one at a time for each session.
 */
DOPPLER_API
doppler_status doppler_session_restore(struct doppler_session *session,
                                       const void *data,
                                       size_t size);

/**
 * The name of a status, such as "DOPPLER_STATUS_OK"; "DOPPLER_STATUS_UNKNOWN" for a number that this library does not have.
 * The text is never freed. Threads: any.
 */
DOPPLER_API
const char *doppler_status_name(uint32_t status);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* DOPPLER_H */
