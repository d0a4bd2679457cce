# What is compiled by nvcc, and again by a C++ compiler for the emulated device.
set(EW_CUDA_SOURCES
  attention_decode.cu
  attention_finish.cu
  attention_plan.cu
  attention_prefill.cu
  clp_emit.cu
  configurations.cu
  depth_mix.cu
  greedy_sample.cu
  int4_linear.cu
  kvarn_attention.cu
  kvarn_hold.cu
  library.cu
  paged_attention.cu
  probe.cu)
# And what hands them to ONNX Runtime.
set(EW_CUDA_ADAPTERS
  ../ort/declaration.cpp
  ../ort/host.cpp
  ../ort/register.cpp
  ../ort_cuda/clp_emit_op.cpp
  ../ort_cuda/depth_mix_op.cpp
  ../ort_cuda/greedy_sample_op.cpp
  ../ort_cuda/kvarn_attention_op.cpp
  ../ort_cuda/ops.cpp
  ../ort_cuda/paged_attention_op.cpp)
