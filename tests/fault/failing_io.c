// Lets reads and writes of one file fail with EIO, as a disk does, while another file is there.
//
// ZARR_CACHE_FAILING_FILE: the end of the name of the file whose reads and writes fail.
// ZARR_CACHE_FAILING_WHILE: the file that is there while they fail; its first byte says what fails:
// 'r' reads, 'w' writes, 's' syncs.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(int descriptor, char what) {
    const char *end = getenv("ZARR_CACHE_FAILING_FILE");
    const char *when = getenv("ZARR_CACHE_FAILING_WHILE");
    char link[64], name[PATH_MAX], now = 0;
    if (!end || !when) return 0;
    int marker = open(when, O_RDONLY);
    if (marker < 0) return 0;
    ssize_t (*own_read)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    if (own_read(marker, &now, 1) != 1) now = 0;
    close(marker);
    if (now != what) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) return 0;
    name[length] = 0;
    size_t tail = strlen(end);
    return (size_t)length >= tail && strcmp(name + length - tail, end) == 0;
}

#define FAIL_OR_PASS(what, type, function, parameters, arguments)           \
    type function parameters {                                              \
        static type (*own) parameters;                                      \
        if (!own) own = (type(*) parameters)dlsym(RTLD_NEXT, #function);    \
        if (fails(descriptor, what)) {                                      \
            errno = EIO;                                                    \
            return -1;                                                      \
        }                                                                   \
        return own arguments;                                               \
    }

FAIL_OR_PASS('r', ssize_t, read, (int descriptor, void *data, size_t length), (descriptor, data, length))
FAIL_OR_PASS('r', ssize_t, pread, (int descriptor, void *data, size_t length, off_t at), (descriptor, data, length, at))
FAIL_OR_PASS('r', ssize_t, pread64, (int descriptor, void *data, size_t length, off64_t at), (descriptor, data, length, at))
FAIL_OR_PASS('w', ssize_t, write, (int descriptor, const void *data, size_t length), (descriptor, data, length))
FAIL_OR_PASS('w', ssize_t, pwrite, (int descriptor, const void *data, size_t length, off_t at), (descriptor, data, length, at))
FAIL_OR_PASS('w', ssize_t, pwrite64, (int descriptor, const void *data, size_t length, off64_t at), (descriptor, data, length, at))
FAIL_OR_PASS('s', int, fsync, (int descriptor), (descriptor))
FAIL_OR_PASS('s', int, fdatasync, (int descriptor), (descriptor))
