# What is compiled against TensorRT's headers, and again against our declaration of them for tests.
set(EW_TRT_SOURCES
  ../ops/declaration.cpp
  ../ops/tensor.cpp
  clp_emit_op.cpp
  creator.cpp
  depth_mix_op.cpp
  fields.cpp
  greedy_sample_op.cpp
  inputs.cpp
  kvarn_attention_op.cpp
  library.cpp
  paged_attention_op.cpp
  plugin.cpp
  report.cpp
  split_qkv_op.cpp
  types.cpp)
