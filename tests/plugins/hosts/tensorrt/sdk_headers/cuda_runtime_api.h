// For tests alone: the one name of CUDA's runtime that TensorRT's plugin interfaces mention.
#pragma once

using cudaStream_t = struct CUstream_st*;
