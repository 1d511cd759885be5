// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// One emitter per kind of kernel. Each adds one function to the builder's
/// module; what it must do is written at its spec. Specs have passed `checkSpec`.

#ifndef MOEC_CODEGEN_CPU_EMITTERS_H
#define MOEC_CODEGEN_CPU_EMITTERS_H

#include "codegen/Common/KernelSpec.h"
#include "codegen/Cpu/Compile.h"
#include "codegen/Cpu/KernelBuilder.h"

namespace moec::cpu {

void emit(KernelBuilder &b, llvm::StringRef symbol, const EmbedSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const GatherRowsSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const RmsNormSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const GemmSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const RopeAnglesSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const RopeSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const CacheAppendSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const MlaAttentionSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const MlaCombineSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const MlaExpandedSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const RouteSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const DispatchSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const CombineSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const ArgmaxSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const ElementwiseSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const FakeQuantizeSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const QuantizeRowsSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const CastRowsSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const RowsSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const GemmChainSpec &spec, const Tiles &tiles);
void emit(KernelBuilder &b, llvm::StringRef symbol, const MlaValuesSpec &spec, const Tiles &tiles);

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_EMITTERS_H
