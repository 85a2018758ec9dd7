/* A libc of which calls fail on order, below one directory; which sends its own process signals at
 * exact moments, and lets its clock jump.
 *
 * Loaded by LD_PRELOAD in front of libc, so whoever makes a call meets the fault: Python, SQLite, any
 * library. The orders are in a file that is shared with whoever gives them, who may change them at any
 * time: FAULTY_ORDERS names it, or `faulty_obey` is given its name later on.
 *
 * A call is one of a kind on a path below `root`. A moment is any call that is seen here at all.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "preloading.h"

/* The same names, in the same order, are in faulty.py. */
enum kind {
    OPEN, READ, WRITE, RESIZE, RESERVE, SYNC, DATASYNC, SYNC_NAMES, RENAME, UNLINK, MKDIR, LOCK, MAP,
    CLOSE, LIST, LOOK
};

#define MOST_SIGNALS 4

/* The same layout is in faulty.py. Of counters, only this library is the writer. */
struct orders {
    uint32_t kinds;                                    /* which fail: a bit for each */
    int32_t code;                                      /* the errno that they fail with */
    uint32_t first, last;                              /* which of the calls fail, from 1 on */
    uint32_t count, refused;                           /* how many there were, and have failed */
    uint32_t moments;                                  /* how many there were */
    struct { uint32_t number, at; } signals[MOST_SIGNALS]; /* at which moment each is sent */
    uint32_t sent;                                     /* how many signals were */
    int64_t ahead;                                     /* seconds that the clock goes too fast by */
    char root[PATH_MAX];                               /* of no length: no call fails */
    char begins[PATH_MAX];                             /* in the path whose opening is moment 1 */
};

static struct orders *orders;
static int has_begun;

void faulty_obey(const char *name)
{
    int fd = syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC);
    void *there = fd < 0 ? MAP_FAILED
                         : (void *)syscall(SYS_mmap, NULL, sizeof *orders, PROT_READ | PROT_WRITE,
                                           MAP_SHARED, fd, 0L);
    if (there == MAP_FAILED) {
        perror("the orders of the faulty libc cannot be read");
        _exit(70);
    }
    syscall(SYS_close, fd);
    orders = there;
    has_begun = !orders->begins[0];
}

__attribute__((constructor)) static void begin(void)
{
    const char *name = getenv("FAULTY_ORDERS");
    if (name)
        faulty_obey(name);
}

/* Count a moment, and send what is to be sent at it. */
static void moment(void)
{
    if (!orders || !has_begun)
        return;
    int kept = errno;
    uint32_t now = __atomic_add_fetch(&orders->moments, 1, __ATOMIC_SEQ_CST);
    for (int each = 0; each < MOST_SIGNALS; each++) {
        if (orders->signals[each].number && orders->signals[each].at == now) {
            __atomic_add_fetch(&orders->sent, 1, __ATOMIC_SEQ_CST);
            syscall(SYS_kill, getpid(), orders->signals[each].number);
        }
    }
    errno = kept;
}

static int is_ordered(enum kind kind)
{
    moment();
    return orders && orders->root[0] && orders->kinds & 1U << kind;
}

/* Count a call of a kind that was ordered; tell whether it is to fail, with errno set. */
static int fails(const char *path)
{
    size_t length = strlen(orders->root);
    if (strncmp(path, orders->root, length) || (path[length] && path[length] != '/'))
        return 0;
    uint32_t now = __atomic_add_fetch(&orders->count, 1, __ATOMIC_SEQ_CST);
    if (now < orders->first || now > orders->last)
        return 0;
    __atomic_add_fetch(&orders->refused, 1, __ATOMIC_SEQ_CST);
    errno = orders->code;
    return 1;
}

static int fails_on_open(enum kind kind, int fd)
{
    path_t place;
    int kept = errno;
    if (!is_ordered(kind))
        return 0;
    if (link_of(fd, place) && fails(place))
        return 1;
    errno = kept;
    return 0;
}

static int fails_on_path(enum kind kind, int directory, const char *path)
{
    path_t place;
    if (!is_ordered(kind) || !path)
        return 0;
    int kept = errno, length = 0;
    if (path[0] == '/') {
        length = snprintf(place, PATH_MAX, "%s", path);
    } else {
        path_t here;
        int is_known = directory == AT_FDCWD ? syscall(SYS_getcwd, here, sizeof here) > 0
                                             : link_of(directory, here);
        if (is_known)
            length = snprintf(place, PATH_MAX, path[0] ? "%s/%s" : "%s", here, path);
    }
    if (length > 0 && length < PATH_MAX && fails(place))
        return 1;
    errno = kept;
    return 0;
}

/* Files and their bytes */

static int open_it(int directory, const char *path, int flags, mode_t mode)
{
    if (orders && !has_begun && strstr(path, orders->begins))
        has_begun = 1;
    return fails_on_path(OPEN, directory, path)
               ? -1
               : (int)syscall(SYS_openat, directory, path, flags, mode);
}

#define MODE(flags)                                                                               \
    mode_t mode = 0;                                                                              \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {                                    \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode = va_arg(rest, mode_t);                                                              \
        va_end(rest);                                                                             \
    }
#define OPEN_BY(name)                                                                             \
    int name(const char *path, int flags, ...)                                                    \
    {                                                                                             \
        MODE(flags)                                                                               \
        return open_it(AT_FDCWD, path, flags, mode);                                              \
    }
#define OPENAT_BY(name)                                                                           \
    int name(int directory, const char *path, int flags, ...)                                     \
    {                                                                                             \
        MODE(flags)                                                                               \
        return open_it(directory, path, flags, mode);                                             \
    }
OPEN_BY(open)
OPEN_BY(open64)
OPENAT_BY(openat)
OPENAT_BY(openat64)

/* Only what was written to fails to close, as on a network disk; it is closed all the same. */
int close(int fd)
{
    int access = syscall(SYS_fcntl, fd, F_GETFL, 0L);
    int is_written = access >= 0 && (access & O_ACCMODE) != O_RDONLY;
    int is_to_fail = is_written && fails_on_open(CLOSE, fd), kept = errno;
    int failed = syscall(SYS_close, fd);
    if (is_to_fail)
        errno = kept;
    return is_to_fail ? -1 : failed;
}

#define ON_OPEN(kind, fd, call) return fails_on_open(kind, fd) ? -1 : (call)

ssize_t read(int fd, void *data, size_t length)
{
    ON_OPEN(READ, fd, syscall(SYS_read, fd, data, length));
}

ssize_t pread64(int fd, void *data, size_t length, off64_t offset)
{
    ON_OPEN(READ, fd, syscall(SYS_pread64, fd, data, length, offset));
}

ssize_t pread(int fd, void *data, size_t length, off_t offset)
{
    return pread64(fd, data, length, offset);
}

ssize_t write(int fd, const void *data, size_t length)
{
    ON_OPEN(WRITE, fd, syscall(SYS_write, fd, data, length));
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
    ON_OPEN(WRITE, fd, syscall(SYS_pwrite64, fd, data, length, offset));
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    return pwrite64(fd, data, length, offset);
}

ssize_t writev(int fd, const struct iovec *pieces, int count)
{
    ON_OPEN(WRITE, fd, syscall(SYS_writev, fd, pieces, count));
}

ssize_t pwritev64v2(int fd, const struct iovec *pieces, int count, off64_t offset, int flags)
{
    ON_OPEN(WRITE, fd, syscall(SYS_pwritev2, fd, pieces, count, offset, 0L, flags));
}

ssize_t pwritev2(int fd, const struct iovec *pieces, int count, off_t offset, int flags)
{
    return pwritev64v2(fd, pieces, count, offset, flags);
}

ssize_t pwritev64(int fd, const struct iovec *pieces, int count, off64_t offset)
{
    return pwritev64v2(fd, pieces, count, offset, 0);
}

ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t offset)
{
    return pwritev64v2(fd, pieces, count, offset, 0);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags)
{
    ON_OPEN(WRITE, out, syscall(SYS_copy_file_range, in, from, out, to, count, flags));
}

int ftruncate64(int fd, off64_t size) { ON_OPEN(RESIZE, fd, syscall(SYS_ftruncate, fd, size)); }
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
    ON_OPEN(RESERVE, fd, syscall(SYS_fallocate, fd, mode, offset, length));
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    return fallocate64(fd, mode, offset, length);
}

/* Of a directory, it is its names that are synced. */
int fsync(int fd)
{
    struct stat facts;
    int is_directory = !syscall(SYS_fstat, fd, &facts) && S_ISDIR(facts.st_mode);
    ON_OPEN(is_directory ? SYNC_NAMES : SYNC, fd, syscall(SYS_fsync, fd));
}

int fdatasync(int fd) { ON_OPEN(DATASYNC, fd, syscall(SYS_fdatasync, fd)); }

int flock(int fd, int operation) { ON_OPEN(LOCK, fd, syscall(SYS_flock, fd, operation)); }

int fcntl64(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    int is_lock = command == F_SETLK || command == F_SETLKW; /* to give one back never fails */
    if (is_lock && ((struct flock *)argument)->l_type != F_UNLCK && fails_on_open(LOCK, fd))
        return -1;
    return syscall(SYS_fcntl, fd, command, argument);
}

int fcntl(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return fcntl64(fd, command, argument);
}

void *mmap64(void *address, size_t length, int access, int flags, int fd, off64_t offset)
{
    if (fd >= 0 && fails_on_open(MAP, fd))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, address, length, access, flags, fd, offset);
}

void *mmap(void *address, size_t length, int access, int flags, int fd, off_t offset)
{
    return mmap64(address, length, access, flags, fd, offset);
}

/* Names */

#define ON_PATH(kind, directory, path, call)                                                      \
    return fails_on_path(kind, directory, path) ? -1 : (call)

int mkdirat(int directory, const char *path, mode_t mode)
{
    ON_PATH(MKDIR, directory, path, syscall(SYS_mkdirat, directory, path, mode));
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int directory, const char *path, int flags)
{
    ON_PATH(UNLINK, directory, path, syscall(SYS_unlinkat, directory, path, flags));
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int renameat2(int from, const char *old, int to, const char *new, unsigned flags)
{
    ON_PATH(RENAME, from, old, syscall(SYS_renameat2, from, old, to, new, flags));
}

int renameat(int from, const char *old, int to, const char *new)
{
    return renameat2(from, old, to, new, 0);
}

int rename(const char *old, const char *new)
{
    return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0);
}

int fstatat64(int directory, const char *path, struct stat64 *facts, int flags)
{
    ON_PATH(LOOK, directory, path, syscall(SYS_newfstatat, directory, path, facts, flags));
}

int stat64(const char *path, struct stat64 *facts) { return fstatat64(AT_FDCWD, path, facts, 0); }

int lstat64(const char *path, struct stat64 *facts)
{
    return fstatat64(AT_FDCWD, path, facts, AT_SYMLINK_NOFOLLOW);
}

int fstat64(int fd, struct stat64 *facts) { ON_OPEN(LOOK, fd, syscall(SYS_fstat, fd, facts)); }

struct dirent64 *readdir64(DIR *directory)
{
    static struct dirent64 *(*usual)(DIR *);
    if (!usual)
        usual = (struct dirent64 *(*)(DIR *))dlsym(RTLD_NEXT, "readdir64");
    int is_first = telldir(directory) == 0; /* a directory is listed once, whatever is in it */
    return is_first && fails_on_open(LIST, dirfd(directory)) ? NULL : usual(directory);
}

/* The network: moments only */

ssize_t recvfrom(int fd, void *data, size_t length, int flags, struct sockaddr *from,
                 socklen_t *from_length)
{
    moment();
    return syscall(SYS_recvfrom, fd, data, length, flags, from, from_length);
}

ssize_t recv(int fd, void *data, size_t length, int flags)
{
    return recvfrom(fd, data, length, flags, NULL, NULL);
}

ssize_t send(int fd, const void *data, size_t length, int flags)
{
    moment();
    return syscall(SYS_sendto, fd, data, length, flags, NULL, 0);
}

int epoll_wait(int fd, struct epoll_event *events, int most, int milliseconds)
{
    moment();
    return syscall(SYS_epoll_wait, fd, events, most, milliseconds);
}

/* The clock of the day; the one that only counts never jumps. */

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && orders && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += __atomic_load_n(&orders->ahead, __ATOMIC_SEQ_CST);
    return failed;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where)
{
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (where)
        *where = precise.tv_sec;
    return precise.tv_sec;
}
