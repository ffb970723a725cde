// The output of query tokens, from the probabilities of their rows and the values of their keys.
#include "decode.cuh"

#define ATTENTION_VALUES(T, SCOPE, THREADS, CTAS) \
    static_assert(THREADS == VALUE_THREADS, "a warp for every unit of keys"); \
    KERNEL(AttentionParams, attention_values_##T##_##SCOPE##THREADS##x##CTAS, THREADS, VALUE_CTAS) { \
        values_part<T>(params); \
    }
#include "../variants.def"
