// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/Calibration.h"
#include "test/fuzz/FuzzTarget.h"

#include <cstring>
#include <string_view>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

using namespace moec;
using namespace moec::fuzz;

/// Uses all that an accepted file promises.
static void use(const Calibration &calibration) {
  for (const auto &[weight, input] : calibration.inputs()) {
    require(calibration.find(weight) == &input, "a weight is found by its name");
    require(input.rows >= 1 && input.width >= 1, "there are rows");
    std::vector<float> row(input.width);
    for (int64_t i : {int64_t(0), input.rows - 1}) {
      Status status = calibration.read(input, i, 1, row.data());
      if (!status.ok())
        requireSentence(status.message(), calibration.path());
    }
    if (!input.routing) {
      require(input.rows == calibration.tokens(), "a plain weight reads each token");
      continue;
    }
    const CalibrationRouting &routing = *input.routing;
    int64_t found = 0;
    for (int64_t expert = 0; expert < routing.experts; ++expert) {
      std::vector<int64_t> choices;
      const std::vector<int64_t> rows = input.rowsOf(expert, &choices);
      require(static_cast<int64_t>(rows.size()) == routing.counts[expert] && choices.size() == rows.size(),
              "an expert has as many rows as it was chosen");
      for (int64_t at : rows)
        require(at >= 0 && at < input.rows, "rows of experts are there");
      found += rows.size();
    }
    require(found == calibration.tokens() * routing.topk, "each choice is some expert's");
  }
}

static void open(std::string_view file) {
  const int fd = ::memfd_create("calibration", MFD_CLOEXEC);
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  require(::write(fd, file.data(), file.size()) == static_cast<ssize_t>(file.size()), "the input is written");
  Result<Calibration> calibration = Calibration::open(path);
  if (calibration)
    use(*calibration);
  else
    requireSentence(calibration.message(), path);
  ::close(fd);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  std::string_view input(reinterpret_cast<const char *>(data), size);
  open(input);
  // As in SafetensorsFuzz: all up to the last brace as the header, here aligned as ours are.
  size_t brace = input.size() < 8 ? std::string_view::npos : input.rfind('}');
  if (brace == std::string_view::npos || brace < 8)
    return 0;
  std::string header(input.substr(8, brace + 1 - 8));
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  open(file + header + std::string(input.substr(brace + 1)));
  return 0;
}
