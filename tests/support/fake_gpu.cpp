// A CUDA device for a build of torch that has none: its memory is the host's, and the CPU's kernels compute on it.
//
// To torch these are CUDA tensors: dispatch, autocast, autograd's device threads and pinned memory are those of a GPU. As
// on a GPU, tensors of the host and of the device do not mix, and what makes the host wait is known (`waited`). It has no
// streams and no speed, and its sums are the CPU's. A CUDA graph is the list of its operations. It has to be loaded before
// torch is imported.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <mutex>
#include <set>
#include <string>

namespace {

using at::Tensor;
using c10::DispatchKey;
using c10::IValue;
using Names = std::set<std::string>;

const c10::Device gpu(c10::DeviceType::CUDA, 0);

// What the host waits for ---------------------------------------------------------------------------------------------

std::mutex mutex;
std::string waits;  // one a line
bool waits_are_errors = false;

const Names reads_back = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal",
                          "aten::is_nonzero", "aten::_unique2", "aten::unique_dim", "aten::repeat_interleave"};
const Names takes_masks = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"};

struct Graph;
Graph* recording = nullptr;

void waited(const std::string& name) {
  TORCH_CHECK(!recording, "operation not permitted when stream is capturing: ", name);
  TORCH_CHECK(!waits_are_errors, "called a synchronizing CUDA operation: ", name);
  std::lock_guard<std::mutex> lock(mutex);
  waits += name + "\n";
}

// Memory --------------------------------------------------------------------------------------------------------------

std::atomic<long long> used = 0, peak = 0;

struct Held {  // what keeps the bytes of a device's tensor alive
  Held(size_t size, c10::DataPtr data, Tensor tensor) : bytes(size), data(std::move(data)), tensor(std::move(tensor)) {
    const long long now = used += bytes;
    if (now > peak) peak = now;
  }
  ~Held() { used -= bytes; }
  long long bytes;
  c10::DataPtr data;
  Tensor tensor;
};

void let_go(void* held) { delete static_cast<Held*>(held); }

struct Allocator : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr data = c10::GetCPUAllocator()->allocate(bytes);
    void* place = data.get();
    return {place, new Held(bytes, std::move(data), {}), &let_go, gpu};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
} allocator;

std::set<const void*> pinned;

void unpin(void* held) {
  auto* data = static_cast<c10::DataPtr*>(held);
  {
    std::lock_guard<std::mutex> lock(mutex);
    pinned.erase(data->get());
  }
  delete data;
}

struct PinnedAllocator : at::HostAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto* data = new c10::DataPtr(c10::GetCPUAllocator()->allocate(bytes));
    std::lock_guard<std::mutex> lock(mutex);
    pinned.insert(data->get());
    return {data->get(), data, &unpin, c10::kCPU};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  bool record_event(void*, void*, c10::Stream) override { return true; }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
} pinned_allocator;

// The device as torch asks for it -------------------------------------------------------------------------------------

struct Guard : c10::impl::DeviceGuardImplInterface {  // one device and one stream, on which all is done at once
  c10::DeviceType type() const override { return gpu.type(); }
  c10::Device exchangeDevice(c10::Device) const override { return gpu; }
  c10::Device getDevice() const override { return gpu; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, gpu); }
  c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, gpu); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
c10::impl::DeviceGuardImplRegistrar registered(gpu.type(), new Guard());

struct CUDAHooks : at::CUDAHooksInterface {  // the name is torch's key
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard<std::mutex> lock(mutex);
    return pinned.count(data) > 0;
  }
};

// Every operation without a kernel below is the CPU's, on views of the same memory ------------------------------------

Tensor view_of(const Tensor& t, DispatchKey key, c10::DataPtr data, c10::Allocator* owner) {
  c10::Storage storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(), std::move(data), owner, false);
  auto found = c10::make_intrusive<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), t.dtype());
  found->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return Tensor(std::move(found));
}

Tensor on_host(const Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  auto* kept = new Tensor(t);
  auto release = [](void* p) { delete static_cast<Tensor*>(p); };
  c10::DataPtr data(t.storage().mutable_data(), kept, release, c10::kCPU);
  return view_of(t, DispatchKey::CPU, std::move(data), c10::GetCPUAllocator());
}

Tensor on_device(const Tensor& t) {
  if (!t.defined()) return t;
  c10::DataPtr data(t.storage().mutable_data(), new Held(t.storage().nbytes(), {}, t), &let_go, gpu);
  return view_of(t, DispatchKey::CUDA, std::move(data), &allocator);
}

// CUDA graphs ---------------------------------------------------------------------------------------------------------

// Recording runs the operations, for their outputs' shapes, and then undoes what they did to memory and random numbers.
// A replay runs them again on the same memory, and destroys what it leaves in the graph's own.
struct Graph {
  std::vector<std::function<void()>> operations;
  std::vector<std::pair<Tensor, Tensor>> before;  // memory that was written to, and what was there
  std::vector<Tensor> own;
  Tensor random;

  void will_write(const Tensor& host) {
    if (host.numel()) before.emplace_back(host, host.clone());
  }
};

Tensor random_state() { return at::detail::getDefaultCPUGenerator().get_state(); }

IValue each(const IValue& value, const std::function<Tensor(const Tensor&)>& change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    std::vector<Tensor> all;
    for (const Tensor& t : value.toTensorVector()) all.push_back(change(t));
    return all;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> all;
    for (const auto& t : value.toOptionalTensorVector()) all.push_back(t ? std::optional(change(*t)) : std::nullopt);
    return all;
  }
  return value.isDevice() ? IValue(c10::Device(c10::kCPU)) : value;
}

bool is_written(const c10::Argument& argument) { return argument.alias_info() && argument.alias_info()->isWrite(); }

void check(const std::string& name, const torch::jit::Stack& arguments) {
  if (reads_back.count(name)) waited(name);
  if (takes_masks.count(name)) {
    for (const auto& t : arguments[1].toOptionalTensorVector()) {
      if (t && t->defined() && (t->scalar_type() == at::kBool || t->scalar_type() == at::kByte)) waited(name);
    }
    return;  // indices may be the host's
  }
  for (const IValue& argument : arguments) {
    each(argument, [&](const Tensor& t) {
      TORCH_CHECK(!t.defined() || t.is_cuda() || t.dim() == 0,
                  "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu (", name, ")");
      return t;
    });
  }
}

const Tensor& kept(const Tensor& t) {  // by a graph, if one is recorded
  if (recording && t.is_floating_point()) recording->own.push_back(t);
  return t;
}

void record(const c10::OperatorHandle& op, const torch::jit::Stack& arguments, torch::jit::Stack hosts,
            const torch::jit::Stack& results) {
  std::set<const void*> inputs;
  for (size_t i = 0; i < arguments.size(); ++i) {
    each(arguments[i], [&](const Tensor& t) { return t.defined() ? (inputs.insert(t.storage().data()), t) : t; });
    if (is_written(op.schema().arguments()[i])) hosts[i] = each(arguments[i], on_host);  // of the size it has now
  }
  recording->operations.push_back([op, hosts, results] {
    torch::jit::Stack again = hosts;
    op.callBoxed(&again);
    for (size_t i = 0; i < results.size(); ++i) {
      if (results[i].isTensor() && results[i].toTensor().defined()) results[i].toTensor().copy_(again[i].toTensor());
      for (size_t j = 0; results[i].isTensorList() && j < results[i].toTensorVector().size(); ++j) {
        results[i].toTensorVector()[j].copy_(again[i].toTensorVector()[j]);
      }
    }
  });
  for (const IValue& result : results) {
    each(result, [&](const Tensor& t) { return t.defined() && !inputs.count(t.storage().data()) ? kept(t) : t; });
  }
}

Tensor empty_on_host(const Tensor& t) { return at::empty(t.sizes(), t.options().device(c10::kCPU)); }

void by_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& described = schema.arguments();
  const auto arguments = torch::jit::pop(*stack, described.size());
  check(schema.name(), arguments);
  torch::jit::Stack hosts;
  for (size_t i = 0; i < arguments.size(); ++i) {
    // an output without elements may be given a size, which a view cannot hand on
    const bool unsized = is_written(described[i]) && arguments[i].isTensor() && arguments[i].toTensor().numel() == 0;
    hosts.push_back(unsized ? empty_on_host(arguments[i].toTensor()) : each(arguments[i], on_host));
  }
  if (recording) {
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (is_written(described[i])) each(hosts[i], [](const Tensor& t) { return recording->will_write(t), t; });
    }
  }
  torch::jit::Stack results = hosts;
  op.callBoxed(&results);
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!is_written(described[i]) || !arguments[i].isTensor() || !arguments[i].toTensor().is_cuda()) continue;
    const Tensor &host = hosts[i].toTensor(), &given = arguments[i].toTensor();
    if (host.sizes() == given.sizes()) continue;
    given.unsafeGetTensorImpl()->set_storage_keep_dtype(on_device(host).storage());
    given.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
  }
  for (size_t i = 0; i < results.size(); ++i) {
    const auto* alias = schema.returns()[i].alias_info();
    IValue result = each(results[i], on_device);
    for (size_t j = 0; alias && alias->isWrite() && j < arguments.size(); ++j) {  // what it wrote to is what it returns
      if (is_written(described[j]) && described[j].alias_info()->beforeSets() == alias->beforeSets()) result = arguments[j];
    }
    stack->push_back(result);
  }
  if (recording) record(op, arguments, hosts, results);
}

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DispatchKeySet keys(DispatchKey::CUDA);
  const auto type = c10::dtype_or_default(dtype);
  return kept(at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator, keys, type, format));
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  const c10::DispatchKeySet keys(DispatchKey::CUDA);
  return kept(at::detail::empty_strided_generic(size, stride, &allocator, keys, c10::dtype_or_default(dtype)));
}

Tensor& copy_(Tensor& to, const Tensor& from, bool non_blocking) {
  if (to.is_cuda() != from.is_cuda() && !(non_blocking && (to.is_cuda() ? from : to).is_pinned())) {
    waited(to.is_cuda() ? "a copy to the device" : "a copy to the host");
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  Tensor target = on_host(to), source = on_host(from);
  if (recording) {
    recording->will_write(target);
    recording->operations.push_back([target, source] { const_cast<Tensor&>(target).copy_(source); });
  }
  target.copy_(source);
  return to;
}

}  // namespace

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks)
}

REGISTER_HOST_ALLOCATOR(at::DeviceType::CUDA, &pinned_allocator)

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("view", &at::native::view);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("copy_", &copy_);
}

extern "C" {

void* fake_gpu_begin_graph() {
  recording = new Graph();
  recording->random = random_state();
  return recording;
}

void fake_gpu_end_graph() {
  const at::AutoDispatchBelowADInplaceOrView below;
  for (auto pair = recording->before.rbegin(); pair != recording->before.rend(); ++pair) pair->first.copy_(pair->second);
  recording->before.clear();
  auto generator = at::detail::getDefaultCPUGenerator();
  generator.set_state(recording->random);
  recording = nullptr;
}

void fake_gpu_replay(void* graph) {
  const at::AutoDispatchBelowADInplaceOrView below;
  for (const auto& operation : static_cast<Graph*>(graph)->operations) operation();
  for (const Tensor& t : static_cast<Graph*>(graph)->own) on_host(t).fill_(std::numeric_limits<double>::quiet_NaN());
}

const char* fake_gpu_waits() {  // since the last call, one a line
  static std::string taken;
  std::lock_guard<std::mutex> lock(mutex);
  taken.swap(waits);
  waits.clear();
  return taken.c_str();
}

void fake_gpu_forbid_waits(bool forbidden) { waits_are_errors = forbidden; }
long long fake_gpu_used() { return used; }
long long fake_gpu_peak() { return peak; }
void fake_gpu_reset_peak() { peak = used.load(); }
}
