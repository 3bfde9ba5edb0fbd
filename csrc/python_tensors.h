// Tensors in and out of direct calls, by torch's own functions between Python tensors and handles of its stable ABI, which
// Python hands over at import.
#pragma once
#include "direct.h"

#include "cpu/loop_steps.h"
#include "cpu/device.h"

namespace rnn_ext {

// What `set_up_direct` was given. Lives as long as the process.
struct TorchSide {
  PyObject* tensor_types = nullptr;   // exact types of plain tensors
  PyObject* to_handles = nullptr;     // list of tensors -> list of capsules, each with a new handle
  PyObject* from_handles = nullptr;   // the inverse, which takes the handles over
  PyObject* modes = nullptr;          // functions that tell of a mode in which a call is not just what it looks like
  PyObject* is_neg = nullptr;         // torch.Tensor's method
  PyObject *requires_grad = nullptr, *dtype = nullptr, *to = nullptr;  // names of its attributes
};
inline TorchSide torch_side;

struct Ref {  // owns a Python object; null after an error of Python's
  PyObject* object;
  explicit Ref(PyObject* object) : object(object) {}
  Ref(const Ref&) = delete;
  ~Ref() { Py_XDECREF(object); }
  bool is_true() const { return object != nullptr && PyObject_IsTrue(object) == 1; }
};

inline bool plain_mode() {
  if (torch_side.modes == nullptr) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(torch_side.modes); ++i) {
    const Ref found(PyObject_CallNoArgs(PyTuple_GET_ITEM(torch_side.modes, i)));
    if (found.object == nullptr || found.is_true()) return false;
  }
  return true;
}

// Not a subclass, and its memory holds its numbers themselves: of a lazily negated tensor it does not.
inline bool plain(PyObject* tensor) {
  bool known = false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(torch_side.tensor_types); ++i)
    known = known || (PyObject*)Py_TYPE(tensor) == PyTuple_GET_ITEM(torch_side.tensor_types, i);
  if (!known) return false;
  const Ref negated(PyObject_CallOneArg(torch_side.is_neg, tensor));
  return negated.object == Py_False;
}

// The tensors of a call: added one by one, then taken out as handles in the same order.
class Inputs {
 public:
  bool add(PyObject* tensor) { return plain(tensor) && PyList_Append(list_.object, tensor) == 0; }
  bool add_maybe(PyObject* tensor) { return tensor == Py_None || add(tensor); }
  bool add_all(PyObject* tensors) {
    const Ref fast(PySequence_Fast(tensors, "expected a sequence of tensors"));
    if (fast.object == nullptr) return false;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast.object); ++i)
      if (!add(PySequence_Fast_GET_ITEM(fast.object, i))) return false;
    return true;
  }

  // Takes handles; false unless all of them are tensors with memory on the CPU and sizes, which nested ones lack.
  bool open() {
    const Ref capsules(PyObject_CallOneArg(torch_side.to_handles, list_.object));
    if (capsules.object == nullptr) return false;
    bool usable = true;
    handles_.reserve(PyList_GET_SIZE(capsules.object));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(capsules.object); ++i) {
      handles_.emplace_back(
          static_cast<AtenTensorHandle>(PyCapsule_GetPointer(PyList_GET_ITEM(capsules.object, i), nullptr)));
      const Tensor& t = handles_.back();
      void* data = nullptr;
      int64_t* sizes = nullptr;
      usable = usable && t.is_cpu() && aoti_torch_get_sizes(t.get(), &sizes) == AOTI_TORCH_SUCCESS &&
               aoti_torch_get_data_ptr(t.get(), &data) == AOTI_TORCH_SUCCESS && (data != nullptr || t.numel() == 0);
    }
    return usable;
  }

  bool require_gradients() const {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list_.object); ++i)
      if (Ref(PyObject_GetAttr(PyList_GET_ITEM(list_.object, i), torch_side.requires_grad)).is_true()) return true;
    return false;
  }

  Tensor take() { return std::move(handles_[taken_++]); }
  Maybe take_maybe(PyObject* given) { return given == Py_None ? Maybe() : Maybe(take()); }
  Tensors take_all(PyObject* given) {
    Tensors all;
    Py_ssize_t left = PyObject_Length(given);
    for (all.reserve(left); left > 0; --left) all.push_back(take());
    return all;
  }

 private:
  Ref list_{PyList_New(0)};
  Tensors handles_;
  size_t taken_ = 0;
};

inline PyObject* not_implemented() {
  PyErr_Clear();
  Py_RETURN_NOTIMPLEMENTED;
}

// What `run` returns, as Python tensors; if it fails, NotImplemented, or where there is no operator to judge the call, the
// error.
enum class Failure { not_implemented, raises };
template <class Run>
PyObject* result(const Run& run, Failure failure = Failure::not_implemented) {
  Tensors out;
  bool failed = false;
  std::string error = "rnn_ext: failed";
  Py_BEGIN_ALLOW_THREADS;
  try {
    out = run();
  } catch (const std::exception& e) {
    failed = true;
    error = e.what();
  } catch (...) {
    failed = true;
  }
  Py_END_ALLOW_THREADS;
  if (failed && failure == Failure::not_implemented) return not_implemented();
  if (failed) return PyErr_SetString(PyExc_RuntimeError, error.c_str()), nullptr;
  const Ref capsules(PyList_New(Py_ssize_t(out.size())));
  if (capsules.object == nullptr) return nullptr;
  for (size_t i = 0; i < out.size(); ++i) {
    AtenTensorHandle handle = nullptr;
    if (aoti_torch_new_tensor_handle(out[i].get(), &handle) != AOTI_TORCH_SUCCESS) return PyErr_NoMemory();
    PyObject* const capsule = PyCapsule_New(handle, nullptr, nullptr);
    if (capsule == nullptr) return aoti_torch_delete_tensor_object(handle), nullptr;
    PyList_SET_ITEM(capsules.object, Py_ssize_t(i), capsule);
  }
  return PyObject_CallOneArg(torch_side.from_handles, capsules.object);
}

inline bool expects(Py_ssize_t given, Py_ssize_t count, const char* name) {
  if (given != count) PyErr_Format(PyExc_TypeError, "%s: expected %zd arguments, got %zd", name, count, given);
  return given == count;
}

inline constexpr const char* kKeptWeights = "rnn_ext.KeptWeights";
inline constexpr const char* kLoopSteps = "rnn_ext.LoopSteps";

inline LoopSteps* loop_steps_in(PyObject* capsule) {
  return static_cast<LoopSteps*>(PyCapsule_GetPointer(capsule, kLoopSteps));
}

}  // namespace rnn_ext
