// A plain eager call of a layer or cell, and its gradients, as one function each: what Python would do around the operators
// takes as long as they do.
#include "direct.h"

#include "python_tensors.h"

namespace rnn_ext {
namespace {

// The weights of a module: those of `names` among its parameters, of a cell without the biases if both are None. Null if one
// is not there.
PyObject* find_weights(PyObject* parameters, PyObject* names, bool of_cell) {
  const Ref all(PySequence_Fast(names, "expected a sequence of names"));
  if (all.object == nullptr || !PyDict_Check(parameters)) return nullptr;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(all.object);
  const Ref weights(PyList_New(0));
  if (weights.object == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* weight = PyDict_GetItemWithError(parameters, PySequence_Fast_GET_ITEM(all.object, i));
    if (weight == nullptr || PyList_Append(weights.object, weight) != 0) return nullptr;
  }
  const auto none = [&](Py_ssize_t i) { return PyList_GET_ITEM(weights.object, i) == Py_None; };
  if (of_cell && count == 4 && none(2) && none(3) && PyList_SetSlice(weights.object, 2, 4, nullptr) != 0) return nullptr;
  return Py_NewRef(weights.object);
}

// Brings gradients to the type of x, which is narrower than theirs in bfloat16 and float16. One at a time, for each frees
// twice the memory that it takes.
bool round_gradients(PyObject* list, PyObject* x) {
  const Ref dtype(PyObject_GetAttr(x, torch_side.dtype));
  if (dtype.object == nullptr) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
    const Ref own(PyObject_GetAttr(PyList_GET_ITEM(list, i), torch_side.dtype));
    if (own.object == dtype.object) return own.object != nullptr;
    PyObject* const rounded = PyObject_CallMethodOneArg(PyList_GET_ITEM(list, i), torch_side.to, dtype.object);
    if (rounded == nullptr || PyList_SetItem(list, i, rounded) != 0) return false;
  }
  return true;
}

// How a call's tensors differ from what the kernels take, as forms.py says: the axis of sequences is missing (axis >= 0), or
// those of sequences and time have changed places. Views that autograd knows nothing of, at a tenth of the price.
struct Form {
  int64_t dim;
  bool swapped;
  int64_t axis;

  int64_t kernel_dim() const { return dim + (axis >= 0); }
  Tensor input(Tensor x) const { return swapped ? swap(x) : axis < 0 ? x : with_axis(x); }
  Maybe state(Maybe s) const { return s && axis >= 0 ? Maybe(with_axis(*s)) : s; }
  Tensors results(Tensors all) const {
    if (swapped) all[0] = swap(all[0]);
    if (axis >= 0)
      for (Tensor& t : all) t = without_axis(t);
    return all;
  }

 private:
  using Numbers = std::vector<int64_t>;
  static Numbers sizes(const Tensor& t) { return Numbers(t.sizes().begin(), t.sizes().end()); }
  static Numbers strides(const Tensor& t) { return Numbers(t.strides().begin(), t.strides().end()); }
  static Tensor view(const Tensor& t, const Numbers& sizes, const Numbers& strides) {
    return rnn_ext::view(t, int64_t(sizes.size()), sizes.data(), strides.data());
  }
  static Tensor swap(const Tensor& t) {
    Numbers size = sizes(t), stride = strides(t);
    std::swap(size[0], size[1]);
    std::swap(stride[0], stride[1]);
    return view(t, size, stride);
  }
  Tensor with_axis(const Tensor& t) const {
    Numbers size = sizes(t), stride = strides(t);
    STD_TORCH_CHECK(t.dim() >= axis, "rnn_ext: too few dimensions");
    size.insert(size.begin() + axis, 1);
    stride.insert(stride.begin() + axis, t.dim() > axis ? t.size(axis) * t.stride(axis) : 1);
    return view(t, size, stride);
  }
  Tensor without_axis(const Tensor& t) const {
    Numbers size = sizes(t), stride = strides(t);
    size.erase(size.begin() + axis);
    stride.erase(stride.begin() + axis);
    return view(t, size, stride);
  }
};

}  // namespace

PyObject* plain_call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!expects(count, 17, "plain_call")) return nullptr;
  PyObject *x = args[0], *hx = args[1], *batch_sizes = args[2];
  const Form form{PyLong_AsLong(args[3]), args[4] == Py_True, PyLong_AsLong(args[5])};
  PyObject *parameters = args[6], *names = args[7];
  const char* mode = PyUnicode_AsUTF8(args[8]);
  const int64_t num_layers = PyLong_AsLong(args[9]);
  const bool bidirectional = args[10] == Py_True;
  const int64_t input_size = PyLong_AsLong(args[11]), hidden_size = PyLong_AsLong(args[12]);
  const int64_t state_size = PyLong_AsLong(args[13]);
  const bool batch_invariant = args[14] == Py_True, may_save = args[16] == Py_True;
  const int cell = mode != nullptr ? cell_of(mode) : -1;
  if (PyErr_Occurred() || cell < 0 || !plain_mode()) return not_implemented();
  const NamedCell& facts = cell_facts[cell];
  const bool pair = facts.states == 2, of_cell = form.kernel_dim() == 2 && batch_sizes == Py_None;
  if (hx != Py_None && pair && !(PyTuple_CheckExact(hx) && PyTuple_GET_SIZE(hx) == 2)) return not_implemented();
  const Ref states(hx == Py_None ? PyTuple_New(0) : pair ? Py_NewRef(hx) : PyTuple_Pack(1, hx));
  const Ref weights(find_weights(parameters, names, of_cell));
  Inputs in;
  if (weights.object == nullptr || PyList_GET_SIZE(weights.object) < 2 || !in.add(x) || !in.add_all(states.object) ||
      !in.add_all(weights.object) || !in.add_maybe(batch_sizes) || !in.open())
    return not_implemented();
  const bool save = aoti_torch_grad_mode_is_enabled() && in.require_gradients();
  if (save && !may_save) return not_implemented();
  Cpu cpu;
  if (args[15] != Py_None && !save)
    cpu.kept = static_cast<KeptWeights*>(PyCapsule_GetPointer(args[15], kKeptWeights));
  if (PyErr_Occurred()) return not_implemented();
  // Not handed over to what runs without Python's lock: to let go of a tensor that Python has, too, takes it.
  const Tensor x_t = in.take();
  const Tensors states_t = in.take_all(states.object), weights_t = in.take_all(weights.object);
  const Maybe batch_sizes_t = in.take_maybe(batch_sizes);
  const auto fits = [&] {
    const Tensor& W_hh = weights_t[1];
    return x_t.dim() == form.dim && x_t.size(-1) == input_size && W_hh.dim() == 2 &&
           W_hh.size(0) == facts.gates * hidden_size && W_hh.size(1) == state_size;
  };
  const auto state = [&](size_t i) { return i < states_t.size() ? form.state(states_t[i]) : Maybe(); };
  PyObject* const out = result([&] {
    STD_TORCH_CHECK(fits(), "rnn_ext: other sizes than the module's");
    Tensors all = forward_on(cpu,
                             {.x = form.input(x_t), .h_0 = state(0), .c_0 = state(1), .weights = weights_t,
                              .batch_sizes = batch_sizes_t, .masks = {}, .mode = mode, .num_layers = num_layers,
                              .bidirectional = bidirectional, .batch_invariant = batch_invariant},
                             save, true);
    return save ? all : form.results(std::move(all));
  });
  return save && out != nullptr && PyList_Check(out) ? Py_BuildValue("(NOOO)", out, x, states.object, weights.object) : out;
}

// The gradients of a call for the Function of autograd.py: those of x, h_0, c_0, the masks and the weights.
PyObject* gradients(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!expects(count, 9, "gradients")) return nullptr;
  PyObject *saved = args[0], *d_outputs = args[1], *wanted = args[2];
  if (aoti_torch_grad_mode_is_enabled() || !PyTuple_Check(saved) || !PyTuple_Check(d_outputs) || !PyTuple_Check(wanted) ||
      PyTuple_GET_SIZE(d_outputs) != 3)
    return not_implemented();
  PyObject *dy = PyTuple_GET_ITEM(d_outputs, 0), *dh_n = PyTuple_GET_ITEM(d_outputs, 1),
           *dc_n = PyTuple_GET_ITEM(d_outputs, 2);
  if (dy == Py_None && dh_n == Py_None && dc_n == Py_None) return not_implemented();
  // saved: batch_sizes, x, h_0, c_0, y, then masks and weights, then what forward kept
  const Py_ssize_t arguments = PyTuple_GET_SIZE(wanted), first_mask = 5;
  const Py_ssize_t first_weight = first_mask + PyLong_AsLong(args[3]), kept = first_mask + arguments - 3;
  LoopSteps* const steps = args[8] == Py_None ? nullptr : loop_steps_in(args[8]);
  if (PyErr_Occurred() || arguments < 3 || first_weight < first_mask || first_weight > kept || PyTuple_GET_SIZE(saved) < kept)
    return not_implemented();
  const auto wants = [&](Py_ssize_t i) { return PyTuple_GET_ITEM(wanted, i) == Py_True; };
  bool any_weight = false;
  for (Py_ssize_t i = 3 + first_weight - first_mask; i < arguments; ++i) any_weight = any_weight || wants(i);
  const auto flag = [](bool value) { return value ? Py_True : Py_False; };
  PyObject* const x = PyTuple_GET_ITEM(saved, 1);
  const Ref masks(PyTuple_GetSlice(saved, first_mask, first_weight)), weights(PyTuple_GetSlice(saved, first_weight, kept));
  const Ref tape(PyTuple_GetSlice(saved, kept, PyTuple_GET_SIZE(saved)));
  PyObject* const call[18] = {
      x, PyTuple_GET_ITEM(saved, 2), weights.object, PyTuple_GET_ITEM(saved, 0), masks.object, PyTuple_GET_ITEM(saved, 4),
      tape.object, dy, dh_n, dc_n, args[4], args[5], args[6], flag(wants(0)), flag(wants(1)), flag(wants(2)),
      flag(any_weight), args[7]};
  const Ref found(run_backward(call, steps));
  if (found.object == nullptr) return nullptr;
  if (!PyList_Check(found.object)) return not_implemented();
  if (!round_gradients(found.object, x)) return nullptr;
  PyObject* const all = PyTuple_New(arguments);
  if (all == nullptr) return nullptr;
  for (Py_ssize_t i = 0, next = 0; i < arguments; ++i) {
    const bool weight = i >= 3 + first_weight - first_mask;
    PyObject* gradient = Py_None;
    if ((weight && any_weight && steps == nullptr) || (i < 3 && wants(i))) gradient = PyList_GET_ITEM(found.object, next++);
    Py_INCREF(gradient);
    PyTuple_SET_ITEM(all, i, gradient);
  }
  return all;
}

}  // namespace rnn_ext
