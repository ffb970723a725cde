// critbeta: the exact critical inverse temperature of attention rows, from C and from whatever calls C.
//
// Every call returns CRITBETA_OK or another status, and then wrote nothing but for CRITBETA_INTERNAL;
// critbeta_last_error() says what was wrong. Structs begin with their size, so that a program compiled against an
// older header runs with a newer library: `critbeta_softmax_args args = {.size = sizeof args};` leaves every
// option out. Tensors are borrowed for the call; on a GPU until the launch has run. Threads may share an engine
// and a rule. Where memory is written, nothing else of the call may overlap it.
//
// Made by cbindgen from capi/src: do not edit.


#ifndef CRITBETA_H
#define CRITBETA_H

#include <stddef.h>
#include <stdint.h>

// Tensors are DLPack's. Its own header is taken where it is found, or include it first from another place.
#if !defined(DLPACK_DLPACK_H_) && defined(__has_include)
#if __has_include(<dlpack/dlpack.h>)
#include <dlpack/dlpack.h>
#endif
#endif
#ifndef DLPACK_DLPACK_H_
typedef enum { kDLCPU = 1, kDLCUDA = 2 } DLDeviceType;
typedef enum { kDLInt = 0, kDLUInt = 1, kDLFloat = 2, kDLBfloat = 4 } DLDataTypeCode;
typedef struct {
    DLDeviceType device_type;
    int32_t device_id;
} DLDevice;
typedef struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
} DLDataType;
typedef struct {
    void *data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape;
    int64_t *strides;
    uint64_t byte_offset;
} DLTensor;
#endif


// The call did what it says.
#define CRITBETA_OK 0

// An argument is NULL, misaligned, or of another size, shape, dtype or device than expected, memory
// overlaps, or a rule makes no sense.
#define CRITBETA_INVALID 1

// This device or this build does not do it.
#define CRITBETA_UNSUPPORTED 2

// A calibration file cannot be read, or does not cover a head.
#define CRITBETA_FILE 3

// There is no CUDA driver, no such GPU, or no kernels for it.
#define CRITBETA_NO_DEVICE 4

// The CUDA driver refused a call, or the simulator found a fault.
#define CRITBETA_DEVICE 5

// A defect of this library. The outputs of the call hold nothing of use.
#define CRITBETA_INTERNAL 6

// Bytes of the report that a GPU writes for each row.
#define CRITBETA_DEVICE_REPORT_BYTES 72

// Keys and values are [pages, page, kv_heads, head_dim].
#define CRITBETA_NHD 0

// Keys and values are [pages, kv_heads, page, head_dim].
#define CRITBETA_HND 1

// An opened device. Threads may share it.
typedef struct critbeta_engine critbeta_engine;

// A rule, or a list of them: one for each of several heads.
typedef struct critbeta_rule critbeta_rule;

// What critbeta_softmax reads and writes. Zeros in a field leave it out.
typedef struct critbeta_softmax_args {
    // sizeof(critbeta_softmax_args).
    size_t size;
    // [rows, cols] float32, float16 or bfloat16. Columns lie side by side; rows may be further apart. A
    // score of
    // -inf, or below half of the lowest finite number of its type, is masked.
    const DLTensor *scores;
    // [rows, cols], dense: the probabilities, float32 or the type of the scores (on a CPU any of the three).
    // The tensor of the scores itself computes in place. It is 0 behind the length of a row.
    const DLTensor *out;
    // The rule, which must be one for all heads; NULL is beta = 1.
    const struct critbeta_rule *rule;
    // [rows] float32: the beta of each row, in place of a rule. On a CPU one below 0 makes its row NaN; on a
    // GPU it counts as 0.
    const DLTensor *betas;
    // [rows] int32 or uint32: how many scores each row has; NULL is all columns.
    const DLTensor *lens;
    // [rows] int32 or uint32: the position of each row's query, from 0 on, for laws of the position. NULL is
    // the last unmasked column.
    const DLTensor *positions;
    // On a CPU [rows, columns] float64: the doubles of a critbeta_row_report, without a critical beta. On a
    // GPU [rows, CRITBETA_DEVICE_REPORT_BYTES] uint8, for critbeta_decode_reports.
    const DLTensor *reports;
    // The CUDA stream (CUstream, cudaStream_t) of the launch; NULL is the legacy default stream.
    void *stream;
    // Device memory of critbeta_workspace_bytes, aligned to 256 bytes, for this launch alone until it has
    // run. Fill it with zeros once. Each launch leaves it ready for the next one, of any shape; after a
    // kernel that failed fill it again.
    void *workspace;
    // Bytes of the workspace.
    uint64_t workspace_bytes;
} critbeta_softmax_args;

// What critbeta_row_reports reads and writes. Zeros in a field leave it out.
typedef struct critbeta_reports_args {
    // sizeof(critbeta_reports_args).
    size_t size;
    // As in critbeta_softmax_args.
    const DLTensor *scores;
    // As in critbeta_softmax_args.
    const DLTensor *lens;
    // As in critbeta_softmax_args, with the critical beta.
    const DLTensor *reports;
    // The inverse temperature of the weights that are reported, above 0; 0 stands for 1.
    double beta;
    // r of Lambda(r), nats, at least 0.
    double resolve;
    // Counts gaps among this many largest scores only; 0 is all.
    uint64_t top_k;
    // As in critbeta_softmax_args.
    void *stream;
    // As in critbeta_softmax_args; the problem has reports_only set.
    void *workspace;
    // Bytes of the workspace.
    uint64_t workspace_bytes;
} critbeta_reports_args;

// What critbeta_measure_paged and critbeta_decode_paged read and write. Zeros in a field leave it out.
typedef struct critbeta_paged_args {
    // sizeof(critbeta_paged_args).
    size_t size;
    // [tokens, heads, head_dim] float32, float16 or bfloat16, any strides. The tokens of a sequence follow
    // each other. head_dim is a multiple of 8 in 64..256.
    const DLTensor *queries;
    // Four axes as `layout` says, any strides: the keys of one layer, of one of the three types.
    const DLTensor *keys;
    // As keys, and of their type. A measurement has none.
    const DLTensor *values;
    // int32 page numbers: [sequences, blocks], rows at any distance; or with indptr [entries].
    const DLTensor *table;
    // [sequences + 1] int32: sequence s has the entries indptr[s] .. indptr[s + 1] of the table.
    const DLTensor *indptr;
    // [sequences] int32: how many keys each sequence has, those of its query tokens included.
    const DLTensor *lens;
    // [sequences] int32: 0 to 8 query tokens of each sequence; NULL is one.
    const DLTensor *query_lens;
    // One rule, or one for each query head; NULL is beta = 1.
    const struct critbeta_rule *rule;
    // [tokens, heads, head_dim of values], dense, any of the three types: the output of a decode.
    const DLTensor *out;
    // [tokens * heads, columns] or [tokens, heads, columns] float64: the doubles of a critbeta_row_report. A
    // decode may leave it out.
    const DLTensor *reports;
    // [pages, kv_heads] float32: at least the largest norm of value - centre in each page, for the bound.
    const DLTensor *v_radius;
    // [kv_heads, head_dim of values] float32: what stands for values that stay unread.
    const DLTensor *centre;
    // The factor of q.k; 0 stands for 1 / sqrt(head_dim).
    double scale;
    // Scores become softcap * tanh(score / softcap).
    double softcap;
    // The share of a row's weights whose values may stay unread, 0 <= eps < 1.
    double eps;
    // r of Lambda(r), nats, at least 0.
    double resolve;
    // Counts gaps among this many largest scores only.
    uint64_t top_k;
    // How many keys a query token sees, its own included.
    uint64_t window;
    // CRITBETA_NHD or CRITBETA_HND.
    uint32_t layout;
    // 1: the reports of a decode have the critical beta too, whatever the rule needs.
    uint32_t measured;
} critbeta_paged_args;

// What a plan and a workspace depend on.
typedef struct critbeta_problem {
    // sizeof(critbeta_problem).
    size_t size;
    // Rows, at least 1.
    uint64_t rows;
    // Columns, at least 1.
    uint64_t cols;
    // The type of the scores: float32, float16 or bfloat16.
    DLDataType dtype;
    // 0 for critbeta_softmax, 1 for critbeta_row_reports.
    uint32_t reports_only;
} critbeta_problem;

// What is known about one row: the columns of a tensor of reports. NaN stands for what a call does not
// measure, and in a row with a NaN or +inf for everything but n, argmax and a beta that was given. Counts
// are whole.
typedef struct critbeta_row_report {
    // Unmasked scores, n.
    double n;
    // The largest score; -inf in a row without scores.
    double max;
    // The largest score when one maximum is left out.
    double second;
    // How many scores equal the maximum.
    double ties;
    // Column of the first maximum, or of the first NaN or +inf.
    double argmax;
    // The inverse temperature that the row ran at.
    double beta;
    // log Z at beta with the maximum taken out, nats.
    double log_partition;
    // log of the sum of exp(beta * score), nats.
    double lse;
    // The critical beta, Lambda; inf under tied maxima.
    double critical_beta;
    // An upper bound of Lambda, which differs from it under top_k only.
    double critical_upper;
    // Lambda = log(contact_rank) / contact_gap.
    double contact_gap;
    // How many scores lie within the contact gap of the maximum.
    double contact_rank;
    // Lambda(resolve), with its own bound and contact.
    double resolved_beta;
    // As critical_upper.
    double resolved_upper;
    // As contact_gap.
    double resolved_gap;
    // As contact_rank.
    double resolved_rank;
    // Entropy of the weights at beta, nats.
    double entropy;
    // Largest minus second largest weight.
    double top_two;
    // Largest weight.
    double max_weight;
    // Of a decode: how many keys had their values read.
    double kept;
    // Of a decode: the share of the weights whose values stayed unread.
    double dropped;
    // Of a decode: at least what the unread values change in the output; NaN without radii.
    double bound;
} critbeta_row_report;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library, such as "0.1.0". It stays valid for ever.
const char *critbeta_version(void);

// What the last failed call on this thread said: which argument, what was found, what was expected. The text
// is valid until the next failing call on this thread. It is never NULL, and a success leaves it as it was.
const char *critbeta_last_error(void);

// Opens a device: "cpu", "cuda:N" (each kernel is loaded, and may be compiled, at its first launch), or in a
// build with the feature simt "simt", a simulator of a GPU for tests whose device memory is that of the CPU.
int32_t critbeta_open(const char *device,
                      struct critbeta_engine **engine);

// Closes a device that no other call uses. NULL is allowed.
int32_t critbeta_close(struct critbeta_engine *engine);

// Reads a rule: "identity", "fixed:1.3", "qwen-logn:train=8192", "critical:cap=8" and so on, or
// "calibrated:FILE", which gives the rules of `heads` heads of `layer` from `first_head` on. Other rules
// are one for all layers and heads.
int32_t critbeta_rule_parse(const char *rule_text,
                            const char *layer,
                            uint64_t first_head,
                            uint64_t heads,
                            struct critbeta_rule **rule);

// Frees a rule that no other call uses. NULL is allowed.
int32_t critbeta_rule_free(struct critbeta_rule *rule);

// Writes the beta of every query token and head to `out`, [tokens, heads] float32, for rules that measure
// nothing. `positions` is [tokens] int32 or int64, from 0 on. A server multiplies its queries by them: any
// attention kernel then runs at the rule. Both tensors are on the CPU.
int32_t critbeta_rule_betas(const struct critbeta_rule *rule,
                            const DLTensor *positions,
                            const DLTensor *out);

// Writes the softmax of every row at its own beta. On a GPU it enqueues one launch on the stream and
// returns: it allocates no device memory and waits for nothing, so a CUDA graph can capture it. All tensors
// are on the device of the engine.
int32_t critbeta_softmax(const struct critbeta_engine *engine,
                         const struct critbeta_softmax_args *args);

// Reports on every row: the critical beta and its contact, entropy, weights. On a GPU as critbeta_softmax.
int32_t critbeta_row_reports(const struct critbeta_engine *engine,
                             const struct critbeta_reports_args *args);

// Turns reports that a GPU wrote, copied to the CPU as [rows, CRITBETA_DEVICE_REPORT_BYTES] uint8, into
// [rows, columns] float64. `resolve` is that of the call, or of its critical rule.
int32_t critbeta_decode_reports(const DLTensor *raw,
                                double resolve,
                                const DLTensor *reports);

// Reports on the row of every query token and head over pages of keys: the critical beta, and the rest at
// the beta of the rule. On the CPU.
int32_t critbeta_measure_paged(const struct critbeta_engine *engine,
                               const struct critbeta_paged_args *args);

// Writes the attention output of every query token and head over pages of keys and values, each row at its
// own beta. On the CPU.
int32_t critbeta_decode_paged(const struct critbeta_engine *engine,
                              const struct critbeta_paged_args *args);

// Says in words how a device runs a call: the kernel and the reasons, or how threads share rows. As
// snprintf, it cuts what `capacity` bytes do not hold, and ends in a zero byte; `length` (or NULL) gets the
// whole length.
int32_t critbeta_plan(const struct critbeta_engine *engine,
                      const struct critbeta_problem *problem,
                      char *plan,
                      size_t capacity,
                      size_t *length);

// Bytes of workspace that a launch needs; 0 on a CPU and for most launches on a GPU.
int32_t critbeta_workspace_bytes(const struct critbeta_engine *engine,
                                 const struct critbeta_problem *problem,
                                 uint64_t *bytes);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* CRITBETA_H */
