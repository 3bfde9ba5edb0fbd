"""Makes the way of transforms one node of the graph for torch.compile, which cannot look into a Function with a jvp.

A module of its own, imported while a transform is being compiled: the mark takes torch._dynamo, seconds to import.
"""

import torch

from rnn_ext import transforms

torch.compiler.allow_in_graph(transforms.recurrent)
