// PagedAttention for ONNX Runtime's CUDA provider.
#include "hosts/ort_cuda/device_call.h"
#include "ops/paged_attention_call.h"

namespace ew::ort {
namespace {

using namespace paged;

template <ElementType kType>
struct Kernel : DeviceKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kType>;
  using DeviceKernel::DeviceKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    EwPagedAttention call = call_of(attributes, in.data(), kCallType<kType>);
    EwAttention& a = call.attention;
    a.output = output(api, context, 0, {a.tokens, a.query_heads, a.value_dim}).data;
    const Tensor tiles = output(api, context, 1, {in[kTiles].shape[0], in[kTiles].shape[1]});
    expect_in_place("tiles_out", in[kTiles], tiles);
    call.tiles = tiles.data;
    start(api, context, memory, call);
  }
};

EW_REGISTER_TYPED_OP(Kernel);

}  // namespace
}  // namespace ew::ort
