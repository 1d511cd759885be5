// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_DIALECTS_MOE_MOEDIALECT_TD
#define MOEC_DIALECTS_MOE_MOEDIALECT_TD

include "mlir/IR/OpBase.td"

def Moe_Dialect : Dialect {
  let name = "moe";
  let cppNamespace = "::mlir::moe";
  let summary = "Mixture-of-experts transformers, as their papers write them";
  let description = [{
    One step of a model is one function on tensors. Activations are float32 with one row for
    each token; tokens of several sequences lie in one ragged batch, and `slots` says which
    sequence a row belongs to. Weights are names with recipes (`moe.weight`), never data.
    State between steps is in caches (`moe.cache`) and nowhere else.

    Dimensions have one letter everywhere:

    | Letter | Counts | Letter | Counts |
    |---|---|---|---|
    | `T` | tokens of the step | `D` | channels of the model |
    | `R` | rows asked for | `F` | channels inside an expert or FFN |
    | `S` | entries of the context | `H` | heads |
    | `E` | experts | `V` | vocabulary |
    | `K` | experts per token | `N`, `C` | outputs and inputs of a matrix |

    `T`, `R` and `S` may be dynamic, all others are static. A dynamic extent agrees with every
    static one in a verifier; that they agree at run time is the program's duty.

    All arithmetic is float32 with weights widened to it, in no promised order of summation;
    an implementation states its own order and keeps it.
  }];
  let useDefaultAttributePrinterParser = 1;
}

#endif
