// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Weights/Journal.h"

#include <charconv>
#include <filesystem>
#include <vector>

using namespace moec;
namespace fs = std::filesystem;

using Notes = std::map<std::string, std::map<uint64_t, std::string>>;

static constexpr size_t hashDigits = 16;

static std::string headerOf(const std::string &fingerprint) { return "moec-journal 1 " + fingerprint; }

/// Takes the whole lines of `text`; returns where they end, or 0 where one is not as we write them.
static uint64_t parse(std::string_view text, const std::string &header, Notes &notes) {
  uint64_t end = 0;
  for (size_t newline; (newline = text.find('\n', end)) != std::string_view::npos; end = newline + 1) {
    std::string_view line = text.substr(end, newline - end);
    if (line.size() <= hashDigits || line[hashDigits] != ' ')
      return 0;
    std::string_view content = line.substr(hashDigits + 1);
    if (xxh3Hex(content.data(), content.size()) != line.substr(0, hashDigits))
      return 0;
    if (end == 0) {
      if (content != header)
        return 0;
      continue;
    }
    if (content.size() <= hashDigits || content[hashDigits] != ' ')
      return 0;
    const char *number = content.data() + hashDigits + 1, *last = content.data() + content.size();
    uint64_t bytes = 0;
    auto [after, error] = std::from_chars(number, last, bytes);
    if (error != std::errc() || after == last || *after != ' ')
      return 0;
    notes[std::string(after + 1, last)][bytes] = content.substr(0, hashDigits);
  }
  return end;
}

/// Removes what is below `directory` and has no notes, and folders that are empty then.
static Status removeUnknown(const fs::path &directory, const std::string &prefix, const Notes &notes) {
  std::error_code error;
  std::vector<fs::directory_entry> entries;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error))
    entries.push_back(*it);
  for (const fs::directory_entry &entry : entries) {
    std::string name = prefix + entry.path().filename().string();
    std::error_code ignored;
    bool folder = entry.symlink_status(ignored).type() == fs::file_type::directory;
    if (folder)
      MOEC_CHECK(removeUnknown(entry.path(), name + "/", notes));
    if (folder ? fs::is_empty(entry.path(), ignored) : !notes.count(name))
      fs::remove(entry.path(), error);
    if (error)
      break;
  }
  if (error)
    return Error{directory.string() + ": what an earlier run left cannot be removed: " + error.message()};
  return success();
}

Result<Journal> Journal::open(const std::string &path, const std::string &directory, const std::string &fingerprint) {
  std::string header = headerOf(fingerprint);
  Notes notes;
  uint64_t end = 0;
  std::error_code error;
  if (fs::exists(path, error))
    if (Result<std::string> text = readFile(path); text.ok())
      end = parse(*text, header, notes);
  if (end == 0)
    notes.clear();
  MOEC_CHECK(removeUnknown(directory, "", notes));
  MOEC_TRY(OutputFile file, OutputFile::reopen(path, end));
  Journal journal(directory, std::move(file));
  journal.known = std::move(notes);
  journal.end = end;
  if (end == 0)
    MOEC_CHECK(journal.append(header));
  return journal;
}

Status Journal::append(const std::string &text) {
  std::string line = xxh3Hex(text.data(), text.size()) + " " + text + "\n";
  MOEC_CHECK(notes.writeAt(end, line.data(), line.size()));
  end += line.size();
  return notes.sync();
}

Result<KnownFile> Journal::verify(const std::string &name, const std::function<void(uint64_t)> &progress) const {
  KnownFile result{name, 0, {}};
  auto found = known.find(name);
  std::error_code error;
  if (found == known.end() || !fs::exists(directory + "/" + name, error))
    return result;
  MOEC_TRY(MappedFile file, MappedFile::open(directory + "/" + name));
  Xxh3 hash;
  uint64_t at = 0;
  for (const auto &[bytes, expected] : found->second) {
    if (bytes > file.size())
      break;
    hash.update(file, at, bytes);
    if (hash.hex() != expected)
      break;
    at = bytes;
    result.bytes = bytes;
    result.hash = hash;
    if (progress)
      progress(bytes);
  }
  return result;
}

Status Journal::extend(KnownFile &file, uint64_t bytes) {
  std::string path = directory + "/" + file.name;
  // Data first: a note must not outlive what it speaks of.
  MOEC_CHECK(syncFile(path));
  MOEC_TRY(MappedFile mapped, MappedFile::open(path));
  if (bytes > mapped.size())
    return Error{path + ": has " + std::to_string(mapped.size()) + " bytes, but " + std::to_string(bytes) +
                 " were written; does another program change it?"};
  file.hash.update(mapped, file.bytes, bytes);
  file.bytes = bytes;
  return append(file.hash.hex() + " " + std::to_string(bytes) + " " + file.name);
}
