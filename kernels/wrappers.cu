// Each wrapper of simt.cuh once, for the day a GPU is there: 32-bit results in params.out, expected ones in tests/wrappers.rs.
#include "params.cuh"

#define WRAPPERS(T, SCOPE, THREADS, CTAS) WRAPPERS_##SCOPE(T, THREADS, CTAS)
#define WRAPPERS_block(T, THREADS, CTAS) \
    KERNEL(wrappers_##T##_block##THREADS##x##CTAS, THREADS) { Global<u32>(params.out).store(simt::thread(), simt::lane()); }
#include "variants.def"
