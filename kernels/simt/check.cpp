// Holds the host body of simt.cuh to its contract: planted faults found, their mended twins silent, every wrapper's result right,
// under several thread orders and from two OS threads at once. Run by scripts/simt-check.sh.
#include <string>
#include <thread>

#include "rows.hpp"

extern "C" int critbeta_simt_launch(const SimtLaunch*, SimtOutcome*);
extern "C" const char* critbeta_simt_kernel_name(u32);
extern "C" int critbeta_simt_fault(u32, u64, u32, SimtOutcome*);
extern "C" const char* critbeta_simt_fault_name(u32);

namespace {

u32 passed = 0, failed = 0;

void report(bool good, const std::string& what, const std::string& why) {
    ++(good ? passed : failed);
    std::printf("%s %s%s%s\n", good ? "ok  " : "FAIL", what.c_str(), why.empty() ? "" : ": ", why.c_str());
}

// Every seed finds the fault that the name promises, and nothing in the twin; the same seed finds it in the same words.
void planted(u32 index) {
    const std::string name = critbeta_simt_fault_name(index);
    const std::string says = name.substr(name.rfind(": ") + 2);
    const bool clean = says == "clean";
    std::string why;
    for (u64 seed = 0; seed < 10 && why.empty(); ++seed) {
        SimtOutcome first, again;
        const int found = critbeta_simt_fault(index, seed, 1, &first);
        const int found_again = critbeta_simt_fault(index, seed, 1, &again);
        if (found != (clean ? 0 : 1) || (!clean && !std::strstr(first.message, says.c_str()))) {
            why = "seed " + std::to_string(seed) + " answers " + std::to_string(found) + ", " + first.message;
        } else if (found != found_again || std::strcmp(first.message, again.message) || first.switches != again.switches) {
            why = std::string("not the same twice: ") + first.message + " / " + again.message;
        }
    }
    report(why.empty(), name, why);
}

u32 variant_of(const char* symbol) {
    u32 variant = 0;
    while (critbeta_simt_kernel_name(variant) && std::strcmp(critbeta_simt_kernel_name(variant), symbol)) ++variant;
    return variant;
}

using rows::address;

// The answer of a wrappers kernel, or what went wrong.
std::string run(const char* symbol, u32 grid, u64 seed, u32 shadow, std::vector<u32>& out) {
    struct alignas(16) Aligned {
        u32 scores[512], gap[16], workspace[4096];
    };
    auto memory = std::make_unique<Aligned>();
    const std::vector<u32> in = expected::input();
    std::memcpy(memory->scores, in.data(), sizeof memory->scores);
    std::memset(memory->workspace, 0, sizeof memory->workspace);
    RowParams params{};
    params.scores = address(memory->scores);
    params.workspace = address(memory->workspace);
    params.out = address(out.data());
    params.ctas = 2;
    const SimtBuffer buffers[] = {{params.scores, sizeof memory->scores, 0, 0},
                                  {params.out, out.size() * 4, 1, 0},
                                  {params.workspace, sizeof memory->workspace, 1, 0}};
    const SimtLaunch launch{variant_of(symbol), grid, 2048, shadow, seed, buffers, 3, &params};
    SimtOutcome outcome;
    return critbeta_simt_launch(&launch, &outcome) ? outcome.message : "";
}

void wrapper(const char* symbol, u32 grid, const std::vector<u32>& want) {
    std::string why;
    for (u64 seed = 0; seed < 5 && why.empty(); ++seed) {
        for (u32 shadow = 0; shadow < 2 && why.empty(); ++shadow) {
            std::vector<u32> out(want.size());
            why = run(symbol, grid, seed, shadow, out);
            for (std::size_t i = 0; i < want.size() && why.empty(); ++i) {
                if (out[i] == want[i]) continue;
                char text[100];
                std::snprintf(text, sizeof text, "word %zu of seed %llu is 0x%08x, not 0x%08x", i, seed, out[i], want[i]);
                why = text;
            }
        }
    }
    report(why.empty(), symbol + std::string(", ") + std::to_string(want.size()) + " words", why);
}

std::vector<u32> block_words() {
    expected::Steps steps{128, {}};
    for (u32 cta = 0; cta < 2; ++cta) expected::one_cta(steps, expected::input(), cta, 2);
    expected::halves(steps.words);
    return steps.words;
}

std::vector<u32> cluster_words() {
    expected::Steps steps{64, {}};
    for (u32 cta = 0; cta < 4; ++cta) {
        const u32 other = cta ^ 1;
        steps.step([&](u32) { return cta % 2; });
        steps.step([&](u32 t) { return 100 * other + 63 - t; });
        steps.step([&](u32 t) { return 100 * cta + t; });
        steps.step([&](u32 t) { return 1000 * other + 3 * t; });
    }
    return steps.words;
}

// The word of a thread after so many turns.
u32 passed_on(u32 cta, u32 t, u32 turns) {
    if (turns == 0) return 10 * cta + t;
    return 3 * passed_on(cta, t, turns - 1) + passed_on(cta ^ 1, (t + 1) % 64, turns - 1);
}

std::vector<u32> split_words() {
    expected::Steps steps{64, {}};
    for (u32 cta = 0; cta < 4; ++cta) {
        for (u32 turns = 1; turns <= 3; ++turns) steps.step([&](u32 t) { return passed_on(cta, t, turns); });
    }
    return steps.words;
}

void refused(const char* what, SimtLaunch launch, const char* says) {
    SimtOutcome outcome;
    const int answer = critbeta_simt_launch(&launch, &outcome);
    report(answer == 2 && std::strstr(outcome.message, says), std::string("refused: ") + what, answer == 2 ? "" : "it ran");
}

}  // namespace

int main() {
    for (u32 index = 0; critbeta_simt_fault_name(index); ++index) planted(index);

    wrapper("wrappers_f32_block128x1", 2, block_words());
    wrapper("wrappers_f32_cluster64x2", 4, cluster_words());
    wrapper("wrappers_f32_split64x1", 4, split_words());

    for (u32 variant = 0; critbeta_simt_kernel_name(variant); ++variant) {
        const char* name = critbeta_simt_kernel_name(variant);
        const rows::Symbol symbol(name);
        if (!symbol.parsed) continue;
        std::string why;
        for (u64 seed = 0; seed < 2 && why.empty(); ++seed) why = rows::check(symbol, variant, seed, critbeta_simt_launch);
        report(why.empty(), name, why);
    }

    RowParams params{};
    const SimtLaunch good{variant_of("wrappers_f32_cluster64x2"), 2, 2048, 0, 0, nullptr, 0, &params};
    SimtLaunch bad = good;
    bad.variant = 1000000;
    refused("variant", bad, "1000000");
    bad = good;
    bad.grid = 3;
    refused("half a cluster", bad, "3 CTAs");
    bad = good;
    bad.shared_bytes = 300000;
    refused("shared memory", bad, "300000");
    bad = good;
    bad.params = nullptr;
    refused("no params", bad, "params");
    bad = good;
    bad.buffer_count = 2;
    refused("no buffers", bad, "buffers");

    std::string why[2];
    const std::vector<u32> want = split_words();
    const auto work = [&](u32 i) {
        for (u64 seed = 0; seed < 20 && why[i].empty(); ++seed) {
            std::vector<u32> out(want.size());
            SimtOutcome outcome;
            why[i] = run("wrappers_f32_split64x1", 4, seed, 1, out);
            if (out != want) why[i] += "another result";
            if (critbeta_simt_fault(static_cast<u32>(seed) % 8 * 2, seed, 1, &outcome) != 1) why[i] += "fault not found";
        }
    };
    std::thread other(work, 1);
    work(0);
    other.join();
    report(why[0].empty() && why[1].empty(), "two OS threads at once", why[0] + why[1]);

    std::printf("%u passed, %u failed\n", passed, failed);
    return failed ? 1 : 0;
}
