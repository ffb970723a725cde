// Attention over keys and values in pages, whose scores stay on chip.
#include "on_chip.cuh"

#if SIMT_CLUSTERS
#define ATTENTION_ON_CHIP(T, SCOPE, THREADS, CTAS) \
    static_assert(THREADS == VALUE_THREADS, "as the units are dealt out"); \
    KERNEL(OnChipParams, attention_on_chip_##T##_##SCOPE##THREADS##x##CTAS, THREADS, VALUE_CTAS) { \
        on_chip_part<T, true>(params); \
    }
#else
#define ATTENTION_ON_CHIP(...)
#endif
#include "../variants.def"
