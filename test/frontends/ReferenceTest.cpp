// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The import as a whole: what the interpreter computes from an imported model against the stored logits of an
/// independent forward pass.

#include "Support.h"
#include "dialects/Moe/Reference/Interpreter.h"
#include "frontends/HuggingFace/Import.h"
#include "runtime/Support/Safetensors.h"

#include "mlir/IR/MLIRContext.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

using namespace moec;
using namespace moec::hf;

namespace {

class Reference : public testing::TestWithParam<const char *> {};

TEST_P(Reference, LogitsOfTheImportedModel) {
  std::string directory = std::string(MOEC_TEST_DIR "/models/") + GetParam();
  Result<SourceModel> model = SourceModel::open(directory);
  ASSERT_TRUE(model.ok()) << model.message();
  Result<SafetensorsFile> stored = SafetensorsFile::open(directory + "/reference.safetensors");
  ASSERT_TRUE(stored.ok()) << stored.message();
  const TensorInfo &tokenInfo = stored->tensors().at("tokens"), &logitInfo = stored->tensors().at("logits");
  const int64_t count = tokenInfo.shape[0], vocab = model->config.vocab;
  ASSERT_EQ(tokenInfo.dtype, DType::I32);
  ASSERT_EQ(logitInfo.dtype, DType::F32);
  ASSERT_EQ(logitInfo.shape, (std::vector<int64_t>{count, vocab}));

  std::vector<int32_t> tokens(count), positions(count), slots(count, 0);
  std::memcpy(tokens.data(), stored->data(tokenInfo), 4 * count);
  std::iota(positions.begin(), positions.end(), 0);

  mlir::MLIRContext context;
  auto module = importModel(context, model->config, model->inventory);
  ASSERT_TRUE(succeeded(module));
  mlir::moe::Interpreter interpreter(**module, model->checkpoint);
  auto logits = interpreter.run(tokens, positions, slots, positions);
  ASSERT_TRUE(succeeded(logits));
  ASSERT_EQ(static_cast<int64_t>(logits->data.size()), count * vocab);

  std::vector<float> expected(count * vocab);
  std::memcpy(expected.data(), stored->data(logitInfo), expected.size() * sizeof(float));
  double worst = 0;
  for (int64_t t = 0; t < count; ++t) {
    auto row = logits->data.begin() + t * vocab;
    auto expectedRow = expected.begin() + t * vocab;
    EXPECT_EQ(std::max_element(row, row + vocab) - row,
              std::max_element(expectedRow, expectedRow + vocab) - expectedRow)
        << "arg-max at position " << t;
    for (int64_t v = 0; v < vocab; ++v)
      worst = std::max(worst, std::abs(static_cast<double>(row[v]) - expectedRow[v]));
  }
  // Two f32 forward passes that sum in different orders; the stored one agrees with DeepSeek's own program to 1e-5.
  EXPECT_LE(worst, 1e-4);
}

INSTANTIATE_TEST_SUITE_P(TinyShakespeare, Reference, testing::Values("tiny-shakespeare", "tiny-shakespeare-fp8"));

} // namespace
