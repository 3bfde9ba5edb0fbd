// The CPU's operators for plain eager calls, past torch's dispatcher: what it does for a call, boxing the arguments and
// all, costs more than a small layer's kernel. A call that is not plain gets NotImplemented, and so does one that fails:
// the operator is to judge it.
#include "direct.h"

#include "python_tensors.h"

namespace rnn_ext {
namespace {

PyObject* set_up_direct(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!expects(count, 4, "set_up_direct")) return nullptr;
  PyObject* const type = PyTuple_GetItem(args[0], 0);
  PyObject* const is_neg = type == nullptr ? nullptr : PyObject_GetAttrString(type, "is_neg");
  if (is_neg == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < count; ++i) Py_INCREF(args[i]);
  const auto name = [](const char* text) { return PyUnicode_InternFromString(text); };
  torch_side = {args[0], args[1], args[2], args[3], is_neg, name("requires_grad"), name("dtype"), name("to")};
  Py_RETURN_NONE;
}

PyObject* keep_weights(PyObject*, PyObject*) {
  return PyCapsule_New(new KeptWeights, kKeptWeights, [](PyObject* capsule) {
    delete static_cast<KeptWeights*>(PyCapsule_GetPointer(capsule, kKeptWeights));
  });
}

PyObject* loop_steps(PyObject*, PyObject* rows) {
  const int64_t most = PyLong_AsLongLong(rows);
  if (PyErr_Occurred()) return nullptr;
  return PyCapsule_New(new LoopSteps(most), kLoopSteps, [](PyObject* capsule) { delete loop_steps_in(capsule); });
}

PyObject* gradients_of_loop(PyObject*, PyObject* capsule) {
  LoopSteps* const steps = loop_steps_in(capsule);
  return steps == nullptr ? nullptr : result([&] { return steps->gradients(); }, Failure::raises);
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
  const bool save = args[9] == Py_True;
  Cpu cpu;
  if (args[11] != Py_None) cpu.kept = static_cast<KeptWeights*>(PyCapsule_GetPointer(args[11], kKeptWeights));
  if (PyErr_Occurred()) return not_implemented();
  // In the order in which they were added, which that of the members is.
  const CallInputs call{.x = in.take(), .h_0 = in.take_maybe(h_0), .c_0 = in.take_maybe(c_0),
                        .weights = in.take_all(weights), .batch_sizes = in.take_maybe(batch_sizes),
                        .masks = in.take_all(masks), .mode = mode, .num_layers = num_layers,
                        .bidirectional = args[8] == Py_True, .batch_invariant = args[10] == Py_True};
  return result([&] { return forward_on(cpu, call, save, true); });
}

PyObject* backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return expects(count, 18, "backward") ? run_backward(args, nullptr) : nullptr;
}

}  // namespace

PyObject* run_backward(PyObject* const* args, LoopSteps* steps) {
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
  const BackwardInputs inputs{
      .call = {.x = in.take(), .h_0 = in.take_maybe(h_0), .c_0 = {}, .weights = in.take_all(weights),
               .batch_sizes = in.take_maybe(batch_sizes), .masks = in.take_all(masks), .mode = mode,
               .num_layers = num_layers, .bidirectional = flags[0], .batch_invariant = flags[5]},
      .y = in.take(), .saved = in.take_all(saved), .dy = in.take_maybe(dy), .dh_n = in.take_maybe(dh_n),
      .dc_n = in.take_maybe(dc_n)};
  return result([&] {
    const bool later = steps != nullptr && flags[4];
    const Needs need{flags[1], flags[2], flags[3], flags[4] && !later};
    Tensors found;
    if (!later || need.dx || need.dh_0 || need.dc_0) found = backward_on(Cpu{}, inputs, need);
    if (later) steps->add(inputs);
    return found;
  });
}

PyMethodDef* direct_methods() {
  static PyMethodDef methods[] = {
      {"set_up_direct", (PyCFunction)(void*)set_up_direct, METH_FASTCALL,
       "set_up_direct(tensor_types, to_handles, from_handles, modes): what `forward` and `backward` need of torch. "
       "Raises TypeError for another number of arguments."},
      {"forward", (PyCFunction)(void*)forward, METH_FASTCALL,
       "The operator rnn_forward with its arguments, past the dispatcher, and what keep_weights has given or None; of "
       "one step perhaps without y, which is h_n then. NotImplemented where the operator must be called. Raises "
       "TypeError for another number of arguments."},
      {"plain_call", (PyCFunction)(void*)plain_call, METH_FASTCALL,
       "plain_call(x, hx, batch_sizes, dim, swapped, axis, parameters, names, mode, num_layers, bidirectional, input_size, "
       "hidden_size, state_size, batch_invariant, kept, may_save): a call of a module without dropout, with the weights of "
       "these names among its parameters. The form of x and hx is that of a Form of forms.py; batch_sizes is None unless the "
       "input is packed. The outputs in a list, in the same form, if nobody asks for a gradient; else, if backward's part may "
       "be saved, the tuple (outputs, x, states, weights), outputs as `forward` gives them and states as many as hx has. "
       "NotImplemented if the call is not plain, or if anything is wrong with it. Raises TypeError for another number of "
       "arguments."},
      {"backward", (PyCFunction)(void*)backward, METH_FASTCALL,
       "The operator rnn_backward, likewise. Raises TypeError for another number of arguments."},
      {"gradients", (PyCFunction)(void*)gradients, METH_FASTCALL,
       "gradients(saved, d_outputs, wanted, num_masks, mode, num_layers, bidirectional, batch_invariant, steps): what the "
       "backward of autograd.py's Function returns for x, h_0, c_0, the masks and the weights. saved: batch_sizes, x, h_0, "
       "c_0, y, the masks, the weights, and what forward kept; d_outputs: of y, h_n and c_n; wanted: which gradients; steps: "
       "None, or what `loop_steps` gave, for the weights' part of a step, which then have None. NotImplemented as from "
       "`backward`, and where gradients may be differentiated or batched. Raises TypeError for another number of arguments, "
       "and what torch raises where there is no memory to round them."},
      {"loop_steps", loop_steps, METH_O,
       "loop_steps(rows): something for `gradients` to keep calls of one step in, that many rows at most at a time. Of one "
       "pass of backward: not for several threads at once."},
      {"gradients_of_loop", gradients_of_loop, METH_O,
       "gradients_of_loop(steps): of the weights, summed over the steps that were given, in the compute type. Raises "
       "RuntimeError as the operator does."},
      {"keep_weights", keep_weights, METH_NOARGS,
       "Something for `forward` to keep packed weights in, of one layer or cell whose weights do not change."},
      {nullptr, nullptr, 0, nullptr}};
  return methods;
}

}  // namespace rnn_ext
