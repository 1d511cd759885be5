// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_DIALECTS_EXEC_EXECOPS_TD
#define MOEC_DIALECTS_EXEC_EXECOPS_TD

include "mlir/IR/OpBase.td"
include "mlir/IR/BuiltinAttributes.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

def Exec_Dialect : Dialect {
  let name = "exec";
  let cppNamespace = "::mlir::exec";
  let summary = "The device program: buffers on a memory plan and a list of launches";
  let description = [{
    A module of this dialect is what an artifact's `manifest.json` says: caches, weights and
    kernels by name, and one program that launches the kernels in order. Nothing here depends
    on the model: a launch has a kernel, arguments and a grid, and the kernel's spec says what
    to compute. The only sizes known late are `T`, the tokens of a step, and `R`, the rows of
    logits that it asks for.
  }];
}

class Exec_Op<string mnemonic, list<Trait> traits = []> : Op<Exec_Dialect, mnemonic, traits>;
class Exec_BodyOp<string mnemonic, list<Trait> traits = []>
    : Exec_Op<mnemonic, traits # [HasParent<"ProgramOp">]>;

def Exec_WeightOp : Exec_Op<"weight", [Symbol]> {
  let summary = "A weight of the artifact: its packed type and the recipe that makes it";
  let description = [{
    `sources` are names of tensors in the checkpoint, where `{e}` stands for a family of them;
    `recipe` holds steps of the `moe` dialect that turn the sources into one tensor of the
    shape and element type of `type`. No data is here: the materializer runs the recipe when
    the artifact is written.

    - (C1) There is at least one source.
    - (C2) `type` is dense and static, of f32, f16, bf16, f8E4M3FN, i32 or i8.

    ```mlir
    exec.weight @model.norm ["model.norm.weight"] recipe [#moe.cast<f32>] : memref<256xf32>
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, StrArrayAttr:$sources, ArrayAttr:$recipe, TypeAttrOf<AnyMemRef>:$type);
  let assemblyFormat = "$sym_name $sources `recipe` $recipe attr-dict `:` $type";
  let hasVerifier = 1;
}

def Exec_CacheOp : Exec_Op<"cache", [Symbol]> {
  let summary = "Paged storage of one layer: entries of `width` elements, 64 tokens a page";
  let description = [{
    The runtime owns the pages. Entry `j` of a sequence in slot `s` is row `j mod 64` of page
    `page_table[s, j / 64]`.

    - (C1) `element_type` is f32, f16, bf16 or i8.
    - (C2) `codes`, there for i8 and for no other type, is "int8" or "fp8": entries are codes, scales and a part in bf16
      as `#moe.cache_codes` and dialects/Formats/CodedEntry.h say, and `width` counts their bytes.

    ```mlir
    exec.cache @kv.0 width 80 of f32
    exec.cache @kv.1 width 656 of i8 codes "fp8"
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, ConfinedAttr<I64Attr, [IntPositive]>:$width, TypeAttr:$element_type,
                       OptionalAttr<StrAttr>:$codes);
  let assemblyFormat = "$sym_name `width` $width `of` $element_type (`codes` $codes^)? attr-dict";
  let extraClassDeclaration = [{
    /// Tokens in one page; the runtime's MOE_PAGE_TOKENS.
    static constexpr int64_t pageTokens = 64;
    /// `memref<?x64xWxelement>`.
    MemRefType getPagesType();
  }];
  let hasVerifier = 1;
}

def Exec_KernelOp : Exec_Op<"kernel", [Symbol]> {
  let summary = "A kernel to be emitted: its kind and its spec";
  let description = [{
    `kind` and `spec` say what the kernel computes, for exactly these shapes, formats and
    strides; codegen/Common/KernelSpec.h defines them and the arguments and grid that follow.
    A target's emitter turns each into one function with the symbol's name.

    - (C1) `kind` is not empty.

    ```mlir
    exec.kernel @dispatch_e16_top4 "dispatch" {experts = 16 : i64, members = array<i64>, rows = "T", topk = 4 : i64}
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, StrAttr:$kind, DictionaryAttr:$spec);
  let assemblyFormat = "$sym_name $kind $spec attr-dict";
  let hasVerifier = 1;
}

def Exec_ProgramOp : Exec_Op<"program", [Symbol, IsolatedFromAbove, NoTerminator, SingleBlock]> {
  let summary = "The step function as a list of launches";
  let description = [{
    Arguments, in this order: `tokens`, `positions`, `slots` of `T` entries, `rows` of `R`
    entries, the page table `[slots, pages per slot]` and the results: the logits of `R` rows, and
    maybe the token with the greatest logit of each, or -1. A step that has no use for its logits
    passes none to a program that has tokens: its kernels do not store there then.
    Launches run in order, each after all tasks of the one before. `arena_bytes` is set by
    the memory planner.

    - (C1) The arguments are `memref<?xi32>` four times, `memref<?x?xi32>`,
      `memref<?xVxf32>` and maybe `memref<?xi32>`.
    - (C2) `1 <= max_tokens <= 2^20` bounds `T` and `R`.
    - (C3) The body holds ops of this dialect only.
    - (C4) If `arena_bytes` is set, each buffer has an offset and ends inside the arena.

    ```mlir
    exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>,
                       %rows: memref<?xi32>, %pages: memref<?x?xi32>, %logits: memref<?x1280xf32>) max_tokens 512 {
      %table = exec.weight_ref @model.embed_tokens : memref<1280x256xbf16>
      %x = exec.buffer : memref<?x256xf32>
      exec.launch @embed_bf16_d256(%tokens, %table, %x) grid affine_map<(T, R) -> (T)> writes [2] {label = "embed"}
        : memref<?xi32>, memref<1280x256xbf16>, memref<?x256xf32>
    }
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, ConfinedAttr<I64Attr, [IntPositive]>:$max_tokens,
                       OptionalAttr<ConfinedAttr<I64Attr, [IntNonNegative]>>:$arena_bytes);
  let regions = (region SizedRegion<1>:$body);
  let hasCustomAssemblyFormat = 1;
  let extraClassDeclaration = [{
    enum Argument { Tokens, Positions, Slots, RowsWanted, PageTable, Logits, Argmax, NumArguments };
    /// The name of an argument in artifacts: "tokens", "positions", "slots", "rows", "page_table", "logits", "argmax".
    static StringRef getArgumentName(unsigned index);
    static bool isOutput(unsigned index) { return index >= Logits; }
    BlockArgument getArgument(Argument which) { return getBody().getArgument(which); }
  }];
  let hasVerifier = 1;
}

def Exec_BufferOp : Exec_BodyOp<"buffer", [MemoryEffects<[MemAlloc]>]> {
  let summary = "Scratch memory of the step";
  let description = [{
    A leading dimension `?` counts `rows_per_token * T` rows, or `rows_per_token * R` if `per_row`.
    `offset` is a byte offset into the arena, given by the memory planner; at least 128 bytes
    behind a buffer may be read, never with a meaning. A `kept` buffer is zero before the first
    step, and in each step what the one before left there.

    - (C1) The type is dense, of f32, bf16, i32 or i8; only the leading dimension may be `?`.
    - (C2) `rows_per_token` above 1 and `per_row` need a leading `?`.
    - (C3) `offset` is a multiple of 64.

    ```mlir
    %h = exec.buffer {rows_per_token = 4 : i64} : memref<?x64xf32>
    ```
  }];
  let arguments = (ins DefaultValuedAttr<ConfinedAttr<I64Attr, [IntPositive]>, "1">:$rows_per_token,
                       UnitAttr:$per_row, UnitAttr:$kept,
                       OptionalAttr<ConfinedAttr<I64Attr, [IntNonNegative]>>:$offset);
  let results = (outs AnyMemRef:$result);
  let assemblyFormat = "attr-dict `:` type($result)";
  let extraClassDeclaration = [{
    /// Bytes at `T = R = maxTokens`, without slack; nothing if that is more than 2^62.
    std::optional<int64_t> getBytes(int64_t maxTokens);
  }];
  let hasVerifier = 1;
}

def Exec_WeightRefOp : Exec_BodyOp<"weight_ref", [Pure, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "The mapped bytes of a weight";
  let description = [{
    - (C1) `weight` names an `exec.weight` of the result's type.

    ```mlir
    %w = exec.weight_ref @model.norm : memref<256xf32>
    ```
  }];
  let arguments = (ins FlatSymbolRefAttr:$weight);
  let results = (outs AnyMemRef:$result);
  let assemblyFormat = "$weight attr-dict `:` type($result)";
}

def Exec_CacheRefOp : Exec_BodyOp<"cache_ref", [Pure, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "The pages of a cache: [pages, 64, width]";
  let description = [{
    - (C1) `cache` names an `exec.cache` whose pages have the result's type.

    ```mlir
    %c = exec.cache_ref @kv.0 : memref<?x64x80xf32>
    ```
  }];
  let arguments = (ins FlatSymbolRefAttr:$cache);
  let results = (outs AnyMemRef:$result);
  let assemblyFormat = "$cache attr-dict `:` type($result)";
}

def Exec_ViewOp : Exec_BodyOp<"view", [Pure]> {
  let summary = "Another shape of the same memory, with static strides and offset";
  let description = [{
    The result's layout counts elements from the start of the buffer, also where the source is
    itself a view: an argument's address is the buffer's plus the offset of its own type.

    - (C1) Element types are equal, strides and offsets static.
    - (C2) Both have a leading `?` with one stride, or neither has one.
    - (C3) The elements of a row of the result (of all of it, without `?`) lie between the
      first and the last element of a row of the source.

    ```mlir
    %rope = exec.view %q : memref<?x4x48xf32> to memref<?x4x16xf32, strided<[192, 48, 1], offset: 32>>
    ```
  }];
  let arguments = (ins AnyMemRef:$source);
  let results = (outs AnyMemRef:$result);
  let assemblyFormat = "$source attr-dict `:` type($source) `to` type($result)";
  let hasVerifier = 1;
}

def Exec_LaunchOp : Exec_BodyOp<"launch", [DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "Run a kernel over a grid of independent tasks";
  let description = [{
    `grid` maps `(T, R)` to one or more affine results; the number of tasks is the least of them.
    `writes` lists the positions of the arguments that the kernel writes; the others are read.
    A launch with `run_from` is left out of a step unless some run of it (a longest stretch of
    neighbouring tokens of one slot) has at least so many tokens; one with `run_below`, unless
    some run has fewer. The kernel leaves out the tokens that are not its own: two launches with
    one bound share the tokens of a step between them.
    `label` tells people which part of the model this is. Whether the arguments are those that
    the kernel's spec asks for is checked where specs are known: when they are lowered to, and
    when the artifact is written.

    - (C1) `kernel` names an `exec.kernel`.
    - (C2) `grid` has two dimensions, no symbols and at least one result.
    - (C3) `writes` is ascending and within the arguments; it names no weight and no input of
      the program.
    - (C4) At most one of `run_from` and `run_below` is set, and is positive.

    ```mlir
    exec.launch @add_d256(%a, %b, %y) grid affine_map<(T, R) -> (T)> writes [2] {label = "layers.0.add"}
      : memref<?x256xf32>, memref<?x256xf32>, memref<?x256xf32>
    ```
  }];
  let arguments = (ins FlatSymbolRefAttr:$kernel, Variadic<AnyMemRef>:$args, AffineMapAttr:$grid,
                       DenseI64ArrayAttr:$writes, OptionalAttr<StrAttr>:$label,
                       OptionalAttr<ConfinedAttr<I64Attr, [IntPositive]>>:$run_from,
                       OptionalAttr<ConfinedAttr<I64Attr, [IntPositive]>>:$run_below);
  let assemblyFormat = "$kernel `(` $args `)` `grid` $grid `writes` $writes attr-dict `:` type($args)";
  let hasVerifier = 1;
}

#endif
