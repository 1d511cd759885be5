// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_DIALECTS_MOE_MOEDIALECT_TD
#define MOEC_DIALECTS_MOE_MOEDIALECT_TD

include "mlir/IR/OpBase.td"

def Moe_Dialect : Dialect {
  let name = "moe";
  let cppNamespace = "::mlir::moe";
  let summary = "Mixture-of-experts transformers, as their papers write them";
  let useDefaultAttributePrinterParser = 1;
}

#endif
