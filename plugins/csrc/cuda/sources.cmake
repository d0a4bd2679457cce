# What is compiled by nvcc, and again by a C++ compiler for the emulated device.
set(EW_CUDA_SOURCES
  attention_decode.cu attention_finish.cu attention_plan.cu attention_prefill.cu clp_emit.cu configurations.cu
  depth_mix.cu int4_linear.cu kvarn_attention.cu kvarn_hold.cu library.cu paged_attention.cu probe.cu)
