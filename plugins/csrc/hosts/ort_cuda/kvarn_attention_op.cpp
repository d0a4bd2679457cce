// KVarNAttention for ONNX Runtime's CUDA provider.
#include "hosts/ort_cuda/device_call.h"
#include "ops/kvarn_attention_call.h"

namespace ew::ort {
namespace {

using namespace kvarn;

template <ElementType kType>
struct Kernel : DeviceKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kType>;
  using DeviceKernel::DeviceKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    EwKVarNAttention call = call_of(attributes, in.data(), kCallType<kType>);
    EwAttention& a = call.attention;
    a.output = output(api, context, 0, {a.tokens, a.query_heads, a.value_dim}).data;
    const std::int64_t *pool = in[kTiles].shape, *kept = in[kExact].shape;
    const Tensor tiles = output(api, context, 1, {pool[0], pool[1]});
    const Tensor exact = output(api, context, 2, {kept[0], kept[1], kept[2], kept[3]});
    expect_in_place("tiles_out", in[kTiles], tiles);
    expect_in_place("exact_out", in[kExact], exact);
    call.tiles = tiles.data;
    call.exact = exact.data;
    start(api, context, memory, call);
  }
};

EW_REGISTER_TYPED_OP(Kernel);

}  // namespace
}  // namespace ew::ort
