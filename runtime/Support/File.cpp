// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/File.h"

#include "runtime/Support/Text.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <limits>

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

namespace moec {

namespace {

/// Calls `call` again as long as a signal interrupts it.
template <typename Call> auto retry(Call call) {
  auto result = call();
  while (result == -1 && errno == EINTR)
    result = call();
  return result;
}

/// "PATH: cannot be VERBED: REASON", from errno.
Error failed(const std::string &path, const char *verbed) {
  int error = errno;
  return Error{path + ": cannot be " + verbed + ": " + errnoToString(error)};
}

/// Closes on every way out.
class Descriptor {
public:
  explicit Descriptor(int fd) : fd(fd) {}
  Descriptor(Descriptor &&other) noexcept : fd(std::exchange(other.fd, -1)) {}
  Descriptor &operator=(Descriptor &&) = delete;
  ~Descriptor() {
    if (fd >= 0)
      ::close(fd);
  }
  int get() const { return fd; }
  int release() { return std::exchange(fd, -1); }

private:
  int fd;
};

const char *kindOf(mode_t mode) {
  switch (mode & S_IFMT) {
  case S_IFREG:
    return "a regular file";
  case S_IFDIR:
    return "a directory";
  case S_IFIFO:
    return "a pipe";
  case S_IFSOCK:
    return "a socket";
  default:
    return "a device";
  }
}

struct OpenFile {
  Descriptor fd;
  uint64_t size;
};

Result<OpenFile> openRegular(const std::string &path) {
  if (path.find('\0') != std::string::npos)
    return Error{quote(path) + ": a path cannot hold a NUL byte"};
  // O_NONBLOCK: opening a pipe that nobody writes must not wait for ever.
  Descriptor fd(retry([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); }));
  if (fd.get() < 0)
    return failed(path, "opened");
  struct stat info;
  if (::fstat(fd.get(), &info) != 0)
    return failed(path, "examined");
  if (!S_ISREG(info.st_mode))
    return Error{path + ": is " + kindOf(info.st_mode) + ", expected a regular file"};
  return OpenFile{std::move(fd), static_cast<uint64_t>(info.st_size)};
}

/// Where an output goes: `finalPath`, in `directory`, called `base`.
struct Target {
  std::string finalPath, directory, base;
  bool exists = false;
  mode_t mode = 0;

  std::string prefix(const char *kind) const {
    // Names have at most 255 bytes. Two long names that share a prefix share
    // nothing else: each temporary is locked by whoever uses it.
    return "." + base.substr(0, 200) + kind;
  }
};

constexpr const char *temporary = ".moec-tmp.";
/// A directory that is being filled.
constexpr const char *part = ".moec-part";
/// An earlier output that a file system without atomic exchange had us move aside.
constexpr const char *aside = ".moec-old.";

Result<Target> resolve(const std::string &path) {
  if (path.empty() || path.find('\0') != std::string::npos)
    return Error{quote(path) + ": is not a path that can be written to"};
  Target target;
  target.finalPath = path;
  while (target.finalPath.size() > 1 && target.finalPath.back() == '/')
    target.finalPath.pop_back();
  struct stat info;
  if (::lstat(target.finalPath.c_str(), &info) == 0) {
    // "." and ".." have no name of their own to put a temporary beside.
    std::string_view last = std::string_view(target.finalPath).substr(target.finalPath.rfind('/') + 1);
    if (S_ISLNK(info.st_mode) || last == "." || last == "..") {
      char *real = ::realpath(target.finalPath.c_str(), nullptr);
      if (!real)
        return failed(path, "written to");
      target.finalPath = real;
      std::free(real);
      if (::stat(target.finalPath.c_str(), &info) != 0)
        return failed(path, "written to");
    }
    target.exists = true;
    target.mode = info.st_mode;
  } else if (errno != ENOENT) {
    return failed(path, "written to");
  }
  size_t slash = target.finalPath.rfind('/');
  target.base = target.finalPath.substr(slash == std::string::npos ? 0 : slash + 1);
  target.directory = slash == std::string::npos ? "." : slash == 0 ? "/" : target.finalPath.substr(0, slash);
  return target;
}

/// Removes what killed processes left in `directory` under names that start
/// with `prefix`: those that nobody holds a lock on. It is a courtesy, so
/// failures are nobody's business.
void sweep(const std::string &directory, const std::string &prefix) {
  DIR *dir = ::opendir(directory.c_str());
  if (!dir)
    return;
  while (const dirent *entry = ::readdir(dir)) {
    std::string_view name = entry->d_name;
    if (!name.starts_with(prefix))
      continue;
    std::string path = directory + "/" + entry->d_name;
    Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW | O_NOCTTY));
    if (fd.get() < 0 || ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0)
      continue;
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  ::closedir(dir);
}

struct Temporary {
  std::string path;
  Descriptor fd;
};

/// Makes a locked file under a new temporary name.
Result<Temporary> makeTemporary(const Target &target) {
  static std::atomic<uint64_t> counter{0};
  for (;;) {
    std::string path = target.directory + "/" + target.prefix(temporary) + std::to_string(::getpid()) + "." +
                       std::to_string(counter.fetch_add(1));
    // Not mkstemp, which ignores the user's umask.
    Descriptor fd(retry([&] { return ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666); }));
    if (fd.get() < 0) {
      if (errno == EEXIST)
        continue;
      return failed(target.finalPath, "created");
    }
    if (retry([&] { return ::flock(fd.get(), LOCK_EX | LOCK_NB); }) != 0 && errno == EWOULDBLOCK)
      continue; // somebody's sweep came first and removes it
    // A file system without locks fails the other way: nobody can take the
    // lock, so nobody sweeps, which is safe too.
    struct stat ours, named;
    if (::fstat(fd.get(), &ours) != 0)
      return failed(target.finalPath, "created");
    if (::stat(path.c_str(), &named) != 0 || named.st_ino != ours.st_ino || named.st_dev != ours.st_dev)
      continue; // the sweep was over before we took the lock
    return Temporary{std::move(path), std::move(fd)};
  }
}

/// Makes a rename in the directory durable.
Status syncDirectory(const std::string &directory) {
  Descriptor fd(retry([&] { return ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (fd.get() < 0)
    return failed(directory, "opened");
  // EINVAL: a file system that has nothing to sync for a directory.
  if (retry([&] { return ::fsync(fd.get()); }) != 0 && errno != EINVAL)
    return failed(directory, "synced to disk");
  return success();
}

std::string parentOf(const std::string &path) {
  size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

/// A write beyond RLIMIT_FSIZE raises SIGXFSZ, which kills; say so instead.
Status checkFileSizeLimit(const std::string &path, uint64_t end) {
  rlimit limit;
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && end > limit.rlim_cur)
    return Error{path + ": needs " + std::to_string(end) + " bytes, but the file size limit (ulimit -f) is " +
                 std::to_string(limit.rlim_cur) + " bytes"};
  if (end > static_cast<uint64_t>(std::numeric_limits<off_t>::max()))
    return Error{path + ": needs " + std::to_string(end) + " bytes, which no file can have"};
  return success();
}

/// The sentence for a full disk; `needed` bytes were asked for.
Error diskFull(const std::string &path, int fd, uint64_t needed, int error) {
  std::string message = path + ": needs " + std::to_string(needed) + " bytes, but ";
  struct statvfs info;
  if (error == EDQUOT)
    return Error{message + "the disk quota is used up"};
  if (::fstatvfs(fd, &info) != 0)
    return Error{message + "the disk is full"};
  return Error{message + "the disk has " + std::to_string(static_cast<uint64_t>(info.f_bavail) * info.f_frsize) +
               " bytes free"};
}

} // namespace

//===----------------------------------------------------------------------===//
// MappedFile
//===----------------------------------------------------------------------===//

MappedFile::MappedFile(MappedFile &&other) noexcept
    : filePath(std::move(other.filePath)), base(std::exchange(other.base, nullptr)),
      length(std::exchange(other.length, 0)) {}

MappedFile &MappedFile::operator=(MappedFile &&other) noexcept {
  std::swap(filePath, other.filePath);
  std::swap(base, other.base);
  std::swap(length, other.length);
  return *this;
}

MappedFile::~MappedFile() {
  if (base)
    ::munmap(const_cast<std::byte *>(base), length);
}

Result<MappedFile> MappedFile::open(const std::string &path) {
  MOEC_TRY(OpenFile file, openRegular(path));
  MappedFile mapped;
  mapped.filePath = path;
  if (file.size == 0) // mmap refuses a length of 0
    return mapped;
  if (file.size > std::numeric_limits<size_t>::max())
    return Error{path + ": has " + std::to_string(file.size) + " bytes, too many to map"};
  void *memory = ::mmap(nullptr, file.size, PROT_READ, MAP_SHARED, file.fd.get(), 0);
  if (memory == MAP_FAILED)
    return failed(path, "mapped");
  mapped.base = static_cast<const std::byte *>(memory);
  mapped.length = file.size;
  return mapped;
}

void MappedFile::release(uint64_t offset, uint64_t size) const {
  if (offset >= length || size == 0)
    return;
  // Outwards to the windows of 64 KiB that a fault maps at once: reading the
  // next range maps the end of this one again, and what no later call covers
  // would stay. A neighbour that is still in use is merely mapped in once more.
  constexpr uintptr_t window = 64 << 10;
  auto first = reinterpret_cast<uintptr_t>(base), last = first + length;
  uintptr_t begin = std::max((first + offset) / window * window, first);
  uintptr_t end = first + offset + std::min(size, length - offset);
  end = std::min((end + window - 1) / window * window, last);
  ::madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED);
}

//===----------------------------------------------------------------------===//
// OutputFile
//===----------------------------------------------------------------------===//

Result<OutputFile> OutputFile::create(const std::string &path) {
  MOEC_TRY(Target target, resolve(path));
  // Renaming over a device such as /dev/null would replace the device.
  if (target.exists && !S_ISREG(target.mode))
    return Error{path + ": exists and is " + kindOf(target.mode) + ", expected a regular file or nothing"};
  sweep(target.directory, target.prefix(temporary));
  MOEC_TRY(Temporary made, makeTemporary(target));
  OutputFile file;
  file.finalPath = target.finalPath;
  file.tempPath = std::move(made.path);
  file.fd = made.fd.release();
  return file;
}

Result<OutputFile> OutputFile::reopen(const std::string &path, uint64_t keep) {
  OutputFile file;
  file.finalPath = path;
  // O_NONBLOCK: a pipe must not make us wait.
  file.fd = retry(
      [&] { return ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0666); });
  struct stat info;
  if (file.fd < 0 || ::fstat(file.fd, &info) != 0)
    return failed(path, "opened");
  if (!S_ISREG(info.st_mode))
    return Error{path + ": is " + kindOf(info.st_mode) + ", expected a regular file or nothing"};
  if (static_cast<uint64_t>(info.st_size) > keep && retry([&] { return ::ftruncate(file.fd, keep); }) != 0)
    return failed(path, "cut");
  file.kept = keep;
  return file;
}

OutputFile::OutputFile(OutputFile &&other) noexcept
    : finalPath(std::move(other.finalPath)), tempPath(std::exchange(other.tempPath, {})),
      fd(std::exchange(other.fd, -1)), kept(other.kept), fresh(std::move(other.fresh)) {}

OutputFile::~OutputFile() {
  if (!tempPath.empty())
    ::unlink(tempPath.c_str());
  if (fd >= 0)
    ::close(fd);
}

Status OutputFile::allocate(uint64_t size) {
  MOEC_CHECK(checkFileSizeLimit(finalPath, size));
  auto length = static_cast<off_t>(size);
  fresh = std::make_unique<Fresh>();
  for (uint64_t stretch = 0; stretch < size / hugePageBytes; ++stretch)
    fresh->stretches.push_back(stretch * hugePageBytes >= kept);
  if (size == 0 || retry([&] { return ::fallocate(fd, 0, 0, length); }) == 0)
    return success();
  if (errno == ENOSPC || errno == EDQUOT)
    return diskFull(finalPath, fd, size, errno);
  // Not posix_fallocate, which then writes one byte to every block: hours for a large model.
  if (errno != EOPNOTSUPP && errno != ENOSYS)
    return failed(finalPath, "given its size on disk");
  struct statvfs info;
  if (::fstatvfs(fd, &info) == 0 && static_cast<uint64_t>(info.f_bavail) * info.f_frsize < size)
    return diskFull(finalPath, fd, size, ENOSPC);
  if (retry([&] { return ::ftruncate(fd, length); }) != 0)
    return failed(finalPath, "given its size on disk");
  return success();
}

Status OutputFile::writeAt(uint64_t offset, const void *data, uint64_t size) {
  if (size > std::numeric_limits<uint64_t>::max() - offset)
    return Error{finalPath + ": cannot be written: offset " + std::to_string(offset) + " is out of range"};
  MOEC_CHECK(checkFileSizeLimit(finalPath, offset + size));
  if (fresh && size > 0)
    MOEC_CHECK(writeFresh(offset, size));
  return writeAll(offset, static_cast<const char *>(data), size);
}

/// Zeros to what is about to be written to for the first time, unless it will be all at once.
Status OutputFile::writeFresh(uint64_t offset, uint64_t size) {
  static char zeros[hugePageBytes]; // not const, which would be bytes of the program
  std::lock_guard lock(fresh->mutex);
  const uint64_t end = std::min((offset + size - 1) / hugePageBytes + 1, uint64_t{fresh->stretches.size()});
  for (uint64_t stretch = offset / hugePageBytes; stretch < end; ++stretch) {
    if (!fresh->stretches[stretch])
      continue;
    const uint64_t begin = stretch * hugePageBytes;
    if (offset > begin || offset + size < begin + hugePageBytes)
      MOEC_CHECK(writeAll(begin, zeros, hugePageBytes));
    fresh->stretches[stretch] = false;
  }
  return success();
}

Status OutputFile::writeAll(uint64_t offset, const char *from, uint64_t size) {
  while (size > 0) {
    // One call moves less than 2 GiB on Linux; a short write says why it is short when asked again.
    size_t chunk = static_cast<size_t>(std::min<uint64_t>(size, uint64_t{1} << 30));
    ssize_t written = retry([&] { return ::pwrite(fd, from, chunk, static_cast<off_t>(offset)); });
    if (written < 0 && (errno == ENOSPC || errno == EDQUOT))
      return diskFull(finalPath, fd, size, errno);
    if (written < 0)
      return failed(finalPath, "written");
    if (written == 0)
      return Error{finalPath + ": cannot be written: the file system takes no more bytes at offset " +
                   std::to_string(offset)};
    from += written;
    offset += static_cast<uint64_t>(written);
    size -= static_cast<uint64_t>(written);
  }
  return success();
}

Status OutputFile::sync() {
  if (retry([&] { return ::fdatasync(fd); }) != 0)
    return failed(finalPath, "synced to disk");
  return success();
}

Status OutputFile::commit() {
  assert(fd >= 0 && "commit was called before");
  if (retry([&] { return ::fsync(fd); }) != 0)
    return failed(finalPath, "synced to disk");
  if (!tempPath.empty() && ::rename(tempPath.c_str(), finalPath.c_str()) != 0)
    return failed(finalPath, "given its final name");
  tempPath.clear();
  // Only now, because the lock on the temporary name goes with the descriptor.
  if (::close(std::exchange(fd, -1)) != 0)
    return failed(finalPath, "closed");
  return syncDirectory(parentOf(finalPath));
}

//===----------------------------------------------------------------------===//
// Whole files
//===----------------------------------------------------------------------===//

Result<std::string> readFile(const std::string &path, uint64_t limit) {
  MOEC_TRY(OpenFile file, openRegular(path));
  auto tooLarge = [&](const std::string &found) {
    return Error{path + ": has " + found + " bytes, expected at most " + std::to_string(limit)};
  };
  if (file.size > limit)
    return tooLarge(std::to_string(file.size));
  // Reads to the end rather than to the size: files in /proc have size 0.
  std::string content;
  for (;;) {
    size_t room = std::max<uint64_t>(file.size > content.size() ? file.size - content.size() : 0, 4096);
    size_t old = content.size();
    content.resize(old + room);
    ssize_t got = retry([&] { return ::read(file.fd.get(), content.data() + old, room); });
    if (got < 0)
      return failed(path, "read");
    content.resize(old + static_cast<size_t>(got));
    if (content.size() > limit)
      return tooLarge("more than " + std::to_string(limit));
    if (got == 0)
      return content;
  }
}

Status writeFile(const std::string &path, std::string_view content) {
  MOEC_TRY(OutputFile file, OutputFile::create(path));
  MOEC_CHECK(file.writeAt(0, content.data(), content.size()));
  return file.commit();
}

Status syncFile(const std::string &path) {
  MOEC_TRY(OpenFile file, openRegular(path));
  if (retry([&] { return ::fdatasync(file.fd.get()); }) != 0)
    return failed(path, "synced to disk");
  return success();
}

//===----------------------------------------------------------------------===//
// OutputDirectory
//===----------------------------------------------------------------------===//

Status OutputDirectory::checkReplaceable() const {
  struct stat info;
  if (::lstat(finalPath.c_str(), &info) != 0)
    return errno == ENOENT ? success() : Status(failed(finalPath, "examined"));
  if (!S_ISDIR(info.st_mode))
    return Error{finalPath + ": exists and is not a directory, expected an earlier output or nothing"};
  std::string path = finalPath + "/" + marker;
  if (::lstat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode))
    return Error{finalPath + ": exists and holds no " + marker + ", expected an earlier output or nothing"};
  return success();
}

Result<OutputDirectory> OutputDirectory::create(const std::string &path, std::string_view marker) {
  MOEC_TRY(Target target, resolve(path));
  OutputDirectory output;
  output.finalPath = target.finalPath;
  output.marker = marker;
  MOEC_CHECK(output.checkReplaceable());
  // While the final name is free, what was moved aside is the only copy.
  if (target.exists)
    sweep(target.directory, target.prefix(aside));
  std::string partPath = target.directory + "/" + target.prefix(part);
  for (;;) {
    if (::mkdir(partPath.c_str(), 0777) != 0 && errno != EEXIST)
      return failed(target.finalPath, "created");
    Descriptor fd(retry([&] { return ::open(partPath.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW); }));
    if (fd.get() < 0 && errno == ENOENT)
      continue; // whoever had it has just finished
    struct stat ours, named;
    if (fd.get() < 0 || ::fstat(fd.get(), &ours) != 0)
      return failed(partPath, "opened");
    // Whoever made it could change it under our hands.
    if (ours.st_uid != ::geteuid())
      return Error{partPath + ": belongs to another user, expected what an earlier run of yours left, or nothing"};
    // A file system without locks fails with another error: there, nobody is kept from running twice.
    if (retry([&] { return ::flock(fd.get(), LOCK_EX | LOCK_NB); }) != 0 && errno == EWOULDBLOCK)
      return Error{target.finalPath + ": is being written by another process"};
    if (::lstat(partPath.c_str(), &named) != 0 || named.st_ino != ours.st_ino || named.st_dev != ours.st_dev)
      continue; // it went between our two calls
    output.partPath = partPath;
    output.outputPath = partPath + "/output";
    output.lock = fd.release();
    break;
  }
  // From here on, the destructor removes what does not work.
  if (::mkdir(output.outputPath.c_str(), 0777) != 0 && errno != EEXIST)
    return failed(output.outputPath, "created");
  return output;
}

OutputDirectory::OutputDirectory(OutputDirectory &&other) noexcept
    : finalPath(std::move(other.finalPath)), partPath(std::exchange(other.partPath, {})),
      outputPath(std::move(other.outputPath)), marker(std::move(other.marker)), lock(std::exchange(other.lock, -1)) {}

OutputDirectory::~OutputDirectory() {
  if (!partPath.empty()) {
    std::error_code ignored;
    std::filesystem::remove_all(partPath, ignored);
  }
  if (lock >= 0)
    ::close(lock);
}

/// Syncs every file and directory below `root`, and `root`: whoever wrote them
/// (a linker, say) need not have done so.
static Status syncTree(const std::string &root) {
  std::error_code error;
  std::filesystem::recursive_directory_iterator it(root, error), end;
  for (; !error && it != end; it.increment(error)) {
    std::error_code statError;
    auto kind = it->symlink_status(statError).type();
    if (kind != std::filesystem::file_type::regular && kind != std::filesystem::file_type::directory)
      continue;
    const std::string &path = it->path().native();
    Descriptor fd(retry([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW); }));
    if (fd.get() < 0)
      return failed(path, "opened");
    if (retry([&] { return ::fsync(fd.get()); }) != 0 && errno != EINVAL)
      return failed(path, "synced to disk");
  }
  if (error)
    return Error{root + ": cannot be listed: " + errnoToString(error.value())};
  return syncDirectory(root);
}

void OutputDirectory::leave() {
  partPath.clear();
  if (lock >= 0)
    ::close(std::exchange(lock, -1));
}

Status OutputDirectory::commit() {
  assert(!partPath.empty() && "commit was called before");
  MOEC_CHECK(syncTree(outputPath));
  auto rename = [&](unsigned flags) {
    return ::renameat2(AT_FDCWD, outputPath.c_str(), AT_FDCWD, finalPath.c_str(), flags);
  };
  bool flagsKnown = true;
  if (rename(RENAME_NOREPLACE) != 0) {
    flagsKnown = errno != EINVAL && errno != ENOSYS;
    if (flagsKnown && errno != EEXIST)
      return failed(finalPath, "given its final name");
    // Again, because the name may have been taken meanwhile.
    MOEC_CHECK(checkReplaceable());
    if (!flagsKnown || rename(RENAME_EXCHANGE) != 0) {
      if (flagsKnown && errno != EINVAL && errno != ENOENT)
        return failed(finalPath, "given its final name");
      std::string old = parentOf(finalPath) + "/." + finalPath.substr(finalPath.rfind('/') + 1).substr(0, 200) + aside +
                        std::to_string(::getpid());
      bool moved = ::rename(finalPath.c_str(), old.c_str()) == 0;
      if (!moved && errno != ENOENT)
        return failed(finalPath, "moved aside");
      if (::rename(outputPath.c_str(), finalPath.c_str()) != 0) {
        Error error = failed(finalPath, "given its final name");
        if (moved)
          ::rename(old.c_str(), finalPath.c_str());
        return error;
      }
      std::error_code ignored;
      if (moved)
        std::filesystem::remove_all(old, ignored);
    }
  }
  std::error_code ignored; // notes, and the earlier output where it was exchanged
  std::filesystem::remove_all(partPath, ignored);
  partPath.clear();
  ::close(std::exchange(lock, -1));
  return syncDirectory(parentOf(finalPath));
}

} // namespace moec
