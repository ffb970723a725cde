// The masses of keys, from the probabilities of the rows that see them.
#include "masses.cuh"

#define ATTENTION_MASSES(T, SCOPE, THREADS, CTAS) \
    static_assert(THREADS == MASS_THREADS && sizeof(T::Bits) == 4, "probabilities are f32"); \
    KERNEL(AttentionParams, attention_masses_##T##_##SCOPE##THREADS##x##CTAS, THREADS, 4) { \
        masses_part(params); \
    }
#include "../variants.def"
