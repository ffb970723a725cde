// The betas of queries over keys in pages, whose scores stay on chip.
#include "on_chip.cuh"

#if SIMT_CLUSTERS
#define ATTENTION_BETAS(T, SCOPE, THREADS, CTAS) \
    static_assert(THREADS == VALUE_THREADS, "as the keys are dealt out"); \
    KERNEL(OnChipParams, attention_betas_##T##_##SCOPE##THREADS##x##CTAS, THREADS, VALUE_CTAS) { \
        on_chip_part<T, false>(params); \
    }
#else
#define ATTENTION_BETAS(...)
#endif
#include "../variants.def"
