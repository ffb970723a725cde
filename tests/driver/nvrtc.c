/* NVRTC as far as an engine calls it. tests/driver.rs puts it in the place of libnvrtc.so.13. A compilation
 * takes half a second and appends a line to the file of NVRTC_LOG. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char image[] = "an image";

int nvrtcVersion(int *major, int *minor) { return *major = 13, *minor = 0; }
int nvrtcCreateProgram(void **program, const char *source, const char *name, int count,
                       const char *const *headers, const char *const *names) {
    return *program = (void *)1, 0;
}
int nvrtcCompileProgram(void *program, int count, const char *const *options) {
    FILE *log = fopen(getenv("NVRTC_LOG"), "a");
    if (!log) return 1;
    fprintf(log, "compiled\n");
    fclose(log);
    usleep(500000);
    return 0;
}
int nvrtcDestroyProgram(void **program) { return 0; }
int nvrtcGetCUBINSize(void *program, size_t *size) { return *size = sizeof image, 0; }
int nvrtcGetCUBIN(void *program, char *to) { return memcpy(to, image, sizeof image), 0; }
int nvrtcGetProgramLogSize(void *program, size_t *size) { return *size = 1, 0; }
int nvrtcGetProgramLog(void *program, char *to) { return *to = 0; }
const char *nvrtcGetErrorString(int status) { return status ? "no log" : "success"; }
