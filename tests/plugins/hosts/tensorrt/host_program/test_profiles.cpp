// Profiles: which sizes a plugin takes, from the sizes that the kernels are compiled for, and the workspace for them.
#include "check.h"
#include "examples.h"

using namespace host;

namespace {

std::string configured(const Example& one, const std::vector<Tensor>& least, const std::vector<Tensor>& most) {
  const auto plugin = create(one.op, one.fields);
  if (plugin == nullptr) throw check::Failed(ew_trt_error());
  return configure(*plugin, least, most) == 0 ? "taken" : ew_trt_error();
}

std::string configured(const Example& one) { return configured(one, one.inputs, one.inputs); }

// As `one`, with head sizes of queries, keys and values.
Example with_dims(Example one, std::int64_t dim, std::int64_t value_dim) {
  one.inputs[0].dims[2] = one.inputs[1].dims[2] = dim;
  one.inputs[2].dims[2] = value_dim;
  return one;
}

}  // namespace

TEST(examples_are_taken) {
  for (DataType type : {DataType::kHALF, DataType::kBF16})
    for (const Example& one : examples(type)) CHECK_EQUAL(one.name + ": " + configured(one), one.name + ": taken");
}

TEST(head_sizes_and_bits_without_kernels_are_named) {
  Example paged = with_dims(example("paged"), 24, 24);
  paged.inputs[3].dims[1] = 128 * 48 * 2;
  CHECK_EQUAL(
      configured(paged).rfind("PagedAttention: head sizes: got 24 and 24, expected of keys and values, one of", 0), 0u);
  paged = example("paged");
  paged.fields = with(paged.fields, field("kv_bits", 32));
  paged.inputs[3].dims[1] *= 2;
  CHECK_EQUAL(configured(paged), "PagedAttention: kv_bits: got 32, expected 16: caches on a GPU hold halves");
  Example kvarn = example("kvarn");
  kvarn.fields = with(with(kvarn.fields, field("k_bits", 2)), field("v_bits", 8));
  kvarn.inputs[3].dims[1] += 128 * 32 * (10 - 6) / 8;
  CHECK_EQUAL(configured(kvarn).rfind("KVarNAttention: k_bits and v_bits: got 2 and 8, expected one of", 0), 0u);
  const Example depth = with_dims(example("depth"), 20, 8);
  Example wrong = depth;
  wrong.inputs[3].dims[2] = wrong.inputs[5].dims[2] = 20;
  CHECK_EQUAL(configured(wrong), "DepthMix: head_dim: got 20, expected a multiple of 8 up to 512");
  Example clp = example("clp");
  for (int i : {2, 3}) clp.inputs[static_cast<std::size_t>(i)].dims[0] = 300;
  CHECK_EQUAL(configured(clp), "ClpEmit: classes: got 300, expected 1 to 256");
}

TEST(sizes_that_disagree_are_named_at_every_end_of_the_profile) {
  const Example one = example("paged");
  std::vector<Tensor> most = one.inputs;
  most[0].dims[0] = 70;  // and key keeps its 7 tokens
  CHECK_EQUAL(configured(one, one.inputs, most),
              "PagedAttention: key: got shape [7, 2, 64], expected [T, Hkv, D] = [70, any, 64]");
  CHECK_EQUAL(configured(one, most, one.inputs),
              "PagedAttention: key: got shape [7, 2, 64], expected [T, Hkv, D] = [70, any, 64]");
}

TEST(heads_do_not_change_within_a_profile) {
  const Example one = example("paged");
  std::vector<Tensor> most = one.inputs;
  most[0].dims[1] = 12;
  CHECK_EQUAL(configured(one, one.inputs, most),
              "PagedAttention: query: got 6 to 12 along axis 1, expected one size in the whole profile");
}

TEST(a_layer_that_the_tables_do_not_have_is_named) {
  Example one = example("paged");
  one.fields = with(one.fields, field("layer", 2));
  CHECK_EQUAL(configured(one), "PagedAttention: layer: got 2, expected below L = 2");
}

TEST(refused_sizes_get_no_workspace) {
  Example one = example("paged");
  const auto plugin = create(one.op, one.fields);
  CHECK(workspace(*plugin, one.inputs) < (std::size_t{1} << 30));
  one.inputs[0].dims[0] = 8;
  CHECK(workspace(*plugin, one.inputs) >= (std::size_t{1} << 60));
}

TEST(inputs_are_as_many_as_the_node_says) {
  const auto count = [](Example one, std::size_t inputs) {
    one.inputs.resize(inputs, one.inputs.back());
    return configured(one);
  };
  CHECK_EQUAL(count(example("paged"), 8), "PagedAttention: inputs: got 8 tensors, expected 7, as present = 127 says");
  CHECK_EQUAL(count(example("paged_sinks"), 9), "PagedAttention: inputs: got 9 tensors, expected 7 to 8");
  CHECK_EQUAL(count(example("paged_sinks"), 6), "PagedAttention: inputs: got 6 tensors, expected 7 to 8");
  CHECK_EQUAL(count(example("paged_sinks"), 7), "taken");
  CHECK_EQUAL(count(example("clp_codes"), 8), "ClpEmit: inputs: got 8 tensors, expected 11, as present = 3967 says");
  CHECK_EQUAL(count(example("depth"), 2), "DepthMix: inputs: got 2 tensors, expected 3 or more");
  CHECK_EQUAL(count(example("depth"), 6),
              "DepthMix: sources: got 3 tensors, expected a key and a value of each source");
  CHECK_EQUAL(count(example("depth"), 3), "taken");
  Example depth = example("depth");
  depth.fields.push_back(field("present", 7));  // without the sources' bit
  CHECK_EQUAL(configured(depth), "DepthMix: inputs: got 7 tensors, expected 3, as present = 7 says");
  depth.fields.back() = field("present", 15);
  CHECK_EQUAL(configured(depth), "taken");
}

TEST(optional_inputs_take_the_places_that_present_says) {
  Example one = example("split_normalised");
  one.fields = with(one.fields, field("present", 7));  // its norms where angles belong
  CHECK_EQUAL(configured(one), "SplitQkv: cos: got shape [16], expected [1, T, R] = [1, 7, any]");
  one.fields = with(one.fields, field("present", 1 + 2 + 16));
  CHECK_EQUAL(configured(one), "SplitQkv: sin: got only one of the two, expected both or neither of it and cos");
}
