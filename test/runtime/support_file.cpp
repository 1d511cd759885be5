// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/File.h"
#include "runtime/Support/Safetensors.h"
#include "test/runtime/TemporaryDirectory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace moec;
using moec::test::TemporaryDirectory;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

namespace {

template <typename T> std::string problem(const Result<T> &result) { return result ? "(no error)" : result.message(); }

std::string contentOf(const std::string &path) {
  Result<std::string> content = readFile(path);
  return content ? *content : "error: " + content.message();
}

/// Runs `body` in a child process; its failures are the test's.
void inChild(const std::function<void()> &body) {
  pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    body();
    ::_exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
}

//===----------------------------------------------------------------------===//
// Reading
//===----------------------------------------------------------------------===//

TEST(MappedFile, MapsRegularAndEmptyFilesAndSymlinks) {
  TemporaryDirectory dir;
  std::string content(10000, 'x');
  content += "end";
  ASSERT_TRUE(writeFile(dir / "f", content));
  ASSERT_TRUE(writeFile(dir / "empty", ""));
  ASSERT_EQ(::symlink("f", (dir / "link").c_str()), 0);
  for (const char *name : {"f", "link"}) {
    Result<MappedFile> file = MappedFile::open(dir / name);
    ASSERT_TRUE(file) << file.message();
    EXPECT_EQ(file->path(), dir / name);
    EXPECT_EQ(std::string_view(reinterpret_cast<const char *>(file->data()), file->size()), content);
  }
  Result<MappedFile> empty = MappedFile::open(dir / "empty");
  ASSERT_TRUE(empty) << empty.message();
  EXPECT_EQ(empty->size(), 0u);
  empty->release(0, 1);
}

TEST(MappedFile, ReleasedBytesStayReadable) {
  TemporaryDirectory dir;
  std::string content(3 * 4096 + 5, 'r');
  ASSERT_TRUE(writeFile(dir / "f", content));
  Result<MappedFile> file = MappedFile::open(dir / "f");
  ASSERT_TRUE(file) << file.message();
  const uint64_t ranges[][2] = {{0, 1}, {5, 4096}, {4096, 8192}, {0, ~uint64_t{0}}, {~uint64_t{0}, 2}, {12292, 1}};
  for (auto [offset, size] : ranges) {
    file->release(offset, size);
    EXPECT_EQ(std::string_view(reinterpret_cast<const char *>(file->data()), file->size()), content);
  }
}

TEST(MappedFile, MovesLeaveOneOwner) {
  TemporaryDirectory dir;
  ASSERT_TRUE(writeFile(dir / "a", "aaa"));
  ASSERT_TRUE(writeFile(dir / "b", "bb"));
  Result<MappedFile> a = MappedFile::open(dir / "a"), b = MappedFile::open(dir / "b");
  ASSERT_TRUE(a && b);
  MappedFile moved = std::move(*a);
  EXPECT_EQ(a->data(), nullptr);
  moved = std::move(*b);
  EXPECT_EQ(std::memcmp(moved.data(), "bb", 2), 0);
  EXPECT_EQ(moved.size(), 2u);
}

TEST(Reading, RefusesWhatIsNoRegularFile) {
  TemporaryDirectory dir;
  ASSERT_EQ(::mkdir((dir / "d").c_str(), 0777), 0);
  ASSERT_EQ(::mkfifo((dir / "p").c_str(), 0666), 0);
  ASSERT_EQ(::symlink("loop", (dir / "loop").c_str()), 0);
  ASSERT_EQ(::symlink("nowhere", (dir / "dangling").c_str()), 0);
  const std::pair<std::string, std::string> cases[] = {
      {dir / "d", ": is a directory, expected a regular file"},
      {dir / "p", ": is a pipe, expected a regular file"}, // and nobody waits for a writer
      {"/dev/zero", ": is a device, expected a regular file"},
      {dir / "loop", ": cannot be opened: too many levels of symbolic links"},
      {dir / "dangling", ": cannot be opened: no such file or directory"},
      {dir / "none", ": cannot be opened: no such file or directory"},
      {dir / "p/x", ": cannot be opened: not a directory"},
      {"", ": cannot be opened: no such file or directory"},
      {dir / std::string(300, 'n'), ": cannot be opened: file name too long"},
  };
  for (const auto &[path, reason] : cases) {
    EXPECT_EQ(problem(MappedFile::open(path)), path + reason);
    EXPECT_EQ(problem(readFile(path)), path + reason);
  }
  EXPECT_EQ(problem(readFile(std::string("a\0b", 3))), "'a\\x00b': a path cannot hold a NUL byte");
}

TEST(Reading, WholeFilesUpToTheLimit) {
  TemporaryDirectory dir;
  for (size_t size : {0u, 1u, 4095u, 4096u, 4097u, 100000u}) {
    std::string content(size, 'c');
    ASSERT_TRUE(writeFile(dir / "f", content));
    EXPECT_EQ(contentOf(dir / "f"), content);
    Result<std::string> read = readFile(dir / "f", size);
    EXPECT_TRUE(read) << read.message();
    if (size > 0) {
      EXPECT_EQ(problem(readFile(dir / "f", size - 1)),
                (dir / "f") + ": has " + std::to_string(size) + " bytes, expected at most " + std::to_string(size - 1));
    }
  }
  // Says that its size is 0, and yet has content.
  EXPECT_THAT(contentOf("/proc/self/status"), HasSubstr("Pid:"));
  EXPECT_EQ(problem(readFile("/proc/self/status", 10)),
            "/proc/self/status: has more than 10 bytes, expected at most 10");
}

//===----------------------------------------------------------------------===//
// OutputFile
//===----------------------------------------------------------------------===//

TEST(OutputFile, AppearsOnlyAtCommit) {
  TemporaryDirectory dir;
  ASSERT_TRUE(writeFile(dir / "f", "old"));
  {
    Result<OutputFile> file = OutputFile::create(dir / "f");
    ASSERT_TRUE(file) << file.message();
    ASSERT_TRUE(file->allocate(6));
    ASSERT_TRUE(file->writeAt(3, "def", 3));
    ASSERT_TRUE(file->writeAt(0, "abc", 3));
    EXPECT_EQ(contentOf(dir / "f"), "old");
    Status committed = file->commit();
    ASSERT_TRUE(committed) << committed.message();
    EXPECT_EQ(contentOf(dir / "f"), "abcdef");
  }
  {
    Result<OutputFile> dropped = OutputFile::create(dir / "f");
    ASSERT_TRUE(dropped) << dropped.message();
    ASSERT_TRUE(dropped->writeAt(0, "x", 1));
    EXPECT_EQ(dir.list().size(), 2u);
  }
  EXPECT_EQ(contentOf(dir / "f"), "abcdef");
  EXPECT_THAT(dir.list(), ElementsAre("f"));
}

TEST(OutputFile, GoesOnWithAFileAndCutsIt) {
  TemporaryDirectory dir;
  ASSERT_TRUE(writeFile(dir / "f", "abcdef"));
  {
    Result<OutputFile> file = OutputFile::reopen(dir / "f", 3);
    ASSERT_TRUE(file) << file.message();
    EXPECT_EQ(contentOf(dir / "f"), "abc");
    ASSERT_TRUE(file->allocate(5));
    ASSERT_TRUE(file->writeAt(4, "E", 1));
    ASSERT_TRUE(file->sync());
  }
  EXPECT_EQ(contentOf(dir / "f"), std::string("abc\0E", 5));
  ASSERT_TRUE(syncFile(dir / "f"));
  Result<OutputFile> made = OutputFile::reopen(dir / "g", 100);
  ASSERT_TRUE(made) << made.message();
  ASSERT_TRUE(made->commit());
  EXPECT_EQ(contentOf(dir / "g"), "");
  EXPECT_THAT(dir.list(), ElementsAre("f", "g"));

  ASSERT_EQ(::symlink("f", (dir / "link").c_str()), 0);
  ASSERT_EQ(::mkfifo((dir / "p").c_str(), 0666), 0);
  EXPECT_EQ(problem(OutputFile::reopen(dir / "link", 0)),
            (dir / "link") + ": cannot be opened: too many levels of symbolic links");
  EXPECT_EQ(problem(OutputFile::reopen(dir / "p", 0)), (dir / "p") + ": is a pipe, expected a regular file or nothing");
  EXPECT_EQ(problem(syncFile(dir / "none")), (dir / "none") + ": cannot be opened: no such file or directory");
  EXPECT_EQ(contentOf(dir / "f"), std::string("abc\0E", 5));
}

/// Stretches of a huge page are filled before their first bytes are written, never after.
TEST(OutputFile, AllocatedStretchesKeepWhatIsWritten) {
  TemporaryDirectory dir;
  constexpr uint64_t size = 3 * hugePageBytes + 5;
  std::string expected(size, '\0');
  auto write = [&](OutputFile &file, uint64_t offset, const std::string &bytes) {
    ASSERT_TRUE(file.writeAt(offset, bytes.data(), bytes.size()));
    expected.replace(offset, bytes.size(), bytes);
  };
  {
    Result<OutputFile> file = OutputFile::reopen(dir / "f", 0);
    ASSERT_TRUE(file) << file.message();
    ASSERT_TRUE(file->allocate(size));
    write(*file, hugePageBytes + 7, "second");
    write(*file, 3, "first");
    write(*file, hugePageBytes - 2, "border");
    write(*file, hugePageBytes + 100, std::string(hugePageBytes, 'x'));
    write(*file, size - 4, "last");
    ASSERT_TRUE(file->sync());
  }
  EXPECT_EQ(contentOf(dir / "f"), expected);
  // Goes on in the middle of a stretch.
  expected.replace(hugePageBytes + 200, std::string::npos, size - hugePageBytes - 200, '\0');
  Result<OutputFile> file = OutputFile::reopen(dir / "f", hugePageBytes + 200);
  ASSERT_TRUE(file) << file.message();
  ASSERT_TRUE(file->allocate(size));
  write(*file, hugePageBytes + 300, "more");
  write(*file, 2 * hugePageBytes + 9, "third");
  ASSERT_TRUE(file->commit());
  EXPECT_EQ(contentOf(dir / "f"), expected);
}

TEST(OutputFile, FollowsUmaskAndSymlinks) {
  TemporaryDirectory dir;
  ASSERT_EQ(::mkdir((dir / "real").c_str(), 0777), 0);
  ASSERT_TRUE(writeFile(dir / "real/f", "old"));
  ASSERT_EQ(::symlink("real/f", (dir / "link").c_str()), 0);
  mode_t before = ::umask(027);
  Status written = writeFile(dir / "link", "new");
  ::umask(before);
  ASSERT_TRUE(written) << written.message();
  struct stat info;
  ASSERT_EQ(::lstat((dir / "link").c_str(), &info), 0);
  EXPECT_TRUE(S_ISLNK(info.st_mode));
  ASSERT_EQ(::lstat((dir / "real/f").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
  EXPECT_EQ(contentOf(dir / "real/f"), "new");
}

TEST(OutputFile, RefusesImpossibleTargets) {
  TemporaryDirectory dir;
  ASSERT_EQ(::mkdir((dir / "d").c_str(), 0777), 0);
  ASSERT_EQ(::mkfifo((dir / "p").c_str(), 0666), 0);
  ASSERT_EQ(::symlink("nowhere", (dir / "dangling").c_str()), 0);
  ASSERT_EQ(::symlink("loop", (dir / "loop").c_str()), 0);
  const std::pair<std::string, std::string> cases[] = {
      {dir / "d", ": exists and is a directory, expected a regular file or nothing"},
      {dir / "p", ": exists and is a pipe, expected a regular file or nothing"},
      {"/dev/null", ": exists and is a device, expected a regular file or nothing"},
      {dir / "dangling", ": cannot be written to: no such file or directory"},
      {dir / "loop", ": cannot be written to: too many levels of symbolic links"},
      {dir / "none/f", ": cannot be created: no such file or directory"},
      {dir / "p/f", ": cannot be written to: not a directory"},
  };
  for (const auto &[path, reason] : cases)
    EXPECT_EQ(problem(writeFile(path, "x")), path + reason);
  EXPECT_EQ(problem(writeFile("", "x")), "'': is not a path that can be written to");
}

TEST(OutputFile, RefusesOffsetsBeyondAnyFile) {
  TemporaryDirectory dir;
  Result<OutputFile> file = OutputFile::create(dir / "f");
  ASSERT_TRUE(file) << file.message();
  EXPECT_THAT(problem(file->writeAt(~uint64_t{0}, "ab", 2)), HasSubstr("offset 18446744073709551615 is out of range"));
  EXPECT_THAT(problem(file->writeAt(uint64_t{1} << 63, "ab", 2)), HasSubstr("which no file can have"));
  EXPECT_THAT(problem(file->allocate(~uint64_t{0})), HasSubstr("needs 18446744073709551615 bytes, which no file"));
}

TEST(OutputFile, FileSizeLimitIsASentenceNotASignal) {
  TemporaryDirectory dir;
  inChild([&] {
    // SIGXFSZ keeps its deadly default.
    rlimit limit = {5000, 5000};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
    Result<OutputFile> file = OutputFile::create(dir / "f");
    ASSERT_TRUE(file) << file.message();
    EXPECT_EQ(problem(file->allocate(5001)),
              (dir / "f") + ": needs 5001 bytes, but the file size limit (ulimit -f) is 5000 bytes");
    std::string content(5001, 'x');
    EXPECT_EQ(problem(file->writeAt(0, content.data(), content.size())),
              (dir / "f") + ": needs 5001 bytes, but the file size limit (ulimit -f) is 5000 bytes");
    EXPECT_TRUE(file->writeAt(0, content.data(), 5000));
  });
  EXPECT_FALSE(std::filesystem::exists(dir / "f"));
}

/// A 1 MiB file system of this process's own, where the system lets us mount one.
bool mountSmallDisk(const std::string &path) {
  return ::unshare(CLONE_NEWNS) == 0 && ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         ::mount("tmpfs", path.c_str(), "tmpfs", 0, "size=1m") == 0;
}

TEST(FullDisk, IsASentenceAndLeavesNothing) {
  TemporaryDirectory dir;
  inChild([&] {
    if (!mountSmallDisk(dir.path())) {
      std::fputs("no file system could be mounted: the full disk is not tested\n", stderr);
      return;
    }
    std::string path = dir / "f";
    std::string block(300000, 'b');
    ASSERT_TRUE(writeFile(dir / "kept", block));
    {
      Result<OutputFile> file = OutputFile::create(path);
      ASSERT_TRUE(file) << file.message();
      EXPECT_THAT(problem(file->allocate(2000000)),
                  AllOf(StartsWith(path + ": needs 2000000 bytes, but the disk has "), HasSubstr(" bytes free")));
      for (uint64_t i = 0; i < 2; ++i)
        EXPECT_TRUE(file->writeAt(i * block.size(), block.data(), block.size()));
      EXPECT_THAT(problem(file->writeAt(2 * block.size(), block.data(), block.size())),
                  AllOf(StartsWith(path + ": needs "), HasSubstr(" bytes, but the disk has 0 bytes free")));
    }
    EXPECT_THAT(problem(SafetensorsWriter::create(path, {{"t", DType::F32, {1000, 1000}}})),
                StartsWith(path + ": needs 4004096 bytes, but the disk has "));
    EXPECT_THAT(dir.list(), ElementsAre("kept"));
    EXPECT_EQ(contentOf(dir / "kept"), block);
    // What failed took no room.
    Status written = writeFile(path, block);
    EXPECT_TRUE(written) << written.message();
  });
}

//===----------------------------------------------------------------------===//
// OutputDirectory
//===----------------------------------------------------------------------===//

/// Fills `path` with a marker and a file below a folder, both holding `content`.
Status fill(const std::string &path, const std::string &content) {
  std::filesystem::create_directory(path + "/sub");
  MOEC_CHECK(writeFile(path + "/sub/data", content));
  return writeFile(path + "/marker", content);
}

Status writeDirectory(const std::string &path, const std::string &content) {
  MOEC_TRY(OutputDirectory output, OutputDirectory::create(path, "marker"));
  MOEC_CHECK(fill(output.path(), content));
  return output.commit();
}

TEST(OutputDirectory, AppearsAtCommitAndReplacesAnEarlierOne) {
  TemporaryDirectory dir;
  for (std::string path : {dir / "out", (dir / "out") + "/", dir / "./out", dir / "link"}) {
    SCOPED_TRACE(path);
    std::string before = contentOf(dir / "out/marker");
    if (path.ends_with("link")) {
      ASSERT_EQ(::symlink("out", (dir / "link").c_str()), 0);
    }
    {
      Result<OutputDirectory> output = OutputDirectory::create(path, "marker");
      ASSERT_TRUE(output) << output.message();
      ASSERT_TRUE(fill(output->path(), path));
      // Same file system, so that the rename is one.
      struct stat ours, named;
      ASSERT_EQ(::stat(output->path().c_str(), &ours), 0);
      ASSERT_EQ(::stat(dir.path().c_str(), &named), 0);
      EXPECT_EQ(ours.st_dev, named.st_dev);
      ASSERT_TRUE(writeFile(output->notesPath(), "no part of the output"));
      EXPECT_EQ(contentOf(dir / "out/marker"), before);
      Status committed = output->commit();
      ASSERT_TRUE(committed) << committed.message();
    }
    EXPECT_EQ(contentOf(dir / "out/marker"), path);
    EXPECT_EQ(contentOf(dir / "out/sub/data"), path);
  }
  EXPECT_THAT(dir.list(), ElementsAre("link", "out"));
  EXPECT_TRUE(std::filesystem::is_symlink(dir / "link"));
}

TEST(OutputDirectory, LeavesNothingWithoutCommit) {
  TemporaryDirectory dir;
  {
    Result<OutputDirectory> output = OutputDirectory::create(dir / "out", "marker");
    ASSERT_TRUE(output) << output.message();
    ASSERT_TRUE(fill(output->path(), "x"));
  }
  EXPECT_THAT(dir.list(), IsEmpty());
}

TEST(OutputDirectory, LeavesItselfToALaterRun) {
  TemporaryDirectory dir;
  Result<OutputDirectory> output = OutputDirectory::create(dir / "out", "marker");
  ASSERT_TRUE(output) << output.message();
  ASSERT_TRUE(fill(output->path(), "x"));
  output->leave();
  EXPECT_THAT(dir.list(), ElementsAre(".out.moec-part"));
  Result<OutputDirectory> again = OutputDirectory::create(dir / "out", "marker");
  ASSERT_TRUE(again) << again.message();
  EXPECT_EQ(contentOf(again->path() + "/marker"), "x");
  ASSERT_TRUE(again->commit());
  EXPECT_THAT(dir.list(), ElementsAre("out"));
}

TEST(OutputDirectory, TakesNoLeftoversThatAreNoDirectory) {
  TemporaryDirectory dir;
  ASSERT_EQ(::mkdir((dir / "elsewhere").c_str(), 0777), 0);
  ASSERT_EQ(::symlink("elsewhere", (dir / ".out.moec-part").c_str()), 0);
  EXPECT_THAT(problem(OutputDirectory::create(dir / "out", "marker")), HasSubstr(".out.moec-part: cannot be opened: "));
  EXPECT_THAT(dir.list(), ElementsAre(".out.moec-part", "elsewhere"));
  if (::geteuid() == 0) {
    ASSERT_EQ(::mkdir((dir / ".a.moec-part").c_str(), 0777), 0);
    ASSERT_EQ(::chown((dir / ".a.moec-part").c_str(), 1, 1), 0);
    EXPECT_THAT(problem(OutputDirectory::create(dir / "a", "marker")), HasSubstr("belongs to another user"));
    EXPECT_TRUE(std::filesystem::exists(dir / ".a.moec-part"));
  }
}

TEST(OutputDirectory, NeverReplacesWhatIsNotOurs) {
  TemporaryDirectory dir;
  ASSERT_EQ(::mkdir((dir / "precious").c_str(), 0777), 0);
  ASSERT_TRUE(writeFile(dir / "precious/photo", "x"));
  ASSERT_EQ(::mkdir((dir / "empty").c_str(), 0777), 0);
  ASSERT_EQ(::mkdir((dir / "fake").c_str(), 0777), 0);
  ASSERT_EQ(::mkdir((dir / "fake/marker").c_str(), 0777), 0);
  ASSERT_TRUE(writeFile(dir / "file", "x"));
  for (const char *name : {"precious", "empty", "fake"})
    EXPECT_EQ(problem(OutputDirectory::create(dir / name, "marker")),
              (dir / name) + ": exists and holds no marker, expected an earlier output or nothing");
  EXPECT_EQ(problem(OutputDirectory::create(dir / "file", "marker")),
            (dir / "file") + ": exists and is not a directory, expected an earlier output or nothing");
  EXPECT_EQ(problem(OutputDirectory::create(dir / "none/out", "marker")),
            (dir / "none/out") + ": cannot be created: no such file or directory");
  EXPECT_EQ(problem(OutputDirectory::create(dir / "precious/.", "marker")),
            (dir / "precious") + ": exists and holds no marker, expected an earlier output or nothing");
}

TEST(OutputDirectory, LooksAgainAtCommit) {
  TemporaryDirectory dir;
  {
    Result<OutputDirectory> output = OutputDirectory::create(dir / "out", "marker");
    ASSERT_TRUE(output) << output.message();
    ASSERT_TRUE(fill(output->path(), "x"));
    // Somebody else takes the name meanwhile.
    ASSERT_EQ(::mkdir((dir / "out").c_str(), 0777), 0);
    ASSERT_TRUE(writeFile(dir / "out/photo", "x"));
    EXPECT_EQ(problem(output->commit()),
              (dir / "out") + ": exists and holds no marker, expected an earlier output or nothing");
  }
  EXPECT_EQ(contentOf(dir / "out/photo"), "x");
  EXPECT_THAT(dir.list(), ElementsAre("out"));
}

/// From now on renameat2 fails with `error` in this process, as on a file system or kernel without it.
bool forbidRenameFlags(uint32_t error) {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat2, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog program = {std::size(filter), filter};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST(OutputDirectory, ReplacesWithoutAtomicExchangeToo) {
  for (int error : {EINVAL, ENOSYS}) {
    TemporaryDirectory dir;
    inChild([&] {
      if (!forbidRenameFlags(static_cast<uint32_t>(error))) {
        std::fputs("no system call filter: the way without renameat2 is not tested\n", stderr);
        return;
      }
      for (const char *content : {"one", "two", "three"}) {
        Status written = writeDirectory(dir / "out", content);
        ASSERT_TRUE(written) << written.message();
        EXPECT_EQ(contentOf(dir / "out/marker"), content);
        EXPECT_THAT(dir.list(), ElementsAre("out"));
      }
    });
  }
}

//===----------------------------------------------------------------------===//
// Killed processes
//===----------------------------------------------------------------------===//

/// Starts `body` in a child that then waits to be killed; returns once `body` is done.
pid_t startChild(const std::function<void()> &body) {
  int ready[2];
  if (::pipe(ready) != 0)
    return -1;
  pid_t child = ::fork();
  if (child == 0) {
    body();
    char ok = !testing::Test::HasFailure();
    if (::write(ready[1], &ok, 1) == 1)
      for (;;)
        ::pause();
    ::_exit(1);
  }
  ::close(ready[1]);
  char ok = 0;
  EXPECT_EQ(::read(ready[0], &ok, 1), 1);
  EXPECT_EQ(ok, 1);
  ::close(ready[0]);
  return child;
}

void killChild(pid_t child) {
  ASSERT_GT(child, 0);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
}

TEST(Killed, LeavesNothingUnderTheFinalNamesAndTheNextRunCleansUp) {
  TemporaryDirectory dir;
  ASSERT_TRUE(writeDirectory(dir / "out", "old"));
  pid_t child = startChild([&] {
    Result<OutputDirectory> output = OutputDirectory::create(dir / "out", "marker");
    ASSERT_TRUE(output) << output.message();
    ASSERT_TRUE(fill(output->path(), "half"));
    Result<OutputFile> file = OutputFile::create(dir / "f");
    ASSERT_TRUE(file) << file.message();
    ASSERT_TRUE(file->writeAt(0, "half", 4));
    new OutputDirectory(std::move(*output)); // neither is destroyed: the kill comes first
    new OutputFile(std::move(*file));
  });
  // Alive: a second writer of the same file leaves its temporary alone, and one of the directory is refused.
  EXPECT_EQ(dir.list().size(), 3u);
  ASSERT_TRUE(writeFile(dir / "f", "mine"));
  EXPECT_EQ(problem(writeDirectory(dir / "out", "mine")), (dir / "out") + ": is being written by another process");
  EXPECT_EQ(dir.list().size(), 4u);
  killChild(child);
  EXPECT_EQ(contentOf(dir / "out/marker"), "old");
  EXPECT_EQ(contentOf(dir / "f"), "mine");
  EXPECT_EQ(dir.list().size(), 4u);
  {
    // Dead: what it left is there for the next writer.
    Result<OutputDirectory> output = OutputDirectory::create(dir / "out", "marker");
    ASSERT_TRUE(output) << output.message();
    EXPECT_EQ(contentOf(output->path() + "/marker"), "half");
    ASSERT_TRUE(writeFile(output->notesPath(), "whole"));
  }
  // Without commit nothing is left of it; the next writer of the file removes its temporary.
  EXPECT_EQ(dir.list().size(), 3u);
  ASSERT_TRUE(writeFile(dir / "f", "next"));
  ASSERT_TRUE(writeDirectory(dir / "out", "next"));
  EXPECT_THAT(dir.list(), ElementsAre("f", "out"));
  EXPECT_EQ(contentOf(dir / "out/sub/data"), "next");
}

TEST(Killed, AnywhereBetweenTwoOutputsLeavesOneOfThem) {
  TemporaryDirectory dir;
  const unsigned seed = 7;
  std::mt19937 random(seed);
  ASSERT_TRUE(writeDirectory(dir / "out", "0"));
  for (int round = 0; round < 30; ++round) {
    pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0)
      for (int i = 0;; ++i)
        if (!writeDirectory(dir / "out", std::to_string(i)))
          ::_exit(1);
    ::usleep(random() % 20000);
    ASSERT_NO_FATAL_FAILURE(killChild(child));
    std::string content = contentOf(dir / "out/marker");
    EXPECT_THAT(content, testing::MatchesRegex("[0-9]+")) << "round " << round << " seed " << seed;
    EXPECT_EQ(contentOf(dir / "out/sub/data"), content) << "round " << round << " seed " << seed;
  }
  ASSERT_TRUE(writeDirectory(dir / "out", "last"));
  EXPECT_THAT(dir.list(), ElementsAre("out"));
}

TEST(Concurrent, WritersOfOneNameEachWriteAWholeOutput) {
  TemporaryDirectory dir;
  std::atomic<int> directories = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) {
        std::string content = std::to_string(t) + std::string(1000, 'x');
        Status written = writeFile(dir / "f", content);
        EXPECT_TRUE(written) << written.message();
        written = writeDirectory(dir / "out", content);
        if (written)
          ++directories;
        else
          EXPECT_EQ(written.message(), (dir / "out") + ": is being written by another process");
      }
    });
  for (std::thread &thread : threads)
    thread.join();
  EXPECT_GT(directories, 0);
  EXPECT_EQ(contentOf(dir / "f").size(), 1001u);
  EXPECT_EQ(contentOf(dir / "out/marker"), contentOf(dir / "out/sub/data"));
  EXPECT_THAT(dir.list(), ElementsAre("f", "out"));
}

} // namespace
