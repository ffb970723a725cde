// The statistics of every row without its probabilities: one read and one report per row.
#include "verbs.cuh"

#define GAP_PROFILE(T, SCOPE, THREADS, CTAS) STAMP(gap_profile, false, T, SCOPE, THREADS, CTAS)
#include "variants.def"
