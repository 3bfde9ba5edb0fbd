// The CPU's operators for plain eager calls, past torch's dispatcher: what it does for a call, boxing the arguments and
// all, costs more than a small layer's kernel.
//
// Tensors go in and out by torch's own functions between Python tensors and handles of its stable ABI, which Python
// hands over at import. A call that is not plain gets NotImplemented, and so does one that fails: the operator is to
// judge it.
#include "direct.h"

#include "cpu/device.h"

namespace rnn_ext {
namespace {

// What `set_up_direct` was given. Lives as long as the process.
struct {
  PyObject* tensor_types = nullptr;   // exact types of plain tensors
  PyObject* to_handles = nullptr;     // list of tensors -> list of capsules, each with a new handle
  PyObject* from_handles = nullptr;   // the inverse, which takes the handles over
  PyObject* modes = nullptr;          // functions that tell of a mode in which a call is not just what it looks like
  PyObject* is_neg = nullptr;         // torch.Tensor's method
  PyObject* requires_grad = nullptr;  // the name of its attribute
} torch_side;

struct Ref {  // owns a Python object; null after an error of Python's
  PyObject* object;
  explicit Ref(PyObject* object) : object(object) {}
  Ref(const Ref&) = delete;
  ~Ref() { Py_XDECREF(object); }
  bool is_true() const { return object != nullptr && PyObject_IsTrue(object) == 1; }
};

bool plain_mode() {
  if (torch_side.modes == nullptr) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(torch_side.modes); ++i) {
    const Ref found(PyObject_CallNoArgs(PyTuple_GET_ITEM(torch_side.modes, i)));
    if (found.object == nullptr || found.is_true()) return false;
  }
  return true;
}

// Not a subclass, and its memory holds its numbers themselves: of a lazily negated tensor it does not.
bool plain(PyObject* tensor) {
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

PyObject* not_implemented() {
  PyErr_Clear();
  Py_RETURN_NOTIMPLEMENTED;
}

// What `run` returns, as Python tensors.
template <class Run>
PyObject* result(const Run& run) {
  Tensors out;
  bool failed = false;
  Py_BEGIN_ALLOW_THREADS;
  try {
    out = run();
  } catch (...) {
    failed = true;
  }
  Py_END_ALLOW_THREADS;
  if (failed) return not_implemented();
  const Ref capsules(PyList_New(Py_ssize_t(out.size())));
  for (size_t i = 0; i < out.size(); ++i) {
    AtenTensorHandle handle = nullptr;
    aoti_torch_new_tensor_handle(out[i].get(), &handle);
    PyList_SET_ITEM(capsules.object, Py_ssize_t(i), PyCapsule_New(handle, nullptr, nullptr));
  }
  return PyObject_CallOneArg(torch_side.from_handles, capsules.object);
}

bool expects(Py_ssize_t given, Py_ssize_t count, const char* name) {
  if (given != count) PyErr_Format(PyExc_TypeError, "%s: expected %zd arguments, got %zd", name, count, given);
  return given == count;
}

PyObject* set_up_direct(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!expects(count, 4, "set_up_direct")) return nullptr;
  PyObject* const type = PyTuple_GetItem(args[0], 0);
  PyObject* const is_neg = type == nullptr ? nullptr : PyObject_GetAttrString(type, "is_neg");
  if (is_neg == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < count; ++i) Py_INCREF(args[i]);
  torch_side = {args[0], args[1], args[2], args[3], is_neg, PyUnicode_InternFromString("requires_grad")};
  Py_RETURN_NONE;
}

constexpr const char* kKeptWeights = "rnn_ext.KeptWeights";

PyObject* keep_weights(PyObject*, PyObject*) {
  return PyCapsule_New(new KeptWeights, kKeptWeights, [](PyObject* capsule) {
    delete static_cast<KeptWeights*>(PyCapsule_GetPointer(capsule, kKeptWeights));
  });
}

PyObject* forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!expects(count, 12, "forward")) return nullptr;
  PyObject *x = args[0], *h_0 = args[1], *c_0 = args[2], *weights = args[3], *batch_sizes = args[4], *masks = args[5];
  Inputs in;
  if (!plain_mode() || !in.add(x) || !in.add_maybe(h_0) || !in.add_maybe(c_0) || !in.add_all(weights) ||
      !in.add_maybe(batch_sizes) || !in.add_all(masks) || !in.open())
    return not_implemented();
  const char* mode = PyUnicode_AsUTF8(args[6]);
  const long num_layers = PyLong_AsLong(args[7]);
  const bool bidirectional = args[8] == Py_True, save = args[9] == Py_True, batch_invariant = args[10] == Py_True;
  Cpu cpu;
  if (args[11] != Py_None) cpu.kept = static_cast<KeptWeights*>(PyCapsule_GetPointer(args[11], kKeptWeights));
  if (PyErr_Occurred()) return not_implemented();
  // One by one: the order in which arguments of one call are evaluated is open.
  Tensor x_t = in.take();
  Maybe h_0_t = in.take_maybe(h_0), c_0_t = in.take_maybe(c_0);
  Tensors weights_t = in.take_all(weights);
  Maybe batch_sizes_t = in.take_maybe(batch_sizes);
  Tensors masks_t = in.take_all(masks);
  return result([&] {
    return forward_on(cpu, std::move(x_t), std::move(h_0_t), std::move(c_0_t), std::move(weights_t),
                      std::move(batch_sizes_t), std::move(masks_t), mode, num_layers, bidirectional, save,
                      batch_invariant, true);
  });
}

// The weights of a module: those of `names` among its parameters, of a cell without the biases if both are None. Null if one
// is not there.
PyObject* find_weights(PyObject* parameters, PyObject* names, bool of_cell) {
  const Ref all(PySequence_Fast(names, "expected a sequence of names"));
  if (all.object == nullptr || !PyDict_Check(parameters)) return nullptr;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(all.object);
  PyObject* weights = PyList_New(0);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* weight = PyDict_GetItemWithError(parameters, PySequence_Fast_GET_ITEM(all.object, i));
    if (weight == nullptr || PyList_Append(weights, weight) != 0) {
      Py_DECREF(weights);
      return nullptr;
    }
  }
  if (of_cell && count == 4 && PyList_GET_ITEM(weights, 2) == Py_None && PyList_GET_ITEM(weights, 3) == Py_None)
    PyList_SetSlice(weights, 2, 4, nullptr);
  return weights;
}

PyObject* at_once(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!expects(count, 13, "at_once")) return nullptr;
  PyObject *x = args[0], *hx = args[1];
  const char* mode = PyUnicode_AsUTF8(args[5]);
  const int cell = mode != nullptr ? cell_of(mode) : -1;
  if (cell < 0 || !plain_mode()) return not_implemented();
  const NamedCell& facts = cell_facts[cell];
  PyObject *h_0 = Py_None, *c_0 = Py_None;
  Inputs in;
  if (!in.add(x)) return not_implemented();
  if (hx != Py_None) {
    const bool pair = facts.states == 2;
    if (pair && !(PyTuple_CheckExact(hx) && PyTuple_GET_SIZE(hx) == 2)) return not_implemented();
    h_0 = pair ? PyTuple_GET_ITEM(hx, 0) : hx;
    if (pair) c_0 = PyTuple_GET_ITEM(hx, 1);
    if (!in.add(h_0) || (pair && !in.add(c_0))) return not_implemented();
  }
  const int64_t dim = PyLong_AsLong(args[2]);
  const Ref weights(find_weights(args[3], args[4], dim == 2));
  if (weights.object == nullptr || PyList_GET_SIZE(weights.object) < 2 || !in.add_all(weights.object) || !in.open())
    return not_implemented();
  const int64_t num_layers = PyLong_AsLong(args[6]);
  const int64_t input_size = PyLong_AsLong(args[8]), hidden_size = PyLong_AsLong(args[9]);
  const int64_t state_size = PyLong_AsLong(args[10]);
  const bool bidirectional = args[7] == Py_True, batch_invariant = args[11] == Py_True;
  Cpu cpu;
  if (args[12] != Py_None) cpu.kept = static_cast<KeptWeights*>(PyCapsule_GetPointer(args[12], kKeptWeights));
  if (PyErr_Occurred()) return not_implemented();
  Tensor x_t = in.take();
  Maybe h_0_t = in.take_maybe(h_0), c_0_t = in.take_maybe(c_0);
  Tensors weights_t = in.take_all(weights.object);
  const auto fits = [&] {
    const Tensor& W_hh = weights_t[1];
    return x_t.dim() == dim && x_t.size(-1) == input_size && W_hh.dim() == 2 &&
           W_hh.size(0) == facts.gates * hidden_size && W_hh.size(1) == state_size;
  };
  try {
    if (!fits()) return not_implemented();
  } catch (...) {
    return not_implemented();
  }
  if (aoti_torch_grad_mode_is_enabled() && in.require_gradients())
    return Py_BuildValue("(OOOO)", x, h_0, c_0, weights.object);
  return result([&] {
    return forward_on(cpu, std::move(x_t), std::move(h_0_t), std::move(c_0_t), std::move(weights_t), Maybe(), Tensors(),
                      mode, num_layers, bidirectional, false, batch_invariant, true);
  });
}

PyObject* backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!expects(count, 18, "backward")) return nullptr;
  PyObject *x = args[0], *h_0 = args[1], *weights = args[2], *batch_sizes = args[3], *masks = args[4], *y = args[5],
           *saved = args[6], *dy = args[7], *dh_n = args[8], *dc_n = args[9];
  Inputs in;
  if (!plain_mode() || !in.add(x) || !in.add_maybe(h_0) || !in.add_all(weights) || !in.add_maybe(batch_sizes) ||
      !in.add_all(masks) || !in.add(y) || !in.add_all(saved) || !in.add_maybe(dy) || !in.add_maybe(dh_n) ||
      !in.add_maybe(dc_n) || !in.open())
    return not_implemented();
  const char* mode = PyUnicode_AsUTF8(args[10]);
  const long num_layers = PyLong_AsLong(args[11]);
  bool flags[6];  // bidirectional, need_dx, need_dh_0, need_dc_0, need_dw, batch_invariant
  for (int i = 0; i < 6; ++i) flags[i] = args[12 + i] == Py_True;
  if (PyErr_Occurred()) return not_implemented();
  Tensor x_t = in.take();
  Maybe h_0_t = in.take_maybe(h_0);
  Tensors weights_t = in.take_all(weights);
  Maybe batch_sizes_t = in.take_maybe(batch_sizes);
  Tensors masks_t = in.take_all(masks);
  Tensor y_t = in.take();
  Tensors saved_t = in.take_all(saved);
  Maybe dy_t = in.take_maybe(dy), dh_n_t = in.take_maybe(dh_n), dc_n_t = in.take_maybe(dc_n);
  return result([&] {
    return rnn_backward<Cpu>(std::move(x_t), std::move(h_0_t), std::move(weights_t), std::move(batch_sizes_t),
                             std::move(masks_t), std::move(y_t), std::move(saved_t), std::move(dy_t), std::move(dh_n_t),
                             std::move(dc_n_t), mode, num_layers, flags[0], flags[1], flags[2], flags[3], flags[4],
                             flags[5]);
  });
}

}  // namespace

PyMethodDef* direct_methods() {
  static PyMethodDef methods[] = {
      {"set_up_direct", (PyCFunction)(void*)set_up_direct, METH_FASTCALL,
       "set_up_direct(tensor_types, to_handles, from_handles, modes): what `forward` and `backward` need of torch. "
       "Raises TypeError for another number of arguments."},
      {"forward", (PyCFunction)(void*)forward, METH_FASTCALL,
       "The operator rnn_forward with its arguments, past the dispatcher, and what keep_weights has given or None; of "
       "one step that saves nothing without y, which is h_n. NotImplemented where the operator must be called. Raises "
       "TypeError for another number of arguments."},
      {"at_once", (PyCFunction)(void*)at_once, METH_FASTCALL,
       "at_once(x, hx, dim, parameters, names, mode, num_layers, bidirectional, input_size, hidden_size, state_size, "
       "batch_invariant, kept): a padded call of a module without dropout, with the weights of these names among its "
       "parameters. The outputs in a list, as `forward` gives them, if nobody asks for a gradient; else the tuple "
       "(x, h_0, c_0, weights) to differentiate. NotImplemented if the call is not plain, or if anything is wrong with it. "
       "Raises TypeError for another number of arguments."},
      {"backward", (PyCFunction)(void*)backward, METH_FASTCALL,
       "The operator rnn_backward, likewise. Raises TypeError for another number of arguments."},
      {"keep_weights", keep_weights, METH_NOARGS,
       "Something for `forward` to keep packed weights in, of one layer or cell whose weights do not change."},
      {nullptr, nullptr, 0, nullptr}};
  return methods;
}

}  // namespace rnn_ext
