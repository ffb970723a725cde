// The rescaled softmax of every row, at a given beta, by a length law or at its critical beta: one read, one
// write.
#include "verbs.cuh"

#define CRITICAL_SOFTMAX(T, SCOPE, THREADS, CTAS) STAMP(critical_softmax, true, T, SCOPE, THREADS, CTAS)
#include "variants.def"
