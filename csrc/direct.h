// Functions of the Python module that run the CPU's operators past torch's dispatcher (direct.cpp).
#pragma once
#include <Python.h>

namespace rnn_ext {

PyMethodDef* direct_methods();

}  // namespace rnn_ext
