// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_DIALECTS_EXEC_EXECOPS_TD
#define MOEC_DIALECTS_EXEC_EXECOPS_TD

include "mlir/IR/OpBase.td"
include "mlir/IR/BuiltinAttributes.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"
include "mlir/Interfaces/ViewLikeInterface.td"

def Exec_Dialect : Dialect {
  let name = "exec";
  let cppNamespace = "::mlir::exec";
  let summary = "The device program: buffers on a memory plan and a list of launches";
}

class Exec_Op<string mnemonic, list<Trait> traits = []> : Op<Exec_Dialect, mnemonic, traits>;

def Exec_WeightOp : Exec_Op<"weight", [Symbol]> {
  let summary = "A weight of the artifact: its packed type and the recipe that makes it";
  let arguments = (ins SymbolNameAttr:$sym_name, StrArrayAttr:$sources, ArrayAttr:$recipe, TypeAttrOf<AnyMemRef>:$type);
  let assemblyFormat = "$sym_name $sources `recipe` $recipe attr-dict `:` $type";
}

def Exec_CacheOp : Exec_Op<"cache", [Symbol]> {
  let summary = "Paged storage of one layer: entries of `width` elements, 64 tokens a page";
  let arguments = (ins SymbolNameAttr:$sym_name, ConfinedAttr<I64Attr, [IntPositive]>:$width, TypeAttr:$element_type);
  let assemblyFormat = "$sym_name `width` $width `of` $element_type attr-dict";
}

def Exec_KernelOp : Exec_Op<"kernel", [Symbol]> {
  let summary = "A kernel to be emitted: its kind and its spec";
  let arguments = (ins SymbolNameAttr:$sym_name, StrAttr:$kind, DictionaryAttr:$spec);
  let assemblyFormat = "$sym_name $kind $spec attr-dict";
}

def Exec_ProgramOp : Exec_Op<"program", [Symbol, IsolatedFromAbove, NoTerminator, SingleBlock]> {
  let summary = "The step function as a list of launches";
  let description = [{
    Arguments: tokens, positions, slots `memref<?xi32>` of `T` entries, rows `memref<?xi32>` of `R`
    entries, the page table `memref<?x?xi32>` and the result, logits `memref<?xVxf32>` of `R` rows.
    `max_tokens` bounds `T` and `R`; `arena_bytes` is set by the memory planner.
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, ConfinedAttr<I64Attr, [IntPositive]>:$max_tokens,
                       OptionalAttr<I64Attr>:$arena_bytes);
  let regions = (region SizedRegion<1>:$body);
  let hasCustomAssemblyFormat = 1;
}

def Exec_BufferOp : Exec_Op<"buffer", [MemoryEffects<[MemAlloc]>]> {
  let summary = "Scratch memory of the step";
  let description = [{
    The dynamic leading dimension, if any, counts `rows_per_token * T` rows (or `R` rows if `per_row`).
    `offset` is a byte offset into the arena, given by the memory planner.
  }];
  let arguments = (ins DefaultValuedAttr<ConfinedAttr<I64Attr, [IntPositive]>, "1">:$rows_per_token,
                       UnitAttr:$per_row, OptionalAttr<I64Attr>:$offset);
  let results = (outs AnyMemRef:$result);
  let assemblyFormat = "attr-dict `:` type($result)";
}

def Exec_WeightRefOp : Exec_Op<"weight_ref", [Pure, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "The mapped bytes of a weight";
  let arguments = (ins FlatSymbolRefAttr:$weight);
  let results = (outs AnyMemRef:$result);
  let assemblyFormat = "$weight attr-dict `:` type($result)";
}

def Exec_CacheRefOp : Exec_Op<"cache_ref", [Pure, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "The pages of a cache: [pages, 64, width]";
  let arguments = (ins FlatSymbolRefAttr:$cache);
  let results = (outs AnyMemRef:$result);
  let assemblyFormat = "$cache attr-dict `:` type($result)";
}

def Exec_ViewOp : Exec_Op<"view", [Pure]> {
  let summary = "Another shape of the same memory, with static strides and offset";
  let arguments = (ins AnyMemRef:$source);
  let results = (outs AnyMemRef:$result);
  let assemblyFormat = "$source attr-dict `:` type($source) `to` type($result)";
}

def Exec_LaunchOp : Exec_Op<"launch", [DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "Run a kernel over a grid of independent tasks";
  let description = [{
    `grid` maps `(T, R)` to one or more affine results; the number of tasks is the least of them.
    `writes` lists the positions of the arguments that the kernel writes; the others are read.
  }];
  let arguments = (ins FlatSymbolRefAttr:$kernel, Variadic<AnyMemRef>:$args, AffineMapAttr:$grid,
                       DenseI64ArrayAttr:$writes);
  let assemblyFormat = "$kernel `(` $args `)` `grid` $grid `writes` $writes attr-dict `:` type($args)";
}

#endif
