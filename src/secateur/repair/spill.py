"""What a run has made lies on disk while it waits: of many runs side by side, the activations of one pair are in memory at a time.

While a run goes, the bytes that operators make are noted. Where it waits, they are written to a file without a name (so a kill leaves
none) and given back; the tensors stay, empty, in the hands of whoever has them. Before it goes on they are filled again, bit for bit. What
others made (weights, inputs, buffers, constants), and views of that, is not touched.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

import torch
from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef

from ..errors import BadInput
from ..flows.reading import Halting, Made, Reading
from ..flows.watch import Call
from ..structure.cut import tensors_in


class Spill:
    """Of one run. file: its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.made: dict[int, StorageWeakRef] = {}
        self.away: list[tuple[UntypedStorage, int]] = []

    def note(self, result: object, given: object) -> None:
        """An operator made this of what was given."""
        others = storages_in(given)
        for key, storage in storages_in(result).items():
            if key not in others:
                self.made[key] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]

    def out(self, made: Made, stay: Iterable[Tensor]) -> None:
        """To disk, what the run holds at this halt, but for what these have."""
        self.note(made.out, (made.args, made.kwargs))
        others = storages_in(list(stay))
        self.made = {key: ref for key, ref in self.made.items() if not ref.expired() and key not in others}  # type: ignore[no-untyped-call]
        self.file.seek(0)
        for ref in self.made.values():
            storage = UntypedStorage._new_with_weak_ptr(ref.cdata)
            if storage is not None and storage.resizable() and storage.nbytes():
                self.file.write(bytes_of(storage))
                self.away.append((storage, storage.nbytes()))
                storage.resize_(0)

    def back(self) -> None:
        """To memory."""
        self.file.seek(0)
        for storage, size in self.away:
            storage.resize_(size)
            self.file.readinto(bytes_of(storage))  # type: ignore[attr-defined]
        self.away = []


class Spilling(Halting):
    """Notes what a run makes, and fills it again when the run goes on."""

    def __init__(self, readings: Mapping[Call, Reading], halt: Callable[[Made], None], spill: Spill) -> None:
        def halted(made: Made) -> None:
            halt(made)
            spill.back()

        super().__init__(readings, halted)
        self.spill = spill

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # fmt: skip
        given = (args, kwargs or {})
        if any(value.numel() and not value.untyped_storage().nbytes() for value in strided_in(given)):
            raise BadInput("The model keeps a tensor of one run for others, but it lies on disk. Leave spill= out.")
        result = super().__torch_function__(func, types, args, kwargs)
        self.spill.note(result, given)
        return result


def strided_in(values: object) -> list[Tensor]:
    return [value for value in tensors_in([values], set()) if value.layout == torch.strided and value.device.type == "cpu"]


def storages_in(values: object) -> dict[int, UntypedStorage]:
    storages = [value.untyped_storage() for value in strided_in(values)]
    return {storage._cdata: storage for storage in storages}


def bytes_of(storage: UntypedStorage) -> ctypes.Array[ctypes.c_char]:
    """As they are, not copied (NumPy's view of a storage would keep it from being given back)."""
    return (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
