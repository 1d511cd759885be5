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
