// Every cell, inside the namespace that includes this: with vectors for V, with scalars, or for its constants alone.
#include "gru.h"
#include "lstm.h"
#include "rnn.h"
