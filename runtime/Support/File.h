// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Files and directories whose every failure becomes a sentence, and whose
/// output is never left half-written under its final name.

#ifndef MOEC_RUNTIME_SUPPORT_FILE_H
#define MOEC_RUNTIME_SUPPORT_FILE_H

#include "runtime/Support/Result.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace moec {

/// What the processor's and the kernel's huge pages hold, on most machines.
inline constexpr uint64_t hugePageBytes = 2u << 20;

/// A regular file mapped read-only. Directories, pipes, devices, sockets and
/// symlink loops are refused. An empty file has size 0 and no data.
/// Whoever truncates the file while it is mapped kills its readers (SIGBUS):
/// our own outputs are replaced by rename, never rewritten.
class MappedFile {
public:
  MappedFile() = default;
  MappedFile(MappedFile &&other) noexcept;
  MappedFile &operator=(MappedFile &&other) noexcept;
  ~MappedFile();
  static Result<MappedFile> open(const std::string &path);

  const std::string &path() const { return filePath; }
  const std::byte *data() const { return base; }
  uint64_t size() const { return length; }
  /// Tells the kernel that `[offset, offset + size)` (clamped to the file) is
  /// not needed soon, so that it stops counting towards this process's resident
  /// memory. The bytes stay readable. Thread-safe.
  void release(uint64_t offset, uint64_t size) const;

private:
  std::string filePath;
  const std::byte *base = nullptr;
  uint64_t length = 0;
};

// Temporary names of files are `.<name>.moec-tmp.<unique>` beside the final name, and
// whoever writes holds a lock (flock) on them. What a killed process left has
// no lock, lies under no final name, and goes when the same output is next
// created. A final name that is a symlink stands for what it points to.

/// A file being written under a temporary name beside `path`; `commit` syncs
/// and renames it, destruction without `commit` removes it. Refuses a `path`
/// that exists and is not a regular file.
class OutputFile {
public:
  static Result<OutputFile> create(const std::string &path);
  /// Goes on with the file `path` itself, or makes it: cuts it after `keep`
  /// bytes. No temporary name, nothing is removed; for files inside an
  /// OutputDirectory. Refuses symlinks and what is no regular file.
  static Result<OutputFile> reopen(const std::string &path, uint64_t keep);
  OutputFile(OutputFile &&other) noexcept;
  OutputFile &operator=(OutputFile &&) = delete;
  ~OutputFile();

  /// Makes the file `size` bytes long and reserves them on disk, so that a full
  /// disk is told before the work. Where the file system cannot reserve, the
  /// free space is compared and `writeAt` may still find the disk full. From
  /// then on each 2 MiB of the file are first written at once, so that the page
  /// cache can hold them in a huge page, which readers may map as one.
  Status allocate(uint64_t size);
  /// Thread-safe for disjoint ranges; writes all or says why not.
  Status writeAt(uint64_t offset, const void *data, uint64_t size);
  /// Makes what was written durable.
  Status sync();
  /// Once; afterwards nothing else may be called.
  Status commit();

private:
  /// Which stretches of a huge page's size nothing was written to.
  struct Fresh {
    std::mutex mutex;
    std::vector<bool> stretches;
  };

  OutputFile() = default;
  Status writeFresh(uint64_t offset, uint64_t size);
  Status writeAll(uint64_t offset, const char *data, uint64_t size);

  std::string finalPath, tempPath;
  int fd = -1;
  uint64_t kept = 0;            ///< bytes that were there
  std::unique_ptr<Fresh> fresh; ///< of an allocated file
};

/// Whole small files. `limit` bounds what is read; a larger file is an error.
Result<std::string> readFile(const std::string &path, uint64_t limit = 64u << 20);
/// Temporary name, fsync, rename.
Status writeFile(const std::string &path, std::string_view content);
/// Makes the bytes of a file durable, whoever wrote them.
Status syncFile(const std::string &path);

/// A directory being filled beside `path`, in `.<name>.moec-part/output`, a
/// name that a later run finds again: what a killed process left there is
/// still there, and the caller says what of it is good. One process at a time
/// fills it; another one is refused. `commit` syncs everything in it and
/// renames it to `path`, in one atomic exchange where an earlier output is
/// replaced (on file systems without exchange: the earlier one is moved aside
/// first); destruction without `commit` removes it.
class OutputDirectory {
public:
  /// Refuses a `path` that exists, unless it is a directory that holds a file
  /// called `marker` (an earlier output of the same kind), which `commit` replaces;
  /// a `path` that a living process is filling; leftovers of another user.
  static Result<OutputDirectory> create(const std::string &path, std::string_view marker);
  OutputDirectory(OutputDirectory &&other) noexcept;
  OutputDirectory &operator=(OutputDirectory &&) = delete;
  ~OutputDirectory();

  /// Where to put files until `commit`.
  const std::string &path() const { return outputPath; }
  /// A file for notes about what is in the directory; it goes where the
  /// unfinished output goes, and is no part of the output.
  std::string notesPath() const { return partPath + "/notes"; }
  Status commit();
  /// Lets go of it unfinished, as a killed process does: a later run may go on. Nothing else may be called then.
  void leave();

private:
  OutputDirectory() = default;
  Status checkReplaceable() const;
  std::string finalPath, partPath, outputPath, marker;
  int lock = -1;
};

} // namespace moec

#endif // MOEC_RUNTIME_SUPPORT_FILE_H
