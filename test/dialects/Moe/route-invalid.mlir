// RUN: moe-opt %s -split-input-file -verify-diagnostics

func.func @route_c1_groups(%logits: tensor<?x16xf32>) {
  // expected-error@+1 {{'moe.route' op groups(3) does not divide the 16 experts of logits 'tensor<?x16xf32>'}}
  %w, %e = moe.route sigmoid topk(4) %logits {groups = 3}
      : tensor<?x16xf32> -> tensor<?x4xf32>, tensor<?x4xi32>
  return
}

// -----

func.func @route_c2_topk_groups(%logits: tensor<?x16xf32>) {
  // expected-error@+1 {{'moe.route' op topk_groups(5) exceeds groups(4)}}
  %w, %e = moe.route sigmoid topk(4) %logits {groups = 4, topk_groups = 5}
      : tensor<?x16xf32> -> tensor<?x4xf32>, tensor<?x4xi32>
  return
}

// -----

func.func @route_c3_topk(%logits: tensor<?x16xf32>) {
  // expected-error@+1 {{'moe.route' op topk(17) exceeds the 16 experts of logits 'tensor<?x16xf32>'}}
  %w, %e = moe.route sigmoid topk(17) %logits
      : tensor<?x16xf32> -> tensor<?x17xf32>, tensor<?x17xi32>
  return
}

// -----

func.func @route_c3_topk_in_groups(%logits: tensor<?x16xf32>) {
  // expected-error@+1 {{'moe.route' op topk(9) exceeds the 8 experts of topk_groups(2) groups of 4}}
  %w, %e = moe.route sigmoid topk(9) %logits {groups = 4, topk_groups = 2}
      : tensor<?x16xf32> -> tensor<?x9xf32>, tensor<?x9xi32>
  return
}

// -----

func.func @route_c4_top2_sum(%logits: tensor<?x16xf32>) {
  // expected-error@+1 {{'moe.route' op group_score top2_sum needs groups of 2 experts or more, but groups(16) leaves 1 of 16}}
  %w, %e = moe.route sigmoid topk(4) %logits {groups = 16, topk_groups = 8, group_score = #moe.group_score<top2_sum>}
      : tensor<?x16xf32> -> tensor<?x4xf32>, tensor<?x4xi32>
  return
}

// -----

func.func @route_c5_bias(%logits: tensor<?x16xf32>, %bias: tensor<15xf32>) {
  // expected-error@+1 {{'moe.route' op bias 'tensor<15xf32>' has 15 elements, but logits 'tensor<?x16xf32>' has 16 experts}}
  %w, %e = moe.route sigmoid topk(4) %logits bias(%bias : tensor<15xf32>)
      : tensor<?x16xf32> -> tensor<?x4xf32>, tensor<?x4xi32>
  return
}

// -----

func.func @route_c6_weights(%logits: tensor<?x16xf32>) {
  // expected-error@+1 {{'moe.route' op weights 'tensor<?x3xf32>' has 3 columns, but topk is 4}}
  %w, %e = moe.route sigmoid topk(4) %logits
      : tensor<?x16xf32> -> tensor<?x3xf32>, tensor<?x4xi32>
  return
}

// -----

func.func @route_c6_experts(%logits: tensor<?x16xf32>) {
  // expected-error@+1 {{'moe.route' op experts 'tensor<?x3xi32>' has 3 columns, but topk is 4}}
  %w, %e = moe.route sigmoid topk(4) %logits
      : tensor<?x16xf32> -> tensor<?x4xf32>, tensor<?x3xi32>
  return
}

// -----

func.func @route_c6_rows(%logits: tensor<3x16xf32>) {
  // expected-error@+1 {{'moe.route' op experts 'tensor<2x4xi32>' has 2 rows, but logits 'tensor<3x16xf32>' has 3 rows}}
  %w, %e = moe.route sigmoid topk(4) %logits
      : tensor<3x16xf32> -> tensor<?x4xf32>, tensor<2x4xi32>
  return
}

// -----

func.func @route_c7_infinity(%logits: tensor<?x16xf32>) {
  // expected-error@+1 {{'moe.route' op scale is INF, expected a finite number}}
  %w, %e = moe.route sigmoid topk(4) %logits {scale = 0x7FF0000000000000 : f64}
      : tensor<?x16xf32> -> tensor<?x4xf32>, tensor<?x4xi32>
  return
}

// -----

func.func @route_topk_zero(%logits: tensor<?x16xf32>) {
  // expected-error@+1 {{attribute 'topk' failed to satisfy constraint: 64-bit signless integer attribute whose value is positive}}
  %w, %e = moe.route sigmoid topk(0) %logits
      : tensor<?x16xf32> -> tensor<?x0xf32>, tensor<?x0xi32>
  return
}

// -----

func.func @route_groups_zero(%logits: tensor<?x16xf32>) {
  // expected-error@+1 {{attribute 'groups' failed to satisfy constraint: 64-bit signless integer attribute whose value is positive}}
  %w, %e = moe.route sigmoid topk(4) %logits {groups = 0}
      : tensor<?x16xf32> -> tensor<?x4xf32>, tensor<?x4xi32>
  return
}

// -----

func.func @route_topk_groups_zero(%logits: tensor<?x16xf32>) {
  // expected-error@+1 {{attribute 'topk_groups' failed to satisfy constraint: 64-bit signless integer attribute whose value is positive}}
  %w, %e = moe.route sigmoid topk(4) %logits {topk_groups = 0}
      : tensor<?x16xf32> -> tensor<?x4xf32>, tensor<?x4xi32>
  return
}
