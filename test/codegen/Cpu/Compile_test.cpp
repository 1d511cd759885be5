// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Harness.h"

#include "llvm/Object/ELFObjectFile.h"
#include "llvm/Support/MemoryBuffer.h"

#include <filesystem>
#include <fstream>

namespace moec::cpu {
namespace {

using ::testing::HasSubstr;

class Folder {
public:
  Folder() {
    char name[] = "/tmp/moec-link-XXXXXX";
    if (!mkdtemp(name))
      abort();
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

std::string readFile(const std::filesystem::path &path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

/// One kernel of each kind.
std::vector<Kernel> everyKind() {
  GemmSpec gemm;
  gemm.n = gemm.k = gemm.xStride = gemm.yStride = 40;
  RouteSpec route;
  route.experts = route.logitsStride = 16;
  route.topk = 4;
  route.groups = 4;
  route.topkGroups = 2;
  CombineSpec combine;
  combine.topk = 4;
  combine.width = combine.yStride = combine.outStride = 40;
  std::vector<KernelSpec> specs = {
      EmbedSpec{DType::BF16, 40, 40},
      GatherRowsSpec{40, 40, 40},
      RmsNormSpec{40, 40, 40, 1e-6, Rows::T},
      gemm,
      RopeAnglesSpec{{1.0f, 0.1f}, 1.0},
      RopeSpec{2, 4, 8, 4, 8, 4},
      CacheAppendSpec{20, 4, 32, 20, 4, DType::BF16},
      MlaAttentionSpec{5, 20, 4, 32, 120, 24, 100, 20, 1.0, 7},
      MlaCombineSpec{5, 20, 100, 20, 7},
      MlaExpandedSpec{DType::BF16, 5, 12, 20, 4, 8, 32, 60, 12, 20, 4, 40, 8, 1.0, 7},
      route,
      DispatchSpec{16, 4},
      combine,
      ElementwiseSpec{true, 40, 40, 40, 40},
  };
  std::vector<Kernel> kernels;
  for (size_t i = 0; i < specs.size(); ++i)
    kernels.push_back({"kernel_" + std::to_string(i), specs[i]});
  return kernels;
}

TEST(Compile, SharedObjectStandsAlone) {
  Folder folder;
  std::vector<Kernel> kernels = everyKind();
  for (const Level &level : levels()) {
    auto objects = compileKernels(kernels, level, Output::Object);
    ASSERT_TRUE(objects.ok()) << objects.message();
    std::string path = folder.path / "kernels.so";
    Status status = linkShared(*objects, path);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path), {}), 1) << "objects were left";

    std::string bytes = readFile(path);
    auto file = llvm::object::ObjectFile::createELFObjectFile(llvm::MemoryBufferRef(bytes, path));
    ASSERT_TRUE(bool(file));
    auto *elf = llvm::cast<llvm::object::ELF64LEObjectFile>(file->get());
    EXPECT_EQ(elf->getELFFile().getHeader().e_type, llvm::ELF::ET_DYN);
    std::vector<std::string> defined;
    for (auto symbol : elf->getDynamicSymbolIterators()) {
      EXPECT_FALSE(*symbol.getFlags() & llvm::object::SymbolRef::SF_Undefined) << symbol.getName()->str();
      defined.push_back(symbol.getName()->str());
    }
    EXPECT_EQ(defined.size(), kernels.size()) << "each kernel is exported, and nothing else";
    for (const Kernel &kernel : kernels)
      EXPECT_THAT(defined, ::testing::Contains(kernel.symbol));
    auto entries = elf->getELFFile().dynamicEntries();
    ASSERT_TRUE(bool(entries));
    for (const auto &entry : *entries) {
      EXPECT_NE(entry.getTag(), llvm::ELF::DT_NEEDED) << "the object depends on a library";
      EXPECT_NE(entry.getTag(), llvm::ELF::DT_SONAME);
      EXPECT_NE(entry.getTag(), llvm::ELF::DT_TEXTREL);
    }
    auto headers = elf->getELFFile().program_headers();
    ASSERT_TRUE(bool(headers));
    for (const auto &header : *headers)
      if (header.p_type == llvm::ELF::PT_GNU_STACK) {
        EXPECT_FALSE(header.p_flags & llvm::ELF::PF_X) << "the stack is executable";
      }
  }
}

TEST(Compile, SameKernelsGiveTheSameBytes) {
  Folder folder;
  std::vector<std::string> files;
  for (const char *name : {"first.so", "second.so"}) {
    auto objects = compileKernels(everyKind(), levels().front(), Output::Object);
    ASSERT_TRUE(objects.ok()) << objects.message();
    Status status = linkShared(*objects, folder.path / name);
    ASSERT_TRUE(status.ok()) << status.message();
    files.push_back(readFile(folder.path / name));
  }
  EXPECT_TRUE(files[0] == files[1]);
}

TEST(Compile, NoKernelsGiveAnEmptyObject) {
  Folder folder;
  auto objects = compileKernels({}, levels().front(), Output::Object);
  ASSERT_TRUE(objects.ok()) << objects.message();
  Status status = linkShared(*objects, folder.path / "empty.so");
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST(Compile, BadSpecsAreNamed) {
  GemmSpec gemm;
  gemm.n = 4;
  auto result = compileKernels({Kernel{"mine", gemm}}, levels().front(), Output::Object);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.message(), "kernel mine: k must be at least 1, found 0");
  EmbedSpec embed{DType::I8, 4, 4};
  Status status = checkSpec(embed);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.message(), "weights of I8 are not supported");
}

TEST(Link, SaysWhatIsWrong) {
  Folder folder;
  auto objects = compileKernels(everyKind(), levels().front(), Output::Object);
  ASSERT_TRUE(objects.ok()) << objects.message();
  Status absent = linkShared(*objects, folder.path / "no" / "such" / "folder.so");
  ASSERT_FALSE(absent.ok());
  EXPECT_THAT(absent.message(), HasSubstr("folder.so: no folder for object files can be made beside it"));
  Status garbage = linkShared({"not an object"}, folder.path / "garbage.so");
  ASSERT_FALSE(garbage.ok());
  EXPECT_THAT(garbage.message(), HasSubstr("garbage.so: cannot be linked: "));
  Status twice = linkShared({objects->front(), objects->front()}, folder.path / "twice.so");
  ASSERT_FALSE(twice.ok());
  EXPECT_THAT(twice.message(), HasSubstr("duplicate symbol"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path)) << "something was left";
  // And it works again after failures.
  EXPECT_TRUE(linkShared(*objects, folder.path / "good.so").ok());
}

} // namespace
} // namespace moec::cpu
