/* What a program does to the files below one directory, in the order in which it was done.
 *
 * Loaded by LD_PRELOAD in front of libc. It takes the place of every call that changes a file or
 * a name, carries it out by the system call, and appends a record to a log. One lock is held
 * around the call and its record, so that the log has the only order there was; around a sync it
 * is not held, and the record tells how many records there were when the sync began.
 *
 * BGE_TORTURE_ROOT is the directory, without links in its path, and BGE_TORTURE_LOG the log, which
 * lies elsewhere. Shared memory that a file is mapped into is not seen. With what is made, and with
 * what changes a mode, an owner or times, come the facts that it has from then on.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <utime.h>

#include "preloading.h"

/* The same numbers are in recording.py. */
enum kind {
    CREATE = 1, MKDIR, WRITE, RESIZE, RESERVE, SYNC, DATASYNC, RENAME, LINK, UNLINK, RMDIR, TOUCH,
    MARK, UNKNOWN
};

struct record {
    uint32_t kind, thread, path_length, other_length;
    uint64_t began, inode, offset, length, data_length;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static const char *root;
static size_t root_length;
static uint64_t recorded;

__attribute__((constructor)) static void begin(void)
{
    const char *name = getenv("BGE_TORTURE_LOG");
    root = getenv("BGE_TORTURE_ROOT");
    if (!root || !name)
        return;
    root_length = strlen(root);
    log_fd = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) {
        perror("the log of the recorder cannot be opened");
        _exit(70);
    }
}

static void append(const void *data, size_t length)
{
    while (length) {
        ssize_t done = syscall(SYS_write, log_fd, data, length);
        if (done < 0) {
            perror("the log of the recorder cannot be written");
            _exit(70);
        }
        data = (const char *)data + done;
        length -= done;
    }
}

/* Append one record; the lock is held. */
static void put(struct record record, const char *path, const char *other,
                const struct iovec *pieces, uint64_t length)
{
    record.thread = syscall(SYS_gettid);
    record.path_length = strlen(path);
    record.other_length = strlen(other);
    record.data_length = length;
    if (record.kind != SYNC && record.kind != DATASYNC)
        record.began = recorded;
    append(&record, sizeof record);
    append(path, record.path_length);
    append(other, record.other_length);
    for (; length; pieces++) {
        size_t count = pieces->iov_len < length ? pieces->iov_len : length;
        append(pieces->iov_base, count);
        length -= count;
    }
    recorded++;
}

static void lock_it(void) { pthread_mutex_lock(&lock); }

static void unlock_it(void)
{
    int kept = errno;
    pthread_mutex_unlock(&lock);
    errno = kept;
}

/* What is under the root is told by its path from there on; the root itself has an empty one. */
static const char *below_root(const char *path)
{
    if (log_fd < 0 || strncmp(path, root, root_length))
        return NULL;
    if (path[root_length] == '/')
        return path + root_length + 1;
    return path[root_length] ? NULL : path + root_length;
}

static const char *path_of(int directory, const char *path, path_t place)
{
    int fd;
    if (log_fd < 0 || !path)
        return NULL;
    if (sscanf(path, "/proc/self/fd/%d", &fd) == 1)
        return link_of(fd, place) ? below_root(place) : NULL;
    if (path[0] == '/') {
        snprintf(place, PATH_MAX, "%s", path);
    } else if (directory == AT_FDCWD) {
        path_t here;
        if (syscall(SYS_getcwd, here, sizeof here) < 0)
            return NULL;
        if (snprintf(place, PATH_MAX, "%s/%s", here, path) >= PATH_MAX)
            return NULL;
    } else {
        path_t here;
        if (!link_of(directory, here) || snprintf(place, PATH_MAX, "%s/%s", here, path) >= PATH_MAX)
            return NULL;
    }
    return below_root(place);
}

/* The path of an open file or directory that lies below the root. */
static const char *path_of_open(int fd, path_t place)
{
    return log_fd >= 0 && link_of(fd, place) ? below_root(place) : NULL;
}

struct facts {
    uint32_t mode, uid, gid, unused;
    uint64_t mtime;
};

/* Append one record with what a file or directory is from now on. */
static void put_facts(struct record record, const char *path, const struct stat *found)
{
    struct facts facts = {.mode = found->st_mode & 07777, .uid = found->st_uid,
                          .gid = found->st_gid,
                          .mtime = found->st_mtim.tv_sec * 1000000000ULL + found->st_mtim.tv_nsec};
    struct iovec piece = {.iov_base = &facts, .iov_len = sizeof facts};
    record.inode = found->st_ino;
    put(record, path, "", &piece, sizeof facts);
}

static uint64_t inode_of_open(int fd)
{
    struct stat facts;
    return fstat(fd, &facts) ? 0 : facts.st_ino;
}

static uint64_t inode_of(int directory, const char *path)
{
    struct stat facts;
    return fstatat(directory, path, &facts, AT_SYMLINK_NOFOLLOW) ? 0 : facts.st_ino;
}

/* Files and their bytes */

static int open_it(int directory, const char *path, int flags, mode_t mode)
{
    path_t place;
    const char *under = path_of(directory, path, place);
    int changes = flags & (O_CREAT | O_TRUNC) || (flags & O_TMPFILE) == O_TMPFILE;
    if (!under || !changes)
        return syscall(SYS_openat, directory, path, flags, mode);
    lock_it();
    int is_nameless = (flags & O_TMPFILE) == O_TMPFILE;
    int was_there = !is_nameless && inode_of(directory, path) != 0;
    int fd = syscall(SYS_openat, directory, path, flags, mode);
    struct stat facts;
    if (fd >= 0 && !fstat(fd, &facts)) {
        if (!was_there)
            put_facts((struct record){.kind = CREATE}, is_nameless ? "" : under, &facts);
        else if (flags & O_TRUNC)
            put((struct record){.kind = RESIZE, .inode = facts.st_ino}, under, "", NULL, 0);
    }
    unlock_it();
    return fd;
}

static mode_t mode_of(int flags, va_list rest)
{
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                                                                \
    int name(const char *path, int flags, ...)                                                    \
    {                                                                                             \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode_t mode = mode_of(flags, rest);                                                       \
        va_end(rest);                                                                             \
        return open_it(AT_FDCWD, path, flags, mode);                                              \
    }
#define OPENAT(name)                                                                              \
    int name(int directory, const char *path, int flags, ...)                                     \
    {                                                                                             \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode_t mode = mode_of(flags, rest);                                                       \
        va_end(rest);                                                                             \
        return open_it(directory, path, flags, mode);                                             \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode)
{
    return open_it(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode) { return creat(path, mode); }

/* Write at an offset, or where the file stands if that is negative. */
static ssize_t write_it(int fd, const struct iovec *pieces, int count, off_t offset, int flags)
{
    path_t place;
    const char *under = path_of_open(fd, place);
    if (under)
        lock_it();
    ssize_t done = offset < 0 && !flags
                       ? syscall(SYS_writev, fd, pieces, count)
                       : syscall(SYS_pwritev2, fd, pieces, count, offset, 0L, flags);
    if (under) {
        if (done > 0) {
            if (offset < 0)
                offset = lseek(fd, 0, SEEK_CUR) - done;
            put((struct record){.kind = WRITE, .inode = inode_of_open(fd), .offset = offset,
                                .length = done},
                under, "", pieces, done);
        }
        unlock_it();
    }
    return done;
}

static ssize_t write_one(int fd, const void *data, size_t length, off_t offset)
{
    struct iovec piece = {.iov_base = (void *)data, .iov_len = length};
    return write_it(fd, &piece, 1, offset, 0);
}

ssize_t write(int fd, const void *data, size_t length) { return write_one(fd, data, length, -1); }

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    return write_one(fd, data, length, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
    return write_one(fd, data, length, offset);
}

ssize_t writev(int fd, const struct iovec *pieces, int count)
{
    return write_it(fd, pieces, count, -1, 0);
}

ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t offset)
{
    return write_it(fd, pieces, count, offset, 0);
}

ssize_t pwritev64(int fd, const struct iovec *pieces, int count, off64_t offset)
{
    return write_it(fd, pieces, count, offset, 0);
}

ssize_t pwritev2(int fd, const struct iovec *pieces, int count, off_t offset, int flags)
{
    return write_it(fd, pieces, count, offset, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec *pieces, int count, off64_t offset, int flags)
{
    return write_it(fd, pieces, count, offset, flags);
}

int ftruncate(int fd, off_t size)
{
    path_t place;
    const char *under = path_of_open(fd, place);
    if (under)
        lock_it();
    int failed = syscall(SYS_ftruncate, fd, size);
    if (under) {
        if (!failed)
            put((struct record){.kind = RESIZE, .inode = inode_of_open(fd), .length = size}, under,
                "", NULL, 0);
        unlock_it();
    }
    return failed;
}

int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

int truncate(const char *path, off_t size)
{
    path_t place;
    const char *under = path_of(AT_FDCWD, path, place);
    if (under)
        lock_it();
    int failed = syscall(SYS_truncate, path, size);
    if (under) {
        if (!failed)
            put((struct record){.kind = RESIZE, .inode = inode_of(AT_FDCWD, path), .length = size},
                under, "", NULL, 0);
        unlock_it();
    }
    return failed;
}

int truncate64(const char *path, off64_t size) { return truncate(path, size); }

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    path_t place;
    const char *under = path_of_open(fd, place);
    if (under)
        lock_it();
    int failed = syscall(SYS_fallocate, fd, mode, offset, length);
    if (under) {
        if (!failed)
            put((struct record){.kind = mode ? UNKNOWN : RESERVE, .inode = inode_of_open(fd),
                                .length = offset + length},
                under, mode ? "fallocate with a mode" : "", NULL, 0);
        unlock_it();
    }
    return failed;
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
    return fallocate(fd, mode, offset, length);
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
    return fallocate(fd, 0, offset, length) ? errno : 0;
}

int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
    return posix_fallocate(fd, offset, length);
}

/* Ways to write that nobody here goes; a recording that has one of them is not believed. */
static ssize_t unknown(ssize_t done, int fd, const char *call)
{
    path_t place;
    const char *under = path_of_open(fd, place);
    if (under && done > 0) {
        lock_it();
        put((struct record){.kind = UNKNOWN}, under, call, NULL, 0);
        unlock_it();
    }
    return done;
}

ssize_t sendfile(int out, int in, off_t *offset, size_t count)
{
    return unknown(syscall(SYS_sendfile, out, in, offset, count), out, "sendfile");
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t count)
{
    return sendfile(out, in, offset, count);
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    int done = syscall(SYS_ioctl, fd, request, argument);
    int clones = request == FICLONE || request == FICLONERANGE || request == FIDEDUPERANGE;
    if (clones && done >= 0)
        unknown(1, fd, "ioctl that clones");
    return done;
}

ssize_t splice(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags)
{
    return unknown(syscall(SYS_splice, in, from, out, to, count, flags), out, "splice");
}

/* As writing what is read: the log has the bytes, however the file system shares them. */
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags)
{
    path_t place;
    const char *under = path_of_open(out, place);
    if (!under)
        return syscall(SYS_copy_file_range, in, from, out, to, count, flags);
    lock_it();
    off64_t start = from ? *from : lseek(in, 0, SEEK_CUR);
    off64_t offset = to ? *to : lseek(out, 0, SEEK_CUR);
    ssize_t done = syscall(SYS_copy_file_range, in, from, out, to, count, flags);
    if (done > 0) {
        char *copied = malloc(done);
        ssize_t read = copied ? syscall(SYS_pread64, in, copied, done, start) : -1;
        struct iovec piece = {.iov_base = copied, .iov_len = done};
        int is_known = read == done;
        put((struct record){.kind = is_known ? WRITE : UNKNOWN, .inode = inode_of_open(out),
                            .offset = offset, .length = done},
            under, is_known ? "" : "copy_file_range", &piece, is_known ? done : 0);
        free(copied);
    }
    unlock_it();
    return done;
}

/* Syncs */

static int sync_it(int fd, enum kind kind, long call)
{
    path_t place;
    const char *under = path_of_open(fd, place);
    if (!under)
        return syscall(call, fd);
    lock_it();
    uint64_t began = recorded;
    unlock_it();
    int failed = syscall(call, fd);
    lock_it();
    if (!failed)
        put((struct record){.kind = kind, .began = began, .inode = inode_of_open(fd)}, under, "",
            NULL, 0);
    unlock_it();
    return failed;
}

int fsync(int fd) { return sync_it(fd, SYNC, SYS_fsync); }
int fdatasync(int fd) { return sync_it(fd, DATASYNC, SYS_fdatasync); }

/* Names */

/* Carry out a call on one name and record it, with the inode that has the name afterwards. */
#define ON_NAME(kind_, directory, path, call)                                                     \
    do {                                                                                          \
        path_t place;                                                                             \
        const char *under = path_of(directory, path, place);                                      \
        if (!under)                                                                               \
            return call;                                                                          \
        lock_it();                                                                                \
        int failed = call;                                                                        \
        if (!failed)                                                                              \
            put((struct record){.kind = kind_, .inode = inode_of(directory, path)}, under, "",    \
                NULL, 0);                                                                         \
        unlock_it();                                                                              \
        return failed;                                                                            \
    } while (0)

/* The same, with the facts. */
#define ON_FACTS(kind_, directory, path, follow, call)                                            \
    do {                                                                                          \
        path_t place;                                                                             \
        const char *under = path_of(directory, path, place);                                      \
        if (!under)                                                                               \
            return call;                                                                          \
        lock_it();                                                                                \
        int failed = call;                                                                        \
        struct stat facts;                                                                        \
        if (!failed && !fstatat(directory, path, &facts, follow))                                 \
            put_facts((struct record){.kind = kind_}, under, &facts);                             \
        unlock_it();                                                                              \
        return failed;                                                                            \
    } while (0)

#define ON_FACTS_OF_OPEN(fd, call)                                                                \
    do {                                                                                          \
        path_t place;                                                                             \
        const char *under = path_of_open(fd, place);                                              \
        if (!under)                                                                               \
            return call;                                                                          \
        lock_it();                                                                                \
        int failed = call;                                                                        \
        struct stat facts;                                                                        \
        if (!failed && !fstat(fd, &facts))                                                        \
            put_facts((struct record){.kind = TOUCH}, under, &facts);                             \
        unlock_it();                                                                              \
        return failed;                                                                            \
    } while (0)

int mkdirat(int directory, const char *path, mode_t mode)
{
    ON_FACTS(MKDIR, directory, path, AT_SYMLINK_NOFOLLOW,
             syscall(SYS_mkdirat, directory, path, mode));
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int directory, const char *path, int flags)
{
    ON_NAME(flags & AT_REMOVEDIR ? RMDIR : UNLINK, directory, path,
            syscall(SYS_unlinkat, directory, path, flags));
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int symlinkat(const char *target, int directory, const char *path)
{
    ON_NAME(UNKNOWN, directory, path, syscall(SYS_symlinkat, target, directory, path));
}

int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

int mknodat(int directory, const char *path, mode_t mode, dev_t device)
{
    ON_NAME(UNKNOWN, directory, path, syscall(SYS_mknodat, directory, path, mode, device));
}

int mknod(const char *path, mode_t mode, dev_t device)
{
    return mknodat(AT_FDCWD, path, mode, device);
}

int mkfifoat(int directory, const char *path, mode_t mode)
{
    return mknodat(directory, path, mode | S_IFIFO, 0);
}

int mkfifo(const char *path, mode_t mode) { return mkfifoat(AT_FDCWD, path, mode); }

/* Modes, owners and times */

int fchmodat(int directory, const char *path, mode_t mode, int flags)
{
    if (flags) {
        errno = EOPNOTSUPP;
        return -1;
    }
    ON_FACTS(TOUCH, directory, path, 0, syscall(SYS_fchmodat, directory, path, mode));
}

int chmod(const char *path, mode_t mode) { return fchmodat(AT_FDCWD, path, mode, 0); }

int fchmod(int fd, mode_t mode) { ON_FACTS_OF_OPEN(fd, syscall(SYS_fchmod, fd, mode)); }

int fchownat(int directory, const char *path, uid_t owner, gid_t group, int flags)
{
    ON_FACTS(TOUCH, directory, path, flags & AT_SYMLINK_NOFOLLOW,
             syscall(SYS_fchownat, directory, path, owner, group, flags));
}

int chown(const char *path, uid_t owner, gid_t group)
{
    return fchownat(AT_FDCWD, path, owner, group, 0);
}

int lchown(const char *path, uid_t owner, gid_t group)
{
    return fchownat(AT_FDCWD, path, owner, group, AT_SYMLINK_NOFOLLOW);
}

int fchown(int fd, uid_t owner, gid_t group)
{
    ON_FACTS_OF_OPEN(fd, syscall(SYS_fchown, fd, owner, group));
}

int utimensat(int directory, const char *path, const struct timespec times[2], int flags)
{
    ON_FACTS(TOUCH, directory, path, flags & AT_SYMLINK_NOFOLLOW,
             syscall(SYS_utimensat, directory, path, times, flags));
}

int futimens(int fd, const struct timespec times[2])
{
    ON_FACTS_OF_OPEN(fd, syscall(SYS_utimensat, fd, NULL, times, 0));
}

static int touch_it(int directory, const char *path, const struct timeval times[2], int flags)
{
    struct timespec exact[2];
    for (int which = 0; times && which < 2; which++)
        exact[which] = (struct timespec){.tv_sec = times[which].tv_sec,
                                         .tv_nsec = times[which].tv_usec * 1000};
    return utimensat(directory, path, times ? exact : NULL, flags);
}

int utimes(const char *path, const struct timeval times[2])
{
    return touch_it(AT_FDCWD, path, times, 0);
}

int lutimes(const char *path, const struct timeval times[2])
{
    return touch_it(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW);
}

int futimesat(int directory, const char *path, const struct timeval times[2])
{
    return touch_it(directory, path, times, 0);
}

int utime(const char *path, const struct utimbuf *times)
{
    struct timespec exact[2];
    if (times) {
        exact[0] = (struct timespec){.tv_sec = times->actime};
        exact[1] = (struct timespec){.tv_sec = times->modtime};
    }
    return utimensat(AT_FDCWD, path, times ? exact : NULL, 0);
}

int setxattr(const char *path, const char *name, const void *value, size_t size, int flags)
{
    ON_NAME(UNKNOWN, AT_FDCWD, path, syscall(SYS_setxattr, path, name, value, size, flags));
}

int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags)
{
    int failed = syscall(SYS_fsetxattr, fd, name, value, size, flags);
    if (!failed)
        unknown(1, fd, "fsetxattr");
    return failed;
}

/* Changes of two names */

static int on_two_names(enum kind kind, int from, const char *old, int to, const char *new,
                        unsigned flags)
{
    path_t place, other_place;
    const char *under = path_of(from, old, place), *other = path_of(to, new, other_place);
    long call = kind == RENAME ? SYS_renameat2 : SYS_linkat;
    if (!under && !other)
        return syscall(call, from, old, to, new, flags);
    lock_it();
    uint64_t inode = inode_of(from, old);
    int failed = syscall(call, from, old, to, new, flags);
    if (!failed) {
        int is_known = under && other && !(kind == RENAME && flags & ~1U);
        put((struct record){.kind = is_known ? kind : UNKNOWN, .inode = inode},
            under ? under : "", other ? other : "", NULL, 0);
    }
    unlock_it();
    return failed;
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags)
{
    return on_two_names(RENAME, from, old, to, new, flags);
}

int renameat(int from, const char *old, int to, const char *new)
{
    return on_two_names(RENAME, from, old, to, new, 0);
}

int rename(const char *old, const char *new)
{
    return on_two_names(RENAME, AT_FDCWD, old, AT_FDCWD, new, 0);
}

int linkat(int from, const char *old, int to, const char *new, int flags)
{
    return on_two_names(LINK, from, old, to, new, flags);
}

int link(const char *old, const char *new)
{
    return on_two_names(LINK, AT_FDCWD, old, AT_FDCWD, new, 0);
}

/* What the program knows to be safe, in its own words. */
void recorder_mark(const char *text)
{
    if (log_fd < 0)
        return;
    lock_it();
    put((struct record){.kind = MARK}, text, "", NULL, 0);
    unlock_it();
}
