"""One run of the model for what can be seen in it, without derivatives and without a trace of it left behind."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import BadInput
from ..task import arguments, describe, evaluating, first_line


def outputs_of(model: nn.Module, inputs: object) -> object:
    """The outputs in evaluation mode. Buffers are copies, since some modules count in evaluation, too; parameters are the model's own."""
    state = {name: value.clone() for name, value in model.named_buffers()}
    args, kwargs = arguments(inputs)
    with evaluating(model), torch.no_grad():
        try:
            return torch.func.functional_call(model, state, args, kwargs)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, ValueError, RuntimeError, TypeError) as error:
            raise BadInput(
                f"The model could not run on inputs {describe(inputs)}: {first_line(error)}. Make the data fit the model."
            ) from error
