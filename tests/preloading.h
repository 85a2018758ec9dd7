/* What the libraries share that tests load in front of libc; see preloading.py. */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#if __WORDSIZE != 64
#error "offsets are passed in one register"
#endif

typedef char path_t[PATH_MAX];

/* Tell what an open file is called; 0 if nobody knows. */
static int link_of(int fd, path_t place)
{
    char proc[64];
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, proc, place, PATH_MAX - 1);
    place[length < 0 ? 0 : length] = 0;
    return length > 0;
}
