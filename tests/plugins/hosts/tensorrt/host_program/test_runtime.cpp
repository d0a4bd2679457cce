// Calls of a running engine that are refused; those that run are compared with oracles by test_tensorrt_ops.py.
#include "check.h"
#include "examples.h"

using namespace host;

namespace {

// An example's plugin in an execution context, with a buffer for all tensors: what is refused reads and writes none.
struct Running {
  Example one;
  Recorder recorder;
  Context context{&recorder};
  std::unique_ptr<nvinfer1::IPluginV3> plugin;
  alignas(256) unsigned char memory[256] = {};

  explicit Running(const std::string& name) : one(example(name)) {
    const auto built = create(one.op, one.fields);
    const auto loaded = deserialized(one.op, *built);
    plugin.reset(runtime(*loaded).attachToContext(&context));
    for (Tensor& tensor : one.inputs) tensor.data = memory;
    for (Tensor& tensor : one.outputs) tensor.data = memory;
  }

  std::string refusal() {
    recorder.clear();
    if (enqueue(*plugin, one.inputs, one.outputs, memory) == 0) return "ran";
    return recorder.messages.size() == 1 ? recorder.messages[0] : "not one message";
  }
};

}  // namespace

TEST(wrong_shapes_are_refused) {
  Running paged("paged");
  paged.one.inputs[5].dims = {2, 3, 1};
  CHECK_EQUAL(paged.refusal(), "PagedAttention: kv_lens: got H = 1, expected at least the key's 2 heads");
  Running kvarn("kvarn");
  kvarn.one.inputs[8].dims = {2};
  CHECK_EQUAL(kvarn.refusal(), "KVarNAttention: slots: got shape [2], expected [B] = [3]");
  Running split("split_rotated");
  split.one.inputs[0].dims[2] += 1;
  CHECK_EQUAL(split.refusal(),
              "SplitQkv: packed: got shape [1, 7, 113], expected [1, T, (Hq + Hkv) D + Hkv Dv] = [1, any, 112]");
  Running depth("depth");
  depth.one.inputs[6].dims = {7, 2, 9};
  CHECK_EQUAL(depth.refusal(), "DepthMix: sources[3]: got shape [7, 2, 9], expected [T, Hkv, Dv] = [7, 2, 8]");
  Running greedy("greedy");
  greedy.one.inputs[0].dims = {3, 0};
  CHECK_EQUAL(greedy.refusal(), "GreedySample: logits: got V = 0, expected 1 or more");
  Running clp("clp");
  clp.one.inputs[7].dims = {1, 1, 2, 90, 24};
  CHECK_EQUAL(clp.refusal(), "ClpEmit: out_weight: got shape 5 axes, expected [k - 1, V, h] = [2, 90, 24]");
}

TEST(sizes_without_kernels_are_refused) {
  Running paged("paged");
  for (std::size_t i : {0, 1, 2}) paged.one.inputs[i].dims[2] = 24;
  paged.one.inputs[3].dims[1] = 128 * 48 * 2;
  CHECK_EQUAL(
      paged.refusal().rfind("PagedAttention: head sizes: got 24 and 24, expected of keys and values, one of", 0), 0u);
  Running clp("clp");
  for (std::size_t i : {0, 1}) clp.one.inputs[i].dims[0] = 1025;
  CHECK_EQUAL(clp.refusal(), "ClpEmit: rows: got 1025, expected 0 to 1024");
}

TEST(a_pool_in_another_buffer_is_refused) {
  alignas(256) unsigned char other[256];
  Running paged("paged");
  paged.one.outputs[1].data = other;
  CHECK_EQUAL(paged.refusal(),
              "PagedAttention: tiles_out: got a buffer of its own, expected that of tiles: build the engine with "
              "PreviewFeature::kALIASED_PLUGIN_IO_10_03");
  Running kvarn("kvarn");
  kvarn.one.outputs[2].data = other;
  CHECK_EQUAL(kvarn.refusal(),
              "KVarNAttention: exact_out: got a buffer of its own, expected that of exact: build the engine with "
              "PreviewFeature::kALIASED_PLUGIN_IO_10_03");
}

TEST(what_the_kernels_refuse_is_said_once_with_the_op) {
  Running paged("paged");
  paged.one.inputs[0].data = paged.memory + 8;
  CHECK_EQUAL(paged.refusal(),
              "PagedAttention: query: got an address that is not a multiple of 16, expected one that is");
  Running greedy("greedy");
  greedy.one.outputs[0].data = nullptr;
  CHECK_EQUAL(greedy.refusal(), "GreedySample: tokens: got a null pointer, expected device memory");
}

TEST(an_engine_for_fewer_multiprocessors_is_refused) {
  Running running("paged");
  const auto planned_for = [&](int multiprocessors) {
    std::vector<Field> fields = with(running.one.fields, field("multiprocessors", multiprocessors));
    running.plugin.reset(runtime(*create(running.one.op, fields)).attachToContext(&running.context));
    running.one.inputs[0].data = running.memory + 8;  // what would be refused next
    return running.refusal();
  };
  CHECK_EQUAL(planned_for(3),
              "PagedAttention: multiprocessors: got 4, expected at most the 3 of the GPU that the engine was built on: "
              "build it on this one");
  CHECK_EQUAL(planned_for(4).rfind("PagedAttention: query: got an address", 0), 0u);
  CHECK_EQUAL(planned_for(0).rfind("PagedAttention: query: got an address", 0), 0u);
}

TEST(enqueue_wants_to_know_the_inputs) {
  Running running("paged_sinks");
  const auto descs = descs_of(running.one.inputs);
  CHECK(runtime(*running.plugin).enqueue(descs.data(), nullptr, nullptr, nullptr, nullptr, nullptr) != 0);
  CHECK_EQUAL(running.recorder.messages.back(),
              "PagedAttention: inputs: got an unknown number, expected onShapeChange before enqueue");
}

TEST(a_context_without_a_recorder_has_the_logger) {
  Logger logger;
  Running running("paged");
  Context silent(nullptr);
  running.plugin.reset(runtime(*running.plugin).attachToContext(&silent));
  running.one.inputs[0].dims = {1};
  CHECK_EQUAL(running.refusal(), "not one message");
  CHECK_EQUAL(logger.messages.size(), 1u);
  CHECK_EQUAL(logger.messages[0], "PagedAttention: query: got shape [1], expected [T, Hq, D] = [any, any, any]");
}
