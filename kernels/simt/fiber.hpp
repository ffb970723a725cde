// Fibers: each has a stack, and the place where it was left. The switch is written by hand because ucontext
// makes a system call for the signal mask, 180-365 ns against 11-24 ns (2026-11).
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif
#if SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#define SIMT_UCONTEXT 1
#endif

#if SIMT_UCONTEXT
#include <ucontext.h>
#else
extern "C" void critbeta_simt_switch(void** from, void* to) __asm__("critbeta_simt_switch");
#if defined(__x86_64__)
// The C convention keeps six registers and the stack pointer.
__asm__(R"(
.text
.p2align 4
critbeta_simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmpq *%rcx
)");
constexpr std::uint64_t SIMT_SAVED_WORDS = 8, SIMT_ENTRY_WORD = 6;
#else
__asm__(R"(
.text
.p2align 4
critbeta_simt_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
constexpr std::uint64_t SIMT_SAVED_WORDS = 20, SIMT_ENTRY_WORD = 11;
#endif
#endif

namespace simt::host {

struct Context {
#if SIMT_UCONTEXT
    ucontext_t saved;
#else
    void* saved = nullptr;
#endif
    std::uint8_t* low = nullptr;  // the lowest byte of its stack
    std::uint64_t bytes = 0;
};

inline void prepare(Context& context, std::uint8_t* low, std::uint64_t bytes, void (*entry)()) {
    context.low = low;
    context.bytes = bytes;
#if SIMT_ASAN
    // The last words of the previous thread on this stack, which never came back to take its marks off.
    __asan_unpoison_memory_region(low + bytes - 4096, 4096);
#endif
#if SIMT_UCONTEXT
    getcontext(&context.saved);
    context.saved.uc_stack.ss_sp = low;
    context.saved.uc_stack.ss_size = bytes;
    makecontext(&context.saved, entry, 0);
#else
    const auto top = reinterpret_cast<std::uintptr_t>(low + bytes) & ~std::uintptr_t{15};
    void** frame = reinterpret_cast<void**>(top) - SIMT_SAVED_WORDS;
    std::memset(frame, 0, SIMT_SAVED_WORDS * sizeof(void*));
    frame[SIMT_ENTRY_WORD] = reinterpret_cast<void*>(entry);
    context.saved = frame;
#endif
}

inline void change(Context& from, Context& to) {
#if SIMT_ASAN
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, to.low, to.bytes);
#endif
#if SIMT_UCONTEXT
    swapcontext(&from.saved, &to.saved);
#else
    critbeta_simt_switch(&from.saved, to.saved);
#endif
#if SIMT_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

// The first call of a fiber. origin: the context of the OS thread, whose stack only the sanitizer knows.
inline void entered([[maybe_unused]] Context& origin) {
#if SIMT_ASAN
    const void* low = nullptr;
    std::size_t bytes = 0;
    __sanitizer_finish_switch_fiber(nullptr, &low, &bytes);
    if (!origin.low) {
        origin.low = const_cast<std::uint8_t*>(static_cast<const std::uint8_t*>(low));
        origin.bytes = bytes;
    }
#endif
}

// All stacks of one OS thread, in one mapping that stays from launch to launch. They are not a multiple of a
// page apart, or the tops of all would lie in the same cache sets. The lowest bytes must stay zero, as they
// are mapped: a canary that costs no page of memory.
class Stacks {
  public:
#if SIMT_ASAN
    static constexpr std::uint64_t BYTES = 256 * 1024 + 192;
#else
    static constexpr std::uint64_t BYTES = 64 * 1024 + 192;
#endif
    static constexpr std::uint64_t CANARY = 64, MARGIN = 2048;

    Stacks() = default;
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;
    ~Stacks() { drop(); }

    // False if the system has no room for them.
    bool reserve(std::uint64_t wanted) {
        if (wanted <= count) return true;
        drop();
        constexpr int FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* mapped = mmap(nullptr, wanted * BYTES, PROT_READ | PROT_WRITE, FLAGS, -1, 0);
        if (mapped == MAP_FAILED) return false;
#ifdef MADV_NOHUGEPAGE
        // Each stack touches a page or two; huge pages would fill them all.
        madvise(mapped, wanted * BYTES, MADV_NOHUGEPAGE);
#endif
        base = static_cast<std::uint8_t*>(mapped);
        count = wanted;
        return true;
    }
    std::uint8_t* low(std::uint64_t i) const { return base + i * BYTES; }
    static bool overrun(const std::uint8_t* low) {
        std::uint64_t words[CANARY / 8];
        std::memcpy(words, low, CANARY);
        std::uint64_t any = 0;
        for (const std::uint64_t word : words) any |= word;
        return any != 0;
    }
    // After a fault the fibers are left in the middle of their frames.
    void drop() {
        if (!base) return;
#if SIMT_ASAN
        __asan_unpoison_memory_region(base, count * BYTES);
#endif
        munmap(base, count * BYTES);
        base = nullptr;
        count = 0;
    }

  private:
    std::uint8_t* base = nullptr;
    std::uint64_t count = 0;
};

}  // namespace simt::host
