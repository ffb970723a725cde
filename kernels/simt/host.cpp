// All kernels as C++ in one translation unit, and the functions that call them.
#include "../gap_profile.cu"
#include "../critical_softmax.cu"
#include "../attention/attention_scores.cu"
#include "../attention/attention_masses.cu"
#include "../attention/attention_values.cu"
#include "../attention/attention_one_pass.cu"
#include "../attention/attention_on_chip.cu"
#include "../attention/attention_betas.cu"
#include "../wrappers.cu"

#include "planted.hpp"

namespace {

using simt::host::Kernel;
using simt::host::Together;

// By the scope's name in variants.def.
[[maybe_unused]] constexpr Together warp = Together::cluster, block = Together::cluster,
                                    cluster = Together::cluster, split = Together::grid;

#define ROW(family, dtype, scope, threads, ctas) \
    Kernel{#family "_" #dtype "_" #scope #threads "x" #ctas, family##_##dtype##_##scope##threads##x##ctas, \
           threads, scope},
#define GAP_PROFILE(...) ROW(gap_profile, __VA_ARGS__)
#define CRITICAL_SOFTMAX(...) ROW(critical_softmax, __VA_ARGS__)
#define ATTENTION_SCORES(...) ROW(attention_scores, __VA_ARGS__)
#define ATTENTION_MASSES(...) ROW(attention_masses, __VA_ARGS__)
#define ATTENTION_VALUES(...) ROW(attention_values, __VA_ARGS__)
#define ATTENTION_ONE_PASS(...) ROW(attention_one_pass, __VA_ARGS__)
#define ATTENTION_ON_CHIP(...) ROW(attention_on_chip, __VA_ARGS__)
#define ATTENTION_BETAS(...) ROW(attention_betas, __VA_ARGS__)
#define WRAPPERS(...) ROW(wrappers, __VA_ARGS__)
constexpr Kernel KERNELS[] = {
#include "../variants.def"
};
constexpr u32 KERNEL_COUNT = sizeof(KERNELS) / sizeof(KERNELS[0]);

int refuse(SimtOutcome& out, const char* why, u32 number) {
    out = SimtOutcome{};
    std::snprintf(out.message, sizeof out.message, "%s: %u of %u kernels", why, number, KERNEL_COUNT);
    return 2;
}

}  // namespace

extern "C" int critbeta_simt_launch(const SimtLaunch* launch, SimtOutcome* outcome) {
    if (!outcome) return 2;
    if (!launch) return refuse(*outcome, "the launch is null", 0);
    if (launch->variant >= KERNEL_COUNT) return refuse(*outcome, "no such variant", launch->variant);
    try {
        return simt::host::run_launch(KERNELS[launch->variant], *launch, *outcome);
    } catch (const std::bad_alloc&) {
        return refuse(*outcome, "no memory for the threads and shared memory of the launch", launch->variant);
    }
}

// The symbol of a variant, null behind the last. The order is that of `enum Variant`.
extern "C" const char* critbeta_simt_kernel_name(u32 variant) {
    return variant < KERNEL_COUNT ? KERNELS[variant].name : nullptr;
}
