// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What GGUF files of the architecture `deepseek2` call the tensors of a checkpoint. Source: llama.cpp's list of
/// tensor names. Rows keep the order of the checkpoint, those of rotary parts too.

#ifndef MOEC_FRONTENDS_HUGGINGFACE_GGUFNAMES_H
#define MOEC_FRONTENDS_HUGGINGFACE_GGUFNAMES_H

#include <optional>
#include <string>
#include <string_view>

namespace moec::hf {

/// "blk.3.attn_norm.weight" -> "model.layers.3.input_layernorm.weight". A tensor of stacked experts stands for the
/// family with `{e}`. Nothing for a name that such files do not have.
std::optional<std::string> fromGgufName(std::string_view name);
/// The inverse.
std::optional<std::string> toGgufName(std::string_view name);

} // namespace moec::hf

#endif // MOEC_FRONTENDS_HUGGINGFACE_GGUFNAMES_H
