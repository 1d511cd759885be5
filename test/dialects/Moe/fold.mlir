// RUN: moe-opt %s -canonicalize | FileCheck %s

// CHECK-LABEL: @identity_reshape
//  CHECK-SAME: %[[X:.+]]: tensor<?x8xf32>
//  CHECK-NEXT: return %[[X]]
func.func @identity_reshape(%x: tensor<?x8xf32>) -> tensor<?x8xf32> {
  %0 = moe.reshape %x : tensor<?x8xf32> -> tensor<?x8xf32>
  return %0 : tensor<?x8xf32>
}

// CHECK-LABEL: @there_and_back
//  CHECK-SAME: %[[X:.+]]: tensor<?x8xf32>
//  CHECK-NEXT: return %[[X]]
func.func @there_and_back(%x: tensor<?x8xf32>) -> tensor<?x8xf32> {
  %0 = moe.reshape %x : tensor<?x8xf32> -> tensor<?x2x4xf32>
  %1 = moe.reshape %0 : tensor<?x2x4xf32> -> tensor<?x8xf32>
  return %1 : tensor<?x8xf32>
}

// CHECK-LABEL: @reshape_of_reshape
//  CHECK-SAME: %[[X:.+]]: tensor<?x2x4xf32>
//  CHECK-NEXT: %[[Y:.+]] = moe.reshape %[[X]] : tensor<?x2x4xf32> -> tensor<?x4x2xf32>
//  CHECK-NEXT: return %[[Y]]
func.func @reshape_of_reshape(%x: tensor<?x2x4xf32>) -> tensor<?x4x2xf32> {
  %0 = moe.reshape %x : tensor<?x2x4xf32> -> tensor<?x8xf32>
  %1 = moe.reshape %0 : tensor<?x8xf32> -> tensor<?x4x2xf32>
  return %1 : tensor<?x4x2xf32>
}

// CHECK-LABEL: @split_into_one
//  CHECK-SAME: %[[X:.+]]: tensor<?x8xf32>
//  CHECK-NEXT: return %[[X]]
func.func @split_into_one(%x: tensor<?x8xf32>) -> tensor<?x8xf32> {
  %0 = moe.split %x : tensor<?x8xf32> -> tensor<?x8xf32>
  return %0 : tensor<?x8xf32>
}

// CHECK-LABEL: @split_into_two
//       CHECK: moe.split
func.func @split_into_two(%x: tensor<?x8xf32>) -> (tensor<?x2xf32>, tensor<?x6xf32>) {
  %0, %1 = moe.split %x : tensor<?x8xf32> -> tensor<?x2xf32>, tensor<?x6xf32>
  return %0, %1 : tensor<?x2xf32>, tensor<?x6xf32>
}

// What views and sums make of weights is a step of their recipes, also where one follows from the other.
// CHECK-LABEL: @weights
//   CHECK-NOT: moe.reshape
//   CHECK-NOT: moe.split
//   CHECK-NOT: moe.add
//   CHECK-DAG: %[[A:.+]] = moe.weight ["a"] recipe [#moe.reshape<[4, 12], [4, 2, 6]>, #moe.columns<0, 2>, #moe.reshape<[4, 2, 2], [4, 4]>] : tensor<4x4xf32>
//   CHECK-DAG: %[[B:.+]] = moe.weight ["a"] recipe [#moe.reshape<[4, 12], [4, 2, 6]>, #moe.columns<2, 6>] : tensor<4x2x4xf32>
//   CHECK-DAG: %[[C:.+]] = moe.weight ["b", "c", "d", "e"] recipe [#moe.cast<f32>, #moe.sum, #moe.sum] : tensor<4x8xf32>
//       CHECK: return %[[A]], %[[B]], %[[C]] :
func.func @weights() -> (tensor<4x4xf32>, tensor<4x2x4xf32>, tensor<4x8xf32>) {
  %a = moe.weight ["a"] : tensor<4x12xf32>
  %heads = moe.reshape %a : tensor<4x12xf32> -> tensor<4x2x6xf32>
  %first, %rest = moe.split %heads : tensor<4x2x6xf32> -> tensor<4x2x2xf32>, tensor<4x2x4xf32>
  %flat = moe.reshape %first : tensor<4x2x2xf32> -> tensor<4x4xf32>
  %b = moe.weight ["b"] recipe [#moe.cast<f32>] : tensor<4x8xf32>
  %c = moe.weight ["c"] recipe [#moe.cast<f32>] : tensor<4x8xf32>
  %d = moe.weight ["d"] recipe [#moe.cast<f32>] : tensor<4x8xf32>
  %e = moe.weight ["e"] recipe [#moe.cast<f32>] : tensor<4x8xf32>
  %bc = moe.add %b, %c : tensor<4x8xf32>
  %de = moe.add %d, %e : tensor<4x8xf32>
  %all = moe.add %bc, %de : tensor<4x8xf32>
  return %flat, %rest, %all : tensor<4x4xf32>, tensor<4x2x4xf32>, tensor<4x8xf32>
}

// Weights that are made in two ways, or joined of several tensors, and a weight beside what is none.
// CHECK-LABEL: @no_sums_of_weights
// CHECK-COUNT-3: moe.add
//    CHECK: return
func.func @no_sums_of_weights(%x: tensor<4x8xf32>) -> (tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>) {
  %b = moe.weight ["b"] recipe [#moe.cast<f32>] : tensor<4x8xf32>
  %c = moe.weight ["c"] : tensor<4x8xf32>
  %d = moe.weight ["d0", "d1"] recipe [#moe.concat<[1, 3]>] : tensor<4x8xf32>
  %e = moe.weight ["e0", "e1"] recipe [#moe.concat<[1, 3]>] : tensor<4x8xf32>
  %bc = moe.add %b, %c : tensor<4x8xf32>
  %de = moe.add %d, %e : tensor<4x8xf32>
  %bx = moe.add %b, %x : tensor<4x8xf32>
  return %bc, %de, %bx : tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>
}

// A weight has a static shape, which readers of these do not ask for.
// CHECK-LABEL: @dynamic_rows
//       CHECK: moe.reshape
//       CHECK: moe.split
func.func @dynamic_rows() -> (tensor<?x2x6xf32>, tensor<?x4xf32>, tensor<?x8xf32>) {
  %a = moe.weight ["a"] : tensor<4x12xf32>
  %heads = moe.reshape %a : tensor<4x12xf32> -> tensor<?x2x6xf32>
  %first, %rest = moe.split %a : tensor<4x12xf32> -> tensor<?x4xf32>, tensor<?x8xf32>
  return %heads, %first, %rest : tensor<?x2x6xf32>, tensor<?x4xf32>, tensor<?x8xf32>
}
