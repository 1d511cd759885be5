// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// From a `quantization_config` to the format that it declares.

#ifndef MOEC_DIALECTS_FORMATS_DETECT_H
#define MOEC_DIALECTS_FORMATS_DETECT_H

#include "dialects/Formats/Format.h"
#include "runtime/Support/Json.h"

namespace moec {

/// The format of the quantized linear layers of a model. `config` is the
/// `quantization_config` of its config.json: the methods fp8, gptq, awq,
/// compressed-tensors and modelopt. Which layers are quantized is not read from it: their tensors tell.
/// Errors name the field that is unknown, contradictory or not built.
Result<Format> detectFormat(const JsonObject &config);

} // namespace moec

#endif // MOEC_DIALECTS_FORMATS_DETECT_H
