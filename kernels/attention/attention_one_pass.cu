// The output of query tokens whose betas are known, from keys and values that are read together.
#include "one_pass.cuh"

#define ATTENTION_ONE_PASS(T, SCOPE, THREADS, CTAS) \
    static_assert(THREADS == VALUE_THREADS, "a warp for every unit of keys"); \
    KERNEL(AttentionParams, attention_one_pass_##T##_##SCOPE##THREADS##x##CTAS, THREADS, VALUE_CTAS) { \
        one_pass_part<T>(params); \
    }
#include "../variants.def"
