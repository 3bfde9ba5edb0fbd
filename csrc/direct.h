// Functions of the Python module that run the CPU's operators past torch's dispatcher. Their docstrings stand in direct.cpp.
#pragma once
#include <Python.h>

namespace rnn_ext {

class LoopSteps;

PyMethodDef* direct_methods();

// direct.cpp: the operator rnn_backward with these 18 arguments; with `steps`, the weights' part is left there.
PyObject* run_backward(PyObject* const* args, LoopSteps* steps);

// plain_call.cpp: a call of a layer or cell, and what autograd.py's Function gives in backward.
PyObject* plain_call(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* gradients(PyObject*, PyObject* const* args, Py_ssize_t count);

}  // namespace rnn_ext
