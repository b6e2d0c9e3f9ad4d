"""Plain parts of training that know no module: they take `Ranks`, tensors and callables."""
