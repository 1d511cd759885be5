// RUN: moe-opt %s -split-input-file -moe-to-exec | FileCheck %s

// Routed experts in bf16: gate and up share panels; the lists that sort tokens by expert serve
// every use of one route.

// CHECK-DAG: #[[GATHER:.+]] = affine_map<(d0, d1) -> (24, d0 * 6)>
// CHECK-DAG: #[[SCATTER:.+]] = affine_map<(d0, d1) -> (16, d0 * 4)>
// CHECK-DAG: #[[ONE:.+]] = affine_map<(d0, d1) -> (1)>
// CHECK: exec.weight @gate.e_score_correction_bias ["gate.e_score_correction_bias"] recipe [#moe.pad<16>] : memref<16xf32>
// CHECK: exec.weight @experts.gate_proj ["experts.{e}.gate_proj.weight", "experts.{e}.up_proj.weight"] recipe [#moe.stack<8>, #moe.pack_panels<32, 2>] : memref<8x3x48x32xbf16>
// CHECK: exec.weight @experts.down_proj ["experts.{e}.down_proj.weight"] recipe [#moe.stack<8>, #moe.pack_panels<32, 2>] : memref<8x2x40x32xbf16>
// CHECK: exec.kernel @route_sigmoid_e8_top2 "route" {bias = true, experts = 8 : i64, group_top2_sum = true, groups = 4 : i64, logits_stride = 8 : i64, normalize = true, rows = "T", scale = 2.500000e+00 : f64, shared = 0 : i64, sigmoid = true, topk = 2 : i64, topk_groups = 2 : i64}
// CHECK: exec.kernel @gemm_bf16_n40_k48_e8_gather_swiglu "gemm" {{.*}}routing = "gather", rows = "T", scale_cols = 0 : i64, topk = 2 : i64
// CHECK: exec.kernel @gemm_bf16_n48_k40_e8_scatter "gemm" {{.*}}routing = "scatter"
// CHECK: exec.kernel @combine_top2_d48_add "combine" {members = array<i64>, out_stride = 48 : i64, residual = true, residual_stride = 48 : i64, rows = "T", topk = 2 : i64, width = 48 : i64, y_stride = 48 : i64}
// CHECK: exec.kernel @combine_top2_d48 "combine" {{.*}}residual = false, residual_stride = 0 : i64
// CHECK: exec.program
// CHECK: exec.launch @embed_bf16_d48(%{{.+}}, %{{.+}}, %[[X:.+]]) grid
// CHECK-DAG: %[[W:.+]] = exec.buffer : memref<?x2xf32>
// CHECK-DAG: %[[E:.+]] = exec.buffer : memref<?x2xi32>
// CHECK: exec.launch @route_sigmoid_e8_top2(%{{.+}}, %{{.+}}, %[[W]], %[[E]]) grid #{{.+}} writes [2, 3]
// CHECK: %[[OFFSETS:.+]] = exec.buffer : memref<9xi32>
// CHECK: %[[ACTIVE:.+]] = exec.buffer : memref<9xi32>
// CHECK: %[[ORDER:.+]] = exec.buffer {rows_per_token = 2 : i64} : memref<?xi32>
// CHECK: exec.launch @dispatch_e8_top2(%[[E]], %[[OFFSETS]], %[[ACTIVE]], %[[ORDER]]) grid #[[ONE]] writes [1, 2, 3] {label = "mlp.experts.dispatch"}
// CHECK: %[[H:.+]] = exec.buffer {rows_per_token = 2 : i64} : memref<?x40xf32>
// CHECK: exec.launch @gemm_bf16_n40_k48_e8_gather_swiglu(%[[X]], %{{.+}}, %[[H]], %[[OFFSETS]], %[[ACTIVE]], %[[ORDER]]) grid #[[GATHER]] writes [2] {label = "mlp.experts.gate_up"}
// CHECK: %[[Y:.+]] = exec.buffer {rows_per_token = 2 : i64} : memref<?x48xf32>
// CHECK: exec.launch @gemm_bf16_n48_k40_e8_scatter(%[[H]], %{{.+}}, %[[Y]], %[[OFFSETS]], %[[ACTIVE]], %[[ORDER]]) grid #[[SCATTER]] writes [2] {label = "mlp.experts.down"}
// CHECK: exec.launch @combine_top2_d48_add(%[[Y]], %[[W]], %[[X]], %[[SUM:.+]]) grid #{{.+}} writes [3] {label = "mlp.experts.combine"}
// CHECK-NOT: exec.launch @dispatch
// CHECK: exec.launch @gemm_bf16_n40_k48_e8_gather_swiglu(%[[SUM]], %{{.+}}, %{{.+}}, %[[OFFSETS]], %[[ACTIVE]], %[[ORDER]])
// CHECK: exec.launch @combine_top2_d48(%{{.+}}, %[[W]], %{{.+}}) grid #{{.+}} writes [2]
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x48xf32> {
  %table = moe.weight ["table"] : tensor<100x48xbf16>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x48xbf16> -> tensor<?x48xf32>
  %wr = moe.weight ["gate.weight"] : tensor<8x48xbf16>
  %l = moe.linear %x, %wr : tensor<?x48xf32>, tensor<8x48xbf16> -> tensor<?x8xf32>
  %b = moe.weight ["gate.e_score_correction_bias"] : tensor<8xf32>
  %w, %e = moe.route sigmoid topk(2) %l bias(%b : tensor<8xf32>)
    {groups = 4, topk_groups = 2, group_score = #moe.group_score<top2_sum>, normalize = true, scale = 2.5 : f64}
    : tensor<?x8xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["experts.{e}.gate_proj.weight"] recipe [#moe.stack<8>] : tensor<8x40x48xbf16>
  %U = moe.weight ["experts.{e}.up_proj.weight"] recipe [#moe.stack<8>] : tensor<8x40x48xbf16>
  %D = moe.weight ["experts.{e}.down_proj.weight"] recipe [#moe.stack<8>] : tensor<8x48x40xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %U, %D) add %x : tensor<?x48xf32>
    : tensor<?x48xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<8x40x48xbf16>, tensor<8x40x48xbf16>, tensor<8x48x40xbf16> -> tensor<?x48xf32> loc("mlp.experts")
  %z = moe.experts %y route(%w, %e) ffn(%G, %U, %D)
    : tensor<?x48xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<8x40x48xbf16>, tensor<8x40x48xbf16>, tensor<8x48x40xbf16> -> tensor<?x48xf32>
  %r = moe.gather_rows %z[%rows] : tensor<?x48xf32>, tensor<?xi32> -> tensor<?x48xf32>
  return %r : tensor<?x48xf32>
}

// -----

// Experts in two sets: each has its own lists and weights, numbered within the set, and the sum goes through both.

// CHECK: exec.weight @experts.gate_proj ["experts.{e}.gate_proj.weight", "experts.{e}.up_proj.weight"] recipe [#moe.stack<[0, 3, 5]>, #moe.pack_panels<32, 2>] : memref<3x3x48x32xbf16>
// CHECK: exec.weight @experts.gate_proj.2 ["experts.{e}.gate_proj.weight", "experts.{e}.up_proj.weight"] recipe [#moe.stack<[1]>, #moe.pack_panels<32, 2>] : memref<1x3x48x32xbf16>
// CHECK: exec.kernel @dispatch_e3_top2_members "dispatch" {experts = 3 : i64, members = array<i64: 0, 3, 5>, rows = "T", topk = 2 : i64}
// CHECK: exec.kernel @gemm_bf16_n40_k48_e3_gather_swiglu
// CHECK: exec.kernel @combine_top2_d48_add_members "combine" {members = array<i64: 0, 3, 5>,
// CHECK: exec.kernel @dispatch_e1_top2_members "dispatch" {experts = 1 : i64, members = array<i64: 1>, rows = "T", topk = 2 : i64}
// CHECK: exec.kernel @combine_top2_d48_add_members_2 "combine" {members = array<i64: 1>,
// CHECK: exec.launch @route_softmax_e6_top2(%{{.+}}, %[[W:.+]], %[[E:.+]]) grid
// CHECK: %[[OFFSETS:.+]] = exec.buffer : memref<4xi32>
// CHECK: %[[ACTIVE:.+]] = exec.buffer : memref<4xi32>
// CHECK: exec.launch @dispatch_e3_top2_members(%[[E]], %[[OFFSETS]], %[[ACTIVE]], %[[ORDER:.+]]) grid
// CHECK: exec.launch @gemm_bf16_n40_k48_e3_gather_swiglu(%[[X:.+]], %{{.+}}, %{{.+}}, %[[OFFSETS]], %[[ACTIVE]], %[[ORDER]])
// CHECK: exec.launch @combine_top2_d48_add_members(%{{.+}}, %[[W]], %[[E]], %[[X]], %[[FIRST:.+]]) grid #{{.+}} writes [4]
// CHECK: exec.launch @dispatch_e1_top2_members(%[[E]],
// CHECK: exec.launch @combine_top2_d48_add_members_2(%{{.+}}, %[[W]], %[[E]], %[[FIRST]], %{{.+}}) grid #{{.+}} writes [4]
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x48xf32> {
  %table = moe.weight ["table"] : tensor<100x48xbf16>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x48xbf16> -> tensor<?x48xf32>
  %wr = moe.weight ["gate.weight"] : tensor<6x48xbf16>
  %l = moe.linear %x, %wr : tensor<?x48xf32>, tensor<6x48xbf16> -> tensor<?x6xf32>
  %w, %e = moe.route softmax topk(2) %l : tensor<?x6xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["experts.{e}.gate_proj.weight"] recipe [#moe.stack<[0, 3, 5]>] : tensor<3x40x48xbf16>
  %U = moe.weight ["experts.{e}.up_proj.weight"] recipe [#moe.stack<[0, 3, 5]>] : tensor<3x40x48xbf16>
  %D = moe.weight ["experts.{e}.down_proj.weight"] recipe [#moe.stack<[0, 3, 5]>] : tensor<3x48x40xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %U, %D) members [0, 3, 5] add %x : tensor<?x48xf32>
    : tensor<?x48xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<3x40x48xbf16>, tensor<3x40x48xbf16>, tensor<3x48x40xbf16> -> tensor<?x48xf32>
  %G1 = moe.weight ["experts.{e}.gate_proj.weight"] recipe [#moe.stack<[1]>] : tensor<1x40x48xbf16>
  %U1 = moe.weight ["experts.{e}.up_proj.weight"] recipe [#moe.stack<[1]>] : tensor<1x40x48xbf16>
  %D1 = moe.weight ["experts.{e}.down_proj.weight"] recipe [#moe.stack<[1]>] : tensor<1x48x40xbf16>
  %z = moe.experts %x route(%w, %e) ffn(%G1, %U1, %D1) members [1] add %y : tensor<?x48xf32>
    : tensor<?x48xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<1x40x48xbf16>, tensor<1x40x48xbf16>, tensor<1x48x40xbf16> -> tensor<?x48xf32>
  %r = moe.gather_rows %z[%rows] : tensor<?x48xf32>, tensor<?xi32> -> tensor<?x48xf32>
  return %r : tensor<?x48xf32>
}

// -----

// Experts after the gather: kernels, grids and buffers count the rows asked for, and lists are made for these alone.

// CHECK-DAG: #[[R:.+]] = affine_map<(d0, d1) -> (d1)>
// CHECK-DAG: #[[GATHER:.+]] = affine_map<(d0, d1) -> (12, d1 * 6)>
// CHECK: exec.kernel @gather_rows_d48
// CHECK: exec.kernel @route_softmax_e4_top2_rows "route" {{.*}}rows = "R"
// CHECK: exec.kernel @dispatch_e4_top2_rows "dispatch" {{.*}}rows = "R"
// CHECK: exec.kernel @gemm_bf16_n40_k48_e4_gather_swiglu_rows "gemm" {{.*}}rows = "R"
// CHECK: exec.kernel @fake_quantize_int8_d40_rows "fake_quantize" {{.*}}rows = "R", rows_per_token = 2 : i64
// CHECK: exec.kernel @gemm_bf16_n48_k40_e4_scatter_rows "gemm" {{.*}}rows = "R"
// CHECK: exec.kernel @combine_top2_d48_add_rows "combine" {{.*}}rows = "R"
// CHECK: exec.kernel @add_d48_rows "elementwise" {{.*}}rows = "R"
// CHECK: exec.program @step({{.+}}, %[[LOGITS:[a-z0-9]+]]: memref<?x48xf32>)
// CHECK: %[[X:.+]] = exec.buffer {per_row} : memref<?x48xf32>
// CHECK: exec.launch @route_softmax_e4_top2_rows({{.+}}) grid #[[R]] writes [1, 2]
// CHECK: %[[ORDER:.+]] = exec.buffer {per_row, rows_per_token = 2 : i64} : memref<?xi32>
// CHECK: exec.launch @dispatch_e4_top2_rows(%{{.+}}, %{{.+}}, %{{.+}}, %[[ORDER]])
// CHECK: %[[H:.+]] = exec.buffer {per_row, rows_per_token = 2 : i64} : memref<?x40xf32>
// CHECK: exec.launch @gemm_bf16_n40_k48_e4_gather_swiglu_rows(%[[X]], %{{.+}}, %[[H]], %{{.+}}) grid #[[GATHER]]
// CHECK: exec.launch @combine_top2_d48_add_rows(%{{.+}}, %{{.+}}, %[[X]], %[[Y:.+]]) grid #[[R]]
// CHECK: exec.launch @add_d48_rows(%[[X]], %[[Y]], %[[LOGITS]]) grid #[[R]] writes [2]
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x48xf32> {
  %table = moe.weight ["table"] : tensor<100x48xbf16>
  %all = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x48xbf16> -> tensor<?x48xf32>
  %x = moe.gather_rows %all[%rows] : tensor<?x48xf32>, tensor<?xi32> -> tensor<?x48xf32>
  %wr = moe.weight ["gate.weight"] : tensor<4x48xbf16>
  %l = moe.linear %x, %wr : tensor<?x48xf32>, tensor<4x48xbf16> -> tensor<?x4xf32>
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["experts.{e}.gate_proj.weight"] recipe [#moe.stack<4>] : tensor<4x40x48xbf16>
  %U = moe.weight ["experts.{e}.up_proj.weight"] recipe [#moe.stack<4>] : tensor<4x40x48xbf16>
  %D = moe.weight ["experts.{e}.down_proj.weight"] recipe [#moe.stack<4>] : tensor<4x48x40xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %U, %D) add %x : tensor<?x48xf32>
    {activations = #moe.quantize<int8, group = 40, scale = f32>}
    : tensor<?x48xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<4x40x48xbf16>, tensor<4x40x48xbf16>, tensor<4x48x40xbf16> -> tensor<?x48xf32>
  %z = moe.add %x, %y : tensor<?x48xf32>
  return %z : tensor<?x48xf32>
}

// -----

// A shared expert among the routed ones is a choice that the router writes for every token: lists, products and sums
// see 4 + 2 experts, of which 2 + 2 are taken.

// CHECK: exec.weight @experts.gate_proj ["experts.{e}.gate_proj.weight", "shared.gate_proj.weight", "experts.{e}.up_proj.weight", "shared.up_proj.weight"] recipe [#moe.stack<4>, #moe.append<rows, 2>, #moe.pack_panels<32, 2>] : memref<6x3x48x32xbf16>
// CHECK: exec.weight @experts.down_proj ["experts.{e}.down_proj.weight", "shared.down_proj.weight"] recipe [#moe.stack<4>, #moe.append<columns, 2>, #moe.pack_panels<32, 2>] : memref<6x2x40x32xbf16>
// CHECK: exec.kernel @route_softmax_e4_top2_shared2 "route" {{.*}}experts = 4 : i64, {{.*}}shared = 2 : i64, {{.*}}topk = 2 : i64
// CHECK: exec.kernel @dispatch_e6_top4
// CHECK: exec.kernel @gemm_bf16_n40_k48_e6_gather_swiglu "gemm" {{.*}}topk = 4
// CHECK: exec.kernel @combine_top4_d48
// CHECK: exec.launch @route_softmax_e4_top2_shared2(%{{.+}}, %[[W:.+]], %[[E:.+]]) grid {{.*}} : memref<?x4xf32>, memref<?x4xf32>, memref<?x4xi32>
// CHECK: exec.launch @dispatch_e6_top4(%[[E]],
// CHECK: exec.buffer {rows_per_token = 4 : i64} : memref<?x40xf32>
// CHECK: exec.launch @combine_top4_d48(%{{.+}}, %[[W]], %{{.+}})
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x48xf32> {
  %table = moe.weight ["table"] : tensor<100x48xbf16>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x48xbf16> -> tensor<?x48xf32>
  %wr = moe.weight ["gate.weight"] : tensor<4x48xbf16>
  %l = moe.linear %x, %wr : tensor<?x48xf32>, tensor<4x48xbf16> -> tensor<?x4xf32>
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["experts.{e}.gate_proj.weight", "shared.gate_proj.weight"] recipe [#moe.stack<4>, #moe.append<rows, 2>] : tensor<6x40x48xbf16>
  %U = moe.weight ["experts.{e}.up_proj.weight", "shared.up_proj.weight"] recipe [#moe.stack<4>, #moe.append<rows, 2>] : tensor<6x40x48xbf16>
  %D = moe.weight ["experts.{e}.down_proj.weight", "shared.down_proj.weight"] recipe [#moe.stack<4>, #moe.append<columns, 2>] : tensor<6x48x40xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %U, %D) shared 2 : tensor<?x48xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
    tensor<6x40x48xbf16>, tensor<6x40x48xbf16>, tensor<6x48x40xbf16> -> tensor<?x48xf32>
  %r = moe.gather_rows %y[%rows] : tensor<?x48xf32>, tensor<?xi32> -> tensor<?x48xf32>
  return %r : tensor<?x48xf32>
}

// -----

// FP8 stays FP8 if slices begin with blocks: 16 rows of gate and up, 16 columns of down.

// CHECK: exec.weight @experts ["experts.{e}.g", "s.g", "experts.{e}.g", "s.g"] recipe [#moe.stack<4>, #moe.append<rows, 2>, #moe.pack_panels<32>] : memref<6x2x48x32xf8E4M3FN>
// CHECK: exec.weight @experts.scales ["experts.{e}.gs", "s.gs", "experts.{e}.gs", "s.gs"] recipe [#moe.stack<4>, #moe.append<rows, 2>, #moe.pack_block_scales<32, 32, 16>] : memref<6x2x3x32xf32>
// CHECK: exec.weight @experts.2 ["experts.{e}.d", "s.d"] recipe [#moe.stack<4>, #moe.append<columns, 2>, #moe.pack_panels<32>] : memref<6x2x32x32xf8E4M3FN>
// CHECK: exec.weight @experts.scales.2 ["experts.{e}.ds", "s.ds"] recipe [#moe.stack<4>, #moe.append<columns, 2>, #moe.pack_block_scales<32, 48, 16>] : memref<6x2x2x32xf32>
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x48xf32> {
  %table = moe.weight ["table"] : tensor<100x48xbf16>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x48xbf16> -> tensor<?x48xf32>
  %wr = moe.weight ["gate.weight"] : tensor<4x48xbf16>
  %l = moe.linear %x, %wr : tensor<?x48xf32>, tensor<4x48xbf16> -> tensor<?x4xf32>
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["experts.{e}.g", "experts.{e}.gs", "s.g", "s.gs"] recipe [#moe.dequant<fp8 16x16, bf16>, #moe.stack<4>, #moe.append<rows, 2>] : tensor<6x32x48xbf16>
  %D = moe.weight ["experts.{e}.d", "experts.{e}.ds", "s.d", "s.ds"] recipe [#moe.dequant<fp8 16x16, bf16>, #moe.stack<4>, #moe.append<columns, 2>] : tensor<6x48x32xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) shared 2 : tensor<?x48xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
    tensor<6x32x48xbf16>, tensor<6x32x48xbf16>, tensor<6x48x32xbf16> -> tensor<?x48xf32>
  %r = moe.gather_rows %y[%rows] : tensor<?x48xf32>, tensor<?xi32> -> tensor<?x48xf32>
  return %r : tensor<?x48xf32>
}
