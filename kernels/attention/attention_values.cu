// The output of query tokens, from the probabilities of their rows and the values of their keys.
#include "decode.cuh"

// CTAs that share an SM. On sm_80 two of them spill a register.
constexpr u32 VALUE_CTAS = SIMT_CLUSTERS ? 2 : 1;
#define ATTENTION_VALUES(T, SCOPE, THREADS, CTAS) \
    static_assert(THREADS == VALUE_THREADS, "a warp for every unit of keys"); \
    KERNEL(AttentionParams, attention_values_##T##_##SCOPE##THREADS##x##CTAS, THREADS, VALUE_CTAS) { \
        values_part<T>(params); \
    }
#include "../variants.def"
