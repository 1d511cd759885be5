// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Notes about an unfinished output, from which a later process goes on.

#ifndef MOEC_CODEGEN_WEIGHTS_JOURNAL_H
#define MOEC_CODEGEN_WEIGHTS_JOURNAL_H

#include "runtime/Hash.h"
#include "runtime/Support/File.h"
#include "runtime/Support/Result.h"

#include <cstdint>
#include <functional>
#include <map>
#include <string>

namespace moec {

/// A file of the output, as far as it is known to be right.
struct KnownFile {
  std::string name;   ///< relative to the output
  uint64_t bytes = 0; ///< from its start
  Xxh3 hash;          ///< of these
};

/// A text file to which lines are appended, each durable before the next:
/// `HASH moec-journal 1 FINGERPRINT`, then `HASH XXH3 BYTES FILE`: the first
/// BYTES of FILE are written, durable, and have this XXH3. HASH is the XXH3 of
/// the rest of its line. A last line without its end was cut by a kill and
/// does not count; any other flaw, and any other fingerprint (what decides the
/// bytes of the output), voids all notes.
class Journal {
public:
  /// Opens the notes at `path` about the files below `directory`, or begins
  /// them. Files that no note speaks of are removed.
  static Result<Journal> open(const std::string &path, const std::string &directory, const std::string &fingerprint);

  /// Reads what notes say of a file and compares: the result ends at the last
  /// note that holds, and at 0 where there is none. `progress` gets the bytes
  /// that hold, now and then.
  Result<KnownFile> verify(const std::string &name, const std::function<void(uint64_t)> &progress = nullptr) const;

  /// Makes the first `bytes` of the file durable, hashes those beyond
  /// `file.bytes` and notes it. One call at a time.
  Status extend(KnownFile &file, uint64_t bytes);

private:
  Journal(std::string directory, OutputFile notes) : directory(std::move(directory)), notes(std::move(notes)) {}
  Status append(const std::string &text);

  std::string directory;
  OutputFile notes;
  uint64_t end = 0; ///< of the notes
  /// File -> bytes -> hash, as noted by earlier runs.
  std::map<std::string, std::map<uint64_t, std::string>> known;
};

} // namespace moec

#endif // MOEC_CODEGEN_WEIGHTS_JOURNAL_H
