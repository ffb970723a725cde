/* The CUDA driver as far as an engine calls it: host memory, no kernels, and a current context per thread.
 * tests/driver.rs puts it in the place of libcuda.so.1. Every function succeeds. */
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;

/* Attributes of a device, by their numbers in cuda.h: an H200. */
static int attribute(int which) {
    switch (which) {
    case 75: return 9;       /* compute capability, major */
    case 76: return 0;       /* minor */
    case 16: return 132;     /* SMs */
    case 97: return 232448;  /* shared bytes of a CTA, opt-in */
    case 81: return 233472;  /* shared bytes of an SM */
    case 39: return 2048;    /* threads of an SM */
    default: return 1;
    }
}

static _Thread_local void *stack[64];
static _Thread_local int depth = -1;

/* The host's own context is current in every thread, unless DRIVER_CURRENT is none. */
static void begin(void) {
    if (depth >= 0) return;
    const char *current = getenv("DRIVER_CURRENT");
    depth = current && !strcmp(current, "none") ? 0 : 1;
    stack[0] = (void *)0x77;
}
int cuCtxGetCurrent(void **context) {
    begin();
    *context = depth ? stack[depth - 1] : NULL;
    return 0;
}
int cuCtxSetCurrent(void *context) {
    begin();
    if (depth) --depth;
    if (context) stack[depth++] = context;
    return 0;
}
int cuCtxPushCurrent_v2(void *context) {
    begin();
    stack[depth++] = context;
    return 0;
}
int cuCtxPopCurrent_v2(void **context) {
    begin();
    if (!depth) return 201;
    *context = stack[--depth];
    return 0;
}
int cuCtxGetDevice(int *device) { return *device = 0; }
int cuCtxSynchronize(void) { return 0; }

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = 0; }
int cuDeviceGetName(char *name, int len, int device) { return strncpy(name, "a driver in C", len), 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { return *value = attribute(which), 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)0x1000, 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }

int cuModuleLoadData(void **module, const void *image) { return *module = (void *)0x2000, 0; }
int cuModuleUnload(void *module) { return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    return *function = (void *)0x3000, 0;
}
int cuFuncGetAttribute(int *value, int which, void *function) { return *value = 0; }
int cuFuncSetAttribute(void *function, int which, int value) { return 0; }
int cuOccupancyMaxActiveClusters(int *count, void *function, void *config) { return *count = 1, 0; }
int cuLaunchKernelEx(void *config, void *function, void **arguments, void **extra) { return 0; }

int cuThreadExchangeStreamCaptureMode(int *mode) { return 0; }

int cuStreamCreate(void **stream, unsigned flags) { return *stream = (void *)0x4000, 0; }
int cuStreamDestroy_v2(void *stream) { return 0; }
int cuStreamSynchronize(void *stream) { return 0; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return 0; }
int cuStreamGetCtx(void *stream, void **context) { return *context = (void *)0x1000, 0; }
int cuEventCreate(void **event, unsigned flags) { return *event = (void *)0x5000, 0; }
int cuEventRecord(void *event, void *stream) { return 0; }
int cuEventSynchronize(void *event) { return 0; }
int cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) { return *milliseconds = 1, 0; }
int cuEventElapsedTime(float *milliseconds, void *start, void *end) { return *milliseconds = 1, 0; }
int cuEventDestroy_v2(void *event) { return 0; }

static int taken(u64 *address, size_t bytes) {
    return *address = (u64)aligned_alloc(256, (bytes + 255) / 256 * 256), 0;
}
int cuMemAlloc_v2(u64 *address, size_t bytes) { return taken(address, bytes); }
int cuMemAllocAsync(u64 *address, size_t bytes, void *stream) { return taken(address, bytes); }
int cuMemFree_v2(u64 address) { return free((void *)address), 0; }
int cuMemFreeAsync(u64 address, void *stream) { return free((void *)address), 0; }
int cuMemsetD8Async(u64 to, unsigned char value, size_t bytes, void *stream) {
    return memset((void *)to, value, bytes), 0;
}
int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t bytes, void *stream) {
    return memcpy((void *)to, from, bytes), 0;
}
int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t bytes, void *stream) {
    return memcpy(to, (void *)from, bytes), 0;
}
int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, void *stream) {
    return memcpy((void *)to, (void *)from, bytes), 0;
}
